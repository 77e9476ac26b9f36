/**
 * Alarms: counts the ticks of an interval timer in a handler while it sleeps or waits for the next, then waits for a single alarm,
 * then begins anew with another interval.
 *
 * What must hold: there are never more ticks than the interval has gone by; no alarm comes before its time; a sleep that ticks
 * interrupt is not shortened by them.
 */
import { DATA_BASE, SelfCheckError } from "../program.js";
import { SIGALRM, signalSet } from "../../../tasks/signals.js";
import { defineProgram, integer, type Program, seed } from "./options.js";
import { hash, keyOf } from "./random.js";
import { count, OTHERS_AND_TIME, type Outcome, STATE, StateProgram, type Step } from "./states.js";
import { loadUserFloat64, storeUserFloat64 } from "../../../memory/user-memory.js";

/** Words of the data page. */
const DRAWS = DATA_BASE;
const TICKS = DATA_BASE + 4;
const INTERVAL = DATA_BASE + 8;
const BEGAN = DATA_BASE + 16;
/** When the sleep under way is over. */
const UNTIL = DATA_BASE + 24;
/** When the single alarm is due; 0 when there is none to come. */
const DUE = DATA_BASE + 32;

const BEGIN = 0;
const TICKING = 1;
const SLEPT = 2;
const SINGLE = 3;
const SUSPEND = 4;
const RUNG = 5;
const TICKS_A_ROUND = 40;

class Timers extends StateProgram {
  override readonly unpredictable = OTHERS_AND_TIME;
  readonly #ms: number;
  readonly #key: number;

  constructor(options: { ms: number; seed: number }) {
    super();
    this.#ms = options.ms;
    this.#key = keyOf(options.seed);
  }

  protected override step(state: number, { memory, registers, system }: Step): Outcome {
    const draw = () => (hash(this.#key, count(memory, DRAWS)) >>> 0) / 2 ** 32;
    const now = system.monotonicTime();
    registers[STATE] = state + 1;
    switch (state) {
      case BEGIN: {
        const interval = 1 + Math.floor(draw() * this.#ms);
        memory.store32(TICKS, 0);
        memory.store32(INTERVAL, interval);
        storeUserFloat64(memory, BEGAN, now);
        system.sigaction(SIGALRM, 1);
        system.sigprocmask("set", 0);
        system.alarm(interval, interval);
        return "asked";
      }
      case TICKING:
        if (memory.load32(TICKS) >= TICKS_A_ROUND) {
          system.alarm(0);
          system.sigprocmask("block", 0); // a tick that is pending comes before the next step
          registers[STATE] = SINGLE;
          return "asked";
        }
        if (draw() < 0.5) {
          registers[STATE] = TICKING;
          system.pause();
          return "asked";
        }
        return this.#sleep(now, draw() * 3 * this.#ms, { memory, system });
      case SLEPT:
        if (now < loadUserFloat64(memory, UNTIL)) throw new SelfCheckError(`timers: slept until ${now} only`);
        registers[STATE] = TICKING;
        return "done";
      case SINGLE: {
        const ms = 1 + draw() * this.#ms;
        system.sigprocmask("block", signalSet(SIGALRM)); // else it could come before the wait for it
        storeUserFloat64(memory, DUE, now + ms);
        system.alarm(ms);
        return "asked";
      }
      case SUSPEND:
        system.sigsuspend(0);
        return "asked";
      case RUNG:
        if (loadUserFloat64(memory, DUE) !== 0) throw new SelfCheckError("timers: the wait for an alarm ended without it");
        registers[STATE] = BEGIN;
        return "done";
      default:
        throw new SelfCheckError(`timers: state ${state}`);
    }
  }

  #sleep(now: number, ms: number, { memory, system }: Pick<Step, "memory" | "system">): Outcome {
    storeUserFloat64(memory, UNTIL, now + ms);
    system.sleep(ms);
    return "asked";
  }

  protected override handle(_handler: number, { memory, system }: Step): Outcome {
    const now = system.monotonicTime();
    const due = loadUserFloat64(memory, DUE);
    if (due !== 0) {
      if (now < due) throw new SelfCheckError(`timers: an alarm came ${due - now} ms too early`);
      storeUserFloat64(memory, DUE, 0);
    } else {
      const gone = (now - loadUserFloat64(memory, BEGAN)) / memory.load32(INTERVAL);
      const ticks = count(memory, TICKS);
      if (ticks > gone) throw new SelfCheckError(`timers: tick ${ticks} after ${gone} intervals`);
    }
    system.sigreturn();
    return "asked";
  }
}

export const timers: Program = defineProgram({
  name: "timers",
  summary: "interval timers and alarms, counted in a handler; checks that none comes too early",
  options: { ms: integer({ min: 1, max: 100_000, default: 5, help: "longest interval, in milliseconds" }), seed },
  create: (options) => new Timers(options),
});
