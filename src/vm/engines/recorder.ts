/** What a vCPU notes of its work in the control area: steps and faults per 10 ms, busy time, the longest gap (tasks/activity.ts). */
import type { Control } from "../../base/control.js";
import { FAULT_TIMELINE, STEP_TIMELINE, TIMELINE_BINS, VCPU_BUSY, VCPU_LONGEST_GAP } from "../../base/layout.js";
import type { Core } from "../memory/core.js";
import { binOf } from "../tasks/activity.js";

export class Recorder {
  readonly #control: Control;
  readonly #core: Core;
  readonly #number: number;
  #bin = 0;
  /** When the last batch ended; 0 if there is none that the next could be late after. */
  #lastEnd = 0;

  constructor(control: Control, core: Core, number: number) {
    this.#control = control;
    this.#core = core;
    this.#number = number;
  }

  /** A batch of steps, between two host times. */
  batch(began: number, now: number, steps: number): void {
    const { words } = this.#control;
    this.advance(now);
    const bin = (STEP_TIMELINE >>> 2) + this.#number * TIMELINE_BINS + (this.#bin % TIMELINE_BINS);
    words[bin] = words[bin]! + steps;
    this.#control.storeVcpuFloat(this.#number, VCPU_BUSY, this.#control.loadVcpuFloat(this.#number, VCPU_BUSY) + now - began);
    if (this.#lastEnd !== 0) this.gap(now - this.#lastEnd);
    this.#lastEnd = now;
  }

  /** Nothing is to be run: whatever comes next is not late. */
  idle(): void {
    this.#lastEnd = 0;
  }

  gap(ms: number): void {
    if (ms > this.#control.loadVcpuFloat(this.#number, VCPU_LONGEST_GAP)) {
      this.#control.storeVcpuFloat(this.#number, VCPU_LONGEST_GAP, ms);
    }
  }

  /** Moves to the timeline's bin of now, emptying those that are entered. */
  advance(now: number): void {
    const bin = binOf(this.#control, now);
    if (bin === this.#bin) return;
    const { words } = this.#control;
    for (let enter = Math.max(this.#bin + 1, bin - TIMELINE_BINS + 1); enter <= bin; enter++) {
      const at = this.#number * TIMELINE_BINS + (enter % TIMELINE_BINS);
      words[(STEP_TIMELINE >>> 2) + at] = 0;
      words[(FAULT_TIMELINE >>> 2) + at] = 0;
    }
    this.#bin = bin;
    this.#core.setTimelineBin(bin);
  }
}
