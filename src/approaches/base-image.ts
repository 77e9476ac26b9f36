/** The image that a save is to have only the changes since. */
import { dirname, resolve } from "node:path";
import { HibernaculumError } from "../base/errors.js";
import type { Key } from "../base/key.js";
import { type Image, openImage } from "../image/directory.js";
import { isEncrypted } from "../image/encryption-header.js";
import { MACHINE_VERSION } from "../image/format.js";
import type { Machine } from "../machine.js";

/**
 * Opens it, with its own ancestors.
 *
 * @param path - where the new image is to be
 * @param keys - that the new image will have, if it is encrypted; one of them opens the base
 * @throws HIB_USAGE if it is in another directory; HIB_PARENT if it is not the image since which the machine tracks its stores; and
 * what opening an image throws
 */
export async function openBase(
  { tracking }: Machine,
  path: string,
  base: string,
  keys: readonly Key[] | undefined,
): Promise<Image> {
  if (dirname(resolve(base)) !== dirname(resolve(path)))
    throw new HibernaculumError(
      "HIB_USAGE",
      `${base} is in another directory than ${path}: an image and its base stay together; choose another path`,
    );
  const { since } = tracking;
  if (since === undefined)
    throw new HibernaculumError(
      "HIB_PARENT",
      "what changes in the machine has not been tracked since any image: make a whole image of it first, with --keep-running",
    );
  if ((await isEncrypted(base)) !== (keys !== undefined))
    throw new HibernaculumError(
      "HIB_USAGE",
      `an image and its base ${base} are both encrypted, or neither: ${keys === undefined ? "give its key" : "take a base that is"}`,
    );
  const image = await openImage(base, { machineVersion: MACHINE_VERSION, ...(keys && { keys }) });
  const { id, catalogueHash } = image.header;
  if (id === since.id && catalogueHash === since.catalogueHash) return image;
  image.close();
  throw new HibernaculumError(
    "HIB_PARENT",
    `${base} is not the image since which the machine tracks what changes: that is the last one made of it (id ${since.id})`,
  );
}

/** @param path - where it was */
export function baseIsGone(path: string): HibernaculumError {
  return new HibernaculumError(
    "HIB_PARENT",
    `${path} was removed or renamed while an image was made that needs it; make a whole one`,
  );
}
