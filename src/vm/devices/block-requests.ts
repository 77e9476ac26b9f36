/**
 * Requests to the block device: what the kernel and the device's host side share, a table in DMA frames. Each process has
 * TAGS entries, by the slot of the process table that it has; a request's data lie in a DMA frame of its own.
 *
 *     free --submit (kernel)--> submitted --complete (device)--> done --take (kernel)--> free
 *
 * There is room for everybody's requests: a process that has results to take, and cannot get there before its next submit,
 * keeps nobody else from the disk.
 *
 * What must hold: the data frame is the device's while the request is submitted, and the kernel's otherwise. All of it
 * changes under the kernel lock, which callers hold. At a consistency point a request is submitted or it is done, data and
 * all; one that is submitted is carried out by whoever goes on from there, again if need be: that is exact, since to read or
 * write the same sector twice is to do it once.
 *
 * Requests that are in flight together are not ordered, as on any disk. A flush covers the writes that were done before it
 * was submitted.
 */
import { FRAME_BYTES, MAX_PROCESSES } from "../../base/layout.js";
import type { Pfn, PhysicalAddress, ReadableMemory } from "../../base/memory.js";
import type { BuddyAllocator } from "../memory/buddy.js";
import {
  KERNEL_BLOCK,
  KERNEL_BLOCK_SECTORS,
  KERNEL_SLOTS_USED,
  KIND_DMA,
  PROCESS_FREE,
  PROCESS_PID,
  PROCESS_STATE,
  processAddress,
} from "../memory/kernel-layout.js";
import { littleEndian, type PhysicalMemory } from "../memory/physical.js";

export type DiskOperation = "read" | "write" | "flush";
/** How a request to the disk ended. */
export type DiskStatus = "ok" | "out of range" | "I/O error" | "no space";

/** A sector is as large as a frame ("4K native"). */
export const SECTOR_BYTES: number = FRAME_BYTES;
/** Requests that a process can have in flight: tags 0 to TAGS - 1. */
export const TAGS = 16;
const ENTRY_BYTES = 32;
/** The table is a block of 2^TABLE_ORDER frames. */
export const TABLE_ORDER: number = Math.log2((MAX_PROCESSES * TAGS * ENTRY_BYTES) / FRAME_BYTES);

const STATE = 0x00;
const STATUS = 0x04;
const OPERATION = 0x08;
const SECTOR = 0x0c;
/** PFN of the data frame. */
const FRAME = 0x10;
const PID = 0x14;

const FREE = 0;
const SUBMITTED = 1;
const DONE = 2;

const OPERATIONS: readonly DiskOperation[] = ["read", "write", "flush"];
const STATUSES: readonly DiskStatus[] = ["ok", "out of range", "I/O error", "no space"];

/** Whose request it is. */
export interface RequestName {
  slot: number;
  pid: number;
  tag: number;
}

/** A request that the device is to carry out. */
export interface DiskRequest {
  /** Index of its entry. */
  entry: number;
  operation: DiskOperation;
  sector: number;
  frame: Pfn;
}

/** The address of an entry; undefined if the machine has no disk. */
function entryAt(memory: ReadableMemory, entry: number): PhysicalAddress | undefined {
  const table = memory.load32(KERNEL_BLOCK);
  return table === 0 ? undefined : table * FRAME_BYTES + entry * ENTRY_BYTES;
}

/** Sectors of the machine's disk; 0 if it has none. */
export function diskSectors(memory: ReadableMemory): number {
  return memory.load32(KERNEL_BLOCK_SECTORS) >>> 0;
}

/** Begins the table of a disk, in the block from `frame`. */
export function createTable(memory: PhysicalMemory, frame: Pfn, sectors: number): void {
  memory.zero(frame, 1 << TABLE_ORDER);
  memory.store32(KERNEL_BLOCK, frame);
  memory.store32(KERNEL_BLOCK_SECTORS, sectors);
}

// ---- the kernel's side ----

/**
 * Submits a request: "submitted"; or "wait" and nothing has changed, if there is no memory, or if the process that had the
 * slot before has a request of that tag at the device; "in flight" if the process itself has one.
 *
 * @param data - the sector to be written
 */
export function submitRequest(
  { memory, buddy }: { memory: PhysicalMemory; buddy: BuddyAllocator },
  { slot, pid, tag }: RequestName,
  { operation, sector, data }: { operation: DiskOperation; sector: number; data?: Uint8Array | undefined },
): "submitted" | "wait" | "in flight" | "no disk" {
  const at = entryAt(memory, slot * TAGS + tag);
  if (at === undefined) return "no disk";
  if (memory.load32(at + STATE) !== FREE) return memory.load32(at + PID) === pid ? "in flight" : "wait";
  const frame = buddy.allocate(0, 0, KIND_DMA);
  if (frame === undefined) return "wait";
  if (data === undefined) memory.zero(frame, 1);
  else memory.write(frame * FRAME_BYTES, data);
  memory.store32(at + OPERATION, OPERATIONS.indexOf(operation));
  memory.store32(at + SECTOR, sector);
  memory.store32(at + FRAME, frame);
  memory.store32(at + PID, pid);
  memory.store32(at + STATE, SUBMITTED);
  return "submitted";
}

/** Takes the result of a request; "unknown" if there is none, undefined if it is not done yet. `data` is what was read. */
export function takeResult(
  { memory, buddy }: { memory: PhysicalMemory; buddy: BuddyAllocator },
  { slot, pid, tag }: RequestName,
): { status: DiskStatus; data: Uint8Array | undefined } | "unknown" | undefined {
  const at = entryAt(memory, slot * TAGS + tag);
  if (at === undefined || memory.load32(at + STATE) === FREE || memory.load32(at + PID) !== pid) return "unknown";
  if (memory.load32(at + STATE) !== DONE) return undefined;
  const status = STATUSES[memory.load32(at + STATUS)]!;
  const frame = memory.load32(at + FRAME);
  const isRead = status === "ok" && OPERATIONS[memory.load32(at + OPERATION)] === "read";
  const data = isRead ? memory.read(frame * FRAME_BYTES, SECTOR_BYTES) : undefined;
  memory.store32(at + STATE, FREE);
  buddy.free(frame);
  return { status, data };
}

/** Frees the results that nobody will take: their processes are gone. */
export function freeOrphans({ memory, buddy }: { memory: PhysicalMemory; buddy: BuddyAllocator }): void {
  for (const { at, slot } of usedEntries(memory)) {
    const process = processAddress(memory, slot);
    const gone =
      memory.load32(process + PROCESS_STATE) === PROCESS_FREE || memory.load32(process + PROCESS_PID) !== memory.load32(at + PID);
    if (!gone || memory.load32(at + STATE) !== DONE) continue;
    memory.store32(at + STATE, FREE);
    buddy.free(memory.load32(at + FRAME));
  }
}

function* usedEntries(
  memory: ReadableMemory,
  slots: number = memory.load32(KERNEL_SLOTS_USED),
): Generator<{ at: PhysicalAddress; entry: number; slot: number }> {
  const entries = slots * TAGS;
  for (let entry = 0; entry < entries; entry++) {
    const at = entryAt(memory, entry);
    if (at === undefined) return;
    if (memory.load32(at + STATE) !== FREE) yield { at, entry, slot: Math.floor(entry / TAGS) };
  }
}

/** Every entry that is in use, and whether what it says can be: for checking a machine. */
export function* readRequests(memory: ReadableMemory): Generator<{ entry: number; frame: Pfn; sound: boolean }> {
  for (const { at, entry } of usedEntries(memory, MAX_PROCESSES)) {
    const state = memory.load32(at + STATE);
    const known = OPERATIONS[memory.load32(at + OPERATION)] !== undefined;
    const ended = state === DONE && STATUSES[memory.load32(at + STATUS)] !== undefined;
    yield { entry, frame: memory.load32(at + FRAME), sound: known && (state === SUBMITTED || ended) };
  }
}

// ---- the device's side ----

/** The requests that are submitted. */
export function submittedRequests(memory: ReadableMemory): DiskRequest[] {
  const found: DiskRequest[] = [];
  for (const { at, entry } of usedEntries(memory)) {
    if (memory.load32(at + STATE) !== SUBMITTED) continue;
    const operation = OPERATIONS[memory.load32(at + OPERATION)]!;
    found.push({ entry, operation, sector: memory.load32(at + SECTOR) >>> 0, frame: memory.load32(at + FRAME) });
  }
  return found;
}

/** The DMA transfer: the data of a read, then the words that say how it ended. Device stores, each tracked. */
export function completeRequest(
  memory: PhysicalMemory,
  { entry, frame }: DiskRequest,
  { status, data }: { status: DiskStatus; data: Uint8Array | undefined },
): void {
  const at = entryAt(memory, entry);
  if (at === undefined) return;
  if (data !== undefined) memory.write(frame * FRAME_BYTES, data, "device");
  memory.write(at + STATE, littleEndian(DONE, STATUSES.indexOf(status)), "device");
}
