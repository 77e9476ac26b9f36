/**
 * Clean pages of files, which a save records by reference (S0.3): which page of which file each is, and its checksum as of the
 * stop.
 *
 * Most checksums are taken while the machine runs, after tracking is armed. A page that is stored to later bears a mark
 * then, and so does a frame that has become another page: at the stop only those that bear one are hashed.
 */
import { bit } from "../../base/control.js";
import type { Reference } from "../../base/host-file.js";
import { DIRTY_BITMAP, FRAME_BYTES } from "../../base/layout.js";
import type { Pfn } from "../../base/memory.js";
import { KIND_FILE } from "../kernel-layout.js";
import { walkCleanPages } from "./open-files.js";
import type { Kernel } from "../kernel.js";
import { frameAddress } from "../physical.js";

export class CleanPages {
  readonly #kernel: Kernel;
  readonly #sums = new Map<Pfn, bigint>();

  constructor(kernel: Kernel) {
    this.#kernel = kernel;
  }

  /** While the machine runs. What is found wrong because it moves is put right at the stop: a checksum is of a frame, whosever. */
  learn(): void {
    for (const { frame } of walkCleanPages(this.#kernel.memory)) {
      if (frame < this.#kernel.memory.frames) this.#sums.set(frame, this.#hash(frame));
    }
  }

  /**
   * Makes them pages that are saved, for who wants an image without its files. Stores to them fault once more, and they stay so.
   * Caller holds the kernel lock, or everything is stopped.
   */
  makeSaved(): void {
    for (const { frame } of Array.from(walkCleanPages(this.#kernel.memory))) this.#kernel.buddy.setKind(frame, KIND_FILE);
  }

  /** At the stop: what the image refers to, in the order of frames. */
  references(): Reference[] {
    const { control, memory } = this.#kernel;
    const pages = [...walkCleanPages(memory)].sort((a, b) => a.frame - b.frame);
    const runs: { pfn: Pfn; path: string; page: number; hashes: bigint[] }[] = [];
    for (const { frame, page, path } of pages) {
      const known = bit(control.words, DIRTY_BITMAP, frame) === 0 ? this.#sums.get(frame) : undefined;
      const hash = known ?? this.#hash(frame);
      const last = runs.at(-1);
      const next = last === undefined ? 0 : last.hashes.length;
      if (last !== undefined && last.path === path && last.pfn + next === frame && last.page + next === page)
        last.hashes.push(hash);
      else runs.push({ pfn: frame, path, page, hashes: [hash] });
    }
    return runs.map(({ hashes, ...run }) => ({ ...run, frames: hashes.length, hashes: BigUint64Array.from(hashes) }));
  }

  #hash(frame: Pfn): bigint {
    return BigInt.asUintN(64, this.#kernel.core.checksum(frameAddress(frame), FRAME_BYTES));
  }
}
