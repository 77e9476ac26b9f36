/**
 * The areas of one process, a list in the kernel heap: they do not overlap, and each holds the memory object behind it.
 *
 * Callers hold the kernel lock.
 */
import { FRAME_BYTES } from "../../base/layout.js";
import type { PhysicalAddress, VirtualAddress } from "../../base/memory.js";
import { type Area, AREA_BYTES, continues, findArea, linkArea, type StoredArea, storeArea, walkAreas } from "./area.js";
import { allocateObject, freeObject } from "./kernel-heap.js";
import { objectInode, type Pager } from "./memory-object.js";
import type { MemoryParts } from "./parts.js";
import { HEAP_BASE, MMAP_BASE } from "./user-layout.js";

/** A stack does not grow up to another area: so many bytes below it stay empty. */
const STACK_GUARD = 16 * FRAME_BYTES;

export class AreaList {
  readonly #parts: MemoryParts;
  readonly #pager: Pager;
  /** Address of the word that holds the first area. */
  readonly #head: PhysicalAddress;

  constructor(parts: MemoryParts, pager: Pager, head: PhysicalAddress) {
    this.#parts = parts;
    this.#pager = pager;
    this.#head = head;
  }

  /** Newest first. */
  walk(): Generator<StoredArea> {
    return walkAreas(this.#parts.memory, this.#parts.memory.load32(this.#head));
  }

  /** Adds an area; its object gets one more holder. False if there is no memory. */
  add(area: Area): boolean {
    const { memory, buddy } = this.#parts;
    const at = allocateObject(memory, buddy, AREA_BYTES);
    if (at === undefined) return false;
    if (area.object !== 0) this.#hold(area.object);
    storeArea(memory, at, area);
    linkArea(memory, at, memory.load32(this.#head));
    memory.store32(this.#head, at);
    return true;
  }

  #hold(object: PhysicalAddress): void {
    const { memory, objects } = this.#parts;
    objects.share(object);
    const inode = objectInode(memory, object);
    if (inode !== 0) this.#pager.holdInode(inode);
  }

  #letGo(object: PhysicalAddress): void {
    const { memory, objects } = this.#parts;
    const inode = objectInode(memory, object);
    objects.release(object);
    if (inode !== 0) this.#pager.releaseInode(inode);
  }

  /** Changes an area where it lies; what is behind it stays held as it is. */
  change(area: StoredArea, change: Partial<Area>): void {
    storeArea(this.#parts.memory, area.at, { ...area, ...change });
  }

  /** Takes an area out; what was stored to the file behind it goes there first. */
  remove(at: PhysicalAddress): void {
    const { memory } = this.#parts;
    let before: StoredArea | undefined;
    for (const area of this.walk()) {
      if (area.at !== at) {
        before = area;
        continue;
      }
      if (before === undefined) memory.store32(this.#head, area.next);
      else linkArea(memory, before.at, area.next);
      if (area.object !== 0) {
        if (area.shared) this.#pager.writeBack(area.object, area.offset, (area.end - area.start) / FRAME_BYTES);
        this.#letGo(area.object);
      }
      freeObject(memory, at, AREA_BYTES);
    }
  }

  /** Joins what differs in nothing, from the area that ends at `start` to the one that begins at `end`. */
  join(start: VirtualAddress, end: VirtualAddress): void {
    const near = [...this.walk()].filter((area) => area.end >= start && area.start <= end).sort((a, b) => a.start - b.start);
    let lower: StoredArea | undefined;
    for (const area of near) {
      if (lower === undefined || !continues(lower, area)) lower = area;
      else {
        lower.end = area.end;
        storeArea(this.#parts.memory, lower.at, lower);
        this.remove(area.at);
      }
    }
  }

  /** The area that an address lies in. */
  find(address: VirtualAddress): StoredArea | undefined {
    return findArea(this.#parts.memory, this.#parts.memory.load32(this.#head), address);
  }

  /** The stack that may grow down to an address where there is no area: the next one above, if nothing is near. */
  stackAbove(address: VirtualAddress): StoredArea | undefined {
    const page = pageOf(address);
    const near = [...this.walk()].filter(({ end }) => end > page - STACK_GUARD).sort((a, b) => a.start - b.start);
    const [next] = near;
    return next !== undefined && next.limit !== 0 && next.start > page && address >= next.limit ? next : undefined;
  }

  /** Cuts areas so that none lies across `address`. False if there is no memory. */
  cut(address: VirtualAddress): boolean {
    const area = this.find(address);
    if (area === undefined || area.start === address) return true;
    const upper = { ...area, start: address, offset: area.offset + (address - area.start) / FRAME_BYTES };
    if (!this.add(upper)) return false;
    this.change(area, { end: address });
    return true;
  }

  /** A free range of so many pages, from the top down; undefined if there is none. */
  findHole(pages: number): VirtualAddress | undefined {
    const bytes = pages * FRAME_BYTES;
    const taken = [...this.walk()].filter(({ start }) => start < HEAP_BASE).sort((a, b) => b.start - a.start);
    let top = HEAP_BASE;
    for (const { start, end } of taken) {
      if (top - end >= bytes) break;
      top = start;
    }
    return top - bytes >= MMAP_BASE ? top - bytes : undefined;
  }
}

/** First address of the page that an address lies in. */
export function pageOf(address: VirtualAddress): VirtualAddress {
  return address - (address % FRAME_BYTES);
}
