/**
 * A machine whose one vCPU runs in the test's own thread, with programs that the test writes as lists of steps. The order of
 * events is the vCPU's own and no other thread's; what the steps see goes into the test's variables.
 */
import { MACHINE_POWER_OFF, MACHINE_STOP } from "../src/base/layout.js";
import { HibernaculumError } from "../src/base/errors.js";
import { checkConsistency } from "../src/vm/views/consistency.js";
import { listProcesses, type Process } from "../src/vm/tasks/process.js";
import type { Runner } from "../src/vm/personality/step/program.js";
import { type Outcome, STATE, StateProgram, type Step } from "../src/vm/personality/step/programs/states.js";
import { createStepVcpu } from "../src/vm/engines/step-engine.js";
import { HandMachine } from "./support.js";

/** A step; the next one follows unless it waits or sets STATE itself. Its result is an Outcome; anything else: it asked the kernel for something. */
export type Act = (step: Step) => unknown;

/** A program of steps, one after another, and of handlers by number, which end with the first step that has no result. */
export class Script extends StateProgram {
  override readonly stackPages: number;
  readonly #acts: readonly Act[];
  readonly #handlers: readonly Act[];

  constructor(acts: readonly Act[], handlers: readonly Act[] = [], stackPages = 16) {
    super();
    this.#acts = acts;
    this.#handlers = handlers;
    this.stackPages = stackPages;
  }

  protected override step(state: number, step: Step): Outcome {
    const act = this.#acts[state];
    if (act === undefined) throw new RangeError(`the script ended at step ${state}`);
    step.registers[STATE] = state + 1;
    const outcome = act(step);
    if (outcome === "waits") step.registers[STATE] = state;
    return outcome === "waits" || outcome === "done" ? outcome : "asked";
  }

  protected override handle(handler: number, step: Step): Outcome {
    const outcome = this.#handlers[handler - 1]!(step);
    if (outcome === undefined) step.system.sigreturn();
    return outcome === "waits" || outcome === "done" ? outcome : "asked";
  }
}

/** Goes to another step. */
export const go =
  (to: number): Act =>
  ({ registers, system }) => {
    registers[STATE] = to;
    system.kill(0, 0); // so that it is not taken for waiting
  };

const LIMIT_MS = 20_000;

export class ScriptedMachine extends HandMachine {
  readonly #scripts = new Map<string, Runner>();
  readonly #vcpus = new Map<number, ReturnType<typeof createStepVcpu>>();
  #timedOut = false;

  constructor() {
    super();
    const began = Date.now();
    this.#scripts.set(
      "watchdog",
      new Script([
        ({ system, registers }) => {
          this.#timedOut = Date.now() - began > LIMIT_MS;
          if (this.#timedOut) this.off();
          registers[STATE] = 0;
          system.sleep(100);
          return "asked";
        },
      ]),
    );
  }

  add(scripts: Record<string, Runner>): void {
    for (const [text, runner] of Object.entries(scripts)) this.#scripts.set(text, runner);
  }

  /** A script's step: the machine stops after it. */
  off = (): void => this.control.store(MACHINE_POWER_OFF, 1);

  /** Whether somebody has asked for a stop. */
  get stopping(): boolean {
    return this.control.load(MACHINE_STOP) === 1;
  }

  start(text: string): Process {
    return this.kernel.lifecycle.spawn(text, this.#scripts.get(text)!);
  }

  /** Runs a vCPU until a script turns the machine off. */
  go(number = 0): void {
    let vcpu = this.#vcpus.get(number);
    if (vcpu === undefined) {
      const createRunner = (text: string): Runner => {
        const runner = this.#scripts.get(text);
        if (runner === undefined) throw new HibernaculumError("HIB_USAGE", `no program ${text}`);
        return runner;
      };
      vcpu = createStepVcpu({
        memory: this.memory,
        number,
        createRunner,
        loaded: () => undefined,
        notifyDevices: () => undefined,
      });
      this.#vcpus.set(number, vcpu);
    }
    this.control.store(MACHINE_POWER_OFF, 0);
    vcpu.run();
    if (this.#timedOut) throw new Error("the scripts do not come to an end");
  }

  processes(): Process[] {
    return listProcesses(this.kernel.memory).filter(({ text }) => text !== "watchdog");
  }

  find = (pid: number): Process | undefined => this.processes().find((process) => process.pid === pid);

  problems(): string[] {
    return checkConsistency(this.kernel.memory).problems;
  }
}

/** Runs scripts, of which "main" is started first, until one turns the machine off. */
export function runScripts(make: (machine: ScriptedMachine) => Record<string, Runner>): ScriptedMachine {
  const machine: ScriptedMachine = new ScriptedMachine();
  machine.add(make(machine));
  machine.start("main");
  machine.start("watchdog");
  machine.go();
  return machine;
}
