/**
 * The address space of one process: its areas, its leaves, and the frames behind them.
 *
 * What must hold:
 * - A user frame's references are the leaves that map it and the memory object that has it. A block of order > 0 below a
 *   leaf of level 0 has one holder, this process, and is split into frames before a part of it is given away or shared.
 * - A leaf has W only if a store to it is nobody else's business: the frame is this process's alone, or shared is what it is
 *   meant to be, and not a clean page of a file. All other leaves of a writable area lack W, private ones have COW.
 * - A leaf of an area without permissions is parked: it keeps its frame and has no V.
 *
 * Callers hold the kernel lock. They are on the vCPU that runs the process, whose TLB is the only one that knows it, or nobody
 * runs it.
 */
import { ACCESS_WRITE, FRAME_BYTES, PTE_PPN_SHIFT, PTE_R, PTE_U, PTE_W } from "../../base/layout.js";
import type { Pfn, PhysicalAddress, VirtualAddress } from "../../base/memory.js";
import { type Area, isDemandZero, type StoredArea, storeArea } from "./area.js";
import { EACCES, EINVAL, ENOMEM } from "./errno.js";
import { PROCESS_AREAS, PROCESS_ROOT, processAddress } from "./kernel-layout.js";
import { OBJECT_PAGES_MAX, type Pager } from "./memory-object.js";
import { AreaList, pageOf } from "./area-list.js";
import { Leaves, PERMISSIONS } from "./leaves.js";
import type { MemoryParts } from "./parts.js";
import { type Entry, findEntry, HUGE_BYTES, visitEntries, walkTables } from "./page-table.js";
import { HEAP_BASE, HEAP_END, USER_END } from "./user-layout.js";

/** Why an access fails: nothing there allows it, the file behind it has no such page, or there is no memory for it now. */
export type FaultKind = "denied" | "no page" | "no memory";

/** How the failure of a process begins that found no memory. A machine keeps only the text. */
const OUT_OF_MEMORY = "out of memory";

export function isWantOfMemory(failure: string): boolean {
  return failure.startsWith(OUT_OF_MEMORY);
}

/** A process's access that cannot be resolved: the process ends with this reason. */
export class GuestFault extends Error {
  override readonly name = "GuestFault";
  readonly kind: FaultKind;

  constructor(message: string, kind: FaultKind = "denied") {
    super(message);
    this.kind = kind;
  }
}

/** What to map. */
export interface Mapping {
  /** Where; anywhere if not given. What is there already is replaced. */
  address?: VirtualAddress | undefined;
  pages: number;
  /** PTE bits R, W, X. */
  flags: number;
  shared: boolean;
  /** The object behind it, of which the area takes a reference of its own; 0 for zeros. */
  object: PhysicalAddress;
  /** First page of the object. */
  offset?: number;
  /** Shared, and of a file that was opened for reading: it never becomes writable. */
  readOnly?: boolean;
}

export class AddressSpace {
  readonly #parts: MemoryParts;
  readonly #pager: Pager;
  readonly #slot: number;
  readonly #at: PhysicalAddress;
  readonly #areas: AreaList;
  readonly #leaves: Leaves;

  constructor(parts: MemoryParts, pager: Pager, slot: number) {
    this.#parts = parts;
    this.#pager = pager;
    this.#slot = slot;
    this.#at = processAddress(parts.memory, slot);
    this.#areas = new AreaList(parts, pager, this.#at + PROCESS_AREAS);
    this.#leaves = new Leaves(parts, this.#at);
  }

  /** Allocates a zeroed page table; undefined if there is no memory. */
  allocateTable(): Pfn | undefined {
    return this.#leaves.allocateTable();
  }

  /** Maps a block of 2^order new frames with `contents` and zeros, all of it or nothing. */
  mapNew(address: VirtualAddress, order: number, flags: number, contents?: Uint8Array): boolean {
    return this.#leaves.mapNew(address, order, flags, contents);
  }

  areas(): Generator<StoredArea> {
    return this.#areas.walk();
  }

  /** Adds an area; its object gets one more holder. False if there is no memory. */
  addArea(area: Area): boolean {
    return this.#areas.add(area);
  }

  // ---- system calls: an address or 0, or an error number, negated ----

  /** mmap: makes an area. Frames come with the first access. */
  map({ address, pages, flags, shared, object, offset = 0, readOnly = false }: Mapping): number {
    if (!Number.isInteger(pages) || pages < 1 || pages > USER_END / FRAME_BYTES) return -EINVAL;
    if (object !== 0 && !(Number.isInteger(offset) && offset >= 0 && offset + pages <= OBJECT_PAGES_MAX)) return -EINVAL;
    const start = address ?? this.#areas.findHole(pages);
    if (start === undefined) return -ENOMEM;
    const end = start + pages * FRAME_BYTES;
    if (!isRange(start, end)) return -EINVAL;
    const done = this.unmap(start, end);
    if (done < 0) return done;
    const area: Area = { start, end, flags: allowed(flags), kind: "mapping", limit: 0, object, offset, shared, readOnly };
    if (!this.addArea(area)) return -ENOMEM; // if anything is gone, it left its area's memory: then this does not fail
    this.#areas.join(start, end);
    return start;
  }

  /** munmap: leaves and areas of [start, end) are gone. */
  unmap(start: VirtualAddress, end: VirtualAddress): number {
    if (!isRange(start, end)) return -EINVAL;
    if (!this.#isolate(start, end)) return -ENOMEM;
    this.#leaves.clear(start, end);
    for (const area of Array.from(this.areas())) if (area.start >= start && area.end <= end) this.#areas.remove(area.at);
    return 0;
  }

  /** mprotect: areas of [start, end), which they must fill, get these permissions, and so do their leaves. */
  protect(start: VirtualAddress, end: VirtualAddress, flags: number): number {
    if (!isRange(start, end)) return -EINVAL;
    const inside = () => [...this.areas()].filter((area) => area.end > start && area.start < end);
    if ((flags & PTE_W) !== 0 && inside().some((area) => area.readOnly)) return -EACCES;
    const covered = inside().reduce((sum, area) => sum + Math.min(end, area.end) - Math.max(start, area.start), 0);
    if (covered !== end - start || !this.#isolate(start, end)) return -ENOMEM;
    for (const area of inside()) {
      const changed = { ...area, flags: allowed(flags) };
      storeArea(this.#parts.memory, area.at, changed);
      this.#leaves.protect(changed);
    }
    this.#areas.join(start, end);
    return 0;
  }

  /** msync: what was stored to shared mappings of files of the host goes to the host. */
  synchronise(start: VirtualAddress, end: VirtualAddress): number {
    if (!isRange(start, end)) return -EINVAL;
    let failed = 0;
    for (const area of Array.from(this.areas())) {
      const [from, to] = [Math.max(start, area.start), Math.min(end, area.end)];
      if (!area.shared || area.object === 0 || from >= to) continue;
      const first = area.offset + (from - area.start) / FRAME_BYTES;
      failed = this.#pager.writeBack(area.object, first, (to - from) / FRAME_BYTES) || failed;
    }
    return failed;
  }

  /**
   * madvise for huge pages: every aligned 2 MiB of private, writable, anonymous memory in [start, end) is put into one block
   * and mapped by one leaf, as far as there are such blocks. Returns how many there are now. Stacks are left as they are: they
   * give back their pages one by one, without asking for memory.
   */
  adviseHuge(start: VirtualAddress, end: VirtualAddress): number {
    if (!isRange(start, end)) return -EINVAL;
    let huge = 0;
    for (const area of Array.from(this.areas())) {
      if (area.kind === "stack" || (area.flags & PTE_W) === 0 || !isDemandZero(area)) continue;
      const last = Math.min(end, area.end);
      const first = Math.ceil(Math.max(start, area.start) / HUGE_BYTES) * HUGE_BYTES;
      for (let at = first; at + HUGE_BYTES <= last; at += HUGE_BYTES) if (this.#leaves.collapse(at, area.flags)) huge++;
    }
    return huge;
  }

  // ---- faults ----

  /** Resolves an access that has no leaf that allows it, or throws GuestFault. */
  fault(address: VirtualAddress, access: number): void {
    const { memory } = this.#parts;
    const found = this.#areas.find(address);
    const stack = found === undefined ? this.#areas.stackAbove(address) : undefined;
    const area = found ?? stack;
    const write = access === ACCESS_WRITE;
    const where = `${write ? "write to" : "read of"} 0x${address.toString(16)}`;
    if (area === undefined) throw new GuestFault(`${where}, which no area holds`);
    if ((area.flags & (write ? PTE_W : PTE_R)) === 0) throw new GuestFault(`${where}: the ${area.kind} area does not allow it`);
    const entry = findEntry(memory, this.#leaves.root, address);
    const done = entry === undefined ? this.#fill(area, pageOf(address), write, where) : this.#unshare(area, address, entry);
    if (!done) throw new GuestFault(`${OUT_OF_MEMORY} at ${where}`, "no memory");
    if (stack !== undefined) this.#areas.change(stack, { start: pageOf(address) });
  }

  /** Gives a page without a leaf what is behind its area. False if there is no memory. */
  #fill(area: Area, page: VirtualAddress, write: boolean, where: string): boolean {
    const { memory, buddy, objects } = this.#parts;
    if (area.object === 0) {
      if (!isDemandZero(area)) throw new GuestFault(`${where}, which is not mapped`);
      return this.#leaves.mapNew(page, 0, area.flags);
    }
    const index = area.offset + (page - area.start) / FRAME_BYTES;
    const frame = objects.find(area.object, index) ?? this.#pager.fillPage(area.object, index);
    if (frame === undefined) return false;
    if (frame < 0) throw new GuestFault(`${where}: the file behind it ends before, or cannot be read`, "no page");
    if (write && !area.shared) return this.#leaves.mapNew(page, 0, area.flags, memory.read(frame * FRAME_BYTES, FRAME_BYTES));
    if (write) objects.makeDirty(area.object, frame);
    buddy.share(frame);
    if (this.#leaves.map(page, frame, 0, this.#leaves.flagsOf(area, 0, 0, frame))) return true;
    buddy.release(frame);
    return false;
  }

  /** A store to a leaf without W: a first store to a clean page of a file, or a copy on write. */
  #unshare(area: Area, address: VirtualAddress, entry: Entry): boolean {
    const { memory, buddy, objects } = this.#parts;
    const pte = memory.load32(entry.at);
    const frame = pte >>> PTE_PPN_SHIFT;
    const page = address - (address % (entry.level === 0 ? FRAME_BYTES : HUGE_BYTES));
    if (area.shared) {
      objects.makeDirty(area.object, frame);
    } else if (buddy.references(frame) > 1) {
      return entry.level === 0 ? this.#leaves.copyFrame(page, entry, area.flags) : this.#leaves.copyHuge(page, entry, area.flags);
    } // else the others let go of it
    this.#leaves.set(page, entry, frame, this.#leaves.flagsOf(area, pte, entry.level));
    return true;
  }

  /**
   * Cuts areas and 2 MiB leaves at both ends of a range. False if there is no memory: the areas are then as they were, and what
   * is cheap to undo comes first, so that little memory was taken for nothing.
   */
  #isolate(start: VirtualAddress, end: VirtualAddress): boolean {
    if (this.#areas.cut(start) && this.#areas.cut(end) && this.#leaves.splitAt(start) && this.#leaves.splitAt(end)) return true;
    this.#areas.join(start, end);
    return false;
  }

  // ---- files that were cut ----

  /** Takes out the leaves of pages that the files behind their areas do not have any more. */
  trim(): void {
    for (const area of this.areas()) {
      const end = this.#endOfPages(area);
      if (end < area.end) this.#leaves.clear(end, area.end);
    }
  }

  /** Where what is behind an area ends, within it. */
  #endOfPages({ start, end, object, offset }: Area): VirtualAddress {
    if (object === 0) return end;
    return Math.min(end, start + Math.max(0, this.#pager.pagesOf(object) - offset) * FRAME_BYTES);
  }

  // ---- the heap area: blocks of the buddy allocator, by the call `map` ----

  /** Maps a zeroed block of 2^order frames in the heap area. False, and nothing changed, if there is no memory. */
  mapBlock(address: VirtualAddress, order: number): boolean {
    const end = address + (FRAME_BYTES << order);
    const area = [...this.areas()].find((found) => address >= found.start && end <= found.end);
    if (address % FRAME_BYTES !== 0 || area?.kind !== "heap") {
      throw new GuestFault(`map of 0x${address.toString(16)}, order ${order}, outside the heap area`);
    }
    visitEntries(this.#parts.memory, this.#leaves.root, address, end, (page) => {
      throw new GuestFault(`map of 0x${page.toString(16)}, which is mapped`);
    });
    return this.#leaves.mapNew(address, order, this.#leaves.newFlags(area));
  }

  /** Unmaps and frees a block that mapBlock gave, also if a fork has split it. */
  unmapBlock(address: VirtualAddress, order: number): void {
    const { memory, buddy } = this.#parts;
    const end = address + (FRAME_BYTES << order);
    let leaves = 0;
    let head = -1;
    visitEntries(memory, this.#leaves.root, address, end, (at, pte) => {
      leaves++;
      if (at === address) head = pte >>> PTE_PPN_SHIFT;
    });
    const whole = head >= 0 && buddy.headOf(head) === head && buddy.orderOf(head) <= order;
    if (address < HEAP_BASE || end > HEAP_END || leaves !== 1 << order || !whole) {
      throw new GuestFault(`unmap of 0x${address.toString(16)}, order ${order}, which is no such block`);
    }
    this.#leaves.clear(address, end);
  }

  /** Frees the stack pages wholly below `address`. */
  shrinkStack(address: VirtualAddress): void {
    for (const { kind, start, end } of this.areas())
      if (kind === "stack" && start < pageOf(address)) this.#leaves.clear(start, Math.min(pageOf(address), end));
  }

  // ---- fork and end ----

  /** fork: a child gets the same areas. False if there is no memory: it is to be released. */
  copyAreasTo(child: AddressSpace): boolean {
    return [...this.areas()].toReversed().every((area) => child.addArea(area));
  }

  /**
   * fork, a part: gives a child leaves from an address on, which has the areas already: frames are shared, and private ones are copied
   * by whoever stores to them first. This space's tags are to be dropped then.
   *
   * @returns where to go on; 2^32 once the child has all, undefined if there is no memory: it is to be released
   */
  shareWith(child: AddressSpace, from: VirtualAddress, most: number): VirtualAddress | undefined {
    let left = most;
    for (const area of [...this.areas()].sort((a, b) => a.start - b.start)) {
      const range = { start: Math.max(from, area.start), end: this.#endOfPages(area), shared: area.shared };
      if (range.start >= range.end) continue;
      const shared = this.#leaves.shareWith(child.#leaves, range, left);
      if (shared === undefined) return undefined;
      if (shared.next < range.end) return shared.next;
      left = shared.left;
      if (left === 0) return range.end;
    }
    return 2 ** 32;
  }

  /** The end, a part: takes out leaves, so many at most. True if none is left, so that `release` is short. */
  shrink(most: number): boolean {
    return this.#leaves.root === 0 || this.#leaves.shrink(most);
  }

  /** Lets go of everything: areas, frames, page tables. */
  release(): void {
    const { memory, buddy, core } = this.#parts;
    const root = this.#leaves.root;
    if (root !== 0) {
      this.#leaves.clear(0, 2 ** 32);
      for (const table of Array.from(walkTables(memory, root))) buddy.free(table);
      memory.store32(this.#at + PROCESS_ROOT, 0);
    }
    for (const { at } of Array.from(this.areas())) this.#areas.remove(at);
    core.dropContext(this.#slot);
  }
}

/** Sv39 has no leaf that may be written and not read. */
function allowed(flags: number): number {
  const permissions = flags & PERMISSIONS;
  return ((permissions & PTE_W) === 0 ? permissions : permissions | PTE_R) | PTE_U;
}

function isRange(start: VirtualAddress, end: VirtualAddress): boolean {
  return start % FRAME_BYTES === 0 && end % FRAME_BYTES === 0 && start >= FRAME_BYTES && start < end && end <= USER_END;
}
