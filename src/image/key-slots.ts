/**
 * Key slots: the data key of an image, encrypted once for each key that opens it. 128 bytes each, little endian:
 *
 *      0  u32       kind: 1 passphrase, 2 key file
 *      4  3 x u32   scrypt's log2 N, r and p; of a key file 0
 *     16  32 bytes  salt
 *     48  32 bytes  the data key, encrypted with AES-256-GCM, nonce 0: the salt makes a key that is used once
 *     80  16 bytes  tag of that; bytes 0 to 47 are authenticated with it
 *     96  32 bytes  zeros
 *
 * What must hold: scrypt takes no more memory or time than a good slot asks for, whatever stands in one.
 */
import { createCipheriv, createDecipheriv, type KeyObject, randomBytes, scrypt } from "node:crypto";
import { HibernaculumError } from "../base/errors.js";
import type { Secret } from "../base/key.js";
import { hkdf, KEY_BYTES, keyObject, TAG_BYTES } from "./cipher.js";

export const SLOT_BYTES = 128;
const KIND_PASSPHRASE = 1;
const KIND_KEY_FILE = 2;
const SALT_AT = 16;
const WRAPPED_AT = 48;
const TAG_AT = WRAPPED_AT + KEY_BYTES;
const NONCE = new Uint8Array(12);

export interface ScryptCost {
  /** log2 of N. */
  log2n: number;
  r: number;
  p: number;
}

/** 128 MiB, a third of a second. */
export const SCRYPT_COST: ScryptCost = { log2n: 17, r: 8, p: 1 };
const SCRYPT_BYTES_MAX = 2 ** 28;

/** A slot by which `secret` gives the data key. @throws HIB_NO_MEMORY */
export async function makeSlot({ kind, bytes }: Secret, dataKey: Uint8Array): Promise<Buffer> {
  const slot = Buffer.alloc(SLOT_BYTES);
  slot.writeUInt32LE(kind === "passphrase" ? KIND_PASSPHRASE : KIND_KEY_FILE, 0);
  if (kind === "passphrase") {
    slot.writeUInt32LE(SCRYPT_COST.log2n, 4);
    slot.writeUInt32LE(SCRYPT_COST.r, 8);
    slot.writeUInt32LE(SCRYPT_COST.p, 12);
  }
  randomBytes(WRAPPED_AT - SALT_AT).copy(slot, SALT_AT);
  const cipher = createCipheriv("aes-256-gcm", await slotKey(slot, bytes), NONCE, { authTagLength: TAG_BYTES });
  cipher.setAAD(slot.subarray(0, WRAPPED_AT));
  cipher.update(dataKey).copy(slot, WRAPPED_AT);
  cipher.final();
  cipher.getAuthTag().copy(slot, TAG_AT);
  return slot;
}

/**
 * The data key, by the first slot that one of the secrets opens; undefined if none does.
 *
 * @throws HIB_CORRUPT for a slot that would take more than any writer asks for, HIB_NO_MEMORY
 */
export async function openSlots(slots: Uint8Array, secrets: readonly Secret[]): Promise<Buffer | undefined> {
  for (let at = 0; at < slots.length; at += SLOT_BYTES) {
    const slot = Buffer.from(slots.subarray(at, at + SLOT_BYTES));
    const kind = slot.readUInt32LE(0);
    for (const secret of secrets) {
      if (kind !== (secret.kind === "passphrase" ? KIND_PASSPHRASE : KIND_KEY_FILE)) continue; // or one that is to come
      const dataKey = unwrap(slot, await slotKey(slot, secret.bytes));
      if (dataKey !== undefined) return dataKey;
    }
  }
  return undefined;
}

/** What `hib images` may say of an image's slots. */
export function describeSlots(slots: Uint8Array): ("passphrase" | "key file" | "unknown")[] {
  const kinds: Record<number, "passphrase" | "key file"> = { [KIND_PASSPHRASE]: "passphrase", [KIND_KEY_FILE]: "key file" };
  return Array.from({ length: slots.length / SLOT_BYTES }, (_, i) => kinds[slots[i * SLOT_BYTES]!] ?? "unknown");
}

function unwrap(slot: Buffer, key: KeyObject): Buffer | undefined {
  const decipher = createDecipheriv("aes-256-gcm", key, NONCE, { authTagLength: TAG_BYTES });
  decipher.setAAD(slot.subarray(0, WRAPPED_AT)).setAuthTag(slot.subarray(TAG_AT, TAG_AT + TAG_BYTES));
  const dataKey = decipher.update(slot.subarray(WRAPPED_AT, TAG_AT));
  try {
    decipher.final();
    return dataKey;
  } catch {
    return undefined;
  }
}

async function slotKey(slot: Buffer, secret: Buffer): Promise<KeyObject> {
  const salt = slot.subarray(SALT_AT, WRAPPED_AT);
  if (slot.readUInt32LE(0) === KIND_KEY_FILE) return keyObject(hkdf(secret, salt, "hibernaculum key file"));
  const [log2n, r, p] = [4, 8, 12].map((at) => slot.readUInt32LE(at)) as [number, number, number];
  return keyObject(await stretch(secret, salt, { log2n, r, p }));
}

/**
 * scrypt, in a thread of Node's.
 *
 * @param most - bytes that it may take
 * @throws HIB_CORRUPT for a cost beyond any bound, HIB_NO_MEMORY
 */
export function stretch(
  secret: Buffer,
  salt: Uint8Array,
  { log2n, r, p }: ScryptCost,
  most: number = 2 * SCRYPT_BYTES_MAX,
): Promise<Buffer> {
  const cost = 128 * 2 ** log2n * r * p;
  if (!(log2n >= 1 && log2n <= 24 && r >= 1 && p >= 1 && cost <= SCRYPT_BYTES_MAX))
    throw new HibernaculumError(
      "HIB_CORRUPT",
      `a key slot asks for scrypt with N = 2^${log2n}, r = ${r}, p = ${p}, more than this program will spend: the image is damaged or forged; use another copy of it`,
    );
  return new Promise((resolve, reject) => {
    const refuse = (cause: unknown): void =>
      reject(
        new HibernaculumError(
          "HIB_NO_MEMORY",
          `no memory to make a key of the passphrase: it takes ${Math.ceil((128 * 2 ** log2n * r) / 2 ** 20)} MiB; free some, or use a key file`,
          { cause },
        ),
      );
    try {
      scrypt(secret, salt, KEY_BYTES, { N: 2 ** log2n, r, p, maxmem: most }, (error, key) =>
        error ? refuse(error) : resolve(key),
      );
    } catch (error) {
      refuse(error);
    }
  });
}
