/** A process's turns on a vCPU: how one begins, how it ends, and the calls in it that may have to wait (wait.ts). */
import type { PhysicalAddress } from "../../base/memory.js";
import * as K from "../memory/kernel-layout.js";
import { processAddress } from "../memory/kernel-layout.js";
import type { Lifecycle } from "./lifecycle.js";
import type { KernelParts } from "./parts.js";
import type { Signals } from "./signals.js";
import { stopStatus } from "./status.js";
import type { Trims } from "./trims.js";
import { type Leave, Wait } from "./wait.js";

export class Turns {
  readonly #parts: KernelParts;
  readonly #signals: Signals;
  readonly #lifecycle: Lifecycle;
  readonly #trims: Trims;

  constructor(parts: KernelParts, rooms: { signals: Signals; lifecycle: Lifecycle; trims: Trims }) {
    this.#parts = parts;
    this.#signals = rooms.signals;
    this.#lifecycle = rooms.lifecycle;
    this.#trims = rooms.trims;
  }

  /** Puts the next process on a vCPU, and sends what alarms are due. -1 if none is ready. */
  pick(vcpu: number): number {
    return this.#parts.control.locked(() => {
      this.#signals.fireAlarms();
      return this.#parts.scheduler.pick(vcpu);
    });
  }

  /** Makes a call for a process, under the kernel lock. If it has to wait, what for is noted before the lock is let go of. */
  attempt<T>(slot: number, call: () => T | Wait): T | Wait {
    const { control, memory, scheduler } = this.#parts;
    return control.locked(() => {
      const result = call();
      if (result instanceof Wait) scheduler.waitFor(processAddress(memory, slot), result.channel);
      return result;
    });
  }

  /**
   * Takes a process off its vCPU. One that has been sent a signal meanwhile does not rest.
   *
   * @param ran - time that it ran, ms
   */
  putBack(slot: number, ran: number, leave: Leave): void {
    const { control, memory, scheduler } = this.#parts;
    control.locked(() => {
      const at = processAddress(memory, slot);
      this.#trims.take(slot);
      memory.store32(at + K.PROCESS_VCPU, -1);
      scheduler.charge(at, ran);
      if (memory.load32(at + K.PROCESS_STATE) === K.PROCESS_ENDING)
        return this.#lifecycle.endInParts(slot, memory.load32(at + K.PROCESS_LAST_STATUS));
      if (leave.do === "fail") return this.#lifecycle.fail(slot, leave.reason, leave.status);
      if (leave.do === "exit") return this.#lifecycle.endInParts(slot, leave.status);
      if (leave.do === "stop") this.#stop(at);
      else if (leave.do === "wait") scheduler.block(at);
      else if (leave.do === "sleep") scheduler.sleep(at, leave.until);
      else scheduler.makeReady(at);
      this.#signals.rouse(at);
    });
  }

  /**
   * Between two batches of the process in a slot: does what its vCPU was told to do before the next one, and then what is to be
   * done before anybody can tell it something else.
   */
  settle(slot: number, andThen: () => void = () => undefined): void {
    this.#parts.control.locked(() => {
      if (slot >= 0) this.#trims.take(slot);
      andThen();
    });
  }

  /** Stops a process, unless it was told to continue since it took the signal. What it has left to sleep stays noted. */
  #stop(at: PhysicalAddress): void {
    const signal = this.#signals.takeStop(at);
    this.#parts.memory.store32(at + K.PROCESS_STATE, signal === undefined ? K.PROCESS_READY : K.PROCESS_STOPPED);
    if (signal !== undefined) this.#signals.tellParent(at, stopStatus(signal));
  }

  /** After a restore: what ran on a vCPU of the saved machine is ready to run on one of this; what was to end ends. */
  releaseRunning(): void {
    const { core, memory } = this.#parts;
    for (let slot = 0; slot < memory.load32(K.KERNEL_SLOTS_USED); slot++) {
      const at = processAddress(memory, slot);
      const state = memory.load32(at + K.PROCESS_STATE);
      if (state === K.PROCESS_ENDING) this.#lifecycle.exit(slot, memory.load32(at + K.PROCESS_LAST_STATUS));
      if (state === K.PROCESS_RUNNING) memory.store32(at + K.PROCESS_STATE, K.PROCESS_READY);
      memory.store32(at + K.PROCESS_VCPU, -1);
      core.dropContext(slot);
    }
  }
}
