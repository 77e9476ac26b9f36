/**
 * What an image's catalogue says of the machine in it: its processes, mappings and blocks, read from the image itself by
 * the reader that a resume uses. Live memory is no source: a snapshot's machine has moved on.
 */
import { CatalogueWriter, type Meta } from "./image/catalogue.js";
import type { Chunk, ExtentTable } from "./image/format.js";
import type { ImageMemory } from "./image/image-memory.js";
import { countBlocks, describeMappings } from "./vm/describe.js";
import { listProcesses } from "./vm/process.js";

/**
 * Writes a catalogue and waits until it is on the disk.
 *
 * @returns its length and XXH64, for the header
 * @throws HIB_NO_SPACE, HIB_IO, HIB_DEPENDENCY
 */
export async function writeCatalogue(
  path: string, meta: Meta, chunks: readonly Chunk[], extents: ExtentTable, memory: ImageMemory,
): Promise<{ bytes: number; hash: bigint }> {
  const writer = CatalogueWriter.create(path);
  const blobOffset = (pfn: number): number | null => {
    const extent = extents.find(pfn);
    return extent < 0 ? null : (chunks[extents.chunk[extent]!]?.offset ?? null);
  };
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
      for (const { address, ...run } of describeMappings(memory)) yield { ...run, vaddr: address, blobOffset: blobOffset(run.pfn) };
    })(),
    blocks: countBlocks(memory),
  });
  return writer.close();
}
