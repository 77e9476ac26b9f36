/** A process's memory and registers as the kernel and programs agree on them: areas, argument registers, a handler's frame. */
import { FRAME_BYTES } from "../../base/layout.js";

/** Words of x0 to x31, low and high halves. */
export const REGISTER_WORDS = 64;

/** Where the areas of a step program are. Stack grows down from STACK_TOP. */
export const CODE_BASE = 0x0001_0000;
export const DATA_BASE = 0x1000_0000;
export const HEAP_BASE = 0xe000_0000;
export const HEAP_END = 0xf000_0000;
export const STACK_TOP = 0xffff_f000;
/** Where a process's addresses end: the last page of all is nobody's. */
export const USER_END: number = 2 ** 32 - FRAME_BYTES;
/** Mappings without an address go below HEAP_BASE, down to here. */
export const MMAP_BASE: number = DATA_BASE;
/** Word of the registers where the stack pointer (x2) lies; 0 is an empty stack. What is below it may be overwritten at any step. */
export const SP = 4;
/** Word of the registers where a0 (x10) lies: what a system call leaves for the next step. */
export const A0 = 20;
/**
 * Word of the registers where x31 lies: the number of the handler that the program is to run, 0 for none. When it begins, x10 is the
 * signal, x11 the address of the access that failed (SIGSEGV) or 0, x12 is 0, and x2 points at what it interrupted (SIGNAL_FRAME).
 */
export const HANDLER = 62;

/**
 * What lies at a handler's stack pointer: all that sigreturn restores. Byte offsets; a handler may change what it finds there.
 *
 *     +0    magic word
 *     +4    signal
 *     +8    mask
 *     +16   when it would have woken, ms of the guest clock (float64); 0 if it did not sleep
 *     +32   x0..x31, 64 words
 */
export const SIGNAL_FRAME = {
  magic: 0,
  signal: 4,
  mask: 8,
  wake: 16,
  registers: 32,
  bytes: 288,
  magicWord: 0x4749_5348,
} as const;

/** The areas' largest sizes, in pages. */
export const DATA_PAGES_MAX: number = (HEAP_BASE - DATA_BASE) / FRAME_BYTES;
export const HEAP_PAGES_MAX: number = (HEAP_END - HEAP_BASE) / FRAME_BYTES;
export const STACK_PAGES_MAX = 16384;
