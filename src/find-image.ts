/**
 * The first step of a resume: every check of an image that can be made before it is loaded, in the order of S2.1. Files that the
 * machine wrote to, its disk first, are read and summed.
 */
import { resolve } from "node:path";
import { type NamedPath, notAllowed, openAllowed, outside } from "./base/allowed-paths.js";
import { fromSystemError, HibernaculumError } from "./base/errors.js";
import { FRAME_BYTES } from "./base/layout.js";
import { type Image, openImage } from "./image/directory.js";
import { MACHINE_VERSION } from "./image/format.js";
import { type ComparedFiles, compareFiles, type FileRow } from "./image/host-files.js";
import { readHistory, usedBefore } from "./image/markers.js";
import { diskOf, namedPaths } from "./named-paths.js";
import type { Machine } from "./machine.js";
import type { ResumeSteps } from "./reports/resume-report.js";
import { CANCEL_MESSAGES, type ResumeOptions } from "./resume-options.js";
import { walkMounts } from "./vm/files/path.js";

/** An image that can be resumed, and which of the host's files are not what they were when it was made. */
export interface FoundImage {
  image: Image;
  files: ComparedFiles;
}

/** S2.1, S2.9: an image that is whole, of this kernel and this much RAM, and not used. */
export async function findImage(machine: Machine, path: string, options: ResumeOptions, steps: ResumeSteps): Promise<FoundImage> {
  const { again = false, keepImage = false } = options;
  const image = await openImage(path, {
    machineVersion: MACHINE_VERSION,
    allow: agreed(machine, options),
    signal: options.signal,
    keys: options.keys,
    onCheck: (check, found) => steps.passed(check, found),
  });
  try {
    const { frames } = machine.kernel.memory;
    const { ramFrames } = image.header;
    if (ramFrames !== frames) {
      throw new HibernaculumError(
        "HIB_RAM_MISMATCH",
        `${path} is of a machine with ${ramFrames * FRAME_BYTES} bytes of RAM, and this one has ${frames * FRAME_BYTES}; boot with --ram ${(ramFrames * FRAME_BYTES) / 2 ** 20}M`,
      );
    }
    steps.passed("RAM size", `${frames * FRAME_BYTES} bytes`);
    const { used } = await readHistory(path);
    if (used !== null && !again && !keepImage) throw usedBefore(path, used);
    steps.passed("not used before", used === null ? "never resumed" : "resumed before; ignored as asked");
    const named = namedPaths(image);
    await refuseOthers(path, image, named, options);
    const mounts = named.filter(({ what }) => what === "mount");
    machine.mounts.prepareRestore(
      mounts.map((mount) => mount.path),
      image.allowed,
    );
    const rows = prepareDisk(machine, image, diskOf(named), options);
    const { signal } = options;
    const files = await compareFiles(rows, { open: (file) => openAllowed(file, image.allowed), signal });
    if (signal?.aborted === true) throw new HibernaculumError("HIB_CANCELLED", CANCEL_MESSAGES.cancelled);
    if (options.acceptChangedFiles === true) acceptChanged(image, rows, files);
    else refuseChangedFiles(path, files, options.disk === undefined ? diskOf(named) : undefined);
    steps.passed("files of the host", describeFiles(rows.length, files));
    return { image, files };
  } catch (error) {
    image.close();
    throw error;
  }
}

/** What the user has named by booting this machine and by asking for this resume. */
function agreed({ devices, kernel }: Machine, { allow = [], disk }: ResumeOptions): string[] {
  const { file } = devices.block;
  const mounts = Array.from(walkMounts(kernel.memory), ({ host }) => host);
  return [...allow, ...mounts, ...[file?.path, disk].filter((path) => path !== undefined)];
}

/** @throws HIB_NOT_ALLOWED before anything outside of the image is opened */
async function refuseOthers(
  path: string,
  image: Image,
  named: readonly NamedPath[],
  { disk, signal }: ResumeOptions,
): Promise<void> {
  const opened = named.filter(({ what }) => what !== "disk" || disk === undefined);
  const others = await outside(opened, image.allowed, signal);
  if (others.length > 0) throw notAllowed(path, others);
}

/** Takes the machine's disk, so that nobody else writes to it from before it is compared. Returns the files where they are now. */
function prepareDisk(
  machine: Machine,
  image: Image,
  saved: string | undefined,
  { disk, acceptChangedFiles }: ResumeOptions,
): FileRow[] {
  const rows = image.catalogue.files();
  if (saved === undefined) {
    if (disk === undefined) return rows;
    throw new HibernaculumError("HIB_USAGE", `${image.path} is of a machine without a disk; omit --disk`);
  }
  const path = disk === undefined ? saved : resolve(disk);
  try {
    machine.devices.block.prepareRestore(path, image.allowed);
  } catch (error) {
    // A disk that cannot be opened has changed: the comparison reports it, unless changes were accepted.
    if (error instanceof HibernaculumError) throw error;
    if (disk !== undefined && acceptChangedFiles !== true) throw fromSystemError(error, "opening the disk");
  }
  return rows.map((row) => (row.path === saved ? { ...row, path } : row));
}

/** Files that are not what they were are to be taken as they are; also those of pages that no process has open. */
function acceptChanged({ references }: Image, rows: readonly FileRow[], { changed }: ComparedFiles): void {
  const compared = new Set(rows.map(({ path }) => path));
  for (const path of references.paths) if (!compared.has(path)) changed.push({ path, how: "is not known" });
}

function describeFiles(count: number, { changed, moved }: ComparedFiles): string {
  if (changed.length > 0) return `${count}, changed and accepted: ${changed.map(({ path, how }) => `${path} ${how}`).join("; ")}`;
  return moved.length > 0 ? `${count}, as they were by their contents` : `${count}, as they were`;
}

/**
 * S3.6: a machine that goes on with other files than it had damages them.
 *
 * @param disk - where it was: it may be elsewhere now
 */
function refuseChangedFiles(path: string, { changed }: ComparedFiles, disk: string | undefined): void {
  if (changed.length === 0) return;
  const moved = changed.some((file) => file.path === disk) ? "if the disk was moved, name it with --disk FILE; else " : "";
  throw new HibernaculumError(
    "HIB_FILES_CHANGED",
    `${path}: files that the machine has open are not as they were when it was saved: ${changed
      .map((file) => `${file.path} ${file.how}`)
      .join("; ")}; ${moved}put them back, or go on with what they are by --accept-changed-files`,
  );
}
