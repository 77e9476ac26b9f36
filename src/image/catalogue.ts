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
import { closeSync, existsSync, openSync, statSync } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import Database from "better-sqlite3";
import { fromSystemError, damaged, HibernaculumError } from "../base/errors.js";
import { FRAME_BYTES, MAX_FRAMES, MAX_PROCESSES } from "../base/layout.js";
import type { Pfn, VirtualAddress } from "../base/memory.js";
import { hashFile } from "./checksum.js";
import {
  CATALOGUE_NAME,
  CHUNK_BYTES,
  CHUNK_FRAMES,
  type Chunk,
  type Extent,
  ExtentTable,
  FORMAT_VERSION,
  HEADER_BYTES,
  KIND_CHUNK,
  KIND_FILL,
  KIND_HOLE,
  KIND_REFERENCE,
  PIECE_BYTES,
  REFERENCED,
  SAME_FILLED,
  type SealedCatalogue,
} from "./format.js";
import type { FileRow } from "./host-files.js";
import { openRegular, readUpTo, type Reference } from "../base/host-file.js";

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

/** Frames of RAM. */
export interface RegionRow {
  pfn: Pfn;
  frames: number;
}

/** A run of pages of a memory object that is contiguous in physical memory. */
export interface ObjectRow {
  object: number;
  page: number;
  pfn: Pfn;
  pages: number;
}

/** A directory of the host that the machine sees. */
export interface MountRow {
  path: string;
  host: string;
  readOnly: boolean;
}

/** Any JSON values by name. */
export type Meta = Record<string, unknown>;

export interface CatalogueContents {
  meta: Meta;
  regions: Iterable<RegionRow>;
  chunks: Iterable<Chunk>;
  /** Fastest in order of pfn. */
  extents: Iterable<Extent>;
  /** Those of kind "file" in `extents` are not looked at: they are these. */
  references: Iterable<Reference>;
  processes: Iterable<ProcessRow>;
  mappings: Iterable<MappingRow>;
  objects: Iterable<ObjectRow>;
  blocks: Iterable<BlockRow>;
  files: Iterable<FileRow>;
  mounts: readonly MountRow[];
}

/** The schema, as `design/image-format.md` has it: a reader compares it before it reads a row. */
export const SCHEMA = `
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE region (pfn INTEGER PRIMARY KEY, frames INTEGER NOT NULL);
CREATE TABLE chunk (id INTEGER PRIMARY KEY, offset INTEGER NOT NULL, stored INTEGER NOT NULL, payload INTEGER NOT NULL,
  frames INTEGER NOT NULL, codec INTEGER NOT NULL, hash INTEGER NOT NULL, pieces BLOB NOT NULL, digest BLOB);
CREATE TABLE extent (pfn INTEGER PRIMARY KEY, frames INTEGER NOT NULL, kind INTEGER NOT NULL, chunk INTEGER, first INTEGER,
  fill INTEGER);
CREATE TABLE reference (pfn INTEGER PRIMARY KEY, frames INTEGER NOT NULL, path TEXT NOT NULL, page INTEGER NOT NULL,
  hashes BLOB NOT NULL);
CREATE TABLE file (path TEXT PRIMARY KEY, mode TEXT NOT NULL, device INTEGER NOT NULL, inode INTEGER NOT NULL,
  size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, position INTEGER NOT NULL, hash INTEGER, skipped TEXT NOT NULL,
  mount TEXT, name TEXT, digest BLOB);
CREATE TABLE mount (path TEXT PRIMARY KEY, host TEXT NOT NULL, read_only INTEGER NOT NULL);
CREATE TABLE process (pid INTEGER PRIMARY KEY, slot INTEGER NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL,
  steps REAL NOT NULL, detail TEXT NOT NULL);
CREATE TABLE blocks (kind TEXT NOT NULL, owner INTEGER NOT NULL, frame_order INTEGER NOT NULL, blocks INTEGER NOT NULL,
  frames INTEGER NOT NULL);
CREATE TABLE object (object INTEGER NOT NULL, page INTEGER NOT NULL, pfn INTEGER NOT NULL, pages INTEGER NOT NULL);
CREATE TABLE mapping (pid INTEGER NOT NULL, vaddr INTEGER NOT NULL, frame_order INTEGER NOT NULL, pfn INTEGER NOT NULL,
  pages INTEGER NOT NULL, flags INTEGER NOT NULL, blob_offset INTEGER);
`;
const APPLICATION_ID = 0x4842524e; // "HBRN"

export class CatalogueWriter {
  readonly path: string;
  readonly #database: Database.Database;
  #headBytes = 0;

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
    try {
      closeSync(openSync(path, "wx", 0o600)); // names, fills and registers are in it; SQLite would let others read them
    } catch (error) {
      throw fromSystemError(error, `creating ${path}`);
    }
    const writer = new CatalogueWriter(path);
    writer.#attempt(() => {
      // Nobody else reads it yet and a crash throws it away, so neither a journal nor SQLite's own syncs are needed.
      for (const pragma of ["journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE", "cache_size = -2000"])
        writer.#database.pragma(pragma);
      writer.#database.pragma(`application_id = ${APPLICATION_ID}`);
      writer.#database.pragma(`user_version = ${FORMAT_VERSION}`);
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
  write(contents: CatalogueContents): void {
    const { meta, regions, chunks, extents, references, processes, mappings, objects, blocks, files, mounts } = contents;
    const database = this.#database;
    const insert = (values: string): Database.Statement<unknown[]> => database.prepare(`INSERT INTO ${values}`);
    this.#attempt(() => {
      database.exec("BEGIN");
      const metaRow = insert("meta VALUES (?, ?)");
      for (const [key, value] of Object.entries(meta)) metaRow.run(key, JSON.stringify(value));

      const regionRow = insert("region VALUES (?, ?)");
      for (const r of regions) regionRow.run(r.pfn, r.frames);

      const chunkRow = insert("chunk VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)");
      for (const c of chunks) {
        const hash = BigInt.asIntN(64, c.hash);
        chunkRow.run(c.id, c.offset, c.stored, c.payload, c.frames, c.codec, hash, c.pieces, c.digest);
      }

      const placed = insert(`extent (pfn, frames, kind, chunk, first) VALUES (?, ?, ${KIND_CHUNK}, ?, ?)`);
      const zero = insert(`extent (pfn, frames, kind, fill) VALUES (?, ?, ${KIND_FILL}, 0)`);
      const filled = insert(`extent (pfn, frames, kind, fill) VALUES (?, ?, ${KIND_FILL}, ?)`);
      for (const e of extents) {
        if (e.chunk === "file") continue;
        else if (e.chunk !== null) placed.run(e.pfn, e.frames, e.chunk, e.first);
        else if (e.fill === 0n)
          zero.run(e.pfn, e.frames); // nearly all of them
        else filled.run(e.pfn, e.frames, BigInt.asIntN(64, e.fill));
      }

      const referred = insert(`extent (pfn, frames, kind) VALUES (?, ?, ${KIND_REFERENCE})`);
      const referenceRow = insert("reference VALUES (?, ?, ?, ?, ?)");
      for (const r of references) {
        referred.run(r.pfn, r.frames);
        referenceRow.run(r.pfn, r.frames, r.path, r.page, Buffer.from(r.hashes.slice().buffer));
      }

      const processRow = insert("process VALUES (?, ?, ?, ?, ?, ?)");
      for (const p of processes) processRow.run(p.pid, p.slot, p.name, p.state, p.steps, JSON.stringify(p.detail ?? null));

      const blockRow = insert("blocks VALUES (?, ?, ?, ?, ?)");
      for (const b of blocks) blockRow.run(b.kind, b.owner, b.order, b.blocks, b.frames);

      const mountRow = insert("mount VALUES (?, ?, ?)");
      for (const m of mounts) mountRow.run(m.path, m.host, m.readOnly ? 1 : 0);

      const fileRow = insert("file VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)");
      for (const f of files) {
        const words = [f.device, f.inode, f.size, f.mtime].map((word) => BigInt.asIntN(64, word));
        const hash = f.hash === null ? null : BigInt.asIntN(64, f.hash);
        const mount = mountOf(f.path, mounts);
        const name = mount === undefined ? null : f.path.slice(mount.host.length).replace(/^\/+/, "");
        fileRow.run(f.path, f.mode, ...words, f.position, hash, JSON.stringify(f.except), mount?.path ?? null, name);
      }

      // All but these is the head; SQLite only adds pages at the end, and goes on changing the roots of these two.
      this.#headBytes =
        Number(database.pragma("page_count", { simple: true })) * Number(database.pragma("page_size", { simple: true }));
      const objectRow = insert("object VALUES (?, ?, ?, ?)");
      for (const o of objects) objectRow.run(o.object, o.page, o.pfn, o.pages);

      const mappingRow = insert("mapping VALUES (?, ?, ?, ?, ?, ?, ?)");
      for (const m of mappings) mappingRow.run(m.pid, m.vaddr, m.order, m.pfn, m.pages, m.flags, m.blobOffset);
      database.exec("COMMIT");
    });
  }

  /**
   * Closes the file and waits until it is on the disk.
   *
   * @returns what the image's header says about it
   * @throws HIB_NO_SPACE, HIB_IO
   */
  async close({ digest = "none" }: { digest?: "none" | "sha256" } = {}): Promise<SealedCatalogue> {
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
    const found = await hashFile(this.path, { head: this.#headBytes, digest });
    return {
      catalogueBytes: found.bytes,
      catalogueHash: found.hash,
      catalogueHeadBytes: this.#headBytes,
      catalogueHeadHash: found.headHash,
      catalogueDigest: found.digest,
    };
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

/** A file's mount: the longest of those that its path is below. */
function mountOf(path: string, mounts: readonly MountRow[]): MountRow | undefined {
  let found: MountRow | undefined;
  for (const mount of mounts) {
    const below = path.startsWith(mount.host.endsWith("/") ? mount.host : `${mount.host}/`);
    if (below && mount.host.length >= (found?.host.length ?? 0)) found = mount;
  }
  return found;
}

/** A column that is a whole number in a range. */
const whole = (column: string, least: number, most: number): string =>
  `typeof(${column}) = 'integer' AND ${column} BETWEEN ${least} AND ${most}`;
const word = (column: string): string => `typeof(${column}) = 'integer'`;
const text = (column: string, bytes = 4096): string => `typeof(${column}) = 'text' AND octet_length(${column}) <= ${bytes}`;
const blob = (column: string, bytes: string): string => `typeof(${column}) = 'blob' AND octet_length(${column}) = ${bytes}`;
const optional = (column: string, condition: string): string => `(${column} IS NULL OR (${condition}))`;

const WORD = 2 ** 32 - 1;
const SAFE = Number.MAX_SAFE_INTEGER;
/** A row takes so many bytes at least. */
const ROW_BYTES = 4;
const JSON_BYTES = 2 ** 24;
/** More than that of one table's texts and hashes is not of one machine. */
const TABLE_BYTES = 2 ** 28;

/**
 * What holds of the rows of each table: how many there can be, the bytes that they bring into memory, and each value's type and
 * range. It is looked up before any of them is read, so that what a stranger wrote is either in range or refused.
 */
const TABLES: Readonly<Record<string, { most: number; bytes?: string; total?: number; rows: readonly string[] }>> = {
  meta: { most: 1000, bytes: "octet_length(value)", total: JSON_BYTES, rows: [text("key"), text("value", JSON_BYTES)] },
  region: { most: 1000, rows: [whole("pfn", 0, WORD), whole("frames", 1, WORD)] },
  chunk: {
    most: 2 * MAX_FRAMES,
    bytes: "octet_length(pieces)",
    rows: [
      whole("id", 0, 2 * MAX_FRAMES),
      whole("offset", HEADER_BYTES, SAFE),
      whole("stored", 1, CHUNK_BYTES),
      whole("payload", 1, CHUNK_BYTES),
      whole("frames", 1, CHUNK_FRAMES),
      whole("codec", 0, WORD),
      word("hash"),
      blob("pieces", `(stored + ${PIECE_BYTES - 1}) / ${PIECE_BYTES} * 8`),
      optional("digest", blob("digest", "32")),
    ],
  },
  extent: {
    most: MAX_FRAMES,
    // Not by typeof, at a third of the time: the rows go into typed arrays, and there can be a million.
    rows: [
      `pfn BETWEEN 0 AND ${WORD} AND frames BETWEEN 1 AND ${WORD} AND frames = CAST(frames AS INTEGER)`,
      `CASE kind
        WHEN ${KIND_CHUNK} THEN fill IS NULL AND chunk BETWEEN 0 AND ${2 * MAX_FRAMES} AND chunk = CAST(chunk AS INTEGER)
          AND first BETWEEN 0 AND ${CHUNK_FRAMES - 1} AND first = CAST(first AS INTEGER)
        WHEN ${KIND_FILL} THEN chunk IS NULL AND first IS NULL AND typeof(fill) = 'integer'
        WHEN ${KIND_REFERENCE} THEN chunk IS NULL AND first IS NULL AND fill IS NULL
        WHEN ${KIND_HOLE} THEN chunk IS NULL AND first IS NULL AND fill IS NULL
        ELSE ${whole("kind", 0, WORD)} END`,
    ],
  },
  reference: {
    most: MAX_FRAMES,
    bytes: "octet_length(path) + octet_length(hashes)",
    rows: [
      whole("pfn", 0, WORD),
      whole("frames", 1, MAX_FRAMES),
      text("path"),
      whole("page", 0, SAFE / FRAME_BYTES),
      blob("hashes", "frames * 8"),
    ],
  },
  file: {
    most: 2 ** 20,
    bytes: "octet_length(path) + octet_length(skipped) + ifnull(octet_length(mount), 0) + ifnull(octet_length(name), 0)",
    rows: [
      text("path"),
      "mode IN ('r', 'rw')",
      ...["device", "inode", "mtime_ns"].map(word),
      whole("size", 0, SAFE),
      whole("position", 0, SAFE),
      optional("hash", word("hash")),
      text("skipped", JSON_BYTES),
      optional("mount", text("mount")),
      optional("name", text("name")),
      optional("digest", blob("digest", "32")),
    ],
  },
  mount: { most: 1000, rows: [text("path"), text("host"), whole("read_only", 0, 1)] },
  process: {
    most: MAX_PROCESSES,
    bytes: "octet_length(detail)",
    rows: [
      whole("pid", 0, 2 ** 31 - 1),
      whole("slot", 0, MAX_PROCESSES - 1),
      text("name"),
      text("state", 32),
      "typeof(steps) = 'real' AND steps BETWEEN 0 AND 1e300",
      text("detail", JSON_BYTES),
      "json_valid(detail)",
    ],
  },
  blocks: {
    most: 2 ** 20,
    rows: [
      text("kind", 32),
      whole("owner", 0, 2 ** 31 - 1),
      whole("frame_order", 0, 63),
      whole("blocks", 0, MAX_FRAMES),
      whole("frames", 0, MAX_FRAMES),
    ],
  },
  object: {
    most: 2 ** 24,
    rows: [
      whole("object", 1, WORD),
      whole("page", 0, SAFE / FRAME_BYTES),
      whole("pfn", 0, MAX_FRAMES - 1),
      whole("pages", 1, MAX_FRAMES),
    ],
  },
  mapping: {
    most: 2 ** 26,
    rows: [
      whole("pid", 0, 2 ** 31 - 1),
      whole("vaddr", 0, SAFE),
      whole("frame_order", 0, 63),
      whole("pfn", 0, MAX_FRAMES - 1),
      whole("pages", 1, MAX_FRAMES),
      whole("flags", 0, 1023),
      optional("blob_offset", whole("blob_offset", HEADER_BYTES, SAFE)),
    ],
  },
};

/** What SQLite has in its schema, in which nothing else may be; white space does not count. */
function schemaOf(database: Database.Database): unknown[] {
  const rows = database
    .prepare<[], (string | null)[]>(
      "SELECT type, name, tbl_name, iif(octet_length(sql) <= 4096, sql, '') FROM sqlite_schema ORDER BY name LIMIT 1000",
    )
    .raw()
    .all();
  return rows.map((row) => row.map((text) => text?.replaceAll(/\s+/g, " ")));
}

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
    const plain = new Database(":memory:");
    try {
      plain.exec(SCHEMA);
      if (!isDeepStrictEqual(schemaOf(this.#database), schemaOf(plain)))
        throw this.#corrupt("it has other tables than a catalogue");
    } finally {
      plain.close();
    }
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

/** Of SQLite's header: how the file is written and read; 1 without a log beside it, 2 with one (WAL). */
const SQLITE_VERSIONS_AT = 18;

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
  if (error instanceof HibernaculumError) return error;
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
