/**
 * Areas of an address space: a list of kernel-heap objects a process, without overlaps. A page of an area has a leaf in the
 * page tables once it was touched; before that it is what is behind the area: zeros, or a page of a memory object.
 */
import { FRAME_BYTES, PTE_R, PTE_U, PTE_W, PTE_X } from "../../base/layout.js";
import { type PhysicalAddress, type ReadableMemory, type VirtualAddress, walkList } from "../../base/memory.js";
import type { PhysicalMemory } from "./physical.js";

export const AREA_BYTES = 64;
const START = 0;
const END = 4;
const FLAGS = 8;
const KIND = 12;
const NEXT = 16;
const LIMIT = 20;
const OBJECT = 24;
const OFFSET = 28;
const SHARED = 32;
const READ_ONLY = 36;

/** They do not overlap, and each has a page at least. */
const AREAS_MAX = 2 ** 20;

export const AREA_KIND_NAMES = ["none", "code", "data", "heap", "stack", "mapping"] as const;
export type AreaKind = "code" | "data" | "heap" | "stack" | "mapping";

export interface Area {
  /** First address. */
  start: VirtualAddress;
  /** Address after the last. */
  end: VirtualAddress;
  /** PTE bits of its pages: R, W, X, U. */
  flags: number;
  kind: AreaKind;
  /** A stack grows down to here as it is used; 0 for areas that do not grow. */
  limit: VirtualAddress;
  /** The memory object behind it, 0 for none: then a page is zeros until it is stored to. */
  object: PhysicalAddress;
  /** Page of the object that is at `start`. */
  offset: number;
  /** Stores are seen by all who map the object, and not this process's own. */
  shared: boolean;
  /** It shares a file that was opened for reading: it never becomes writable. */
  readOnly: boolean;
}

/** An area and where it lies. */
export type StoredArea = Area & { at: PhysicalAddress; next: PhysicalAddress };

export const CODE_FLAGS: number = PTE_R | PTE_X | PTE_U;
export const DATA_FLAGS: number = PTE_R | PTE_W | PTE_U;

/** Whether a page without a leaf is given a zeroed frame; heap pages come by `map` only. */
export function isDemandZero(area: Area): boolean {
  return area.object === 0 && area.kind !== "heap" && area.kind !== "code";
}

/** Stores an area's fields; its place in its list stays as it is. */
export function storeArea(memory: PhysicalMemory, at: PhysicalAddress, area: Area): void {
  memory.store32(at + START, area.start);
  memory.store32(at + END, area.end);
  memory.store32(at + FLAGS, area.flags);
  memory.store32(at + KIND, AREA_KIND_NAMES.indexOf(area.kind));
  memory.store32(at + LIMIT, area.limit);
  memory.store32(at + OBJECT, area.object);
  memory.store32(at + OFFSET, area.offset);
  memory.store32(at + SHARED, area.shared ? 1 : 0);
  memory.store32(at + READ_ONLY, area.readOnly ? 1 : 0);
}

/** Says which area follows one in its list. */
export function linkArea(memory: PhysicalMemory, at: PhysicalAddress, next: PhysicalAddress): void {
  memory.store32(at + NEXT, next);
}

/** Whether one area goes on where another ends, and differs from it in nothing else. */
export function continues(lower: Area, upper: Area): boolean {
  return (
    lower.end === upper.start &&
    lower.flags === upper.flags &&
    lower.kind === upper.kind &&
    lower.limit === upper.limit &&
    lower.object === upper.object &&
    lower.shared === upper.shared &&
    lower.readOnly === upper.readOnly &&
    (lower.object === 0 || lower.offset + (lower.end - lower.start) / FRAME_BYTES === upper.offset)
  );
}

/** The areas of a list, newest first. */
export function* walkAreas(memory: ReadableMemory, head: PhysicalAddress): Generator<StoredArea> {
  for (const at of walkList(memory, head, { next: NEXT, most: AREAS_MAX })) yield loadArea(memory, at);
}

/** The area of a list that an address lies in. On the way of every fault: it makes nothing of the others. */
export function findArea(memory: ReadableMemory, head: PhysicalAddress, address: VirtualAddress): StoredArea | undefined {
  let at = head >>> 0;
  while (at !== 0 && !(address >= memory.load32(at + START) >>> 0 && address < memory.load32(at + END) >>> 0))
    at = memory.load32(at + NEXT) >>> 0;
  return at === 0 ? undefined : loadArea(memory, at);
}

function loadArea(memory: ReadableMemory, at: PhysicalAddress): StoredArea {
  return {
    at,
    next: memory.load32(at + NEXT) >>> 0,
    start: memory.load32(at + START) >>> 0,
    end: memory.load32(at + END) >>> 0,
    flags: memory.load32(at + FLAGS),
    kind: AREA_KIND_NAMES[memory.load32(at + KIND)] as AreaKind,
    limit: memory.load32(at + LIMIT) >>> 0,
    object: memory.load32(at + OBJECT) >>> 0,
    offset: memory.load32(at + OFFSET),
    shared: memory.load32(at + SHARED) !== 0,
    readOnly: memory.load32(at + READ_ONLY) !== 0,
  };
}
