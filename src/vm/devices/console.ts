/**
 * The console device: the host's side of the ring that the kernel prints to.
 *
 * Its state is that ring, which is guest memory: there is nothing to save. What was not taken out yet comes out of the
 * machine that is resumed.
 */
import type { KernelParts } from "../tasks/parts.js";
import { drainConsole } from "../memory/console-ring.js";
import { type Driver, StoreGate } from "./driver.js";

export class ConsoleDevice implements Driver {
  readonly #parts: KernelParts;
  readonly #gate: StoreGate;

  constructor(parts: KernelParts) {
    this.#parts = parts;
    this.#gate = new StoreGate(parts.control);
  }

  /** Takes out all that is there; nothing while the machine stands still. */
  drain(): string {
    return this.#gate.isOpen ? this.#parts.control.locked(() => drainConsole(this.#parts.memory)) : "";
  }

  saveState(): void {}

  quiesce(): void {
    this.#gate.close();
  }

  resume(): void {
    this.#gate.open();
  }

  freeState(): void {}
}
