/**
 * What a step program is: a process that executes TypeScript instead of machine code.
 *
 * Its whole state is its registers and its memory, so it hibernates like any other process. A program's text (for
 * example `zipf:pages=50000,rate=200000`) lies in its code page; the host object that runs it is made from that text
 * and can be thrown away at any step. Each step is deterministic: the memory after N steps follows from the text.
 */
import type { VirtualAddress } from "../../../base/memory.js";
import type { DiskOperation, DiskStatus } from "../../devices/block-requests.js";
import type { DeviceCalls } from "../../devices/calls.js";
import type { UserMemory } from "../../memory/user-memory.js";
import type { ProcessTemplate } from "../../tasks/template.js";

// What a program is written against: these and the rest of this file.
export {
  A0,
  CODE_BASE,
  DATA_BASE,
  DATA_PAGES_MAX,
  HANDLER,
  HEAP_BASE,
  HEAP_END,
  HEAP_PAGES_MAX,
  SIGNAL_FRAME,
  SP,
  STACK_PAGES_MAX,
  STACK_TOP,
} from "../../memory/user-layout.js";
export type { DeviceCalls, DiskOperation, DiskStatus, UserMemory };

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

/** What to map: see mmap(2). */
export interface MmapRequest {
  /** Where; anywhere if not given. Whatever is there is replaced. */
  address?: VirtualAddress;
  pages: number;
  /** PTE bits R, W, X. */
  flags: number;
  /** Seen by all who have it from a fork, and not copied. */
  shared?: boolean;
}

/** How a child ended, or that it stopped or goes on: see wait(2), and tasks/status.ts. */
export interface Exited {
  pid: number;
  /** Exit code << 8; the number of the signal that ended it; signal << 8 | 0x7f of one that stopped it; 0xffff: it goes on. */
  status: number;
}

/** What stat(2) says. */
export interface FileStat {
  type: "file" | "directory";
  size: number;
  /** ms since 1970. */
  modified: number;
}

/** System calls on files; flags and whence as in files/flags.ts. */
export interface FileCalls {
  open(path: string, flags: number): number | undefined;
  close(fd: number): number;
  /** Reads into memory at `address`; returns how many bytes, 0 at the end. */
  read(fd: number, address: VirtualAddress, bytes: number): number | undefined;
  write(fd: number, address: VirtualAddress, bytes: number): number | undefined;
  lseek(fd: number, offset: number, whence: number): number;
  ftruncate(fd: number, size: number): number | undefined;
  fstat(fd: number): FileStat | number;
  stat(path: string): FileStat | number;
  readdir(path: string): string[] | number;
  mkdir(path: string): number;
  rmdir(path: string): number;
  unlink(path: string): number | undefined;
  rename(from: string, to: string): number | undefined;
  pipe(flags?: number): { reader: number; writer: number } | number;
  dup(fd: number): number;
  dup2(fd: number, to: number): number;
  /** FD_CLOEXEC, or 0. */
  setFdFlags(fd: number, flags: number): number;
  /** An fd for the console. */
  console(): number;
  /** Maps a file's pages from page `offset` on. */
  mmapFile(fd: number, offset: number, request: MmapRequest): number;
}

/**
 * System calls of the kernel for processes: a number that is negative is an error number (errno.ts). `undefined` means that the
 * process has to wait: the step must then end without having changed anything (`run` returns fewer steps than it may), and
 * is taken again when it may go on.
 */
export interface KernelCalls extends SystemCalls, FileCalls {
  getpid(): number;
  getppid(): number;
  /** Maps zeroed pages; returns the address. */
  mmap(request: MmapRequest): number;
  munmap(address: VirtualAddress, pages: number): number;
  /** What was stored to shared mappings of files of the host goes to the host; so it does when they are unmapped. */
  msync(address: VirtualAddress, pages: number): number;
  mprotect(address: VirtualAddress, pages: number, flags: number): number;
  /** Asks for 2 MiB mappings; returns how many there are. */
  madviseHuge(address: VirtualAddress, pages: number): number;
  /** Once the step is over: a child at the same step. A0 of the registers is then its pid, or an error; 0 in the child. */
  fork(): void;
  /** Once the step is over: another program in this process. */
  exec(text: string): void;
  /** Once the step is over: the end, with a code of 0 to 255. */
  exit(code: number): void;
  /**
   * The end of a child: of this one (its pid), of any (-1), of one in this process's group (0) or in another (-group). Then it is
   * gone, also if it failed.
   *
   * @param options - WUNTRACED: or that it has stopped; WCONTINUED: or that it goes on; WNOHANG: 0 rather than to wait
   */
  wait(pid: number, options?: number): Exited | number | undefined;
  /** Process group of a process; 0 for this one. */
  getpgid(pid: number): number;
  /** Puts this process (0) or a child into a group that there is, or begins one with it (group 0, or its pid). */
  setpgid(pid: number, group: number): number;
  /**
   * What a signal does: "default", "ignore", or a number from 1 to 65,534 that the program finds in its HANDLER register when it is to
   * handle the signal; A0 is then the signal, and `sigreturn` ends it. Returns what it was: 0 for default, 65,535 for ignored.
   *
   * @param mask - signals that are masked, beside this one, while the handler runs
   */
  sigaction(signal: number, action: number | "ignore" | "default", mask?: number): number;
  /** Masks signals (a set: bit n for signal n) in addition, no longer, or only these. Returns the mask before. */
  sigprocmask(how: "block" | "unblock" | "set", set: number): number;
  /** Signals that were sent and wait because they are masked. */
  sigpending(): number;
  /** Sends a signal to a process (its pid), a group (-group), this process's group (0) or everyone else (-1). Signal 0: is it there? */
  kill(pid: number, signal: number): number;
  /** Once the step is over: back to what the handler interrupted, just as it was. */
  sigreturn(): void;
  /** Once the step is over: waits until a handler has run. */
  pause(): void;
  /** The same, with another mask until then. */
  sigsuspend(mask: number): void;
  /** Sends SIGALRM in `ms`, and then each `interval` ms if that is not 0; 0 ms: no more. Returns what was left of the one before. */
  alarm(ms: number, interval?: number): number;
  /** How far a save of the machine is, 0 to 1; undefined if none is under way. */
  saving(): number | undefined;
  /** Adds to the nice value; returns what it is now. */
  nice(by: number): number;
}

/** What a running step program sees of itself. */
export interface ProgramContext {
  readonly memory: UserMemory;
  /** Of a process on a vCPU these are `KernelCalls`; a replay has the few that are deterministic. */
  readonly system: SystemCalls;
  /** 64 words: x0..x31, low and high halves. A program may use all but x0. All zero at the start. */
  readonly registers: Int32Array;
  /** Steps completed since the process began: an integer below 2^53. */
  readonly steps: number;
  /** Whether the batch is to end before its next step: somebody wants the machine stopped. */
  readonly isWanted?: () => boolean;
}

/** A program's own check of its memory failed. */
export class SelfCheckError extends Error {
  override readonly name = "SelfCheckError";
}

/** The kernel's calls, for programs that say so (`Runner.unpredictable`). */
export function kernelCalls(context: ProgramContext): KernelCalls {
  return context.system as KernelCalls;
}

/** One process's program, made from its text. Holds nothing that cannot be made again from the text. */
export interface Runner extends ProcessTemplate {
  /** Why its memory does not follow from its text alone; if given, it checks its memory only by itself. */
  readonly unpredictable?: string;
  /** Without these in the machine it is not started: a disk of so many sectors, a directory. */
  readonly needs?: { sectors?: number; directory?: string };
  /**
   * Runs up to `fuel` steps and returns how many it completed; fewer if it sleeps or waits for memory. Registers and
   * memory are those between two steps whenever it returns. Throws SelfCheckError.
   */
  run(context: ProgramContext, fuel: number): number;
}
