/**
 * Extents: which frames of an image are where. Typed arrays in shared memory, in order of frame number.
 */
import type { Pfn } from "../base/memory.js";

/** `kind` of an extent in the catalogue. Frames of a hole, and those in no extent, are zeros; the others have bytes somewhere. */
export const KIND_CHUNK = 0;
export const KIND_FILL = 1;
export const KIND_REFERENCE = 2;
export const KIND_PARENT = 3;
export const KIND_HOLE = 4;

/**
 * A run of consecutive frames: in consecutive places of one chunk, all filled with one word, pages of a file (references.ts), or as
 * the parent has them (chain.ts).
 */
export type Extent =
  | { pfn: Pfn; frames: number; chunk: number; first: number }
  | { pfn: Pfn; frames: number; chunk: null; fill: bigint }
  | { pfn: Pfn; frames: number; chunk: "file"; reference: number }
  | { pfn: Pfn; frames: number; chunk: "parent" };

/** `chunk` of an extent whose frames are all filled with one word. */
export const SAME_FILLED = -1;
/** `chunk` of an extent whose frames are pages of a file of the host; `fill` is the number of the reference. */
export const REFERENCED = -2;
/** `chunk` of an extent whose frames are as the parent has them. */
export const OF_PARENT = -3;

/**
 * Extents packed into typed arrays, sorted by frame number: a machine of 4 GiB can have a million of them.
 *
 *     index   pfn   frames  chunk  first  fill
 *       0      16      3      7     200     -      frames 16, 17, 18 are places 200, 201, 202 of chunk 7
 *       1      19    100     -1      -      0      frames 19 to 118 are zero
 *       2     300      1      2       0     -      frame 300 is place 0 of chunk 2; 119 to 299 are not in the image
 */
export type ExtentColumns = Pick<ExtentTable, "length" | "pfn" | "frames" | "chunk" | "first" | "fill">;

export class ExtentTable implements Iterable<Extent> {
  readonly length: number;
  readonly pfn: Uint32Array;
  readonly frames: Uint32Array;
  /** The chunk's id (in a chain: its number among those of all images), or SAME_FILLED, REFERENCED, OF_PARENT. */
  readonly chunk: Int32Array;
  /** Place in the chunk of the first frame. */
  readonly first: Uint16Array;
  /** The word that fills every frame of the extent (unsigned). */
  readonly fill: BigUint64Array;

  /** A table with room for `length` extents, for a reader to fill in order of pfn. */
  constructor(length: number) {
    this.length = length;
    // In shared memory: handing the columns to another thread copies nothing.
    this.pfn = sharedWords(length);
    this.frames = sharedWords(length);
    this.chunk = new Int32Array(new SharedArrayBuffer(4 * length));
    this.first = new Uint16Array(new SharedArrayBuffer(2 * length));
    this.fill = new BigUint64Array(new SharedArrayBuffer(8 * length));
  }

  /**
   * Sorts, and joins extents where the next goes on where the one before ends: one frame each may be given. No frame
   * may be in two.
   */
  static from(extents: Iterable<Extent>): ExtentTable {
    const joined: Extent[] = [];
    for (const extent of [...extents].sort((a, b) => a.pfn - b.pfn)) {
      const last = joined.at(-1);
      if (last !== undefined && continues(last, extent)) last.frames += extent.frames;
      else joined.push({ ...extent });
    }
    const table = new ExtentTable(joined.length);
    for (const [i, extent] of joined.entries()) {
      table.pfn[i] = extent.pfn;
      table.frames[i] = extent.frames;
      if (extent.chunk === null) {
        table.chunk[i] = SAME_FILLED;
        table.fill[i] = extent.fill;
      } else if (extent.chunk === "parent") {
        table.chunk[i] = OF_PARENT;
      } else if (extent.chunk === "file") {
        table.chunk[i] = REFERENCED;
        table.fill[i] = BigInt(extent.reference);
      } else {
        table.chunk[i] = extent.chunk;
        table.first[i] = extent.first;
      }
    }
    return table;
  }

  /** The same, with room for more. */
  grown(length: number): ExtentTable {
    const table = new ExtentTable(length);
    for (const column of ["pfn", "frames", "chunk", "first"] as const) table[column].set(this[column]);
    table.fill.set(this.fill);
    return table;
  }

  /** Its first so many extents, in the same memory. */
  begin(length: number): ExtentTable {
    return ExtentTable.of({
      length,
      pfn: this.pfn.subarray(0, length),
      frames: this.frames.subarray(0, length),
      chunk: this.chunk.subarray(0, length),
      first: this.first.subarray(0, length),
      fill: this.fill.subarray(0, length),
    });
  }

  /** The columns, to be handed to another thread. */
  get columns(): ExtentColumns {
    const { length, pfn, frames, chunk, first, fill } = this;
    return { length, pfn, frames, chunk, first, fill };
  }

  /** The table that another thread made, from its columns. */
  static of(columns: ExtentColumns): ExtentTable {
    return Object.assign(new ExtentTable(0), columns);
  }

  /** Index of the extent that a frame is in; -1 when it is not in the image. */
  find(pfn: Pfn): number {
    let low = 0;
    let high = this.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.pfn[middle]! <= pfn) low = middle + 1;
      else high = middle;
    }
    const i = low - 1;
    return i >= 0 && pfn - this.pfn[i]! < this.frames[i]! ? i : -1;
  }

  at(i: number): Extent {
    const pfn = this.pfn[i]!;
    const frames = this.frames[i]!;
    const chunk = this.chunk[i]!;
    if (chunk === SAME_FILLED) return { pfn, frames, chunk: null, fill: this.fill[i]! };
    if (chunk === REFERENCED) return { pfn, frames, chunk: "file", reference: Number(this.fill[i]!) };
    if (chunk === OF_PARENT) return { pfn, frames, chunk: "parent" };
    return { pfn, frames, chunk, first: this.first[i]! };
  }

  *[Symbol.iterator](): Generator<Extent> {
    for (let i = 0; i < this.length; i++) yield this.at(i);
  }

  /** The extents grouped by chunk, for a loader: those of chunk c are `order[start[c]]` to `order[start[c + 1] - 1]`. */
  byChunk(chunks: number): { order: Uint32Array; start: Uint32Array } {
    const start = sharedWords(chunks + 1);
    for (let i = 0; i < this.length; i++) if (this.chunk[i]! >= 0) start[this.chunk[i]! + 1]!++;
    for (let c = 0; c < chunks; c++) start[c + 1]! += start[c]!;
    const order = sharedWords(start[chunks]!);
    const next = start.slice();
    for (let i = 0; i < this.length; i++) {
      const chunk = this.chunk[i]!;
      if (chunk >= 0) order[next[chunk]!++] = i;
    }
    return { order, start };
  }

  /** Runs of frames that the image has itself, or an ancestor of it: all but pages of files. */
  *stored(): Generator<{ pfn: Pfn; frames: number }> {
    for (let i = 0; i < this.length; i++) if (this.chunk[i] !== REFERENCED) yield { pfn: this.pfn[i]!, frames: this.frames[i]! };
  }

  /** The extents without data. */
  sameFilled(): Uint32Array {
    let n = 0;
    for (let i = 0; i < this.length; i++) if (this.chunk[i] === SAME_FILLED) n++;
    const found = sharedWords(n);
    n = 0;
    for (let i = 0; i < this.length; i++) if (this.chunk[i] === SAME_FILLED) found[n++] = i;
    return found;
  }
}

function sharedWords(length: number): Uint32Array {
  return new Uint32Array(new SharedArrayBuffer(4 * length));
}

function continues(last: Extent, next: Extent): boolean {
  if (last.pfn + last.frames !== next.pfn) return false;
  if (last.chunk === "file" || next.chunk === "file") return false;
  if (last.chunk === "parent" || next.chunk === "parent") return last.chunk === next.chunk;
  if (last.chunk === null || next.chunk === null) return last.chunk === null && next.chunk === null && last.fill === next.fill;
  return last.chunk === next.chunk && last.first + last.frames === next.first;
}
