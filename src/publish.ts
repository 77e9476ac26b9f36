/**
 * The last step of a save: catalogue, header, syncs, rename. Until the rename there is no image, after it there is a whole one.
 */
import { basename, dirname } from "node:path";
import { FRAME_BYTES, MACHINE_BLOB_CURSOR } from "./base/layout.js";
import type { Reference } from "./base/host-file.js";
import { PACKAGE_VERSION } from "./base/version.js";
import type { Cancellation } from "./cow/cancellation.js";
import { readFaultStatistics } from "./cow/fault-statistics.js";
import type { Image, PartialImage } from "./image/directory.js";
import type { ExtentTable } from "./image/extents.js";
import type { NewEncryption } from "./image/encryption.js";
import { asParent, type ImageHeader, MACHINE_VERSION } from "./image/format.js";
import type { FileRow } from "./image/host-files.js";
import { notePaths } from "./image/known-paths.js";
import { sealBlob } from "./image/seal.js";
import type { Machine } from "./machine.js";
import type { CatalogueResult, CatalogueTask } from "./reports/image-catalogue.js";
import { publishedReport, type SaveFacts, type SaveReport } from "./reports/save-report.js";
import { livePid } from "./vm/tasks/process.js";
import type { ImageWriter } from "./writer/image-writer.js";

/** What an image is made of once all frames are in the blob. */
export interface ImageParts {
  /** What only the save knows of itself. */
  facts: Pick<SaveFacts, "id" | "time" | "keepRunning" | "approach" | "compression" | "at" | "counts">;
  written: ImageWriter;
  extents: ExtentTable;
  /** The image that has the frames which this one lacks. */
  base: Image | undefined;
  files: FileRow[];
  references: Reference[];
  /** Of the machine. */
  name: string | undefined;
  digest: "none" | "sha256";
  encryption?: NewEncryption | undefined;
}

/** @throws HIB_NO_SPACE, HIB_IO, HIB_CANCELLED, HIB_WORKER_DIED: there is no image then */
export async function publishImage(
  machine: Machine,
  image: PartialImage,
  cancellation: Cancellation,
  { facts: known, written, extents, base, files, references, name, digest, encryption }: ImageParts,
): Promise<SaveReport> {
  const { control, pool } = machine;
  const facts = factsOf(machine, image, known, written, base);
  const task: CatalogueTask = {
    path: image.cataloguePath,
    keys: encryption?.keys,
    blob: image.blobPath,
    parent: base && {
      name: basename(base.path),
      blobs: base.blobs.map(({ path, key }) => ({ path, key })),
      chunks: base.chunks,
      extents: base.extents.columns,
    },
    facts,
    extents: extents.columns,
    files,
    references,
    name,
    digest,
  };
  const [result] = await pool.runOn<CatalogueTask, CatalogueResult>(1, "catalogue", () => task, cancellation.cancel);
  const { report, paths, ...catalogue } = result!;
  cancellation.check();
  const { saved } = facts.counts;
  const plainHeader: ImageHeader = {
    machineVersion: MACHINE_VERSION,
    id: facts.id,
    parent: base === undefined ? null : asParent(base.header),
    compatible: 0,
    used: false,
    ramFrames: facts.frames,
    chunks: facts.chunks.length,
    blobBytes: control.load(MACHINE_BLOB_CURSOR) * FRAME_BYTES,
    catalogueOffset: 0,
    ...catalogue,
    frames: saved.frames + saved.byReference,
    time: facts.time,
    writer: `hibernaculum ${PACKAGE_VERSION}`,
  };
  const header = (await encryption?.finish(plainHeader)) ?? plainHeader;
  await sealBlob(image.blobPath, header);
  await notePaths(dirname(image.blobPath), header, paths); // harmless if the image is not published after all
  cancellation.checkLast();
  await image.publish();
  if (facts.keepRunning) machine.tracking.trackSince(asParent(header));
  return publishedReport(report, facts.at.began);
}

/** What the report is made from. */
function factsOf(
  { control, kernel, vcpus }: Machine,
  { path }: PartialImage,
  known: ImageParts["facts"],
  { locations, totals }: ImageWriter,
  base: Image | undefined,
): SaveFacts {
  const pidOf = (slot: number) => livePid(kernel.memory, slot);
  const faults = readFaultStatistics({ control, vcpus, pidOf }, known.at.armed, known.at.residual);
  return {
    ...known,
    parent: base?.path ?? null,
    frames: kernel.memory.frames,
    vcpus,
    path,
    chunks: locations.chunks,
    totals,
    faults,
  };
}
