/**
 * A thread's handler of missing frames (assembly/missing.ts). It is in the middle of an instruction, or of a call of the kernel, and
 * cannot go back: if the frame cannot be brought in, the machine ends here, before anything has used the frame.
 */
import { Control } from "../base/control.js";
import { LAZY_ENDED, LAZY_FILLING, MACHINE_LAZY } from "../base/layout.js";
import type { SharedMemory } from "../base/wasm.js";
import type { Core } from "../vm/memory/core.js";
import type { Pfn } from "../base/memory.js";
import { FaultRecord } from "./fault-record.js";
import { type FillTask, FrameSource } from "./frame-source.js";

/** Gives up bringing frames in: all that want one fail from now on, and loaders stop. The first failure counts. */
export function giveUp(control: Control, record: FaultRecord, error: unknown): void {
  record.fail(error);
  control.store(MACHINE_LAZY, LAZY_ENDED);
}

export class FrameFaults {
  readonly #control: Control;
  readonly #source: FrameSource;
  readonly #record: FaultRecord;

  constructor(memory: SharedMemory, core: Core, task: FillTask) {
    this.#control = new Control(memory);
    this.#source = new FrameSource(memory, core, task);
    this.#record = new FaultRecord(task.record);
  }

  /** @throws why it cannot be brought in */
  bringIn(frame: Pfn): void {
    const began = performance.now();
    if (this.#control.load(MACHINE_LAZY) !== LAZY_FILLING)
      throw this.#record.failure ?? new Error("nobody brings frames in any more");
    try {
      this.#source.bringIn(frame);
    } catch (error) {
      giveUp(this.#control, this.#record, error);
      throw error;
    }
    this.#record.fault(performance.now() - began);
  }
}
