/**
 * Sleeps, wakes, counts: a process that is almost never on a vCPU, with memory that it does not touch.
 *
 * What must hold: the counter, at the start of the data area, is the number of steps.
 */
import { DATA_BASE, SelfCheckError } from "../program.js";
import { type Contents, createContents } from "./contents.js";
import { content, dataPages, defineProgram, integer, type Program, rate, seed } from "./options.js";
import { lowWord } from "./random.js";
import { type Outcome, StateProgram, type Step } from "./states.js";

class Idle extends StateProgram {
  override readonly dataPages: number;
  override readonly stackPages = 0;
  readonly #ms: number;
  readonly #contents: Contents;

  constructor(options: { ms: number; pages: number; seed: number; rate: number; content: string }) {
    super(options);
    this.dataPages = options.pages;
    this.#ms = options.ms;
    this.#contents = createContents(options.content, options.seed);
  }

  initialPage(page: number, out: Uint8Array): boolean {
    if (!this.#contents(page, out)) return false;
    if (page === 0) out.fill(0, 0, 8);
    return true;
  }

  protected override step(_state: number, { memory, system, steps }: Step): Outcome {
    const low = memory.load32(DATA_BASE) >>> 0;
    const high = memory.load32(DATA_BASE + 4) >>> 0;
    const counted = high * 2 ** 32 + low;
    if (counted !== steps) throw new SelfCheckError(`idle: counted ${counted} of ${steps} steps`);
    memory.store64(DATA_BASE, lowWord(steps + 1), Math.floor((steps + 1) / 2 ** 32));
    system.sleep(this.#ms);
    return "asked";
  }
}

export const idle: Program = defineProgram({
  name: "idle",
  summary: "counts and sleeps; the rest of its memory is never touched",
  options: {
    ms: integer({ min: 1, max: 3_600_000, default: 10, help: "sleep after each step, in milliseconds" }),
    pages: dataPages(1),
    seed,
    rate,
    content,
  },
  create: (options) => new Idle(options),
});
