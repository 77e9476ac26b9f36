/**
 * The console's ring of bytes, in one DMA frame: the kernel puts bytes in and moves the head, the device takes them out and moves
 * the tail, which is a store by a device and tracked as one. Callers hold the kernel lock.
 */
import { FRAME_BYTES } from "../../base/layout.js";
import type { ReadableMemory } from "../../base/memory.js";
import { KERNEL_CONSOLE } from "./kernel-layout.js";
import { littleEndian, type PhysicalMemory } from "./physical.js";

const HEAD = 0;
const TAIL = 4;
const DATA = 8;
const CAPACITY = FRAME_BYTES - DATA;

/** Puts a line in; what does not fit is dropped. */
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

/** Whether both ends of the ring are in it. */
export function isRing(memory: ReadableMemory): boolean {
  const ring = memory.load32(KERNEL_CONSOLE) * FRAME_BYTES;
  return [HEAD, TAIL].every((end) => memory.load32(ring + end) >= 0 && memory.load32(ring + end) < CAPACITY);
}

/** Takes out all that is there. */
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
