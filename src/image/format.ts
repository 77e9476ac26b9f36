/**
 * What an image is made of: the header page, the chunks of the blob, and the extents that say where each frame is.
 * `design/image-format.md` is the same for people who write a reader of their own.
 *
 * What must hold:
 * - The header is page 0 of the blob and is written last. A blob without it is no image, so an image is complete or
 *   it is not there.
 * - Every byte of an image is under a checksum: the header under its own, the catalogue under the header's, each chunk
 *   with its padding under the catalogue's.
 * - The format's version stands apart from the program's: it is raised when a reader of the old one would go wrong.
 */

import { damaged, HibernaculumError } from "../base/errors.js";
import { FRAME_BYTES, MAX_FRAMES } from "../base/layout.js";
import { checksum } from "./checksum.js";
import { decodeEncryption, encodeEncryption, type Encryption, FEATURE_ENCRYPTED, TAG_RANGE } from "./encryption-header.js";

/** Names inside an image's directory. */
export const BLOB_NAME = "blob";
export const CATALOGUE_NAME = "catalogue.sqlite";

/** Version of what this file and `catalogue.ts` describe. */
export const FORMAT_VERSION = 2;
/** Version of the machine's memory layout: what a kernel must know to go on from these frames. */
export const MACHINE_VERSION = 6;

/** The header takes the first page; chunks begin after it, each at a multiple of a page. */
export const HEADER_BYTES = 4096;
/** Frames that a chunk holds at most (1 MiB). */
export const CHUNK_FRAMES = 256;
/** Bytes that a chunk takes in the blob at most; one that would take more is stored raw. */
export const CHUNK_BYTES: number = CHUNK_FRAMES * FRAME_BYTES;

/** A chunk's stored bytes are hashed in pieces of so many, each of which can be read and checked without the others. */
export const PIECE_BYTES = 65536;

/** Frame i of the chunk is at its offset + i * 4096. */
export const CODEC_RAW = 0;
/** One LZ4 block over the chunk's frames, after the number of bytes that it decodes to (u32). */
export const CODEC_LZ4 = 1;

/** What is checked of an image when it is opened (S2.1), in this order. */
export type ImageCheck =
  | "image"
  | "magic"
  | "format version"
  | "header checksum"
  | "machine version"
  | "complete"
  | "catalogue checksum"
  | "key"
  | "counts";
/** Is told of each check that passed, and of what was found. */
export type OnCheck = (check: ImageCheck, found: string) => void;

/** What the header says of the catalogue; whoever closes one knows it. */
export interface SealedCatalogue {
  catalogueBytes: number;
  /** XXH64 of the catalogue's file. */
  catalogueHash: bigint;
  /** Its first so many bytes have all rows but those that only people want, and are under a checksum of their own. */
  catalogueHeadBytes: number;
  catalogueHeadHash: bigint;
  /** SHA-256 of the catalogue's file; null where none was made. */
  catalogueDigest: Uint8Array | null;
}

/** The image whose frames another one needs: an incremental image has only what changed since. */
export interface Parent {
  id: string;
  /** XXH64 of its catalogue's file. */
  catalogueHash: bigint;
  /** SHA-256 of the same; null where none was made. */
  catalogueDigest: Uint8Array | null;
}

/** What the header says, for the whole image. */
export interface ImageHeader extends SealedCatalogue {
  machineVersion: number;
  /** Null: it has all of its frames itself. */
  parent: Parent | null;
  /** UUID, made when the image is. */
  id: string;
  /** Features that a reader may do without. */
  compatible: number;
  /** Of an object: the image was used. A directory has a marker for that. */
  used: boolean;
  /** Frames of the machine's RAM. */
  ramFrames: number;
  chunks: number;
  /** Length of header and chunks. */
  blobBytes: number;
  /** Of an object: where the catalogue is; 0: in a file of its own. */
  catalogueOffset: number;
  /** Frames in the image. */
  frames: number;
  /** The consistency point, ms since 1970. */
  time: number;
  /** Program and version that wrote it. */
  writer: string;
  /** Of an encrypted image. */
  encryption?: Encryption;
}

/** A chunk: up to 256 frames that are compressed and checked together. */
export interface Chunk {
  /** 0 to chunks - 1, in no particular order in the blob. */
  id: number;
  /** Whose blob it is in, of a chain: 0 or none for the image itself, 1 its parent, 2 that one's parent, ... */
  generation?: number;
  /** Where it begins in the blob. */
  offset: number;
  /** Bytes in the blob, padding included: a multiple of 4096. */
  stored: number;
  /** Bytes in the blob without the padding. */
  payload: number;
  /** Frames that it decodes to. Some may be of no extent: a later copy took their place. */
  frames: number;
  codec: number;
  /** XXH64 of `pieces`. */
  hash: bigint;
  /** XXH64 of each 64 KiB of the stored bytes, 8 bytes each; the last piece may be shorter. Of an encrypted image, 16 bytes of tag each. */
  pieces: Uint8Array;
  /** SHA-256 of all the stored bytes; null where none was made. */
  digest: Uint8Array | null;
}

/** The first four bytes of an image. */
export const MAGIC_TEXT = "HBRN";
const MAGIC = 0x4e524248;
const HASH_AT = HEADER_BYTES - 8;
const DIGEST_AT = 160;
const DIGEST_BYTES = 32;
const WRITER_AT = 192;
const WRITER_BYTES = 64;
const PARENT_AT = 256;
const PARENT_HASH_AT = 272;
const PARENT_DIGEST_AT = 288;
/** [from, to). */
const PARENT_RANGES: readonly (readonly [number, number])[] = [
  [PARENT_AT, PARENT_HASH_AT + 8],
  [PARENT_DIGEST_AT, PARENT_DIGEST_AT + DIGEST_BYTES],
];
/** Kept for later, and zero where no feature says otherwise: [from, to). */
const RESERVED: readonly (readonly [number, number])[] = [
  [136, DIGEST_AT],
  [256, HASH_AT],
];
/** Incompatible features, by bit. */
const FEATURES_AT = 32;
const FEATURE_PARENT = 2;
const FEATURES_KNOWN: number = FEATURE_ENCRYPTED | FEATURE_PARENT;
/** Of an opening, what is not known before all has been written: [from, to). */
const UNKNOWN_AT_FIRST = [56, WRITER_AT] as const;

/** Words that have one value in this version, and what a reader that knows no other says. */
const FIXED: readonly (readonly [at: number, value: number, what: string])[] = [
  [40, 1, "a hash algorithm that this program does not know"],
  [44, Math.log2(FRAME_BYTES), "frames of another size"],
  [48, 1, "a machine of another architecture"],
  [52, 1, "page tables of another kind"],
];
const STATE_USED = 1;
const NO_ID = "00000000-0000-0000-0000-000000000000";
/** The last time that a Date can be, ms since 1970. */
const TIME_MAX = 8.64e15;

/** The header as page 0 of the blob. Give an aligned page where it is to be written with O_DIRECT. */
export function encodeHeader(header: ImageHeader, page: Uint8Array = new Uint8Array(HEADER_BYTES)): Uint8Array {
  page.fill(0);
  const view = new DataView(page.buffer, page.byteOffset, HEADER_BYTES);
  const word = (at: number, value: number): void => view.setBigUint64(at, BigInt(value), true);
  view.setUint32(0, MAGIC, true);
  view.setUint32(4, FORMAT_VERSION, true);
  view.setUint32(8, header.machineVersion, true);
  view.setUint32(12, HEADER_BYTES, true);
  page.set(idBytes(header.id), 16);
  for (const [at, value] of FIXED) view.setUint32(at, value, true);
  view.setUint32(FEATURES_AT, header.parent === null ? 0 : FEATURE_PARENT, true);
  view.setUint32(36, header.compatible, true);
  view.setUint32(56, header.used ? STATE_USED : 0, true);
  view.setUint32(60, header.chunks, true);
  word(64, header.ramFrames);
  word(72, header.frames);
  word(80, header.blobBytes);
  word(88, header.catalogueOffset);
  word(96, header.catalogueBytes);
  view.setBigUint64(104, header.catalogueHash, true);
  word(112, header.catalogueHeadBytes);
  view.setBigUint64(120, header.catalogueHeadHash, true);
  view.setFloat64(128, header.time, true);
  if (header.catalogueDigest !== null) page.set(header.catalogueDigest, DIGEST_AT);
  if (header.parent !== null) {
    page.set(idBytes(header.parent.id), PARENT_AT);
    view.setBigUint64(PARENT_HASH_AT, header.parent.catalogueHash, true);
    if (header.parent.catalogueDigest !== null) page.set(header.parent.catalogueDigest, PARENT_DIGEST_AT);
  }
  if (header.encryption !== undefined) encodeEncryption(header.encryption, page, view);
  new TextEncoder().encodeInto(header.writer, page.subarray(WRITER_AT, WRITER_AT + WRITER_BYTES));
  return seal(page);
}

/** An image as its children name it. */
export function asParent({ id, catalogueHash, catalogueDigest }: ImageHeader): Parent {
  return { id, catalogueHash, catalogueDigest };
}

/** The first page of an object whose writer knows no more yet than what image it is. */
export function encodeOpening(header: ImageHeader): Uint8Array {
  return seal(
    encodeHeader(header)
      .fill(0, ...UNKNOWN_AT_FIRST)
      .fill(0, ...TAG_RANGE),
  );
}

/** Whether a header is an opening whose writer did not know the rest. */
export function isOpening({ blobBytes }: ImageHeader): boolean {
  return blobBytes === 0;
}

function seal(page: Uint8Array): Uint8Array {
  new DataView(page.buffer, page.byteOffset).setBigUint64(HASH_AT, checksum(page.subarray(0, HASH_AT)), true);
  return page;
}

/**
 * Reads a header; the checksum must be loaded. The order of the checks is that of what can be trusted: a page of
 * another format version need not have its checksum where this one has.
 *
 * @param page the first 4096 bytes of the blob, or all that there are
 * @param where names the image in messages
 * @throws HIB_NOT_AN_IMAGE, HIB_TRUNCATED, HIB_FORMAT_VERSION, HIB_CORRUPT, HIB_MACHINE_VERSION
 */
export function decodeHeader(
  page: Uint8Array,
  where: string,
  {
    expectedMachineVersion,
    onCheck = () => undefined,
  }: { expectedMachineVersion?: number | undefined; onCheck?: OnCheck | undefined } = {},
): ImageHeader {
  const view = new DataView(page.buffer, page.byteOffset, page.byteLength);
  if (page.length < 4 || view.getUint32(0, true) !== MAGIC) {
    throw new HibernaculumError(
      "HIB_NOT_AN_IMAGE",
      `${where}: the blob has no header: not an image, or one that was never completed`,
    );
  }
  onCheck("magic", MAGIC_TEXT);
  if (page.length < HEADER_BYTES) throw damaged("HIB_TRUNCATED", `${where}: the blob ends in its header`);
  const version = view.getUint32(4, true);
  if (version !== FORMAT_VERSION) {
    throw new HibernaculumError(
      "HIB_FORMAT_VERSION",
      `${where}: format version ${version}, and this program reads version ${FORMAT_VERSION}; use the program that wrote it`,
    );
  }
  onCheck("format version", String(version));
  if (checksum(page.subarray(0, HASH_AT)) !== view.getBigUint64(HASH_AT, true) || view.getUint32(12, true) !== HEADER_BYTES) {
    throw damaged("HIB_CORRUPT", `${where}: the header does not agree with its checksum`);
  }
  onCheck("header checksum", "agrees");
  for (const [at, value, what] of FIXED)
    if (view.getUint32(at, true) !== value) throw unknown(where, `${what} (0x${view.getUint32(at, true).toString(16)})`);
  const features = view.getUint32(FEATURES_AT, true);
  if ((features & ~FEATURES_KNOWN) !== 0)
    throw unknown(where, `features that this program does not know (0x${features.toString(16)})`);
  const encrypted = (features & FEATURE_ENCRYPTED) === 0 ? undefined : decodeEncryption(page, view);
  if (typeof encrypted === "string") throw unknown(where, encrypted);
  const hasParent = (features & FEATURE_PARENT) !== 0;
  const rest = new Uint8Array(page); // a copy, also of a Buffer
  for (const [from, to] of [...(encrypted?.ranges ?? []), ...(hasParent ? PARENT_RANGES : [])]) rest.fill(0, from, to);
  if (RESERVED.some(([from, to]) => !isZero(rest.subarray(from, to))) || view.getUint32(56, true) > STATE_USED)
    throw unknown(where, "data where this program knows of none");
  const machineVersion = view.getUint32(8, true);
  if (expectedMachineVersion !== undefined && machineVersion !== expectedMachineVersion) {
    throw new HibernaculumError(
      "HIB_MACHINE_VERSION",
      `${where}: saved from machine version ${machineVersion}, and this kernel is version ${expectedMachineVersion}; use the program that wrote it`,
    );
  }
  onCheck("machine version", String(machineVersion));
  const word = (at: number): number => Number(view.getBigUint64(at, true));
  const digest = (at: number): Uint8Array | null => {
    const bytes = page.slice(at, at + DIGEST_BYTES);
    return isZero(bytes) ? null : bytes;
  };
  const writer = page.subarray(WRITER_AT, WRITER_AT + WRITER_BYTES);
  const header: ImageHeader = {
    machineVersion,
    id: idText(page.subarray(16, 32)),
    parent: hasParent
      ? {
          id: idText(page.subarray(PARENT_AT, PARENT_HASH_AT)),
          catalogueHash: view.getBigUint64(PARENT_HASH_AT, true),
          catalogueDigest: digest(PARENT_DIGEST_AT),
        }
      : null,
    compatible: view.getUint32(36, true),
    used: view.getUint32(56, true) === STATE_USED,
    chunks: view.getUint32(60, true),
    ramFrames: word(64),
    frames: word(72),
    blobBytes: word(80),
    catalogueOffset: word(88),
    catalogueBytes: word(96),
    catalogueHash: view.getBigUint64(104, true),
    catalogueHeadBytes: word(112),
    catalogueHeadHash: view.getBigUint64(120, true),
    time: view.getFloat64(128, true),
    catalogueDigest: digest(DIGEST_AT),
    writer: new TextDecoder().decode(writer).replace(/\0+$/, ""),
    ...(encrypted === undefined ? {} : { encryption: encrypted.encryption }),
  };
  checkRanges(header, where);
  return header;
}

function idBytes(id: string): Uint8Array {
  return Buffer.from(id.replaceAll("-", ""), "hex");
}

function idText(bytes: Uint8Array): string {
  return Buffer.from(bytes)
    .toString("hex")
    .replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

function isZero(bytes: Uint8Array): boolean {
  return bytes.every((byte) => byte === 0);
}

/** @throws HIB_CORRUPT for what no program writes, HIB_RAM_TOO_LARGE */
function checkRanges(header: ImageHeader, where: string): void {
  const { ramFrames, frames, chunks, blobBytes, catalogueOffset, catalogueBytes, catalogueHeadBytes, time, parent } = header;
  if (ramFrames > MAX_FRAMES)
    throw new HibernaculumError(
      "HIB_RAM_TOO_LARGE",
      `${where}: of a machine with ${BigInt(ramFrames)} frames of RAM, and this program has at most ${MAX_FRAMES}`,
    );
  const sound =
    frames <= ramFrames &&
    chunks <= blobBytes / FRAME_BYTES &&
    blobBytes % FRAME_BYTES === 0 &&
    blobBytes + catalogueBytes < Number.MAX_SAFE_INTEGER - HEADER_BYTES &&
    (catalogueOffset === 0 || catalogueOffset === blobBytes) &&
    catalogueHeadBytes <= catalogueBytes &&
    Math.abs(time) <= TIME_MAX &&
    (parent === null || parent.id !== NO_ID);
  if (!sound) throw damaged("HIB_CORRUPT", `${where}: the header contradicts itself`);
}

function unknown(where: string, what: string): HibernaculumError {
  return new HibernaculumError(
    "HIB_FORMAT_VERSION",
    `${where}: the image has ${what}; use the program that wrote it, or a newer one`,
  );
}

/** Rounds up to whole pages. */
export function padded(bytes: number): number {
  return Math.ceil(bytes / FRAME_BYTES) * FRAME_BYTES;
}
