/**
 * The kernel heap: objects of 32 B to 2 KiB in frames of kind kernel-heap, free ones in a list a size class.
 * A frame given to a class stays with it. Callers hold the kernel lock.
 */
import { Contradiction } from "../../base/errors.js";
import { FRAME_BYTES } from "../../base/layout.js";
import type { PhysicalAddress, ReadableMemory } from "../../base/memory.js";
import type { BuddyAllocator } from "./buddy.js";
import { KERNEL_HEAP_CLASSES, KERNEL_HEAP_HEADS, KERNEL_HEAP_SMALLEST, KIND_KERNEL_HEAP } from "./kernel-layout.js";
import type { PhysicalMemory } from "./physical.js";

function classOf(bytes: number): number {
  return Math.max(0, 32 - Math.clz32(bytes - 1) - 5);
}

/** Allocates an object; its contents are whatever was there. Undefined if there is no memory. */
export function allocateObject(memory: PhysicalMemory, buddy: BuddyAllocator, bytes: number): PhysicalAddress | undefined {
  const sizeClass = classOf(bytes);
  if (sizeClass >= KERNEL_HEAP_CLASSES) throw new RangeError(`kernel heap object of ${bytes} bytes`);
  const head = KERNEL_HEAP_HEADS + sizeClass * 4;
  let object = memory.load32(head) >>> 0;
  if (object === 0) {
    const frame = buddy.allocate(0, 0, KIND_KERNEL_HEAP);
    if (frame === undefined) return undefined;
    const size = KERNEL_HEAP_SMALLEST << sizeClass;
    for (let at = FRAME_BYTES - size; at >= 0; at -= size) {
      memory.store32(frame * FRAME_BYTES + at, object);
      object = frame * FRAME_BYTES + at;
    }
  }
  memory.store32(head, memory.load32(object));
  return object;
}

export function freeObject(memory: PhysicalMemory, object: PhysicalAddress, bytes: number): void {
  const head = KERNEL_HEAP_HEADS + classOf(bytes) * 4;
  memory.store32(object, memory.load32(head));
  memory.store32(head, object);
}

// ---- strings: their length in bytes, and as many of UTF-8 ----

const STRING_BYTES_MAX = 2000;

export function isTooLong(text: string): boolean {
  return Buffer.byteLength(text) > STRING_BYTES_MAX;
}

/** Undefined if there is no memory, or the text is too long. */
export function createString(memory: PhysicalMemory, buddy: BuddyAllocator, text: string): PhysicalAddress | undefined {
  const bytes = new TextEncoder().encode(text);
  if (bytes.length > STRING_BYTES_MAX) return undefined;
  const at = allocateObject(memory, buddy, 4 + bytes.length);
  if (at === undefined) return undefined;
  memory.store32(at, bytes.length);
  memory.write(at + 4, bytes);
  return at;
}

export function freeString(memory: PhysicalMemory, at: PhysicalAddress): void {
  freeObject(memory, at, 4 + memory.load32(at));
}

/** @throws HIB_INCONSISTENT if there is none */
export function readString(memory: ReadableMemory, at: PhysicalAddress): string {
  return new TextDecoder().decode(memory.read(at + 4, stringObject(memory, at).bytes - 4));
}

/** An object of the kernel heap: where, and the bytes that were asked for. */
export interface HeapObject {
  at: PhysicalAddress;
  bytes: number;
}

/** @throws HIB_INCONSISTENT if there is none */
export function stringObject(memory: ReadableMemory, at: PhysicalAddress): HeapObject {
  const length = memory.load32(at);
  if (length < 0 || length > STRING_BYTES_MAX) throw new Contradiction(`a path has ${length} bytes`);
  return { at, bytes: 4 + length };
}
