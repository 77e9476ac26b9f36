/** Has the page writers write what can be claimed from the lists, and keeps what the image must know of it. */
import type { KeyObject } from "node:crypto";
import type { Control } from "../base/control.js";
import { FRAME_BYTES, MACHINE_BLOB_CURSOR, MACHINE_CHUNK_CURSOR } from "../base/layout.js";
import { HEADER_BYTES } from "../image/format.js";
import { Locations } from "./locations.js";
import type { StageSource, WriteResult, WriteTask, WriteTotals } from "./page-writer.js";
import type { PagePool } from "./pool.js";

export interface ImageWriterOptions {
  blob: string;
  /** Frames of RAM. */
  frames: number;
  /** Page writers. */
  writers: number;
  compression: "lz4" | "none";
  /** Of each chunk, beside its checksum. */
  digest: "none" | "sha256";
  /** Encrypts chunks. */
  key?: KeyObject | undefined;
  oracle: SharedArrayBuffer | undefined;
  /** Is called as soon as one of the writers fails: the others are to stop. */
  onError: () => void;
}

export class ImageWriter {
  /** Where each frame's bytes are, as far as they are written. */
  readonly locations: Locations;
  /** Of all tasks; those of the stream come first, one a writer. */
  readonly totals: WriteTotals[] = [];
  readonly #pool: PagePool;
  readonly #control: Control;
  readonly #options: ImageWriterOptions;

  constructor(pool: PagePool, control: Control, options: ImageWriterOptions) {
    this.#pool = pool;
    this.#control = control;
    this.#options = options;
    this.locations = new Locations(options.frames);
    control.store(MACHINE_CHUNK_CURSOR, 0);
    control.store(MACHINE_BLOB_CURSOR, HEADER_BYTES / FRAME_BYTES);
  }

  /** Takes what somebody else has written into the blob, as if it had been a task of this one's. */
  add(result: WriteResult): void {
    this.locations.add(result);
    this.totals.push(result.totals);
  }

  /** Where somebody else's chunks end. */
  end({ chunks, blobFrames }: { chunks: number; blobFrames: number }): void {
    this.#control.store(MACHINE_CHUNK_CURSOR, chunks);
    this.#control.store(MACHINE_BLOB_CURSOR, blobFrames);
  }

  /** What is written later supersedes what was written before of the same frame. */
  async write(source: StageSource): Promise<void> {
    const { blob, writers, compression, digest, key, oracle, onError } = this.#options;
    const task = (writer: number): WriteTask => ({
      blob,
      writer,
      source,
      compress: compression === "lz4",
      digest,
      key,
      oracle: source === "live" ? oracle : undefined,
    });
    for (const result of await this.#pool.runOn<WriteTask, WriteResult>(writers, "write", task, onError)) this.add(result);
  }
}
