/**
 * A helper of user space that draws how far a save is while it is under way (S3.7; TuxOnIce's userui). It is an ordinary process: it
 * keeps running, is in the image like any other, and nothing waits for it. In a resumed machine it finds the save over.
 *
 * What must hold: what it draws never goes back during one save.
 */
import { DATA_BASE, SelfCheckError } from "../program.js";
import { defineProgram, integer, type Program } from "./options.js";
import { count, type Outcome, StateProgram, type Step } from "./states.js";

/** Words of the data page. */
export const PROGRESS_DRAWN: number = DATA_BASE;
export const PROGRESS_SAVES: number = DATA_BASE + 4;
/** Percent + 1 that were drawn last of the save under way; 0 when there is none. */
const LAST = DATA_BASE + 8;
const COLUMNS = 30;

class Progress extends StateProgram {
  readonly #ms: number;

  constructor({ ms }: { ms: number }) {
    super();
    this.#ms = ms;
  }

  protected override step(_state: number, { memory, system }: Step): Outcome {
    const part = system.saving();
    const last = memory.load32(LAST);
    if (part === undefined) {
      if (last !== 0) {
        system.print(`save ${count(memory, PROGRESS_SAVES)}: over`);
        memory.store32(LAST, 0);
      }
    } else {
      const percent = Math.floor(part * 100 + 0.5);
      if (percent + 1 < last) throw new SelfCheckError(`progress: the save went back from ${last - 1} to ${percent} %`);
      memory.store32(LAST, percent + 1);
      count(memory, PROGRESS_DRAWN);
      system.print(`save: [${"#".repeat(Math.round(part * COLUMNS)).padEnd(COLUMNS)}] ${percent} %`);
    }
    system.sleep(this.#ms);
    return "asked";
  }
}

export const progress: Program = defineProgram({
  name: "progress",
  summary: "draws on the console how far a save is, and goes on in the machine that is resumed",
  options: { ms: integer({ min: 1, max: 10_000, default: 50, help: "time between two looks, in milliseconds" }) },
  create: (options) => new Progress(options),
});
