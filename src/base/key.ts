/** Keys as a user gives them. What becomes of them is in `image/key-slots.ts`. */
import { open } from "node:fs/promises";
import { attemptTo, HibernaculumError } from "./errors.js";
import type { Rule } from "./options.js";

/** What opens an encrypted image. Several may: each has a slot of its own in the image's header. */
export type Key =
  /** Text that people remember. */
  | { passphrase: string }
  /** Path of a file of random bytes, 32 at the least; or those bytes. */
  | { keyFile: string | Uint8Array };

/** Keys, or who is asked for them once an image turns out to be encrypted. */
export type Keys = readonly Key[] | ((image: string) => Promise<readonly Key[]>);

/** The keys themselves. @param where - names the image that they are asked for */
export async function listed(keys: Keys, where: string): Promise<readonly Key[]> {
  return typeof keys === "function" ? keys(where) : keys;
}

/** Keys that one image may have. */
const KEYS_MAX = 8;
/** A key file is not stretched, so it must not be guessable. */
const KEY_FILE_BYTES_MIN = 32;
const SECRET_BYTES_MAX = 4096;

/** Of an image that is made. */
export const keyList: Rule = {
  must: `a list of 1 to ${KEYS_MAX} keys, each { passphrase } that is not empty, or { keyFile }`,
  holds: (value) => Array.isArray(value) && value.length >= 1 && value.length <= KEYS_MAX && value.every(isKey),
};
/** Of one that is opened; without a key, one that is not encrypted. */
export const keysToOpen: Rule = {
  must: `${keyList.must}, or a function that gives one`,
  holds: (value) => typeof value === "function" || keyList.holds(value) || (Array.isArray(value) && value.length === 0),
};

function isKey(value: unknown): value is Key {
  if (typeof value !== "object" || value === null || Object.keys(value).length !== 1) return false;
  const { passphrase, keyFile } = value as { passphrase?: unknown; keyFile?: unknown };
  if (typeof keyFile === "string") return keyFile !== "" && !keyFile.includes("\0");
  return (typeof passphrase === "string" && passphrase !== "") || keyFile instanceof Uint8Array;
}

/** What a key is made from. */
export interface Secret {
  kind: "passphrase" | "key file";
  bytes: Buffer;
}

/** The bytes of a key; whoever asks for them zeroes them. @throws HIB_IO, HIB_USAGE if a file is no key file */
export async function secretOf(key: Key): Promise<Secret> {
  // However it was typed: the same letters are the same key.
  if ("passphrase" in key) return { kind: "passphrase", bytes: Buffer.from(key.passphrase.normalize("NFC"), "utf8") };
  const bytes = typeof key.keyFile === "string" ? await readSecret(key.keyFile) : Buffer.from(key.keyFile);
  if (bytes.length >= KEY_FILE_BYTES_MIN && bytes.length <= SECRET_BYTES_MAX) return { kind: "key file", bytes };
  const what = typeof key.keyFile === "string" ? key.keyFile : "the key file";
  throw new HibernaculumError(
    "HIB_USAGE",
    `${what}: a key file has ${KEY_FILE_BYTES_MIN} to ${SECRET_BYTES_MAX} random bytes; head -c 32 /dev/urandom makes one`,
  );
}

/** What is in a small file, which may be a pipe; of one that is too long, a byte more than it may have. @throws HIB_IO */
export function readSecret(path: string): Promise<Buffer> {
  return attemptTo(`reading the key ${path}`, async () => {
    const file = await open(path, "r");
    try {
      const buffer = Buffer.alloc(SECRET_BYTES_MAX + 1);
      let length = 0;
      for (let read = 1; read > 0 && length < buffer.length; length += read)
        read = (await file.read(buffer, length, buffer.length - length, null)).bytesRead;
      return buffer.subarray(0, length);
    } finally {
      await file.close();
    }
  });
}
