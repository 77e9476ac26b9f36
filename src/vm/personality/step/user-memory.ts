/** Float64s in a process's memory, which is accessed in words: times of the guest clock. */
import type { VirtualAddress } from "../../../base/memory.js";
import type { UserMemory } from "./program.js";

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
