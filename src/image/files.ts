/** What Node's file functions lack for images: a rename that replaces nothing, a directory that is on the disk. */
import { constants, type Stats } from "node:fs";
import { lstat, open, rename, stat } from "node:fs/promises";
import { fromSystemError, HibernaculumError } from "../base/errors.js";

/** Undefined if nothing is there. @throws HIB_IO */
export async function statIfThere(path: string, how: (path: string) => Promise<Stats> = stat): Promise<Stats | undefined> {
  try {
    return await how(path);
  } catch (error) {
    if (["ENOENT", "ENOTDIR"].includes((error as NodeJS.ErrnoException).code ?? "")) return undefined;
    throw fromSystemError(error, `looking at ${path}`);
  }
}

/**
 * Reads a small file that may be somebody else's: a pipe would have no end, a link may lead anywhere.
 *
 * @throws what the host says, or an error if it is no regular file, larger than `most` bytes, or not `accepted`
 */
export async function readSmall(path: string, most: number, accepted: (status: Stats) => boolean = () => true): Promise<string> {
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW);
  try {
    const status = await file.stat();
    if (!status.isFile() || status.size > most || !accepted(status)) throw new Error(`${path} is not what it should be`);
    return await file.readFile("utf8");
  } finally {
    await file.close();
  }
}

/** Renames a directory to a name that must be free. @throws HIB_IMAGE_EXISTS, and what `rename` throws */
export async function renameToFree(from: string, to: string): Promise<void> {
  // A rename replaces an empty directory without a word, so look first; if anything is in it, the rename itself refuses.
  await refuseTaken(to);
  try {
    await rename(from, to);
  } catch (error) {
    await refuseTaken(to);
    throw error;
  }
}

/** @throws HIB_IMAGE_EXISTS */
export async function refuseTaken(path: string): Promise<void> {
  if ((await statIfThere(path, lstat)) === undefined) return;
  throw new HibernaculumError("HIB_IMAGE_EXISTS", `${path} exists already: remove it or choose another path`);
}

/** Has what was created, renamed or removed in a directory on the disk. */
export async function syncDirectory(path: string): Promise<void> {
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
