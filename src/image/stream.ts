/**
 * An image as one object, for a pipe, a file, a store or another host: an opening, the chunks, the catalogue, and the header
 * as its trailer (`design/image-format.md`).
 *
 * What must hold:
 * - Export goes strictly forward, and holds a piece of at most 1 MiB and the catalogue's tables. Nothing that is damaged leaves.
 * - Import takes what comes in the same way; what was not on the disk whole and checked, from the top down, is not published:
 *   a partial image, whose header is written last, as in a save.
 * - A used image does not come out of an object unused.
 */
import { truncate } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { fromSystemError, HibernaculumError, isSystemError, naming } from "../base/errors.js";
import { type Keys, keysToOpen } from "../base/key.js";
import { FRAME_BYTES } from "../base/layout.js";
import { abortSignal, callback, checkArguments, checkCall, flag, type Rule, text } from "../base/options.js";
import { BlobReader, BlobWriter } from "./blob.js";
import { Catalogue } from "./catalogue.js";
import { loadChecksum } from "./checksum.js";
import type { ImageKeys } from "./cipher.js";
import { checkDigest, openStored } from "./codec.js";
import { checkCatalogue, createPartial, openImage, type PartialImage, removeStalePartials } from "./directory.js";
import { unlock } from "./encryption.js";
import { claimUse, isUsed } from "./markers.js";
import {
  CATALOGUE_NAME,
  CHUNK_BYTES,
  type Chunk,
  decodeHeader,
  encodeHeader,
  encodeOpening,
  HEADER_BYTES,
  type ImageHeader,
  isOpening,
  MAGIC_TEXT,
  padded,
} from "./format.js";
import { sealBlob } from "./seal.js";
import { readTables } from "./verify.js";

const PIECE_BYTES = CHUNK_BYTES;

export interface TransferOptions {
  /** What opens the image, if it is encrypted: nothing leaves or comes in unchecked. */
  keys?: Keys;
  /** Cancels; nothing is left behind. */
  signal?: AbortSignal | undefined;
  /** Bytes of the object that are done, and all of them, as far as that is known. */
  onProgress?: (done: number, total: number) => void;
}

export const TRANSFER_RULES: Readonly<Record<keyof TransferOptions, Rule>> = {
  keys: keysToOpen,
  signal: abortSignal,
  onProgress: callback,
};

export interface ExportOptions extends TransferOptions {
  /** Also an image that was resumed before. Its copy is marked as used. */
  again?: boolean;
}

/**
 * The bytes of an image's object. Each piece is the taker's; the next is read when it is asked for.
 *
 * @throws HIB_IMAGE_USED, HIB_CANCELLED, and what opening and reading an image may throw
 */
export async function* exportImage(path: string, options: ExportOptions = {}): AsyncGenerator<Uint8Array, void, undefined> {
  checkCall("exportImage", path, options, { again: flag, ...TRANSFER_RULES });
  const { again = false, keys, signal, onProgress } = options;
  const image = await openImage(path, { keys, signal });
  try {
    const { header } = image;
    const trailer = { ...header, catalogueOffset: header.blobBytes };
    const total = objectBytes(trailer);
    let done = 0;
    const send = (piece: Uint8Array): Uint8Array => {
      done += piece.length;
      onProgress?.(done, total);
      return piece;
    };
    const checkUse = async (): Promise<boolean> => {
      checkCancelled(signal);
      const used = await isUsed(path);
      if (used && !again) {
        throw new HibernaculumError(
          "HIB_IMAGE_USED",
          `${path} was resumed: a second machine with the same history can damage files that both use; --again exports it anyway`,
        );
      }
      return used;
    };

    await checkUse();
    yield send(encodeHeader(trailer));
    for (const chunk of inOrder(image.chunks.slice(0, header.chunks))) {
      checkCancelled(signal);
      const stored = await readPiece(image.blob, chunk.offset, chunk.stored);
      openStored(chunk, stored, image.blob.key);
      yield send(stored);
    }
    const catalogue = new BlobReader(join(image.path, CATALOGUE_NAME));
    try {
      for (const [at, bytes] of pieces(0, header.catalogueBytes)) yield send(await readPiece(catalogue, at, bytes));
    } finally {
      catalogue.close();
    }
    if (header.catalogueBytes % FRAME_BYTES > 0)
      yield send(new Uint8Array(padded(header.catalogueBytes) - header.catalogueBytes));
    // Looked at again: somebody may have resumed it meanwhile, and then this is the second machine.
    yield send(encodeHeader({ ...trailer, used: await checkUse() }));
  } finally {
    image.close();
  }
}

export interface ImportOptions extends TransferOptions {
  /** What the object is called in messages. */
  name?: string;
}

/** What came in. */
export interface Imported {
  path: string;
  header: ImageHeader;
  /** Bytes of the object. */
  bytes: number;
  /** It was exported after its use, and is marked so. */
  used: boolean;
}

const sourceRule: Rule = {
  must: "something to iterate over, asynchronously, which gives Uint8Arrays",
  holds: (value) => typeof (value as Partial<AsyncIterable<unknown>> | null | undefined)?.[Symbol.asyncIterator] === "function",
};

/**
 * Makes an image of an object. It may come in pieces of any size.
 *
 * @param path - where the image is to be; must not exist
 * @throws HIB_USAGE, HIB_IMAGE_EXISTS, HIB_NOT_AN_IMAGE, HIB_FORMAT_VERSION, HIB_TRUNCATED, HIB_CORRUPT, HIB_NO_SPACE, HIB_IO,
 * HIB_KEY_NEEDED, HIB_KEY_WRONG, HIB_CANCELLED: nothing is left behind
 */
export async function importImage(
  source: AsyncIterable<Uint8Array>,
  path: string,
  options: ImportOptions = {},
): Promise<Imported> {
  checkArguments("importImage", { "the source": [source, sourceRule] });
  checkCall("importImage", path, options, { name: text, ...TRANSFER_RULES });
  const { keys = [], signal, onProgress, name = "the stream" } = options;
  await loadChecksum();
  await removeStalePartials(dirname(resolve(path))); // what a killed host left there
  const input = new Input(source, name, signal);
  const partial = await createPartial(path);
  try {
    const { page: first, header: opening } = await takeOpening(input);
    // A wrong key is told before all has come, unless the opening does not have the tag yet.
    const known = isOpening(opening) ? undefined : await unlock(first, opening, keys, name);
    const bytes = await receive(input, opening, partial.blobPath, onProgress);
    const { page, header: whole } = await readTrailer(partial.blobPath, opening, bytes, name);
    const { used, ...trailer } = whole;
    const imageKeys = known ?? (await unlock(page, whole, keys, name));
    await takeOutCatalogue(partial, trailer, name);
    const header = { ...trailer, used: false, catalogueOffset: 0 };
    await checkChunks(header, partial, imageKeys, signal);
    await sealBlob(partial.blobPath, header);
    if (used) await claimUse(dirname(partial.blobPath), "the machine it was exported from");
    checkCancelled(signal);
    await partial.publish();
    return { path: partial.path, header, bytes, used };
  } catch (error) {
    await partial.discard();
    const failure = isSystemError(error) ? fromSystemError(error, `importing ${path}`) : error;
    // Catalogue and chunks are checked as an image's are, which do not know where they came from.
    const damaged = failure instanceof HibernaculumError && ["HIB_CORRUPT", "HIB_TRUNCATED"].includes(failure.code);
    throw damaged ? naming(failure, name) : failure;
  } finally {
    await input.close();
  }
}

/** A header, and the page that it was read from. */
interface HeaderPage {
  page: Uint8Array;
  header: ImageHeader;
}

async function takeOpening(input: Input): Promise<HeaderPage> {
  const page = await input.take(HEADER_BYTES, { orLess: true });
  const begins = Buffer.from(page.subarray(0, MAGIC_TEXT.length)).toString("latin1");
  if (!MAGIC_TEXT.startsWith(begins))
    throw new HibernaculumError("HIB_NOT_AN_IMAGE", `${input.name}: not a stream of hib export, it begins with other bytes`);
  if (page.length < HEADER_BYTES)
    throw broken(input.name, "HIB_TRUNCATED", `it ends after ${page.length} bytes, within its header`);
  return { page: page.slice(), header: decodeHeader(page, input.name) };
}

/** Writes all that comes after the opening where it is in the object; returns the object's length. */
async function receive(
  input: Input,
  opening: ImageHeader,
  path: string,
  onProgress: ImportOptions["onProgress"],
): Promise<number> {
  const total = isOpening(opening) ? undefined : objectBytes(opening);
  const file = await BlobWriter.open(path, { direct: false });
  let at = HEADER_BYTES;
  try {
    while (at !== total) {
      const piece = await input.take(Math.min(PIECE_BYTES, (total ?? Infinity) - at), { orLess: total === undefined });
      if (piece.length === 0) break;
      await file.write(piece, at);
      at += piece.length;
      onProgress?.(at, total ?? at);
    }
  } finally {
    await file.close();
  }
  if (!(await input.ended())) throw broken(input.name, "HIB_CORRUPT", "it goes on after its end");
  return at;
}

/** The header at the end of an object that is in a file. */
async function readTrailer(path: string, opening: ImageHeader, bytes: number, name: string): Promise<HeaderPage> {
  if (bytes < 2 * HEADER_BYTES) throw broken(name, "HIB_TRUNCATED", "it ends after its first bytes");
  const page = await withReader(path, (file) => readPiece(file, bytes - HEADER_BYTES, HEADER_BYTES));
  if (page.every((byte) => byte === 0)) throw broken(name, "HIB_CORRUPT", "it has no trailer");
  let trailer: ImageHeader;
  try {
    trailer = decodeHeader(page, name);
  } catch (error) {
    if ((error as HibernaculumError).code !== "HIB_NOT_AN_IMAGE") throw error;
    throw broken(name, "HIB_TRUNCATED", "it does not end with a header");
  }
  const expected = isOpening(opening) ? encodeOpening(trailer) : encodeHeader({ ...trailer, used: opening.used });
  if (!Buffer.from(encodeHeader(opening)).equals(expected)) throw broken(name, "HIB_CORRUPT", "its two ends are of two images");
  if (trailer.catalogueOffset === 0 || objectBytes(trailer) !== bytes)
    throw broken(name, "HIB_CORRUPT", `it is ${bytes} bytes long, and its header says otherwise`);
  return { page, header: trailer };
}

/** Gives the catalogue of an object a file of its own, and leaves a blob. */
async function takeOutCatalogue(
  { blobPath, cataloguePath }: PartialImage,
  header: Omit<ImageHeader, "used">,
  name: string,
): Promise<void> {
  const { blobBytes, catalogueBytes } = header;
  const file = await BlobWriter.open(cataloguePath, { direct: false });
  try {
    await withReader(blobPath, async (from) => {
      for (const [at, bytes] of pieces(blobBytes, catalogueBytes))
        await file.write(await readPiece(from, at, bytes), at - blobBytes);
      const end = blobBytes + catalogueBytes;
      const rest = await readPiece(from, end, blobBytes + padded(catalogueBytes) - end);
      if (rest.some((byte) => byte !== 0)) throw broken(name, "HIB_CORRUPT", "something follows its catalogue");
    });
    await file.sync();
  } finally {
    await file.close();
  }
  await truncate(blobPath, blobBytes);
  await checkCatalogue(cataloguePath, name, { ...header, used: false });
}

/** Every chunk of a partial image, by a catalogue that agrees with the header. */
async function checkChunks(
  header: ImageHeader,
  { blobPath, cataloguePath }: PartialImage,
  keys: ImageKeys | undefined,
  signal: AbortSignal | undefined,
): Promise<void> {
  const catalogue = Catalogue.open(dirname(cataloguePath), keys?.catalogue);
  try {
    const { chunks } = await readTables(header, catalogue, signal);
    await withReader(blobPath, async (blob) => {
      for (const chunk of inOrder(chunks)) {
        checkCancelled(signal);
        const stored = await readPiece(blob, chunk.offset, chunk.stored);
        openStored(chunk, stored, keys?.chunks);
        checkDigest(chunk, stored);
      }
    });
  } finally {
    catalogue.close();
  }
}

async function withReader<T>(path: string, use: (file: BlobReader) => Promise<T>): Promise<T> {
  const file = new BlobReader(path);
  try {
    return await use(file);
  } finally {
    file.close();
  }
}

/** What comes in, taken in pieces of known lengths. */
class Input {
  readonly name: string;
  readonly #iterator: AsyncIterator<Uint8Array>;
  readonly #signal: AbortSignal | undefined;
  #taken = 0;
  #rest: Uint8Array = new Uint8Array();
  readonly #buffer: Uint8Array = new Uint8Array(PIECE_BYTES);

  constructor(source: AsyncIterable<Uint8Array>, name: string, signal: AbortSignal | undefined) {
    this.name = name;
    this.#iterator = source[Symbol.asyncIterator]();
    this.#signal = signal;
  }

  /**
   * The next bytes, good until the next call.
   *
   * @param options.orLess - there may be fewer; then it has ended
   * @throws HIB_TRUNCATED, HIB_IO, HIB_CANCELLED
   */
  async take(length: number, { orLess = false }: { orLess?: boolean } = {}): Promise<Uint8Array> {
    let done = 0;
    while (done < length) {
      if (await this.ended()) {
        if (orLess) break;
        throw broken(this.name, "HIB_TRUNCATED", `it ends after ${this.#taken} bytes, and should be longer`);
      }
      const part = this.#rest.subarray(0, length - done);
      this.#buffer.set(part, done);
      done += part.length;
      this.#taken += part.length;
      this.#rest = this.#rest.subarray(part.length);
    }
    return this.#buffer.subarray(0, done);
  }

  /** Whether there is no byte more. */
  async ended(): Promise<boolean> {
    while (this.#rest.length === 0) {
      checkCancelled(this.#signal);
      const next = await this.#iterator.next().catch((error: unknown) => {
        checkCancelled(this.#signal); // a stream that was aborted throws what it likes
        throw fromSystemError(error, `reading ${this.name}`);
      });
      if (next.done === true) return true;
      if (!(next.value instanceof Uint8Array))
        throw new HibernaculumError("HIB_USAGE", `importImage: ${this.name} must give each piece as a Uint8Array`);
      this.#rest = next.value;
    }
    return false;
  }

  async close(): Promise<void> {
    await this.#iterator.return?.().catch(() => undefined);
  }
}

function broken(name: string, code: "HIB_CORRUPT" | "HIB_TRUNCATED", what: string): HibernaculumError {
  return new HibernaculumError(code, `${name} is not what was exported: ${what}; export the image again`);
}

/** Length of an image's object. */
function objectBytes({ catalogueBytes, blobBytes }: ImageHeader): number {
  return blobBytes + padded(catalogueBytes) + HEADER_BYTES;
}

function inOrder(chunks: readonly Chunk[]): Chunk[] {
  return [...chunks].sort((a, b) => a.offset - b.offset);
}

/** Offsets and lengths of the pieces of so many bytes from an offset on. */
function* pieces(from: number, total: number): Generator<[at: number, bytes: number]> {
  for (let at = from; at < from + total; at += PIECE_BYTES) yield [at, Math.min(PIECE_BYTES, from + total - at)];
}

async function readPiece(file: BlobReader, offset: number, length: number): Promise<Uint8Array> {
  const piece = new Uint8Array(length);
  await file.read(piece, offset, length);
  return piece;
}

export function checkCancelled(signal: AbortSignal | undefined): void {
  if (signal?.aborted === true) throw new HibernaculumError("HIB_CANCELLED", "cancelled; nothing is left behind");
}
