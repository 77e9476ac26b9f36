/**
 * A parent that starts a group of children, stops it, lets it go on, ends it and waits for it, again and again. One child exits by
 * itself (and is waited for alone, or a zombie for a while), one pauses, one has a child of its own (an orphan once its parent is ended).
 *
 * What must hold: each child is waited for once, and its status says how it ended: the code it drew, or the signal. Before that wait
 * says of each that it has stopped, once, and that it goes on, once, unless it came to its end first.
 */
import { A0, DATA_BASE, type Exited, SelfCheckError } from "../program.js";
import { SIGCONT, SIGSTOP, SIGTERM } from "../../../tasks/signals.js";
import { exitStatus, STATUS_CONTINUED, stopStatus, WCONTINUED, WUNTRACED } from "../../../tasks/status.js";
import { defineProgram, integer, type Program, seed } from "./options.js";
import { hash, keyOf } from "./random.js";
import { count, OTHERS_AND_TIME, type Outcome, STATE, StateProgram, type Step } from "./states.js";

/** Words of the data page: rounds, children started and waited for in this one, their group, their pids, and which have stopped. */
const ROUND = DATA_BASE;
const STARTED = DATA_BASE + 4;
const WAITED = DATA_BASE + 8;
const GROUP = DATA_BASE + 12;
const pidOf = (child: number) => DATA_BASE + 16 + child * 4;
const CHILDREN = 3;
const stoppedOf = (child: number) => pidOf(CHILDREN + child);

// The parent's states, in the order in which they follow ...
const BEGIN = 0;
const FORK = 1;
const FORKED = 2;
const WAIT_FIRST = 3;
const STOP = 4;
const CONTINUE = 5;
const END = 6;
const WAIT = 7;
const STOPPED = 8;
const CONTINUED = 9;
// ... and the children's: what the child number n does first is state CHILD + n.
const CHILD = 10;
const EXIT = 20;
const REST = 21;
const PARENT = 22;
/** States of the parent in which it rests; tests look for them. */
export const JOBS: Readonly<Record<"stop" | "awaitStops" | "goOn" | "awaitContinues" | "end", number>> = {
  stop: STOP,
  awaitStops: STOPPED,
  goOn: CONTINUE,
  awaitContinues: CONTINUED,
  end: END,
};

class Jobs extends StateProgram {
  override readonly unpredictable = OTHERS_AND_TIME;
  readonly #ms: number;
  readonly #key: number;

  constructor(options: { ms: number; seed: number }) {
    super();
    this.#ms = options.ms;
    this.#key = keyOf(options.seed);
  }

  protected override step(state: number, step: Step): Outcome {
    return state < CHILD ? this.#lead(state, step) : this.#follow(state, step);
  }

  #draw({ memory }: Step, which: number): number {
    return hash(this.#key ^ which, memory.load32(ROUND)) >>> 0;
  }

  #lead(state: number, step: Step): Outcome {
    const { memory, registers, system } = step;
    const group = memory.load32(GROUP);
    const next = (to: number, which: number): Outcome => {
      registers[STATE] = to;
      system.sleep((this.#draw(step, which) / 2 ** 32) * this.#ms);
      return "asked";
    };
    switch (state) {
      case BEGIN:
        count(memory, ROUND);
        for (const word of [STARTED, WAITED, GROUP]) memory.store32(word, 0);
        registers[STATE] = FORK;
        return "done";
      case FORK:
        registers[STATE] = FORKED;
        system.fork();
        return "asked";
      case FORKED: {
        const pid = registers[A0]!;
        const child = memory.load32(STARTED);
        if (pid === 0) {
          system.setpgid(0, group);
          registers[STATE] = CHILD + child;
          return "done";
        }
        if (pid < 0) return next(FORK, 1); // no room or memory now
        memory.store32(pidOf(child), pid);
        if (child === 0) memory.store32(GROUP, pid);
        system.setpgid(pid, memory.load32(GROUP)); // as a shell does: whoever comes first, and it may be over already
        if (count(memory, STARTED) === CHILDREN) {
          if ((this.#draw(step, 7) & 1) === 0) return next(STOP, 2);
          registers[STATE] = WAIT_FIRST;
          return "done";
        }
        registers[STATE] = FORK;
        return "done";
      }
      case WAIT_FIRST: {
        const exited = system.wait(memory.load32(pidOf(0)));
        if (exited === undefined) return "waits";
        if (typeof exited === "number") throw new SelfCheckError(`jobs: wait for the first child says ${exited}`);
        this.#check(step, exited);
        registers[STATE] = STOP;
        return "done";
      }
      case STOP:
        system.kill(-group, SIGSTOP);
        registers[STATE] = STOPPED;
        return "asked";
      case STOPPED:
        return this.#awaitAll(step, WUNTRACED, () => next(CONTINUE, 3));
      case CONTINUE:
        system.kill(-group, SIGCONT);
        registers[STATE] = CONTINUED;
        return "asked";
      case CONTINUED:
        return this.#awaitAll(step, WCONTINUED, () => next(END, 4));
      case END:
        system.kill(-group, SIGTERM);
        registers[STATE] = WAIT;
        return "asked";
      case WAIT: {
        const exited = system.wait(-group);
        if (exited === undefined) return "waits";
        if (typeof exited === "object") this.#check(step, exited);
        else if (memory.load32(WAITED) === CHILDREN) registers[STATE] = BEGIN;
        else throw new SelfCheckError(`jobs: wait says ${exited} after ${memory.load32(WAITED)} of ${CHILDREN} children`);
        return "done";
      }
      default:
        throw new SelfCheckError(`jobs: state ${state}`);
    }
  }

  /** Waits until each child has stopped, or goes on, or has come to its end. */
  #awaitAll(step: Step, what: typeof WUNTRACED | typeof WCONTINUED, then: () => Outcome): Outcome {
    const { memory, system } = step;
    const stopped = what === WUNTRACED ? 1 : 0;
    const left = [0, 1, 2].filter((n) => memory.load32(pidOf(n)) !== 0 && memory.load32(stoppedOf(n)) !== stopped);
    if (left.length === 0) return then();
    const told = system.wait(-memory.load32(GROUP), what);
    if (told === undefined) return "waits";
    if (typeof told === "number") throw new SelfCheckError(`jobs: wait for stops says ${told}`);
    if (told.status !== (stopped === 1 ? stopStatus(SIGSTOP) : STATUS_CONTINUED)) {
      this.#check(step, told);
      return "done";
    }
    const child = left.find((n) => memory.load32(pidOf(n)) === told.pid);
    if (child === undefined) throw new SelfCheckError(`jobs: ${told.pid} is told of twice: ${told.status}`);
    memory.store32(stoppedOf(child), stopped);
    return "done";
  }

  #check(step: Step, { pid, status }: Exited): void {
    const child = [0, 1, 2].find((n) => step.memory.load32(pidOf(n)) === pid);
    if (child === undefined) throw new SelfCheckError(`jobs: waited for ${pid}, which is no child or was waited for before`);
    const exited = child === 0 && status === exitStatus(this.#code(step));
    if (!exited && status !== SIGTERM) throw new SelfCheckError(`jobs: child ${child} ended with status ${status}`);
    step.memory.store32(pidOf(child), 0);
    step.memory.store32(stoppedOf(child), 0);
    count(step.memory, WAITED);
  }

  #code(step: Step): number {
    return this.#draw(step, 5) & 0xff;
  }

  #follow(state: number, step: Step): Outcome {
    const { registers, system } = step;
    switch (state) {
      case CHILD:
        registers[STATE] = EXIT;
        system.sleep((this.#draw(step, 6) / 2 ** 32) * this.#ms);
        return "asked";
      case CHILD + 2:
        registers[STATE] = PARENT;
        system.fork();
        return "asked";
      case PARENT:
        if (registers[A0] !== 0) return this.#rest(step);
        system.setpgid(0, 0); // so it is not ended with the group: it outlives its parent, and nobody waits for it
        registers[STATE] = EXIT;
        system.sleep(this.#ms * 4);
        return "asked";
      case EXIT:
        system.exit(this.#code(step));
        return "asked";
      default:
        return this.#rest(step);
    }
  }

  #rest({ registers, system }: Step): Outcome {
    registers[STATE] = REST;
    system.pause();
    return "asked";
  }
}

export const jobs: Program = defineProgram({
  name: "jobs",
  summary: "starts groups of children, stops, continues and ends them by signals; checks what wait says of each",
  options: {
    ms: integer({ min: 1, max: 100_000, default: 10, help: "longest time between two of these, in milliseconds" }),
    seed,
  },
  create: (options) => new Jobs(options),
});
