/**
 * The block device's ring, in one DMA frame, and the frames of its data: what the kernel and the device's host side share.
 *
 *     word 0     sectors of the disk
 *     0x40...    REQUESTS entries of 32 bytes, each with a DMA frame of its own for the sector's data
 *
 *     free --submit (kernel)--> submitted --complete (device)--> done --take (kernel)--> free
 *
 * What must hold: the data frame of an entry is the device's while it is submitted, and the kernel's otherwise. All of it
 * changes under the kernel lock. At a consistency point a request is submitted or it is done, data and all; one that is
 * submitted is carried out by whoever goes on from there, again if need be: that is exact, since to read or write the same
 * sector twice is to do it once.
 *
 * Requests that are in flight together are not ordered, as on any disk. A flush covers the writes that were done before it
 * was submitted.
 */
import { FRAME_BYTES } from "../../base/layout.js";
import type { Pfn, PhysicalAddress, ReadableMemory } from "../../base/memory.js";
import { KERNEL_BLOCK, KERNEL_SLOTS_USED, PROCESS_FAILED, PROCESS_FREE, PROCESS_PID, PROCESS_STATE } from "../kernel-layout.js";
import type { PhysicalMemory } from "../physical.js";
import { processAddress } from "../process.js";
import type { DiskOperation, DiskStatus } from "../program.js";
import { littleEndian } from "./driver.js";

/** A sector is as large as a frame ("4K native"). */
export const SECTOR_BYTES: number = FRAME_BYTES;
/** Entries of the ring, and so the most requests in flight. */
export const REQUESTS = 32;
/** Their data frames are one block of this order. */
export const DATA_ORDER = 5;

const SECTORS = 0x00;
const ENTRIES = 0x40;
const ENTRY_BYTES = 32;
const STATE = 0x00;
const STATUS = 0x04;
const OPERATION = 0x08;
const SECTOR = 0x0c;
/** PFN of the data frame: never changes. */
const FRAME = 0x10;
const PID = 0x14;
const TAG = 0x18;

const FREE = 0;
const SUBMITTED = 1;
const DONE = 2;

const OPERATIONS: readonly DiskOperation[] = ["read", "write", "flush"];
const STATUSES: readonly DiskStatus[] = ["ok", "out of range", "I/O error", "no space"];

/** A request that the device is to carry out. */
export interface DiskRequest {
  /** Index of its entry. */
  entry: number;
  operation: DiskOperation;
  sector: number;
  frame: Pfn;
}

/** Where the ring is; undefined if the machine has no disk. */
function ringOf(memory: ReadableMemory): PhysicalAddress | undefined {
  const frame = memory.load32(KERNEL_BLOCK);
  return frame === 0 ? undefined : frame * FRAME_BYTES;
}

function entryOf(ring: PhysicalAddress, entry: number): PhysicalAddress {
  return ring + ENTRIES + entry * ENTRY_BYTES;
}

/** Builds the ring of a disk, its data in the block of frames from `data`. Caller holds the kernel lock. */
export function createRing(memory: PhysicalMemory, frame: Pfn, data: Pfn, sectors: number): void {
  memory.zero(frame, 1);
  memory.zero(data, REQUESTS);
  memory.store32(KERNEL_BLOCK, frame);
  const ring = frame * FRAME_BYTES;
  memory.store32(ring + SECTORS, sectors);
  for (let entry = 0; entry < REQUESTS; entry++) memory.store32(entryOf(ring, entry) + FRAME, data + entry);
}

/** Sectors of the machine's disk; 0 if it has none. */
export function diskSectors(memory: ReadableMemory): number {
  const ring = ringOf(memory);
  return ring === undefined ? 0 : memory.load32(ring + SECTORS) >>> 0;
}

// ---- the kernel's side: callers hold the kernel lock ----

/** The entry of a process's request, whatever its state; undefined if there is none of that tag. */
function findRequest(memory: ReadableMemory, ring: PhysicalAddress, pid: number, tag: number): PhysicalAddress | undefined {
  for (let entry = 0; entry < REQUESTS; entry++) {
    const at = entryOf(ring, entry);
    const used = memory.load32(at + STATE) !== FREE;
    if (used && memory.load32(at + PID) === pid && memory.load32(at + TAG) === tag) return at;
  }
  return undefined;
}

/**
 * Submits a request for a process: "submitted"; "full" if every entry is taken, and nothing has changed; "in flight" if the
 * process has one of that tag already.
 *
 * @param data - the sector to be written, in words
 */
export function submitRequest(
  memory: PhysicalMemory,
  request: { pid: number; tag: number; operation: DiskOperation; sector: number; data?: Int32Array },
): "submitted" | "full" | "in flight" | "no disk" {
  const ring = ringOf(memory);
  if (ring === undefined) return "no disk";
  if (findRequest(memory, ring, request.pid, request.tag) !== undefined) return "in flight";
  const at = takeEntry(memory, ring);
  if (at === undefined) return "full";
  const frame = memory.load32(at + FRAME) * FRAME_BYTES;
  for (const [i, word] of request.data?.entries() ?? []) memory.store32(frame + i * 4, word);
  memory.store32(at + OPERATION, OPERATIONS.indexOf(request.operation));
  memory.store32(at + SECTOR, request.sector);
  memory.store32(at + PID, request.pid);
  memory.store32(at + TAG, request.tag);
  memory.store32(at + STATE, SUBMITTED);
  return "submitted";
}

/** A free entry, or one whose request is done and whose process is gone. */
function takeEntry(memory: ReadableMemory, ring: PhysicalAddress): PhysicalAddress | undefined {
  const entries = Array.from({ length: REQUESTS }, (_, entry) => entryOf(ring, entry));
  return (
    entries.find((at) => memory.load32(at + STATE) === FREE) ??
    entries.find((at) => memory.load32(at + STATE) === DONE && !runs(memory, memory.load32(at + PID)))
  );
}

function runs(memory: ReadableMemory, pid: number): boolean {
  for (let slot = 0; slot < memory.load32(KERNEL_SLOTS_USED); slot++) {
    const at = processAddress(memory, slot);
    const state = memory.load32(at + PROCESS_STATE);
    if (memory.load32(at + PROCESS_PID) === pid && state !== PROCESS_FREE && state !== PROCESS_FAILED) return true;
  }
  return false;
}

/**
 * Takes the result of a process's request; "unknown" if there is no request of that tag, undefined if it is not done yet.
 * What a read has read is in `data`.
 */
export function takeResult(
  memory: PhysicalMemory,
  { pid, tag }: { pid: number; tag: number },
): { status: DiskStatus; data: Int32Array | undefined } | "unknown" | undefined {
  const ring = ringOf(memory);
  const at = ring === undefined ? undefined : findRequest(memory, ring, pid, tag);
  if (at === undefined) return "unknown";
  if (memory.load32(at + STATE) !== DONE) return undefined;
  const status = STATUSES[memory.load32(at + STATUS)]!;
  const frame = memory.load32(at + FRAME) * FRAME_BYTES;
  const isRead = status === "ok" && OPERATIONS[memory.load32(at + OPERATION)] === "read";
  const data = isRead ? Int32Array.from({ length: SECTOR_BYTES / 4 }, (_, i) => memory.load32(frame + i * 4)) : undefined;
  memory.store32(at + STATE, FREE);
  return { status, data };
}

// ---- the device's side: callers hold the kernel lock ----

/** The requests that are submitted. */
export function submittedRequests(memory: ReadableMemory): DiskRequest[] {
  const ring = ringOf(memory);
  const found: DiskRequest[] = [];
  for (let entry = 0; ring !== undefined && entry < REQUESTS; entry++) {
    const at = entryOf(ring, entry);
    if (memory.load32(at + STATE) !== SUBMITTED) continue;
    const operation = OPERATIONS[memory.load32(at + OPERATION)]!;
    found.push({ entry, operation, sector: memory.load32(at + SECTOR) >>> 0, frame: memory.load32(at + FRAME) });
  }
  return found;
}

/** The DMA transfer: the data of a read, then the word that says so. Device stores, each tracked. */
export function completeRequest(
  memory: PhysicalMemory,
  { entry, frame }: DiskRequest,
  { status, data }: { status: DiskStatus; data: Uint8Array | undefined },
): void {
  const ring = ringOf(memory);
  if (ring === undefined) return;
  if (data !== undefined) memory.write(frame * FRAME_BYTES, data, "device");
  memory.write(entryOf(ring, entry) + STATE, littleEndian(DONE, STATUSES.indexOf(status)), "device");
}
