/** Removing images (`hib rm`). */
import { readdir, rename, rm } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { attemptTo, HibernaculumError } from "../base/errors.js";
import { headerOf } from "./chain.js";
import { loadChecksum } from "./checksum.js";
import { holdsImage, partialName, partialOf } from "./directory.js";
import { statIfThere, syncDirectory } from "./files.js";
import { BLOB_NAME, CATALOGUE_NAME } from "./format.js";
import { holderOf, readHistory } from "./markers.js";

/**
 * Removes an image, whatever state it is in. It is gone at once or not at all: it is renamed first, to what the next save sweeps.
 *
 * @returns bytes of its files
 * @throws HIB_NOT_AN_IMAGE; HIB_PARENT if another image there needs it; HIB_BUSY if it is being written or resumed; HIB_IO
 */
export async function removeImage(path: string): Promise<number> {
  await loadChecksum();
  const directory = resolve(path);
  if (!(await holdsImage(directory)))
    throw new HibernaculumError("HIB_NOT_AN_IMAGE", `${path} is no image; hib images lists what there is`);
  if (partialOf(basename(directory)) !== undefined)
    throw new HibernaculumError("HIB_BUSY", `${path} is not complete: a save writes it, or the next one there removes it`);
  const holder = holderOf(await readHistory(directory));
  if (holder !== undefined)
    throw new HibernaculumError("HIB_BUSY", `${path} is being resumed by process ${holder.pid}; wait for it, or end it`);
  const children = await childrenOf(directory);
  if (children.length > 0)
    throw new HibernaculumError(
      "HIB_PARENT",
      `${path} is needed by ${children.join(", ")}; remove what needs it first, or make that whole with hib merge`,
    );
  const bytes = await bytesOf(directory);
  await attemptTo(`removing ${path}`, async () => {
    const doomed = partialName(directory);
    await rename(directory, doomed);
    await syncDirectory(dirname(directory));
    await rm(doomed, { recursive: true });
  });
  return bytes;
}

/** Names of the images in the same directory that have it for a parent. The checksum must be loaded. */
export async function childrenOf(path: string): Promise<string[]> {
  const header = await headerOf(path);
  if (header === undefined) return []; // then no chain leads to it either
  const directory = dirname(path);
  const children: string[] = [];
  for (const name of await attemptTo(`looking for images that need ${path}`, () => readdir(directory))) {
    const other = await headerOf(join(directory, name));
    if (other?.parent?.id === header.id) children.push(name);
  }
  return children.sort();
}

/** Of blob and catalogue. */
export async function bytesOf(path: string): Promise<number> {
  const found = await Promise.all(
    [BLOB_NAME, CATALOGUE_NAME].map((name) => statIfThere(join(path, name)).catch(() => undefined)),
  );
  return found.reduce((sum, file) => sum + (file?.size ?? 0), 0);
}
