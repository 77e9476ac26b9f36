/**
 * Page tables: Sv39, three levels of 512 PTEs, in frames of kind page-table.
 *
 * The MMU (assembly/mmu.ts) reads them and sets A and D; the kernel maps and unmaps here. Physical addresses are below
 * 2^32, so a PTE's high word is always zero and one 32-bit store changes a PTE.
 */
import { FRAME_BYTES, PTE_PARKED, PTE_PPN_SHIFT, PTE_R, PTE_V, PTE_W, PTE_X } from "../../base/layout.js";
import { Contradiction } from "../../base/errors.js";
import type { Pfn, PhysicalAddress, ReadableMemory, VirtualAddress } from "../../base/memory.js";
import type { PhysicalMemory } from "./physical.js";

/** The bits of a PTE beside its PFN. */
export const PTE_FLAGS: number = (1 << PTE_PPN_SHIFT) - 1;
export const LEAF: number = PTE_R | PTE_W | PTE_X;
/** A 2 MiB leaf maps a block of 2^HUGE_ORDER frames. */
export const HUGE_ORDER = 9;
export const HUGE_PAGES: number = 1 << HUGE_ORDER;
export const HUGE_BYTES: number = HUGE_PAGES * FRAME_BYTES;

/** A leaf's place: the physical address of its PTE, and its level (0 for 4 KiB, 1 for 2 MiB). */
export interface Entry {
  at: PhysicalAddress;
  level: number;
}

function entryAddress(table: Pfn, address: VirtualAddress, level: number): number {
  return table * FRAME_BYTES + ((address >>> (12 + 9 * level)) & 511) * 8;
}

/** Physical address of the leaf PTE for an address, or 0 if there is none that allows an access. */
export function findLeaf(memory: ReadableMemory, root: Pfn, address: VirtualAddress): number {
  let table = root;
  for (let level = 2; level >= 0; level--) {
    const at = entryAddress(table, address, level);
    const pte = memory.load32(at);
    if ((pte & PTE_V) === 0) return 0;
    if ((pte & LEAF) !== 0) return at;
    table = pte >>> PTE_PPN_SHIFT;
  }
  return 0;
}

/** The leaf for an address, parked ones too; undefined if there is none. */
export function findEntry(memory: ReadableMemory, root: Pfn, address: VirtualAddress): Entry | undefined {
  let table = root;
  for (let level = 2; level >= 0; level--) {
    const at = entryAddress(table, address, level);
    const pte = memory.load32(at);
    if ((pte & LEAF) !== 0 || (pte & PTE_PARKED) !== 0) return { at, level };
    if ((pte & PTE_V) === 0) return undefined;
    table = pte >>> PTE_PPN_SHIFT;
  }
  return undefined;
}

/** The table of 4 KiB leaves for an address; undefined if there is none. No 2 MiB leaf is above it. */
export function findTable(memory: ReadableMemory, root: Pfn, address: VirtualAddress): Pfn | undefined {
  let table = root;
  for (let level = 2; level > 0; level--) {
    const pte = memory.load32(entryAddress(table, address, level));
    if (pte === 0) return undefined;
    table = pte >>> PTE_PPN_SHIFT;
  }
  return table;
}

/** The frame that an address is in, also if no access is allowed now; undefined if there is none. */
export function findFrame(memory: ReadableMemory, root: Pfn, address: VirtualAddress): Pfn | undefined {
  const entry = findEntry(memory, root, address);
  if (entry === undefined) return undefined;
  return (memory.load32(entry.at) >>> PTE_PPN_SHIFT) + (Math.floor(address / FRAME_BYTES) % 512 ** entry.level);
}

/** Called for each leaf: the address that it begins at, its PTE, and where that lies. */
export type VisitEntry = (address: VirtualAddress, pte: number, entry: Entry) => void;

/**
 * Visits every leaf that maps something in [start, end), parked ones too, in the order of their addresses. The leaf that is
 * visited may be changed.
 */
export function visitEntries(
  memory: ReadableMemory,
  root: Pfn,
  start: VirtualAddress,
  end: VirtualAddress,
  visit: VisitEntry,
): void {
  const below = (table: Pfn, level: number, base: VirtualAddress): void => {
    const { first, last, span } = entriesWithin(level, base, start, end);
    for (let index = first; index < last; index++) {
      const at = table * FRAME_BYTES + index * 8;
      const pte = memory.load32(at);
      if ((pte & (LEAF | PTE_PARKED)) !== 0) visit(base + index * span, pte, { at, level });
      else if ((pte & PTE_V) !== 0) below(pte >>> PTE_PPN_SHIFT, level - 1, base + index * span);
    }
  };
  below(root, 2, 0);
}

/** Which entries [first, last) of a table that begins at `base` are for addresses in [start, end), and what each spans. */
function entriesWithin(
  level: number,
  base: VirtualAddress,
  start: VirtualAddress,
  end: VirtualAddress,
): { first: number; last: number; span: number } {
  const span = 2 ** (12 + 9 * level);
  return { first: Math.max(0, Math.floor((start - base) / span)), last: Math.min(512, Math.ceil((end - base) / span)), span };
}

/**
 * Maps a page, or 2 MiB with a leaf at level 1. `allocateTable` gives a zeroed frame for a missing table, or undefined.
 *
 * @returns false if a table was missing and there was no memory for it; nothing is mapped then.
 */
export function mapPage(
  memory: PhysicalMemory,
  root: Pfn,
  address: VirtualAddress,
  frame: Pfn,
  flags: number,
  allocateTable: () => Pfn | undefined,
  leafLevel: number = 0,
): boolean {
  const table = makeTables(memory, root, address, leafLevel, allocateTable);
  if (table === undefined) return false;
  const valid = (flags & PTE_PARKED) === 0 ? PTE_V : 0;
  memory.store32(entryAddress(table, address, leafLevel), (frame << PTE_PPN_SHIFT) | flags | valid);
  return true;
}

/** The table that a leaf of this level is in, made if it is missing; undefined if there was no memory for it, or one above it. */
export function makeTables(
  memory: PhysicalMemory,
  root: Pfn,
  address: VirtualAddress,
  leafLevel: number,
  allocateTable: () => Pfn | undefined,
): Pfn | undefined {
  let table = root;
  for (let level = 2; level > leafLevel; level--) {
    const at = entryAddress(table, address, level);
    let pte = memory.load32(at);
    if ((pte & PTE_V) === 0) {
      const fresh = allocateTable();
      if (fresh === undefined) return undefined;
      pte = (fresh << PTE_PPN_SHIFT) | PTE_V;
      memory.store32(at, pte);
    }
    table = pte >>> PTE_PPN_SHIFT;
  }
  return table;
}

/** Unmaps a page, parked or not; returns the frame it mapped, or undefined. Tables stay. The caller drops TLB entries. */
export function unmapPage(memory: PhysicalMemory, root: Pfn, address: VirtualAddress): Pfn | undefined {
  const entry = findEntry(memory, root, address);
  if (entry === undefined) return undefined;
  const frame = memory.load32(entry.at) >>> PTE_PPN_SHIFT;
  memory.store32(entry.at, 0);
  return frame;
}

/** Takes out the tables that are for addresses in [start, end) and have no entry. The root stays. Returns their frames. */
export function takeEmptyTables(memory: PhysicalMemory, root: Pfn, start: VirtualAddress, end: VirtualAddress): Pfn[] {
  const empty: Pfn[] = [];
  const below = (table: Pfn, level: number, base: VirtualAddress): void => {
    const { first, last, span } = entriesWithin(level, base, start, end);
    for (let index = first; index < last; index++) {
      const at = table * FRAME_BYTES + index * 8;
      const pte = memory.load32(at);
      if ((pte & PTE_V) === 0 || (pte & (LEAF | PTE_PARKED)) !== 0) continue;
      const next = pte >>> PTE_PPN_SHIFT;
      if (level > 1) below(next, level - 1, base + index * span);
      if (!isEmpty(memory, next)) continue;
      memory.store32(at, 0);
      empty.push(next);
    }
  };
  below(root, 2, 0);
  return empty;
}

function isEmpty(memory: ReadableMemory, table: Pfn): boolean {
  for (let at = table * FRAME_BYTES; at < (table + 1) * FRAME_BYTES; at += 8) if (memory.load32(at) !== 0) return false;
  return true;
}

export interface Leaf {
  address: VirtualAddress;
  frame: Pfn;
  flags: number;
  /** 0 for 4 KiB, 1 for 2 MiB. */
  level: number;
}

/**
 * All leaves of an address space, parked ones too, in the order of their addresses.
 *
 * @throws HIB_INCONSISTENT if a table is in it twice
 */
export function* walkLeaves(memory: ReadableMemory, root: Pfn): Generator<Leaf> {
  if (root !== 0) yield* leavesBelow(memory, root, 2, 0, new Set());
}

function* leavesBelow(memory: ReadableMemory, table: Pfn, level: number, base: number, seen: Set<Pfn>): Generator<Leaf> {
  enter(table, seen);
  for (let index = 0; index < 512; index++) {
    const pte = memory.load32(table * FRAME_BYTES + index * 8);
    if ((pte & (PTE_V | PTE_PARKED)) === 0) continue;
    const address = base + index * 2 ** (12 + 9 * level);
    const frame = pte >>> PTE_PPN_SHIFT;
    if ((pte & (LEAF | PTE_PARKED)) !== 0) yield { address, frame, flags: pte & PTE_FLAGS, level };
    else if (level > 0 && frame < memory.frames) yield* leavesBelow(memory, frame, level - 1, address, seen);
  }
}

/** Each table once: else a few that name each other would make an address space without an end. */
function enter(table: Pfn, seen: Set<Pfn>): void {
  if (seen.has(table)) throw new Contradiction(`page table ${table} is twice in one address space`);
  seen.add(table);
}

/**
 * Frames of the tables of an address space, the root's included.
 *
 * @throws HIB_INCONSISTENT if one is in it twice
 */
export function* walkTables(memory: ReadableMemory, root: Pfn): Generator<Pfn> {
  if (root !== 0) yield* tablesBelow(memory, root, 2, new Set()); // an embryo or a zombie has none
}

function* tablesBelow(memory: ReadableMemory, table: Pfn, level: number, seen: Set<Pfn>): Generator<Pfn> {
  enter(table, seen);
  yield table;
  if (level === 0) return;
  for (let index = 0; index < 512; index++) {
    const pte = memory.load32(table * FRAME_BYTES + index * 8);
    if ((pte & PTE_V) !== 0 && (pte & LEAF) === 0 && pte >>> PTE_PPN_SHIFT < memory.frames) {
      yield* tablesBelow(memory, pte >>> PTE_PPN_SHIFT, level - 1, seen);
    }
  }
}
