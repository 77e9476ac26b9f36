/**
 * Clean pages of files, which a save records by reference (S0.3): which page of which file each is, and its checksum as of the
 * stop.
 *
 * Most checksums are taken while the machine runs, after tracking is armed. A page that is stored to later bears a mark
 * then, and so does a frame that has become another page: at the stop only those that bear one are hashed. And only objects
 * whose pages have changed since (`objectChanges`) are walked once more: a pause does not grow with the page cache.
 *
 * A file that somebody else has changed does not have these pages any more: then they are saved.
 */
import { statSync } from "node:fs";
import { bit } from "../../base/control.js";
import type { Reference } from "../../base/host-file.js";
import { DIRTY_BITMAP, FRAME_BYTES } from "../../base/layout.js";
import type { Pfn, PhysicalAddress } from "../../base/memory.js";
import { KIND_FILE } from "../memory/kernel-layout.js";
import type { KernelParts } from "../tasks/parts.js";
import { objectChanges } from "../memory/memory-object.js";
import { frameAddress } from "../memory/physical.js";
import { type HostIdentity, walkHostInodes } from "./inode.js";
import { walkCleanPages } from "./open-files.js";

/** Clean pages of one file, as found at one moment. */
interface PagesOfFile {
  path: string;
  changes: number;
  pages: number[];
  frames: Pfn[];
  hashes: bigint[];
}

export class CleanPages {
  readonly #kernel: KernelParts;
  readonly #known = new Map<PhysicalAddress, PagesOfFile>();
  #atStop: PagesOfFile[] = [];

  constructor(kernel: KernelParts) {
    this.#kernel = kernel;
  }

  /** While the machine runs, after tracking is armed. */
  learn(): void {
    // The list is another at any moment; a page that moves meanwhile is put right at the stop.
    const files = this.#kernel.control.locked(() => this.#files());
    for (const { object, path } of files) this.#known.set(object, this.#read(object, path));
  }

  /**
   * Makes clean pages ones that are saved: all of them, for who wants an image without its files, or those of files that are
   * not what the machine last made or saw of them. Stores to them fault once more, and they stay so. Caller holds the kernel
   * lock, or everything is stopped.
   *
   * @returns paths of the files that have changed
   */
  makeSaved(which: "all" | "changed"): string[] {
    const { buddy, memory, objects } = this.#kernel;
    const changed: string[] = [];
    for (const { object, host } of walkHostInodes(memory)) {
      if (!isAsItWas(host!)) changed.push(host!.path);
      else if (which === "changed") continue;
      for (const { frame } of Array.from(walkCleanPages(memory, object))) {
        buddy.setKind(frame, KIND_FILE);
        objects.note(object);
      }
    }
    return changed;
  }

  /** At the stop: from now on `references` says what the pages are at this moment. */
  freeze(): void {
    const { control, memory } = this.#kernel;
    this.#atStop = this.#files().map(({ object, path }) => {
      const known = this.#known.get(object);
      if (known?.path !== path || known.changes !== objectChanges(memory, object)) return this.#read(object, path);
      for (const [i, frame] of known.frames.entries())
        if (bit(control.words, DIRTY_BITMAP, frame) === 1) known.hashes[i] = this.#hash(frame);
      return known;
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

  #files(): { object: PhysicalAddress; path: string }[] {
    return Array.from(walkHostInodes(this.#kernel.memory), ({ object, host }) => ({ object, path: host!.path }));
  }

  #read(object: PhysicalAddress, path: string): PagesOfFile {
    const { memory } = this.#kernel;
    const file: PagesOfFile = { path, changes: objectChanges(memory, object), pages: [], frames: [], hashes: [] };
    for (const { page, frame } of walkCleanPages(memory, object)) {
      if (frame >= memory.frames) continue; // it moves; the stop puts it right
      file.pages.push(page);
      file.frames.push(frame);
      file.hashes.push(this.#hash(frame));
    }
    return file;
  }

  #hash(frame: Pfn): bigint {
    return BigInt.asUintN(64, this.#kernel.core.checksum(frameAddress(frame), FRAME_BYTES));
  }
}

function isAsItWas({ path, device, number, size, modified }: HostIdentity): boolean {
  const now = statSync(path, { bigint: true, throwIfNoEntry: false });
  return now?.dev === device && now.ino === number && now.size === BigInt(size) && now.mtimeNs === modified;
}
