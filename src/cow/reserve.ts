/**
 * The reserve: memory for the atomic copy and for what an atomic restore queues (S1.9).
 *
 * How much will be needed is not known until the machine stops. So it is reserved from an estimate and grows with
 * the count of marks while the image streams. It is guest memory, from the buddy allocator, of a kind that is not
 * saved: at most half of what the guest has free, so that no process runs out of memory because of a save. When that
 * is used up the pool of the control area follows, which is there also when the guest has nothing free. What finds no
 * place is written from where it is, while the machine stays stopped: the image is as exact, the pause longer, and the
 * report says so.
 */
import { FRAME_SHIFT, POOL_BASE, POOL_BYTES } from "../base/layout.js";
import type { Pfn } from "../base/memory.js";
import { KIND_RESERVE } from "../vm/memory/kernel-layout.js";
import type { Kernel } from "../vm/kernel.js";
import { placeOfFrame } from "../vm/memory/physical.js";
import { blocksOfKind } from "../vm/views/walker.js";

const LARGEST_ORDER = 9;

export class Reserve {
  readonly #kernel: Kernel;
  readonly #blocks: { frame: Pfn; order: number }[] = [];
  readonly #pool: { first: number; count: number };
  #blockFrames = 0;
  #poolFrames = 0;

  /** @param poolOffset - bytes at the start of the pool that are used for I/O staging */
  constructor(kernel: Kernel, poolOffset: number) {
    this.#kernel = kernel;
    this.#pool = { first: (POOL_BASE + poolOffset) >>> FRAME_SHIFT, count: (POOL_BYTES - poolOffset) >>> FRAME_SHIFT };
  }

  /** Places that there are. */
  get frames(): number {
    return this.#blockFrames + this.#poolFrames;
  }

  /**
   * Grows to at least `frames` places as far as it can, and touches them, so that the pause does not pay for the host's first
   * touch.
   */
  grow(frames: number): void {
    while (this.frames < frames) {
      const block = this.#kernel.control.locked(() => this.#takeBlock(frames - this.frames));
      if (block === undefined) break;
      for (let i = 0; i < 1 << block.order; i++) this.#kernel.core.touch(placeOfFrame(block.frame + i));
    }
    const before = this.#poolFrames;
    this.#takePool(frames);
    for (let i = before; i < this.#poolFrames; i++) this.#kernel.core.touch(this.#pool.first + i);
  }

  /**
   * Grows without touching. The caller holds the kernel lock: what is free when it looks is still free when it is taken.
   */
  growLocked(frames: number): void {
    while (this.frames < frames && this.#takeBlock(frames - this.frames) !== undefined);
    this.#takePool(frames);
  }

  #takePool(frames: number): void {
    this.#poolFrames = Math.min(this.#pool.count, this.#poolFrames + Math.max(0, frames - this.frames));
  }

  /** Takes a block of guest memory for at most about `wanted` frames. Caller holds the kernel lock. */
  #takeBlock(wanted: number): { frame: Pfn; order: number } | undefined {
    const { buddy } = this.#kernel;
    const allowed = buddy.freeFrames / 2 - this.#blockFrames / 2;
    for (let order = Math.min(LARGEST_ORDER, Math.ceil(Math.log2(wanted))); order >= 0; order--) {
      const frame = 1 << order <= allowed ? buddy.allocate(order, 0, KIND_RESERVE) : undefined;
      if (frame === undefined) continue;
      this.#blocks.push({ frame, order });
      this.#blockFrames += 1 << order;
      return { frame, order };
    }
    return undefined;
  }

  /**
   * Writes places into a list (host frame numbers), up to `length` entries and without the first `skip` places; returns
   * how many there were.
   */
  list(places: Int32Array, length: number, skip = 0): number {
    let n = -skip;
    const put = (place: number): void => {
      if (n >= 0) places[n] = place;
      n++;
    };
    for (const { frame, order } of this.#blocks) {
      for (let i = 0; i < 1 << order && n < length; i++) put(placeOfFrame(frame + i));
    }
    for (let i = 0; i < this.#poolFrames && n < length; i++) put(this.#pool.first + i);
    return Math.max(0, n);
  }

  /** Gives the guest its memory back. */
  release(): void {
    for (const { frame } of this.#blocks.splice(0)) this.#kernel.control.locked(() => this.#kernel.buddy.free(frame));
    this.#blockFrames = 0;
    this.#poolFrames = 0;
  }
}

/** Frees the reserve that a saved machine had when its image was taken: its snapshotter is gone (S1.1). Returns its frames. */
export function freeOldReserves(kernel: Kernel): number {
  const free = kernel.buddy.freeFrames;
  for (const frame of blocksOfKind(kernel.memory, KIND_RESERVE)) kernel.buddy.free(frame);
  return kernel.buddy.freeFrames - free;
}
