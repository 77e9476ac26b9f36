/**
 * A helper of user space that draws how far a save is while it is under way (S3.7; TuxOnIce's userui). It is an ordinary process: it
 * keeps running, is in the image like any other, and nothing waits for it. In a resumed machine it finds the save over.
 */
import { DATA_BASE } from "../program.js";
import { defineProgram, integer, type Program } from "./options.js";
import { count, OTHERS_AND_TIME, type Outcome, StateProgram, type Step } from "./states.js";

/** Words of the data page. */
export const PROGRESS_DRAWN: number = DATA_BASE;
export const PROGRESS_SAVES: number = DATA_BASE + 4;
/** Percent + 1 that were drawn last of the save under way; 0 when there is none. */
const LAST = DATA_BASE + 8;
const COLUMNS = 30;

class Progress extends StateProgram {
  override readonly unpredictable = OTHERS_AND_TIME;
  readonly #ms: number;

  constructor({ ms }: { ms: number }) {
    super();
    this.#ms = ms;
  }

  protected override step(_state: number, { memory, system }: Step): Outcome {
    const part = system.saving();
    const shown = part === undefined ? 0 : Math.round(part * 100) + 1;
    const last = memory.load32(LAST);
    if (shown < last) system.print(`save ${count(memory, PROGRESS_SAVES)}: over`); // or another one has begun already
    memory.store32(LAST, shown);
    if (part !== undefined) {
      count(memory, PROGRESS_DRAWN);
      system.print(`save: [${"#".repeat(Math.round(part * COLUMNS)).padEnd(COLUMNS)}] ${shown - 1} %`);
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
