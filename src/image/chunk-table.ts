/** The chunks of an image, packed in shared memory: an image of 4 GiB has thousands, and to copy them to each thread takes long. */
import { assert } from "../base/errors.js";
import type { Chunk } from "./format.js";

const NUMBERS = ["offset", "stored", "payload", "frames", "codec"] as const;

/**
 * Chunks by id. Of chunk i the numbers are `numbers[5 * i]` to `numbers[5 * i + 4]`, and its pieces `pieces[piecesAt[i]]` to
 * `pieces[piecesAt[i + 1] - 1]`.
 */
export interface ChunkColumns {
  length: number;
  numbers: Float64Array;
  hashes: BigUint64Array;
  pieces: Uint8Array;
  piecesAt: Uint32Array;
}

export function packChunks(chunks: readonly Chunk[]): ChunkColumns {
  const { length } = chunks;
  let bytes = 0;
  for (const { pieces } of chunks) bytes += pieces.length;
  const columns: ChunkColumns = {
    length,
    numbers: new Float64Array(new SharedArrayBuffer(8 * NUMBERS.length * length)),
    hashes: new BigUint64Array(new SharedArrayBuffer(8 * length)),
    pieces: new Uint8Array(new SharedArrayBuffer(bytes)),
    piecesAt: new Uint32Array(new SharedArrayBuffer(4 * (length + 1))),
  };
  for (let i = 0; i < length; i++) {
    const { offset, stored, payload, frames, codec, hash, pieces } = chunks[i]!;
    columns.numbers.set([offset, stored, payload, frames, codec], NUMBERS.length * i);
    columns.hashes[i] = hash;
    columns.pieces.set(pieces, columns.piecesAt[i]);
    columns.piecesAt[i + 1] = columns.piecesAt[i]! + pieces.length;
  }
  return columns;
}

/** Without its digest, which no load looks at. */
export function chunkAt({ length, numbers, hashes, pieces, piecesAt }: ChunkColumns, id: number): Chunk {
  assert(id >= 0 && id < length, `there is no chunk ${id}`);
  const [offset, stored, payload, frames, codec] = numbers.subarray(NUMBERS.length * id, NUMBERS.length * (id + 1));
  return {
    id,
    offset: offset!,
    stored: stored!,
    payload: payload!,
    frames: frames!,
    codec: codec!,
    hash: hashes[id]!,
    pieces: pieces.subarray(piecesAt[id], piecesAt[id + 1]),
    digest: null,
  };
}

/** Ids in the order in which the blob was written, the last first. */
export function newestFirst({ length, numbers }: ChunkColumns): Uint32Array {
  return Uint32Array.from({ length }, (_, id) => id).sort((a, b) => numbers[NUMBERS.length * b]! - numbers[NUMBERS.length * a]!);
}
