/**
 * A family: each process writes its pages, forks, writes them again while its children still have the old ones, and in the end
 * waits for its children. The first does so for ever; the others exit, with a code that follows from their pid.
 *
 * What must hold: of the data pages (zero at first: generation 0) those below `page` hold the word of generation `now`, the others that of `before`. A child
 * begins with its parent's pages and registers as of the fork, and no store of one is seen by another.
 */
import { FRAME_BYTES } from "../../../../base/layout.js";
import { ECHILD } from "../../../memory/errno.js";
import { A0, DATA_BASE, SelfCheckError } from "../program.js";
import { defineProgram, integer, type Program, rate, seed } from "./options.js";
import { hash, keyOf, mix } from "./random.js";
import { type Outcome, StateProgram, type Step } from "./states.js";

/** What the next step does. */
const WRITE = 0;
const FORK = 1;
const FORKED = 2;
const WAIT = 3;

// Words of the registers: s2 to s8.
const STATE = 36;
const DEPTH = 38;
const FORKS = 40;
const ALIVE = 42;
const PAGE = 44;
const BEFORE = 46;
const NOW = 48;

/** How long to wait for a free slot or memory before the next attempt, ms. */
const RETRY_MS = 5;
/** Status of a process that was ended from outside. */
const KILLED = 9;

class Fork extends StateProgram {
  override readonly unpredictable = "what it does depends on other processes and on memory; it checks itself";
  protected override readonly stateWord = STATE;
  override readonly dataPages: number;
  override readonly stackPages = 0;
  readonly #children: number;
  readonly #depth: number;
  readonly #key: number;

  constructor(options: { children: number; depth: number; pages: number; seed: number; rate: number }) {
    super(options);
    this.dataPages = options.pages;
    this.#children = options.children;
    this.#depth = options.depth;
    this.#key = keyOf(options.seed);
  }

  protected override step(state: number, step: Step): Outcome {
    const { registers, system } = step;
    switch (state) {
      case WRITE:
        this.#write(step);
        return "done";
      case FORK:
        registers[STATE] = FORKED;
        system.fork();
        return "asked";
      case FORKED:
        this.#forked(step, registers[A0]!);
        return "done";
      default: {
        if (registers[ALIVE] !== 0) return this.#wait(step);
        if (registers[DEPTH] !== 0) {
          system.exit(this.#code(system.getpid()));
          return "asked";
        }
        if (registers[FORKS] === 0) system.sleep(RETRY_MS); // there was no room for even one child
        registers[FORKS] = 0;
        this.#begin(step);
        return "asked";
      }
    }
  }

  /** Writes a page; the last one leads to what comes next. */
  #write({ memory, registers }: Step): void {
    const page = registers[PAGE]!;
    const at = DATA_BASE + page * FRAME_BYTES + offsetOf(page);
    const found = memory.load32(at) | 0;
    const expected = this.#word(page, registers[BEFORE]!);
    if (found !== expected) throw new SelfCheckError(`fork: page ${page} holds ${found}, expected ${expected}`);
    memory.store32(at, this.#word(page, registers[NOW]!));
    registers[PAGE] = page + 1;
    if (page + 1 < this.dataPages) return;
    registers[PAGE] = 0;
    registers[BEFORE] = registers[NOW]!;
    const more = registers[FORKS]! < this.#children && registers[DEPTH]! < this.#depth;
    registers[STATE] = more ? FORK : WAIT;
  }

  #forked(step: Step, result: number): void {
    const { registers } = step;
    if (result < 0) {
      registers[STATE] = WAIT; // no room: go on with those that there are
      return;
    }
    if (result > 0) {
      registers[FORKS]!++;
      registers[ALIVE]!++;
    } else {
      registers[DEPTH]!++;
      registers[FORKS] = 0;
      registers[ALIVE] = 0;
    }
    this.#begin(step);
  }

  /** Begins to write a generation that no other process has. */
  #begin({ registers, system }: Step): void {
    registers[NOW] = mix((registers[NOW]! + Math.imul(system.getpid(), 0x9e3779b1) + 1) | 0);
    registers[STATE] = WRITE;
  }

  /** Takes note of a child's end. */
  #wait({ registers, system }: Step): Outcome {
    const ended = system.wait(-1);
    if (ended === undefined) return "waits";
    if (typeof ended === "number")
      throw new SelfCheckError(`fork: ${registers[ALIVE]} children, and wait says ${ended} (${-ECHILD}: none)`);
    const expected = this.#code(ended.pid) << 8;
    if (ended.status !== expected && ended.status !== KILLED)
      throw new SelfCheckError(`fork: child ${ended.pid} ended with ${ended.status}, expected ${expected}`);
    registers[ALIVE]!--;
    return "done";
  }

  #word(page: number, generation: number): number {
    return generation === 0 ? 0 : mix(generation ^ Math.imul(page + 1, 0x85ebca6b) ^ this.#key);
  }

  #code(pid: number): number {
    return hash(this.#key, pid) & 0xff;
  }
}

/** Where in a page its word is: every page has another place. */
function offsetOf(page: number): number {
  return ((page * 52) % (FRAME_BYTES - 4)) & ~3;
}

export const fork: Program = defineProgram({
  name: "fork",
  summary: "forks children that write over their copies of its pages, and waits for them",
  options: {
    children: integer({ min: 1, max: 512, default: 3, help: "children of each process" }),
    depth: integer({ min: 1, max: 8, default: 2, help: "generations below the first process" }),
    pages: integer({ min: 1, max: 65536, default: 16, help: "size of the data area, in pages of 4 KiB" }),
    seed,
    rate,
  },
  create: (options) => new Fork(options),
});
