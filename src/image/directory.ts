/**
 * Images as directories of the local file system.
 *
 *     NAME/blob, NAME/catalogue.sqlite       an image
 *     NAME/used                              it was resumed (S2.9)
 *     NAME/attempt-1, attempt-2, ...         a resume of it was begun (S2.5)
 *     .NAME.partial-PID-RANDOM/              one that process PID is writing
 *     NAME.set-aside-REASON[-N]/             a bad one, out of the way
 *
 * What must hold:
 * - Nothing is ever at NAME but a complete image: it is written beside it, and one rename publishes it. An image that
 *   could not be published durably is withdrawn, since the machine that it is of goes on running.
 * - Markers are on the disk before the call returns, and only one of two who claim at once gets the image.
 */
import { randomBytes } from "node:crypto";
import type { Stats } from "node:fs";
import { lstat, mkdir, open, readdir, readFile, rename, rm, stat } from "node:fs/promises";
import { hostname } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import process from "node:process";
import { fromSystemError, damaged, HibernaculumError } from "../base/errors.js";
import { failpoint } from "../base/failpoints.js";
import { BlobReader } from "./blob.js";
import { Catalogue } from "./catalogue.js";
import { hashFile, loadChecksum } from "./checksum.js";
import {
  BLOB_NAME,
  CATALOGUE_NAME,
  type Chunk,
  decodeHeader,
  type ExtentTable,
  HEADER_BYTES,
  type ImageHeader,
} from "./format.js";
import { ImageMemory } from "./image-memory.js";
import { checkCounts, type ImageContents } from "./verify.js";

/** What a place for images must be able to do. */
export interface ImageStore {
  createPartial(path: string): Promise<PartialImage>;
  openImage(path: string, options?: OpenOptions): Promise<Image>;
  isUsed(path: string): Promise<boolean>;
  claimUse(path: string, who: string): Promise<void>;
  recordAttempt(path: string): Promise<number>;
  setAside(path: string, reason: string): Promise<string>;
  removeStalePartials(parent: string): Promise<string[]>;
}

/** An image that is being written. */
export interface PartialImage {
  /** Where it will be. */
  readonly path: string;
  readonly blobPath: string;
  readonly cataloguePath: string;
  /**
   * Makes it visible under its name, durably. The blob must be sealed, both files synced and closed.
   *
   * @throws HIB_IMAGE_EXISTS, HIB_IO, HIB_NO_SPACE; then nothing is visible, and `discard` is due
   */
  publish(): Promise<void>;
  /** Removes what was written; without effect once it is published. Never throws. */
  discard(): Promise<void>;
}

export interface OpenOptions {
  /** The kernel's; an image of another is refused. */
  machineVersion?: number;
}

/** An image open for reading. Its header, catalogue and counts are checked, its chunks are not yet. */
export class Image implements ImageContents {
  readonly path: string;
  readonly header: ImageHeader;
  readonly catalogue: Catalogue;
  readonly chunks: readonly Chunk[];
  readonly extents: ExtentTable;
  readonly blob: BlobReader;

  constructor(path: string, { header, catalogue, chunks, extents, blob }: ImageContents) {
    this.path = path;
    this.header = header;
    this.catalogue = catalogue;
    this.chunks = chunks;
    this.extents = extents;
    this.blob = blob;
  }

  /** The stored machine's memory. */
  memory(options: { cachedChunks?: number } = {}): ImageMemory {
    return new ImageMemory({
      frames: this.header.ramFrames,
      chunks: this.chunks,
      extents: this.extents,
      blob: this.blob,
      ...options,
    });
  }

  /** Await all reads first. May be called again. */
  close(): void {
    this.blob.close();
    this.catalogue.close();
  }
}

/**
 * Begins an image that is to be at `path`.
 *
 * @throws HIB_IMAGE_EXISTS, HIB_IO, HIB_NO_SPACE
 */
export async function createPartial(path: string): Promise<PartialImage> {
  const final = resolve(path);
  const partial = join(dirname(final), `.${basename(final)}.partial-${process.pid}-${randomBytes(4).toString("hex")}`);
  await refuseTaken(final);
  // It holds all of a machine's memory, secrets too.
  await attempt(`creating an image at ${final}`, () => mkdir(partial, { mode: 0o700 }));
  let published = false;
  return {
    path: final,
    blobPath: join(partial, BLOB_NAME),
    cataloguePath: join(partial, CATALOGUE_NAME),
    async publish() {
      await attempt(`publishing ${final}`, async () => {
        await syncDirectory(partial);
        failpoint("save.before-rename");
        await renameToFree(partial, final);
        try {
          await syncDirectory(dirname(final));
          failpoint("save.after-rename");
        } catch (error) {
          // Its machine goes on: it must not be there, or at least never be resumed.
          await rename(final, partial).catch(() => claimUse(final, "a save that failed").catch(() => undefined));
          throw error;
        }
      });
      published = true;
    },
    async discard() {
      if (!published) await rm(partial, { recursive: true, force: true }).catch(() => undefined);
    },
  };
}

/**
 * Opens an image and checks all of it but the chunks.
 *
 * @throws HIB_NOT_AN_IMAGE, HIB_IO, HIB_FORMAT_VERSION, HIB_MACHINE_VERSION, HIB_TRUNCATED, HIB_CORRUPT, HIB_DEPENDENCY
 */
export async function openImage(path: string, { machineVersion }: OpenOptions = {}): Promise<Image> {
  await loadChecksum();
  const directory = resolve(path);
  if (!(await statIfThere(directory))?.isDirectory()) {
    throw new HibernaculumError("HIB_NOT_AN_IMAGE", `no image at ${path}; give the directory that hib save made`);
  }
  const blobBytes = await sizeOf(directory, BLOB_NAME);
  const catalogueBytes = await sizeOf(directory, CATALOGUE_NAME);
  const blob = new BlobReader(join(directory, BLOB_NAME));
  let catalogue: Catalogue | undefined;
  try {
    const page = new Uint8Array(Math.min(blobBytes, HEADER_BYTES));
    await blob.read(page, 0, page.length);
    const header = decodeHeader(page, path, { expectedMachineVersion: machineVersion });
    checkSize(path, BLOB_NAME, blobBytes, header.blobBytes);
    checkSize(path, CATALOGUE_NAME, catalogueBytes, header.catalogueBytes);
    const { hash } = await hashFile(join(directory, CATALOGUE_NAME));
    if (hash !== header.catalogueHash) {
      throw damaged("HIB_CORRUPT", `${path}: the catalogue does not agree with its checksum`);
    }
    catalogue = Catalogue.open(directory);
    const contents = { header, catalogue, chunks: catalogue.chunks(), extents: catalogue.extents(), blob };
    checkCounts(contents);
    return new Image(directory, contents);
  } catch (error) {
    catalogue?.close();
    blob.close();
    throw error;
  }
}

/** True if the image was resumed before. */
export async function isUsed(path: string): Promise<boolean> {
  return (await statIfThere(join(resolve(path), "used"))) !== undefined;
}

/**
 * Claims an image for the one use that it is good for.
 *
 * @param who is named to those who come later
 * @throws HIB_IMAGE_USED if it was claimed before, HIB_IO, HIB_NO_SPACE
 */
export async function claimUse(path: string, who: string): Promise<void> {
  const marker = join(resolve(path), "used");
  const note = { time: new Date().toISOString(), pid: process.pid, host: hostname(), who };
  if (await createMarker(marker, note)) return;
  const earlier = await readFile(marker, "utf8")
    .then(JSON.parse)
    .catch(() => ({})); // perhaps not written to its end
  const by =
    typeof earlier.time === "string" ? ` (${earlier.time} by ${earlier.who}, process ${earlier.pid} on ${earlier.host})` : "";
  throw new HibernaculumError(
    "HIB_IMAGE_USED",
    `${path} was resumed before${by}: a second machine with the same history can damage files that both use; --again resumes it nevertheless`,
  );
}

/**
 * Notes that a resume begins, so that one that dies is not tried for ever.
 *
 * @returns how many there were, with this one
 * @throws HIB_IO, HIB_NO_SPACE
 */
export async function recordAttempt(path: string): Promise<number> {
  const note = { time: new Date().toISOString(), pid: process.pid, host: hostname() };
  for (let n = 1; ; n++) if (await createMarker(join(resolve(path), `attempt-${n}`), note)) return n;
}

/**
 * Renames an image so that no boot finds it again.
 *
 * @param reason one or two words
 * @returns its new path
 * @throws HIB_IO
 */
export async function setAside(path: string, reason: string): Promise<string> {
  const from = resolve(path);
  const to = `${from}.set-aside-${reason.toLowerCase().replace(/[^a-z0-9]+/g, "-")}`;
  return attempt(`setting aside ${path}`, async () => {
    for (let n = 1; ; n++) {
      const name = n === 1 ? to : `${to}-${n}`;
      try {
        await renameToFree(from, name);
      } catch (error) {
        if (error instanceof HibernaculumError && error.code === "HIB_IMAGE_EXISTS") continue;
        throw error;
      }
      await syncDirectory(dirname(from));
      return name;
    }
  });
}

/**
 * Removes partial images whose process is gone. A process of another host or container cannot be seen from here: let
 * each have a directory of its own.
 *
 * @returns what was removed
 * @throws HIB_IO
 */
export async function removeStalePartials(parent: string): Promise<string[]> {
  return attempt(`sweeping ${parent}`, async () => {
    const removed: string[] = [];
    for (const name of await readdir(parent)) {
      const pid = /^\..+\.partial-(\d+)-[0-9a-f]{8}$/.exec(name)?.[1];
      if (pid === undefined || isAlive(Number(pid))) continue;
      await rm(join(parent, name), { recursive: true, force: true });
      removed.push(join(parent, name));
    }
    return removed;
  });
}

/** This file's functions as a place for images. */
export const localDirectory: ImageStore = {
  createPartial,
  openImage,
  isUsed,
  claimUse,
  recordAttempt,
  setAside,
  removeStalePartials,
};

async function attempt<T>(doing: string, operation: () => Promise<T>): Promise<T> {
  try {
    return await operation();
  } catch (error) {
    throw fromSystemError(error, doing);
  }
}

async function statIfThere(path: string, how: (path: string) => Promise<Stats> = stat): Promise<Stats | undefined> {
  try {
    return await how(path);
  } catch (error) {
    if (["ENOENT", "ENOTDIR"].includes((error as NodeJS.ErrnoException).code ?? "")) return undefined;
    throw fromSystemError(error, `looking at ${path}`);
  }
}

async function sizeOf(directory: string, name: string): Promise<number> {
  const found = await statIfThere(join(directory, name));
  if (!found?.isFile()) throw new HibernaculumError("HIB_NOT_AN_IMAGE", `${directory} is not an image: it has no ${name}`);
  return found.size;
}

function checkSize(path: string, name: string, found: number, expected: number): void {
  if (found !== expected) throw damaged("HIB_TRUNCATED", `${path}: ${name} is ${found} bytes long, and ${expected} were saved`);
}

/** Renames a directory to a name that must be free. */
async function renameToFree(from: string, to: string): Promise<void> {
  // A rename replaces an empty directory without a word, so look first; if anything is in it, the rename itself refuses.
  await refuseTaken(to);
  try {
    await rename(from, to);
  } catch (error) {
    await refuseTaken(to);
    throw error;
  }
}

async function refuseTaken(path: string): Promise<void> {
  if ((await statIfThere(path, lstat)) === undefined) return;
  throw new HibernaculumError("HIB_IMAGE_EXISTS", `${path} exists already: remove it or choose another path`);
}

/** A file that only one of all can create. False if it is there. */
async function createMarker(path: string, note: object): Promise<boolean> {
  return attempt(`marking ${path}`, async () => {
    const file = await open(path, "wx").catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "EEXIST") throw error;
      return undefined;
    });
    if (file === undefined) return false;
    try {
      await file.writeFile(`${JSON.stringify(note)}\n`);
      await file.sync();
      await syncDirectory(dirname(path));
      return true;
    } catch (error) {
      await rm(path, { force: true }).catch(() => undefined); // what it says does not come to pass
      throw error;
    } finally {
      await file.close();
    }
  });
}

async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, "r");
  try {
    await directory.sync();
  } catch (error) {
    // Some network file systems have no such thing.
    if ((error as NodeJS.ErrnoException).code !== "EINVAL") throw error;
  } finally {
    await directory.close();
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== "ESRCH";
  }
}
