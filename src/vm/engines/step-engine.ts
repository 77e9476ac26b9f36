/** The engine of step programs: a host object for each process, made from its text and thrown away when the slot has another. */
import { MACHINE_STOP } from "../../base/layout.js";
import { REGISTER_WORDS } from "../memory/user-layout.js";
import { GuestFault } from "../memory/address-space.js";
import type { Kernel } from "../kernel.js";
import { type ProgramContext, type Runner, SelfCheckError } from "../personality/step/program.js";
import { StepPersonality, type StepPersonalityOptions, type StepTask } from "../personality/step/personality.js";
import { readProcess, readRegisters, storeRunning } from "../tasks/process.js";
import type { Cause, Engine, Task } from "./engine.js";
import { Vcpu, type VcpuOptions } from "./vcpu.js";

/** A step program as its vCPU runs it. */
export class StepProcess implements Task, StepTask {
  readonly slot: number;
  readonly pid: number;
  /** Another vCPU may have carried out an exec. */
  readonly text: string;
  readonly rate: number;
  readonly runner: Runner;
  readonly context: { -readonly [K in keyof ProgramContext]-?: NonNullable<ProgramContext[K]> };
  asked: StepTask["asked"];

  constructor(
    { slot, pid, text, rate }: { slot: number; pid: number; text: string; rate: number },
    personality: StepPersonality,
    { core, control }: Pick<Kernel, "core" | "control">,
  ) {
    this.slot = slot;
    this.pid = pid;
    this.text = text;
    this.rate = rate;
    this.runner = personality.createRunner(text);
    const isWanted = () => control.load(MACHINE_STOP) !== 0;
    this.context = {
      memory: core,
      system: personality.calls(this),
      registers: new Int32Array(REGISTER_WORDS),
      steps: 0,
      isWanted,
    };
  }

  get registers(): Int32Array {
    return this.context.registers;
  }

  get steps(): number {
    return this.context.steps;
  }
}

class StepEngine implements Engine<StepProcess> {
  readonly #kernel: Kernel;
  readonly #personality: StepPersonality;
  readonly #processes = new Map<number, StepProcess>();

  constructor(kernel: Kernel, personality: StepPersonality) {
    this.#kernel = kernel;
    this.#personality = personality;
  }

  load(slot: number): StepProcess {
    const { memory } = this.#kernel;
    const process = readProcess(memory, slot)!;
    let task = this.#processes.get(slot);
    if (task?.pid !== process.pid || task.text !== process.text) {
      task = new StepProcess(process, this.#personality, this.#kernel);
      this.#processes.set(slot, task);
    }
    task.context.registers.set(readRegisters(memory, slot));
    task.context.steps = process.steps;
    return task;
  }

  run(task: StepProcess, fuel: number): { steps: number; cause: Cause } {
    task.asked = undefined;
    let steps: number;
    try {
      steps = task.runner.run(task.context, fuel);
    } catch (error) {
      if (!(error instanceof GuestFault || error instanceof SelfCheckError || error instanceof RangeError)) throw error;
      return { steps: 0, cause: { failed: error } };
    }
    task.context.steps += steps;
    storeRunning(this.#kernel.memory, task);
    if (task.asked !== undefined) return { steps, cause: "call" };
    // It waits for memory or for a device if it stopped and has not said why: that step is taken again.
    return { steps, cause: steps === fuel || task.context.isWanted() ? "fuel" : "stuck" };
  }

  drop(task: StepProcess): void {
    this.#processes.delete(task.slot);
  }

  clear(): void {
    this.#processes.clear();
  }
}

/** A vCPU that runs step programs. */
export function createStepVcpu(options: VcpuOptions & StepPersonalityOptions): Vcpu<StepProcess> {
  return new Vcpu<StepProcess>(options, (kernel) => {
    const personality = new StepPersonality(kernel, options);
    return { engine: new StepEngine(kernel, personality), personality };
  });
}
