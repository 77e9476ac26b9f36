/**
 * Part of a chunk, for who wants one frame of it now: as little as can be read, checked and decoded by itself. That is a piece of
 * 64 KiB where a chunk is raw, and all of it where it is compressed.
 */
import { FRAME_BYTES } from "../base/layout.js";
import type { BlobReader } from "./blob.js";
import { checkPiece, decodeChunk, openPiece } from "./codec.js";
import { CHUNK_BYTES, type Chunk, CODEC_RAW, PIECE_BYTES } from "./format.js";

const PIECE_FRAMES: number = PIECE_BYTES / FRAME_BYTES;

/** Consecutive frames of a chunk, checked. */
export interface ChunkPart {
  /** Slot in the chunk of the first frame. */
  first: number;
  data: Uint8Array;
}

export class ChunkReader {
  readonly #blobs: readonly BlobReader[];
  readonly #buffer = new Uint8Array(CHUNK_BYTES);

  /** @param blobs - by the generation of the chunks */
  constructor(blobs: readonly BlobReader[]) {
    this.#blobs = blobs;
  }

  /**
   * What can be read with the frame in a slot. Good until the next call; blocks this thread.
   *
   * @throws HIB_CORRUPT, HIB_TRUNCATED, HIB_IO
   */
  readAround(chunk: Chunk, slot: number): ChunkPart {
    if (chunk.codec !== CODEC_RAW) return this.readAll(chunk);
    const piece = Math.floor(slot / PIECE_FRAMES);
    const at = piece * PIECE_BYTES;
    const data = this.#buffer.subarray(0, Math.min(PIECE_BYTES, chunk.stored - at));
    const blob = this.#blobs[chunk.generation ?? 0]!;
    blob.readSync(data, chunk.offset + at, data.length);
    if (blob.key === undefined) checkPiece(chunk, piece, data);
    else openPiece(chunk, piece, data, blob.key, data);
    return { first: piece * PIECE_FRAMES, data };
  }

  /** All of it. */
  readAll(chunk: Chunk): ChunkPart {
    const stored = this.#buffer.subarray(0, chunk.stored);
    const blob = this.#blobs[chunk.generation ?? 0]!;
    blob.readSync(stored, chunk.offset, stored.length);
    return { first: 0, data: decodeChunk(chunk, stored, blob.key) };
  }
}
