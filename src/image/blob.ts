/**
 * The blob's file, for writing and for reading. Positions are given with every call: several threads may each have a
 * writer of their own on one blob, and several writes of one writer may be in flight.
 *
 * Writes go past the page cache where the file system allows (O_DIRECT): a machine's memory would otherwise push out
 * everything else, and first touches of fresh page cache cost four times the disk's time. That wants memory, offset
 * and length at multiples of 4096; a WebAssembly.Memory has it, a Buffer has not. Where it is refused (EINVAL), the
 * writer goes on through the cache.
 */
import type { KeyObject } from "node:crypto";
import { closeSync, constants, fstatSync, openSync, read as readCallback, readSync, statSync } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { promisify } from "node:util";
import { fromSystemError, damaged } from "../base/errors.js";
import { failpoint } from "../base/failpoints.js";
import { FRAME_BYTES } from "../base/layout.js";

const WRITE = constants.O_WRONLY | constants.O_CREAT;
/** Absent where the host has no such thing. */
const DIRECT: number = constants.O_DIRECT ?? 0;

export class BlobWriter {
  readonly path: string;
  readonly #handles: FileHandle[];
  #buffered: Promise<FileHandle> | undefined;

  private constructor(path: string, handle: FileHandle, direct: boolean) {
    this.path = path;
    this.#handles = [handle];
    if (!direct) this.#buffered = Promise.resolve(handle);
  }

  /**
   * Opens the blob, and creates it if it is not there yet.
   *
   * @throws HIB_IO, HIB_NO_SPACE
   */
  static async open(path: string, { direct = true }: { direct?: boolean } = {}): Promise<BlobWriter> {
    try {
      if (direct && DIRECT !== 0) {
        try {
          return new BlobWriter(path, await open(path, WRITE | DIRECT, 0o600), true);
        } catch (error) {
          if (!isRefusal(error)) throw error;
        }
      }
      return new BlobWriter(path, await open(path, WRITE, 0o600), false);
    } catch (error) {
      throw fromSystemError(error, `opening ${path}`);
    }
  }

  /** True while writes go past the page cache. */
  get direct(): boolean {
    return this.#buffered === undefined;
  }

  /**
   * Writes all of the bytes. Nobody may change them until it is done.
   *
   * @param offset where in the blob
   * @throws HIB_NO_SPACE, HIB_IO
   */
  async write(bytes: Uint8Array, offset: number): Promise<void> {
    try {
      for (let done = 0; done < bytes.length; ) {
        let rest = bytes.subarray(done);
        if (failpoint("save.write")) rest = rest.subarray(0, Math.floor(rest.length / 2 / FRAME_BYTES) * FRAME_BYTES);
        const written = rest.length === 0 ? 0 : await this.#writeSome(rest, offset + done);
        // A file system may write less than it was asked to, and the next call says why. Nothing at all says nothing.
        if (written === 0) throw new Error(`short write at offset ${offset + done}: nothing was written`);
        done += written;
      }
    } catch (error) {
      throw fromSystemError(error, `writing ${this.path}`);
    }
  }

  async #writeSome(bytes: Uint8Array, offset: number): Promise<number> {
    if (this.#buffered === undefined) {
      try {
        return (await this.#handles[0]!.write(bytes, 0, bytes.length, offset)).bytesWritten;
      } catch (error) {
        if (!isRefusal(error)) throw error;
        // Writes that are in flight come here too: the first of them opens the file for all.
        this.#buffered ??= open(this.path, WRITE).then((handle) => {
          this.#handles.push(handle);
          return handle;
        });
      }
    }
    const handle = await this.#buffered;
    return (await handle.write(bytes, 0, bytes.length, offset)).bytesWritten;
  }

  /**
   * Returns once everything that was written, by any writer of this blob, is on the disk.
   *
   * @throws HIB_IO, HIB_NO_SPACE
   */
  async sync(): Promise<void> {
    try {
      failpoint("save.sync");
      await this.#handles[0]!.datasync();
    } catch (error) {
      throw fromSystemError(error, `syncing ${this.path}`);
    }
  }

  /** Closes the file; await all writes first. May be called again. */
  async close(): Promise<void> {
    await Promise.allSettled(this.#handles.splice(0).map((handle) => handle.close()));
  }
}

function isRefusal(error: unknown): boolean {
  return (error as NodeJS.ErrnoException).code === "EINVAL";
}

const readAsync = promisify(readCallback);

export class BlobReader {
  readonly path: string;
  /** Of its chunks, if they are encrypted. */
  key: KeyObject | undefined;
  #descriptor: number | undefined;

  /**
   * @param key - of its chunks, if they are encrypted
   * @param descriptor - of the file, if it is open already: it is its opener's to close
   * @throws HIB_IO
   */
  constructor(path: string, key?: KeyObject, descriptor?: number) {
    this.path = path;
    this.key = key;
    try {
      this.#descriptor = descriptor ?? openSync(path, "r");
    } catch (error) {
      throw fromSystemError(error, `opening ${path}`);
    }
  }

  /**
   * Fills the start of a buffer with `length` bytes from `offset` of the blob.
   *
   * @throws HIB_TRUNCATED if the blob ends before, HIB_IO
   */
  async read(buffer: Uint8Array, offset: number, length: number): Promise<void> {
    try {
      for (let done = 0; done < length; ) {
        const { bytesRead } = await readAsync(this.#open(), buffer, done, length - done, offset + done);
        done += this.#checked(bytesRead, offset + length);
      }
    } catch (error) {
      throw fromSystemError(error, `reading ${this.path}`);
    }
  }

  /** The same, blocking this thread. */
  readSync(buffer: Uint8Array, offset: number, length: number): void {
    try {
      for (let done = 0; done < length; ) {
        done += this.#checked(readSync(this.#open(), buffer, done, length - done, offset + done), offset + length);
      }
    } catch (error) {
      throw fromSystemError(error, `reading ${this.path}`);
    }
  }

  /** Whether its path still leads to it: else it was renamed, and perhaps another is there. */
  isInPlace(): boolean {
    const there = statSync(this.path, { throwIfNoEntry: false });
    const { dev, ino } = fstatSync(this.#open());
    return there?.dev === dev && there.ino === ino;
  }

  /** For other threads of this process, as long as it is not closed. */
  get descriptor(): number {
    return this.#open();
  }

  #open(): number {
    if (this.#descriptor === undefined) throw new Error("it is closed");
    return this.#descriptor;
  }

  #checked(bytesRead: number, end: number): number {
    if (bytesRead === 0) throw damaged("HIB_TRUNCATED", `${this.path} ends before byte ${end}`);
    return bytesRead;
  }

  /** Closes the file; await all reads first. May be called again. */
  close(): void {
    if (this.#descriptor !== undefined) closeSync(this.#descriptor);
    this.#descriptor = undefined;
  }
}
