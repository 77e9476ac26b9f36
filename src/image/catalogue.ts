/**
 * The catalogue: a SQLite file that says what is in the blob and whose it is. Resume needs `meta`, `region`, `chunk`, `extent`,
 * `reference` and `file`; the other tables are for those who look at an image (`sqlite3 NAME/catalogue.sqlite`).
 *
 * What must hold:
 * - A catalogue is data from somebody else: no value of it is used before its type and its range were looked at (catalogue-checks.ts).
 * - Tables that can have a million rows and are read whole are read in slices, and others have their turn between them.
 */
import type { KeyObject } from "node:crypto";
import { existsSync, statSync } from "node:fs";
import { join } from "node:path";
import { damaged, HibernaculumError } from "../base/errors.js";
import { MAX_FRAMES } from "../base/layout.js";
import { giveTurn, STEPS_A_TURN } from "../base/turns.js";
import { BlobReader } from "./blob.js";
import { FILES_MAX, TABLES } from "./catalogue-checks.js";
import type { BlockRow, MappingRow, Meta, MountRow, ObjectRow, ProcessRow, RegionRow } from "./catalogue-rows.js";
import { APPLICATION_ID, type TableName, tableRoots } from "./catalogue-schema.js";
import {
  ExtentTable,
  KIND_CHUNK,
  KIND_FILL,
  KIND_HOLE,
  KIND_PARENT,
  KIND_REFERENCE,
  OF_PARENT,
  REFERENCED,
  SAME_FILLED,
} from "./extents.js";
import { CATALOGUE_NAME, type Chunk, FORMAT_VERSION } from "./format.js";
import type { FileRow } from "./host-files.js";
import { ReferenceTable } from "./reference-table.js";
import { parseJson } from "./json.js";
import { SealedReader } from "./sealed-file.js";
import { SqliteFile } from "./sqlite-file.js";
import type { SqliteRow } from "./sqlite-row.js";

/** How a table is read that can have a million rows. */
export interface Reading {
  /** How many rows there can be, for whoever knows that already. */
  most?: number;
  /** Cancels. */
  signal?: AbortSignal | undefined;
}

const SLAB_BYTES = 65_536;
/** Room that there is at first in a table of extents or references: most images need far less than the most that there can be. */
const ROWS_AT_FIRST = 16_384;

export class Catalogue {
  readonly path: string;
  readonly meta: Readonly<Meta>;
  readonly #blob: BlobReader;
  readonly #file: SqliteFile;
  readonly #roots: ReadonlyMap<TableName, number>;

  private constructor(path: string, key: KeyObject | undefined) {
    this.path = path;
    this.#blob = new BlobReader(path);
    try {
      const { size } = statSync(path);
      const sealed = key === undefined ? undefined : new SealedReader(this.#blob, size, key);
      this.#file = new SqliteFile(sealed ?? this.#blob, sealed?.bytes ?? size);
      this.#refuseLogs();
      const { applicationId, userVersion } = this.#file;
      const roots = tableRoots(this.#file.schema());
      if (roots === undefined) throw this.#file.corrupt("it has other tables than a catalogue");
      this.#roots = roots;
      if (applicationId !== APPLICATION_ID || userVersion !== FORMAT_VERSION)
        throw this.#file.corrupt("it does not say that it is a catalogue of this version");
      const values = Array.from(this.#rows("meta"), (row) => [row.text(0), row.text(1)] as const);
      this.meta = Object.fromEntries(values.map(([key, value]) => [key, this.#json(value)]));
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /**
   * Opens the catalogue of an image for reading.
   *
   * @param directory the image
   * @param key - if it is encrypted
   * @throws HIB_IO, HIB_CORRUPT if it is no catalogue; so do the methods
   */
  static open(directory: string, key?: KeyObject): Catalogue {
    return new Catalogue(join(directory, CATALOGUE_NAME), key);
  }

  /** Other tools would read a log beside it, too, and see another catalogue than the one that the header has the checksum of. */
  #refuseLogs(): void {
    for (const suffix of ["-wal", "-journal"])
      if (existsSync(this.path + suffix))
        throw new HibernaculumError("HIB_CORRUPT", `${this.path}${suffix} is no part of an image; remove it`);
  }

  /** The rows of a table, each once its values are in range. Each is good until the next. */
  *#rows(table: TableName, { most = Infinity }: Reading = {}): Generator<SqliteRow, void, undefined> {
    const { columns, bytes = Infinity, ...checks } = TABLES[table];
    let rows = 0;
    let kept = 0;
    for (const row of this.#file.rows(this.#roots.get(table)!, columns.length)) {
      rows++;
      kept += row.bytes;
      for (let column = 0; column < columns.length; column++) {
        const named = columns[column]!;
        if (!named[1](row, column)) throw this.#file.corrupt(`rows of ${table} are out of range: ${named[0]} of row ${rows}`);
      }
      if (rows > most) throw this.#file.corrupt(`there is more in ${table} than the header's counts of chunks and frames allow`);
      if (rows > checks.most || kept > bytes) throw this.#file.corrupt(`there is more in ${table} than a machine can have`);
      yield row;
    }
  }

  /** The same, in slices. */
  async #read(table: TableName, reading: Reading, take: (row: SqliteRow, index: number) => void): Promise<number> {
    let index = 0;
    for (const row of this.#rows(table, reading)) {
      take(row, index++);
      if (index % STEPS_A_TURN === 0) await giveTurn(reading.signal, `reading ${this.path}`);
    }
    return index;
  }

  /** All regions of RAM, by frame. */
  regions(): RegionRow[] {
    return Array.from(this.#rows("region"), (row) => ({ pfn: row.id, frames: row.integer(1) }));
  }

  /** All chunks, by id. */
  async chunks(reading: Reading = {}): Promise<Chunk[]> {
    const chunks: Chunk[] = [];
    let slab = Buffer.alloc(SLAB_BYTES); // for pieces: thousands of small buffers would keep the collector busy
    let used = 0;
    await this.#read("chunk", reading, (row) => {
      const blob = row.blob(7);
      if (used + blob.length > slab.length) [slab, used] = [Buffer.alloc(Math.max(SLAB_BYTES, blob.length)), 0];
      const pieces = slab.subarray(used, (used += blob.length));
      pieces.set(blob);
      chunks.push({
        id: row.id,
        offset: row.integer(1),
        stored: row.integer(2),
        payload: row.integer(3),
        frames: row.integer(4),
        codec: row.integer(5),
        hash: row.word(6),
        pieces,
        digest: row.isNull(8) ? null : Buffer.from(row.blob(8)),
      });
    });
    return chunks;
  }

  /** Frames that are pages of files of the host, packed, by pfn. */
  async references({ most = MAX_FRAMES, signal }: Reading = {}): Promise<ReferenceTable> {
    let table = new ReferenceTable(Math.min(most, ROWS_AT_FIRST), Math.min(most, ROWS_AT_FIRST));
    const files = new Map<string, number>();
    let total = 0;
    const length = await this.#read("reference", { most, signal }, (row, i) => {
      const frames = row.integer(1);
      if (total + frames > most) throw this.#file.corrupt("more frames are in files than it has");
      if (i === table.pfn.length || total + frames > table.hashes.length)
        table = table.grown(Math.min(most, 2 * table.pfn.length), Math.min(most, 2 * (table.hashes.length + frames)));
      const path = row.text(2);
      let file = files.get(path);
      if (file === undefined) files.set(path, (file = table.paths.push(path) - 1));
      table.pfn[i] = row.id;
      table.frames[i] = frames;
      table.file[i] = file;
      table.page[i] = row.integer(3);
      table.first[i] = total;
      total += frames;
      if (files.size > FILES_MAX) throw this.#file.corrupt("frames are in more files than a machine can have");
      new Uint8Array(table.hashes.buffer, table.first[i]! * 8).set(row.blob(4));
    });
    return table.begin(length);
  }

  /** All extents, packed, by pfn. One with REFERENCED has the number of its reference. */
  async extents({ most = MAX_FRAMES, signal }: Reading = {}): Promise<ExtentTable> {
    let table = new ExtentTable(Math.min(most, ROWS_AT_FIRST));
    let references = 0n;
    const length = await this.#read("extent", { most, signal }, (row, i) => {
      if (i === table.pfn.length) table = table.grown(Math.min(most, 2 * i));
      table.pfn[i] = row.id;
      table.frames[i] = row.integer(1);
      const kind = row.integer(2);
      this.#checkKind(row, kind);
      switch (kind) {
        case KIND_CHUNK:
          table.chunk[i] = row.integer(3);
          table.first[i] = row.integer(4);
          break;
        case KIND_FILL:
          table.chunk[i] = SAME_FILLED;
          if (row.integer(5) !== 0) table.fill[i] = row.word(5);
          break;
        case KIND_REFERENCE:
          table.chunk[i] = REFERENCED;
          table.fill[i] = references++;
          break;
        case KIND_PARENT:
          table.chunk[i] = OF_PARENT;
          break;
        case KIND_HOLE:
          table.chunk[i] = SAME_FILLED;
          break;
      }
    });
    return table.begin(length);
  }

  /** That a kind is known, and has the columns that it needs and no others. */
  #checkKind(row: SqliteRow, kind: number): void {
    if (kind !== KIND_CHUNK && kind !== KIND_FILL && kind !== KIND_REFERENCE && kind !== KIND_PARENT && kind !== KIND_HOLE)
      throw new HibernaculumError(
        "HIB_FORMAT_VERSION",
        `${this.path}: the extent at frame ${row.id} is of a kind that this program does not know (${kind}); use a newer one`,
      );
    const placed = kind === KIND_CHUNK;
    if (row.isNull(3) === placed || row.isNull(4) === placed || row.isNull(5) === (kind === KIND_FILL))
      throw this.#file.corrupt(`rows of extent are out of range: that of frame ${row.id} is of two kinds`);
  }

  /** All processes, by PID. */
  processes(): ProcessRow[] {
    return Array.from(this.#rows("process"), (row) => {
      const detail = row.text(5);
      const json = (): unknown => this.#json(detail);
      return {
        pid: row.id,
        slot: row.integer(1),
        name: row.text(2),
        state: row.text(3),
        steps: row.float(4),
        // When it is asked for: it takes twenty times as much memory as its text.
        get detail() {
          return json();
        },
      };
    });
  }

  /** All mappings, as they were written. */
  *mappings(): Generator<MappingRow> {
    for (const row of this.#rows("mapping")) {
      yield {
        pid: row.integer(0),
        vaddr: row.integer(1),
        order: row.integer(2),
        pfn: row.integer(3),
        pages: row.integer(4),
        flags: row.integer(5),
        blobOffset: row.isNull(6) ? null : row.integer(6),
      };
    }
  }

  /** Pages of the memory objects behind areas, in no order. */
  *objects(): Generator<ObjectRow> {
    for (const row of this.#rows("object"))
      yield { object: row.integer(0), page: row.integer(1), pfn: row.integer(2), pages: row.integer(3) };
  }

  /** Buddy blocks, counted. */
  blocks(): BlockRow[] {
    return Array.from(this.#rows("blocks"), (row) => ({
      kind: row.text(0),
      owner: row.integer(1),
      order: row.integer(2),
      blocks: row.integer(3),
      frames: row.integer(4),
    }));
  }

  /** Directories of the host that the machine saw, by path. */
  mounts(): MountRow[] {
    const mounts = Array.from(this.#rows("mount"), (row) => ({
      path: row.text(0),
      host: row.text(1),
      readOnly: row.integer(2) === 1,
    }));
    return mounts.sort(byPath);
  }

  /** Files of the host that the machine had open, by path. */
  files(): FileRow[] {
    const files = Array.from(this.#rows("file"), (row) => {
      const skipped = row.text(8);
      const except = (): number[] => this.#skipped(skipped);
      return {
        path: row.text(0),
        mode: row.text(1) as FileRow["mode"],
        device: row.word(2),
        inode: row.word(3),
        size: BigInt(row.integer(4)),
        mtime: BigInt.asIntN(64, row.word(5)),
        position: row.integer(6),
        hash: row.isNull(7) ? null : row.word(7),
        // When it is asked for: most files are told by less.
        get except() {
          return except();
        },
      };
    });
    return files.sort(byPath);
  }

  /** May be called again. */
  close(): void {
    this.#blob.close();
  }

  #skipped(json: string): number[] {
    const blocks = this.#json(json);
    if (!Array.isArray(blocks) || !blocks.every((block) => Number.isSafeInteger(block) && block >= 0))
      throw this.#file.corrupt("the list of a file's skipped blocks is malformed");
    return blocks as number[];
  }

  #json(text: string): unknown {
    try {
      return parseJson(text);
    } catch (error) {
      throw damaged("HIB_CORRUPT", `${this.path}: a value is not JSON of a catalogue`, { cause: error });
    }
  }
}

function byPath(a: { path: string }, b: { path: string }): number {
  return Buffer.compare(Buffer.from(a.path), Buffer.from(b.path));
}
