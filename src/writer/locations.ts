/**
 * Where each frame's bytes are in the blob, while an image is being written. Results of later tasks supersede those of
 * earlier ones: first the stream, then the copies of the residual set.
 */
import { HibernaculumError } from "../base/errors.js";
import { FRAME_BYTES } from "../base/layout.js";
import type { Pfn } from "../base/memory.js";
import { type Chunk, ExtentTable, padded, SAME_FILLED } from "../image/format.js";
import type { WriteResult } from "./page-writer.js";

const NOWHERE = -1;
const FILLED = -2;
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
      };
      for (let place = 0; place < frames; place++) this.#at[result.chunkFrames[next++]!] = id * PLACES + place;
    }
    for (let i = 0; i < result.filledFrames.length; i++) {
      const frame = result.filledFrames[i]!;
      this.#at[frame] = FILLED;
      this.#fill[frame] = result.fills[i]!;
    }
  }

  /**
   * The extents of the image: every frame for which `belongs` holds, each with the place of its last bytes.
   *
   * @throws HIB_INTERNAL if a frame that belongs has no place
   */
  extents(belongs: (frame: Pfn) => boolean): { table: ExtentTable; frames: number; sameFilled: number } {
    const starts: number[] = [];
    let frames = 0;
    let sameFilled = 0;
    let previous = NOWHERE;
    const lengths: number[] = [];
    for (let frame = 0; frame < this.#at.length; frame++) {
      if (!belongs(frame)) {
        previous = NOWHERE;
        continue;
      }
      const at = this.#at[frame]!;
      if (at === NOWHERE) throw new HibernaculumError("HIB_INTERNAL", `frame ${frame} belongs to the image and was not written`);
      frames++;
      if (at === FILLED) sameFilled++;
      const continues =
        at === FILLED
          ? previous === FILLED && this.#fill[frame] === this.#fill[frame - 1]
          : previous >= 0 && at === previous + 1 && (at & (PLACES - 1)) !== 0;
      if (continues) lengths[lengths.length - 1]!++;
      else {
        starts.push(frame);
        lengths.push(1);
      }
      previous = at;
    }
    const table = new ExtentTable(starts.length);
    for (let i = 0; i < starts.length; i++) {
      const frame = starts[i]!;
      const at = this.#at[frame]!;
      table.pfn[i] = frame;
      table.frames[i] = lengths[i]!;
      if (at === FILLED) {
        table.chunk[i] = SAME_FILLED;
        table.fill[i] = this.#fill[frame]!;
      } else {
        table.chunk[i] = at >>> PLACES_SHIFT;
        table.first[i] = at & (PLACES - 1);
      }
    }
    return { table, frames, sameFilled };
  }

  /** Bytes of the blob's chunks, and of decoded frames in them that no extent needs (stale). */
  totals(table: ExtentTable): { storedBytes: number; staleBytes: number } {
    let storedBytes = 0;
    let decoded = 0;
    for (const chunk of this.chunks) {
      storedBytes += chunk.stored;
      decoded += chunk.frames;
    }
    let needed = 0;
    for (let i = 0; i < table.length; i++) if (table.chunk[i] !== SAME_FILLED) needed += table.frames[i]!;
    return { storedBytes, staleBytes: (decoded - needed) * FRAME_BYTES };
  }
}
