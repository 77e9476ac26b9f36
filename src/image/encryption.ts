/** How an image comes to be encrypted, and how it is opened: between keys that a user gives and those that the cipher takes. */
import { randomBytes, timingSafeEqual } from "node:crypto";
import { damaged, HibernaculumError } from "../base/errors.js";
import { type Key, type Keys, listed, type Secret, secretOf } from "../base/key.js";
import { deriveKeys, HEADER_TAG_BYTES, headerTag, type ImageKeys, KEY_BYTES } from "./cipher.js";
import { taggedBytes } from "./encryption-header.js";
import { encodeHeader, type ImageHeader } from "./format.js";
import { makeSlot, openSlots } from "./key-slots.js";

/** Of an image that is being made. */
export class NewEncryption {
  readonly keys: ImageKeys;
  readonly #slots: Promise<Buffer>;

  private constructor(keys: ImageKeys, slots: Promise<Buffer>) {
    this.keys = keys;
    this.#slots = slots;
    slots.catch(() => undefined); // looked at when the header is made, if there will be one
  }

  /**
   * Draws a data key. Slots are made meanwhile: a passphrase takes a third of a second.
   *
   * @param keys - each is to open the image; undefined: it is not to be encrypted
   * @throws HIB_IO, HIB_USAGE if a file is no key file
   */
  static async begin(keys: readonly Key[] | undefined): Promise<NewEncryption | undefined> {
    if (keys === undefined) return undefined;
    const secrets = await secretsOf(keys);
    const dataKey = randomBytes(KEY_BYTES);
    return new NewEncryption(deriveKeys(dataKey), makeSlots(secrets, dataKey));
  }

  /** The header with its slots and its tag. @throws HIB_NO_MEMORY if no key could be made of a passphrase */
  async finish(header: ImageHeader): Promise<ImageHeader> {
    const slots = await this.#slots;
    const page = encodeHeader({ ...header, encryption: { slots, tag: new Uint8Array(HEADER_TAG_BYTES) } });
    return { ...header, encryption: { slots, tag: headerTag(this.keys, taggedBytes(page)) } };
  }
}

async function makeSlots(secrets: readonly Secret[], dataKey: Buffer): Promise<Buffer> {
  const slots: Buffer[] = [];
  try {
    for (const secret of secrets) slots.push(await makeSlot(secret, dataKey)); // one after another: each may take 128 MiB
    return Buffer.concat(slots);
  } finally {
    dataKey.fill(0);
    for (const { bytes } of secrets) bytes.fill(0);
  }
}

/**
 * The keys of an image, or undefined of one that is not encrypted. Once it returns, all that the header says is its writer's word.
 *
 * @param page - its header as it is stored
 * @param keys - a list that is not empty is for an encrypted image; a function is called for one
 * @param where - names the image
 * @throws HIB_KEY_NEEDED, HIB_KEY_WRONG (also if there is a key and the image is not encrypted), HIB_CORRUPT if the header was changed,
 * HIB_NO_MEMORY, HIB_IO, HIB_USAGE
 */
export async function unlock(
  page: Uint8Array,
  { encryption }: ImageHeader,
  keys: Keys,
  where: string,
): Promise<ImageKeys | undefined> {
  if (encryption === undefined) {
    if (keys.length === 0 || typeof keys === "function") return undefined;
    throw new HibernaculumError(
      "HIB_KEY_WRONG",
      `${where} is not encrypted, so it is not an image that this key is for; if it is the right one, leave the key out`,
    );
  }
  const given = await listed(keys, where);
  if (given.length === 0)
    throw new HibernaculumError(
      "HIB_KEY_NEEDED",
      `${where} is encrypted: give its key by --key-file or --passphrase-file, or type its passphrase on a terminal`,
    );
  const secrets = await secretsOf(given);
  let dataKey: Buffer | undefined;
  try {
    dataKey = await openSlots(encryption.slots, secrets);
    if (dataKey === undefined)
      throw new HibernaculumError(
        "HIB_KEY_WRONG",
        `${where}: it is encrypted with another key; give the one that it was saved with`,
      );
    const imageKeys = deriveKeys(dataKey);
    if (!timingSafeEqual(headerTag(imageKeys, taggedBytes(page)), encryption.tag))
      throw damaged("HIB_CORRUPT", `${where}: the header was changed by somebody who has no key`);
    return imageKeys;
  } finally {
    dataKey?.fill(0);
    for (const { bytes } of secrets) bytes.fill(0);
  }
}

async function secretsOf(keys: readonly Key[]): Promise<Secret[]> {
  const secrets: Secret[] = [];
  for (const key of keys) secrets.push(await secretOf(key));
  return secrets;
}
