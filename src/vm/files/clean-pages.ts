/**
 * Clean pages of files, which a save records by reference (S0.3): which page of which file each is, and its checksum as of the
 * stop.
 *
 * Most checksums are taken while the machine runs, after tracking is armed. A page that is stored to later bears a mark
 * then, and so does a frame that has become another page: at the stop only those that bear one are hashed. And only objects
 * whose pages have changed since (`objectChanges`) are walked once more: a pause does not grow with the page cache.
 *
 * What must hold: what is used at the stop is what a walk at the stop would find. So objects are known by their number: one
 * that has it still is the same, and was there all the time. Its pages are read under the kernel lock, a piece at a time, and
 * changes are counted from before the first piece: a change between two pieces is seen at the stop.
 *
 * A file that somebody else has changed does not have these pages any more: then they are stored. To the machine they stay what
 * they are.
 */
import { type BigIntStats, statSync } from "node:fs";
import { bit } from "../../base/control.js";
import type { Reference } from "../../base/host-file.js";
import { DIRTY_BITMAP, FRAME_BYTES } from "../../base/layout.js";
import type { Pfn, PhysicalAddress } from "../../base/memory.js";
import { KIND_FILE_KEPT } from "../memory/kernel-layout.js";
import type { KernelParts } from "../tasks/parts.js";
import { OBJECT_PAGES_MAX, objectChanges, objectSerial } from "../memory/memory-object.js";
import { frameAddress } from "../memory/physical.js";
import { type HostIdentity, walkHostInodes } from "./inode.js";
import { walkCleanPages } from "./open-files.js";

/** A file of the host that is open or mapped. */
interface File {
  /** Its memory object, and that one's number. */
  object: PhysicalAddress;
  serial: number;
  path: string;
}

/** Clean pages of one file, as found at one moment. */
interface PagesOfFile {
  path: string;
  /** The object's changes before they were read. */
  changes: number;
  pages: number[];
  frames: Pfn[];
  hashes: bigint[];
}

/** Pages that are looked at under one hold of the kernel lock. */
const PIECE_PAGES = 1024;

export class CleanPages {
  readonly #kernel: KernelParts;
  /** By the number of the file's object. */
  readonly #known = new Map<number, PagesOfFile>();
  #atStop: PagesOfFile[] = [];

  constructor(kernel: KernelParts) {
    this.#kernel = kernel;
  }

  /** Before tracking is armed anew, which takes marks away: what was learned counts no more. */
  forget(): void {
    this.#known.clear();
  }

  /** While the machine runs, after tracking is armed. Again: what has changed since. */
  learn(): void {
    const { control, memory } = this.#kernel;
    for (const file of control.locked(() => this.#files())) {
      if (this.#known.get(file.serial)?.changes === objectChanges(memory, file.object)) continue;
      const pages: PagesOfFile = control.locked(() => this.#empty(file));
      for (let from = 0; from < OBJECT_PAGES_MAX; ) from = control.locked(() => this.#list(file, pages, from, PIECE_PAGES));
      pages.hashes = pages.frames.map((frame) => this.#hash(frame)); // stored to meanwhile, they bear a mark
      this.#known.set(file.serial, pages);
    }
  }

  /**
   * Adds the clean pages that are stored to a bitmap: all of them, for an image without its files, or those of files that are not
   * what the machine last made or saw of them. Caller holds the kernel lock, or everything is stopped.
   *
   * @returns the files that have changed, by the numbers of their objects, and those whose pages are stored
   */
  addStored(bitmap: number, which: "all" | "changed"): { changed: string[]; stored: Set<number> } {
    const { core, memory } = this.#kernel;
    const changed: string[] = [];
    const stored = new Set<number>();
    for (const { object, host } of walkHostInodes(memory)) {
      if (!isAsItWas(host!)) changed.push(host!.path);
      else if (which === "changed") continue;
      stored.add(objectSerial(memory, object));
      for (const { frame } of walkCleanPages(memory, object)) core.setBit(bitmap, frame);
    }
    return { changed, stored };
  }

  /**
   * From now on `references` says what the pages are at this moment. Everything is stopped; or it goes on, and the kernel lock has been
   * held since the stop: nobody stores to a clean page without the kernel.
   *
   * @param stored - files that it says nothing of, by the numbers of their objects
   */
  freeze(stored: ReadonlySet<number> = new Set()): void {
    const { control, memory } = this.#kernel;
    this.#atStop = this.#files()
      .filter(({ serial }) => !stored.has(serial))
      .map((file) => {
        const known = this.#known.get(file.serial);
        if (known?.changes !== objectChanges(memory, file.object)) return this.#read(file);
        for (const [i, frame] of known.frames.entries())
          if (bit(control.words, DIRTY_BITMAP, frame) === 1) known.hashes[i] = this.#hash(frame);
        return { ...known, path: file.path }; // it may have been renamed since
      });
  }

  /** What the image refers to, in the order of frames. */
  references(): Reference[] {
    const found = this.#atStop
      .flatMap(({ path, pages, frames, hashes }) => frames.map((pfn, i) => ({ pfn, path, page: pages[i]!, hash: hashes[i]! })))
      .sort((a, b) => a.pfn - b.pfn);
    const runs: { pfn: Pfn; path: string; page: number; hashes: bigint[] }[] = [];
    for (const { pfn, path, page, hash } of found) {
      const last = runs.at(-1);
      const next = last === undefined ? 0 : last.hashes.length;
      if (last?.path === path && last.pfn + next === pfn && last.page + next === page) last.hashes.push(hash);
      else runs.push({ pfn, path, page, hashes: [hash] });
    }
    return runs.map(({ hashes, ...run }) => ({ ...run, frames: hashes.length, hashes: BigUint64Array.from(hashes) }));
  }

  #files(): File[] {
    const { memory } = this.#kernel;
    return Array.from(walkHostInodes(memory), ({ object, host }) => ({
      object,
      serial: objectSerial(memory, object),
      path: host!.path,
    }));
  }

  /** As `freeze`. */
  #read(file: File): PagesOfFile {
    const pages = this.#empty(file);
    this.#list(file, pages, 0, Infinity);
    pages.hashes = pages.frames.map((frame) => this.#hash(frame));
    return pages;
  }

  #empty({ object, path }: File): PagesOfFile {
    return { path, changes: objectChanges(this.#kernel.memory, object), pages: [], frames: [], hashes: [] };
  }

  /** Adds clean pages from `from` on, at most so many; returns where to go on. Of a file that is closed by now there are none. */
  #list({ object, serial }: File, { pages, frames }: PagesOfFile, from: number, most: number): number {
    const { memory } = this.#kernel;
    if (objectSerial(memory, object) !== serial) return OBJECT_PAGES_MAX;
    const end = pages.length + most;
    for (const { page, frame } of walkCleanPages(memory, object, from)) {
      if (pages.length === end) return page;
      pages.push(page);
      frames.push(frame);
    }
    return OBJECT_PAGES_MAX;
  }

  #hash(frame: Pfn): bigint {
    return BigInt.asUintN(64, this.#kernel.core.checksum(frameAddress(frame), FRAME_BYTES));
  }
}

/**
 * After a restore: clean pages that were stored in the image are kept by the machine, for a file may have others in their place. They will be in
 * its next image, too. Everything is stopped.
 */
export function keepStored({ buddy, memory, objects }: KernelParts, references: Iterable<Reference>): void {
  const referred = new Set<Pfn>();
  for (const { pfn, frames } of references) for (let i = 0; i < frames; i++) referred.add(pfn + i);
  for (const { object } of walkHostInodes(memory)) {
    const stored = Array.from(walkCleanPages(memory, object)).filter(({ frame }) => !referred.has(frame));
    for (const { frame } of stored) buddy.setKind(frame, KIND_FILE_KEPT);
    if (stored.length > 0) objects.note(object);
  }
}

/** One that cannot be looked at is not known to have these pages. */
function isAsItWas({ path, device, number, size, modified }: HostIdentity): boolean {
  let now: BigIntStats | undefined;
  try {
    now = statSync(path, { bigint: true, throwIfNoEntry: false });
  } catch {
    return false;
  }
  return now?.dev === device && now.ino === number && now.size === BigInt(size) && now.mtimeNs === modified;
}
