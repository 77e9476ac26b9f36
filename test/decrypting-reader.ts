/**
 * A reader of encrypted images, made of design/image-format.md alone: of the product it takes nothing but XXH64 and an LZ4 decoder.
 */
import { createDecipheriv, createHmac, hkdfSync, scryptSync } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import Database from "better-sqlite3";
import { uncompressSync } from "lz4-napi";
import { checksum } from "../src/image/checksum.js";

const GCM = { authTagLength: 16 } as const;

function gcm(key: Buffer, nonce: Buffer, tag: Buffer, data: Buffer, additional: Buffer = Buffer.alloc(0)): Buffer {
  const decipher = createDecipheriv("aes-256-gcm", key, nonce, GCM).setAAD(additional).setAuthTag(tag);
  return Buffer.concat([decipher.update(data), decipher.final()]);
}

function nonce(number: number, piece: number): Buffer {
  const bytes = Buffer.alloc(12);
  bytes.writeBigUInt64LE(BigInt(number));
  bytes.writeUInt32LE(piece, 8);
  return bytes;
}

const hkdf = (secret: Buffer, salt: Buffer, info: string): Buffer => Buffer.from(hkdfSync("sha256", secret, salt, info, 32));

function dataKeyOf(header: Buffer, secret: { passphrase: string } | { keyFile: Buffer }): Buffer {
  for (let i = 0; i < header.readUInt32LE(324); i++) {
    const slot = header.subarray(512 + i * 128, 640 + i * 128);
    const salt = slot.subarray(16, 48);
    const [kind, log2n, r, p] = [0, 4, 8, 12].map((at) => slot.readUInt32LE(at)) as [number, number, number, number];
    let key: Buffer;
    if (kind === 1 && "passphrase" in secret)
      key = scryptSync(secret.passphrase.normalize("NFC"), salt, 32, { N: 2 ** log2n, r, p, maxmem: 2 ** 29 });
    else if (kind === 2 && "keyFile" in secret) key = hkdf(secret.keyFile, salt, "hibernaculum key file");
    else continue;
    try {
      return gcm(key, Buffer.alloc(12), slot.subarray(80, 96), slot.subarray(48, 80), slot.subarray(0, 48));
    } catch {
      // another key's
    }
  }
  throw new Error("no slot opens");
}

/** All frames of an image by number, those that are in files of the host left out; and the rows of its table `process`. */
export function readDecrypted(
  path: string,
  secret: { passphrase: string } | { keyFile: Buffer },
): { frames: Map<number, Buffer>; processes: { pid: number; name: string; detail: string }[] } {
  const blob = readFileSync(join(path, "blob"));
  const sealed = readFileSync(join(path, "catalogue.sqlite"));
  const header = blob.subarray(0, 4096);
  if (header.readUInt32LE(32) !== 1 || header.readUInt32LE(320) !== 1) throw new Error("not encrypted as the document says");
  if (checksum(sealed) !== header.readBigUInt64LE(104)) throw new Error("the catalogue is damaged");
  const dataKey = dataKeyOf(header, secret);
  const [chunks, catalogue, ofHeader] = ["chunks", "catalogue", "header"].map((use) =>
    hkdf(dataKey, Buffer.alloc(0), `hibernaculum ${use}`),
  ) as [Buffer, Buffer, Buffer];
  const tagged = Buffer.from(header.subarray(0, 4088)).fill(0, 56, 60).fill(0, 88, 96).fill(0, 328, 360);
  if (!createHmac("sha256", ofHeader).update(tagged).digest().equals(header.subarray(328, 360)))
    throw new Error("changed header");

  const plain: Buffer[] = [];
  for (let at = 0; at < sealed.length; at += 65552) {
    const segment = sealed.subarray(at, at + 65552);
    plain.push(gcm(catalogue, nonce(0, plain.length), segment.subarray(-16), segment.subarray(0, -16)));
  }
  const directory = mkdtempSync(join(tmpdir(), "hib-reader-"));
  try {
    writeFileSync(join(directory, "catalogue"), Buffer.concat(plain));
    const database = new Database(join(directory, "catalogue"), { readonly: true });
    const all = <T>(sql: string): T[] => database.prepare(sql).safeIntegers(false).all() as T[];
    const decoded = new Map<number, Buffer>();
    type Row = { id: number; offset: number; stored: number; payload: number; codec: number; pieces: Buffer };
    for (const { id, offset, stored, payload, codec, pieces } of all<Row>(
      "SELECT id, offset, stored, payload, codec, pieces FROM chunk",
    )) {
      const parts: Buffer[] = [];
      for (let at = 0; at < stored; at += 65536) {
        const piece = blob.subarray(offset + at, offset + Math.min(at + 65536, stored));
        parts.push(gcm(chunks, nonce(id, parts.length), pieces.subarray(parts.length * 16, parts.length * 16 + 16), piece));
      }
      const bytes = Buffer.concat(parts).subarray(0, payload);
      decoded.set(id, codec === 0 ? bytes : uncompressSync(bytes));
    }
    const frames = new Map<number, Buffer>();
    const extents = database.prepare("SELECT pfn, frames, kind, chunk, first, fill FROM extent").safeIntegers().all();
    for (const extent of extents as Record<string, bigint | null>[]) {
      const [pfn, count, kind, chunk, first] = ["pfn", "frames", "kind", "chunk", "first"].map((name) => Number(extent[name]));
      for (let i = 0; i < count!; i++) {
        const from = (first! + i) * 4096;
        if (kind === 0) frames.set(pfn! + i, decoded.get(chunk!)!.subarray(from, from + 4096));
        if (kind === 1) frames.set(pfn! + i, Buffer.from(new BigInt64Array(512).fill(extent["fill"]!).buffer));
      }
    }
    const processes = all<{ pid: number; name: string; detail: string }>("SELECT pid, name, detail FROM process");
    database.close();
    return { frames, processes };
  } finally {
    rmSync(directory, { recursive: true });
  }
}
