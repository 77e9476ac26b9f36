/** The tables of a catalogue, and whether a database has them and nothing else. */
import { isDeepStrictEqual } from "node:util";
import Database from "better-sqlite3";

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
export const APPLICATION_ID = 0x4842524e; // "HBRN"

/** Whether the database has a catalogue's tables, and nothing that runs when they are read. */
export function hasSchema(database: Database.Database): boolean {
  const plain = new Database(":memory:");
  try {
    plain.exec(SCHEMA);
    return isDeepStrictEqual(schemaOf(database), schemaOf(plain));
  } finally {
    plain.close();
  }
}

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
