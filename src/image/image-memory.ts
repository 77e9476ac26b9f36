/**
 * An image read as a machine's memory: the page tables' reader, the checks of the buddy allocator and the listing of
 * processes work on a stored machine as they do on a live one.
 *
 * What must hold: only chunks whose checksum agreed are looked into, and nothing that is handed out is a way to write
 * into the image. Frames that are not in the image (free ones, most of all) read as zeros.
 */
import { assert } from "../base/errors.js";
import { FRAME_BYTES, FRAME_SHIFT } from "../base/layout.js";
import { type Pfn, type PhysicalAddress, type ReadableMemory, requireInRam } from "../base/memory.js";
import type { BlobReader } from "./blob.js";
import { decodeChunk } from "./codec.js";
import { type ExtentTable, REFERENCED, SAME_FILLED } from "./extents.js";
import { CHUNK_BYTES, CODEC_RAW, type Chunk } from "./format.js";
import { type ReferenceColumns, ReferenceTable } from "./reference-table.js";
import { ReferenceReader } from "./references.js";

const NO_REFERENCES: ReferenceColumns = new ReferenceTable(0, 0);

/** What to read from. It need not be sealed yet; the checksum must be loaded. */
export interface ImageMemoryOptions {
  /** Frames of RAM. */
  frames: number;
  /** By id; after them the parent's, ... */
  chunks: readonly Chunk[];
  extents: ExtentTable;
  /** What extents with REFERENCED refer to. */
  references?: ReferenceColumns;
  /** Real paths of places that those may be opened in. */
  allowed?: readonly string[];
  /** Paths of files of the host of which is taken what they hold now. */
  acceptedFiles?: ReadonlySet<string>;
  /** By the generation of the chunks: the image's own, its parent's, ... */
  blobs: readonly BlobReader[];
  /** Decoded chunks to keep, 1 MiB each. */
  cachedChunks?: number;
}

export class ImageMemory implements ReadableMemory {
  readonly frames: number;
  readonly #chunks: readonly Chunk[];
  readonly #extents: ExtentTable;
  readonly #blobs: readonly BlobReader[];
  readonly #cachedChunks: number;
  readonly #references: ReferenceReader;
  /** Decoded chunks by number, the least recently used first. */
  readonly #cache = new Map<number, Uint8Array>();
  readonly #stored = new Uint8Array(CHUNK_BYTES);
  /** The frame that was looked into last: page tables and kernel records are read word by word. */
  #lastPfn = -1;
  #last: DataView = new DataView(new ArrayBuffer(0));

  constructor({
    frames,
    chunks,
    extents,
    references = NO_REFERENCES,
    allowed = [],
    acceptedFiles,
    blobs,
    cachedChunks = 64,
  }: ImageMemoryOptions) {
    this.#references = new ReferenceReader(references, allowed, acceptedFiles);
    this.frames = frames;
    this.#chunks = chunks;
    this.#extents = extents;
    this.#blobs = blobs;
    this.#cachedChunks = cachedChunks;
  }

  /** True if the frame is in the image. */
  has(pfn: Pfn): boolean {
    return this.#extents.find(pfn) >= 0;
  }

  /** Closes files of the host that it has read from. May be called again; what is read later opens them anew. */
  close(): void {
    this.#references.close();
  }

  /**
   * The frame's 4096 bytes. They may be shared with the cache: for reading only.
   *
   * @throws HIB_CORRUPT, HIB_TRUNCATED, HIB_FILES_CHANGED, HIB_IO, HIB_INCONSISTENT beyond RAM; so do all the others here
   */
  readFrame(pfn: Pfn): Uint8Array {
    requireInRam(this.frames, pfn * FRAME_BYTES, FRAME_BYTES);
    const i = this.#extents.find(pfn);
    if (i < 0) return new Uint8Array(FRAME_BYTES);
    const chunk = this.#extents.chunk[i]!;
    if (chunk === SAME_FILLED) {
      const frame = new BigUint64Array(FRAME_BYTES / 8).fill(this.#extents.fill[i]!);
      return new Uint8Array(frame.buffer);
    }
    if (chunk === REFERENCED) {
      const frame = new Uint8Array(FRAME_BYTES);
      this.#references.read(Number(this.#extents.fill[i]!), pfn - this.#extents.pfn[i]!, frame);
      return frame;
    }
    const start = (this.#extents.first[i]! + pfn - this.#extents.pfn[i]!) * FRAME_BYTES;
    return this.#decoded(chunk).subarray(start, start + FRAME_BYTES);
  }

  load32(address: PhysicalAddress): number {
    requireInRam(this.frames, address, 4, 4);
    return this.#frameOf(address).getInt32(address & (FRAME_BYTES - 1), true);
  }

  loadFloat64(address: PhysicalAddress): number {
    requireInRam(this.frames, address, 8, 8);
    return this.#frameOf(address).getFloat64(address & (FRAME_BYTES - 1), true);
  }

  read(address: PhysicalAddress, length: number): Uint8Array {
    requireInRam(this.frames, address, length);
    const bytes = new Uint8Array(length);
    for (let done = 0; done < length; ) {
      const at = address + done;
      const start = at % FRAME_BYTES;
      const part = this.readFrame(Math.floor(at / FRAME_BYTES)).subarray(start, start + length - done);
      bytes.set(part, done);
      done += part.length;
    }
    return bytes;
  }

  /**
   * Every chunk with its number, checked and decoded, in the order of the blobs; the next is read while one is looked at. The data are
   * the caller's until the next step. Nothing is kept.
   */
  async *chunksInOrder(): AsyncGenerator<{ index: number; chunk: Chunk; stored: Uint8Array; data: Uint8Array }> {
    const order = Uint32Array.from(this.#chunks.keys()).sort((a, b) => inOrder(this.#chunks[a]!, this.#chunks[b]!));
    const buffers = [new Uint8Array(CHUNK_BYTES), new Uint8Array(CHUNK_BYTES)];
    const begin = async (i: number): Promise<Uint8Array> => {
      const { offset, stored, generation = 0 } = this.#chunks[order[i]!]!;
      await this.#blobs[generation]!.read(buffers[i % 2]!, offset, stored);
      return buffers[i % 2]!.subarray(0, stored);
    };
    let reading = order.length > 0 ? begin(0) : undefined;
    try {
      for (const [i, index] of order.entries()) {
        const chunk = this.#chunks[index]!;
        const stored = await reading!;
        reading = i + 1 < order.length ? begin(i + 1) : undefined;
        yield { index, chunk, stored, data: decodeChunk(chunk, stored, this.#blobs[chunk.generation ?? 0]!.key) };
      }
    } finally {
      // The blob may be closed as soon as this returns, and its descriptor's number be given to another file.
      await reading?.catch(() => undefined);
    }
  }

  #frameOf(address: PhysicalAddress): DataView {
    const pfn = address >>> FRAME_SHIFT;
    if (pfn !== this.#lastPfn) {
      const frame = this.readFrame(pfn);
      this.#last = new DataView(frame.buffer, frame.byteOffset, FRAME_BYTES);
      this.#lastPfn = pfn;
    }
    return this.#last;
  }

  #decoded(index: number): Uint8Array {
    let data = this.#cache.get(index);
    if (data === undefined) {
      const chunk = this.#chunks[index];
      assert(chunk !== undefined, `there is no chunk ${index}`);
      // Compressed bytes are looked at once, so their buffer serves all; a raw chunk is its own data.
      const stored = chunk.codec === CODEC_RAW ? new Uint8Array(chunk.stored) : this.#stored.subarray(0, chunk.stored);
      this.#blobs[chunk.generation ?? 0]!.readSync(stored, chunk.offset, chunk.stored);
      data = decodeChunk(chunk, stored, this.#blobs[chunk.generation ?? 0]!.key);
      if (this.#cache.size >= this.#cachedChunks) this.#cache.delete(this.#cache.keys().next().value!);
    } else {
      this.#cache.delete(index); // and in again, as the most recent
    }
    this.#cache.set(index, data);
    return data;
  }
}

function inOrder(a: Chunk, b: Chunk): number {
  return (a.generation ?? 0) - (b.generation ?? 0) || a.offset - b.offset;
}
