/**
 * Images as directories of the local file system.
 *
 *     NAME/blob, NAME/catalogue.sqlite       an image
 *     NAME/used, attempt-1, outcome-1, ...   what has become of it (markers.ts)
 *     .NAME.partial-TAG-RANDOM/              one that a process is writing (host-process.ts: PID-HOST-START)
 *     NAME.set-aside-REASON[-N]/             one that a boot could not resume, out of the way
 *
 * What must hold:
 * - Nothing is ever at NAME but a complete image: it is written beside it, and one rename publishes it. An image that
 *   could not be published durably is withdrawn, since the machine that it is of goes on running.
 */
import { randomBytes } from "node:crypto";
import { mkdir, readdir, rename, rm } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { isDeepStrictEqual } from "node:util";
import { realPath } from "../base/allowed-paths.js";
import { attemptTo, damaged, HibernaculumError, naming } from "../base/errors.js";
import { type Keys, keysToOpen } from "../base/key.js";
import { failpoint } from "../base/failpoints.js";
import {
  abortSignal,
  callback,
  checkArguments,
  checkCall,
  path as pathRule,
  paths,
  type Rule,
  wholeNumber,
} from "../base/options.js";
import { fateOf, processTag } from "../base/host-process.js";
import { BlobReader } from "./blob.js";
import { Catalogue } from "./catalogue.js";
import { findParent, joined, refuseCircle } from "./chain.js";
import { hashFile, loadChecksum } from "./checksum.js";
import { unlock } from "./encryption.js";
import { refuseTaken, renameToFree, statIfThere, syncDirectory } from "./files.js";
import type { ExtentTable } from "./extents.js";
import { BLOB_NAME, CATALOGUE_NAME, type Chunk, decodeHeader, HEADER_BYTES, type ImageHeader, type OnCheck } from "./format.js";
import { ImageMemory, type ImageMemoryOptions } from "./image-memory.js";
import { notedPaths } from "./known-paths.js";
import { claimUse } from "./markers.js";
import type { ReferenceTable } from "./reference-table.js";
import { type ImageContents, readTables } from "./verify.js";

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
  onCheck?: OnCheck;
  /**
   * Paths of the host, or directories that they are in, that may be opened where the image names them. What this user's machine had
   * when it was saved may be, too.
   */
  allow?: readonly string[];
  /** What opens it, if it is encrypted; tried one after another. With a list of keys, an image that is not encrypted is refused. */
  keys?: Keys | undefined;
  /** Cancels. */
  signal?: AbortSignal | undefined;
}

const OPEN_RULES: Readonly<Record<keyof OpenOptions, Rule>> = {
  machineVersion: wholeNumber(0),
  onCheck: callback,
  allow: paths,
  keys: keysToOpen,
  signal: abortSignal,
};

/** An image open for reading. Its header, catalogue and counts are checked, its chunks are not yet. */
export class Image implements ImageContents {
  readonly path: string;
  readonly header: ImageHeader;
  readonly catalogue: Catalogue;
  readonly chunks: readonly Chunk[];
  readonly extents: ExtentTable;
  readonly references: ReferenceTable;
  readonly blob: BlobReader;
  readonly blobs: readonly BlobReader[];
  /** Real paths of what may be opened for it. */
  readonly allowed: readonly string[];
  /** Images that have the frames that this one lacks: its parent, that one's parent, ... */
  readonly ancestors: readonly string[];
  readonly #memories: ImageMemory[] = [];

  constructor(
    path: string,
    { header, catalogue, chunks, extents, references, blobs, allowed }: ImageContents,
    ancestors: readonly string[],
  ) {
    this.path = path;
    this.header = header;
    this.catalogue = catalogue;
    this.chunks = chunks;
    this.extents = extents;
    this.references = references;
    this.blob = blobs[0]!;
    this.blobs = blobs;
    this.allowed = allowed;
    this.ancestors = ancestors;
  }

  /** The stored machine's memory. */
  memory(options: Pick<ImageMemoryOptions, "cachedChunks" | "acceptedFiles" | "allowed"> = {}): ImageMemory {
    const memory = new ImageMemory({
      frames: this.header.ramFrames,
      chunks: this.chunks,
      extents: this.extents,
      references: this.references,
      blobs: this.blobs,
      allowed: this.allowed,
      ...options,
    });
    this.#memories.push(memory);
    return memory;
  }

  /** Await all reads first. May be called again. */
  close(): void {
    for (const memory of this.#memories.splice(0)) memory.close();
    for (const blob of this.blobs) blob.close();
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
  const partial = partialName(final);
  await refuseTaken(final);
  // It holds all of a machine's memory, secrets too.
  await attemptTo(`creating an image at ${final}`, () => mkdir(partial, { mode: 0o700 }));
  let published = false;
  return {
    path: final,
    blobPath: join(partial, BLOB_NAME),
    cataloguePath: join(partial, CATALOGUE_NAME),
    async publish() {
      await attemptTo(`publishing ${final}`, async () => {
        await syncDirectory(partial);
        failpoint("save.before-rename");
        await renameToFree(partial, final);
        try {
          await syncDirectory(dirname(final));
          failpoint("save.after-rename");
        } catch (error) {
          // Its machine goes on: it must not be there, nor come back after a crash of the host, or at least never be resumed.
          await rename(final, partial)
            .then(() => syncDirectory(dirname(final)))
            .catch(() => claimUse(final, "a save that failed").catch(() => undefined));
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
 * @throws HIB_USAGE, HIB_NOT_AN_IMAGE, HIB_IO, HIB_FORMAT_VERSION, HIB_MACHINE_VERSION, HIB_TRUNCATED, HIB_CORRUPT, HIB_PARENT, HIB_KEY_NEEDED,
 * HIB_KEY_WRONG, HIB_CANCELLED
 */
export async function openImage(path: string, options: OpenOptions = {}): Promise<Image> {
  checkCall("openImage", path, options, OPEN_RULES);
  return openDescended(path, options, []);
}

/** @param descendants - ids of the images that led here */
async function openDescended(path: string, options: OpenOptions, descendants: readonly string[]): Promise<Image> {
  const { machineVersion, onCheck = () => undefined, allow = [], keys = [], signal } = options;
  const { directory, page, header, blob } = await openLocked(path, options);
  let catalogue: Catalogue | undefined;
  let parent: Image | undefined;
  try {
    refuseCircle(path, header, descendants);
    const imageKeys = await unlock(page, header, keys, path);
    blob.key = imageKeys?.chunks;
    onCheck("key", imageKeys === undefined ? "not encrypted" : "opens it, and the header is its writer's");
    catalogue = Catalogue.open(directory, imageKeys?.catalogue);
    const own = await readTables(header, catalogue, signal).catch((error: unknown) => {
      throw naming(error, path);
    });
    if (header.parent !== null) {
      const at = await findParent(directory, header.parent, catalogue.meta["parent"]);
      const how = { keys, ...(machineVersion === undefined ? {} : { machineVersion }) };
      parent = await openDescended(at, how, [...descendants, header.id]);
      parent.catalogue.close();
      if (parent.header.ramFrames !== header.ramFrames)
        throw damaged("HIB_CORRUPT", `${path}: its parent ${at} is of a machine with other RAM`);
    }
    const tables = { ...own, ...(parent === undefined ? {} : joined(own, parent, path)) };
    const images = descendants.length === 0 && parent !== undefined ? `, images: ${parent.blobs.length + 1}` : "";
    onCheck("counts", `chunks: ${header.chunks}, extents: ${own.extents.length}, frames: ${header.frames}${images}`);
    const allowed = [...allow.map(realPath), ...(await notedPaths(directory, header))];
    const blobs = [blob, ...(parent?.blobs ?? [])];
    const ancestors = parent === undefined ? [] : [parent.path, ...parent.ancestors];
    return new Image(directory, { header, catalogue, ...tables, blobs, allowed }, ancestors);
  } catch (error) {
    parent?.close();
    catalogue?.close();
    blob.close();
    throw error;
  }
}

/**
 * The header of an image, once all is checked that needs no key: itself, the lengths, and the checksum of the catalogue's file.
 *
 * @throws as `openImage`
 */
export async function readHeader(path: string, options: Pick<OpenOptions, "machineVersion"> = {}): Promise<ImageHeader> {
  const { header, blob } = await openLocked(path, options);
  blob.close();
  return header;
}

async function openLocked(
  path: string,
  { machineVersion, onCheck = () => undefined }: Pick<OpenOptions, "machineVersion" | "onCheck">,
): Promise<{ directory: string; page: Uint8Array; header: ImageHeader; blob: BlobReader }> {
  await loadChecksum();
  const directory = resolve(path);
  const found = await statIfThere(directory);
  if (!found?.isDirectory()) {
    const advice = found === undefined ? "give the directory that hib save made" : "hib import makes one of a file of hib export";
    throw new HibernaculumError("HIB_NOT_AN_IMAGE", `no image at ${path}; ${advice}`);
  }
  const blobBytes = await sizeOf(directory, BLOB_NAME);
  onCheck("image", path);
  const blob = new BlobReader(join(directory, BLOB_NAME));
  try {
    const page = new Uint8Array(Math.min(blobBytes, HEADER_BYTES));
    await blob.read(page, 0, page.length);
    const header = decodeHeader(page, path, { expectedMachineVersion: machineVersion, onCheck });
    if (header.catalogueOffset !== 0 || header.used) throw damaged("HIB_CORRUPT", `${path}: its header is that of a stream`);
    checkSize(path, BLOB_NAME, blobBytes, header.blobBytes);
    checkSize(path, CATALOGUE_NAME, await sizeOf(directory, CATALOGUE_NAME), header.catalogueBytes);
    onCheck("complete", `blob of ${header.blobBytes} bytes, catalogue of ${header.catalogueBytes}`);
    await checkCatalogue(join(directory, CATALOGUE_NAME), path, header);
    onCheck("catalogue checksum", "agrees");
    return { directory, page, header, blob };
  } catch (error) {
    blob.close();
    throw error;
  }
}

/**
 * Compares a catalogue's file with the header.
 *
 * @param where - names the image
 * @throws HIB_CORRUPT, HIB_IO
 */
export async function checkCatalogue(file: string, where: string, header: ImageHeader): Promise<void> {
  const { catalogueHash, catalogueHeadBytes: head, catalogueHeadHash, catalogueDigest } = header;
  const found = await hashFile(file, { head, digest: catalogueDigest === null ? "none" : "sha256" });
  if (found.hash !== catalogueHash || found.headHash !== catalogueHeadHash)
    throw damaged("HIB_CORRUPT", `${where}: the catalogue does not agree with its checksum`);
  if (!isDeepStrictEqual(found.digest, catalogueDigest && Buffer.from(catalogueDigest)))
    throw damaged("HIB_CORRUPT", `${where}: the catalogue does not agree with its digest`);
}

/**
 * Whether a directory is an image, whatever is wrong with it: not every path that somebody mistyped may be renamed.
 *
 * @throws HIB_IO
 */
export async function holdsImage(path: string): Promise<boolean> {
  const directory = resolve(path);
  const found = await Promise.all([BLOB_NAME, CATALOGUE_NAME].map((name) => statIfThere(join(directory, name))));
  return found.some((file) => file?.isFile());
}

/**
 * Removes partial images whose process is gone. A process of another host or container cannot be seen from here: what it
 * writes, or left behind, stays. A user who knows that it is dead removes it by hand.
 *
 * @returns what was removed
 * @throws HIB_IO
 */
export async function removeStalePartials(parent: string): Promise<string[]> {
  checkArguments("removeStalePartials", { "the directory": [parent, pathRule] });
  return attemptTo(`looking into ${parent}, which must be a directory that can be written to`, async () => {
    const removed: string[] = [];
    for (const name of await readdir(parent)) {
      const partial = partialOf(name);
      if (partial?.writer !== "gone") continue;
      await rm(join(parent, name), { recursive: true, force: true });
      removed.push(join(parent, name));
    }
    return removed;
  });
}

/** A name beside an image for what is swept if this process dies. */
export function partialName(path: string): string {
  return join(dirname(path), `.${basename(path)}.partial-${processTag()}-${randomBytes(4).toString("hex")}`);
}

/** Which process writes, or wrote, the partial image of this name; undefined if it is not the name of one. */
export function partialOf(name: string): { pid: number; writer: ReturnType<typeof fateOf> } | undefined {
  const tag = /^\..+\.partial-(\d+-[0-9a-f]{8}-[0-9a-f]{8})-[0-9a-f]{8}$/.exec(name)?.[1];
  return tag === undefined ? undefined : { pid: Number.parseInt(tag, 10), writer: fateOf(tag) };
}

async function sizeOf(directory: string, name: string): Promise<number> {
  const found = await statIfThere(join(directory, name));
  const lacks = found === undefined ? `it has no ${name}` : `its ${name} is no regular file`;
  if (!found?.isFile()) throw new HibernaculumError("HIB_NOT_AN_IMAGE", `${directory} is not an image: ${lacks}`);
  return found.size;
}

function checkSize(path: string, name: string, found: number, expected: number): void {
  if (found !== expected) throw damaged("HIB_TRUNCATED", `${path}: ${name} is ${found} bytes long, and ${expected} were saved`);
}
