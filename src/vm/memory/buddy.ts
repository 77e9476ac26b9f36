/**
 * The buddy allocator: arenas of 64 MiB, each with free lists of orders 0 to 10, all in guest memory. Lists, splits and merges are
 * loops of the core (assembly/blocks.ts).
 *
 * What must hold: the blocks of an arena tile it; a free block's buddy of the same order is not free (else they would
 * have merged); the saveable bitmap of the control area has a frame's bit set exactly if the frame lies in a used
 * block whose kind belongs to an image; a free frame is never missing (assembly/missing.ts). Callers hold the kernel lock.
 */
import { MAX_FRAMES, SAVEABLE_BITMAP } from "../../base/layout.js";
import type { Pfn } from "../../base/memory.js";
import type { Core } from "./core.js";
import {
  BLOCK_FREE,
  BLOCK_USED,
  FRAME_ENTRY_BYTES,
  FRAME_HEADER,
  FRAME_REFERENCES,
  isSaved,
  KERNEL_FREE_FRAMES,
  type KernelLayout,
  KIND_KERNEL_STATIC,
  kernelLayout,
  KIND_RESERVE,
  MAX_ORDER,
} from "./kernel-layout.js";
import { type PhysicalMemory, placeOfFrame } from "./physical.js";

/** Frames that are taken back at once from what a save has borrowed. */
const TAKEN_BACK = 64;

/** Splits [from, to) into the largest aligned blocks. */
export function tile(from: Pfn, to: Pfn): { frame: Pfn; order: number }[] {
  const blocks = [];
  let frame = from;
  while (frame < to) {
    let order = MAX_ORDER;
    while (frame % (1 << order) !== 0 || frame + (1 << order) > to) order--;
    blocks.push({ frame, order });
    frame += 1 << order;
  }
  return blocks;
}

export class BuddyAllocator {
  readonly #memory: PhysicalMemory;
  readonly #core: Core;
  readonly #layout: KernelLayout;

  /** Gives back memory of processes that have ended; false if there is none. */
  reclaim: () => boolean = () => false;

  constructor(memory: PhysicalMemory) {
    this.#memory = memory;
    const layout = (this.#layout = kernelLayout(memory.frames));
    this.#core = memory.core;
    this.#core.bindBlocks(layout.arenas, layout.arenaTable, layout.frameTable);
  }

  /** Frames that are free. */
  get freeFrames(): number {
    return this.#memory.load32(KERNEL_FREE_FRAMES);
  }

  /** Builds the tables of a machine that boots: the kernel's own frames used, all others free. */
  initialise(): void {
    const { frames, staticFrames } = this.#layout;
    this.#memory.store32(KERNEL_FREE_FRAMES, 0);
    for (const { frame, order } of tile(0, staticFrames)) this.#core.useBlock(frame, order, 0, KIND_KERNEL_STATIC);
    // Lists are last in, first out: the lowest block goes in last, so that memory fills from the bottom.
    for (const { frame, order } of tile(staticFrames, frames).toReversed()) this.#core.insertFree(frame, order);
  }

  /**
   * Allocates a block of 2^order frames; its contents are whatever was there. Returns its first frame, or undefined
   * if no block is large enough, and what a save has borrowed does not help either.
   */
  allocate(order: number, owner: number, kind: number): Pfn | undefined {
    let frame = this.allocateFree(order, owner, kind);
    if (frame === undefined && this.reclaim()) frame = this.allocateFree(order, owner, kind);
    if (frame !== undefined || !this.#canBeMade(order)) return frame;
    while (frame === undefined && this.#takeBack()) frame = this.allocateFree(order, owner, kind);
    return frame;
  }

  /** Whether what is free and what is lent make a block of this order: else nothing is to be taken back for it. */
  #canBeMade(order: number): boolean {
    if (order === 0) return true;
    const size = 1 << order;
    let from = 0; // where the run of such frames begins that ends at `frame`
    for (let frame = 0; order <= MAX_ORDER && frame < this.#layout.frames; frame += 1 << this.orderOf(frame)) {
      const usable = (this.#header(frame) & 0xff) === BLOCK_FREE || this.kindOf(frame) === KIND_RESERVE;
      if (!usable) from = frame + (1 << this.orderOf(frame));
      else if (Math.ceil(from / size) * size + size <= frame + (1 << this.orderOf(frame))) return true;
    }
    return false;
  }

  /**
   * Takes back some of the memory that is lent to a save or a resume (src/cow/reserve.ts); false if there is none. First what
   * is not used yet. Then what is: that gives up the save, for there will be no copy, rather than that a process ends for want
   * of memory.
   */
  #takeBack(): boolean {
    for (let taken = 0; taken < TAKEN_BACK; taken++) {
      let place = this.#core.takeBackPlace();
      if (place < 0) place = taken > 0 ? -1 : this.#core.takeBackHeldPlace();
      if (place < 0) return taken > 0;
      const frame = place - placeOfFrame(0);
      const head = this.headOf(frame);
      if (this.orderOf(head) > 0) this.split(head);
      this.free(frame);
    }
    return true;
  }

  /** As `allocate`, from what is free: for callers that can do without, and for the reserve itself. */
  allocateFree(order: number, owner: number, kind: number): Pfn | undefined {
    const frame = this.#core.allocateFree(order, owner, kind);
    return frame < 0 ? undefined : frame;
  }

  /** Takes parts of a free block: `take(frame, order)` says "all", "none" or "part" of it (S1.6). */
  carve(
    frame: Pfn,
    order: number,
    owner: number,
    kind: number,
    take: (frame: Pfn, order: number) => "all" | "none" | "part",
  ): void {
    const what = take(frame, order);
    if (what === "none") return;
    if (what === "all") {
      this.#core.removeFree(frame, order);
      this.#core.useBlock(frame, order, owner, kind);
      return;
    }
    this.#core.removeFree(frame, order);
    const half = order - 1;
    const buddy = frame + (1 << half);
    this.#core.insertFree(frame, half);
    this.#core.insertFree(buddy, half);
    this.carve(frame, half, owner, kind, take);
    this.carve(buddy, half, owner, kind, take);
  }

  /** Frees a used block, merging it with free buddies. */
  free(frame: Pfn): void {
    this.#core.freeBlock(frame);
  }

  // ---- used blocks that are shared, or held in parts ----

  /** First frame of the used block that a frame lies in. */
  headOf(frame: Pfn): Pfn {
    const head = this.#core.headOf(frame);
    if (head < 0) throw new RangeError(`frame ${frame} lies in no used block`);
    return head;
  }

  /** Makes a used block 2^order blocks of one frame each, with the same owner, kind and references. */
  split(head: Pfn): void {
    this.#core.splitBlock(head);
  }

  /** How many hold the block that begins here. */
  references(head: Pfn): number {
    return this.#memory.load32(this.#entry(head) + FRAME_REFERENCES);
  }

  /** One more holds it; its owner is not its only holder any more. */
  share(head: Pfn): void {
    this.#core.shareBlock(head);
  }

  /** One fewer holds it; the last one frees it. */
  release(head: Pfn): void {
    this.#core.releaseBlock(head);
  }

  setOwner(head: Pfn, owner: number): void {
    this.#core.setOwner(head, owner);
  }

  /** Changes what a used block is for; whether it is saved follows. */
  setKind(head: Pfn, kind: number): void {
    this.#core.setKind(head, kind);
  }

  orderOf(frame: Pfn): number {
    return (this.#header(frame) >>> 8) & 0xff;
  }

  kindOf(frame: Pfn): number {
    return this.#header(frame) >>> 16;
  }

  /** Makes the saveable bitmap agree with the frame table (after a restore). */
  rebuildSaveable(): void {
    const core = this.#core;
    core.clearBitmap(SAVEABLE_BITMAP);
    const end = Math.min(this.#layout.frames, MAX_FRAMES);
    let from = 0; // where a run of saved blocks begins that ends at `frame`
    for (let frame = 0; frame < end; ) {
      const next = frame + (1 << this.orderOf(frame));
      const saved = (this.#header(frame) & 0xff) === BLOCK_USED && isSaved(this.kindOf(frame));
      if (!saved) {
        core.setBits(SAVEABLE_BITMAP, from, frame - from);
        from = next;
      }
      frame = next;
    }
    core.setBits(SAVEABLE_BITMAP, from, end - from);
  }

  #header(frame: Pfn): number {
    return this.#memory.load32(this.#entry(frame) + FRAME_HEADER);
  }

  #entry(frame: Pfn): number {
    return this.#layout.frameTable + frame * FRAME_ENTRY_BYTES;
  }
}
