/**
 * What an image's catalogue says of the machine in it and of its save: processes, mappings, blocks and the report, read
 * from the image itself by the reader that a resume uses. Live memory is no source: a snapshot's machine has moved on. A
 * task of the pool, so that clients of the machine are answered meanwhile.
 */
import { isWithin, realPath } from "../base/allowed-paths.js";
import type { KeyObject } from "node:crypto";
import { Control } from "../base/control.js";
import { failpoint } from "../base/failpoints.js";
import type { SharedMemory } from "../base/wasm.js";
import { BlobReader } from "../image/blob.js";
import { joined } from "../image/chain.js";
import type { ImageKeys } from "../image/cipher.js";
import { CatalogueWriter } from "../image/catalogue-writer.js";
import { loadChecksum } from "../image/checksum.js";
import { type ExtentColumns, ExtentTable } from "../image/extents.js";
import type { Chunk, SealedCatalogue } from "../image/format.js";
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
  /** Encrypts it, and opened the blob's chunks. */
  keys?: ImageKeys | undefined;
  blob: string;
  /** What else the machine's memory is in: the image that this one has only the changes since. */
  parent: ParentFrames | undefined;
  facts: SaveFacts;
  extents: ExtentColumns;
  files: FileRow[];
  /** Frames that are in files of the host, and not in the blob. */
  references: Reference[];
  /** Of the machine. */
  name: string | undefined;
  digest: "none" | "sha256";
}

export interface ParentFrames {
  /** The name of its directory. */
  name: string;
  /** Its blob's and those of its ancestors. */
  blobs: readonly { path: string; key: KeyObject | undefined }[];
  chunks: readonly Chunk[];
  extents: ExtentColumns;
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
  { path, keys, blob, parent, facts, extents: columns, files, references, name, digest }: CatalogueTask,
): Promise<CatalogueResult> {
  await loadChecksum();
  const { frames, chunks, vcpus } = facts;
  const extents = ExtentTable.of(columns);
  const own = { chunks, extents };
  const all = parent === undefined ? own : joined(own, { ...parent, extents: ExtentTable.of(parent.extents) }, facts.path);
  const blobs: BlobReader[] = [];
  try {
    blobs.push(new BlobReader(blob, keys?.chunks));
    for (const { path, key } of parent?.blobs ?? []) blobs.push(new BlobReader(path, key));
    const memory = new ImageMemory({ frames, ...all, blobs, cachedChunks: CACHED_CHUNKS });
    const rows = machineRows(memory, all);
    const report = saveReport(facts, new Control(machine), rows.blocks, listProcesses(memory));
    failpoint("save.catalogue");
    const writer = CatalogueWriter.create(path, keys?.catalogue);
    writer.write({
      meta: {
        ...(name === undefined ? {} : { name }),
        ...(parent === undefined ? {} : { parent: parent.name }),
        report,
        sameFilledFrames: facts.counts.saved.sameFilled,
        vcpus,
      },
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
    for (const reader of blobs) reader.close();
  }
}

/** Those that are in none of the others. */
function outermost(paths: readonly string[]): string[] {
  const found: string[] = [];
  for (const path of [...new Set(paths)].sort()) if (!isWithin(path, found)) found.push(path);
  return found;
}
