/**
 * Reads the tables of a SQLite 3 file (https://sqlite.org/fileformat2.html): the part of that format that a catalogue uses. SQLite
 * itself is not asked (design/decisions/009-a-catalogue-is-read-page-by-page.md): of a file that somebody forged it may look at one page a
 * million times, and nothing can interrupt it.
 *
 * What must hold:
 * - A walk of a table looks at each page of the file once, overflow pages too. One that comes to a page again refuses the file. So its
 *   time is bounded by the file's length, and whoever walks may stop after any row.
 * - Nothing is read outside of a page's own bytes, whatever stands in it.
 */
import { damaged, type HibernaculumError } from "../base/errors.js";
import type { ByteSource } from "./sealed-file.js";
import { SqliteRow } from "./sqlite-row.js";

/** Of the file's first bytes, which are those of page 1. */
const HEADER_BYTES = 100;
const MAGIC = "SQLite format 3\0";
/** Bytes that are read at once, and how many such windows are kept. */
const WINDOW_BYTES = 2 ** 16;
const WINDOWS = 64;

/** Types of pages: of a table with row ids, and of one without. */
const INTERIOR_INDEX = 2;
const INTERIOR_TABLE = 5;
const LEAF_INDEX = 10;
const LEAF_TABLE = 13;
/** A row has a pointer to it, and its own length before it. */
const CELL_BYTES = 3;

/** A row of the schema: a table by the page of its root. */
export interface SchemaRow {
  type: string;
  name: string;
  table: string;
  root: number;
  sql: string | null;
}

export class SqliteFile {
  readonly bytes: number;
  readonly applicationId: number;
  readonly userVersion: number;
  readonly #file: ByteSource;
  readonly #pageBytes: number;
  /** Bytes of a page that hold something. */
  readonly #usable: number;
  readonly #pages: number;
  readonly #windows = new Map<number, Buffer>();

  /**
   * @param bytes - the file's length
   * @throws HIB_CORRUPT if it is no SQLite file, HIB_IO; so do the methods
   */
  constructor(file: ByteSource, bytes: number) {
    this.#file = file;
    this.bytes = bytes;
    const header = Buffer.alloc(Math.min(HEADER_BYTES, bytes));
    file.readSync(header, 0, header.length);
    if (header.length < HEADER_BYTES || header.toString("latin1", 0, MAGIC.length) !== MAGIC)
      throw this.corrupt("it is not a SQLite file");
    if (header[18] !== 1 || header[19] !== 1) throw this.corrupt("it is one with a log (WAL)");
    const pageBytes = header.readUInt16BE(16);
    this.#pageBytes = pageBytes === 1 ? 65536 : pageBytes;
    this.#usable = this.#pageBytes - header[20]!;
    this.#pages = bytes / this.#pageBytes;
    this.applicationId = header.readUInt32BE(68);
    this.userVersion = header.readUInt32BE(60);
    const sound =
      this.#pageBytes >= 512 &&
      (this.#pageBytes & (this.#pageBytes - 1)) === 0 &&
      this.#usable >= 480 &&
      this.#pages === header.readUInt32BE(28) &&
      header.readUInt32BE(56) === 1; // UTF-8
    if (!sound) throw this.corrupt("its first page contradicts itself");
  }

  /** All of the schema. It is small: more than 1,000 rows are refused. */
  schema(): SchemaRow[] {
    const rows: SchemaRow[] = [];
    for (const row of this.rows(1, 5)) {
      const sql = row.isNull(4) ? null : row.text(4);
      rows.push({ type: row.text(0), name: row.text(1), table: row.text(2), root: row.integer(3), sql });
      if (rows.length > 1000) throw this.corrupt("its schema has no end");
    }
    return rows;
  }

  /**
   * The rows of a table, by row id; those of one without row ids, in no order. Each is good until the next.
   *
   * @param root - page of its root
   * @param columns - how many each row has
   */
  *rows(root: number, columns: number): Generator<SqliteRow, void, undefined> {
    const row = new SqliteRow(columns);
    const seen = new Uint8Array(this.#pages + 1);
    const wanted = [root];
    let last = -Infinity;
    let bytes = 0;
    for (let page = wanted.pop(); page !== undefined; page = wanted.pop()) {
      const view = this.#page(page, seen);
      const at = page === 1 ? HEADER_BYTES : 0;
      const type = view[at]!;
      const interior = type === INTERIOR_INDEX || type === INTERIOR_TABLE;
      if (!interior && type !== LEAF_INDEX && type !== LEAF_TABLE) throw this.corrupt(`page ${page} is of no table`);
      const cells = view.readUInt16BE(at + 3);
      const pointers = at + (interior ? 12 : 8);
      if (pointers + 2 * cells > this.#usable) throw this.corrupt(`page ${page} has more cells than there is room for`);
      if (interior) {
        // The last is looked at first: what lies to the right goes below what lies to the left.
        wanted.push(view.readUInt32BE(at + 8));
        for (let i = cells - 1; i >= 0; i--) wanted.push(view.readUInt32BE(this.#cell(view, pointers + 2 * i, 4)));
        if (wanted.length > this.#pages) throw this.corrupt("pages are used twice");
      }
      if (type === INTERIOR_TABLE) continue;
      for (let i = 0; i < cells; i++) {
        const start = this.#cell(view, pointers + 2 * i, interior ? 6 : 2);
        this.#read(row, view, interior ? start + 4 : start, type === LEAF_TABLE, seen);
        if (type === LEAF_TABLE && row.id <= last) throw this.corrupt(`rows of page ${page} are in no order`);
        last = row.id;
        bytes += row.bytes + CELL_BYTES;
        if (bytes > this.bytes) throw this.corrupt(`rows of page ${page} overlap`);
        yield row;
      }
    }
  }

  /** Where a cell begins, by the pointer to it; so many bytes of it are there. */
  #cell(view: Buffer, pointer: number, bytes: number): number {
    const at = view.readUInt16BE(pointer);
    if (at + bytes > this.#usable) throw this.corrupt("a cell is not within its page");
    return at;
  }

  #read(row: SqliteRow, view: Buffer, start: number, table: boolean, seen: Uint8Array): void {
    const payload = row.varint(view, start, this.#usable);
    let at = row.end;
    row.id = 0;
    if (table) {
      row.id = row.varint(view, at, this.#usable);
      at = row.end;
    }
    const usable = this.#usable;
    if (!(payload <= this.bytes)) throw this.corrupt("a row is not within the file");
    const most = table ? usable - 35 : Math.floor(((usable - 12) * 64) / 255) - 23;
    if (payload <= most) {
      if (at + payload > usable) throw this.corrupt("a row is not within its page");
      if (!row.parse(view, at, at + payload)) throw this.corrupt("a row is not one of its table");
      return;
    }
    const least = Math.floor(((usable - 12) * 32) / 255) - 23;
    const spilt = least + ((payload - least) % (usable - 4));
    const local = spilt <= most ? spilt : least;
    if (at + local + 4 > usable) throw this.corrupt("a row is not within its page");
    const whole = this.#gather(view, at, local, payload, seen);
    if (!row.parse(whole, 0, payload)) throw this.corrupt("a row is not one of its table");
  }

  /** A row that goes on in overflow pages. */
  #gather(view: Buffer, at: number, local: number, payload: number, seen: Uint8Array): Buffer {
    const whole = Buffer.allocUnsafe(payload);
    view.copy(whole, 0, at, at + local);
    let next = view.readUInt32BE(at + local);
    for (let done = local; done < payload; ) {
      const page = this.#page(next, seen);
      next = page.readUInt32BE(0);
      done += page.copy(whole, done, 4, Math.min(this.#usable, 4 + payload - done));
    }
    return whole;
  }

  /** A page, which this walk has not seen yet. */
  #page(page: number, seen: Uint8Array): Buffer {
    if (!(page >= 1 && page <= this.#pages)) throw this.corrupt(`there is no page ${page}`);
    if (seen[page] === 1) throw this.corrupt(`page ${page} is used twice`);
    seen[page] = 1;
    const offset = (page - 1) * this.#pageBytes;
    const index = Math.floor(offset / WINDOW_BYTES);
    let window = this.#windows.get(index);
    if (window === undefined) {
      window = Buffer.allocUnsafe(Math.min(WINDOW_BYTES, this.bytes - index * WINDOW_BYTES));
      this.#file.readSync(window, index * WINDOW_BYTES, window.length);
      if (this.#windows.size >= WINDOWS) this.#windows.delete(this.#windows.keys().next().value!);
      this.#windows.set(index, window);
    }
    const within = offset % WINDOW_BYTES;
    return window.subarray(within, within + this.#pageBytes);
  }

  corrupt(what: string): HibernaculumError {
    return damaged("HIB_CORRUPT", `${this.#file.path}: ${what}`);
  }
}
