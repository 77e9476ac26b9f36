/**
 * A chunk's bytes as they are stored. A chunk is compressed as a whole or not at all.
 *
 * What must hold: the decoder sees nothing that has not been checked. It trusts the length that the data claim to
 * decode to (a wrong one blocks it for seconds, or gives short data without an error), so the order is checksum of all
 * that is stored, claimed length, decoder, length again.
 *
 * Never give `compressChunk` memory that may change meanwhile: an LZ4 match refers to bytes that were emitted before,
 * and if they change in between, frames that nobody wrote decode wrongly and without an error.
 */
import { compressSync, uncompressSync } from "lz4-napi";
import { damaged, type HibernaculumError } from "../base/errors.js";
import { FRAME_BYTES } from "../base/layout.js";
import { checksum } from "./checksum.js";
import { type Chunk, CODEC_LZ4, CODEC_RAW, padded } from "./format.js";

/** Above this ratio of stored to plain bytes a chunk stays raw: decoding would cost more than it saves. */
const WORTHWHILE = 0.95;
/** The decoded length before an LZ4 block. */
const PREFIX_BYTES = 4;

/**
 * Compresses the frames of a chunk. The result's memory is freed on a turn of the event loop: let there be one a chunk.
 * (lz4-napi's asynchronous call keeps its results for long; hundreds of megabytes pile up.)
 *
 * @param frames a private copy of them, a multiple of 4096 bytes; may lie in shared memory
 * @returns the payload of CODEC_LZ4, not yet padded; undefined if the chunk is better stored raw
 */
export function compressChunk(frames: Uint8Array): Buffer | undefined {
  // The declaration asks for a Buffer; any view does.
  const payload = compressSync(frames as Buffer);
  return padded(payload.length) <= frames.length * WORTHWHILE ? payload : undefined;
}

/**
 * Compares a chunk's bytes in the blob, padding included, with its checksum.
 *
 * @throws HIB_CORRUPT
 */
export function checkStored(chunk: Chunk, stored: Uint8Array): void {
  if (stored.length !== chunk.stored || checksum(stored) !== chunk.hash) throw corrupt(chunk, "does not agree with its checksum");
}

/**
 * Checks and decodes a chunk.
 *
 * @param stored the chunk's bytes in the blob, padding included
 * @returns frames * 4096 bytes; for a raw chunk a view of `stored`
 * @throws HIB_CORRUPT
 */
export function decodeChunk(chunk: Chunk, stored: Uint8Array): Uint8Array {
  const bytes = chunk.frames * FRAME_BYTES;
  checkStored(chunk, stored);
  if (chunk.codec === CODEC_RAW) {
    if (chunk.payload !== bytes || stored.length < bytes) throw corrupt(chunk, `is not ${chunk.frames} frames long`);
    return stored.subarray(0, bytes);
  }
  if (chunk.codec !== CODEC_LZ4) throw corrupt(chunk, `has an unknown codec ${chunk.codec}`);
  const payload = stored.subarray(0, chunk.payload);
  if (payload.length <= PREFIX_BYTES || new DataView(payload.buffer, payload.byteOffset).getUint32(0, true) !== bytes) {
    throw corrupt(chunk, `does not claim to decode to ${chunk.frames} frames`);
  }
  let decoded: Uint8Array;
  try {
    decoded = uncompressSync(payload);
  } catch (error) {
    throw corrupt(chunk, "cannot be decoded", error);
  }
  if (decoded.length !== bytes) throw corrupt(chunk, `decodes to ${decoded.length} bytes instead of ${bytes}`);
  return decoded;
}

function corrupt(chunk: Chunk, what: string, cause?: unknown): HibernaculumError {
  return damaged("HIB_CORRUPT", `chunk ${chunk.id} at offset ${chunk.offset} of the blob ${what}`, { cause });
}
