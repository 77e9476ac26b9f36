/**
 * A parent and its child send each other signals, handle them, and sleep and stop meanwhile.
 *
 * A signal that comes twice is delivered once. So a side sends the next only when the other has counted the last, and then the
 * counts of sent and handled signals, in a page that both share, differ by what is on its way: none or one.
 *
 * What must hold, at each step of either: the registers are those that the step before left, whatever handlers ran in between and did
 * to them; a handler is not interrupted by its own signal, nor that of SIGUSR1 by the other, which it masks; each signal is handled,
 * and once; a sleep that signals interrupt lasts as long as was asked.
 */
import { PTE_R, PTE_W } from "../../../../base/layout.js";
import { A0, DATA_BASE, SelfCheckError } from "../program.js";
import { SIGCHLD, SIGCONT, SIGSTOP, SIGUSR1, SIGUSR2, signalSet } from "../../../tasks/signals.js";
import { defineProgram, type Program, rate, seed } from "./options.js";
import { hash, keyOf, mix } from "./random.js";
import { count, OTHERS_AND_TIME, type Outcome, PHASE, STATE, StateProgram, type Step } from "./states.js";
import { loadUserFloat64, storeUserFloat64 } from "../../../memory/user-memory.js";

const SIGNALS = [SIGUSR1, SIGUSR2] as const;
/** A signal that was not handled for so long is lost, ms. */
const LOST_MS = 60_000;

// Registers: x6 which side this is (0 parent, 1 child), x7 the other's pid, x8 steps of the main loop; from x13 on, what follows from them.
const SIDE = 12;
const PEER = 14;
const LOOP = 16;
const PATTERN = 26;
const PATTERN_END = 60;

// Words of the private page: whether each handler runs, when each signal was sent last, when the sleep under way is over.
const inside = (signal: number) => DATA_BASE + signal * 4;
const sentAt = (signal: number) => DATA_BASE + 16 + signal * 8;
const UNTIL = DATA_BASE + 32;
const DRAWS = DATA_BASE + 40;

/** The page that both share: of each side and signal, how many were sent, and how many the other side has handled. */
const SHARED = 0x2000_0000;
const sent = (side: number, signal: number) => SHARED + (side * 2 + signal) * 8;
const handled = (side: number, signal: number) => sent(side, signal) + 4;

const BEGIN = 0;
const FORKED = 1;
const WORK = 2;
const SLEPT = 3;
const STOPPED_CHILD = 4;

class Signals extends StateProgram {
  override readonly unpredictable = OTHERS_AND_TIME;
  readonly #key: number;

  constructor(options: { seed: number; rate: number }) {
    super(options);
    this.#key = keyOf(options.seed);
  }

  protected override step(state: number, step: Step): Outcome {
    const { memory, registers, system } = step;
    switch (state) {
      case BEGIN:
        if (system.mmap({ address: SHARED, pages: 1, flags: PTE_R | PTE_W, shared: true }) < 0) return "waits";
        system.sigaction(SIGUSR1, 1, signalSet(SIGUSR2));
        system.sigaction(SIGUSR2, 2);
        system.sigaction(SIGCHLD, "ignore"); // a child that was ended from outside is gone
        system.sigprocmask("block", signalSet(...SIGNALS)); // until a side knows which one it is
        registers[STATE] = FORKED;
        system.fork();
        return "asked";
      case FORKED:
        if (registers[A0]! < 0) {
          registers[STATE] = BEGIN; // no memory now
          system.sleep(10);
          return "asked";
        }
        registers[SIDE] = registers[A0] === 0 ? 1 : 0;
        registers[PEER] = registers[A0] === 0 ? system.getppid() : registers[A0]!;
        fillPattern(registers);
        registers[STATE] = WORK;
        system.sigprocmask("unblock", signalSet(...SIGNALS));
        return "asked";
      case WORK:
        return this.#work(step);
      case SLEPT:
      case STOPPED_CHILD:
        checkPattern(registers);
        if (system.monotonicTime() < loadUserFloat64(memory, UNTIL)) throw new SelfCheckError("signals: a sleep was cut short");
        registers[STATE] = WORK;
        if (state === SLEPT) return "done";
        system.kill(registers[PEER]!, SIGCONT);
        return "asked";
      default:
        throw new SelfCheckError(`signals: state ${state}`);
    }
  }

  #work({ memory, registers, system }: Step): Outcome {
    checkPattern(registers);
    registers[LOOP] = (registers[LOOP]! + 1) | 0;
    fillPattern(registers);
    const side = registers[SIDE]!;
    const draw = hash(this.#key ^ side, count(memory, DRAWS));
    const now = system.monotonicTime();
    if (system.kill(registers[PEER]!, 0) < 0) {
      system.exit(0); // the other was ended, and has no more to say
      return "asked";
    }
    const signal = draw & 1;
    if (memory.load32(sent(side, signal)) === memory.load32(handled(side, signal))) {
      count(memory, sent(side, signal));
      storeUserFloat64(memory, sentAt(signal), now);
      system.kill(registers[PEER]!, SIGNALS[signal]!);
    } else if (now - loadUserFloat64(memory, sentAt(signal)) > LOST_MS) {
      throw new SelfCheckError(`signals: SIGUSR${signal + 1} to ${registers[PEER]} was lost`);
    }
    const what = (draw >>> 8) & 31;
    if (what > 4) return "asked";
    const stops = what === 0 && side === 0;
    if (stops) system.kill(registers[PEER]!, SIGSTOP);
    const ms = ((draw >>> 16) & 3) + 0.5;
    storeUserFloat64(memory, UNTIL, now + ms);
    registers[STATE] = stops ? STOPPED_CHILD : SLEPT;
    system.sleep(ms);
    return "asked";
  }

  protected override handle(handler: number, { memory, registers, system }: Step): Outcome {
    const signal = handler - 1;
    const other = 1 - registers[SIDE]!;
    if (registers[PHASE] === 0) {
      if (registers[A0] !== SIGNALS[signal]) throw new SelfCheckError(`signals: handler ${handler} for signal ${registers[A0]}`);
      if (memory.load32(inside(signal)) !== 0) throw new SelfCheckError(`signals: SIGUSR${handler} in its own handler`);
      if (memory.load32(inside(0)) !== 0) throw new SelfCheckError("signals: SIGUSR2 in the handler that masks it");
      memory.store32(inside(signal), 1);
      registers[PHASE] = 1;
      const draw = mix(memory.load32(sent(other, signal)) ^ this.#key);
      for (let word = PATTERN; word < PATTERN_END; word++) registers[word] = draw ^ word; // a handler may do with them what it likes
      if ((draw & 1) !== 0) return "done";
      system.sleep(3);
      return "asked";
    }
    const there = memory.load32(sent(other, signal)) >>> 0; // before it is counted: then the next may come
    const counted = count(memory, handled(other, signal));
    if (counted !== there) throw new SelfCheckError(`signals: SIGUSR${handler} handled ${counted} times and sent ${there} times`);
    memory.store32(inside(signal), 0);
    system.sigreturn();
    return "asked";
  }
}

function fillPattern(registers: Int32Array): void {
  for (let word = PATTERN; word < PATTERN_END; word++) registers[word] = hash(word, registers[LOOP]!);
}

function checkPattern(registers: Int32Array): void {
  for (let word = PATTERN; word < PATTERN_END; word++) {
    if (registers[word] !== hash(word, registers[LOOP]!))
      throw new SelfCheckError(`signals: word ${word} of the registers is ${registers[word]}, not what the step before left`);
  }
}

export const signals: Program = defineProgram({
  name: "signals",
  summary: "two processes send each other signals and count them in handlers; checks counts, masks and registers",
  options: { seed, rate },
  create: (options) => new Signals(options),
});
