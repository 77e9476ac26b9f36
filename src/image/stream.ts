/**
 * An image as one stream of bytes, for a pipe, a tape or another host: header, catalogue, chunks in the order of the
 * blob, and a last checksum (`design/image-format.md`).
 *
 * What must hold:
 * - Both ends go strictly forward, and hold a piece of at most 1 MiB and the catalogue's tables. Nothing is copied to
 *   the disk in between.
 * - Nothing leaves that is damaged, and nothing comes in: each piece is checked on either side, from the top down.
 * - An import is published whole or leaves nothing: a partial image, whose header is written last, as in a save.
 * - A used image does not come out of a stream unused.
 */
import { dirname, join, resolve } from "node:path";
import { fromSystemError, HibernaculumError, isSystemError, naming } from "../base/errors.js";
import { BlobReader, BlobWriter } from "./blob.js";
import { Catalogue } from "./catalogue.js";
import { Checksum, loadChecksum } from "./checksum.js";
import { checkStored } from "./codec.js";
import { createPartial, openImage, type PartialImage, removeStalePartials } from "./directory.js";
import { claimUse, isUsed } from "./markers.js";
import { CATALOGUE_NAME, CHUNK_BYTES, type Chunk, decodeHeader, HEADER_BYTES, type ImageHeader } from "./format.js";
import { sealBlob } from "./seal.js";
import { readTables } from "./verify.js";

/** Version of the stream; what is in it has the image's own. */
export const STREAM_VERSION = 1;

const MAGIC = "HBRS";
/** Magic and version. */
const PREFIX_BYTES = 8;
/** Flags and zeros; the checksum follows. */
const FLAGS_BYTES = 8;
const HASH_BYTES = 8;
const FLAG_USED = 1;
const PIECE_BYTES = CHUNK_BYTES;

export interface TransferOptions {
  /** Cancels; nothing is left behind. */
  signal?: AbortSignal | undefined;
  /** Bytes of the stream that are done, and all of them. */
  onProgress?: (done: number, total: number) => void;
}

export interface ExportOptions extends TransferOptions {
  /** Also an image that was resumed before. Its copy is marked as used. */
  again?: boolean;
}

/**
 * The bytes of an image's stream. Each piece is the taker's; the next is read when it is asked for.
 *
 * @throws HIB_IMAGE_USED, HIB_CANCELLED, and what opening and reading an image may throw
 */
export async function* exportImage(path: string, options: ExportOptions = {}): AsyncGenerator<Uint8Array, void, undefined> {
  const { again = false, signal, onProgress } = options;
  const image = await openImage(path);
  try {
    const total = streamBytes(image.header);
    const hash = new Checksum();
    const send = (piece: Uint8Array): Uint8Array => {
      hash.update(piece);
      onProgress?.(hash.bytes, total);
      return piece;
    };
    const checkUse = async (): Promise<boolean> => {
      checkCancelled(signal);
      const used = await isUsed(path);
      if (used && !again) {
        throw new HibernaculumError(
          "HIB_IMAGE_USED",
          `${path} was resumed: a second machine with the same history can damage files that both use; --again exports it nevertheless`,
        );
      }
      return used;
    };

    await checkUse();
    const prefix = Buffer.alloc(PREFIX_BYTES);
    prefix.write(MAGIC, "latin1");
    prefix.writeUInt32LE(STREAM_VERSION, 4);
    yield send(prefix);
    yield send(await readPiece(image.blob, 0, HEADER_BYTES));
    const catalogue = new BlobReader(join(image.path, CATALOGUE_NAME));
    try {
      for (const [at, bytes] of pieces(image.header.catalogueBytes)) yield send(await readPiece(catalogue, at, bytes));
    } finally {
      catalogue.close();
    }
    for (const chunk of inOrder(image.chunks)) {
      checkCancelled(signal);
      const stored = await readPiece(image.blob, chunk.offset, chunk.stored);
      checkStored(chunk, stored);
      yield send(stored);
    }
    // Looked at again: somebody may have resumed it meanwhile, and then this is the second machine.
    const end = Buffer.alloc(FLAGS_BYTES + HASH_BYTES);
    end.writeUInt32LE((await checkUse()) ? FLAG_USED : 0);
    send(end.subarray(0, FLAGS_BYTES));
    end.writeBigUInt64LE(hash.digest(), FLAGS_BYTES);
    yield end;
  } finally {
    image.close();
  }
}

export interface ImportOptions extends TransferOptions {
  /** What the stream is called in messages. */
  name?: string;
}

/** What came in. */
export interface Imported {
  path: string;
  header: ImageHeader;
  /** Bytes of the stream. */
  bytes: number;
  /** It was exported after its use, and is marked so. */
  used: boolean;
}

/**
 * Makes an image of a stream. The stream may come in pieces of any size.
 *
 * @param path - where the image is to be; must not exist
 * @throws HIB_IMAGE_EXISTS, HIB_NOT_AN_IMAGE, HIB_FORMAT_VERSION, HIB_TRUNCATED, HIB_CORRUPT, HIB_NO_SPACE, HIB_IO,
 * HIB_CANCELLED: nothing is left behind
 */
export async function importImage(
  source: AsyncIterable<Uint8Array>,
  path: string,
  { signal, onProgress, name = "the stream" }: ImportOptions = {},
): Promise<Imported> {
  await loadChecksum();
  await removeStalePartials(dirname(resolve(path))); // what a killed host left there
  const partial = await createPartial(path);
  const input = new Input(source, name, signal);
  try {
    const header = await receiveHeader(input);
    const report = (): void => onProgress?.(input.hash.bytes, streamBytes(header));
    await receiveCatalogue(input, header, partial.cataloguePath, report);
    await receiveChunks(input, chunksOf(header, partial), partial.blobPath, report);
    const used = await receiveEnd(input);
    await sealBlob(partial.blobPath, header);
    if (used) await claimUse(dirname(partial.blobPath), "the machine it was exported from");
    checkCancelled(signal);
    await partial.publish();
    return { path: partial.path, header, bytes: streamBytes(header), used };
  } catch (error) {
    await partial.discard();
    const known = isSystemError(error) ? fromSystemError(error, `importing ${path}`) : error;
    // Catalogue and chunks are checked as an image's are, which do not know that they came from a stream.
    const damaged = known instanceof HibernaculumError && ["HIB_CORRUPT", "HIB_TRUNCATED"].includes(known.code);
    throw damaged ? naming(known, name) : known;
  } finally {
    await input.close();
  }
}

async function receiveHeader(input: Input): Promise<ImageHeader> {
  const prefix = Buffer.from(await input.take(PREFIX_BYTES));
  if (prefix.toString("latin1", 0, 4) !== MAGIC)
    throw new HibernaculumError("HIB_NOT_AN_IMAGE", `${input.name}: not a stream of hib export, it begins with other bytes`);
  const version = prefix.readUInt32LE(4);
  if (version !== STREAM_VERSION) {
    throw new HibernaculumError(
      "HIB_FORMAT_VERSION",
      `${input.name}: stream version ${version}, and this program reads version ${STREAM_VERSION}`,
    );
  }
  return decodeHeader(await input.take(HEADER_BYTES), input.name);
}

async function receiveCatalogue(input: Input, header: ImageHeader, path: string, report: () => void): Promise<void> {
  const hash = new Checksum();
  const file = await BlobWriter.open(path, { direct: false });
  try {
    for (const [at, bytes] of pieces(header.catalogueBytes)) {
      const piece = await input.take(bytes);
      hash.update(piece);
      await file.write(piece, at);
      report();
    }
    await file.sync();
  } finally {
    await file.close();
  }
  if (hash.digest() !== header.catalogueHash) throw input.broken("HIB_CORRUPT", "its catalogue does not agree with its checksum");
}

/** The chunks that are to come, of a catalogue that agrees with the header. */
function chunksOf(header: ImageHeader, { cataloguePath }: PartialImage): Chunk[] {
  const catalogue = Catalogue.open(dirname(cataloguePath));
  try {
    return inOrder(readTables(header, catalogue).chunks);
  } finally {
    catalogue.close();
  }
}

async function receiveChunks(input: Input, chunks: readonly Chunk[], path: string, report: () => void): Promise<void> {
  const blob = await BlobWriter.open(path, { direct: false });
  try {
    for (const chunk of chunks) {
      const stored = await input.take(chunk.stored);
      checkStored(chunk, stored);
      await blob.write(stored, chunk.offset);
      report();
    }
  } finally {
    await blob.close();
  }
}

/** Whether the image was used, once the whole stream has agreed with its checksum and is at its end. */
async function receiveEnd(input: Input): Promise<boolean> {
  const flags = Buffer.from(await input.take(FLAGS_BYTES)).readUInt32LE();
  const expected = input.hash.digest();
  const hash = Buffer.from(await input.take(HASH_BYTES)).readBigUInt64LE();
  if (hash !== expected) throw input.broken("HIB_CORRUPT", "it does not agree with its checksum");
  if (!(await input.ended())) throw input.broken("HIB_CORRUPT", "it goes on after its end");
  return (flags & FLAG_USED) !== 0;
}

/** A stream, taken in pieces of known lengths. */
class Input {
  /** Of all that was taken. */
  readonly hash: Checksum = new Checksum();
  readonly name: string;
  readonly #iterator: AsyncIterator<Uint8Array>;
  readonly #signal: AbortSignal | undefined;
  #rest: Uint8Array = new Uint8Array();
  readonly #buffer: Uint8Array = new Uint8Array(PIECE_BYTES);

  constructor(source: AsyncIterable<Uint8Array>, name: string, signal: AbortSignal | undefined) {
    this.name = name;
    this.#iterator = source[Symbol.asyncIterator]();
    this.#signal = signal;
  }

  /** The next bytes, good until the next call. @throws HIB_TRUNCATED, HIB_IO, HIB_CANCELLED */
  async take(length: number): Promise<Uint8Array> {
    const bytes = this.#buffer.subarray(0, length);
    for (let done = 0; done < length; ) {
      if (await this.ended()) throw this.broken("HIB_TRUNCATED", `it ends after ${this.hash.bytes + done} bytes, before its end`);
      const part = this.#rest.subarray(0, length - done);
      bytes.set(part, done);
      done += part.length;
      this.#rest = this.#rest.subarray(part.length);
    }
    this.hash.update(bytes);
    return bytes;
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
      this.#rest = next.value;
    }
    return false;
  }

  broken(code: "HIB_CORRUPT" | "HIB_TRUNCATED", what: string): HibernaculumError {
    return new HibernaculumError(code, `${this.name} is not what was exported: ${what}; export the image again`);
  }

  async close(): Promise<void> {
    await this.#iterator.return?.().catch(() => undefined);
  }
}

/** Length of an image's stream. */
function streamBytes({ catalogueBytes, blobBytes }: ImageHeader): number {
  return PREFIX_BYTES + catalogueBytes + blobBytes + FLAGS_BYTES + HASH_BYTES;
}

function inOrder(chunks: readonly Chunk[]): Chunk[] {
  return [...chunks].sort((a, b) => a.offset - b.offset);
}

/** Offsets and lengths of the pieces of so many bytes. */
function* pieces(total: number): Generator<[at: number, bytes: number]> {
  for (let at = 0; at < total; at += PIECE_BYTES) yield [at, Math.min(PIECE_BYTES, total - at)];
}

async function readPiece(file: BlobReader, offset: number, length: number): Promise<Uint8Array> {
  const piece = new Uint8Array(length);
  await file.read(piece, offset, length);
  return piece;
}

function checkCancelled(signal: AbortSignal | undefined): void {
  if (signal?.aborted === true) throw new HibernaculumError("HIB_CANCELLED", "cancelled; nothing is left behind");
}
