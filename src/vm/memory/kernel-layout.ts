/**
 * Where the kernel's data lie in guest memory. The kernel's code is TypeScript; all of its data is here, so an image of
 * memory is an image of the machine.
 *
 *     frame 0              kernel page: the words below
 *     frames 1..           arena table, process table, frame table, one after another
 *     from staticFrames    buddy blocks
 *
 * Changing anything here changes MACHINE_VERSION (image/format.ts).
 */
import { FRAME_BYTES, MAX_PROCESSES } from "../../base/layout.js";
import type { PhysicalAddress, ReadableMemory } from "../../base/memory.js";
import {
  ARENA_BYTES,
  ARENA_FRAMES,
  FRAME_ENTRY_BYTES,
  KIND_FILE,
  KIND_USER,
  SAVED_KINDS,
  UNWRITTEN_KINDS,
} from "./block-layout.js";

export * from "./block-layout.js";

export const KERNEL_MAGIC = 0x4b424948; // "HIBK"
export const KERNEL_VERSION = 2;

// Kernel page: byte offsets.
export const KERNEL_MAGIC_WORD = 0x00;
export const KERNEL_VERSION_WORD = 0x04;
export const KERNEL_FRAMES = 0x08;
export const KERNEL_ARENAS = 0x0c;
export const KERNEL_NEXT_PID = 0x10;
/** Slots of the process table that have ever been used. */
export const KERNEL_SLOTS_USED = 0x14;
/** Frame of the console's DMA buffer. */
export const KERNEL_CONSOLE = 0x20;
/** Least virtual run time of those that run or are ready, ms (float64); it never falls. See scheduler.ts. */
export const KERNEL_VRUNTIME = 0x30;
/** How often this machine has been resumed. */
export const KERNEL_RESUMES = 0x24;
/** Guest monotonic clock at the consistency point, ms (float64). */
export const KERNEL_CLOCK = 0x28;
/** The file system: inode of `/`, first mount, first inode of a file of the host (kernel heap addresses). */
export const KERNEL_ROOT = 0x60;
export const KERNEL_MOUNTS = 0x64;
export const KERNEL_HOST_INODES = 0x68;
/** Memory objects that were made so far (float64): each has its number, which no other ever gets. */
export const KERNEL_OBJECTS = 0x70;
/** Kernel heap: heads of the free lists of its size classes, 32 B to 2 KiB. */
export const KERNEL_HEAP_HEADS = 0x40;
export const KERNEL_HEAP_CLASSES = 7;
export const KERNEL_HEAP_SMALLEST = 32;
// 0x80 to 0xff: devices.
/** First frame of the block device's request table; 0: the machine has no disk. */
export const KERNEL_BLOCK = 0x80;
/** Frame of what the block device saved of its host's side, while a save is under way and in its image; else 0. */
export const KERNEL_BLOCK_STATE = 0x84;
/** Frame of the entropy device's pool. */
export const KERNEL_ENTROPY = 0x88;
/** Sectors of the disk. */
export const KERNEL_BLOCK_SECTORS = 0x8c;
/** Generation of the machine (float64): KERNEL_RESUMES * 2^32 + a random half. */
export const KERNEL_GENERATION = 0x90;

// Process table.
export const PROCESS_BYTES = 1024;
export const PROCESS_PID = 0x00;
export const PROCESS_STATE = 0x04;
/** Frame of the root page table. */
export const PROCESS_ROOT = 0x08;
/** vCPU that runs it, -1 when none. */
export const PROCESS_VCPU = 0x0c;
/** First area (kernel heap address, 0 for none). */
export const PROCESS_AREAS = 0x10;
/** FLAG_*. */
export const PROCESS_FLAGS = 0x14;
/** Steps completed (float64). */
export const PROCESS_STEPS = 0x18;
/**
 * Sleeps until this time of the guest clock, ms (float64); Infinity: until a handler has run. A ready process that has it set is
 * asleep but for its signals: it goes back to sleep once they are delivered.
 */
export const PROCESS_WAKE = 0x20;
/** A fork that is under way: slot + 1 of the child, 0 for none; and the first page whose leaf the child may not have yet. */
export const PROCESS_FORK = 0x28;
export const PROCESS_FORK_PAGE = 0x2c;
/** Of one that is to end: what its parent is told. */
export const PROCESS_LAST_STATUS = 0x30;
/** Most steps a second, 0 for no limit (float64). */
export const PROCESS_RATE = 0x38;
/** Length of the text in the code page, bytes. */
export const PROCESS_TEXT_BYTES = 0x40;
/** pid of the parent, 0 for the kernel. */
export const PROCESS_PARENT = 0x44;
/** Process group. */
export const PROCESS_GROUP = 0x48;
/** What wait tells of it (tasks/status.ts): how it ended, or that it stopped or goes on; 0 once that was told. */
export const PROCESS_STATUS = 0x4c;
/** What it waits for: the guest address of the object whose change wakes it, 0 for nothing. */
export const PROCESS_CHANNEL = 0x50;
/** Nice value, -20 to 19. */
export const PROCESS_NICE = 0x54;
/** Virtual run time, ms weighted by the nice value (float64). */
export const PROCESS_VRUNTIME = 0x58;
/** Frame of the fd table, PFN + 1; 0 for none. */
export const PROCESS_FDS = 0xc0;
// Signals (signals.ts). A set of signals is a word in which signal n is bit n.
/** Signals that were sent and not delivered. */
export const PROCESS_PENDING = 0x60;
/** Signals that are not delivered now. */
export const PROCESS_MASK = 0x64;
/** Sends SIGALRM at this time of the guest clock, ms (float64); 0 for never. */
export const PROCESS_ALARM = 0x68;
/** And again each so many ms (float64); 0 for once. */
export const PROCESS_ALARM_INTERVAL = 0x70;
/** The mask to go back to after the handler that sigsuspend waits for, with bit 0 set; 0 for none. */
export const PROCESS_SUSPENDED_MASK = 0x78;
/** What each signal does: 16 bits each, DISPOSITION_DEFAULT, DISPOSITION_IGNORE or the number of a handler. */
export const PROCESS_DISPOSITIONS = 0x80;
export const PROCESS_DISPOSITIONS_BYTES = 0x40;
/** x0..x31 as 64-bit; f0..f31 follow. */
export const PROCESS_REGISTERS = 0x100;
/** Why it failed: text, zero-terminated. */
export const PROCESS_FAILURE = 0x300;
export const PROCESS_FAILURE_BYTES = 0x80;
/** Sets of signals, a word for each signal: what is masked in addition while its handler runs. */
export const PROCESS_HANDLER_MASKS = 0x380;
export const PROCESS_HANDLER_MASKS_BYTES = 0x80;

export const PROCESS_FREE = 0;
export const PROCESS_READY = 1;
export const PROCESS_RUNNING = 2;
export const PROCESS_SLEEPING = 3;
/** Ended by a failed self-check or a bad access; its memory stays, for whoever looks, until it is reaped. */
export const PROCESS_FAILED = 4;
/** Told to end, or ending: its memory goes in parts, whenever a vCPU picks it. */
export const PROCESS_ENDING = 5;
/** Being built. */
export const PROCESS_EMBRYO = 6;
/** Waits on its channel. */
export const PROCESS_BLOCKED = 7;
/** Has exited; only its status is left, until its parent asks for it. */
export const PROCESS_ZOMBIE = 8;
/** Stopped by a signal; SIGCONT makes it ready. */
export const PROCESS_STOPPED = 9;
export const PROCESS_STATE_NAMES = [
  "free",
  "ready",
  "running",
  "sleeping",
  "failed",
  "ending",
  "embryo",
  "blocked",
  "zombie",
  "stopped",
] as const;

/** Of the boot (S3.7 helpers, progress, housekeeping): a resume does not keep it. */
export const FLAG_BOOT = 1;
/** Its parent has ended before it: the kernel reaps it. */
export const FLAG_ORPHAN = 2;

export const KIND_NAMES = [
  "none",
  "user",
  "page-table",
  "kernel-heap",
  "kernel-static",
  "dma",
  "reserve",
  "loading",
  "file",
  "file-clean",
  "file-kept",
] as const;
export type KindName = (typeof KIND_NAMES)[number];

/** Whether the contents of blocks of this kind belong to an image (S0.2). */
export function isSaved(kind: number): boolean {
  return ((SAVED_KINDS >>> kind) & 1) === 1;
}

/** Whether nobody who maps this page of a file has stored to it, so that the first store must be noticed. */
export function isUnwritten(kind: number): boolean {
  return ((UNWRITTEN_KINDS >>> kind) & 1) === 1;
}

/** Whether blocks of this kind hold what processes store, and not the kernel's own tables. */
export function isUserKind(kind: number): boolean {
  return kind === KIND_USER || kind === KIND_FILE || isUnwritten(kind);
}

/** Where the tables of a machine with so many frames are. */
export interface KernelLayout {
  frames: number;
  arenas: number;
  arenaTable: number;
  processTable: number;
  frameTable: number;
  /** Frames 0 to staticFrames - 1 are the kernel's. */
  staticFrames: number;
}

export function kernelLayout(frames: number): KernelLayout {
  const arenas = Math.ceil(frames / ARENA_FRAMES);
  const arenaTable = FRAME_BYTES;
  const processTable = arenaTable + roundUp(arenas * ARENA_BYTES);
  const frameTable = processTable + MAX_PROCESSES * PROCESS_BYTES;
  const end = frameTable + roundUp(frames * FRAME_ENTRY_BYTES);
  return { frames, arenas, arenaTable, processTable, frameTable, staticFrames: end / FRAME_BYTES };
}

/** Where a slot of the process table lies. */
export function processAddress(memory: ReadableMemory, slot: number): PhysicalAddress {
  return kernelLayout(memory.frames).processTable + slot * PROCESS_BYTES;
}

function roundUp(bytes: number): number {
  return Math.ceil(bytes / FRAME_BYTES) * FRAME_BYTES;
}
