/**
 * The catalogue: a SQLite file that says what is in the blob and whose it is. Resume needs `meta`, `chunk`,
 * `extent` and `file`; the other tables are for those who look at an image (`sqlite3 NAME/catalogue.sqlite`).
 *
 * What must hold:
 * - It is one file when it is finished: no journal beside it, everything in one transaction. What makes it safe is not
 *   SQLite's journal but the image's header, which carries its checksum and is written after it.
 * - Words of 64 bits are stored as SQLite's signed integers. A row that has one is read with `safeIntegers`, or the
 *   word in two halves; anything else rounds it silently.
 */
import { open } from "node:fs/promises";
import { join } from "node:path";
import Database from "better-sqlite3";
import { fromSystemError, damaged, HibernaculumError } from "../base/errors.js";
import type { Pfn, VirtualAddress } from "../base/memory.js";
import { hashFile } from "./checksum.js";
import { type Extent, CATALOGUE_NAME, type Chunk, ExtentTable, SAME_FILLED } from "./format.js";
import type { FileRow } from "./host-files.js";
import type { Reference } from "../base/host-file.js";

/** A process, as it was at the consistency point. */
export interface ProcessRow {
  pid: number;
  slot: number;
  name: string;
  state: string;
  steps: number;
  /** What else there is to know; any JSON. */
  detail: unknown;
}

/** A run of pages of a process that is contiguous in virtual and in physical memory. */
export interface MappingRow {
  pid: number;
  vaddr: VirtualAddress;
  /** Order of the buddy blocks that the frames lie in. */
  order: number;
  pfn: Pfn;
  pages: number;
  /** The leaf's flag bits (V R W X U G A D). */
  flags: number;
  /** Offset in the blob of the chunk that holds the first frame; null when it is same-filled or not in the image. */
  blobOffset: number | null;
}

/** Buddy blocks of a kind, an owner and an order. */
export interface BlockRow {
  kind: string;
  /** PID, 0 for the kernel. */
  owner: number;
  order: number;
  blocks: number;
  frames: number;
}

/** Any JSON values by name. */
export type Meta = Record<string, unknown>;

export interface CatalogueContents {
  meta: Meta;
  chunks: Iterable<Chunk>;
  /** Fastest in order of pfn. */
  extents: Iterable<Extent>;
  /** Those of kind "file" in `extents` are not looked at: they are these. */
  references: Iterable<Reference>;
  processes: Iterable<ProcessRow>;
  mappings: Iterable<MappingRow>;
  blocks: Iterable<BlockRow>;
  files: Iterable<FileRow>;
}

const SCHEMA = `
  CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
  CREATE TABLE chunk (id INTEGER PRIMARY KEY, offset INTEGER NOT NULL, stored INTEGER NOT NULL, payload INTEGER NOT NULL,
    frames INTEGER NOT NULL, codec INTEGER NOT NULL, hash INTEGER NOT NULL) STRICT;
  CREATE TABLE extent (pfn INTEGER PRIMARY KEY, frames INTEGER NOT NULL, chunk INTEGER, first INTEGER, fill INTEGER) STRICT;
  CREATE TABLE process (pid INTEGER PRIMARY KEY, slot INTEGER NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL,
    steps REAL NOT NULL, detail TEXT NOT NULL) STRICT;
  CREATE TABLE mapping (pid INTEGER NOT NULL, vaddr INTEGER NOT NULL, frame_order INTEGER NOT NULL, pfn INTEGER NOT NULL,
    pages INTEGER NOT NULL, flags INTEGER NOT NULL, blob_offset INTEGER) STRICT;
  CREATE TABLE blocks (kind TEXT NOT NULL, owner INTEGER NOT NULL, frame_order INTEGER NOT NULL, blocks INTEGER NOT NULL,
    frames INTEGER NOT NULL) STRICT;
  CREATE TABLE reference (pfn INTEGER PRIMARY KEY, frames INTEGER NOT NULL, path TEXT NOT NULL, page INTEGER NOT NULL,
    hashes BLOB NOT NULL) STRICT;
  CREATE TABLE file (path TEXT PRIMARY KEY, mode TEXT NOT NULL, device INTEGER NOT NULL, inode INTEGER NOT NULL,
    size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, position INTEGER NOT NULL, hash INTEGER, skipped TEXT NOT NULL) STRICT;
`;

export class CatalogueWriter {
  readonly path: string;
  readonly #database: Database.Database;

  private constructor(path: string) {
    this.path = path;
    this.#database = openDatabase(path, {});
  }

  /**
   * Creates an empty catalogue at `path`.
   *
   * @throws HIB_DEPENDENCY if better-sqlite3 was not built, HIB_NO_SPACE, HIB_IO
   */
  static create(path: string): CatalogueWriter {
    const writer = new CatalogueWriter(path);
    writer.#attempt(() => {
      // Nobody else reads it yet and a crash throws it away, so neither a journal nor SQLite's own syncs are needed.
      for (const pragma of ["journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE", "cache_size = -2000"])
        writer.#database.pragma(pragma);
      writer.#database.exec(SCHEMA);
    });
    return writer;
  }

  /**
   * Writes everything, in one transaction; blocks this thread at 1 to 2 million rows a second. Closes the file if it
   * fails. What the iterables throw comes out as it is.
   *
   * @throws HIB_NO_SPACE, HIB_IO, HIB_INTERNAL if two rows contradict each other
   */
  write({ meta, chunks, extents, references, processes, mappings, blocks, files }: CatalogueContents): void {
    const database = this.#database;
    const insert = (values: string): Database.Statement<unknown[]> => database.prepare(`INSERT INTO ${values}`);
    this.#attempt(() => {
      database.exec("BEGIN");
      const metaRow = insert("meta VALUES (?, ?)");
      for (const [key, value] of Object.entries(meta)) metaRow.run(key, JSON.stringify(value));

      const chunkRow = insert("chunk VALUES (?, ?, ?, ?, ?, ?, ?)");
      for (const c of chunks) chunkRow.run(c.id, c.offset, c.stored, c.payload, c.frames, c.codec, BigInt.asIntN(64, c.hash));

      const placed = insert("extent (pfn, frames, chunk, first) VALUES (?, ?, ?, ?)");
      const zero = insert("extent (pfn, frames, fill) VALUES (?, ?, 0)");
      const filled = insert("extent (pfn, frames, fill) VALUES (?, ?, ?)");
      for (const e of extents) {
        if (e.chunk === "file") continue;
        else if (e.chunk !== null) placed.run(e.pfn, e.frames, e.chunk, e.first);
        else if (e.fill === 0n)
          zero.run(e.pfn, e.frames); // nearly all of them
        else filled.run(e.pfn, e.frames, BigInt.asIntN(64, e.fill));
      }

      const referenceRow = insert("reference VALUES (?, ?, ?, ?, ?)");
      for (const r of references) referenceRow.run(r.pfn, r.frames, r.path, r.page, Buffer.from(r.hashes.slice().buffer));

      const processRow = insert("process VALUES (?, ?, ?, ?, ?, ?)");
      for (const p of processes) processRow.run(p.pid, p.slot, p.name, p.state, p.steps, JSON.stringify(p.detail ?? null));

      const mappingRow = insert("mapping VALUES (?, ?, ?, ?, ?, ?, ?)");
      for (const m of mappings) mappingRow.run(m.pid, m.vaddr, m.order, m.pfn, m.pages, m.flags, m.blobOffset);

      const blockRow = insert("blocks VALUES (?, ?, ?, ?, ?)");
      for (const b of blocks) blockRow.run(b.kind, b.owner, b.order, b.blocks, b.frames);

      const fileRow = insert("file VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)");
      for (const f of files) {
        const words = [f.device, f.inode, f.size, f.mtime].map((word) => BigInt.asIntN(64, word));
        const hash = f.hash === null ? null : BigInt.asIntN(64, f.hash);
        fileRow.run(f.path, f.mode, ...words, f.position, hash, JSON.stringify(f.except));
      }
      database.exec("COMMIT");
    });
  }

  /**
   * Closes the file and waits until it is on the disk.
   *
   * @returns what the image's header says about it
   * @throws HIB_NO_SPACE, HIB_IO
   */
  async close(): Promise<{ bytes: number; hash: bigint }> {
    this.#attempt(() => this.#database.close());
    try {
      const file = await open(this.path, "r+");
      try {
        await file.sync();
      } finally {
        await file.close();
      }
    } catch (error) {
      throw fromSystemError(error, `syncing ${this.path}`);
    }
    return hashFile(this.path);
  }

  #attempt(operation: () => void): void {
    try {
      operation();
    } catch (error) {
      this.#database.close();
      if (!(error instanceof Database.SqliteError)) throw error;
      throw fromSqlite(error, `writing ${this.path}`, "HIB_INTERNAL");
    }
  }
}

export class Catalogue {
  readonly path: string;
  readonly meta: Readonly<Meta>;
  readonly #database: Database.Database;

  private constructor(path: string) {
    this.path = path;
    this.#database = openDatabase(path, { readonly: true, fileMustExist: true });
    try {
      const rows = this.#rows<[string, string]>("SELECT key, value FROM meta");
      this.meta = Object.fromEntries(rows.map(([key, value]) => [key, this.#json(value)]));
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /**
   * Opens the catalogue of an image for reading.
   *
   * @param directory the image
   * @throws HIB_DEPENDENCY, HIB_IO, HIB_CORRUPT if it is no catalogue; so do the methods
   */
  static open(directory: string): Catalogue {
    return new Catalogue(join(directory, CATALOGUE_NAME));
  }

  /** All chunks, by id. */
  chunks(): Chunk[] {
    return this.#attempt(() =>
      this.#database
        .prepare<[], bigint[]>("SELECT id, offset, stored, payload, frames, codec, hash FROM chunk ORDER BY id")
        .raw()
        .safeIntegers()
        .all()
        .map((row) => {
          const [id, offset, stored, payload, frames, codec] = row.map(Number) as [
            number,
            number,
            number,
            number,
            number,
            number,
          ];
          return { id, offset, stored, payload, frames, codec, hash: BigInt.asUintN(64, row[6]!) };
        }),
    );
  }

  /** Frames that are pages of files of the host, by pfn. */
  references(): Reference[] {
    return this.#rows<[number, number, string, number, Buffer]>(
      "SELECT pfn, frames, path, page, hashes FROM reference ORDER BY pfn",
    ).map(([pfn, frames, path, page, bytes]) => {
      if (bytes.length !== frames * 8)
        throw damaged("HIB_CORRUPT", `${this.path}: the reference at frame ${pfn} lacks checksums`);
      return { pfn, frames, path, page, hashes: new BigUint64Array(Uint8Array.from(bytes).buffer) };
    });
  }

  /** All extents in the blob, packed, by pfn. */
  extents(): ExtentTable {
    const [count, outside] = this.#rows<[number, number]>(
      "SELECT count(*), total(pfn NOT BETWEEN 0 AND 0xffffffff OR frames NOT BETWEEN 1 AND 0xffffffff OR first NOT BETWEEN 0 AND 0xffff" +
        " OR chunk NOT BETWEEN 0 AND 0x7fffffff OR (chunk IS NULL) <> (first IS NULL) OR (chunk IS NULL) = (fill IS NULL)) FROM extent",
    )[0]!;
    if (outside !== 0) throw damaged("HIB_CORRUPT", `${this.path}: ${outside} extents are out of range`);
    const table = new ExtentTable(count);
    const halves = new Uint32Array(table.fill.buffer);
    this.#attempt(() => {
      const rows = this.#database.prepare<[], number[]>(
        "SELECT pfn, frames, chunk, first, fill & 0xffffffff, (fill >> 32) & 0xffffffff FROM extent ORDER BY pfn",
      );
      let i = 0;
      for (const row of rows.raw().iterate()) {
        table.pfn[i] = row[0]!;
        table.frames[i] = row[1]!;
        table.chunk[i] = row[2] ?? SAME_FILLED;
        table.first[i] = row[3]!;
        halves[2 * i] = row[4]!;
        halves[2 * i + 1] = row[5]!;
        i++;
      }
    });
    return table;
  }

  /** All processes, by PID. */
  processes(): ProcessRow[] {
    return this.#rows<[number, number, string, string, number, string]>(
      "SELECT pid, slot, name, state, steps, detail FROM process ORDER BY pid",
    ).map(([pid, slot, name, state, steps, detail]) => ({ pid, slot, name, state, steps, detail: this.#json(detail) }));
  }

  /** All mappings, as they were written. The catalogue cannot be closed in the middle of it. */
  *mappings(): Generator<MappingRow> {
    const sql = 'SELECT pid, vaddr, frame_order AS "order", pfn, pages, flags, blob_offset AS blobOffset FROM mapping';
    try {
      yield* this.#database.prepare<[], MappingRow>(sql).iterate();
    } catch (error) {
      throw fromSqlite(error, `reading ${this.path}`, "HIB_CORRUPT");
    }
  }

  /** Buddy blocks, counted. */
  blocks(): BlockRow[] {
    return this.#attempt(() =>
      this.#database.prepare<[], BlockRow>('SELECT kind, owner, frame_order AS "order", blocks, frames FROM blocks').all(),
    );
  }

  /** Files of the host that the machine had open, by path. */
  files(): FileRow[] {
    const rows = this.#attempt(() =>
      this.#database
        .prepare<[], (string | bigint | null)[]>(
          "SELECT path, mode, device, inode, size, mtime_ns, position, hash, skipped FROM file ORDER BY path",
        )
        .raw()
        .safeIntegers()
        .all(),
    );
    return rows.map((row) => {
      const [path, mode, device, inode, size, mtime, position, hash, skipped] = row as [
        string,
        FileRow["mode"],
        ...[bigint, bigint, bigint, bigint, bigint, bigint | null, string],
      ];
      return {
        path,
        mode,
        device: BigInt.asUintN(64, device),
        inode: BigInt.asUintN(64, inode),
        size,
        mtime,
        position: Number(position),
        hash: hash === null ? null : BigInt.asUintN(64, hash),
        except: this.#json(skipped) as number[],
      };
    });
  }

  /** May be called again. */
  close(): void {
    this.#database.close();
  }

  #rows<Row extends unknown[]>(sql: string): Row[] {
    return this.#attempt(() => this.#database.prepare<[], Row>(sql).raw().all());
  }

  #json(text: string): unknown {
    try {
      return JSON.parse(text);
    } catch (error) {
      throw damaged("HIB_CORRUPT", `${this.path}: a value is not JSON`, { cause: error });
    }
  }

  #attempt<T>(operation: () => T): T {
    try {
      return operation();
    } catch (error) {
      throw fromSqlite(error, `reading ${this.path}`, "HIB_CORRUPT");
    }
  }
}

function openDatabase(path: string, options: Database.Options): Database.Database {
  try {
    return new Database(path, options);
  } catch (error) {
    throw fromSqlite(error, `opening ${path}`, "HIB_IO");
  }
}

/** SQLite's errors, and that of loading it, by what they mean to the user. */
export function fromSqlite(
  error: unknown,
  doing: string,
  otherwise: "HIB_CORRUPT" | "HIB_INTERNAL" | "HIB_IO",
): HibernaculumError {
  const { code = "", message } = error as { code?: string; message: string };
  if (code.startsWith("ERR_DLOPEN") || message.startsWith("Could not locate the bindings file")) {
    return new HibernaculumError(
      "HIB_DEPENDENCY",
      "better-sqlite3 has no native binding here: run `npm rebuild better-sqlite3` (needs a C++ toolchain, make and Python)",
      { cause: error },
    );
  }
  if (code === "SQLITE_FULL")
    return fromSystemError(Object.assign(new Error(message, { cause: error }), { code: "ENOSPC" }), doing);
  if (/^SQLITE_(IOERR|CANTOPEN|READONLY|PERM|BUSY)/.test(code)) return fromSystemError(error, doing);
  return new HibernaculumError(otherwise, `${doing}: ${message}`, { cause: error });
}
