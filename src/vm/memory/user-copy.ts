/**
 * Copies between the kernel and the memory of the process that runs on this vCPU, through its MMU: permissions, faults and
 * tracking are those of the process's own accesses. A fault takes the kernel lock: do not hold it here.
 */
import { FRAME_BYTES } from "../../base/layout.js";
import type { VirtualAddress } from "../../base/memory.js";
import type { PhysicalMemory } from "./physical.js";

export class UserCopy {
  readonly #memory: PhysicalMemory;

  constructor(memory: PhysicalMemory) {
    this.#memory = memory;
  }

  copyIn(address: VirtualAddress, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    for (const { at, from, to } of pieces(address, length))
      bytes.set(this.#memory.read(this.#memory.core.prepareLoad(at | 0) >>> 0, to - from), from);
    return bytes;
  }

  copyOut(address: VirtualAddress, bytes: Uint8Array): void {
    for (const { at, from, to } of pieces(address, bytes.length))
      this.#memory.write(this.#memory.core.prepareStore(at | 0) >>> 0, bytes.subarray(from, to));
  }

  /** Makes sure that bytes can be stored there: a call that takes something away must not find out later. */
  prepare(address: VirtualAddress, length: number): void {
    for (const { at } of pieces(address, length)) this.#memory.core.prepareStore(at | 0);
  }
}

/** Bytes [from, to) of a range that lie in one page, and where. */
function* pieces(address: VirtualAddress, length: number): Generator<{ at: VirtualAddress; from: number; to: number }> {
  for (let from = 0; from < length; ) {
    const at = address + from;
    const to = Math.min(length, from + FRAME_BYTES - (at % FRAME_BYTES));
    yield { at, from, to };
    from = to;
  }
}
