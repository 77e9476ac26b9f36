/**
 * A file of the host that a machine has open. It is no part of the machine's memory, so an image can only say what it was
 * like (S3.6). Code that opens one for a machine describes it by this.
 */
import { closeSync, constants, fstatSync, openSync, read, readSync } from "node:fs";
import { promisify } from "node:util";
import type { Pfn } from "./memory.js";

const readSome = promisify(read);

/**
 * Opens a file that is there. What is no regular file is refused: whoever opens a pipe waits for its other end, and a device may
 * do anything.
 */
export function openRegular(path: string, mode: "r" | "rw" = "r"): number {
  const descriptor = openSync(path, (mode === "r" ? constants.O_RDONLY : constants.O_RDWR) | constants.O_NONBLOCK);
  if (fstatSync(descriptor).isFile()) return descriptor;
  closeSync(descriptor);
  throw Object.assign(new Error(`${path} is not a regular file`), { code: "EINVAL" });
}

/** Fills `bytes` from a position of a file; returns how many there were, fewer if it ends before. */
export function readUpTo(descriptor: number, bytes: Uint8Array, position: number): number {
  let done = 0;
  while (done < bytes.length) {
    const count = readSync(descriptor, bytes, done, bytes.length - done, position + done);
    if (count === 0) break;
    done += count;
  }
  return done;
}

/** The same, without blocking. */
export async function readUpToAsync(descriptor: number, bytes: Uint8Array, position: number): Promise<number> {
  let done = 0;
  while (done < bytes.length) {
    const { bytesRead } = await readSome(descriptor, bytes, done, bytes.length - done, position + done);
    if (bytesRead === 0) break;
    done += bytesRead;
  }
  return done;
}

/** Content checksums are made of blocks of so many bytes; a disk's sector is one. */
export const FILE_BLOCK_BYTES = 4096;

/** Is told of every write to a file, so that what the file holds at the stop need not be read then. */
export interface WriteObserver {
  /** A write of a block begins. It is the only one of that block until it ends. */
  writing(block: number): void;
  /** It has ended: what the block holds now, or undefined if the write failed. */
  written(block: number, bytes: Uint8Array | undefined): void;
}

export interface HostFile {
  /** Absolute. */
  readonly path: string;
  /** The host's descriptor. */
  readonly descriptor: number;
  readonly mode: "r" | "rw";
  /** The first so many bytes count; for a file open for writing they are under a checksum. */
  readonly position: number;
  /** Whom to tell of writes: set by the first save. */
  observer: WriteObserver | undefined;
  /**
   * Blocks of writes that are begun and not complete at this moment: whoever resumes the machine carries them out again, so
   * it does not matter what the blocks hold.
   */
  pendingBlocks(): number[];
}

/** Frames that follow each other and are pages of a file that follow each other. */
export interface Reference {
  pfn: Pfn;
  frames: number;
  /** Absolute, on the host. */
  path: string;
  /** Page of the file that the first frame is; zeros follow the file's end. */
  page: number;
  /** XXH64 of each frame. */
  hashes: BigUint64Array;
}
