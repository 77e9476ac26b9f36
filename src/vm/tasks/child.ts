/** What a child's entry in the process table has from its parent's. */
import type { PhysicalAddress } from "../../base/memory.js";
import * as K from "../memory/kernel-layout.js";
import type { PhysicalMemory } from "../memory/physical.js";
import { A0, REGISTER_WORDS } from "../memory/user-layout.js";

/** Copies what a fork copies; the child's A0 is 0. */
export function copyEntry(memory: PhysicalMemory, from: PhysicalAddress, to: PhysicalAddress): void {
  for (const at of COPIED) memory.store32(to + at, memory.load32(from + at));
  for (let word = 0; word < REGISTER_WORDS; word++) {
    const at = K.PROCESS_REGISTERS + word * 4;
    memory.store32(to + at, word === A0 || word === A0 + 1 ? 0 : memory.load32(from + at));
  }
  memory.store32(to + K.PROCESS_PARENT, memory.load32(from + K.PROCESS_PID));
  memory.store32(to + K.PROCESS_FLAGS, memory.load32(from + K.PROCESS_FLAGS) & ~K.FLAG_ORPHAN);
}

/** Words that are the same; float64s in two halves. */
const COPIED: readonly number[] = [
  K.PROCESS_STEPS,
  K.PROCESS_STEPS + 4,
  K.PROCESS_RATE,
  K.PROCESS_RATE + 4,
  K.PROCESS_TEXT_BYTES,
  K.PROCESS_GROUP,
  K.PROCESS_NICE,
  K.PROCESS_VRUNTIME,
  K.PROCESS_VRUNTIME + 4,
  K.PROCESS_MASK,
  ...Array.from({ length: K.PROCESS_DISPOSITIONS_BYTES / 4 }, (_, word) => K.PROCESS_DISPOSITIONS + word * 4),
  ...Array.from({ length: K.PROCESS_HANDLER_MASKS_BYTES / 4 }, (_, word) => K.PROCESS_HANDLER_MASKS + word * 4),
];
