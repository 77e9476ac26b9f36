/**
 * The list, the queue, and the cursor over them: what plan, residual set, tail and resume share.
 *
 *     entry          0                                   MAX_FRAMES
 *     LIST_FRAMES    frames to be written                           the plan; later the residual set
 *
 *     QUEUE_FRAMES   whose bytes      |  nobody's yet   |           copies, pre-images; at a resume what is loaded too late
 *     QUEUE_PLACES   where they lie (host frames)       |
 *                    ^ start          ^ cursor          ^ end
 *
 * An entry is claimed by one thread, which then has the frame and the place to itself. What may be claimed is opened here, by
 * the coordinator; claims are made in the core and by page loaders.
 *
 * The pool is a ring: a page writer of a tail that has saved what a place of it holds makes the place that of a new entry, at the end.
 *
 * Places of the queue may be the guest's own memory, borrowed. While a save streams, the queue is the reserve, and nothing
 * claims from it but an allocator without memory: it takes the places back (BuddyAllocator.allocate). Once pre-images are
 * kept, both may meet, and a claim decides.
 */
import type { Control } from "../base/control.js";
import {
  FRAME_NONE,
  LIST_FRAMES,
  MACHINE_CURSOR,
  MACHINE_LIST_LENGTH,
  MACHINE_PREIMAGES,
  MACHINE_QUEUE_CURSOR,
  MACHINE_QUEUE_END,
  MACHINE_QUEUE_OVERFLOW,
  MACHINE_QUEUE_ROOM,
  MACHINE_QUEUE_SAVED,
  MACHINE_QUEUE_SAVER,
  MACHINE_QUEUE_START,
  MACHINE_TOUCHING,
  MAX_FRAMES,
  PLACE_NONE,
  QUEUE_FRAMES,
  QUEUE_PLACES,
  QUEUE_SPARE,
  SAVED_BITMAP,
} from "../base/layout.js";

/** Entries [start, end) of the queue are claimed, pre-images among them; `refused` claims found no room. */
export interface QueueState {
  start: number;
  end: number;
  preimages: number;
  refused: number;
}

export class Claims {
  /** LIST_FRAMES. */
  readonly list: Int32Array;
  /** QUEUE_FRAMES and QUEUE_PLACES. */
  readonly frames: Int32Array;
  readonly places: Int32Array;
  readonly #control: Control;

  constructor(control: Control) {
    const column = (at: number) => control.words.subarray(at >>> 2, (at >>> 2) + MAX_FRAMES);
    this.#control = control;
    this.list = column(LIST_FRAMES);
    this.frames = column(QUEUE_FRAMES);
    this.places = column(QUEUE_PLACES);
  }

  /** Opens the entries [from, to), of the list or of the queue, to claims. */
  open(from: number, to: number): void {
    this.#control.store(MACHINE_LIST_LENGTH, to);
    this.#control.store(MACHINE_CURSOR, from);
  }

  // ---- the reserve, while it grows: places [MACHINE_QUEUE_CURSOR, MACHINE_QUEUE_END) ----

  /** Places that nobody has claimed or taken back. */
  get unclaimed(): number {
    return this.#control.load(MACHINE_QUEUE_END) - this.#control.load(MACHINE_QUEUE_CURSOR);
  }

  /** How many places can still be lent, if `pool` more are to follow. Those that were taken back count: their entries are used up. */
  room(pool: number): number {
    return MAX_FRAMES - pool - this.#control.load(MACHINE_QUEUE_END);
  }

  /**
   * Adds `count` consecutive places, which nobody gets back before `touched` is called. Caller holds the kernel lock.
   */
  lend(first: number, count: number): void {
    const end = this.#control.load(MACHINE_QUEUE_END);
    this.#place(end, first, count);
    this.#control.store(MACHINE_TOUCHING, end);
    this.#control.store(MACHINE_QUEUE_END, end + count);
  }

  /** What was lent last need not be touched any more. */
  touched(): void {
    this.#control.store(MACHINE_TOUCHING, FRAME_NONE);
  }

  // ---- the queue ----

  /**
   * Opens what is lent and `pool` places more, but at most `limit` of them, as a queue. The last QUEUE_SPARE are the coordinator's. Takes as
   * long whatever is lent. Caller holds the kernel lock, or everything is stopped.
   */
  openQueue(pool: { first: number; count: number }, limit: number): void {
    const start = this.#control.load(MACHINE_QUEUE_CURSOR);
    const lentTo = this.#control.load(MACHINE_QUEUE_END);
    this.#place(lentTo, pool.first, pool.count);
    const end = Math.min(lentTo + pool.count, start + limit);
    this.#control.store(MACHINE_QUEUE_OVERFLOW, 0);
    this.#control.store(MACHINE_PREIMAGES, 0);
    this.#control.store(MACHINE_QUEUE_START, start);
    this.#control.store(MACHINE_QUEUE_SAVED, lentTo);
    this.#control.store(MACHINE_QUEUE_SAVER, 0);
    this.#control.store(MACHINE_QUEUE_ROOM, Math.max(start, end - QUEUE_SPARE));
    this.#control.store(MACHINE_QUEUE_END, end);
  }

  /** Queues the first `count` frames of the list, to be copied to their places now. Everything is stopped. */
  queueCopies(count: number): void {
    const { start, end } = this.queue;
    this.frames.set(this.list.subarray(0, count), end);
    this.#control.store(MACHINE_QUEUE_CURSOR, end + count);
    this.open(start, end + count);
    for (const frame of this.list.subarray(0, count))
      this.#control.words[(SAVED_BITMAP >>> 2) + (frame >>> 5)]! |= 1 << (frame & 31);
  }

  /** No entry can be claimed or taken back any more. Caller holds the kernel lock, or everything is stopped. */
  closeQueue(): void {
    this.touched();
    for (const word of [MACHINE_QUEUE_START, MACHINE_QUEUE_CURSOR, MACHINE_QUEUE_ROOM, MACHINE_QUEUE_END])
      this.#control.store(word, 0);
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

  /** Fills entries from `entry` on with consecutive places, which hold nothing yet. */
  #place(entry: number, first: number, count: number): void {
    for (let i = 0; i < count; i++) this.places[entry + i] = first + i;
    this.frames.fill(FRAME_NONE, entry, entry + count);
  }
}
