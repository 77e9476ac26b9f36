/**
 * A pipe: a ring of bytes in one frame, with the number of its readers and writers. Whoever has to wait at one end waits for the
 * pipe, and whoever does something at the other end wakes him.
 *
 * Callers hold the kernel lock.
 */
import { FRAME_BYTES } from "../../base/layout.js";
import type { Pfn, PhysicalAddress, ReadableMemory } from "../../base/memory.js";
import { EPIPE } from "../memory/errno.js";
import { allocateObject, freeObject } from "../memory/kernel-heap.js";
import { KIND_KERNEL_HEAP } from "../memory/kernel-layout.js";
import type { KernelParts } from "../tasks/parts.js";
import { Wait } from "../tasks/wait.js";

const PIPE_BYTES = 32;
/** Descriptions of each end. */
const READERS = 0;
const WRITERS = 4;
/** PFN of the ring. */
const FRAME = 8;
/** Offset of the oldest byte. */
const START = 12;
const FILLED = 16;
/** A write of at most so many bytes is not mixed with others. */
export const PIPE_CAPACITY: number = FRAME_BYTES;

export interface Pipe {
  readers: number;
  writers: number;
  /** Its ring. */
  frame: Pfn;
  /** Where in that its first byte is. */
  start: number;
  filled: number;
}

export function readPipe(memory: ReadableMemory, pipe: PhysicalAddress): Pipe {
  return {
    readers: memory.load32(pipe + READERS),
    writers: memory.load32(pipe + WRITERS),
    frame: memory.load32(pipe + FRAME),
    start: memory.load32(pipe + START),
    filled: memory.load32(pipe + FILLED),
  };
}

/** A new pipe with one reader and one writer; undefined if there is no memory. */
export function createPipe({ memory, buddy }: KernelParts): PhysicalAddress | undefined {
  const pipe = allocateObject(memory, buddy, PIPE_BYTES);
  if (pipe === undefined) return undefined;
  const frame = buddy.allocate(0, 0, KIND_KERNEL_HEAP);
  if (frame === undefined) {
    freeObject(memory, pipe, PIPE_BYTES);
    return undefined;
  }
  for (const [word, value] of [
    [READERS, 1],
    [WRITERS, 1],
    [FRAME, frame],
    [START, 0],
    [FILLED, 0],
  ] as const)
    memory.store32(pipe + word, value);
  return pipe;
}

/** One fewer description is open of an end; the last one of both gives the pipe back. */
export function releaseEnd({ memory, buddy, scheduler }: KernelParts, pipe: PhysicalAddress, end: "reader" | "writer"): void {
  const count = pipe + (end === "reader" ? READERS : WRITERS);
  memory.store32(count, memory.load32(count) - 1);
  scheduler.wake(pipe); // the other end may be waiting for what does not come any more
  const { readers, writers } = readPipe(memory, pipe);
  if (readers + writers > 0) return;
  buddy.free(memory.load32(pipe + FRAME));
  freeObject(memory, pipe, PIPE_BYTES);
}

/** Takes bytes out; none at the end. */
export function takeFromPipe({ memory, scheduler }: KernelParts, pipe: PhysicalAddress, most: number): Uint8Array | Wait {
  const { filled, writers } = readPipe(memory, pipe);
  const count = Math.min(most, filled);
  if (count === 0) return filled === 0 && writers > 0 && most > 0 ? new Wait(pipe) : new Uint8Array();
  const ring = memory.load32(pipe + FRAME) * FRAME_BYTES;
  const start = memory.load32(pipe + START);
  const first = Math.min(count, PIPE_CAPACITY - start);
  const bytes = new Uint8Array(count);
  bytes.set(memory.read(ring + start, first));
  if (count > first) bytes.set(memory.read(ring, count - first), first);
  memory.store32(pipe + START, (start + count) % PIPE_CAPACITY);
  memory.store32(pipe + FILLED, filled - count);
  scheduler.wake(pipe);
  return bytes;
}

/** Puts bytes in: all of at most PIPE_CAPACITY, or what there is room for of more. Returns how many, or an error number, negated. */
export function putIntoPipe({ memory, scheduler }: KernelParts, pipe: PhysicalAddress, bytes: Uint8Array): number | Wait {
  const { filled, readers } = readPipe(memory, pipe);
  if (readers === 0) return -EPIPE;
  const room = PIPE_CAPACITY - filled;
  const count = bytes.length <= PIPE_CAPACITY ? bytes.length : room;
  if (count > room || (count === 0 && bytes.length > 0)) return new Wait(pipe);
  const ring = memory.load32(pipe + FRAME) * FRAME_BYTES;
  const start = (memory.load32(pipe + START) + filled) % PIPE_CAPACITY;
  const first = Math.min(count, PIPE_CAPACITY - start);
  memory.write(ring + start, bytes.subarray(0, first));
  memory.write(ring, bytes.subarray(first, count));
  memory.store32(pipe + FILLED, filled + count);
  scheduler.wake(pipe);
  return count;
}
