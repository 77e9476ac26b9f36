/**
 * The cipher of an encrypted image: AES-256-GCM over pieces of 64 KiB, by keys that are made of the image's data key.
 *
 * What must hold:
 * - A nonce is used once under a key. Each image has its own data key; under it, a chunk's id or a segment's number is given once.
 * - Nothing that was decrypted is handed out before its tag agreed.
 *
 * Keys are KeyObjects: they lie outside of the heap, threads can be handed one, and whoever prints one prints nothing.
 */
import {
  type Cipher,
  createCipheriv,
  createDecipheriv,
  type Decipher,
  createHmac,
  createSecretKey,
  hkdfSync,
  type KeyObject,
} from "node:crypto";

export const KEY_BYTES = 32;
export const TAG_BYTES = 16;
export const HEADER_TAG_BYTES = 32;

const ALGORITHM = "aes-256-gcm";
const NONCE_BYTES = 12;
const STEP_BYTES = 16_384;

/** The keys of an image, each for one thing. */
export interface ImageKeys {
  readonly chunks: KeyObject;
  readonly catalogue: KeyObject;
  readonly header: KeyObject;
}

/** @param dataKey - is the caller's to zero */
export function deriveKeys(dataKey: Uint8Array): ImageKeys {
  const derive = (use: string): KeyObject => keyObject(hkdf(dataKey, "", `hibernaculum ${use}`));
  return { chunks: derive("chunks"), catalogue: derive("catalogue"), header: derive("header") };
}

/** 32 bytes by HKDF-SHA256. */
export function hkdf(secret: Uint8Array, salt: Uint8Array | string, info: string): Buffer {
  return Buffer.from(hkdfSync("sha256", secret, salt, info, KEY_BYTES));
}

/** Takes a key over, and zeroes the bytes that it was made in. */
export function keyObject(bytes: Buffer): KeyObject {
  try {
    return createSecretKey(bytes);
  } finally {
    bytes.fill(0);
  }
}

/**
 * Encrypts bytes where they are. They may lie in shared memory; then nobody may write them meanwhile.
 *
 * @param number - of a chunk; 0 in the catalogue
 * @param piece - of the chunk or of the catalogue
 * @returns their tag
 */
export function seal(key: KeyObject, number: number, piece: number, bytes: Uint8Array): Buffer {
  const cipher = createCipheriv(ALGORITHM, key, nonceOf(number, piece), { authTagLength: TAG_BYTES });
  inSteps(cipher, bytes, bytes);
  cipher.final(); // has no bytes
  return cipher.getAuthTag();
}

/**
 * Decrypts bytes.
 *
 * @param plain - where to, as many bytes
 * @returns false if it is not what was encrypted, or of another key; then `plain` is zeros
 */
export function unseal(
  key: KeyObject,
  number: number,
  piece: number,
  { bytes, tag }: { bytes: Uint8Array; tag: Uint8Array },
  plain: Uint8Array,
): boolean {
  const decipher = createDecipheriv(ALGORITHM, key, nonceOf(number, piece), { authTagLength: TAG_BYTES }).setAuthTag(tag);
  inSteps(decipher, bytes, plain);
  try {
    decipher.final();
    return true;
  } catch {
    plain.fill(0);
    return false;
  }
}

/** Node makes a buffer for each step: memory of larger ones would go back to the host, and be faulted in again for the next. */
function inSteps(cipher: Cipher | Decipher, from: Uint8Array, to: Uint8Array): void {
  for (let at = 0; at < from.length; at += STEP_BYTES) to.set(cipher.update(from.subarray(at, at + STEP_BYTES)), at);
}

/** HMAC-SHA256 of a header's authenticated bytes. */
export function headerTag({ header }: ImageKeys, bytes: Uint8Array): Buffer {
  return createHmac("sha256", header).update(bytes).digest();
}

function nonceOf(number: number, piece: number): Buffer {
  const nonce = Buffer.alloc(NONCE_BYTES);
  nonce.writeBigUInt64LE(BigInt(number));
  nonce.writeUInt32LE(piece, 8);
  return nonce;
}
