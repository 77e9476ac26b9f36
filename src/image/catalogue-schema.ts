/** The tables of a catalogue, and whether a SQLite file has them and nothing else. */
import { isDeepStrictEqual } from "node:util";
import type { SchemaRow } from "./sqlite-file.js";

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

const NAMES = [
  "meta",
  "region",
  "chunk",
  "extent",
  "reference",
  "file",
  "mount",
  "process",
  "blocks",
  "object",
  "mapping",
] as const;
export type TableName = (typeof NAMES)[number];
/** Tables whose key SQLite keeps in an index of its own. */
const INDEXED: readonly TableName[] = ["file", "mount"];

/** What SQLite says of its schema, where there is a catalogue; white space does not count. */
const EXPECTED: readonly string[] = described([
  ...SCHEMA.split(";\n").flatMap((sql) => {
    const name = /^\s*CREATE TABLE (\w+)/.exec(sql)?.[1];
    return name === undefined ? [] : [{ type: "table", name, table: name, sql: sql.trim() }];
  }),
  ...INDEXED.map((table) => ({ type: "index", name: `sqlite_autoindex_${table}_1`, table, sql: null })),
]);

function described(rows: readonly Omit<SchemaRow, "root">[]): string[] {
  return rows.map(({ type, name, table, sql }) => JSON.stringify([type, name, table, sql?.replaceAll(/\s+/g, " ")])).sort();
}

/** The root page of each table; undefined if there are others than a catalogue has, or something that runs when they are read. */
export function tableRoots(schema: readonly SchemaRow[]): ReadonlyMap<TableName, number> | undefined {
  if (!isDeepStrictEqual(described(schema), EXPECTED)) return undefined;
  const roots = new Map(schema.map(({ name, root }) => [name, root]));
  return new Map(NAMES.map((name) => [name, roots.get(name)!]));
}
