/**
 * Programs as numbered states and handlers of signals: a step is a call of one of them. Only those that do nothing but store to
 * memory (zipf, random, sequential, incrementer) are loops of their own: a step of theirs takes some 20 ns, and they are the load
 * that everything is measured with.
 *
 * What must hold: a step that waits has changed nothing; one that asked for something that is done once it is over (to sleep, to fork,
 * to be sent a signal) is the last of its call of `run`. What a handler knows lies in x12, which is 0 when it begins, and in memory.
 */
import type { VirtualAddress } from "../../../../base/memory.js";
import { HANDLER, type KernelCalls, kernelCalls, type ProgramContext, type Runner, type UserMemory } from "../program.js";

/** Words of the registers: the state (x5), and how far a handler is (x12). */
export const STATE = 10;
export const PHASE = 24;

/** What came of a step: it is done; done, and asked the kernel for something; or it has to wait and was not taken. */
export type Outcome = "done" | "asked" | "waits";

/** What a step works with. */
export interface Step {
  readonly memory: UserMemory;
  readonly system: KernelCalls;
  readonly registers: Int32Array;
  /** Steps completed since the process began. */
  readonly steps: number;
}

/** `Runner.unpredictable` of most that talk to the kernel. */
export const OTHERS_AND_TIME = "what it does depends on other processes and on time; it checks itself";

export abstract class StateProgram implements Runner {
  readonly dataPages: number = 1;
  readonly stackPages: number = 16;
  readonly rate: number;
  declare readonly unpredictable?: string;
  /** Word of the registers where the state is. */
  protected readonly stateWord: number = STATE;

  constructor({ rate = 0 }: { rate?: number } = {}) {
    this.rate = rate;
  }

  /** A step outside of handlers. */
  protected abstract step(state: number, step: Step): Outcome;

  /** A step of a handler; it ends with `sigreturn`. */
  protected handle(_handler: number, { system }: Step): Outcome {
    system.sigreturn();
    return "asked";
  }

  run(context: ProgramContext, fuel: number): number {
    const { memory, registers } = context;
    const step = { memory, registers, system: kernelCalls(context), steps: context.steps };
    for (let done = 0; done < fuel; done++, step.steps++) {
      if (done > 0 && context.isWanted?.() === true) return done;
      const handler = registers[HANDLER]!;
      const outcome = handler === 0 ? this.step(registers[this.stateWord]!, step) : this.handle(handler, step);
      if (outcome === "waits") return done;
      if (outcome === "asked") return done + 1;
    }
    return fuel;
  }
}

/** Adds one to a counter in user memory; returns what it is now. */
export function count(memory: UserMemory, address: VirtualAddress): number {
  const counted = (memory.load32(address) + 1) >>> 0;
  memory.store32(address, counted);
  return counted;
}
