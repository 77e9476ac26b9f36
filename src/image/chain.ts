/**
 * Chains: an incremental image has the frames that changed since another one, its parent, which has the others; the parent may
 * have a parent, too. Opened, a chain is one image: chunks of all of them, and extents that lead to those.
 *
 *     extents of the child     16..19 chunk 0    20..99 parent                       its own chunks: 0, 1
 *     extents of the parent    10..29 chunk 4    30..99 fill 0                       its chunks: 0 to 6
 *     as one                   16..19 chunk 0    20..29 chunk 2 + 4    30..99 fill 0
 *
 * What must hold: the parent is the very image that the child was saved from, by its id and by the checksum of its catalogue, under
 * which all of it is. A chain ends: none of its images is in it twice.
 */
import { readdir } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { attemptTo, damaged, HibernaculumError } from "../base/errors.js";
import { BlobReader } from "./blob.js";
import { ExtentTable, OF_PARENT, REFERENCED } from "./extents.js";
import { BLOB_NAME, type Chunk, decodeHeader, HEADER_BYTES, type ImageHeader, type Parent } from "./format.js";

/** Images of a chain. */
export const CHAIN_MAX = 64;

/** Chunks and extents, of an image or of a chain. */
export interface Frames {
  chunks: readonly Chunk[];
  extents: ExtentTable;
}

/**
 * An image's frames and its parent's as one.
 *
 * @throws HIB_CORRUPT if the parent lacks frames that it should have
 */
export function joined(own: Frames, parent: Frames, where: string): Frames {
  const chunks = [...own.chunks, ...parent.chunks.map((chunk) => ({ ...chunk, generation: (chunk.generation ?? 0) + 1 }))];
  let count = 0;
  visitJoined(own.extents, parent.extents, where, () => count++);
  const extents = new ExtentTable(count);
  let i = 0;
  visitJoined(own.extents, parent.extents, where, (table, at, pfn, frames) => {
    const chunk = table.chunk[at]!;
    extents.pfn[i] = pfn;
    extents.frames[i] = frames;
    extents.chunk[i] = table === parent.extents && chunk >= 0 ? chunk + own.chunks.length : chunk;
    if (chunk >= 0) extents.first[i] = table.first[at]! + pfn - table.pfn[at]!;
    else extents.fill[i] = table.fill[at]!;
    i++;
  });
  return { chunks, extents };
}

/** Visits what is in the tables' extents, in order of pfn: so many frames from `pfn`, of extent `at` of one of the tables. */
function visitJoined(
  own: ExtentTable,
  parent: ExtentTable,
  where: string,
  visit: (table: ExtentTable, at: number, pfn: number, frames: number) => void,
): void {
  for (let i = 0; i < own.length; i++) {
    const end = own.pfn[i]! + own.frames[i]!;
    if (own.chunk[i] !== OF_PARENT) {
      visit(own, i, own.pfn[i]!, own.frames[i]!);
      continue;
    }
    for (let pfn = own.pfn[i]!, at = parent.find(pfn); pfn < end; at++) {
      // The parent's own pages of files of the host are none of its frames: a child refers to those itself.
      if (at < 0 || at >= parent.length || parent.pfn[at]! > pfn || parent.chunk[at] === REFERENCED)
        throw damaged("HIB_CORRUPT", `${where}: frame ${pfn} should be in its parent, and is not`);
      const frames = Math.min(end, parent.pfn[at]! + parent.frames[at]!) - pfn;
      visit(parent, at, pfn, frames);
      pfn += frames;
    }
  }
}

/**
 * Where an image's parent is: in the same directory, so that the two are moved together; under the name that it had, or another.
 *
 * @param path - the image
 * @param name - that its parent had, if that is known
 * @throws HIB_PARENT if it is not there, or another image has its place; HIB_IO
 */
export async function findParent(path: string, parent: Parent, name: unknown): Promise<string> {
  const directory = dirname(path);
  const named = typeof name === "string" && name !== "" && basename(name) === name && name !== ".." ? name : undefined;
  const names = await attemptTo(`looking for the parent of ${path}`, () => readdir(directory));
  const candidates = named === undefined ? names : [named, ...names.filter((each) => each !== named)];
  for (const candidate of candidates) {
    const header = await headerOf(join(directory, candidate));
    if (header?.id !== parent.id) continue;
    if (header.catalogueHash !== parent.catalogueHash)
      throw new HibernaculumError(
        "HIB_PARENT",
        `${path} needs the image ${candidate} as it was when it was saved, and that is another by now; put the right one there`,
      );
    return join(directory, candidate);
  }
  const what = named === undefined ? `the image with id ${parent.id}` : `the image ${named} (id ${parent.id})`;
  throw new HibernaculumError(
    "HIB_PARENT",
    `${path} has only what changed since ${what}, which is not in ${directory}; put it there`,
  );
}

/** The header of an image that is whole as far as that tells; undefined of anything else. The checksum must be loaded. */
export async function headerOf(path: string): Promise<ImageHeader | undefined> {
  let blob: BlobReader | undefined;
  try {
    blob = new BlobReader(join(path, BLOB_NAME));
    const page = new Uint8Array(HEADER_BYTES);
    await blob.read(page, 0, HEADER_BYTES);
    return decodeHeader(page, path);
  } catch {
    return undefined;
  } finally {
    blob?.close();
  }
}

/** @throws HIB_PARENT unless one more image can follow those with these ids */
export function refuseCircle(path: string, { id }: ImageHeader, descendants: readonly string[]): void {
  if (descendants.includes(id))
    throw new HibernaculumError("HIB_PARENT", `${path} is its own ancestor: the chain goes in a circle; use another image`);
  if (descendants.length >= CHAIN_MAX)
    throw new HibernaculumError("HIB_PARENT", `${path} is in a chain of more than ${CHAIN_MAX} images, which no program makes`);
}

/** Bytes of a frame's place in the blob of the image itself; null where it has none, or an ancestor has the frame. */
export function ownOffset({ chunks, extents }: Frames, pfn: number): number | null {
  const extent = extents.find(pfn);
  const chunk = extent < 0 ? undefined : chunks[extents.chunk[extent]!];
  return chunk === undefined || (chunk.generation ?? 0) > 0 ? null : chunk.offset;
}
