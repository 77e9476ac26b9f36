/**
 * The console device: a ring of bytes in one DMA frame. The kernel puts bytes in under the kernel lock; the host's
 * side takes them out and moves the tail, which is a store by a device and tracked as one.
 *
 * Its state is the ring, which is guest memory: there is nothing to save. What was not taken out yet comes out of the
 * machine that is resumed.
 */
import { FRAME_BYTES } from "../../base/layout.js";
import type { Kernel } from "../kernel.js";
import { KERNEL_CONSOLE } from "../memory/kernel-layout.js";
import type { PhysicalMemory } from "../memory/physical.js";
import { type Driver, littleEndian, StoreGate } from "./driver.js";

const HEAD = 0;
const TAIL = 4;
const DATA = 8;
const CAPACITY = FRAME_BYTES - DATA;

/** Puts a line in; what does not fit is dropped. Caller holds the kernel lock. */
export function printToConsole(memory: PhysicalMemory, line: string): void {
  const ring = memory.load32(KERNEL_CONSOLE) * FRAME_BYTES;
  let head = memory.load32(ring + HEAD);
  const tail = memory.load32(ring + TAIL);
  for (const byte of new TextEncoder().encode(`${line}\n`)) {
    const next = (head + 1) % CAPACITY;
    if (next === tail) break;
    memory.write(ring + DATA + head, Uint8Array.of(byte));
    head = next;
  }
  memory.store32(ring + HEAD, head);
}

/** Takes out all that is there. Caller holds the kernel lock. */
export function drainConsole(memory: PhysicalMemory): string {
  const ring = memory.load32(KERNEL_CONSOLE) * FRAME_BYTES;
  const head = memory.load32(ring + HEAD);
  const tail = memory.load32(ring + TAIL);
  if (head === tail) return "";
  const bytes =
    tail < head
      ? memory.read(ring + DATA + tail, head - tail)
      : Buffer.concat([memory.read(ring + DATA + tail, CAPACITY - tail), memory.read(ring + DATA, head)]);
  memory.write(ring + TAIL, littleEndian(head), "device");
  return new TextDecoder().decode(bytes);
}

export class ConsoleDevice implements Driver {
  readonly #kernel: Kernel;
  readonly #gate: StoreGate;

  constructor(kernel: Kernel) {
    this.#kernel = kernel;
    this.#gate = new StoreGate(kernel.control);
  }

  /** Takes out all that is there; nothing while the machine stands still. */
  drain(): string {
    return this.#gate.isOpen ? this.#kernel.control.locked(() => drainConsole(this.#kernel.memory)) : "";
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
