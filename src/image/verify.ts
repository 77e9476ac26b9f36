/**
 * Does an image agree with itself? Two checks: of the counts, which costs nothing and is made whenever an image is
 * opened, and of every chunk, which reads all of the blob and is made before the first frame of a machine is patched.
 * Whether the *machine* inside is consistent (buddy allocator, page tables) is for those who know machines.
 */

import { type NamedPath, notAllowed, outside } from "../base/allowed-paths.js";
import { damaged, HibernaculumError } from "../base/errors.js";
import { hex } from "../base/hex.js";
import { FRAME_BYTES } from "../base/layout.js";
import { abortSignal, callback, checkArguments, having, optional, type Rule } from "../base/options.js";
import { giveTurn, STEPS_A_TURN } from "../base/turns.js";
import type { BlobReader } from "./blob.js";
import type { Catalogue } from "./catalogue.js";
import { ownOffset } from "./chain.js";
import { CHECKSUM_BYTES, checksum } from "./checksum.js";
import { TAG_BYTES } from "./cipher.js";
import { checkDigest, unknownCodec } from "./codec.js";
import { type ExtentTable, OF_PARENT, REFERENCED, SAME_FILLED } from "./extents.js";
import { CHUNK_FRAMES, type Chunk, CODEC_LZ4, CODEC_RAW, HEADER_BYTES, type ImageHeader, padded, PIECE_BYTES } from "./format.js";
import { ImageMemory } from "./image-memory.js";
import type { ReferenceTable } from "./reference-table.js";
import { ReferenceReader } from "./references.js";

/** An open image, wherever it is stored. */
export interface ImageContents {
  readonly header: ImageHeader;
  readonly catalogue: Catalogue;
  readonly chunks: readonly Chunk[];
  /** In the blobs, and in files of the host. */
  readonly extents: ExtentTable;
  readonly references: ReferenceTable;
  /** The image's own, its parent's, and so on. */
  readonly blobs: readonly BlobReader[];
  /** Real paths of what may be opened for it. */
  readonly allowed: readonly string[];
}

/**
 * What a catalogue says of frames and where they are, once it agrees with the header.
 *
 * @throws HIB_CORRUPT, HIB_CANCELLED
 */
export async function readTables(
  header: ImageHeader,
  catalogue: Catalogue,
  signal?: AbortSignal,
): Promise<Pick<ImageContents, "chunks" | "extents" | "references">> {
  checkRegions(header, catalogue);
  const tables = {
    chunks: await catalogue.chunks({ most: header.chunks, signal }),
    extents: await catalogue.extents({ most: header.frames, signal }), // each has a frame
    references: await catalogue.references({ most: header.frames, signal }),
  };
  checkCounts({ header, ...tables });
  return tables;
}

/** RAM is one region from frame 0 on in this product's machines. */
function checkRegions({ ramFrames }: ImageHeader, catalogue: Catalogue): void {
  const regions = catalogue.regions();
  same(
    "frames of RAM",
    regions.reduce((sum, { frames }) => sum + frames, 0),
    ramFrames,
  );
  if (regions.length !== 1 || regions[0]!.pfn !== 0)
    throw new HibernaculumError(
      "HIB_FORMAT_VERSION",
      "the image is of a machine whose memory does not begin at 0, or has gaps; use the program that wrote it",
    );
}

/**
 * Header, chunks, extents and references agree: the chunks tile the blob, no frame is in two extents, each has a place in a chunk,
 * and there are as many as the header says.
 *
 * @throws HIB_CORRUPT
 */
function checkCounts({
  header,
  chunks,
  extents,
  references,
}: Pick<ImageContents, "header" | "chunks" | "extents" | "references">): void {
  same("chunks", chunks.length, header.chunks);
  const sumBytes = header.encryption === undefined ? CHECKSUM_BYTES : TAG_BYTES;
  for (const [i, chunk] of chunks.entries()) checkChunk(chunk, i, sumBytes);
  let end = HEADER_BYTES;
  for (const chunk of [...chunks].sort((a, b) => a.offset - b.offset)) {
    if (chunk.offset !== end) throw corrupt(`chunk ${chunk.id} begins at ${chunk.offset} of the blob and not at ${end}`);
    end += chunk.stored;
  }
  same("bytes of the blob", end, header.blobBytes);

  let frames = 0;
  let free = 0;
  let referred = 0;
  for (let i = 0; i < extents.length; i++) {
    const pfn = extents.pfn[i]!;
    const length = extents.frames[i]!;
    if (pfn < free) throw corrupt(`frame ${pfn} is in two extents`);
    free = pfn + length;
    if (free > header.ramFrames) throw corrupt(`the extent at frame ${pfn} ends beyond RAM`);
    const chunk = extents.chunk[i]!;
    if (chunk === OF_PARENT && header.parent === null) throw corrupt(`frame ${pfn} is of a parent, and it has none`);
    if (chunk >= 0 && !(extents.first[i]! + length <= (chunks[chunk]?.frames ?? 0))) {
      throw corrupt(`the extent at frame ${pfn} is not within chunk ${chunk}`);
    }
    if (chunk === REFERENCED) {
      const reference = referred++;
      if (references.pfn[reference] !== pfn || references.frames[reference] !== length)
        throw corrupt(`the extent at frame ${pfn} has no reference of its own`);
    }
    frames += length;
  }
  same("frames", frames, header.frames);
  same("references", references.length, referred);
}

/** @param sumBytes - what `pieces` has of each piece */
function checkChunk(chunk: Chunk, expectedId: number, sumBytes: number): void {
  const { id, stored, payload, frames, codec, hash, pieces } = chunk;
  if (codec !== CODEC_RAW && codec !== CODEC_LZ4) throw unknownCodec(chunk);
  const bytes = frames * FRAME_BYTES;
  const sound =
    id === expectedId &&
    frames >= 1 &&
    frames <= CHUNK_FRAMES &&
    stored === padded(payload) &&
    stored <= bytes &&
    (codec === CODEC_RAW ? payload === bytes : payload > 0) &&
    pieces.length === Math.ceil(stored / PIECE_BYTES) * sumBytes &&
    checksum(pieces) === hash;
  if (!sound)
    throw corrupt(`the row of chunk ${id} (codec ${codec}, ${frames} frames, ${payload} of ${stored} bytes) contradicts itself`);
}

/** What `openImage` has given. */
export const openedImage: Rule = having("what openImage has given", "header", "catalogue", "chunks", "blob");

/** Pages of files that are read and hashed between two turns of others. */
const REFERENCES_A_TURN = 256;

/** What `verifyChunks` read. */
export interface Verified {
  chunks: number;
  /** Read from the blob, header not counted. */
  storedBytes: number;
  /** Decoded; places that a later copy superseded are counted. */
  decodedFrames: number;
  /** In the image. */
  frames: number;
  sameFilledFrames: number;
  /** Read from files of the host. */
  referencedFrames: number;
}

/**
 * Reads, hashes and decodes every chunk, and reads every row of the catalogue. If its meta has `sameFilledFrames`, that must agree too.
 *
 * @param onProgress is told the bytes of the blob that are done, and all of them
 * @param signal - cancels
 * @throws HIB_CORRUPT, HIB_TRUNCATED, HIB_FILES_CHANGED, HIB_NOT_ALLOWED, HIB_IO, HIB_CANCELLED
 */
export async function verifyChunks(
  image: ImageContents,
  onProgress?: (bytes: number, total: number) => void,
  signal?: AbortSignal,
): Promise<Verified> {
  checkArguments("verifyChunks", {
    "the image": [image, openedImage],
    onProgress: [onProgress, optional(callback)],
    signal: [signal, optional(abortSignal)],
  });
  const { header, catalogue, chunks, extents, references, blobs } = image;
  const total = chunks.reduce((sum, { stored }) => sum + stored, 0);
  const verified: Verified = {
    chunks: 0,
    storedBytes: 0,
    decodedFrames: 0,
    frames: header.frames,
    sameFilledFrames: 0,
    referencedFrames: 0,
  };
  const memory = new ImageMemory({ frames: header.ramFrames, chunks, extents, references, blobs });
  for await (const { chunk, stored, data } of memory.chunksInOrder()) {
    checkDigest(chunk, stored);
    if (signal?.aborted === true) await giveTurn(signal, "checking chunks");
    verified.chunks++;
    verified.storedBytes += chunk.stored;
    verified.decodedFrames += data.length / FRAME_BYTES;
    onProgress?.(verified.storedBytes, total);
  }
  for (let i = 0; i < extents.length; i++) if (extents.chunk[i] === SAME_FILLED) verified.sameFilledFrames += extents.frames[i]!;
  const elsewhere = await outside(pathsOf(references), image.allowed, signal);
  if (elsewhere.length > 0) throw notAllowed("the image", elsewhere);
  const reader = new ReferenceReader(references, image.allowed);
  try {
    const page = new Uint8Array(FRAME_BYTES);
    for (let i = 0; i < references.length; i++) {
      for (let frame = 0; frame < references.frames[i]!; frame++) {
        reader.read(i, frame, page);
        if (++verified.referencedFrames % REFERENCES_A_TURN === 0) await giveTurn(signal, "checking pages of files");
      }
    }
  } finally {
    reader.close();
  }
  const { sameFilledFrames } = catalogue.meta;
  if (typeof sameFilledFrames === "number" && header.parent === null)
    same("same-filled frames", verified.sameFilledFrames, sameFilledFrames);

  await verifyRows(image, signal);
  return verified;
}

/** The tables that the opening of an image does not need: a resume reads some, and people the rest. */
async function verifyRows({ header, catalogue, chunks, extents }: ImageContents, signal: AbortSignal | undefined): Promise<void> {
  for (const { except } of catalogue.files()) void except; // parsed when it is asked for; so is this
  for (const { detail } of catalogue.processes()) void detail;
  void [catalogue.mounts(), catalogue.blocks()];
  let rows = 0;
  for (const { object, page, pfn, pages } of catalogue.objects()) {
    if (++rows % STEPS_A_TURN === 0) await giveTurn(signal, "checking pages of objects");
    if (pfn + pages > header.ramFrames) throw corrupt(`page ${page} of object ${hex(object)} ends beyond RAM`);
  }
  for (const { pid, vaddr, pfn, pages, blobOffset } of catalogue.mappings()) {
    if (++rows % STEPS_A_TURN === 0) await giveTurn(signal, "checking mappings");
    const at = (): string => `the mapping of process ${pid} at ${hex(vaddr)}`;
    if (pfn + pages > header.ramFrames) throw corrupt(`${at()} ends beyond RAM`);
    const offset = ownOffset({ chunks, extents }, pfn);
    if (offset !== blobOffset) throw corrupt(`${at()} says blob offset ${blobOffset}, and frame ${pfn} is at ${offset}`);
  }
}

function same(what: string, found: number, expected: number): void {
  if (found !== expected) throw corrupt(`it has ${found} ${what}, and ${expected} were saved`);
}

function corrupt(what: string): HibernaculumError {
  return damaged("HIB_CORRUPT", `the image does not agree with itself: ${what}`);
}

function* pathsOf({ paths }: ReferenceTable): Generator<NamedPath> {
  for (const path of paths) yield { what: "file", path };
}
