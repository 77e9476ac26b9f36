/** What tests do to images, and where they kill those who resume them. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import Database from "better-sqlite3";
import { HibernaculumError } from "../src/base/errors.js";
import type { Failpoint } from "../src/base/failpoints.js";
import { checksum } from "../src/image/checksum.js";
import { openImage } from "../src/image/directory.js";
import {
  BLOB_NAME,
  CATALOGUE_NAME,
  decodeHeader,
  encodeHeader,
  HEADER_BYTES,
  type ImageHeader,
  MACHINE_VERSION,
} from "../src/image/format.js";
import { verifyChunks } from "../src/image/verify.js";

export interface ResumeKill {
  point: Failpoint;
  pass?: number;
  leaves: "unused" | "used";
}

/** Points of a resume at which its process is killed, and what is known of the image then. */
export const RESUME_KILLS: readonly ResumeKill[] = [
  { point: "resume.attempt", leaves: "unused" },
  { point: "resume.allocate", leaves: "unused" },
  { point: "resume.verify", leaves: "unused" },
  { point: "resume.load", leaves: "unused" },
  { point: "resume.load", pass: 2, leaves: "unused" },
  { point: "resume.stopped", leaves: "unused" },
  { point: "resume.consume", leaves: "used" },
  { point: "resume.patched", leaves: "used" },
  { point: "resume.running", leaves: "used" },
];

/** Changes a file of an image. */
export function edit(path: string, file: string, change: (bytes: Buffer) => Uint8Array): void {
  writeFileSync(join(path, file), change(readFileSync(join(path, file))));
}

/** Sets a word of the header, which then agrees with its checksum. */
export const headerWord =
  (at: number, value: number): ((path: string) => void) =>
  (path) =>
    edit(path, BLOB_NAME, (blob) => {
      blob.writeUInt32LE(value, at);
      blob.writeBigUInt64LE(checksum(blob.subarray(0, HEADER_BYTES - 8)), HEADER_BYTES - 8);
      return blob;
    });

/** Changes a catalogue, and the header so that all checksums agree. */
export const recatalogue =
  (sql: string): ((path: string) => void) =>
  (path) => {
    const file = join(path, CATALOGUE_NAME);
    const database = new Database(file);
    database.exec(sql);
    database.close();
    const bytes = readFileSync(file);
    const { catalogueHeadBytes } = decodeHeader(readFileSync(join(path, BLOB_NAME)).subarray(0, HEADER_BYTES), path);
    reheader({
      catalogueBytes: bytes.length,
      catalogueHash: checksum(bytes),
      catalogueHeadHash: checksum(bytes.subarray(0, catalogueHeadBytes)),
    })(path);
  };

/** A header that agrees with its checksum and says something else. */
export const reheader =
  (change: Partial<ImageHeader>): ((path: string) => void) =>
  (path) =>
    edit(path, BLOB_NAME, (blob) => {
      blob.set(encodeHeader({ ...decodeHeader(blob.subarray(0, HEADER_BYTES), path), ...change }));
      return blob;
    });

/** Opens an image and verifies all of it. Returns the code of what is wrong, "whole", or what else came of it. */
export async function examine(path: string): Promise<string> {
  try {
    const image = await openImage(path, { machineVersion: MACHINE_VERSION });
    try {
      await verifyChunks(image);
      return "whole";
    } finally {
      image.close();
    }
  } catch (error) {
    if (!(error instanceof HibernaculumError)) return String(error);
    return error.message.includes("\n") ? `not one line: ${error.message}` : error.code;
  }
}
