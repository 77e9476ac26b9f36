/**
 * A page loader: one task of the pool. It claims chunks, reads them, checks and decodes them, and puts each frame that
 * the image needs of them where it may go now:
 *
 *     allocated for it           -> loaded directly                                              S1.6
 *     in use here, equal         -> the loaded version is discarded; should the frame be written
 *                                   later, the fault handler keeps the unmodified version        S1.7
 *     in use here, different     -> queued for the atomic restore; its protection is lifted      S1.7
 *
 * What must hold: for a frame in use here, either nobody has claimed it and it is equal when the machine stops, or its bytes of the
 * image are in the queue (put there by this loader or by the fault handler), or the queue's overflow is counted.
 * Loader and handler may meet at a frame: the loader says "equal", then looks for a claim; the handler claims, then
 * looks for "equal". At least one of them sees the other.
 */
import type { KeyObject } from "node:crypto";
import { bit, Control } from "../base/control.js";
import { failpoint } from "../base/failpoints.js";
import {
  DIRECT_BITMAP,
  CLAIMED_BITMAP,
  KEEP_BITMAP,
  MISSING_BITMAP,
  FRAME_BYTES,
  QUEUE_FRAMES,
  QUEUE_PLACES,
  MACHINE_CANCEL,
  MACHINE_LOAD_CURSOR,
  MACHINE_PROGRESS,
  OPEN_BITMAP,
} from "../base/layout.js";
import type { Pfn } from "../base/memory.js";
import type { SharedMemory } from "../base/wasm.js";
import { BlobReader } from "../image/blob.js";
import { loadChecksum } from "../image/checksum.js";
import { type ChunkColumns, chunkAt, packChunks } from "../image/chunk-table.js";
import { COLLECT_CHUNKS, decodeChunk } from "../image/codec.js";
import type { Image } from "../image/directory.js";
import type { ExtentColumns } from "../image/extents.js";
import { CHUNK_BYTES, CHUNK_FRAMES, type Chunk } from "../image/format.js";
import type { ReferenceColumns } from "../image/reference-table.js";
import { ReferenceReader } from "../image/references.js";
import type { Core } from "../vm/memory/core.js";
import { PhysicalMemory } from "../vm/memory/physical.js";

/** Chunks and extents of an image, as columns that threads share. */
export interface LoadTask {
  /** Of the image, its parent, ... */
  blobs: readonly { path: string; key: KeyObject | undefined }[];
  chunks: ChunkColumns;
  /** Numbers of the chunks that are to be loaded, in this order. */
  wanted: Uint32Array;
  extents: ExtentColumns;
  /** Extents of chunk c: `order[start[c]]` to `order[start[c + 1] - 1]`. */
  order: Uint32Array;
  start: Uint32Array;
  /** Extents that are same-filled, claimed after the chunks, FILL_CLAIM at a time. */
  filled: Uint32Array;
  /** Pages of files of the host. */
  references: ReferenceColumns;
  /** Runs of those, claimed last: a reference and a frame of it, where RUN_FRAMES begin or those that are left. */
  runs: Uint32Array;
  allowed: readonly string[];
  acceptedFiles: ReadonlySet<string>;
}

/** The task of loading an image, for each of the loaders. */
export function loadTask(image: Image, acceptedFiles: ReadonlySet<string>): LoadTask {
  const { allowed, blobs, chunks, extents, references } = image;
  return {
    blobs: blobs.map(({ path, key }) => ({ path, key })),
    chunks: packChunks(chunks),
    wanted: Uint32Array.from(chunks.keys()),
    extents: extents.columns,
    ...extents.byChunk(chunks.length),
    filled: extents.sameFilled(),
    references: references.columns,
    runs: runsOf(references),
    allowed,
    acceptedFiles,
  };
}

/** Cuts references, so that what is read at once is no more than a chunk. */
function runsOf({ frames, length }: ReferenceColumns): Uint32Array {
  let count = 0;
  for (const its of frames) count += Math.ceil(its / RUN_FRAMES);
  const runs = new Uint32Array(new SharedArrayBuffer(8 * count));
  for (let reference = 0, i = 0; reference < length; reference++)
    for (let frame = 0; frame < frames[reference]!; frame += RUN_FRAMES, i += 2) runs.set([reference, frame], i);
  return runs;
}

export interface LoadResult {
  direct: number;
  equal: number;
  /** Found equal, but stored to by the time that was said. */
  equal_marked: number;
  different: number;
  /** Different or stored to, and the queue was full. */
  overflow: number;
  /** Of all these, frames without data. */
  same_filled: number;
  read_bytes: number;
  read_wait_ms: number;
  decode_ms: number;
  place_ms: number;
}

const FILL_CLAIM = 256;
const RUN_FRAMES = CHUNK_FRAMES;

/**
 * Runs one task until no chunk is left.
 *
 * @param collect - has the runtime free what this thread holds outside its heap and does not use any more
 */
export async function loadPages(memory: SharedMemory, core: Core, task: LoadTask, collect: () => void): Promise<LoadResult> {
  await loadChecksum();
  const blobs: BlobReader[] = [];
  try {
    for (const { path, key } of task.blobs) blobs.push(new BlobReader(path, key));
    return await new PageLoader(memory, core, task, blobs).run(collect);
  } finally {
    for (const blob of blobs) blob.close();
  }
}

class PageLoader {
  readonly #control: Control;
  readonly #core: Core;
  readonly #memory: PhysicalMemory;
  readonly #task: LoadTask;
  readonly #blobs: readonly BlobReader[];
  readonly #result: LoadResult = {
    direct: 0,
    equal: 0,
    equal_marked: 0,
    different: 0,
    overflow: 0,
    same_filled: 0,
    read_bytes: 0,
    read_wait_ms: 0,
    decode_ms: 0,
    place_ms: 0,
  };

  constructor(memory: SharedMemory, core: Core, task: LoadTask, blobs: readonly BlobReader[]) {
    this.#control = new Control(memory);
    this.#core = core;
    this.#memory = new PhysicalMemory(memory, core);
    this.#task = task;
    this.#blobs = blobs;
  }

  async run(collect: () => void): Promise<LoadResult> {
    const { chunks, wanted, filled, runs } = this.#task;
    const buffers = [new Uint8Array(CHUNK_BYTES), new Uint8Array(CHUNK_BYTES)];
    let claims = 0;
    const claim = () => {
      const index = this.#control.add(MACHINE_LOAD_CURSOR, 1);
      const number = wanted[index];
      if (number === undefined || this.#control.load(MACHINE_CANCEL) !== 0) return { index, reading: undefined };
      failpoint("resume.load");
      const chunk = chunkAt(chunks, number);
      const buffer = buffers[claims++ % 2]!.subarray(0, chunk.stored);
      const reading = this.#blobs[chunk.generation ?? 0]!.read(buffer, chunk.offset, chunk.stored).then(() => buffer);
      reading.catch(() => undefined);
      return { index, number, chunk, reading };
    };
    let next = claim();
    try {
      while (next.reading !== undefined) {
        const began = performance.now();
        const stored = await next.reading;
        this.#result.read_wait_ms += performance.now() - began;
        const { number, chunk } = next;
        next = claim();
        this.#loadChunk(number, chunk, stored);
        if (claims % COLLECT_CHUNKS === 0) collect();
      }
    } finally {
      await next.reading?.catch(() => undefined);
    }
    const fills = wanted.length + Math.ceil(filled.length / FILL_CLAIM);
    const end = fills + runs.length / 2;
    const files = new ReferenceReader(this.#task.references, this.#task.allowed, this.#task.acceptedFiles);
    try {
      for (let index = next.index; index < end; index = this.#control.add(MACHINE_LOAD_CURSOR, 1)) {
        if (this.#control.load(MACHINE_CANCEL) !== 0) break;
        if (index < fills) this.#loadFills((index - wanted.length) * FILL_CLAIM);
        else this.#loadRun(index - fills, files, buffers[0]!);
      }
    } finally {
      files.close();
    }
    return this.#result;
  }

  #loadChunk(number: number, chunk: Chunk, stored: Uint8Array): void {
    const began = performance.now();
    const data = decodeChunk(chunk, stored, this.#blobs[chunk.generation ?? 0]!.key);
    const decoded = performance.now();
    const { extents, order, start } = this.#task;
    let loaded = 0;
    for (let i = start[number]!; i < start[number + 1]!; i++) {
      const extent = order[i]!;
      const frames = extents.frames[extent]!;
      loaded += this.#placeRun(extents.pfn[extent]!, frames, data, extents.first[extent]! * FRAME_BYTES);
    }
    this.#control.add(MACHINE_PROGRESS, loaded);
    this.#result.read_bytes += chunk.stored;
    this.#result.decode_ms += decoded - began;
    this.#result.place_ms += performance.now() - decoded;
  }

  /**
   * Places consecutive frames, but for those that come later (first-frames.ts); stretches that are loaded directly go in one copy.
   * Returns how many.
   */
  #placeRun(first: Pfn, frames: number, data: Uint8Array, at: number): number {
    const { words } = this.#control;
    let placed = frames;
    for (let i = 0; i < frames; ) {
      let run = 0;
      while (i + run < frames && bit(words, DIRECT_BITMAP, first + i + run) === 1) run++;
      if (run > 0) {
        this.#memory.loadFrame(first + i, data.subarray(at + i * FRAME_BYTES, at + (i + run) * FRAME_BYTES));
        this.#result.direct += run;
        i += run;
      } else if (bit(words, MISSING_BITMAP, first + i) === 1) {
        placed--;
        i++;
      } else {
        this.#placeUsed(first + i, data.subarray(at + i * FRAME_BYTES, at + (i + 1) * FRAME_BYTES));
        i++;
      }
    }
    return placed;
  }

  /** A frame that holds something of the booting machine, which goes on writing. */
  #placeUsed(frame: Pfn, bytes: Uint8Array): void {
    const { words } = this.#control;
    const claimed = () => (Atomics.load(words, (CLAIMED_BITMAP >>> 2) + (frame >>> 5)) >>> (frame & 31)) & 1;
    if (claimed() === 0 && this.#memory.equals(frame, bytes)) {
      this.#core.setBit(KEEP_BITMAP, frame);
      if (claimed() === 0) {
        this.#result.equal++;
        return;
      }
      this.#result.equal_marked++;
    } else this.#result.different++;
    this.#queue(frame, bytes);
    // Its bytes are safe: lift the protection, so that the booting machine faults on it no more. If a handler has the frame,
    // it may be copying: then it is the handler's to open.
    if (this.#core.setBit(CLAIMED_BITMAP, frame) !== 0) this.#core.setBit(OPEN_BITMAP, frame);
  }

  #queue(frame: Pfn, bytes: Uint8Array): void {
    const entry = this.#core.claimQueueEntry();
    if (entry < 0) {
      this.#result.overflow++;
      return;
    }
    const { words } = this.#control;
    this.#memory.loadPlace(words[(QUEUE_PLACES >>> 2) + entry]!, bytes);
    Atomics.store(words, (QUEUE_FRAMES >>> 2) + entry, frame);
  }

  /** Pages of a file of the host: all of a run agree with their checksums before the first is placed. */
  #loadRun(index: number, files: ReferenceReader, buffer: Uint8Array): void {
    const { references, runs } = this.#task;
    const [reference, frame] = [runs[2 * index]!, runs[2 * index + 1]!];
    const frames = Math.min(RUN_FRAMES, references.frames[reference]! - frame);
    const data = buffer.subarray(0, frames * FRAME_BYTES);
    files.read(reference, frame, data);
    this.#control.add(MACHINE_PROGRESS, this.#placeRun(references.pfn[reference]! + frame, frames, data, 0));
  }

  #loadFills(from: number): void {
    const { extents, filled } = this.#task;
    const { words } = this.#control;
    let loaded = 0;
    for (const extent of filled.subarray(from, from + FILL_CLAIM)) {
      const fill = extents.fill[extent]!;
      const low = Number(BigInt.asIntN(32, fill));
      const high = Number(BigInt.asIntN(32, fill >> 32n));
      const page = new Uint8Array(new BigUint64Array(FRAME_BYTES / 8).fill(fill).buffer);
      const end = extents.pfn[extent]! + extents.frames[extent]!;
      for (let frame = extents.pfn[extent]!; frame < end; frame++) {
        if (bit(words, MISSING_BITMAP, frame) === 1) continue;
        loaded++;
        if (bit(words, DIRECT_BITMAP, frame) === 1) {
          // A fresh machine's free frames are zeros that the host has not had to provide; leave it so.
          if (!this.#memory.isFilledWith(frame, low, high)) this.#memory.loadFrame(frame, page);
          this.#result.direct++;
        } else this.#placeUsed(frame, page);
      }
    }
    this.#result.same_filled += loaded;
    this.#control.add(MACHINE_PROGRESS, loaded);
  }
}
