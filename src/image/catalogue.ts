/**
 * The catalogue: a SQLite file that says what is in the blob and whose it is. Resume needs `meta`, `chunk`,
 * `extent` and `file`; the other tables are for those who look at an image (`sqlite3 NAME/catalogue.sqlite`).
 *
 * What must hold:
 * - A catalogue is data from somebody else: nothing of it is believed before it has been looked at.
 * - Words of 64 bits are stored as SQLite's signed integers. A row that has one is read with `safeIntegers`, or the
 *   word in two halves; anything else rounds it silently.
 */
import { closeSync, existsSync, statSync } from "node:fs";
import { join } from "node:path";
import type Database from "better-sqlite3";
import { fromSystemError, damaged, HibernaculumError } from "../base/errors.js";
import { openRegular, readUpTo, type Reference } from "../base/host-file.js";
import { MAX_FRAMES } from "../base/layout.js";
import { TABLE_BYTES, TABLES } from "./catalogue-checks.js";
import type { BlockRow, MappingRow, Meta, MountRow, ObjectRow, ProcessRow, RegionRow } from "./catalogue-rows.js";
import { APPLICATION_ID, hasSchema } from "./catalogue-schema.js";
import { ExtentTable, KIND_CHUNK, KIND_FILL, KIND_HOLE, KIND_REFERENCE, REFERENCED, SAME_FILLED } from "./extents.js";
import { CATALOGUE_NAME, type Chunk, FORMAT_VERSION } from "./format.js";
import type { FileRow } from "./host-files.js";
import { fromSqlite, openDatabase } from "./sqlite-errors.js";

/** A row takes so many bytes at least. */
const ROW_BYTES = 4;
/** Of SQLite's header: how the file is written and read; 1 without a log beside it, 2 with one (WAL). */
const SQLITE_VERSIONS_AT = 18;

/** A catalogue is data from somebody else: nothing of it is believed before it has been looked at. */
export class Catalogue {
  readonly path: string;
  readonly meta: Readonly<Meta>;
  readonly #database: Database.Database;
  /** Of the file. */
  readonly #bytes: number;

  private constructor(path: string) {
    this.path = path;
    this.#refuseLogs();
    this.#database = openDatabase(path, { readonly: true, fileMustExist: true });
    try {
      this.#attempt(() => this.#checkSchema());
      this.#bytes = statSync(path).size;
      const rows = this.#rows<[string, string]>("meta", "SELECT key, value FROM meta");
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

  /** A catalogue is the one file that its checksum is of. SQLite would read a log beside it, too. */
  #refuseLogs(): void {
    const head = new Uint8Array(SQLITE_VERSIONS_AT + 2);
    try {
      const file = openRegular(this.path);
      readUpTo(file, head, 0);
      closeSync(file);
    } catch (error) {
      throw fromSystemError(error, `opening ${this.path}`);
    }
    if (head[SQLITE_VERSIONS_AT] !== 1 || head[SQLITE_VERSIONS_AT + 1] !== 1) throw this.#corrupt("it is one with a log (WAL)");
    for (const suffix of ["-wal", "-journal"])
      if (existsSync(this.path + suffix)) throw this.#corrupt(`${CATALOGUE_NAME}${suffix} is no part of an image: remove it`);
  }

  /** Its tables, and nothing that runs when they are read. */
  #checkSchema(): void {
    for (const pragma of ["trusted_schema = OFF", "cell_size_check = ON", "query_only = ON"]) this.#database.pragma(pragma);
    if (!hasSchema(this.#database)) throw this.#corrupt("it has other tables than a catalogue");
    const [id, version] = ["application_id", "user_version"].map((name) => this.#database.pragma(name, { simple: true }));
    if (id !== APPLICATION_ID || version !== FORMAT_VERSION)
      throw this.#corrupt("it does not say that it is a catalogue of this version");
  }

  /** Every value of a table is in range, and there are no more than the file has room for: pages of it may be used twice. */
  #check(table: string): number {
    const { bytes = "0", total = TABLE_BYTES, rows } = TABLES[table]!;
    const most = Math.min(TABLES[table]!.most, Math.ceil(this.#bytes / ROW_BYTES));
    const [count, size, wrong] = this.#database
      .prepare<[], [number, number, number]>(
        `SELECT count(*), total(${bytes}), total((${rows.join(" AND ")}) IS NOT 1) FROM (SELECT * FROM ${table} LIMIT ${most + 1})`,
      )
      .raw()
      .get()!;
    if (wrong > 0) throw this.#corrupt(`${wrong} of the rows of ${table} are out of range`);
    if (count > most || size > total) throw this.#corrupt(`there is more in ${table} than a machine can have`);
    return count;
  }

  /** All regions of RAM, by frame. */
  regions(): RegionRow[] {
    return this.#rows<[number, number]>("region", "SELECT pfn, frames FROM region ORDER BY pfn").map(([pfn, frames]) => ({
      pfn,
      frames,
    }));
  }

  /** All chunks, by id. */
  chunks(): Chunk[] {
    return this.#attempt(() => {
      this.#check("chunk");
      return this.#database
        .prepare<[], [...bigint[], Uint8Array, Uint8Array | null]>(
          "SELECT id, offset, stored, payload, frames, codec, hash, pieces, digest FROM chunk ORDER BY id",
        )
        .raw()
        .safeIntegers()
        .all()
        .map((row) => {
          const [id, offset, stored, payload, frames, codec] = row.slice(0, 6).map(Number) as [
            number,
            number,
            number,
            number,
            number,
            number,
          ];
          const [hash, pieces, digest] = row.slice(6) as [bigint, Uint8Array, Uint8Array | null];
          return { id, offset, stored, payload, frames, codec, hash: BigInt.asUintN(64, hash), pieces, digest };
        });
    });
  }

  /** Frames that are pages of files of the host, by pfn. Their hashes lie in one array: there can be a million rows. */
  references(): Reference[] {
    return this.#attempt(() => {
      this.#check("reference");
      const total = this.#database.prepare<[], number>("SELECT total(frames) FROM reference").pluck().get()!;
      if (total > MAX_FRAMES) throw this.#corrupt("more frames are in files than a machine has");
      const hashes = new BigUint64Array(total);
      const bytes = new Uint8Array(hashes.buffer);
      const found: Reference[] = [];
      let first = 0;
      const rows = this.#database.prepare<[], [number, number, string, number, Buffer]>(
        "SELECT pfn, frames, path, page, hashes FROM reference ORDER BY pfn",
      );
      for (const [pfn, frames, path, page, packed] of rows.raw().iterate()) {
        bytes.set(packed, first * 8);
        found.push({ pfn, frames, path, page, hashes: hashes.subarray(first, (first += frames)) });
      }
      return found;
    });
  }

  /** All extents, packed, by pfn. One with REFERENCED has the number of its reference. */
  extents(): ExtentTable {
    return this.#attempt(() => {
      const table = new ExtentTable(this.#check("extent"));
      const halves = new Uint32Array(table.fill.buffer);
      const rows = this.#database.prepare<[], number[]>(
        "SELECT pfn, frames, kind, chunk, first, fill & 0xffffffff, (fill >> 32) & 0xffffffff FROM extent ORDER BY pfn",
      );
      let i = 0;
      let references = 0;
      for (const row of rows.raw().iterate()) {
        table.pfn[i] = row[0]!;
        table.frames[i] = row[1]!;
        switch (row[2]!) {
          case KIND_CHUNK:
            table.chunk[i] = row[3]!;
            table.first[i] = row[4]!;
            break;
          case KIND_FILL:
            table.chunk[i] = SAME_FILLED;
            halves[2 * i] = row[5]!;
            halves[2 * i + 1] = row[6]!;
            break;
          case KIND_REFERENCE:
            table.chunk[i] = REFERENCED;
            halves[2 * i] = references++;
            break;
          case KIND_HOLE:
            table.chunk[i] = SAME_FILLED;
            break;
          default:
            throw new HibernaculumError(
              "HIB_FORMAT_VERSION",
              `${this.path}: the extent at frame ${row[0]!} is of a kind that this program does not know (${row[2]!}); use a newer one`,
            );
        }
        i++;
      }
      return table;
    });
  }

  /** All processes, by PID. */
  processes(): ProcessRow[] {
    return this.#rows<[number, number, string, string, number, string]>(
      "process",
      "SELECT pid, slot, name, state, steps, detail FROM process ORDER BY pid",
    ).map(([pid, slot, name, state, steps, detail]) => ({
      pid,
      slot,
      name,
      state,
      steps,
      // When it is asked for: it takes twenty times as much memory as its text.
      get detail() {
        return JSON.parse(detail) as unknown;
      },
    }));
  }

  /** All mappings, as they were written. The catalogue cannot be closed in the middle of it. */
  mappings(): Generator<MappingRow> {
    return this.#iterate<MappingRow>(
      "mapping",
      'SELECT pid, vaddr, frame_order AS "order", pfn, pages, flags, blob_offset AS blobOffset FROM mapping',
    );
  }

  /** Pages of the memory objects behind areas, in no order. The catalogue cannot be closed in the middle of it. */
  objects(): Generator<ObjectRow> {
    return this.#iterate<ObjectRow>("object", "SELECT object, page, pfn, pages FROM object");
  }

  *#iterate<Row>(table: string, sql: string): Generator<Row> {
    try {
      this.#check(table);
      yield* this.#database.prepare<[], Row>(sql).iterate();
    } catch (error) {
      throw fromSqlite(error, `reading ${this.path}`, "HIB_CORRUPT");
    }
  }

  /** Buddy blocks, counted. */
  blocks(): BlockRow[] {
    return this.#attempt(() => {
      this.#check("blocks");
      return this.#database.prepare<[], BlockRow>('SELECT kind, owner, frame_order AS "order", blocks, frames FROM blocks').all();
    });
  }

  /** Directories of the host that the machine saw, by path. */
  mounts(): MountRow[] {
    return this.#rows<[string, string, number]>("mount", "SELECT path, host, read_only FROM mount ORDER BY path").map(
      ([path, host, readOnly]) => ({ path, host, readOnly: readOnly === 1 }),
    );
  }

  /** Files of the host that the machine had open, by path. */
  files(): FileRow[] {
    const rows = this.#attempt(() => {
      this.#check("file");
      return this.#database
        .prepare<[], (string | bigint | null)[]>(
          "SELECT path, mode, device, inode, size, mtime_ns, position, hash, skipped FROM file ORDER BY path",
        )
        .raw()
        .safeIntegers()
        .all();
    });
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
        except: this.#blocks(skipped),
      };
    });
  }

  /** May be called again. */
  close(): void {
    this.#database.close();
  }

  #rows<Row extends unknown[]>(table: string, sql: string): Row[] {
    return this.#attempt(() => {
      this.#check(table);
      return this.#database.prepare<[], Row>(sql).raw().all();
    });
  }

  #blocks(json: string): number[] {
    const blocks = this.#json(json);
    if (!Array.isArray(blocks) || !blocks.every((block) => Number.isSafeInteger(block) && block >= 0))
      throw this.#corrupt("the list of a file's skipped blocks is malformed");
    return blocks as number[];
  }

  #corrupt(what: string): HibernaculumError {
    return damaged("HIB_CORRUPT", `${this.path}: ${what}`);
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
