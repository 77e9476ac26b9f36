/**
 * What an image's catalogue says of the machine in it and of its save: processes, mappings, blocks and the report, read
 * from the image itself by the reader that a resume uses. Live memory is no source: a snapshot's machine has moved on. A
 * task of the pool, so that clients of the machine are answered meanwhile.
 */
import { isWithin, realPath } from "../base/allowed-paths.js";
import { Control } from "../base/control.js";
import { failpoint } from "../base/failpoints.js";
import type { SharedMemory } from "../base/wasm.js";
import { BlobReader } from "../image/blob.js";
import { CatalogueWriter } from "../image/catalogue-writer.js";
import { loadChecksum } from "../image/checksum.js";
import { type ExtentColumns, ExtentTable } from "../image/extents.js";
import type { SealedCatalogue } from "../image/format.js";
import type { FileRow } from "../image/host-files.js";
import type { Reference } from "../base/host-file.js";
import { ImageMemory } from "../image/image-memory.js";
import { machineRows } from "./machine-rows.js";
import { type SaveFacts, type SaveReport, saveReport } from "./save-report.js";
import { hostPaths } from "../vm/views/host-paths.js";
import { listProcesses } from "../vm/tasks/process.js";

/** Decoded chunks to keep: the kernel's frames are in the first few. */
const CACHED_CHUNKS = 8;

export interface CatalogueTask {
  /** Where the catalogue is to be. */
  path: string;
  blob: string;
  facts: SaveFacts;
  extents: ExtentColumns;
  files: FileRow[];
  /** Frames that are in files of the host, and not in the blob. */
  references: Reference[];
  /** Of the machine. */
  name: string | undefined;
  digest: "none" | "sha256";
}

/** What the header says of the catalogue, and the report. */
export interface CatalogueResult extends SealedCatalogue {
  report: SaveReport;
  /** Real paths of what the machine has of the host. */
  paths: string[];
}

/**
 * Writes a catalogue and waits until it is on the disk.
 *
 * @throws HIB_NO_SPACE, HIB_IO, HIB_DEPENDENCY
 */
export async function writeCatalogue(
  machine: SharedMemory,
  { path, blob, facts, extents: columns, files, references, name, digest }: CatalogueTask,
): Promise<CatalogueResult> {
  await loadChecksum();
  const { frames, chunks, vcpus } = facts;
  const extents = ExtentTable.of(columns);
  const reader = new BlobReader(blob);
  try {
    const memory = new ImageMemory({ frames, chunks, extents, blob: reader, cachedChunks: CACHED_CHUNKS });
    const rows = machineRows(memory, { chunks, extents });
    const report = saveReport(facts, new Control(machine), rows.blocks, listProcesses(memory));
    failpoint("save.catalogue");
    const writer = CatalogueWriter.create(path);
    writer.write({
      meta: { ...(name === undefined ? {} : { name }), report, sameFilledFrames: facts.counts.saved.sameFilled, vcpus },
      ...rows,
      regions: [{ pfn: 0, frames }],
      chunks,
      extents,
      files,
      references,
    });
    failpoint("save.catalogue");
    const named = [...hostPaths(memory), ...files, ...references].map(({ path }) => realPath(path));
    const sealed = await writer.close({ digest });
    failpoint("save.catalogue");
    return { ...sealed, report, paths: outermost(named) };
  } finally {
    reader.close();
  }
}

/** Those that are in none of the others. */
function outermost(paths: readonly string[]): string[] {
  const found: string[] = [];
  for (const path of [...new Set(paths)].sort()) if (!isWithin(path, found)) found.push(path);
  return found;
}
