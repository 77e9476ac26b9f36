/**
 * What a resume needs for itself, while the machine that it restores has all the rest (S3.5): places for the frames that the booting
 * machine holds, the loaders' buffers, and the tables of the image's frames. Code and the runtime's heap are not counted.
 */
import { HibernaculumError } from "../base/errors.js";
import { FRAME_BYTES, POOL_BYTES } from "../base/layout.js";
import type { ExtentTable } from "../image/extents.js";
import { CHUNK_BYTES } from "../image/format.js";
import type { ReferenceTable } from "../image/reference-table.js";

/** Bytes. */
export interface OwnMemory {
  places: number;
  buffers: number;
  tables: number;
}

/** Of a loader: two chunks that are read, and one that is decoded. */
const LOADER_BYTES: number = 3 * CHUNK_BYTES;

/**
 * @param places - of the queue: one for each frame of the image that the booting machine holds is enough, whatever is stored to them
 */
export function ownMemory(
  {
    chunks,
    extents,
    references,
  }: { chunks: readonly { pieces: Uint8Array }[]; extents: ExtentTable; references: ReferenceTable },
  { places, loaders }: { places: number; loaders: number },
): OwnMemory {
  const { pfn, frames, chunk, first, fill } = extents;
  const columns = [pfn, frames, chunk, first, fill, references.pfn, references.frames, references.file, references.page];
  const ofChunks = chunks.reduce((sum, { pieces }) => sum + pieces.byteLength, 0);
  const order = 4 * (extents.length + chunks.length + 1);
  return {
    places: places * FRAME_BYTES,
    buffers: loaders * LOADER_BYTES,
    tables: [...columns, references.first, references.hashes].reduce((sum, { byteLength }) => sum + byteLength, ofChunks + order),
  };
}

/** @throws HIB_NO_MEMORY if it is more than what was reserved for it */
export function requireReserved({ places, buffers, tables }: OwnMemory, reserved: number): void {
  const needed = places + buffers + tables;
  const mib = (bytes: number): string => `${(Math.ceil((bytes / 2 ** 20) * 10) / 10).toFixed(1)} MiB`;
  if (needed > reserved)
    throw new HibernaculumError(
      "HIB_NO_MEMORY",
      `this resume needs ${mib(needed)} for itself (places: ${mib(places)}, buffers: ${mib(buffers)}, tables: ${mib(tables)}), and ${mib(reserved)} are reserved; reserve more, use fewer page threads, or boot with fewer boot processes`,
    );
  if (places > POOL_BYTES)
    throw new HibernaculumError(
      "HIB_NO_MEMORY",
      `this resume needs ${mib(places)} of places, and there are ${mib(POOL_BYTES)} outside of the machine's memory; resume without a reservation`,
    );
}
