/**
 * A forger: takes an image apart, changes words of the machine's memory or rows of its catalogue, and puts it together again
 * with every checksum right, by the product's own writers. What they ask for is all that it knows of the format.
 */
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import Database from "better-sqlite3";
import { FRAME_BYTES } from "../src/base/layout.js";
import type { Pfn, PhysicalAddress, ReadableMemory } from "../src/base/memory.js";
import type { CatalogueContents } from "../src/image/catalogue-rows.js";
import { CatalogueWriter } from "../src/image/catalogue-writer.js";
import { checksum, hashFile, loadChecksum } from "../src/image/checksum.js";
import { hashPieces } from "../src/image/codec.js";
import { openImage } from "../src/image/directory.js";
import type { Extent } from "../src/image/extents.js";
import {
  BLOB_NAME,
  CATALOGUE_NAME,
  type Chunk,
  CHUNK_FRAMES,
  CODEC_RAW,
  HEADER_BYTES,
  type ImageHeader,
  type SealedCatalogue,
} from "../src/image/format.js";
import { sealBlob } from "../src/image/seal.js";

/** What a forgery changes besides words of memory. */
export interface Alterations {
  header?: Partial<ImageHeader>;
  /** SQL, run on the catalogue once it is written. */
  catalogue?: string | undefined;
}

export class Forgery implements ReadableMemory {
  readonly frames: number;
  readonly #header: ImageHeader;
  readonly #contents: CatalogueContents;
  /** Frames that have bytes in the image, by number. */
  readonly #bytes: Map<Pfn, DataView>;
  readonly #filled: readonly Extent[];
  /** What was stored, so that it can be undone. */
  #undo: { address: PhysicalAddress; value: number }[] = [];

  private constructor(header: ImageHeader, contents: CatalogueContents, bytes: Map<Pfn, DataView>, filled: Extent[]) {
    this.frames = header.ramFrames;
    this.#header = header;
    this.#contents = contents;
    this.#bytes = bytes;
    this.#filled = filled;
  }

  /** Takes an image apart. It stays as it is. */
  static async of(path: string): Promise<Forgery> {
    await loadChecksum();
    const image = await openImage(path);
    try {
      const { header, catalogue, extents, references } = image;
      const memory = image.memory();
      const bytes = new Map<Pfn, DataView>();
      const filled: Extent[] = [];
      for (const extent of extents) {
        if (extent.chunk === "file") continue;
        // A few frames of zeros may be anything: they get bytes of their own, which can be changed.
        if (extent.chunk === null && extent.frames > CHUNK_FRAMES) filled.push(extent);
        else
          for (let pfn = extent.pfn; pfn < extent.pfn + extent.frames; pfn++)
            bytes.set(pfn, new DataView(Uint8Array.from(memory.readFrame(pfn)).buffer));
      }
      const contents: CatalogueContents = {
        meta: { ...catalogue.meta, sameFilledFrames: filled.reduce((sum, { frames }) => sum + frames, 0) },
        chunks: [],
        extents: [],
        references,
        regions: catalogue.regions(),
        processes: catalogue.processes(),
        mappings: [...catalogue.mappings()],
        objects: [...catalogue.objects()],
        blocks: catalogue.blocks(),
        mounts: catalogue.mounts(),
        files: catalogue.files(),
      };
      return new Forgery(header, contents, bytes, filled);
    } finally {
      image.close();
    }
  }

  // ---- memory ----

  /** Numbers of the frames that can be changed. */
  get changeable(): Pfn[] {
    return [...this.#bytes.keys()];
  }

  /** How many frames its image has. */
  get savedFrames(): number {
    return this.#bytes.size + this.#filled.reduce((sum, { frames }) => sum + frames, 0);
  }

  #view(address: PhysicalAddress): DataView | undefined {
    return this.#bytes.get(Math.floor(address / FRAME_BYTES));
  }

  load32(address: PhysicalAddress): number {
    return this.#view(address)?.getInt32(address % FRAME_BYTES, true) ?? 0;
  }

  loadFloat64(address: PhysicalAddress): number {
    return this.#view(address)?.getFloat64(address % FRAME_BYTES, true) ?? 0;
  }

  read(address: PhysicalAddress, length: number): Uint8Array {
    return Uint8Array.from({ length }, (_, i) => this.#view(address + i)?.getUint8((address + i) % FRAME_BYTES) ?? 0);
  }

  store32(address: PhysicalAddress, value: number): void {
    const view = this.#view(address);
    if (view === undefined) throw new Error(`frame ${Math.floor(address / FRAME_BYTES)} has no bytes in the image`);
    this.#undo.push({ address, value: this.load32(address) });
    view.setInt32(address % FRAME_BYTES, value, true);
  }

  storeFloat64(address: PhysicalAddress, value: number): void {
    const words = new Int32Array(Float64Array.of(value).buffer);
    this.store32(address, words[0]!);
    this.store32(address + 4, words[1]!);
  }

  /** Memory is as it was in the image again. */
  restore(): void {
    for (const { address, value } of this.#undo.toReversed()) this.#view(address)!.setInt32(address % FRAME_BYTES, value, true);
    this.#undo = [];
  }

  // ---- the image ----

  /** Puts an image together at `path`, in place of what was there. */
  async write(path: string, { header = {}, catalogue }: Alterations = {}): Promise<void> {
    rmSync(path, { recursive: true, force: true });
    mkdirSync(path);
    const { chunks, extents, blob } = this.#chunks();
    writeFileSync(join(path, BLOB_NAME), blob);
    const offsets = new Map(
      extents.flatMap((extent) =>
        typeof extent.chunk === "number"
          ? Array.from({ length: extent.frames }, (_, i) => [extent.pfn + i, chunks[extent.chunk as number]!.offset] as const)
          : [],
      ),
    );
    const mappings = Array.from(this.#contents.mappings, (row) => ({ ...row, blobOffset: offsets.get(row.pfn) ?? null }));
    const writer = CatalogueWriter.create(join(path, CATALOGUE_NAME));
    writer.write({ ...this.#contents, chunks, extents, mappings });
    let sealed = await writer.close();
    if (catalogue !== undefined) sealed = { ...sealed, ...(await alter(join(path, CATALOGUE_NAME), catalogue)) };
    await sealBlob(join(path, BLOB_NAME), {
      ...this.#header,
      chunks: chunks.length,
      blobBytes: blob.length,
      ...sealed,
      ...header,
    });
  }

  #chunks(): { chunks: Chunk[]; extents: Extent[]; blob: Buffer } {
    const chunks: Chunk[] = [];
    const extents: Extent[] = [...this.#filled];
    const parts: Uint8Array[] = [new Uint8Array(HEADER_BYTES)];
    let offset = HEADER_BYTES;
    const all = this.changeable.sort((a, b) => a - b);
    for (let first = 0; first < all.length; first += CHUNK_FRAMES) {
      const pfns = all.slice(first, first + CHUNK_FRAMES);
      const stored = Buffer.concat(pfns.map((pfn) => new Uint8Array(this.#bytes.get(pfn)!.buffer)));
      const [id, bytes] = [chunks.length, stored.length];
      const pieces = hashPieces(bytes, (at, length) => checksum(stored.subarray(at, at + length)));
      chunks.push({
        id,
        offset,
        stored: bytes,
        payload: bytes,
        frames: pfns.length,
        codec: CODEC_RAW,
        pieces,
        hash: checksum(pieces),
        digest: null,
      });
      for (const [place, pfn] of pfns.entries()) extents.push({ pfn, frames: 1, chunk: id, first: place });
      parts.push(stored);
      offset += bytes;
    }
    return { chunks, extents: extents.sort((a, b) => a.pfn - b.pfn), blob: Buffer.concat(parts) };
  }
}

/** Changes a catalogue that is closed; what SQLite itself refuses to store is not. */
async function alter(path: string, sql: string): Promise<SealedCatalogue> {
  const database = new Database(path);
  try {
    for (const pragma of ["journal_mode = MEMORY", "synchronous = OFF", "ignore_check_constraints = ON", "writable_schema = ON"])
      database.pragma(pragma);
    database.unsafeMode(true);
    database.exec(sql);
  } catch (error) {
    if (!(error instanceof Database.SqliteError)) throw error;
  } finally {
    database.close();
  }
  const { bytes, hash } = await hashFile(path);
  // All of it is the head: what is where in a file that was changed is not known.
  const head = { catalogueHeadBytes: bytes, catalogueHeadHash: hash };
  return { catalogueBytes: bytes, catalogueHash: hash, ...head, catalogueDigest: null };
}
