/**
 * Merging: a whole image of one that needs others (`hib merge`). Chunks are taken as they are stored, from whichever image has them;
 * those that no frame needs any more are left out. Encrypted ones are encrypted anew: each image has a data key of its own.
 *
 * What must hold: as for every image (directory.ts). The machine in it is the same, so an image that was used cannot become one that
 * was not.
 */
import { type KeyObject, randomUUID } from "node:crypto";
import { dirname, resolve } from "node:path";
import { HibernaculumError } from "../base/errors.js";
import { listed } from "../base/key.js";
import { checkCall } from "../base/options.js";
import { PACKAGE_VERSION } from "../base/version.js";
import { BlobWriter } from "./blob.js";
import { CatalogueWriter } from "./catalogue-writer.js";
import { ownOffset } from "./chain.js";
import { checksum } from "./checksum.js";
import { checkDigest, digestOf, openStored, sealChunk } from "./codec.js";
import { createPartial, type Image, openImage, removeStalePartials } from "./directory.js";
import { NewEncryption } from "./encryption.js";
import { ExtentTable, SAME_FILLED } from "./extents.js";
import { CHUNK_BYTES, type Chunk, HEADER_BYTES, type ImageHeader } from "./format.js";
import { notedPaths, notePaths } from "./known-paths.js";
import { isUsed } from "./markers.js";
import { sealBlob } from "./seal.js";
import { checkCancelled, TRANSFER_RULES, type TransferOptions } from "./stream.js";

export interface Merged {
  header: ImageHeader;
  /** How many images it was made of. */
  images: number;
  /** Of the merged one. */
  bytes: number;
}

/**
 * @param path - an image with a parent
 * @param target - where the whole one is to be; must not exist
 * @throws HIB_USAGE if it has no parent; HIB_IMAGE_USED, HIB_IMAGE_EXISTS, HIB_NO_SPACE, HIB_IO, HIB_CANCELLED, and what opening and
 * reading an image throws: nothing is left behind
 */
export async function mergeImage(path: string, target: string, options: TransferOptions = {}): Promise<Merged> {
  checkCall("mergeImage", path, options, TRANSFER_RULES);
  const { keys = [], signal, onProgress } = options;
  const image = await openImage(path, { keys, signal });
  try {
    if (image.header.parent === null)
      throw new HibernaculumError("HIB_USAGE", `${path} needs no other image, so there is nothing to merge`);
    await refuseUsed(path);
    await removeStalePartials(dirname(resolve(target)));
    const partial = await createPartial(target);
    try {
      // Opened by the keys that opened the chain.
      const encryption = await NewEncryption.begin(image.header.encryption && (await listed(keys, path)));
      const { chunks, numbers } = neededChunks(image);
      const to = { path: partial.blobPath, key: encryption?.keys.chunks };
      await copyChunks(image, chunks, to, { signal, ...(onProgress && { onProgress }) });
      const catalogue = { path: partial.cataloguePath, key: encryption?.keys.catalogue };
      const plain = await writeCatalogue(image, { chunks: chunks.map(({ merged }) => merged), numbers }, catalogue);
      const header = (await encryption?.finish(plain)) ?? plain;
      await sealBlob(partial.blobPath, header);
      await notePaths(dirname(partial.blobPath), header, await notedPaths(image.path, image.header));
      checkCancelled(signal);
      await refuseUsed(path);
      await partial.publish();
      return { header, images: image.blobs.length, bytes: header.blobBytes + header.catalogueBytes };
    } finally {
      await partial.discard();
    }
  } finally {
    image.close();
  }
}

async function refuseUsed(path: string): Promise<void> {
  if (await isUsed(path))
    throw new HibernaculumError("HIB_IMAGE_USED", `${path} was resumed: a whole image of it could be resumed a second time`);
}

interface Taken {
  stored: Chunk;
  merged: Chunk;
}

/** The chunks that a frame needs, with what they will be; and their new numbers by the old ones, -1 for the others. */
function neededChunks({ chunks, extents }: Image): { chunks: Taken[]; numbers: Int32Array } {
  const { start } = extents.byChunk(chunks.length);
  const numbers = new Int32Array(chunks.length).fill(-1);
  const taken: Taken[] = [];
  let offset = HEADER_BYTES;
  for (const [number, stored] of chunks.entries()) {
    if (start[number] === start[number + 1]) continue;
    const { generation: _, ...chunk } = stored;
    numbers[number] = taken.length;
    taken.push({ stored, merged: { ...chunk, id: taken.length, offset } });
    offset += stored.stored;
  }
  return { chunks: taken, numbers };
}

async function copyChunks(
  image: Image,
  chunks: readonly Taken[],
  { path, key }: { path: string; key: KeyObject | undefined },
  { signal, onProgress }: TransferOptions,
): Promise<void> {
  const total = chunks.reduce((sum, { stored }) => sum + stored.stored, 0);
  const buffer = new Uint8Array(CHUNK_BYTES);
  const blob = await BlobWriter.open(path, { direct: false });
  try {
    let done = 0;
    for (const { stored, merged } of chunks) {
      checkCancelled(signal);
      const bytes = buffer.subarray(0, stored.stored);
      const source = image.blobs[stored.generation ?? 0]!;
      await source.read(bytes, stored.offset, stored.stored);
      checkDigest(stored, bytes);
      const plain = openStored(stored, bytes, source.key);
      if (key !== undefined) {
        merged.pieces = sealChunk(key, merged.id, plain);
        merged.hash = checksum(merged.pieces);
        if (merged.digest !== null) merged.digest = digestOf(plain);
      }
      await blob.write(plain, merged.offset);
      onProgress?.((done += bytes.length), total);
    }
  } finally {
    await blob.close();
  }
}

async function writeCatalogue(
  image: Image,
  { chunks, numbers }: { chunks: Chunk[]; numbers: Int32Array },
  { path, key }: { path: string; key: KeyObject | undefined },
): Promise<ImageHeader> {
  const { catalogue, header, references } = image;
  const extents = renumbered(image.extents, numbers);
  const { parent: _, ...meta } = catalogue.meta;
  let sameFilledFrames = 0;
  for (let i = 0; i < extents.length; i++) if (extents.chunk[i] === SAME_FILLED) sameFilledFrames += extents.frames[i]!;
  const writer = CatalogueWriter.create(path, key);
  writer.write({
    meta: { ...meta, sameFilledFrames },
    regions: catalogue.regions(),
    chunks,
    extents,
    references: Array.from({ length: references.length }, (_, i) => references.at(i)),
    processes: catalogue.processes(),
    mappings: (function* () {
      for (const mapping of catalogue.mappings()) yield { ...mapping, blobOffset: ownOffset({ chunks, extents }, mapping.pfn) };
    })(),
    objects: catalogue.objects(),
    blocks: catalogue.blocks(),
    files: catalogue.files(),
    mounts: catalogue.mounts(),
  });
  const sealed = await writer.close({ digest: header.catalogueDigest === null ? "none" : "sha256" });
  return {
    ...header,
    ...sealed,
    id: randomUUID(),
    parent: null,
    chunks: chunks.length,
    blobBytes: chunks.reduce((end, { stored }) => end + stored, HEADER_BYTES),
    writer: `hibernaculum ${PACKAGE_VERSION}`,
  };
}

/** The same extents, with the chunks' new numbers. */
function renumbered(extents: ExtentTable, numbers: Int32Array): ExtentTable {
  return ExtentTable.of({ ...extents.columns, chunk: extents.chunk.map((chunk) => (chunk < 0 ? chunk : numbers[chunk]!)) });
}
