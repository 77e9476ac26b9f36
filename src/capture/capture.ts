/**
 * What the capture process does (S3.4, S4.3): it writes the frames that a stopped machine has listed. It has a small memory of its own,
 * into which it reads some thousand frames at a time; a page writer works there as it does in a machine.
 *
 * What must hold: the machine cannot be altered from here. All that this process has of it is a descriptor that is open for reading.
 */
import { createSecretKey, type KeyObject } from "node:crypto";
import { readSync } from "node:fs";
import process from "node:process";
import { Control } from "../base/control.js";
import { HibernaculumError } from "../base/errors.js";
import {
  FRAME_BYTES,
  FRAME_SHIFT,
  LIST_FRAMES,
  MACHINE_BLOB_CURSOR,
  MACHINE_CANCEL,
  MACHINE_CHUNK_CURSOR,
  POOL_BASE,
  POOL_BYTES,
  RAM_BASE,
} from "../base/layout.js";
import { RAM_BYTES_MIN } from "../base/limits.js";
import { Claims } from "../cow/claims.js";
import { HEADER_BYTES } from "../image/format.js";
import { instantiateCore } from "../vm/memory/core.js";
import { createMemory, POOL_PLACE } from "../vm/memory/physical.js";
import { writePages, type WriteResult, type WriteTask, WRITER_BYTES } from "../writer/page-writer.js";

/** What is known before the machine is stopped: where it is, and where its image is to be. */
export interface CapturePlan {
  descriptor: number;
  base: number;
  task: Omit<WriteTask, "writer" | "source" | "key">;
  /** That chunks are encrypted with. */
  key: Buffer | undefined;
}

/** What was written of some frames, or of all. */
export type CaptureMessage =
  | { ready: true }
  | { frames: number; result: WriteResult }
  | { done: true; chunks: number; blobFrames: number; resident_bytes: number };

/** Frames that the process's own memory has room for, after what its page writer uses. */
const WINDOW_FRAMES = (POOL_BYTES - WRITER_BYTES) >>> FRAME_SHIFT;
const WINDOW = POOL_BASE + WRITER_BYTES;

export class Capture {
  readonly #plan: CapturePlan;
  readonly #key: KeyObject | undefined;
  readonly #memory = createMemory(RAM_BYTES_MIN);
  readonly #core = instantiateCore(this.#memory);
  readonly #control = new Control(this.#memory);
  readonly #claims = new Claims(this.#control);
  readonly #bytes = new Uint8Array(this.#memory.buffer);

  constructor(plan: CapturePlan) {
    this.#plan = plan;
    this.#key = plan.key && createSecretKey(plan.key);
    plan.key?.fill(0);
    this.#control.store(MACHINE_BLOB_CURSOR, HEADER_BYTES / FRAME_BYTES);
  }

  /** Writes the first `count` frames of the machine's list. Ends early if the machine says that nobody wants them any more. */
  async write(count: number, tell: (message: CaptureMessage) => void, collect: () => void): Promise<void> {
    const list = new Int32Array(this.#read(LIST_FRAMES, count * 4).buffer);
    for (let from = 0; from < count; from += WINDOW_FRAMES) {
      if (new Int32Array(this.#read(MACHINE_CANCEL, 4).buffer)[0] !== 0) break;
      const frames = list.subarray(from, from + WINDOW_FRAMES);
      this.#fill(frames);
      const result = await writePages(
        this.#memory,
        this.#core,
        { ...this.#plan.task, key: this.#key, writer: 0, source: "queue" },
        collect,
      );
      tell({ frames: frames.length, result });
    }
    const [chunks, blobFrames] = [this.#control.load(MACHINE_CHUNK_CURSOR), this.#control.load(MACHINE_BLOB_CURSOR)];
    tell({ done: true, chunks, blobFrames, resident_bytes: process.memoryUsage.rss() });
  }

  /** Reads frames into the window, neighbours at once, and opens them to the page writer. */
  #fill(frames: Int32Array): void {
    for (let i = 0; i < frames.length; ) {
      let run = 1;
      while (frames[i + run] === frames[i]! + run) run++;
      this.#readInto(WINDOW + i * FRAME_BYTES, RAM_BASE + frames[i]! * FRAME_BYTES, run * FRAME_BYTES);
      i += run;
    }
    this.#claims.frames.set(frames);
    for (let i = 0; i < frames.length; i++) this.#claims.places[i] = POOL_PLACE + (WRITER_BYTES >>> FRAME_SHIFT) + i;
    this.#claims.open(0, frames.length);
  }

  #readInto(to: number, from: number, bytes: number): void {
    this.#readAll(this.#bytes.subarray(to, to + bytes), from);
  }

  #read(from: number, bytes: number): Uint8Array {
    const out = new Uint8Array(bytes);
    this.#readAll(out, from);
    return out;
  }

  #readAll(out: Uint8Array, from: number): void {
    const { descriptor, base } = this.#plan;
    for (let done = 0; done < out.length; ) {
      const read = readSync(descriptor, out, done, out.length - done, base + from + done);
      if (read === 0) throw new HibernaculumError("HIB_INTERNAL", "the machine's memory ends before its last frame");
      done += read;
    }
  }
}
