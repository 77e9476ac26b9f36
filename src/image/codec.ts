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
import { createHash, type KeyObject } from "node:crypto";
import { compressSync, uncompressSync } from "lz4-napi";
import { damaged, HibernaculumError } from "../base/errors.js";
import { FRAME_BYTES } from "../base/layout.js";
import { checksum, hashParts } from "./checksum.js";
import { seal, TAG_BYTES, unseal } from "./cipher.js";
import { type Chunk, CODEC_LZ4, CODEC_RAW, PIECE_BYTES, padded } from "./format.js";

/** Above this ratio of stored to plain bytes a chunk stays raw: decoding would cost more than it saves. */
const WORTHWHILE = 0.95;
/**
 * What the library returns lies outside V8's heap and weighs next to nothing on it: left to itself it would let 64 MiB of it pile
 * up in each thread, all of it touched for the first time. So a thread that codes many chunks collects after so many.
 */
export const COLLECT_CHUNKS = 4;
/** The decoded length before an LZ4 block. */
const PREFIX_BYTES = 4;

/**
 * Compresses the frames of a chunk. The result's memory is freed on a turn of the event loop: allow one turn per chunk.
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
  const pieces = (): Uint8Array => hashPieces(stored.length, (at, length) => checksum(stored.subarray(at, at + length)));
  if (stored.length !== chunk.stored || checksum(pieces()) !== chunk.hash)
    throw corrupt(chunk, "does not agree with its checksum");
}

/** Encrypts a chunk's stored bytes in pieces, where they are. @returns their tags, one after another */
export function sealChunk(key: KeyObject, id: number, stored: Uint8Array): Uint8Array {
  const tags = new Uint8Array(Math.ceil(stored.length / PIECE_BYTES) * TAG_BYTES);
  for (let at = 0, piece = 0; at < stored.length; at += PIECE_BYTES, piece++)
    tags.set(seal(key, id, piece, stored.subarray(at, at + PIECE_BYTES)), piece * TAG_BYTES);
  return tags;
}

/**
 * A chunk's bytes as they were before they were encrypted, padding included.
 *
 * @param key - without one they are what is stored
 * @throws HIB_CORRUPT
 */
export function openStored(chunk: Chunk, stored: Uint8Array, key: KeyObject | undefined): Uint8Array {
  if (key === undefined) {
    checkStored(chunk, stored);
    return stored;
  }
  if (stored.length !== chunk.stored) throw corrupt(chunk, "is not as long as it was");
  const plain = Buffer.allocUnsafeSlow(stored.length); // it may be kept for long
  for (let at = 0, piece = 0; at < stored.length; at += PIECE_BYTES, piece++)
    openPiece(chunk, piece, stored.subarray(at, at + PIECE_BYTES), key, plain.subarray(at, at + PIECE_BYTES));
  return plain;
}

/**
 * The same for one of its pieces, which may have been read without the others.
 *
 * @param plain - where to, as many bytes; may be where they are
 * @throws HIB_CORRUPT
 */
export function openPiece(chunk: Chunk, piece: number, bytes: Uint8Array, key: KeyObject, plain: Uint8Array): void {
  const tag = chunk.pieces.subarray(piece * TAG_BYTES, (piece + 1) * TAG_BYTES);
  if (tag.length !== TAG_BYTES || !unseal(key, chunk.id, piece, { bytes, tag }, plain))
    throw corrupt(chunk, `is not what was encrypted: piece ${piece} does not agree with its tag`);
}

/** Compares one piece of a chunk's stored bytes with its checksum. @throws HIB_CORRUPT */
export function checkPiece(chunk: Chunk, piece: number, stored: Uint8Array): void {
  const { pieces } = chunk;
  const hash = new DataView(pieces.buffer, pieces.byteOffset, pieces.byteLength).getBigUint64(piece * 8, true);
  if (checksum(stored) !== hash) throw corrupt(chunk, "does not agree with its checksum");
}

/** `pieces` of a chunk's stored bytes. @param hash - XXH64 of a part of them */
export function hashPieces(stored: number, hash: (at: number, length: number) => bigint): Uint8Array {
  return hashParts(stored, PIECE_BYTES, hash);
}

/** Compares a chunk's bytes with its digest, if it has one. @throws HIB_CORRUPT */
export function checkDigest(chunk: Chunk, stored: Uint8Array): void {
  if (chunk.digest !== null && !digestOf(stored).equals(chunk.digest)) throw corrupt(chunk, "does not agree with its digest");
}

/** SHA-256. The bytes may lie in shared memory; then nobody may write them meanwhile. */
export function digestOf(bytes: Uint8Array): Buffer {
  return createHash("sha256").update(bytes).digest();
}

/**
 * Checks and decodes a chunk.
 *
 * @param encoded the chunk's bytes in the blob, padding included
 * @param key - of an encrypted image
 * @returns frames * 4096 bytes; for a raw chunk that is not encrypted a view of `encoded`
 * @throws HIB_CORRUPT
 */
export function decodeChunk(chunk: Chunk, encoded: Uint8Array, key?: KeyObject): Uint8Array {
  const bytes = chunk.frames * FRAME_BYTES;
  const stored = openStored(chunk, encoded, key);
  if (chunk.codec === CODEC_RAW) {
    if (chunk.payload !== bytes || stored.length < bytes) throw corrupt(chunk, `is not ${chunk.frames} frames long`);
    return stored.subarray(0, bytes);
  }
  if (chunk.codec !== CODEC_LZ4) throw unknownCodec(chunk);
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

/** A reader that went on would take the chunk's bytes for frames. */
export function unknownCodec({ id, codec }: Chunk): HibernaculumError {
  return new HibernaculumError(
    "HIB_FORMAT_VERSION",
    `chunk ${id} has a codec that this program does not know (${codec}); use a newer one`,
  );
}

function corrupt(chunk: Chunk, what: string, cause?: unknown): HibernaculumError {
  return damaged("HIB_CORRUPT", `chunk ${chunk.id} at offset ${chunk.offset} of the blob ${what}`, { cause });
}
