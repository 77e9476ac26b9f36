/**
 * The step programs there are, by name. A process's text is `name` or `name:key=value,key=value`:
 *
 *     zipf:pages=50000,rate=200000
 *
 * What must hold: the text is all that a runner is made from, on whatever thread or host.
 */
import { HibernaculumError } from "../../../../base/errors.js";
import type { Runner } from "../program.js";
import { chaos } from "./chaos.js";
import { cutter } from "./cutter.js";
import { disk } from "./disk.js";
import { entropy } from "./entropy.js";
import { files } from "./files.js";
import { fork } from "./fork.js";
import { heap } from "./heap.js";
import { idle } from "./idle.js";
import { incrementer } from "./incrementer.js";
import { jobs } from "./jobs.js";
import { mapper } from "./mapper.js";
import type { Program } from "./options.js";
import { pipes } from "./pipes.js";
import { progress } from "./progress.js";
import { randomWrites } from "./random-writes.js";
import { sequential } from "./sequential.js";
import { shared } from "./shared.js";
import { signals } from "./signals.js";
import { sleeper } from "./sleeper.js";
import { stack } from "./stack.js";
import { timers } from "./timers.js";
import { zipf } from "./zipf.js";

/** Programs whose memory follows from their text, and those that work with others, with files or with devices. */
const replayable = [zipf, randomWrites, sequential, incrementer, stack, heap, idle, disk];
const interacting = [fork, shared, mapper, files, cutter, pipes, signals, jobs, sleeper, timers, progress, entropy, chaos];
const programs: ReadonlyMap<string, Program> = new Map(replayable.concat(interacting).map((program) => [program.name, program]));

/** Names of the programs, in the order of the help text. */
export const programNames: readonly string[] = [...programs.keys()];

/**
 * Makes the runner of a process from its text.
 *
 * @throws HibernaculumError HIB_USAGE if there is no such program or an option is not allowed.
 */
export function createRunner(text: string): Runner {
  const colon = text.indexOf(":");
  const name = colon < 0 ? text : text.slice(0, colon);
  const program = programs.get(name);
  if (program === undefined) {
    const names = programNames.join(", ");
    throw new HibernaculumError("HIB_USAGE", `no program ${JSON.stringify(name)}; there are ${names}`);
  }
  return program.create(colon < 0 ? "" : text.slice(colon + 1));
}

export interface OptionHelp {
  name: string;
  default: string;
  /** What it may be: "a whole number from 1 to 512". */
  range: string;
  help: string;
}

export interface ProgramHelp {
  name: string;
  summary: string;
  options: OptionHelp[];
}

/** What `--help` says about the programs. */
export function programHelp(): ProgramHelp[] {
  return [...programs.values()].map(({ name, summary, options }) => ({
    name,
    summary,
    options: Object.entries(options).map(([option, { default: initial, range, help }]) => ({
      name: option,
      default: String(initial),
      range,
      help,
    })),
  }));
}
