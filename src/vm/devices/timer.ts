/**
 * The timer: the guest's monotonic clock. It runs with the host's, from a base in the control area; so what there is to
 * save is one number, for which the kernel page has a word.
 *
 * Timers are reset, not restored (S2.3): sleepers have times of the monotonic clock, which stands still while a machine is
 * an image, and the base is set anew. So what was left to sleep is slept. The wall clock is the host's, and jumps.
 */
import type { KernelParts } from "../tasks/parts.js";
import { KERNEL_CLOCK } from "../memory/kernel-layout.js";
import type { Driver } from "./driver.js";

export class TimerDevice implements Driver {
  readonly #parts: KernelParts;

  constructor(parts: KernelParts) {
    this.#parts = parts;
  }

  saveState(): void {}

  /** The clock at the consistency point: the last store before it. */
  quiesce(): void {
    this.#parts.memory.storeFloat64(KERNEL_CLOCK, this.#parts.control.guestNow());
  }

  resume(after: "stop" | "restore"): void {
    const { control, memory } = this.#parts;
    if (after === "restore") control.setGuestClock(memory.loadFloat64(KERNEL_CLOCK));
  }

  freeState(): void {}
}
