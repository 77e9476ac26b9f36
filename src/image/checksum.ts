/**
 * XXH64 with seed 0, the checksum of everything in an image. It finds damage, not forgery: an image from somebody who
 * is not trusted needs more: encryption.ts.
 */
import { createHash } from "node:crypto";
import { open } from "node:fs/promises";
import xxhash, { type XXHash, type XXHashAPI } from "xxhash-wasm";
import { assert, fromSystemError } from "../base/errors.js";

export const CHECKSUM_BYTES = 8;

let xxh: XXHashAPI | undefined;

/** Compiles the hash; once in each thread, before the first `checksum`. */
export async function loadChecksum(): Promise<void> {
  xxh ??= await xxhash();
}

/** XXH64 of the bytes, unsigned. They may lie in shared memory; then nobody may write them meanwhile. */
export function checksum(bytes: Uint8Array): bigint {
  assert(xxh !== undefined, "loadChecksum() comes first");
  return xxh.h64Raw(bytes);
}

/** XXH64 of bytes that come one after another; `loadChecksum` comes first. */
export class Checksum {
  /** How many came. */
  bytes = 0;
  readonly #state: XXHash<bigint>;

  constructor() {
    assert(xxh !== undefined, "loadChecksum() comes first");
    this.#state = xxh.create64();
  }

  update(bytes: Uint8Array): void {
    this.#state.update(bytes);
    this.bytes += bytes.length;
  }

  /** Of all that came so far. */
  digest(): bigint {
    return this.#state.digest();
  }
}

/**
 * XXH64 of each `bytes` of the data, 8 bytes little endian each; the last part may be shorter.
 *
 * @param hash - of a part of the data, from a position on
 */
export function hashParts(length: number, bytes: number, hash: (at: number, length: number) => bigint): Uint8Array {
  const parts = new DataView(new ArrayBuffer(Math.ceil(length / bytes) * CHECKSUM_BYTES));
  for (let at = 0, i = 0; at < length; at += bytes, i += 8) parts.setBigUint64(i, hash(at, Math.min(bytes, length - at)), true);
  return new Uint8Array(parts.buffer);
}

const READ_BYTES = 1 << 20;

export interface FileHashes {
  bytes: number;
  /** XXH64 of the file. */
  hash: bigint;
  /** XXH64 of its first `head` bytes. */
  headHash: bigint;
  /** Its SHA-256, if it was asked for. */
  digest: Uint8Array | null;
}

/**
 * Length and hashes of a file, read 1 MiB at a time.
 *
 * @throws HIB_IO
 */
export async function hashFile(
  path: string,
  { head = 0, digest = "none" }: { head?: number; digest?: "none" | "sha256" } = {},
): Promise<FileHashes> {
  await loadChecksum();
  const hash = new Checksum();
  const sha = digest === "none" ? undefined : createHash(digest);
  let headHash = hash.digest();
  try {
    const file = await open(path, "r");
    try {
      const buffer = new Uint8Array(Math.min(READ_BYTES, (await file.stat()).size + 1));
      for (;;) {
        const most = hash.bytes < head ? Math.min(buffer.length, head - hash.bytes) : buffer.length;
        const { bytesRead } = await file.read(buffer, 0, most, hash.bytes);
        if (bytesRead === 0) return { bytes: hash.bytes, hash: hash.digest(), headHash, digest: sha?.digest() ?? null };
        hash.update(buffer.subarray(0, bytesRead));
        sha?.update(buffer.subarray(0, bytesRead));
        if (hash.bytes === head) headHash = hash.digest();
      }
    } finally {
      await file.close();
    }
  } catch (error) {
    throw fromSystemError(error, `reading ${path}`);
  }
}
