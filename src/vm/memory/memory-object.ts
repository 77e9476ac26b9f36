/**
 * Memory objects: pages by index, each with a frame or without. A file's page cache is one, and so are the pages of a shared
 * anonymous mapping. Mappings hold the object; the object holds its frames, each with one reference.
 *
 *     object (64 B of kernel heap)  ->  table of 1,024 words  ->  tables of 1,024 words: PFN + 1
 *
 * Callers hold the kernel lock.
 */
import { FRAME_BYTES } from "../../base/layout.js";
import type { Pfn, PhysicalAddress, ReadableMemory } from "../../base/memory.js";
import type { BuddyAllocator } from "./buddy.js";
import { allocateObject, freeObject } from "./kernel-heap.js";
import { KERNEL_OBJECTS, isUnwritten, KIND_FILE, KIND_KERNEL_HEAP } from "./kernel-layout.js";
import type { PhysicalMemory } from "./physical.js";

export const OBJECT_BYTES = 64;
/** Areas that map it; and one for its inode, if it has one. */
const REFERENCES = 0;
const TABLE = 4;
/** The inode whose pages these are, 0 for a shared anonymous mapping. Who maps the object holds the inode, too. */
const INODE = 8;
/** Raised after every change of which frames its pages have, and of what kind those are. */
const CHANGES = 12;
/** Its number (float64): addresses are used again, and numbers are not. 0 once it is gone. */
const SERIAL = 16;

const WORDS = FRAME_BYTES / 4;
/** 4 GiB. */
export const OBJECT_PAGES_MAX: number = WORDS * WORDS;

/** Whoever has the pages of files: what a mapping needs of them. Callers hold the kernel lock. */
export interface Pager {
  /** A page that has no frame yet. Undefined if there is no memory; what is negative is an error number, EFAULT beyond the end. */
  fillPage(object: PhysicalAddress, page: number): Pfn | number | undefined;
  /** How many pages there are: of a file those up to its end, also if they have no frame. */
  pagesOf(object: PhysicalAddress): number;
  /** Has pages that were stored to reach whatever is behind the object. Returns 0 or an error number, negated. */
  writeBack(object: PhysicalAddress, first: number, pages: number): number;
  /** An area that maps an object holds the inode whose pages these are. */
  holdInode(inode: PhysicalAddress): void;
  releaseInode(inode: PhysicalAddress): void;
}

export class MemoryObjects {
  readonly #memory: PhysicalMemory;
  readonly #buddy: BuddyAllocator;

  constructor(memory: PhysicalMemory, buddy: BuddyAllocator) {
    this.#memory = memory;
    this.#buddy = buddy;
  }

  /** A new object without pages, held once; undefined if there is no memory. */
  create(inode: PhysicalAddress = 0): PhysicalAddress | undefined {
    const object = allocateObject(this.#memory, this.#buddy, OBJECT_BYTES);
    if (object === undefined) return undefined;
    this.#memory.store32(object + REFERENCES, 1);
    this.#memory.store32(object + TABLE, 0);
    this.#memory.store32(object + INODE, inode);
    this.#memory.store32(object + CHANGES, 0);
    const serial = this.#memory.loadFloat64(KERNEL_OBJECTS) + 1;
    this.#memory.storeFloat64(KERNEL_OBJECTS, serial);
    this.#memory.storeFloat64(object + SERIAL, serial);
    return object;
  }

  share(object: PhysicalAddress): void {
    this.#memory.store32(object + REFERENCES, this.#memory.load32(object + REFERENCES) + 1);
  }

  /** One fewer maps it; the last one gives back its pages, if it is no inode's. */
  release(object: PhysicalAddress): void {
    const references = this.#memory.load32(object + REFERENCES) - 1;
    this.#memory.store32(object + REFERENCES, references);
    if (references === 0 && objectInode(this.#memory, object) === 0) this.destroy(object);
  }

  /** A page is about to be stored to by who maps it: it is not what the file has any more. */
  makeDirty(object: PhysicalAddress, frame: Pfn): void {
    if (!isUnwritten(this.#buddy.kindOf(frame))) return;
    this.#buddy.setKind(frame, KIND_FILE);
    this.note(object);
  }

  /** Its pages are of other frames now, or of another kind. */
  note(object: PhysicalAddress): void {
    this.#memory.store32(object + CHANGES, this.#memory.load32(object + CHANGES) + 1);
  }

  /** Whether an inode's object is mapped. */
  isMapped(object: PhysicalAddress): boolean {
    return this.#memory.load32(object + REFERENCES) > 1;
  }

  /** Gives back the object and its pages. */
  destroy(object: PhysicalAddress): void {
    this.truncate(object, 0);
    const table = this.#memory.load32(object + TABLE);
    if (table !== 0) this.#buddy.free(table - 1);
    this.#memory.storeFloat64(object + SERIAL, 0);
    freeObject(this.#memory, object, OBJECT_BYTES);
  }

  /** The frame of a page, undefined if it has none. */
  find(object: PhysicalAddress, page: number): Pfn | undefined {
    return findObjectPage(this.#memory, object, page);
  }

  /**
   * Gives a page a frame, whose one reference becomes the object's. False if there is no memory for its table, or no such page
   * (OBJECT_PAGES_MAX).
   */
  insert(object: PhysicalAddress, page: number, frame: Pfn): boolean {
    if (!isPage(page)) return false;
    const table = this.#tableAt(object + TABLE);
    if (table === undefined) return false;
    const leaf = this.#tableAt(table * FRAME_BYTES + Math.floor(page / WORDS) * 4);
    if (leaf === undefined) return false;
    this.#memory.store32(leaf * FRAME_BYTES + (page % WORDS) * 4, frame + 1);
    this.note(object);
    return true;
  }

  /** Gives a page that has no frame a zeroed one. Undefined if there is no memory. */
  fillWithZeros(object: PhysicalAddress, page: number): Pfn | undefined {
    const frame = this.#buddy.allocate(0, 0, KIND_FILE);
    if (frame === undefined) return undefined;
    this.#memory.zero(frame, 1);
    if (this.insert(object, page, frame)) return frame;
    this.#buddy.free(frame);
    return undefined;
  }

  /** Gives back the pages from `from` on, and tables that hold no others. */
  truncate(object: PhysicalAddress, from: number): void {
    const table = this.#memory.load32(object + TABLE);
    if (table === 0) return;
    for (let index = Math.floor(from / WORDS); index < WORDS; index++) {
      const at = (table - 1) * FRAME_BYTES + index * 4;
      const leaf = this.#memory.load32(at);
      if (leaf === 0) continue;
      const first = Math.max(0, from - index * WORDS);
      for (let word = first; word < WORDS; word++) {
        const slot = (leaf - 1) * FRAME_BYTES + word * 4;
        const frame = this.#memory.load32(slot);
        if (frame === 0) continue;
        this.#memory.store32(slot, 0);
        this.#buddy.release(frame - 1);
      }
      if (first > 0) continue;
      this.#memory.store32(at, 0);
      this.#buddy.free(leaf - 1);
    }
    this.note(object);
  }

  /** The table that a word names (its PFN + 1), made if there is none. */
  #tableAt(word: PhysicalAddress): Pfn | undefined {
    const there = this.#memory.load32(word);
    if (there !== 0) return there - 1;
    const frame = this.#buddy.allocate(0, 0, KIND_KERNEL_HEAP);
    if (frame === undefined) return undefined;
    this.#memory.zero(frame, 1);
    this.#memory.store32(word, frame + 1);
    return frame;
  }
}

export function objectInode(memory: ReadableMemory, object: PhysicalAddress): PhysicalAddress {
  return memory.load32(object + INODE) >>> 0;
}

/** How often an object is held, and its inode (0 for none). */
export function objectReferences(
  memory: ReadableMemory,
  object: PhysicalAddress,
): { references: number; inode: PhysicalAddress } {
  return { references: memory.load32(object + REFERENCES), inode: objectInode(memory, object) };
}

function isPage(page: number): boolean {
  return Number.isInteger(page) && page >= 0 && page < OBJECT_PAGES_MAX;
}

/** What changed so far of an object's pages: two equal numbers, and nothing has in between. */
export function objectChanges(memory: ReadableMemory, object: PhysicalAddress): number {
  return memory.load32(object + CHANGES);
}

/** The number of the object at an address. Where one has been and is no more, it is not that one's. */
export function objectSerial(memory: ReadableMemory, object: PhysicalAddress): number {
  return memory.loadFloat64(object + SERIAL);
}

/** The frame of an object's page, undefined if it has none. */
export function findObjectPage(memory: ReadableMemory, object: PhysicalAddress, page: number): Pfn | undefined {
  const table = isPage(page) ? memory.load32(object + TABLE) : 0;
  const leaf = table === 0 ? 0 : memory.load32((table - 1) * FRAME_BYTES + Math.floor(page / WORDS) * 4);
  const frame = leaf === 0 ? 0 : memory.load32((leaf - 1) * FRAME_BYTES + (page % WORDS) * 4);
  return frame === 0 ? undefined : frame - 1;
}

/** The frames of an object's own tables, the upper one first; none is looked into before it has been given. */
export function* walkObjectTables(memory: ReadableMemory, object: PhysicalAddress): Generator<Pfn> {
  const table = memory.load32(object + TABLE);
  if (table === 0) return;
  yield table - 1;
  for (let index = 0; index < WORDS; index++) {
    const leaf = memory.load32((table - 1) * FRAME_BYTES + index * 4);
    if (leaf !== 0) yield leaf - 1;
  }
}

/** Every page of an object that has a frame, from page `from` on. */
export function* walkObject(memory: ReadableMemory, object: PhysicalAddress, from = 0): Generator<{ page: number; frame: Pfn }> {
  const table = memory.load32(object + TABLE);
  if (table === 0) return;
  for (let index = Math.floor(from / WORDS); index < WORDS; index++) {
    const leaf = memory.load32((table - 1) * FRAME_BYTES + index * 4);
    if (leaf === 0) continue;
    for (let word = Math.max(0, from - index * WORDS); word < WORDS; word++) {
      const frame = memory.load32((leaf - 1) * FRAME_BYTES + word * 4);
      if (frame !== 0) yield { page: index * WORDS + word, frame: frame - 1 };
    }
  }
}
