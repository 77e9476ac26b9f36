/**
 * The leaves of one process's page tables and the frames that they map. What must hold of them: see address-space.ts. What is done to
 * many leaves is a loop of the core (assembly/leaves.ts).
 *
 * Callers hold the kernel lock.
 */
import { FRAME_BYTES, PTE_COW, PTE_PARKED, PTE_PPN_SHIFT, PTE_R, PTE_U, PTE_V, PTE_W, PTE_X } from "../../base/layout.js";
import type { Pfn, PhysicalAddress, VirtualAddress } from "../../base/memory.js";
import type { Area } from "./area.js";
import { KIND_PAGE_TABLE, KIND_USER, PROCESS_PID, PROCESS_ROOT } from "./kernel-layout.js";
import {
  type Entry,
  findEntry,
  findTable,
  HUGE_BYTES,
  HUGE_ORDER,
  HUGE_PAGES,
  makeTables,
  mapPage,
  PTE_FLAGS,
  takeEmptyTables,
  unmapPage,
} from "./page-table.js";
import type { MemoryParts } from "./parts.js";

/** Pages of an address space; and as many leaves as there can be. */
const PAGES = 2 ** 20;
const ALL: number = PAGES;

/** What a leaf may allow. */
export const PERMISSIONS: number = PTE_R | PTE_W | PTE_X;

export class Leaves {
  readonly #parts: MemoryParts;
  /** Of the process, in the process table. */
  readonly #at: PhysicalAddress;

  constructor(parts: MemoryParts, process: PhysicalAddress) {
    this.#parts = parts;
    this.#at = process;
  }

  /** Of the page tables; 0 if there are none. */
  get root(): Pfn {
    return this.#parts.memory.load32(this.#at + PROCESS_ROOT);
  }

  get #pid(): number {
    return this.#parts.memory.load32(this.#at + PROCESS_PID);
  }

  /** Copies a frame that others hold too. False if there is no memory. */
  copyFrame(page: VirtualAddress, entry: Entry, flags: number): boolean {
    const { memory, buddy } = this.#parts;
    const old = memory.load32(entry.at) >>> PTE_PPN_SHIFT;
    const copy = buddy.allocate(0, this.#pid, KIND_USER);
    if (copy === undefined) return false;
    memory.copy(copy, old);
    this.set(page, entry, copy, flags);
    buddy.release(old);
    return true;
  }

  /** Copies 2 MiB that others hold too: into a block of the same size, or else into frames. False if there is no memory. */
  copyHuge(page: VirtualAddress, entry: Entry, flags: number): boolean {
    const { memory, buddy } = this.#parts;
    const old = memory.load32(entry.at) >>> PTE_PPN_SHIFT;
    const copy = buddy.allocateFree(HUGE_ORDER, this.#pid, KIND_USER);
    if (copy === undefined) return this.#splitHuge(page, entry);
    memory.copy(copy, old, HUGE_PAGES);
    this.set(page, entry, copy, flags);
    buddy.release(old);
    return true;
  }

  /** What a leaf of an area may be: see "what must hold". A and D stay as they are; a frame that it may store to is its own. */
  flagsOf({ flags, shared }: Area, pte: number, level: number, frame: Pfn = pte >>> PTE_PPN_SHIFT): number {
    return this.#parts.core.leafFlags(pte, frame, level, flags & PERMISSIONS, shared ? 1 : 0, this.#pid);
  }

  /** What a leaf of an area is that maps a frame of the process's own. */
  newFlags({ flags }: Area): number {
    return (flags & PERMISSIONS) === 0 ? PTE_U | PTE_PARKED : (flags & PERMISSIONS) | PTE_U;
  }

  /** Makes a leaf map a frame with these flags; parked, if they say so. */
  set(address: VirtualAddress, entry: Entry, frame: Pfn, flags: number): void {
    const valid = (flags & PTE_PARKED) === 0 ? PTE_V : 0;
    this.#parts.memory.store32(entry.at, (frame << PTE_PPN_SHIFT) | flags | valid);
    this.#invalidate(address, entry.level === 0 ? 1 : HUGE_PAGES);
  }

  /** Gives the leaves of an area the permissions that it has now. */
  protect({ start, end, flags, shared }: Area): void {
    this.#parts.core.protectLeaves(this.root, pageOf(start), pageOf(end), flags & PERMISSIONS, shared ? 1 : 0, this.#pid, ALL);
  }

  /** Makes a leaf where there is none. False if there is no memory for its tables. */
  map(address: VirtualAddress, frame: Pfn, level: number, flags: number): boolean {
    if (mapPage(this.#parts.memory, this.root, address, frame, flags, () => this.allocateTable(), level)) return true;
    this.#freeEmptyTables(address, address + FRAME_BYTES); // there was memory for one, and none for the next
    return false;
  }

  #invalidate(address: VirtualAddress, pages: number): void {
    this.#parts.core.invalidatePages(pageOf(address), pages);
  }

  /** Allocates a zeroed page table; undefined if there is no memory. */
  allocateTable(): Pfn | undefined {
    const frame = this.#parts.buddy.allocate(0, this.#pid, KIND_PAGE_TABLE);
    if (frame !== undefined) this.#parts.memory.zero(frame, 1);
    return frame;
  }

  /**
   * Only the vCPU that runs a process walks its tables without the lock, and no tag is left of an empty one: it can go at once, on
   * that vCPU or while nobody runs the process.
   */
  #freeEmptyTables(start: VirtualAddress, end: VirtualAddress): void {
    for (const table of takeEmptyTables(this.#parts.memory, this.root, start, end)) this.#parts.buddy.free(table);
  }

  /** Allocates a block of 2^order frames, fills it with `contents` and zeros, and maps it: all of it, or nothing is changed. */
  mapNew(address: VirtualAddress, order: number, flags: number, contents?: Uint8Array): boolean {
    const { memory, buddy } = this.#parts;
    const frame = buddy.allocate(order, this.#pid, KIND_USER);
    if (frame === undefined) return false;
    if (contents === undefined || contents.length < FRAME_BYTES << order) memory.zero(frame, 1 << order);
    if (contents !== undefined) memory.write(frame * FRAME_BYTES, contents);
    if (this.#mapRun(address, frame, 1 << order, flags)) return true;
    this.#freeEmptyTables(address, address + (FRAME_BYTES << order));
    buddy.free(frame);
    return false;
  }

  /** Maps consecutive frames; if there is no memory for the tables, none of them. */
  #mapRun(address: VirtualAddress, frame: Pfn, count: number, flags: number): boolean {
    const { core, memory } = this.#parts;
    const first = pageOf(address);
    for (let done = 0; done < count; ) {
      done = core.mapRun(this.root, first + done, frame + done, count - done, flags) - first;
      if (done === count || this.#makeTables(address + done * FRAME_BYTES, 0)) continue;
      for (let page = 0; page < done; page++) unmapPage(memory, this.root, address + page * FRAME_BYTES);
      this.#invalidate(address, done);
      return false;
    }
    return true;
  }

  /** Sees to it that there are tables for a leaf of a level. False if there is no memory; some may be there then, and empty. */
  #makeTables(address: VirtualAddress, level: number): boolean {
    return makeTables(this.#parts.memory, this.root, address, level, () => this.allocateTable()) !== undefined;
  }

  /** Takes the leaves of [start, end) out, and tables that are empty then. No 2 MiB leaf lies across the ends. */
  clear(start: VirtualAddress, end: VirtualAddress): void {
    this.#takeOut(start, end);
    this.#freeEmptyTables(start, end);
  }

  /** Takes the leaves of [start, end) out and lets go of their frames. */
  #takeOut(start: VirtualAddress, end: VirtualAddress): void {
    this.#parts.core.takeOutLeaves(this.root, pageOf(start), pageOf(end), ALL);
  }

  /** Takes out leaves of the whole address space, so many at most, and tables that are empty then. True if none is left. */
  shrink(most: number): boolean {
    const next = this.#parts.core.takeOutLeaves(this.root, 0, PAGES, Math.min(most, ALL));
    this.#freeEmptyTables(0, next * FRAME_BYTES);
    return next === PAGES;
  }

  /**
   * Gives a child leaves of [start, end), so many at most: frames are shared, and private ones are copied by whoever stores to them
   * first. The tags of this address space are to be dropped.
   *
   * @returns where to go on, and how many leaves more it might have been; undefined if there is no memory for the child's tables
   */
  shareWith(
    child: Leaves,
    { start, end, shared }: Pick<Area, "start" | "end" | "shared">,
    most: number,
  ): { next: VirtualAddress; left: number } | undefined {
    const { core, memory } = this.#parts;
    let page = pageOf(start);
    let left = most;
    while (page < pageOf(end) && left > 0) {
      page = core.shareLeaves(this.root, page, pageOf(end), child.root, shared ? 1 : 0, left);
      left -= core.taken.value;
      if (page >= pageOf(end) || left === 0) break;
      const address = page * FRAME_BYTES;
      if (!child.#makeTables(address, findEntry(memory, this.root, address)!.level)) return undefined;
    }
    return { next: page * FRAME_BYTES, left };
  }

  /** Sees to it that no 2 MiB leaf lies across an address. */
  splitAt(address: VirtualAddress): boolean {
    const entry = findEntry(this.#parts.memory, this.root, address);
    const within = address % HUGE_BYTES;
    return entry?.level !== 1 || within === 0 || this.#splitHuge(address - within, entry);
  }

  /** Makes a 2 MiB leaf 512 of 4 KiB: of the same frames, or of copies if others hold the block. False if there is no memory. */
  #splitHuge(address: VirtualAddress, entry: Entry): boolean {
    const { memory, buddy } = this.#parts;
    const pte = memory.load32(entry.at);
    const head = pte >>> PTE_PPN_SHIFT;
    const frames = [];
    const table = this.allocateTable();
    if (table === undefined) return false;
    const alone = buddy.references(head) === 1;
    for (let i = 0; i < HUGE_PAGES; i++) {
      const frame = alone ? head + i : buddy.allocate(0, this.#pid, KIND_USER);
      if (frame === undefined) {
        for (const taken of frames) buddy.free(taken);
        buddy.free(table);
        return false;
      }
      frames.push(frame);
      if (!alone) memory.copy(frame, head + i);
    }
    if (alone) {
      buddy.setOwner(head, this.#pid);
      buddy.split(head);
    } else buddy.release(head);
    // They are this process's alone now, so a copy on write is done with.
    const flags = (pte & PTE_COW) === 0 ? pte & PTE_FLAGS : (pte & PTE_FLAGS & ~PTE_COW) | PTE_W;
    for (const [i, frame] of frames.entries()) memory.store32(table * FRAME_BYTES + i * 8, (frame << PTE_PPN_SHIFT) | flags);
    memory.store32(entry.at, (table << PTE_PPN_SHIFT) | PTE_V);
    this.#invalidate(address, HUGE_PAGES);
    return true;
  }

  /** Puts aligned 2 MiB into one block under one leaf. True if it is so now. */
  collapse(address: VirtualAddress, flags: number): boolean {
    const { memory, buddy, core } = this.#parts;
    if (findEntry(memory, this.root, address)?.level === 1) return true;
    const block = buddy.allocateFree(HUGE_ORDER, this.#pid, KIND_USER);
    if (block === undefined) return false;
    core.copyPages(this.root, pageOf(address), block, HUGE_PAGES);
    this.#takeOut(address, address + HUGE_BYTES); // its tables stay: else the leaf might find no memory for one
    const table = findTable(memory, this.root, address);
    if (!this.map(address, block, 1, flags)) {
      buddy.free(block); // the zeros that were there are lost with nothing: no leaf, no page
      return false;
    }
    if (table !== undefined) buddy.free(table);
    return true;
  }
}

/** The number of the page that an address lies in; that of the address after the last is one more than there are. */
function pageOf(address: VirtualAddress): number {
  return Math.floor(address / FRAME_BYTES);
}
