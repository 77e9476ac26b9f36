/**
 * XXH64 with seed 0, the checksum of everything in an image. It finds damage, not forgery: an image from somebody who
 * is not trusted needs more (encryption with authentication).
 */
import { open } from "node:fs/promises";
import xxhash, { type XXHashAPI } from "xxhash-wasm";
import { assert, fromSystemError } from "../base/errors.js";

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

const READ_BYTES = 1 << 20;

/**
 * Length and XXH64 of a file, read 1 MiB at a time.
 *
 * @throws HIB_IO
 */
export async function hashFile(path: string): Promise<{ bytes: number; hash: bigint }> {
  await loadChecksum();
  const state = xxh!.create64();
  try {
    const file = await open(path, "r");
    try {
      const buffer = new Uint8Array(Math.min(READ_BYTES, (await file.stat()).size + 1));
      for (let bytes = 0; ; ) {
        const { bytesRead } = await file.read(buffer, 0, buffer.length, bytes);
        if (bytesRead === 0) return { bytes, hash: state.digest() };
        state.update(buffer.subarray(0, bytesRead));
        bytes += bytesRead;
      }
    } finally {
      await file.close();
    }
  } catch (error) {
    throw fromSystemError(error, `reading ${path}`);
  }
}
