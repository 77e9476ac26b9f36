/** What holds of the rows of a catalogue, whoever wrote it. */
import { FRAME_BYTES, MAX_FRAMES, MAX_PROCESSES } from "../base/layout.js";
import { KIND_CHUNK, KIND_FILL, KIND_HOLE, KIND_REFERENCE } from "./extents.js";
import { CHUNK_BYTES, CHUNK_FRAMES, HEADER_BYTES, PIECE_BYTES } from "./format.js";

/** A column that is a whole number in a range. */
const whole = (column: string, least: number, most: number): string =>
  `typeof(${column}) = 'integer' AND ${column} BETWEEN ${least} AND ${most}`;
const word = (column: string): string => `typeof(${column}) = 'integer'`;
const text = (column: string, bytes = 4096): string => `typeof(${column}) = 'text' AND octet_length(${column}) <= ${bytes}`;
const blob = (column: string, bytes: string): string => `typeof(${column}) = 'blob' AND octet_length(${column}) = ${bytes}`;
const optional = (column: string, condition: string): string => `(${column} IS NULL OR (${condition}))`;

const WORD = 2 ** 32 - 1;
const SAFE = Number.MAX_SAFE_INTEGER;
const JSON_BYTES = 2 ** 24;
/** More than that of one table's texts and hashes is not of one machine. */
export const TABLE_BYTES: number = 2 ** 28;

/**
 * What holds of the rows of each table: how many there can be, the bytes that they bring into memory, and each value's type and
 * range. It is looked up before any of them is read, so that what a stranger wrote is either in range or refused.
 */
export const TABLES: Readonly<Record<string, { most: number; bytes?: string; total?: number; rows: readonly string[] }>> = {
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
