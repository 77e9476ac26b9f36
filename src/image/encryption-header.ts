/**
 * What the header of an encrypted image has besides (`design/image-format.md`): cipher, key slots, and a tag over all of it. All of it can
 * be read without a key.
 */
import { open } from "node:fs/promises";
import { join } from "node:path";
import { HEADER_TAG_BYTES } from "./cipher.js";
import { SLOT_BYTES } from "./key-slots.js";

/** Bit of the incompatible features. */
export const FEATURE_ENCRYPTED = 1;

export interface Encryption {
  /** Key slots, one after another. */
  slots: Uint8Array;
  /** HMAC of the header. */
  tag: Uint8Array;
}

const FEATURES_AT = 32;
const CIPHER_AT = 320;
/** AES-256-GCM. */
const CIPHER = 1;
const COUNT_AT = 324;
const TAG_AT = 328;
const SLOTS_AT = 512;
const SLOTS_MAX = 8;
const HASH_AT = 4088;

/** Words that an export changes, and what cannot cover itself: [from, to). They are zeros where the tag is made. */
const NOT_TAGGED: readonly (readonly [number, number])[] = [
  [56, 60],
  [88, 96],
  [TAG_AT, TAG_AT + HEADER_TAG_BYTES],
];
/** What an opening whose writer does not know the rest leaves out. */
export const TAG_RANGE: readonly [number, number] = NOT_TAGGED[2]!;

export function encodeEncryption({ slots, tag }: Encryption, page: Uint8Array, view: DataView): void {
  view.setUint32(FEATURES_AT, view.getUint32(FEATURES_AT, true) | FEATURE_ENCRYPTED, true);
  view.setUint32(CIPHER_AT, CIPHER, true);
  view.setUint32(COUNT_AT, slots.length / SLOT_BYTES, true);
  page.set(tag, TAG_AT);
  page.set(slots, SLOTS_AT);
}

/**
 * @returns it, and where it lies in the header: [from, to); or what this program does not know
 */
export function decodeEncryption(
  page: Uint8Array,
  view: DataView,
): { encryption: Encryption; ranges: [number, number][] } | string {
  const cipher = view.getUint32(CIPHER_AT, true);
  if (cipher !== CIPHER) return `a cipher that this program does not know (${cipher})`;
  const count = view.getUint32(COUNT_AT, true);
  if (count < 1 || count > SLOTS_MAX) return `a number of key slots that there cannot be (${count})`;
  const [tagAt, tagEnd] = TAG_RANGE;
  const slotsEnd = SLOTS_AT + count * SLOT_BYTES;
  return {
    encryption: { slots: new Uint8Array(page.subarray(SLOTS_AT, slotsEnd)), tag: new Uint8Array(page.subarray(tagAt, tagEnd)) },
    ranges: [
      [CIPHER_AT, tagEnd],
      [SLOTS_AT, slotsEnd],
    ],
  };
}

/** What the tag is made of: the header as it is, but for what may change. */
export function taggedBytes(page: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(page.subarray(0, HASH_AT)); // a copy, also of a Buffer
  for (const [from, to] of NOT_TAGGED) bytes.fill(0, from, to);
  return bytes;
}

/** Whether what lies at a path says that it is an encrypted image. False for what cannot be read. */
export async function isEncrypted(path: string): Promise<boolean> {
  try {
    const file = await open(path, "r").then(async (file) => {
      if (!(await file.stat()).isDirectory()) return file;
      await file.close();
      return open(join(path, "blob"), "r");
    });
    try {
      const start = Buffer.alloc(FEATURES_AT + 4);
      await file.read(start, 0, start.length, 0);
      return start.toString("latin1", 0, 4) === "HBRN" && (start.readUInt32LE(FEATURES_AT) & FEATURE_ENCRYPTED) !== 0;
    } finally {
      await file.close();
    }
  } catch {
    return false;
  }
}
