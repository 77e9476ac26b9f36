/**
 * Sleeps, each time for a drawn time, and looks at the clock before and after.
 *
 * What must hold: it never slept less than it asked for, wherever it was saved and resumed meanwhile, and the monotonic clock never
 * goes back.
 */
import { DATA_BASE, SelfCheckError } from "../program.js";
import { defineProgram, integer, type Program, seed } from "./options.js";
import { hash, keyOf } from "./random.js";
import { count, OTHERS_AND_TIME, type Outcome, STATE, StateProgram, type Step } from "./states.js";
import { loadUserFloat64, storeUserFloat64 } from "../../../memory/user-memory.js";

/** Words of the data page: sleeps begun, when the one under way is over, and the clock as it was seen last. */
const SLEEPS = DATA_BASE;
const UNTIL = DATA_BASE + 8;
const SEEN = DATA_BASE + 16;

class Sleeper extends StateProgram {
  override readonly unpredictable = OTHERS_AND_TIME;
  readonly #ms: number;
  readonly #key: number;

  constructor(options: { ms: number; seed: number }) {
    super();
    this.#ms = options.ms;
    this.#key = keyOf(options.seed);
  }

  protected override step(state: number, { memory, registers, system }: Step): Outcome {
    const now = system.monotonicTime();
    if (now < loadUserFloat64(memory, SEEN)) throw new SelfCheckError(`sleeper: the clock went back to ${now}`);
    storeUserFloat64(memory, SEEN, now);
    registers[STATE] = 1 - state;
    if (state === 1) {
      const late = now - loadUserFloat64(memory, UNTIL);
      if (late < 0) throw new SelfCheckError(`sleeper: woke ${-late} ms too early`);
      return "done";
    }
    const ms = ((hash(this.#key, count(memory, SLEEPS)) >>> 0) / 2 ** 32) * this.#ms;
    storeUserFloat64(memory, UNTIL, now + ms);
    system.sleep(ms);
    return "asked";
  }
}

export const sleeper: Program = defineProgram({
  name: "sleeper",
  summary: "sleeps for times it draws; checks that it never slept less, and that the clock never goes back",
  options: { ms: integer({ min: 1, max: 3_600_000, default: 20, help: "longest sleep, in milliseconds" }), seed },
  create: (options) => new Sleeper(options),
});
