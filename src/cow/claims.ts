/**
 * The two lists, the cursor over them, and the queue: what plan, residual set, tail and resume share.
 *
 *     entry          0                                                          MAX_FRAMES
 *     LIST_FRAMES    whose bytes                                 | whose pre-image |
 *     LIST_PLACES    where they lie (host frames)                | where it goes   |
 *                    ^ cursor -> list length                      ^ queue: start, claimed to cursor, end
 *
 * An entry is claimed by one thread, which then has the frame and the place to itself. What may be claimed is opened here, by
 * the coordinator; claims are made in the core and by page loaders.
 *
 * Places of the queue may be the guest's own memory, borrowed. While a save streams, the queue holds the reserve, and nothing
 * claims from it but an allocator without memory: it takes the places back (BuddyAllocator.allocate). Once pre-images are
 * kept, both may meet, and a claim decides.
 */
import type { Control } from "../base/control.js";
import {
  FRAME_NONE,
  LIST_FRAMES,
  LIST_PLACES,
  MACHINE_COPIES,
  MACHINE_CURSOR,
  MACHINE_LIST_LENGTH,
  MACHINE_PREIMAGES,
  MACHINE_QUEUE_CURSOR,
  MACHINE_QUEUE_END,
  MACHINE_QUEUE_OVERFLOW,
  MACHINE_QUEUE_ROOM,
  MACHINE_QUEUE_START,
  MACHINE_TOUCHING,
  MAX_FRAMES,
  PLACE_NONE,
  QUEUE_SPARE,
} from "../base/layout.js";
import { placeOfFrame } from "../vm/memory/physical.js";

/** Entries [start, end) of the queue are claimed, pre-images among them; `refused` claims found no room. */
export interface QueueState {
  start: number;
  end: number;
  preimages: number;
  refused: number;
}

export class Claims {
  readonly frames: Int32Array;
  readonly places: Int32Array;
  readonly #control: Control;

  constructor(control: Control) {
    this.#control = control;
    this.frames = control.words.subarray(LIST_FRAMES >>> 2, (LIST_FRAMES >>> 2) + MAX_FRAMES);
    this.places = control.words.subarray(LIST_PLACES >>> 2, (LIST_PLACES >>> 2) + MAX_FRAMES);
  }

  /** Opens the entries [from, to) to claims. */
  open(from: number, to: number): void {
    this.#control.store(MACHINE_LIST_LENGTH, to);
    this.#control.store(MACHINE_CURSOR, from);
  }

  /** Makes entries [from, to) their own places: nobody changes them until they are written. */
  placeInOwnFrames(from: number, to: number): void {
    for (let i = from; i < to; i++) this.places[i] = placeOfFrame(this.frames[i]!);
  }

  /** Opens the entries [start, end) as a queue; each has its place already. The last QUEUE_SPARE are the coordinator's. */
  openQueue(start: number, end: number): void {
    this.frames.fill(FRAME_NONE, start, end);
    this.#setQueue(start, Math.max(start, end - QUEUE_SPARE), end);
    this.#control.store(MACHINE_QUEUE_OVERFLOW, 0);
    this.#control.store(MACHINE_PREIMAGES, 0);
  }

  /** No entry can be claimed or taken back any more. Caller holds the kernel lock, or everything is stopped. */
  closeQueue(): void {
    this.#control.store(MACHINE_COPIES, 0);
    this.touched();
    this.#setQueue(0, 0, 0);
  }

  get queue(): QueueState {
    return {
      start: this.#control.load(MACHINE_QUEUE_START),
      end: this.#control.load(MACHINE_QUEUE_CURSOR),
      preimages: this.#control.load(MACHINE_PREIMAGES),
      refused: this.#control.load(MACHINE_QUEUE_OVERFLOW),
    };
  }

  /** Visits the claimed entries that hold a frame's contents: those that went back to the guest are none. */
  visitQueued(visit: (frame: number, place: number) => void): void {
    const { start, end } = this.queue;
    for (let entry = start; entry < end; entry++) {
      if (this.places[entry] !== PLACE_NONE) visit(this.frames[entry]!, this.places[entry]!);
    }
  }

  // ---- the reserve, while it grows: places [MACHINE_QUEUE_CURSOR, MACHINE_QUEUE_END) ----

  /** How many places of the guest's memory are lent and have not been taken back. */
  get lent(): number {
    return this.#control.load(MACHINE_QUEUE_END) - this.#control.load(MACHINE_QUEUE_CURSOR);
  }

  /**
   * Adds `count` consecutive places, which nobody gets back before `touched` is called. Caller holds the kernel lock.
   */
  lend(first: number, count: number): void {
    const end = this.#control.load(MACHINE_QUEUE_END);
    for (let i = 0; i < count; i++) this.places[end + i] = first + i;
    this.#control.store(MACHINE_TOUCHING, end);
    this.#control.store(MACHINE_QUEUE_END, end + count);
  }

  /** What was lent last need not be touched any more. */
  touched(): void {
    this.#control.store(MACHINE_TOUCHING, FRAME_NONE);
  }

  /**
   * Lays out what is lent for a stop, with `pool` places more: the first `copies` of them at the start of the lists, the others at
   * their end, as a queue behind entry `listed`. Everything is stopped.
   *
   * @returns how many copies find a place
   */
  layOut(pool: { first: number; count: number }, copies: number, listed: number, limit: number): number {
    const lent = this.#collectLent();
    const all = Math.min(lent + pool.count, limit);
    const copied = Math.min(copies, all);
    // Copies take the pool first, pre-images the guest's memory: what is not used of it yet can be taken back.
    const copiesInPool = Math.min(copied, pool.count);
    const copiesInLent = copied - copiesInPool;
    const lentUsed = Math.min(lent, all - copiesInPool);
    const start = MAX_FRAMES - (all - copied);
    this.places.copyWithin(start, copiesInLent, lentUsed);
    this.places.copyWithin(copiesInPool, 0, copiesInLent);
    this.#placePool(0, copiesInPool, pool.first);
    this.#placePool(start + lentUsed - copiesInLent, MAX_FRAMES, pool.first + copiesInPool);
    this.openQueue(Math.max(start, listed), MAX_FRAMES);
    return copied;
  }

  /** Opens what is lent and `pool` places more as a queue of at most `limit` entries. Caller holds the kernel lock. */
  openLent(pool: { first: number; count: number }, limit: number): void {
    const lent = this.#collectLent();
    this.#placePool(lent, lent + pool.count, pool.first);
    this.openQueue(0, Math.min(lent + pool.count, limit));
  }

  /** Moves what is lent to the first entries; returns how many places that is. */
  #collectLent(): number {
    const { lent } = this;
    const from = this.#control.load(MACHINE_QUEUE_CURSOR);
    this.places.copyWithin(0, from, from + lent);
    return lent;
  }

  /** Fills entries [from, to) with consecutive places. */
  #placePool(from: number, to: number, first: number): void {
    for (let entry = from; entry < to; entry++) this.places[entry] = first + entry - from;
  }

  #setQueue(start: number, room: number, end: number): void {
    this.#control.store(MACHINE_QUEUE_START, start);
    this.#control.store(MACHINE_QUEUE_CURSOR, start);
    this.#control.store(MACHINE_QUEUE_ROOM, room);
    this.#control.store(MACHINE_QUEUE_END, end);
  }
}
