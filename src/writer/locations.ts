/**
 * Where each frame's bytes are in the blob, while an image is being written. Results of later tasks supersede those of
 * earlier ones: first the stream, then the tail, then copies and pre-images.
 */
import { HibernaculumError } from "../base/errors.js";
import { FRAME_BYTES } from "../base/layout.js";
import type { Pfn } from "../base/memory.js";
import { ExtentTable, OF_PARENT, SAME_FILLED } from "../image/extents.js";
import { type Chunk, padded } from "../image/format.js";
import type { WriteResult } from "./page-writer.js";

const NOWHERE = -1;
const FILLED = -2;
const OUTSIDE = -3;
/** A location is chunk * 256 + place in it. */
const PLACES_SHIFT = 8;
const PLACES: number = 1 << PLACES_SHIFT;

export class Locations {
  readonly chunks: Chunk[] = [];
  readonly #at: Int32Array;
  readonly #fill: BigUint64Array;

  constructor(frames: number) {
    this.#at = new Int32Array(frames).fill(NOWHERE);
    this.#fill = new BigUint64Array(frames);
  }

  add(result: WriteResult): void {
    let next = 0;
    for (let i = 0; i < result.id.length; i++) {
      const id = result.id[i]!;
      const frames = result.frames[i]!;
      this.chunks[id] = {
        id,
        offset: result.offset[i]!,
        stored: padded(result.payload[i]!),
        payload: result.payload[i]!,
        frames,
        codec: result.codec[i]!,
        hash: result.hash[i]!,
        pieces: result.pieces[i]!,
        digest: result.digest[i]!,
      };
      for (let place = 0; place < frames; place++) this.#at[result.chunkFrames[next++]!] = id * PLACES + place;
    }
    for (let i = 0; i < result.filledFrames.length; i++) {
      const frame = result.filledFrames[i]!;
      this.#at[frame] = FILLED;
      // Nearly all are zero: what is not stored to costs no memory.
      const fill = result.fills[i]!;
      if (this.#fill[frame] !== fill) this.#fill[frame] = fill;
    }
  }

  /**
   * The extents of the image: every frame for which `belongs` holds, each with the place of its last bytes; or of the parent's, if
   * none were written and it is `kept`.
   *
   * @throws HIB_INTERNAL if a frame that belongs has no place and is not kept
   */
  extents(
    belongs: (frame: Pfn) => boolean,
    kept: (frame: Pfn) => boolean = () => false,
  ): { table: ExtentTable; frames: number; sameFilled: number; ofParent: number } {
    let count = 0;
    this.#visitRuns(belongs, kept, (begins) => {
      if (begins) count++;
    });
    const table = new ExtentTable(count);
    let frames = 0;
    let sameFilled = 0;
    let ofParent = 0;
    let i = -1;
    this.#visitRuns(belongs, kept, (begins, frame, at) => {
      frames++;
      if (at === FILLED) sameFilled++;
      if (at === NOWHERE) ofParent++;
      if (begins) {
        i++;
        table.pfn[i] = frame;
        table.chunk[i] = at === FILLED ? SAME_FILLED : at === NOWHERE ? OF_PARENT : at >>> PLACES_SHIFT;
        if (at === FILLED) table.fill[i] = this.#fill[frame]!;
        else if (at !== NOWHERE) table.first[i] = at & (PLACES - 1);
      }
      table.frames[i]!++;
    });
    return { table, frames, sameFilled, ofParent };
  }

  /** Visits every frame that belongs, and says whether an extent begins with it. */
  #visitRuns(
    belongs: (frame: Pfn) => boolean,
    kept: (frame: Pfn) => boolean,
    visit: (begins: boolean, frame: Pfn, at: number) => void,
  ): void {
    let previous = OUTSIDE;
    for (let frame = 0; frame < this.#at.length; frame++) {
      if (!belongs(frame)) {
        previous = OUTSIDE;
        continue;
      }
      const at = this.#at[frame]!;
      if (at === NOWHERE && !kept(frame))
        throw new HibernaculumError("HIB_INTERNAL", `frame ${frame} belongs to the image and was not written`);
      const continues =
        at === FILLED
          ? previous === FILLED && this.#fill[frame] === this.#fill[frame - 1]
          : at === NOWHERE
            ? previous === NOWHERE
            : previous >= 0 && at === previous + 1 && (at & (PLACES - 1)) !== 0;
      visit(!continues, frame, at);
      previous = at;
    }
  }

  /** Bytes of the blob's chunks, and of decoded frames in them that no extent needs (stale). */
  totals(table: ExtentTable): { bytes: number; staleBytes: number } {
    let bytes = 0;
    let decoded = 0;
    for (const chunk of this.chunks) {
      bytes += chunk.stored;
      decoded += chunk.frames;
    }
    let needed = 0;
    for (let i = 0; i < table.length; i++) if (table.chunk[i]! >= 0) needed += table.frames[i]!;
    return { bytes, staleBytes: (decoded - needed) * FRAME_BYTES };
  }
}
