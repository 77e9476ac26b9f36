/**
 * What an image's catalogue says of the machine in it: its processes, mappings and blocks, read from the image itself by
 * the reader that a resume uses. Live memory is no source: a snapshot's machine has moved on. A task of the pool, so that
 * whoever talks to the machine meanwhile is answered.
 */
import { BlobReader } from "./image/blob.js";
import { CatalogueWriter, type Meta } from "./image/catalogue.js";
import { loadChecksum } from "./image/checksum.js";
import { type Chunk, type ExtentColumns, ExtentTable } from "./image/format.js";
import { ImageMemory } from "./image/image-memory.js";
import { type BlockCount, describeMappings } from "./vm/describe.js";
import { listProcesses } from "./vm/process.js";

/** Decoded chunks to keep: the kernel's frames are in the first few. */
const CACHED_CHUNKS = 8;

export interface CatalogueTask {
  /** Where the catalogue is to be. */
  path: string;
  blob: string;
  /** Frames of RAM. */
  frames: number;
  meta: Meta;
  chunks: readonly Chunk[];
  extents: ExtentColumns;
  /** The image's blocks, counted: for the report they were counted already. */
  blocks: readonly BlockCount[];
}

/**
 * Writes a catalogue and waits until it is on the disk.
 *
 * @returns its length and XXH64, for the header
 * @throws HIB_NO_SPACE, HIB_IO, HIB_DEPENDENCY
 */
export async function writeCatalogue({
  path,
  blob,
  frames,
  meta,
  chunks,
  extents: columns,
  blocks,
}: CatalogueTask): Promise<{ bytes: number; hash: bigint }> {
  await loadChecksum();
  const extents = ExtentTable.of(columns);
  const reader = new BlobReader(blob);
  try {
    const memory = new ImageMemory({ frames, chunks, extents, blob: reader, cachedChunks: CACHED_CHUNKS });
    const blobOffset = (pfn: number): number | null => {
      const extent = extents.find(pfn);
      return extent < 0 ? null : (chunks[extents.chunk[extent]!]?.offset ?? null);
    };
    const writer = CatalogueWriter.create(path);
    writer.write({
      meta,
      chunks,
      extents,
      processes: listProcesses(memory).map((process) => ({
        pid: process.pid,
        slot: process.slot,
        name: process.text.split(":")[0]!,
        state: process.state,
        steps: process.steps,
        detail: process,
      })),
      mappings: (function* () {
        for (const { address, ...run } of describeMappings(memory))
          yield { ...run, vaddr: address, blobOffset: blobOffset(run.pfn) };
      })(),
      blocks,
    });
    return await writer.close();
  } finally {
    reader.close();
  }
}
