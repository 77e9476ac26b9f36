/**
 * What a step program is: a process that executes TypeScript instead of machine code.
 *
 * Its whole state is its registers and its memory, so it hibernates like any other process. A program's text (for
 * example `zipf:pages=50000,rate=200000`) lies in its code page; the host object that runs it is made from that text
 * and can be thrown away at any step. Each step is deterministic: the memory after N steps follows from the text.
 */
import type { VirtualAddress } from "../base/memory.js";

/** Where the areas of a step program are. Stack grows down from STACK_TOP. */
export const CODE_BASE = 0x0001_0000;
export const DATA_BASE = 0x1000_0000;
export const HEAP_BASE = 0xe000_0000;
export const HEAP_END = 0xf000_0000;
export const STACK_TOP = 0xffff_f000;

/** The areas' largest sizes, in pages. */
export const DATA_PAGES_MAX: number = (HEAP_BASE - DATA_BASE) / 4096;
export const HEAP_PAGES_MAX: number = (HEAP_END - HEAP_BASE) / 4096;
export const STACK_PAGES_MAX = 16384;

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

export type DiskOperation = "read" | "write" | "flush";
/** How a request to the disk ended. */
export type DiskStatus = "ok" | "out of range" | "I/O error" | "no space";

/** System calls on devices. One that would have to wait says so and has changed nothing: the step then ends undone. */
export interface DeviceCalls {
  /**
   * Submits a request to the disk, of one sector of 4,096 bytes. Several may be in flight; they are not ordered. False if
   * there is no memory for it now.
   *
   * @param tag - the process's own number for it, 0 to 15; not one that is in flight
   * @param sector - of a read or write
   * @param address - what to write (copied now)
   */
  submit(tag: number, operation: DiskOperation, sector: number, address: VirtualAddress): boolean;
  /** How the request of that tag ended; what it read is then at `address`. Undefined if it has not ended yet. */
  wait(tag: number, address: VirtualAddress): DiskStatus | undefined;
  /** A random 32-bit word, signed; undefined if the pool is empty now. */
  random(): number | undefined;
  /** Grows with each resume, and differs between two resumes of one image: whoever keeps random state compares it. */
  generation(): number;
  /** Milliseconds of the machine's own clock, which stands still while the machine is an image. */
  monotonicTime(): number;
  /** Milliseconds since 1970, as the host has it: jumps over the time that the machine was an image. */
  wallTime(): number;
}

/** System calls of step programs. */
export interface SystemCalls extends DeviceCalls {
  /**
   * Allocates a zeroed buddy block of 2^order frames and maps it readable and writable at `address`, which must lie in
   * the heap area, be aligned to a page, and not be mapped. False if there is no memory now: the step must then end
   * without having changed anything, and is tried again later.
   */
  map(address: VirtualAddress, order: number): boolean;
  /** Unmaps and frees a block that `map` gave. */
  unmap(address: VirtualAddress, order: number): void;
  /** Frees the stack pages wholly below `address` (the stack shrank). */
  shrinkStack(address: VirtualAddress): void;
  /** Sleeps for `ms` from now once the current call of `run` returns. */
  sleep(ms: number): void;
  /** Writes a line to the machine's console. */
  print(line: string): void;
}

/** What a running step program sees of itself. */
export interface ProgramContext {
  readonly memory: UserMemory;
  readonly system: SystemCalls;
  /** 64 words: x0..x31, low and high halves. A program may use all but x0. All zero at the start. */
  readonly registers: Int32Array;
  /** Steps completed since the process began: an integer below 2^53. */
  readonly steps: number;
}

/** A program's own check of its memory failed. */
export class SelfCheckError extends Error {
  override readonly name = "SelfCheckError";
}

/** One process's program, made from its text. Holds nothing that cannot be made again from the text. */
export interface Runner {
  /** Pages of the data area. */
  readonly dataPages: number;
  /** Most pages that the stack may grow to. */
  readonly stackPages: number;
  /** Most steps a second; 0 for as many as it can. */
  readonly rate: number;
  /** Why its memory does not follow from its text alone; if given, it checks its memory only by itself. */
  readonly unpredictable?: string;
  /**
   * Writes the initial contents of a data page into `out` (4,096 bytes). False: the page is to stay absent and is
   * read as zeros (demand-zero). A page that is present but zero returns true and a zero page.
   */
  initialPage(page: number, out: Uint8Array): boolean;
  /**
   * Runs up to `fuel` steps and returns how many it completed; fewer if it sleeps or waits for memory. Registers and
   * memory are those between two steps whenever it returns. Throws SelfCheckError.
   */
  run(context: ProgramContext, fuel: number): number;
}
