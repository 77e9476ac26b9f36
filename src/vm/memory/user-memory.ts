/** A process's memory as the process sees it, and the float64s in it: it is accessed in words. */
import type { VirtualAddress } from "../../base/memory.js";

/**
 * A process's memory as it sees it. Addresses may be given as signed 32-bit integers (`DATA_BASE + (page << 12) | 0`),
 * which is the fastest. Any access may fault; the kernel resolves it or ends the process.
 */
export interface UserMemory {
  load8(address: VirtualAddress): number;
  /** Signed or unsigned 32-bit word: use `| 0` or `>>> 0`. Need not be aligned. */
  load32(address: VirtualAddress): number;
  store8(address: VirtualAddress, value: number): void;
  store32(address: VirtualAddress, value: number): void;
  /** One 8-byte store, low word first. */
  store64(address: VirtualAddress, low: number, high: number): void;
}

const float = new Float64Array(1);
const halves = new Int32Array(float.buffer);

export function loadUserFloat64(memory: UserMemory, address: VirtualAddress): number {
  halves[0] = memory.load32(address);
  halves[1] = memory.load32(address + 4);
  return float[0]!;
}

export function storeUserFloat64(memory: UserMemory, address: VirtualAddress, value: number): void {
  float[0] = value;
  memory.store64(address, halves[0]!, halves[1]!);
}
