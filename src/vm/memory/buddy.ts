/**
 * The buddy allocator: arenas of 64 MiB, each with free lists of orders 0 to 10, all in guest memory.
 *
 * What must hold: the blocks of an arena tile it; a free block's buddy of the same order is not free (else they would
 * have merged); the saveable bitmap of the control area has a frame's bit set exactly if the frame lies in a used
 * block whose kind belongs to an image; a free frame is never missing (assembly/missing.ts). Callers hold the kernel lock.
 */
import { MAX_FRAMES, SAVEABLE_BITMAP } from "../../base/layout.js";
import type { Pfn } from "../../base/memory.js";
import {
  ARENA_BYTES,
  ARENA_FRAMES,
  ARENA_FREE_FRAMES,
  ARENA_HEADS,
  BLOCK_FREE,
  BLOCK_TAIL,
  BLOCK_USED,
  FRAME_ENTRY_BYTES,
  FRAME_HEADER,
  FRAME_NEXT,
  FRAME_OWNER,
  FRAME_PREVIOUS,
  FRAME_REFERENCES,
  isSaved,
  KERNEL_FREE_FRAMES,
  KIND_KERNEL_STATIC,
  kernelLayout,
  KIND_RESERVE,
  MAX_ORDER,
  type KernelLayout,
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
  readonly #layout: KernelLayout;

  constructor(memory: PhysicalMemory) {
    this.#memory = memory;
    this.#layout = kernelLayout(memory.frames);
  }

  /** Frames that are free. */
  get freeFrames(): number {
    return this.#memory.load32(KERNEL_FREE_FRAMES);
  }

  /** Builds the tables of a machine that boots: the kernel's own frames used, all others free. */
  initialise(): void {
    const { frames, staticFrames } = this.#layout;
    this.#memory.store32(KERNEL_FREE_FRAMES, 0);
    for (const { frame, order } of tile(0, staticFrames)) this.#use(frame, order, 0, KIND_KERNEL_STATIC);
    // Lists are last in, first out: the lowest block goes in last, so that memory fills from the bottom.
    for (const { frame, order } of tile(staticFrames, frames).toReversed()) this.#insert(frame, order);
  }

  /**
   * Allocates a block of 2^order frames; its contents are whatever was there. Returns its first frame, or undefined
   * if no block is large enough, and what a save has borrowed does not help either.
   */
  allocate(order: number, owner: number, kind: number): Pfn | undefined {
    let frame = this.allocateFree(order, owner, kind);
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
      const { core } = this.#memory;
      let place = core.takeBackPlace();
      if (place < 0) place = taken > 0 ? -1 : core.takeBackHeldPlace();
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
    for (let arena = 0; arena < this.#layout.arenas; arena++) {
      if (this.#memory.load32(this.#arena(arena) + ARENA_FREE_FRAMES) < 1 << order) continue;
      for (let larger = order; larger <= MAX_ORDER; larger++) {
        const frame = this.#memory.load32(this.#head(arena, larger)) - 1;
        if (frame < 0) continue;
        this.#remove(frame, larger);
        this.#splitTo(frame, larger, order);
        this.#use(frame, order, owner, kind);
        return frame;
      }
    }
    return undefined;
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
      this.#remove(frame, order);
      this.#use(frame, order, owner, kind);
      return;
    }
    this.#remove(frame, order);
    const half = order - 1;
    const buddy = frame + (1 << half);
    this.#insert(frame, half);
    this.#insert(buddy, half);
    this.carve(frame, half, owner, kind, take);
    this.carve(buddy, half, owner, kind, take);
  }

  /** Frees a used block, merging it with free buddies. */
  free(frame: Pfn): void {
    let order = this.orderOf(frame);
    this.#memory.core.forgetMissing(frame, 1 << order);
    if (isSaved(this.kindOf(frame))) this.#memory.core.clearBits(SAVEABLE_BITMAP, frame, 1 << order);
    let first = frame;
    this.#setHeader(first, BLOCK_TAIL, 0, 0);
    while (order < MAX_ORDER) {
      const buddy = first ^ (1 << order);
      if (buddy + (1 << order) > this.#layout.frames) break;
      if ((this.#header(buddy) & 0xffff) !== (BLOCK_FREE | (order << 8))) break;
      this.#remove(buddy, order);
      first = Math.min(first, buddy);
      order++;
    }
    this.#insert(first, order);
  }

  // ---- used blocks that are shared, or held in parts ----

  /** First frame of the used block that a frame lies in. */
  headOf(frame: Pfn): Pfn {
    for (let order = 0; order <= MAX_ORDER; order++) {
      const head = frame - (frame % (1 << order));
      const header = this.#header(head);
      if ((header & 0xff) === BLOCK_USED && ((header >>> 8) & 0xff) >= order) return head;
    }
    throw new RangeError(`frame ${frame} lies in no used block`);
  }

  /** Makes a used block 2^order blocks of one frame each, with the same owner, kind and references. */
  split(head: Pfn): void {
    const order = this.orderOf(head);
    const kind = this.kindOf(head);
    const owner = this.#memory.load32(this.#entry(head) + FRAME_OWNER);
    const references = this.references(head);
    for (let frame = head; order > 0 && frame < head + (1 << order); frame++) {
      this.#setHeader(frame, BLOCK_USED, 0, kind);
      this.#memory.store32(this.#entry(frame) + FRAME_OWNER, owner);
      this.#memory.store32(this.#entry(frame) + FRAME_REFERENCES, references);
    }
  }

  /** How many hold the block that begins here. */
  references(head: Pfn): number {
    return this.#memory.load32(this.#entry(head) + FRAME_REFERENCES);
  }

  /** One more holds it; who was its owner is not its only holder any more. */
  share(head: Pfn): void {
    this.#memory.store32(this.#entry(head) + FRAME_REFERENCES, this.references(head) + 1);
    this.setOwner(head, 0);
  }

  /** One fewer holds it; the last one frees it. */
  release(head: Pfn): void {
    const references = this.references(head) - 1;
    if (references === 0) this.free(head);
    else this.#memory.store32(this.#entry(head) + FRAME_REFERENCES, references);
  }

  setOwner(head: Pfn, owner: number): void {
    this.#memory.store32(this.#entry(head) + FRAME_OWNER, owner);
  }

  /** Changes what a used block is for; whether it is saved follows. */
  setKind(head: Pfn, kind: number): void {
    const order = this.orderOf(head);
    this.#setHeader(head, BLOCK_USED, order, kind);
    if (isSaved(kind)) this.#memory.core.setBits(SAVEABLE_BITMAP, head, 1 << order);
    else this.#memory.core.clearBits(SAVEABLE_BITMAP, head, 1 << order);
  }

  orderOf(frame: Pfn): number {
    return (this.#header(frame) >>> 8) & 0xff;
  }

  kindOf(frame: Pfn): number {
    return this.#header(frame) >>> 16;
  }

  /** Makes the saveable bitmap agree with the frame table (after a restore). */
  rebuildSaveable(): void {
    const { core } = this.#memory;
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

  #splitTo(frame: Pfn, from: number, to: number): void {
    for (let order = from - 1; order >= to; order--) this.#insert(frame + (1 << order), order);
  }

  #use(frame: Pfn, order: number, owner: number, kind: number): void {
    this.#setHeader(frame, BLOCK_USED, order, kind);
    this.#memory.store32(this.#entry(frame) + FRAME_OWNER, owner);
    this.#memory.store32(this.#entry(frame) + FRAME_REFERENCES, 1);
    if (isSaved(kind)) this.#memory.core.setBits(SAVEABLE_BITMAP, frame, 1 << order);
  }

  #insert(frame: Pfn, order: number): void {
    const arena = Math.floor(frame / ARENA_FRAMES);
    const head = this.#head(arena, order);
    const next = this.#memory.load32(head);
    this.#setHeader(frame, BLOCK_FREE, order, 0);
    this.#memory.store32(this.#entry(frame) + FRAME_OWNER, 0);
    this.#memory.store32(this.#entry(frame) + FRAME_NEXT, next);
    this.#memory.store32(this.#entry(frame) + FRAME_PREVIOUS, 0);
    if (next !== 0) this.#memory.store32(this.#entry(next - 1) + FRAME_PREVIOUS, frame + 1);
    this.#memory.store32(head, frame + 1);
    this.#countFree(arena, 1 << order);
  }

  #remove(frame: Pfn, order: number): void {
    const arena = Math.floor(frame / ARENA_FRAMES);
    const next = this.#memory.load32(this.#entry(frame) + FRAME_NEXT);
    const previous = this.#memory.load32(this.#entry(frame) + FRAME_PREVIOUS);
    if (next !== 0) this.#memory.store32(this.#entry(next - 1) + FRAME_PREVIOUS, previous);
    if (previous !== 0) this.#memory.store32(this.#entry(previous - 1) + FRAME_NEXT, next);
    else this.#memory.store32(this.#head(arena, order), next);
    this.#setHeader(frame, BLOCK_TAIL, 0, 0);
    this.#countFree(arena, -(1 << order));
  }

  #countFree(arena: number, frames: number): void {
    const word = this.#arena(arena) + ARENA_FREE_FRAMES;
    this.#memory.store32(word, this.#memory.load32(word) + frames);
    this.#memory.store32(KERNEL_FREE_FRAMES, this.freeFrames + frames);
  }

  #header(frame: Pfn): number {
    return this.#memory.load32(this.#entry(frame) + FRAME_HEADER);
  }

  #setHeader(frame: Pfn, state: number, order: number, kind: number): void {
    this.#memory.store32(this.#entry(frame) + FRAME_HEADER, state | (order << 8) | (kind << 16));
  }

  #entry(frame: Pfn): number {
    return this.#layout.frameTable + frame * FRAME_ENTRY_BYTES;
  }

  #arena(arena: number): number {
    return this.#layout.arenaTable + arena * ARENA_BYTES;
  }

  #head(arena: number, order: number): number {
    return this.#arena(arena) + ARENA_HEADS + order * 4;
  }
}
