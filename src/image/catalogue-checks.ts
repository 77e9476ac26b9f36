/** What holds of the rows of a catalogue, whoever wrote it: how many there can be, and each value's type and range. */
import { FRAME_BYTES, MAX_FRAMES, MAX_PROCESSES } from "../base/layout.js";
import { CHECKSUM_BYTES } from "./checksum.js";
import { TAG_BYTES } from "./cipher.js";
import type { TableName } from "./catalogue-schema.js";
import { CHUNK_BYTES, CHUNK_FRAMES, HEADER_BYTES, PIECE_BYTES } from "./format.js";
import type { SqliteRow } from "./sqlite-row.js";

/** Whether a value may be what it is. */
type Check = (row: SqliteRow, column: number) => boolean;

const whole =
  (least: number, most: number): Check =>
  (row, column) => {
    const value = row.integer(column);
    return value >= least && value <= most;
  };
/** The row id stands for the first column. */
const key =
  (least: number, most: number): Check =>
  ({ id }) =>
    id >= least && id <= most;
const word: Check = (row, column) => row.isInteger(column);
const text =
  (most = 4096): Check =>
  (row, column) => {
    const bytes = row.textBytes(column);
    return bytes >= 0 && bytes <= most;
  };
const blob =
  (bytes: (row: SqliteRow) => number): Check =>
  (row, column) =>
    row.blobBytes(column) === bytes(row);
const optional =
  (check: Check): Check =>
  (row, column) =>
    row.isNull(column) || check(row, column);

const WORD = 2 ** 32 - 1;
const SAFE = Number.MAX_SAFE_INTEGER;
const PID = whole(0, 2 ** 31 - 1);
const JSON_BYTES = 2 ** 24;
const META_BYTES = 2 ** 22;
/** Bytes of a piece's checksum, and of its tag; which of them is for whoever knows the header. */
const PIECE_SUMS: readonly number[] = [CHECKSUM_BYTES, TAG_BYTES];
const DIGEST: Check = optional(blob(() => 32));
/** Files of the host: 512 processes with 256 each, and as many that are only mapped. */
export const FILES_MAX: number = 2 ** 18;

interface TableChecks {
  /** How many rows. */
  most: number;
  /** How many bytes of rows: more is not of one machine. Without it, nobody keeps what was read. */
  bytes?: number;
  columns: readonly (readonly [name: string, check: Check])[];
}

export const TABLES: Readonly<Record<TableName, TableChecks>> = {
  meta: {
    most: 1000,
    bytes: META_BYTES, // all of it is parsed, and may become seventy times as much
    columns: [
      ["key", text()],
      ["value", text(META_BYTES)],
    ],
  },
  region: {
    most: 1000,
    columns: [
      ["pfn", key(0, WORD)],
      ["frames", whole(1, WORD)],
    ],
  },
  chunk: {
    most: 2 * MAX_FRAMES,
    bytes: 2 ** 28,
    columns: [
      ["id", key(0, 2 * MAX_FRAMES)],
      ["offset", whole(HEADER_BYTES, SAFE)],
      ["stored", whole(1, CHUNK_BYTES)],
      ["payload", whole(1, CHUNK_BYTES)],
      ["frames", whole(1, CHUNK_FRAMES)],
      ["codec", whole(0, WORD)],
      ["hash", word],
      ["pieces", (row, column) => PIECE_SUMS.includes(row.blobBytes(column) / Math.ceil(row.integer(2) / PIECE_BYTES))],
      ["digest", DIGEST],
    ],
  },
  extent: {
    most: MAX_FRAMES,
    columns: [
      ["pfn", key(0, WORD)],
      ["frames", whole(1, WORD)],
      ["kind", whole(0, WORD)],
      ["chunk", optional(whole(0, 2 * MAX_FRAMES))],
      ["first", optional(whole(0, CHUNK_FRAMES - 1))],
      ["fill", optional(word)],
    ],
  },
  reference: {
    most: MAX_FRAMES,
    bytes: 2 ** 28,
    columns: [
      ["pfn", key(0, WORD)],
      ["frames", whole(1, MAX_FRAMES)],
      ["path", text()],
      ["page", whole(0, SAFE / FRAME_BYTES)],
      ["hashes", blob((row) => row.integer(1) * 8)],
    ],
  },
  file: {
    most: FILES_MAX,
    bytes: 2 ** 28,
    columns: [
      ["path", text()],
      ["mode", (row, column) => row.textBytes(column) <= 2 && ["r", "rw"].includes(row.text(column))],
      ["device", word],
      ["inode", word],
      ["size", whole(0, SAFE)],
      ["mtime_ns", word],
      ["position", whole(0, SAFE)],
      ["hash", optional(word)],
      ["skipped", text(JSON_BYTES)],
      ["mount", optional(text())],
      ["name", optional(text())],
      ["digest", DIGEST],
    ],
  },
  mount: {
    most: 1000,
    columns: [
      ["path", text()],
      ["host", text()],
      ["read_only", whole(0, 1)],
    ],
  },
  process: {
    most: MAX_PROCESSES,
    bytes: 2 ** 28,
    columns: [
      ["pid", key(0, 2 ** 31 - 1)],
      ["slot", whole(0, MAX_PROCESSES - 1)],
      ["name", text()],
      ["state", text(32)],
      ["steps", (row, column) => row.float(column) >= 0 && row.float(column) <= 1e300],
      ["detail", text(JSON_BYTES)],
    ],
  },
  blocks: {
    most: 2 ** 20,
    columns: [
      ["kind", text(32)],
      ["owner", PID],
      ["frame_order", whole(0, 63)],
      ["blocks", whole(0, MAX_FRAMES)],
      ["frames", whole(0, MAX_FRAMES)],
    ],
  },
  object: {
    most: 2 ** 24,
    columns: [
      ["object", whole(1, WORD)],
      ["page", whole(0, SAFE / FRAME_BYTES)],
      ["pfn", whole(0, MAX_FRAMES - 1)],
      ["pages", whole(1, MAX_FRAMES)],
    ],
  },
  mapping: {
    most: 2 ** 26,
    columns: [
      ["pid", PID],
      ["vaddr", whole(0, SAFE)],
      ["frame_order", whole(0, 63)],
      ["pfn", whole(0, MAX_FRAMES - 1)],
      ["pages", whole(1, MAX_FRAMES)],
      ["flags", whole(0, 1023)],
      ["blob_offset", optional(whole(HEADER_BYTES, SAFE))],
    ],
  },
};
