/**
 * A machine's physical memory as something to read: live RAM and an image both are one, so the walker, the page
 * tables' reader and the checks work on either.
 */

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
}
