/**
 * A file in encrypted segments: 64 KiB each, the last may be shorter, and each followed by its tag. So it can be read, and checked, from
 * any place on.
 */
import type { KeyObject } from "node:crypto";
import { damaged } from "../base/errors.js";
import { type BlobReader, BlobWriter } from "./blob.js";
import { seal, TAG_BYTES, unseal } from "./cipher.js";

const SEGMENT_BYTES = 65536;
const SEALED_BYTES = SEGMENT_BYTES + TAG_BYTES;

/** What is read at any place: a file, or what is encrypted in one. */
export interface ByteSource {
  readonly path: string;
  /** Fills the start of a buffer; blocks this thread. @throws HIB_TRUNCATED, HIB_CORRUPT, HIB_IO */
  readSync(buffer: Uint8Array, offset: number, length: number): void;
}

/** Bytes that so many take up in such a file. */
export function sealedBytes(plain: number): number {
  return plain + Math.ceil(plain / SEGMENT_BYTES) * TAG_BYTES;
}

/** The bytes of such a file that the first `head` bytes are in. */
export function sealedHeadBytes(head: number, plain: number): number {
  return sealedBytes(Math.min(plain, Math.ceil(head / SEGMENT_BYTES) * SEGMENT_BYTES));
}

/** Writes all of such a file; the bytes are encrypted where they are. @throws HIB_IO, HIB_NO_SPACE */
export async function writeSealed(path: string, bytes: Uint8Array, key: KeyObject): Promise<void> {
  const file = await BlobWriter.open(path, { direct: false });
  try {
    for (let at = 0, segment = 0; at < bytes.length; at += SEGMENT_BYTES, segment++) {
      const piece = bytes.subarray(at, at + SEGMENT_BYTES);
      const tag = seal(key, 0, segment, piece);
      await file.write(Buffer.concat([piece, tag]), segment * SEALED_BYTES);
    }
  } finally {
    await file.close();
  }
}

/** What is in such a file. */
export class SealedReader implements ByteSource {
  readonly path: string;
  readonly bytes: number;
  readonly #file: BlobReader;
  readonly #key: KeyObject;

  /** @param sealed - length of the file */
  constructor(file: BlobReader, sealed: number, key: KeyObject) {
    this.path = file.path;
    this.bytes = sealed - Math.ceil(sealed / SEALED_BYTES) * TAG_BYTES;
    this.#file = file;
    this.#key = key;
  }

  readSync(buffer: Uint8Array, offset: number, length: number): void {
    for (let done = 0; done < length; ) {
      const at = (offset + done) % SEGMENT_BYTES;
      const part = this.#segment(Math.floor((offset + done) / SEGMENT_BYTES)).subarray(at, at + length - done);
      buffer.set(part, done);
      done += part.length;
    }
  }

  #segment(segment: number): Buffer {
    const length = Math.min(SEGMENT_BYTES, this.bytes - segment * SEGMENT_BYTES);
    if (!(length > 0)) throw damaged("HIB_TRUNCATED", `${this.path} ends before its segment ${segment}`);
    const sealed = Buffer.allocUnsafe(length + TAG_BYTES);
    this.#file.readSync(sealed, segment * SEALED_BYTES, sealed.length);
    const bytes = sealed.subarray(0, length);
    if (!unseal(this.#key, 0, segment, { bytes, tag: sealed.subarray(length) }, bytes))
      throw damaged("HIB_CORRUPT", `${this.path}: segment ${segment} is not what was encrypted`);
    return bytes;
  }
}
