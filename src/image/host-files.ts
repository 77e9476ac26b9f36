/**
 * Files under an image (S3.6): the files of the host that a machine has open are not in its image, so the image says what they
 * were at the consistency point, and a resume compares.
 *
 * What is compared: the size and the contents. Device, inode and the time of its last change are hints: of a file that is only
 * read and has all three as they were, nothing need be read. One that has others and the same bytes is the same file, brought
 * here by a copy, another mount or another host.
 *
 * The contents of a file that the machine goes on writing to must be known as of the consistency point, and hashing a disk
 * while everything stands still would take long. So each block has a sum of its own: `FileContents` reads the blocks that it
 * does not know while the machine runs, and is told of each write (WriteObserver). At the stop nothing is read; what is
 * written later keeps the sums from before it. The checksum is the XXH64 of the blocks' sums.
 *
 * What must hold: a block's sum is that of its bytes, or it is not known. Blocks that are not known at the stop (a write is in
 * flight, or failed) and those of writes that whoever resumes carries out again are left out, and listed as such.
 */
import { type BigIntStats, closeSync, fdatasync, fstatSync } from "node:fs";
import { open, stat } from "node:fs/promises";
import { promisify } from "node:util";
import { attemptTo } from "../base/errors.js";
import { FILE_BLOCK_BYTES, type HostFile, openRegular, readUpToAsync, type WriteObserver } from "../base/host-file.js";
import { checksum, loadChecksum } from "./checksum.js";

/** A file of the host, as it was at the consistency point. */
export interface FileRow {
  path: string;
  mode: "r" | "rw";
  device: bigint;
  inode: bigint;
  size: bigint;
  /** Last change, ns since 1970. */
  mtime: bigint;
  /** The first so many bytes count. */
  position: number;
  /** XXH64 over the XXH64 of each block of 4,096 bytes up to `position`; null for one that was not as the machine knew it. */
  hash: bigint | null;
  /** Blocks whose sum counts as 0. */
  except: number[];
}

const WINDOW_BLOCKS = 256;
const WINDOW_BYTES: number = WINDOW_BLOCKS * FILE_BLOCK_BYTES;

/** What a file's blocks hold, by their sums. */
class FileContents implements WriteObserver {
  readonly #file: HostFile;
  readonly #sums: BigUint64Array;
  /** 1 for a block whose sum is known. */
  readonly #known: Uint8Array;
  readonly #writing = new Set<number>();
  /** Blocks that were written since the window that is being read was begun. */
  readonly #written = new Set<number>();
  /** Sums as they were at the stop of blocks that were written since; undefined for one that was not known. */
  #frozen: Map<number, bigint | undefined> | undefined;

  constructor(file: HostFile) {
    this.#file = file;
    const blocks = Math.ceil(file.position / FILE_BLOCK_BYTES);
    this.#sums = new BigUint64Array(blocks);
    this.#known = new Uint8Array(blocks);
  }

  writing(block: number): void {
    this.#preserve(block);
    this.#writing.add(block);
    this.#known[block] = 0;
  }

  written(block: number, bytes: Uint8Array | undefined): void {
    this.#preserve(block);
    this.#writing.delete(block);
    this.#written.add(block);
    this.#known[block] = 0;
    if (bytes !== undefined) this.#learn(block, bytes);
  }

  #learn(block: number, bytes: Uint8Array): void {
    this.#sums[block] = checksum(bytes);
    this.#known[block] = 1;
  }

  #preserve(block: number): void {
    if (this.#frozen === undefined || this.#frozen.has(block)) return;
    this.#frozen.set(block, this.#known[block] === 1 ? this.#sums[block] : undefined);
  }

  /** Reads what is not known, while the machine runs. */
  async learn(signal: AbortSignal | undefined): Promise<void> {
    const buffer = new Uint8Array(WINDOW_BYTES);
    for (let first = this.#unknown(0); first >= 0 && signal?.aborted !== true; first = this.#unknown(first + WINDOW_BLOCKS)) {
      const end = Math.min(this.#file.position, first * FILE_BLOCK_BYTES + WINDOW_BYTES);
      this.#written.clear();
      const bytes = await readRange(this.#file.descriptor, buffer, first * FILE_BLOCK_BYTES, end);
      for (const [i, block] of blocksOf(bytes).entries()) {
        // Of a block that was written meanwhile, the write says what it holds; or nobody knows yet.
        if (!this.#written.has(first + i) && !this.#writing.has(first + i)) this.#learn(first + i, block);
      }
    }
  }

  /** The first block from `from` that must be read; -1 if there is none. */
  #unknown(from: number): number {
    for (let block = from; block < this.#known.length; block++) {
      if (this.#known[block] === 0 && !this.#writing.has(block)) return block;
    }
    return -1;
  }

  /** From now on what is written does not change what `frozenSums` says. */
  freeze(): void {
    this.#frozen = new Map();
  }

  /** The sums as of the last `freeze`, and the blocks that were not known then. */
  frozenSums(): { sums: BigUint64Array; unknown: number[] } {
    const frozen = this.#frozen ?? new Map<number, bigint | undefined>();
    const sums = this.#sums.slice();
    const unknown = [];
    for (let block = 0; block < sums.length; block++) if (this.#known[block] === 0 && !frozen.has(block)) unknown.push(block);
    for (const [block, sum] of frozen) {
      if (sum === undefined) unknown.push(block);
      else sums[block] = sum;
    }
    return { sums, unknown };
  }

  release(): void {
    this.#frozen = undefined;
  }
}

/** The files under an image that is being made. Its methods are called in the order in which they stand. */
export class FilesOfSave {
  /** Files that processes have open: they write them themselves, at any time, so nobody is told. */
  #open: FileRow[] = [];
  #files: readonly { file: HostFile; contents: FileContents | undefined }[] = [];
  #rows: FileRow[] = [];
  #signal: AbortSignal | undefined;

  /**
   * Learns what the files hold, while the machine runs. The first save of a machine reads all that is open for writing.
   *
   * @throws HIB_IO
   */
  async prepare(files: readonly HostFile[], signal: AbortSignal | undefined): Promise<void> {
    await loadChecksum();
    this.#signal = signal;
    this.#files = files.map((file) => {
      if (file.mode === "r") return { file, contents: undefined };
      const contents = file.observer instanceof FileContents ? file.observer : new FileContents(file);
      file.observer = contents; // and it stays, so that the next save need not read the file again
      return { file, contents };
    });
    for (const { file, contents } of this.#files) await attemptTo(`reading ${file.path}`, async () => contents?.learn(signal));
  }

  /** At the stop. Reads nothing: a few microseconds a file. */
  freeze(open: readonly Omit<FileRow, "position" | "hash" | "except">[]): void {
    this.#open = open.map((file) => ({ ...file, position: 0, hash: null, except: [] }));
    this.#rows = this.#files.map(({ file, contents }) => {
      contents?.freeze();
      const { dev, ino, size, mtimeNs } = fstatSync(file.descriptor, { bigint: true });
      const { path, mode, position } = file;
      return { path, mode, device: dev, inode: ino, size, mtime: mtimeNs, position, hash: null, except: file.pendingBlocks() };
    });
  }

  /** Waits until what was written is on the disk: an image that is there after a crash of the host wants its files. */
  async sync(): Promise<void> {
    for (const { file } of this.#files)
      if (file.mode === "rw") await attemptTo(`reading ${file.path}`, () => promisify(fdatasync)(file.descriptor));
    for (const { path, mode } of this.#open) if (mode === "rw") await syncFile(path);
  }

  /** The files as they were at the stop. */
  async rows(): Promise<FileRow[]> {
    const own = this.#ownRows();
    const paths = new Set(own.map(({ path }) => path));
    const others = this.#open.filter(({ path }) => !paths.has(path));
    const rows: FileRow[] = [];
    for (const row of [...own, ...others]) rows.push(row.hash === null ? await withContents(row, this.#signal) : row);
    return rows;
  }

  #ownRows(): FileRow[] {
    return this.#rows.map((row, i) => {
      const contents = this.#files[i]!.contents;
      if (contents === undefined) return row;
      const { sums, unknown } = contents.frozenSums();
      const except = [...new Set([...row.except, ...unknown])].sort((a, b) => a - b);
      return { ...row, hash: combine(sums, except), except };
    });
  }

  /** The save is over, whichever way. */
  finish(): void {
    for (const { contents } of this.#files) contents?.release();
  }
}

/** One that is gone has nothing to be synced, and its resume will say so. */
async function syncFile(path: string): Promise<void> {
  const file = await open(path, "r+").catch(() => undefined);
  try {
    await attemptTo(`reading ${path}`, async () => file?.datasync());
  } finally {
    await file?.close();
  }
}

/** Checksums of files that were only read, by path: they are read once, as long as the hints agree. */
const known = new Map<string, FileRow>();

/** With the checksum of its contents, if the file still is what the machine knew at the stop; else a resume will say so. */
async function withContents(row: FileRow, signal: AbortSignal | undefined): Promise<FileRow> {
  const before = await statOf(row);
  if (before === undefined || !isAsItWas(row, before)) return row;
  const earlier = known.get(row.path);
  if (row.mode === "r" && earlier !== undefined && isAsItWas(earlier, before)) return { ...earlier, mode: row.mode };
  const all = { ...row, position: Number(row.size) };
  const hash = await checksumFile(all, { signal }).catch(unlessGone);
  const after = await statOf(row);
  if (hash === undefined || after === undefined || !isAsItWas(row, after)) return row;
  if (row.mode === "r") known.set(row.path, { ...all, hash });
  return { ...all, hash };
}

/** How a file's contents are read: `open` gives a descriptor for reading; once `signal` is aborted, no more is read. */
interface Reading {
  open?: (path: string) => number;
  signal?: AbortSignal | undefined;
}

/** What has become of the files under an image. */
export interface ComparedFiles {
  /** A path and how it differs, each. */
  changed: { path: string; how: string }[];
  /** Paths of files that hold what they held, and are others by the host's account: copied, or mounted anew. */
  moved: string[];
}

/**
 * Compares files with what an image says of them.
 *
 * @throws HIB_IO if a file cannot be read
 */
export async function compareFiles(rows: Iterable<FileRow>, reading: Reading = {}): Promise<ComparedFiles> {
  await loadChecksum();
  const compared: ComparedFiles = { changed: [], moved: [] };
  const sums = new KnownSums(reading);
  for (const row of rows) {
    if (reading.signal?.aborted === true) break;
    const how = await attemptTo(`reading ${row.path}`, () => compare(row, sums));
    if (how === "moved") compared.moved.push(row.path);
    else if (how !== "same") compared.changed.push({ path: row.path, how });
  }
  return compared;
}

/** A disk may be a file of a mount, too, and then some other part of it counts; no machine reads a file in more ways than that. */
const PARTS_MAX = 4;

/** Checksums by file, however its path is spelt: rows may name one a thousand times. */
class KnownSums {
  readonly #reading: Reading;
  /** By device and inode, and then by the part of the file that counts. */
  readonly #known = new Map<string, Map<string, bigint | undefined>>();

  constructor(reading: Reading) {
    this.#reading = reading;
  }

  /** The checksum that a row's file has now; undefined if it is to be read in too many ways, or that was cancelled. */
  async of(row: FileRow, { dev, ino }: BigIntStats): Promise<bigint | undefined> {
    const file = `${dev}:${ino}`;
    const part = `${row.position}:${row.except.join()}`;
    const known = this.#known.get(file) ?? new Map<string, bigint | undefined>();
    this.#known.set(file, known);
    if (!known.has(part) && known.size < PARTS_MAX) known.set(part, await checksumFile(row, this.#reading));
    return known.get(part);
  }
}

async function compare(row: FileRow, sums: KnownSums): Promise<string> {
  const found = await statOf(row);
  if (found === undefined) return "is gone";
  if (!found.isFile()) return "is not a regular file";
  if (found.size !== row.size) return `has ${found.size} bytes and had ${row.size}`;
  const hinted = isAsItWas(row, found);
  if (row.mode === "r" && hinted) return "same"; // the machine itself writes to others, and a clock is coarse
  if (row.hash === null) return hinted ? "same" : "was changed since";
  // No save says so: it is somebody else's image, and what is read and summed goes by this number.
  if (row.position > found.size) return `has ${found.size} bytes, and ${row.position} of them are to be compared`;
  if ((await sums.of(row, found)) !== row.hash) return "has other contents";
  return hinted ? "same" : "moved";
}

function isAsItWas({ device, inode, size, mtime }: FileRow, found: BigIntStats): boolean {
  return found.dev === device && found.ino === inode && found.size === size && found.mtimeNs === mtime;
}

const LEADS_NOWHERE: ReadonlySet<string> = new Set(["ENOENT", "ENOTDIR", "ELOOP", "ENAMETOOLONG"]);

async function statOf({ path }: FileRow): Promise<BigIntStats | undefined> {
  return stat(path, { bigint: true }).catch(unlessGone);
}

/** Nothing is there, by now: the machine itself may remove what it has open. */
function unlessGone(error: NodeJS.ErrnoException): undefined {
  if (!LEADS_NOWHERE.has(error.code ?? "")) throw error;
}

/** The checksum of a file as it is now; undefined if that was cancelled. */
async function checksumFile(
  { path, position, except }: FileRow,
  { open = openRegular, signal }: Reading,
): Promise<bigint | undefined> {
  const sums = new BigUint64Array(Math.ceil(position / FILE_BLOCK_BYTES));
  const buffer = new Uint8Array(WINDOW_BYTES);
  const descriptor = open(path);
  try {
    for (let at = 0; at < position; at += WINDOW_BYTES) {
      if (signal?.aborted === true) return undefined;
      const bytes = await readRange(descriptor, buffer, at, Math.min(position, at + WINDOW_BYTES));
      for (const [i, block] of blocksOf(bytes).entries()) sums[at / FILE_BLOCK_BYTES + i] = checksum(block);
    }
  } finally {
    closeSync(descriptor);
  }
  return combine(sums, except);
}

function combine(sums: BigUint64Array, except: readonly number[]): bigint {
  for (const block of except) sums[block] = 0n;
  return checksum(new Uint8Array(sums.buffer));
}

function blocksOf(bytes: Uint8Array): Uint8Array[] {
  const blocks = Math.ceil(bytes.length / FILE_BLOCK_BYTES);
  return Array.from({ length: blocks }, (_, i) => bytes.subarray(i * FILE_BLOCK_BYTES, (i + 1) * FILE_BLOCK_BYTES));
}

/** Bytes `from` to `end`; fewer if the file ends before that. */
async function readRange(descriptor: number, buffer: Uint8Array, from: number, end: number): Promise<Uint8Array> {
  return buffer.subarray(0, await readUpToAsync(descriptor, buffer.subarray(0, end - from), from));
}
