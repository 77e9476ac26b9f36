/**
 * A machine's physical memory as something to read: live RAM and an image both are one, so the walker, the page
 * tables' reader and the checks work on either.
 */

import { Contradiction } from "./errors.js";
import { FRAME_BYTES } from "./layout.js";

/** Number of a physical frame. */
export type Pfn = number & { readonly pfn?: never };
/** Byte address in the guest's physical memory: Pfn * 4096 + offset, 0 to 2^32 - 1. */
export type PhysicalAddress = number & { readonly physical?: never };
/** Byte address in a process's address space, 0 to 2^32 - 1. */
export type VirtualAddress = number & { readonly virtual?: never };

export interface ReadableMemory {
  /** Frames of RAM. */
  readonly frames: number;
  /** The signed 32-bit word at an address (a multiple of 4). */
  load32(address: PhysicalAddress): number;
  /** The float64 at an address (a multiple of 8). */
  loadFloat64(address: PhysicalAddress): number;
  /** A copy of `length` bytes. */
  read(address: PhysicalAddress, length: number): Uint8Array;
  /** Of an image's machine: whether the image has the frame. */
  has?(frame: Pfn): boolean;
}

/**
 * For the memory of a stored machine, which anybody may have written: nothing outside of it is looked at.
 *
 * @throws HIB_INCONSISTENT unless `bytes` bytes from `address` are RAM, and the address a multiple of `alignment`
 */
export function requireInRam(frames: number, address: PhysicalAddress, bytes: number, alignment = 1): void {
  if (address >= 0 && bytes >= 0 && address + bytes <= frames * FRAME_BYTES && address % alignment === 0) return;
  throw new Contradiction(`it refers to ${bytes} bytes at ${address}, which are no part of its memory`);
}

/**
 * The objects of a list that lies in memory, each with the address of the next one at `next`. The next one is known before an
 * object is given: it may be freed then.
 *
 * @param most - objects that such a list can have
 * @throws HIB_INCONSISTENT if it has no end
 */
export function* walkList(
  memory: ReadableMemory,
  head: PhysicalAddress,
  { next, most = Infinity }: { next: number; most?: number },
): Generator<PhysicalAddress> {
  // A list in a circle comes by a place where it has been (Brent); the place moves on after 1, 2, 4, ... objects.
  let place = 0;
  let steps = 0;
  let turn = 1;
  let found = 0;
  for (let at = head >>> 0; at !== 0; ) {
    if (at === place || ++found > most)
      throw new Contradiction(`the list that begins at 0x${(head >>> 0).toString(16)} has no end`);
    if (++steps === turn) [place, steps, turn] = [at, 0, turn * 2];
    const following = memory.load32(at + next) >>> 0;
    yield at;
    at = following;
  }
}
