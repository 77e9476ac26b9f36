/** SQLite files read page by page: what SQLite wrote comes out, and what nobody wrote is refused, in a time that the file's length bounds. */
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import Database from "better-sqlite3";
import fc from "fast-check";
import { HibernaculumError } from "../src/base/errors.js";
import { BlobReader } from "../src/image/blob.js";
import { SqliteFile } from "../src/image/sqlite-file.js";
import type { SqliteRow } from "../src/image/sqlite-row.js";
import { scratch } from "./support.js";

type Value = null | bigint | number | string | Buffer;

const value: fc.Arbitrary<Value> = fc.oneof(
  fc.constant(null),
  fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }),
  fc.integer(),
  fc.constantFrom(0n, 1n, -1n, 127n, -129n, 2n ** 15n, -(2n ** 23n), 2n ** 31n, 2n ** 47n, 2n ** 53n, -(2n ** 53n) - 1n),
  fc.double({ noNaN: true }),
  fc.string({ unit: "grapheme", maxLength: 40 }),
  fc.uint8Array({ maxLength: 40 }).map((bytes) => Buffer.from(bytes)),
  fc.integer({ min: 400, max: 20_000 }).map((length) => Buffer.alloc(length, length)), // goes on in other pages
);

/** Makes a database with the tables `t` (a key and three values) and `w` (without row ids). */
function makeDatabase(path: string, pageBytes: number, rows: readonly Value[][]): void {
  writeFileSync(path, "");
  const database = new Database(path);
  try {
    for (const pragma of [`page_size = ${pageBytes}`, "journal_mode = MEMORY", "synchronous = OFF"]) database.pragma(pragma);
    database.exec("CREATE TABLE t (id INTEGER PRIMARY KEY, a, b, c); CREATE TABLE w (k PRIMARY KEY, v) WITHOUT ROWID; BEGIN");
    const insert = database.prepare("INSERT INTO t VALUES (?, ?, ?, ?)");
    const keyed = database.prepare("INSERT OR REPLACE INTO w VALUES (?, ?)");
    for (const [i, row] of rows.entries()) {
      insert.run(i * 7 + 1, ...row);
      keyed.run(`${row[0]}`, row[1]);
    }
    database.exec("COMMIT");
  } finally {
    database.close();
  }
}

function withFile<T>(path: string, look: (file: SqliteFile) => T): T {
  const blob = new BlobReader(path);
  try {
    return look(new SqliteFile(blob, statSync(path).size));
  } finally {
    blob.close();
  }
}

/** A value as better-sqlite3 gives it with safe integers. */
function foundIn(row: SqliteRow, column: number): Value {
  if (row.isNull(column)) return null;
  if (row.isInteger(column)) return BigInt.asIntN(64, row.word(column));
  if (row.textBytes(column) >= 0) return row.text(column);
  if (row.blobBytes(column) >= 0) return Buffer.from(row.blob(column));
  return row.float(column);
}

const rootOf = (file: SqliteFile, table: string): number => file.schema().find(({ name }) => name === table)?.root ?? 0;
const readTable = (file: SqliteFile): Value[][] =>
  Array.from(file.rows(rootOf(file, "t"), 4), (row) => [BigInt(row.id), ...[1, 2, 3].map((column) => foundIn(row, column))]);
const readKeyed = (file: SqliteFile): Value[][] =>
  Array.from(file.rows(rootOf(file, "w"), 2), (row) => [foundIn(row, 0), foundIn(row, 1)]);

test("whatever SQLite stores is read as SQLite reads it", (t) => {
  const path = join(scratch(t), "database");
  fc.assert(
    fc.property(
      fc.constantFrom(512, 1024, 4096, 65536),
      fc.array(fc.array(value, { minLength: 3, maxLength: 3 }), { maxLength: 60 }),
      (pageBytes, rows) => {
        makeDatabase(path, pageBytes, rows);
        const database = new Database(path, { readonly: true });
        try {
          const all = (sql: string): Value[][] => database.prepare<[], Value[]>(sql).raw().safeIntegers().all();
          withFile(path, (file) => {
            t.deepEqual(readTable(file), all("SELECT id, a, b, c FROM t ORDER BY id"));
            const byKey = (a: Value[], b: Value[]): number => Buffer.compare(Buffer.from(`${a[0]}`), Buffer.from(`${b[0]}`));
            t.deepEqual(readKeyed(file).sort(byKey), all("SELECT k, v FROM w").sort(byKey));
          });
        } finally {
          database.close();
        }
      },
    ),
    { numRuns: 60 },
  );
});

test("numbers: what a double cannot hold is none, a whole float is a number", (t) => {
  const path = join(scratch(t), "database");
  makeDatabase(path, 4096, [
    [2n ** 53n - 1n, -(2n ** 53n) + 1n, 2n ** 53n],
    [1.5, "7", Buffer.of(7)],
  ]);
  withFile(path, (file) => {
    const found = Array.from(file.rows(rootOf(file, "t"), 4), (row) => [1, 2, 3].map((column) => row.integer(column)));
    t.deepEqual(found, [
      [Number.MAX_SAFE_INTEGER, Number.MIN_SAFE_INTEGER, Number.NaN],
      [Number.NaN, Number.NaN, Number.NaN],
    ]);
  });
});

/** A database of two thousand rows of which some go on elsewhere, with bytes changed. */
function forge(t: ExecutionContext, change: (bytes: Buffer, root: number) => void): SqliteFile {
  const path = join(scratch(t), "database");
  makeDatabase(
    path,
    512,
    Array.from({ length: 2000 }, (_, i) => [i, "x".repeat(40), i % 50 === 0 ? Buffer.alloc(3000) : null]),
  );
  const root = withFile(path, (file) => rootOf(file, "t"));
  const bytes = readFileSync(path);
  change(bytes, root);
  writeFileSync(path, bytes);
  const blob = new BlobReader(path);
  t.teardown(() => blob.close());
  return new SqliteFile(blob, bytes.length);
}

const PAGE = 512;
const offset = (page: number): number => (page - 1) * PAGE;
/** Children of an interior page, and where their numbers stand. */
function children(bytes: Buffer, page: number): { at: number; child: number }[] {
  const start = offset(page);
  const cells = Array.from({ length: bytes.readUInt16BE(start + 3) }, (_, i) => start + bytes.readUInt16BE(start + 12 + 2 * i));
  return [...cells, start + 8].map((at) => ({ at, child: bytes.readUInt32BE(at) }));
}

/** What is done to the tree of a table, and what is said of it. */
const TREES: Record<string, [change: (bytes: Buffer, root: number) => void, says: RegExp]> = {
  "all children are one page": [
    (bytes, root) => {
      const all = children(bytes, root);
      for (const { at } of all) bytes.writeUInt32BE(all[0]!.child, at);
    },
    /used twice/,
  ],
  "a page is its own child": [(bytes, root) => void bytes.writeUInt32BE(root, offset(root) + 8), /used twice/],
  "a table is a part of another": [
    (bytes, root) => void bytes.writeUInt32BE(children(bytes, root)[0]!.child, offset(root) + 8),
    /used twice/,
  ],
  "a child beyond the file": [(bytes, root) => void bytes.writeUInt32BE(2 ** 32 - 1, offset(root) + 8), /no page 4294967295/],
  "no child": [(bytes, root) => void bytes.writeUInt32BE(0, offset(root) + 8), /no page 0/],
  "children in another order": [
    (bytes, root) => {
      const [a, b] = children(bytes, root) as [{ at: number; child: number }, { at: number; child: number }];
      bytes.writeUInt32BE(b.child, a.at);
      bytes.writeUInt32BE(a.child, b.at);
    },
    /in no order/,
  ],
  "more cells than there is room for": [(bytes, root) => void bytes.writeUInt16BE(65535, offset(root) + 3), /more cells/],
  "a cell beyond its page": [(bytes, root) => void bytes.writeUInt16BE(PAGE - 2, offset(root) + 12), /not within its page/],
  "a page of another kind": [(bytes, root) => void bytes.writeUInt8(7, offset(root)), /of no table/],
};

for (const [what, [change, says]] of Object.entries(TREES)) {
  test(`a tree that no SQLite made: ${what}`, (t) => {
    const file = forge(t, change);
    t.throws(() => readTable(file), { code: "HIB_CORRUPT", message: says });
  });
}

test("overflow pages that lead to each other, and rows that share them", (t) => {
  const overflow = (bytes: Buffer): number[] => {
    const found: number[] = [];
    for (let page = 2; offset(page) < bytes.length; page++)
      if (bytes.subarray(offset(page) + 4, offset(page) + PAGE).every((byte) => byte === 0)) found.push(page);
    return found;
  };
  const looped = forge(t, (bytes) => {
    const [first] = overflow(bytes) as [number];
    bytes.writeUInt32BE(first, offset(first));
  });
  t.throws(() => readTable(looped), { code: "HIB_CORRUPT", message: /used twice/ });
  const shared = forge(t, (bytes) => {
    const next = new Set(overflow(bytes).map((page) => bytes.readUInt32BE(offset(page))));
    const [a, b] = overflow(bytes).filter((page) => !next.has(page)) as [number, number]; // where two rows go on
    bytes.writeUInt32BE(bytes.readUInt32BE(offset(b)), offset(a));
  });
  t.throws(() => readTable(shared), { code: "HIB_CORRUPT", message: /used twice/ });
});

test("cells that overlap are no more rows than the file has room for", (t) => {
  const file = forge(t, (bytes, root) => {
    // Row ids of the last leaf count up from cell to cell; each cell is made the last one of its page, which then is there often.
    const leaf = children(bytes, children(bytes, root).at(-1)!.child).at(-1)!.child;
    const [at, cells] = [offset(leaf), bytes.readUInt16BE(offset(leaf) + 3)];
    for (let i = 0; i < cells; i++) bytes.writeUInt16BE(bytes.readUInt16BE(at + 8), at + 8 + 2 * i);
  });
  t.throws(() => readTable(file), { code: "HIB_CORRUPT", message: /in no order/ });
});

test("a cell that a page points to a hundred times is no hundred rows", (t) => {
  const path = join(scratch(t), "database");
  makeDatabase(path, 512, [["x".repeat(80), 1, 2]]);
  const root = withFile(path, (file) => rootOf(file, "w"));
  const bytes = readFileSync(path);
  const at = offset(root);
  for (let i = 1; i < 100; i++) bytes.writeUInt16BE(bytes.readUInt16BE(at + 8), at + 8 + 2 * i);
  bytes.writeUInt16BE(100, at + 3);
  writeFileSync(path, bytes);
  withFile(path, (file) => t.throws(() => readKeyed(file), { code: "HIB_CORRUPT", message: /overlap/ }));
});

test("any bytes: rows, or one error", (t) => {
  const path = join(scratch(t), "database");
  makeDatabase(
    path,
    512,
    Array.from({ length: 300 }, (_, i) => [i, "x".repeat(i), i % 9 === 0 ? Buffer.alloc(2000) : 1.5]),
  );
  const good = readFileSync(path);
  let refused = 0;
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.nat(good.length - 1), fc.nat(255)), { minLength: 1, maxLength: 8 }), (changes) => {
      const bytes = Buffer.from(good);
      for (const [at, byte] of changes) bytes[at % 7 === 0 ? at % (12 * 512) : at] = byte;
      writeFileSync(path, bytes);
      try {
        withFile(path, (file) => t.true(readTable(file).length + readKeyed(file).length <= bytes.length));
      } catch (error) {
        if (!(error instanceof HibernaculumError)) throw error;
        refused++;
      }
    }),
    { numRuns: 400 },
  );
  t.true(refused > 20, `${refused} were refused`);
});
