/**
 * XXH64 with seed 0, the checksum of everything in an image. It finds damage, not forgery: an image from somebody who
 * is not trusted needs more (encryption with authentication).
 */
import { open } from "node:fs/promises";
import xxhash, { type XXHash, type XXHashAPI } from "xxhash-wasm";
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

const READ_BYTES = 1 << 20;

/**
 * Length and XXH64 of a file, read 1 MiB at a time.
 *
 * @throws HIB_IO
 */
export async function hashFile(path: string): Promise<{ bytes: number; hash: bigint }> {
  await loadChecksum();
  const hash = new Checksum();
  try {
    const file = await open(path, "r");
    try {
      const buffer = new Uint8Array(Math.min(READ_BYTES, (await file.stat()).size + 1));
      for (;;) {
        const { bytesRead } = await file.read(buffer, 0, buffer.length, hash.bytes);
        if (bytesRead === 0) return { bytes: hash.bytes, hash: hash.digest() };
        hash.update(buffer.subarray(0, bytesRead));
      }
    } finally {
      await file.close();
    }
  } catch (error) {
    throw fromSystemError(error, `reading ${path}`);
  }
}
