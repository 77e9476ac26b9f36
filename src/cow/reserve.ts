/**
 * The reserve: memory for the atomic copy and for what an atomic restore queues (S1.9).
 *
 * How much will be needed is not known until the machine stops. So it is reserved from an estimate and grows with
 * the count of marks while the image streams. It is guest memory, from the buddy allocator, of a kind that is not
 * saved: at most half of what the guest has free, or all of it if everything is to be copied. It is lent only: a process that asks for memory when nothing is free
 * takes places back (BuddyAllocator.allocate), so that none runs out of memory because of a save or a resume. Where the
 * reserve is too small, the pool of the control area follows, which is there also when the guest has nothing free. What finds
 * no place is protected until it is written from where it is (a snapshot), or written while the machine stays stopped.
 */
import { FRAME_SHIFT, KEPT_BITMAP, PLANNED_BITMAP, POOL_BYTES, SAVEABLE_BITMAP } from "../base/layout.js";
import type { Pfn } from "../base/memory.js";
import { KIND_RESERVE } from "../vm/memory/kernel-layout.js";
import type { Kernel } from "../vm/kernel.js";
import { placeOfFrame, POOL_PLACE } from "../vm/memory/physical.js";
import { blocksOfKind } from "../vm/views/walker.js";
import type { Claims } from "./claims.js";

const LARGEST_ORDER = 9;

export class Reserve {
  readonly #kernel: Kernel;
  readonly #claims: Claims;
  /** Blocks of guest memory that were taken; the guest may have taken back all or part of each. */
  readonly #blocks: { frame: Pfn; order: number }[] = [];
  readonly #pool: { first: number; count: number };
  readonly #limit: number | undefined;
  /** How much of what the guest has free it may take. */
  #share = 0.5;
  readonly #from: "guest" | "pool";
  /** How many places of the pool are used. */
  #pooled = 0;

  /**
   * @param poolOffset - bytes at the start of the pool that are used for I/O staging
   * @param limit - most places there may be, for tests of a reserve that is too small
   * @param from - the guest's memory and then the pool, or the pool alone
   */
  constructor(
    kernel: Kernel,
    claims: Claims,
    { poolOffset = 0, limit, from = "guest" }: { poolOffset?: number; limit?: number | undefined; from?: "guest" | "pool" } = {},
  ) {
    this.#kernel = kernel;
    this.#claims = claims;
    this.#limit = limit;
    this.#from = from;
    this.#pool = { first: POOL_PLACE + (poolOffset >>> FRAME_SHIFT), count: (POOL_BYTES - poolOffset) >>> FRAME_SHIFT };
    kernel.control.locked(() => claims.closeQueue());
  }

  /** Places that there are. */
  get frames(): number {
    return this.#claims.unclaimed + this.#pooled;
  }

  /**
   * Grows to what a copy may need, before anything is known: one frame in 64 of what the machine has in use, and some for the
   * kernel. Returns that estimate.
   */
  growToEstimate(): number {
    const estimate = this.#limit ?? 256 + Math.ceil(this.#kernel.core.countBits(SAVEABLE_BITMAP) / 64);
    this.grow(estimate);
    return estimate;
  }

  /**
   * Grows to a place for every frame in use, and may take all that the guest has free for it. Returns the frames in use; when the
   * queue is opened, it grows once more if there are more by then.
   */
  growToAll(): number {
    this.#share = 1;
    const used = this.#kernel.core.countBits(SAVEABLE_BITMAP);
    this.grow(Math.min(this.#limit ?? Infinity, used + 256));
    return used;
  }

  /**
   * The pool alone, all of it: what is reserved does not follow the machine's size, and a machine that has no frame free can be
   * saved. Returns its places.
   */
  usePool(): number {
    this.#pooled = Math.min(this.#limit ?? Infinity, this.#pool.count);
    for (let i = 0; i < this.#pooled; i++) this.#kernel.core.touch(this.#pool.first + i);
    return this.#pooled;
  }

  /** Follows the number of frames that an atomic copy would take now, and some more. */
  growToResidual(): void {
    if (this.#limit === undefined) this.grow(Math.ceil(this.#kernel.core.countResidual() * 1.125) + 256);
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
      this.#claims.touched();
    }
    const before = this.#pooled;
    this.#takePool(frames);
    for (let i = before; i < this.#pooled; i++) this.#kernel.core.touch(this.#pool.first + i);
  }

  /**
   * Grows without touching. The caller holds the kernel lock: what is free when it looks is still free when it is taken.
   */
  growLocked(frames: number): void {
    while (this.frames < frames && this.#takeBlock(frames - this.frames) !== undefined);
    this.#claims.touched();
    this.#takePool(frames);
  }

  #takePool(frames: number): void {
    this.#pooled = Math.min(this.#pool.count, this.#pooled + Math.max(0, frames - this.frames));
  }

  /** Takes a block of guest memory for at most about `wanted` frames. Caller holds the kernel lock. */
  #takeBlock(wanted: number): { frame: Pfn; order: number } | undefined {
    const { buddy } = this.#kernel;
    if (this.#from === "pool") return undefined;
    const lent = this.#claims.unclaimed;
    const allowed = Math.min(this.#share * (buddy.freeFrames + lent) - lent, this.#claims.room(this.#pool.count));
    for (let order = Math.min(LARGEST_ORDER, Math.ceil(Math.log2(wanted))); order >= 0; order--) {
      const frame = 1 << order <= allowed ? buddy.allocateFree(order, 0, KIND_RESERVE) : undefined;
      if (frame === undefined) continue;
      this.#blocks.push({ frame, order });
      // What is stored there from now on is no store of the machine's, and bears no mark.
      for (const bitmap of [KEPT_BITMAP, PLANNED_BITMAP]) this.#kernel.core.clearBits(bitmap, frame, 1 << order);
      this.#claims.lend(placeOfFrame(frame), 1 << order);
      return { frame, order };
    }
    return undefined;
  }

  /** Opens all places as a queue, at most `limit`. Caller holds the kernel lock, or everything is stopped. */
  openQueue(limit: number = Infinity): void {
    if (this.#share === 1) this.growLocked(Math.min(this.#limit ?? Infinity, this.#kernel.core.countBits(SAVEABLE_BITMAP)));
    this.#claims.openQueue({ first: this.#pool.first, count: this.#pooled }, Math.min(limit, this.#limit ?? Infinity));
  }

  /** Gives the guest its memory back. Nobody is at work on a place any more. */
  release(): void {
    const { control, buddy } = this.#kernel;
    control.locked(() => this.#claims.closeQueue());
    for (const { frame, order } of this.#blocks.splice(0)) {
      control.locked(() => {
        for (let part = frame; part < frame + (1 << order); ) {
          const left = buddy.kindOf(part) === KIND_RESERVE; // else the guest took it back
          const frames = left ? 1 << buddy.orderOf(part) : 1;
          if (left) buddy.free(part);
          part += frames;
        }
      });
    }
    this.#pooled = 0;
  }
}

/** Frees the reserve that a saved machine had when its image was taken: its snapshotter is gone (S1.1). Returns its frames. */
export function freeOldReserves(kernel: Kernel): number {
  const free = kernel.buddy.freeFrames;
  for (const frame of blocksOfKind(kernel.memory, KIND_RESERVE)) kernel.buddy.free(frame);
  return kernel.buddy.freeFrames - free;
}
