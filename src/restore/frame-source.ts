/**
 * Where a thread gets missing frames from during a lazy resume: the image, read and checked on that thread. A vCPU that meets a
 * missing frame (assembly/missing.ts) waits for nobody.
 *
 * What must hold: what is placed has agreed with its checksum, and it is placed only if the frame is missing still and this
 * thread has claimed it. Nothing here takes the kernel lock, or waits for who has it: a fault may be taken under it.
 */
import type { KeyObject } from "node:crypto";
import { assert } from "../base/errors.js";
import { FRAME_BYTES } from "../base/layout.js";
import type { Pfn } from "../base/memory.js";
import type { SharedMemory } from "../base/wasm.js";
import { BlobReader } from "../image/blob.js";
import { chunkAt } from "../image/chunk-table.js";
import { type ChunkPart, ChunkReader } from "../image/chunk-reader.js";
import { ExtentTable, SAME_FILLED } from "../image/extents.js";
import type { Core } from "../vm/memory/core.js";
import { PhysicalMemory } from "../vm/memory/physical.js";
import type { LoadTask } from "./page-loader.js";

/** What is brought in at once of frames without data. */
const FILL_FRAMES = 16;

/** An image that frames are brought in from, as threads share it. */
export interface FillTask extends Pick<LoadTask, "chunks" | "extents" | "order" | "start" | "filled"> {
  /** With their descriptors: open as long as frames are missing, whatever becomes of their names. */
  blobs: readonly { path: string; key: KeyObject | undefined; descriptor: number }[];
  /** Memory of a FaultRecord. */
  record: SharedArrayBuffer;
}

/** How much was placed, and read for it. */
export interface Filled {
  frames: number;
  bytes: number;
}

export class FrameSource {
  readonly filled: Filled = { frames: 0, bytes: 0 };
  readonly #core: Core;
  readonly #memory: PhysicalMemory;
  readonly #task: FillTask;
  readonly #extents: ExtentTable;
  readonly #chunks: ChunkReader;

  constructor(memory: SharedMemory, core: Core, task: FillTask) {
    this.#core = core;
    this.#memory = new PhysicalMemory(memory, core);
    this.#task = task;
    this.#extents = ExtentTable.of(task.extents);
    this.#chunks = new ChunkReader(task.blobs.map(({ path, key, descriptor }) => new BlobReader(path, key, descriptor)));
  }

  /**
   * Brings in a frame, and what comes with it. When it returns, the frame is there, or another thread has claimed it.
   *
   * @throws HIB_CORRUPT, HIB_TRUNCATED, HIB_IO
   */
  bringIn(frame: Pfn): void {
    const i = this.#extents.find(frame);
    assert(i >= 0, `frame ${frame} is missing, and is not in the image`);
    const within = frame - this.#extents.pfn[i]!;
    const number = this.#extents.chunk[i]!;
    if (number === SAME_FILLED) this.#placeFill(i, within - (within % FILL_FRAMES), FILL_FRAMES);
    else {
      const chunk = chunkAt(this.#task.chunks, number);
      this.#placePart(number, this.#chunks.readAround(chunk, this.#extents.first[i]! + within));
    }
  }

  /** Brings in what is missing of a chunk. */
  bringInChunk(number: number): void {
    if (!this.#extentsOf(number).some((i) => this.#isMissing(i))) return;
    this.#placePart(number, this.#chunks.readAll(chunkAt(this.#task.chunks, number)));
  }

  /** Brings in what is missing of an extent without data. */
  bringInFill(i: number): void {
    this.#placeFill(i, 0, this.#extents.frames[i]!);
  }

  #extentsOf(number: number): Uint32Array {
    const { order, start } = this.#task;
    return order.subarray(start[number]!, start[number + 1]!);
  }

  #isMissing(i: number): boolean {
    const first = this.#extents.pfn[i]!;
    for (let frame = first; frame < first + this.#extents.frames[i]!; frame++) if (this.#core.isMissing(frame) !== 0) return true;
    return false;
  }

  /** Places what the image has of a part of a chunk; a slot may be of no frame, if a later copy took its place. */
  #placePart(number: number, { first, data }: ChunkPart): void {
    const slots = data.length / FRAME_BYTES;
    this.filled.bytes += data.length;
    for (const i of this.#extentsOf(number)) {
      const begin = this.#extents.first[i]!;
      const from = Math.max(begin, first);
      const to = Math.min(begin + this.#extents.frames[i]!, first + slots);
      const pfn = this.#extents.pfn[i]! - begin;
      for (let slot = from; slot < to; slot++) this.#place(pfn + slot, data, (slot - first) * FRAME_BYTES);
    }
  }

  #place(frame: Pfn, data: Uint8Array, at: number): void {
    if (this.#core.claimMissing(frame) === 0) return;
    this.#memory.loadFrame(frame, data.subarray(at, at + FRAME_BYTES));
    this.#settle(frame);
  }

  #placeFill(i: number, from: number, count: number): void {
    const fill = this.#extents.fill[i]!;
    const [low, high] = [Number(BigInt.asIntN(32, fill)), Number(BigInt.asIntN(32, fill >> 32n))];
    const page = new Uint8Array(new BigUint64Array(FRAME_BYTES / 8).fill(fill).buffer);
    const pfn = this.#extents.pfn[i]!;
    const end = pfn + Math.min(from + count, this.#extents.frames[i]!);
    for (let frame = pfn + from; frame < end; frame++) {
      if (this.#core.claimMissing(frame) === 0) continue;
      // A fresh machine's free frames are zeros that the host has not had to provide; leave it so.
      if (!this.#memory.isFilledWith(frame, low, high)) this.#memory.loadFrame(frame, page);
      this.#settle(frame);
    }
  }

  #settle(frame: Pfn): void {
    this.#core.settle(frame);
    this.filled.frames++;
  }
}
