/** The chunks of an image or a chain, packed in shared memory: an image of 4 GiB has thousands, and to copy them to each thread takes long. */
import { assert } from "../base/errors.js";
import type { Chunk } from "./format.js";

const NUMBERS = ["id", "generation", "offset", "stored", "payload", "frames", "codec"] as const;
const OFFSET: number = NUMBERS.indexOf("offset");
const GENERATION: number = NUMBERS.indexOf("generation");

/**
 * Chunks by number: of an image by id, of a chain as chain.ts has them. Of chunk i the numbers are `numbers[7 * i]` to
 * `numbers[7 * i + 6]`, and its pieces `pieces[piecesAt[i]]` to `pieces[piecesAt[i + 1] - 1]`.
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
    const { id, generation = 0, offset, stored, payload, frames, codec, hash, pieces } = chunks[i]!;
    columns.numbers.set([id, generation, offset, stored, payload, frames, codec], NUMBERS.length * i);
    columns.hashes[i] = hash;
    columns.pieces.set(pieces, columns.piecesAt[i]);
    columns.piecesAt[i + 1] = columns.piecesAt[i]! + pieces.length;
  }
  return columns;
}

/** Without its digest, which no load looks at. */
export function chunkAt({ length, numbers, hashes, pieces, piecesAt }: ChunkColumns, number: number): Chunk {
  assert(number >= 0 && number < length, `there is no chunk ${number}`);
  const its = numbers.subarray(NUMBERS.length * number, NUMBERS.length * (number + 1));
  const [id, generation, offset, stored, payload, frames, codec] = its;
  return {
    id: id!,
    generation: generation!,
    offset: offset!,
    stored: stored!,
    payload: payload!,
    frames: frames!,
    codec: codec!,
    hash: hashes[number]!,
    pieces: pieces.subarray(piecesAt[number], piecesAt[number + 1]),
    digest: null,
  };
}

/** Numbers in the order in which the blob was written, the last first; then those of the parent. */
export function newestFirst({ length, numbers }: ChunkColumns): Uint32Array {
  const of = (number: number, column: number): number => numbers[NUMBERS.length * number + column]!;
  return Uint32Array.from({ length }, (_, number) => number).sort(
    (a, b) => of(a, GENERATION) - of(b, GENERATION) || of(b, OFFSET) - of(a, OFFSET),
  );
}
