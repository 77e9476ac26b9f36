/**
 * The personality of step programs: their system calls are methods, and what has to wait until the step is over is noted and done
 * here.
 */
import { createDeviceCalls } from "../../devices/calls.js";
import type { Kernel } from "../../kernel.js";
import { GuestFault } from "../../memory/address-space.js";
import { processAddress } from "../../memory/kernel-layout.js";
import { type Running, storeRunning } from "../../tasks/process.js";
import { SIGABRT, SIGSEGV } from "../../tasks/signals.js";
import { exitStatus } from "../../tasks/status.js";
import type { Leave } from "../../tasks/wait.js";
import type { Personality } from "../personality.js";
import type { BootSystemCalls } from "./boot-programs.js";
import type { Runner } from "./program.js";
import { type Afterwards, createSystemCalls } from "./system-calls.js";

/** A process that runs a step program. */
export interface StepTask extends Running {
  readonly pid: number;
  /** What its step asked for, to be done once that is over. */
  asked: Afterwards | undefined;
}

export interface StepPersonalityOptions {
  /** Makes the runner of a program's text. */
  createRunner(text: string): Runner;
  /** Part of the image that is loaded (resume), for boot processes. */
  loaded(): number | undefined;
  /** Has the coordinator look at the devices. */
  notifyDevices(): void;
}

export class StepPersonality implements Personality<StepTask> {
  readonly #kernel: Kernel;
  readonly #options: StepPersonalityOptions;

  constructor(kernel: Kernel, options: StepPersonalityOptions) {
    this.#kernel = kernel;
    this.#options = options;
  }

  createRunner(text: string): Runner {
    return this.#options.createRunner(text);
  }

  /** The system calls of a process. */
  calls(task: StepTask): BootSystemCalls {
    return createSystemCalls(
      this.#kernel,
      task.slot,
      (what) => {
        // That signals are to be looked at is so after anything else that a step asks for.
        if (what.do !== "signals" || task.asked === undefined) task.asked = what;
      },
      createDeviceCalls(this.#kernel, task, () => this.#options.notifyDevices()),
      () => this.#options.loaded(),
    );
  }

  trap(task: StepTask): Leave | undefined {
    const { control, lifecycle, memory, signals } = this.#kernel;
    const { asked, slot } = task;
    switch (asked?.do) {
      case "sleep":
        return { do: "sleep", until: control.guestNow() + asked.ms };
      case "wait":
        return { do: "wait" };
      case "exit":
        return { do: "exit", status: exitStatus(asked.code) };
      case "fork":
        lifecycle.fork(slot);
        return { do: "ready" };
      case "exec":
        try {
          lifecycle.exec(slot, asked.text, this.#options.createRunner);
        } catch (error) {
          return { do: "fail", reason: `exec: ${error instanceof Error ? error.message : String(error)}`, status: SIGABRT };
        }
        return { do: "ready" };
      case "pause":
        if (asked.mask !== undefined) signals.suspend(processAddress(memory, slot), asked.mask);
        return { do: "sleep", until: Infinity };
      case "sigreturn":
        return this.#sigreturn(task);
      default:
        return undefined;
    }
  }

  #sigreturn(task: StepTask): Leave | undefined {
    const { core, memory, signals } = this.#kernel;
    let wake: number | undefined;
    try {
      wake = signals.leave(processAddress(memory, task.slot), core, task.registers);
    } catch (error) {
      if (!(error instanceof GuestFault)) throw error;
    } finally {
      storeRunning(memory, task);
    }
    if (wake === undefined) return { do: "fail", reason: "sigreturn without a frame at its stack pointer", status: SIGSEGV };
    return wake > 0 ? { do: "sleep", until: wake } : undefined;
  }
}
