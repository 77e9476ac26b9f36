/** An image is complete and whole or it is not one: header, blob, chunks, directory, markers. */

import { spawnSync } from "node:child_process";
import { randomBytes, randomUUID } from "node:crypto";
import { chmod, mkdir, mkdtemp, open, readdir, readFile, rename, rm, stat, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import process from "node:process";
import test, { type ExecutionContext } from "ava";
import fc from "fast-check";
import { setFailpoints } from "../src/base/failpoints.js";
import { FRAME_BYTES, POOL_BASE } from "../src/base/layout.js";
import { processTag, thisProcess } from "../src/base/host-process.js";
import { wasm } from "../src/base/wasm.js";
import { BlobReader, BlobWriter } from "../src/image/blob.js";
import type { RegionRow } from "../src/image/catalogue-rows.js";
import { CatalogueWriter } from "../src/image/catalogue-writer.js";
import { checksum, hashFile, loadChecksum } from "../src/image/checksum.js";
import { checkDigest, compressChunk, decodeChunk, digestOf, hashPieces } from "../src/image/codec.js";
import { createPartial, openImage, type PartialImage, removeStalePartials } from "../src/image/directory.js";
import type { Extent } from "../src/image/extents.js";
import {
  BLOB_NAME,
  CATALOGUE_NAME,
  type Chunk,
  CODEC_LZ4,
  CODEC_RAW,
  decodeHeader,
  encodeHeader,
  FORMAT_VERSION,
  type ImageHeader,
  MACHINE_VERSION,
  padded,
} from "../src/image/format.js";
import { listImages } from "../src/image/list.js";
import {
  claimUse,
  deaths,
  isUsed,
  readHistory,
  recordAttempt,
  recordOutcome,
  refuseHeld,
  setAside,
} from "../src/image/markers.js";
import { verifyChunks } from "../src/image/verify.js";
import { HandMachine } from "./support.js";

test.before(loadChecksum);

async function temporaryDirectory(t: ExecutionContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "hib-image-"));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

// A small machine of 64 frames: nine frames in three chunks, five same-filled, one place that a later copy superseded.

const RAM_FRAMES = 64;
const FILL = 0xfedc_ba98_7654_3210n;
const INCOMPRESSIBLE = randomBytes(2 * 4096);
const COMPRESSIBLE = Buffer.concat(Array.from({ length: 7 }, (_, i) => Buffer.alloc(4096, `frame ${i}, over and over. `)));
const ONE = randomBytes(4096);
const EXTENTS: Extent[] = [
  { pfn: 0, frames: 2, chunk: 0, first: 0 },
  { pfn: 2, frames: 3, chunk: 1, first: 4 },
  { pfn: 7, frames: 4, chunk: null, fill: 0n },
  { pfn: 20, frames: 1, chunk: null, fill: FILL },
  { pfn: 21, frames: 3, chunk: 1, first: 0 },
  { pfn: 63, frames: 1, chunk: 2, first: 0 },
];
const FRAMES = 14;

/** What each frame of it reads as. */
function expectedFrame(pfn: number): Buffer {
  const part = (from: Buffer, i: number): Buffer => from.subarray(i * 4096, i * 4096 + 4096);
  if (pfn < 2) return part(INCOMPRESSIBLE, pfn);
  if (pfn < 5) return part(COMPRESSIBLE, pfn + 2);
  if (pfn === 20) return Buffer.from(new BigUint64Array(512).fill(FILL).buffer);
  if (pfn >= 21 && pfn < 24) return part(COMPRESSIBLE, pfn - 21);
  return pfn === 63 ? ONE : Buffer.alloc(4096);
}

const piecesOf = (stored: Buffer): Uint8Array =>
  hashPieces(stored.length, (at, length) => checksum(stored.subarray(at, at + length)));

async function encodeChunk(id: number, offset: number, frames: Buffer): Promise<{ chunk: Chunk; stored: Buffer }> {
  const compressed = await compressChunk(frames);
  const payload = compressed ?? frames;
  const stored = Buffer.alloc(padded(payload.length));
  payload.copy(stored);
  const codec = compressed === undefined ? CODEC_RAW : CODEC_LZ4;
  const pieces = piecesOf(stored);
  return {
    chunk: {
      id,
      offset,
      stored: stored.length,
      payload: payload.length,
      frames: frames.length / 4096,
      codec,
      hash: checksum(pieces),
      pieces,
      digest: null,
    },
    stored,
  };
}

const NOTHING_ELSE = { regions: [], references: [], objects: [], files: [], mounts: [] };
const PLAIN_HEADER = {
  parent: null,
  machineVersion: MACHINE_VERSION,
  compatible: 0,
  used: false,
  catalogueOffset: 0,
  writer: "a test",
};

interface Changes {
  regions?: RegionRow[];
  header?: Partial<ImageHeader>;
  chunks?: (chunks: Chunk[]) => Chunk[];
  extents?: Extent[];
  meta?: Record<string, unknown>;
  blobOffset?: number | null;
}

/** Writes the small machine, with something about it changed, up to the point before it is published. */
async function writeImage(partial: PartialImage, changes: Changes = {}): Promise<void> {
  const blob = await BlobWriter.open(partial.blobPath);
  try {
    const chunks: Chunk[] = [];
    let offset = 4096;
    // Numbers and places of chunks come from two cursors: they need not be in the same order.
    for (const [id, frames] of [
      [0, INCOMPRESSIBLE],
      [2, ONE],
      [1, COMPRESSIBLE],
    ] as const) {
      const { chunk, stored } = await encodeChunk(id, offset, frames);
      await blob.write(stored, offset);
      chunks.push(chunk);
      offset += stored.length;
    }
    await blob.sync();
    const catalogue = CatalogueWriter.create(partial.cataloguePath);
    chunks.sort((a, b) => a.id - b.id);
    catalogue.write({
      meta: changes.meta ?? { sameFilledFrames: 5 },
      chunks: changes.chunks?.(chunks) ?? chunks,
      extents: changes.extents ?? EXTENTS,
      processes: [{ pid: 1, slot: 0, name: "init", state: "running", steps: 1, detail: {} }],
      mappings: [
        {
          pid: 1,
          vaddr: 0x1000_0000,
          order: 0,
          pfn: 2,
          pages: 3,
          flags: 0xd7,
          blobOffset: changes.blobOffset ?? chunks[1]!.offset,
        },
        { pid: 1, vaddr: 0x1000_3000, order: 0, pfn: 8, pages: 1, flags: 0xd7, blobOffset: null },
      ],
      blocks: [{ kind: "user", owner: 1, order: 2, blocks: 1, frames: 4 }],
      ...NOTHING_ELSE,
      regions: changes.regions ?? [{ pfn: 0, frames: RAM_FRAMES }],
    });
    const header: ImageHeader = {
      ...(await catalogue.close()),
      ...PLAIN_HEADER,
      id: randomUUID(),
      ramFrames: RAM_FRAMES,
      chunks: 3,
      blobBytes: offset,
      frames: FRAMES,
      time: Date.now(),
    };
    await blob.write(encodeHeader({ ...header, ...changes.header }), 0);
    await blob.sync();
  } finally {
    await blob.close();
  }
}

async function makeImage(t: ExecutionContext, changes?: Changes): Promise<string> {
  const path = join(await temporaryDirectory(t), "image");
  const partial = await createPartial(path);
  await writeImage(partial, changes);
  await partial.publish();
  return path;
}

async function openAndVerify(path: string): Promise<void> {
  const image = await openImage(path, { machineVersion: MACHINE_VERSION });
  try {
    await verifyChunks(image);
  } finally {
    image.close();
  }
}

/** Flips one bit, in turn, of every byte from `start` to `end` of a file, and counts what `check` does not find. */
async function flipEach(
  path: string,
  start: number,
  end: number,
  check: () => Promise<void>,
): Promise<{ missed: number[]; codes: Set<string> }> {
  const bytes = await readFile(path);
  const file = await open(path, "r+");
  const missed: number[] = [];
  const codes = new Set<string>();
  const put = (value: number, at: number): Promise<unknown> => file.write(Uint8Array.of(value), 0, 1, at);
  try {
    for (let at = start; at < end; at++) {
      await put(bytes[at]! ^ (1 << (at % 8)), at);
      await check().then(
        () => missed.push(at),
        (error: { code: string }) => codes.add(error.code),
      );
      await put(bytes[at]!, at);
    }
  } finally {
    await file.close();
  }
  return { missed, codes };
}

// Header

const words = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
const digests = fc.uint8Array({ minLength: 32, maxLength: 32 }).filter((bytes) => bytes.some(Boolean));
const headers: fc.Arbitrary<ImageHeader> = fc
  .record({
    machineVersion: fc.nat(),
    id: fc.uuid(),
    parent: fc.option(fc.record({ id: fc.uuid(), catalogueHash: words, catalogueDigest: fc.option(digests) })),
    compatible: fc.nat(),
    used: fc.boolean(),
    ramFrames: fc.nat(2 ** 20),
    chunks: fc.nat(2 ** 20),
    pages: fc.nat(2 ** 36),
    catalogueBytes: fc.nat(),
    catalogueHash: words,
    catalogueHeadBytes: fc.nat(),
    catalogueHeadHash: words,
    catalogueDigest: fc.option(digests),
    frames: fc.nat(2 ** 20),
    time: fc.double({ noNaN: true, min: -8.64e15, max: 8.64e15 }),
    writer: fc.string({ maxLength: 64 }).map((text) => text.replaceAll("\0", "")),
  })
  .chain(({ pages, ...header }) => {
    const blobBytes = (pages + header.chunks) * 4096;
    return fc.boolean().map((apart) => ({
      ...header,
      blobBytes,
      catalogueOffset: apart ? 0 : blobBytes,
      frames: Math.min(header.frames, header.ramFrames),
      catalogueHeadBytes: Math.min(header.catalogueHeadBytes, header.catalogueBytes),
    }));
  });

test("header: what is encoded comes back", (t) => {
  fc.assert(fc.property(headers, (header) => t.deepEqual(decodeHeader(encodeHeader(header), "x"), header)));
});

test("header: every flipped bit is found", (t) => {
  const page = encodeHeader(fc.sample(headers, 1)[0]!);
  const codes = new Map<string, number>();
  for (let bit = 0; bit < 4096 * 8; bit++) {
    page[bit >>> 3]! ^= 1 << (bit & 7);
    const { code } = t.throws(() => decodeHeader(page, "x"), { name: "HibernaculumError" }) as unknown as { code: string };
    codes.set(code, (codes.get(code) ?? 0) + 1);
    page[bit >>> 3]! ^= 1 << (bit & 7);
  }
  t.deepEqual(Object.fromEntries(codes), { HIB_NOT_AN_IMAGE: 32, HIB_FORMAT_VERSION: 32, HIB_CORRUPT: 4096 * 8 - 64 });
  t.notThrows(() => decodeHeader(page, "x"));
});

/** Seals a page anew after a change: what is wrong with it is not its checksum. */
function changed(change: (page: DataView) => void): Uint8Array {
  const page = encodeHeader({ ...fc.sample(headers, 1)[0]!, parent: null });
  const view = new DataView(page.buffer, page.byteOffset);
  change(view);
  view.setBigUint64(4088, checksum(page.subarray(0, 4088)), true);
  return page;
}

test("header: a feature, an algorithm or a byte that nobody knows is refused, and a compatible feature is not", (t) => {
  for (let bit = 0; bit < 32; bit++) {
    const page = changed((view) => view.setUint32(32, 2 ** bit, true));
    if (bit === 1) t.throws(() => decodeHeader(page, "x"), { code: "HIB_CORRUPT" }, "a parent without an id");
    else t.throws(() => decodeHeader(page, "x"), { code: "HIB_FORMAT_VERSION", message: bit === 0 ? /cipher/ : /features .*0x/ });
    t.is(
      decodeHeader(
        changed((view) => view.setUint32(36, 2 ** bit, true)),
        "x",
      ).compatible,
      2 ** bit,
    );
  }
  for (const at of [40, 44, 48, 52]) {
    t.throws(
      () =>
        decodeHeader(
          changed((view) => view.setUint32(at, 99, true)),
          "x",
        ),
      { code: "HIB_FORMAT_VERSION" },
      String(at),
    );
  }
  t.throws(
    () =>
      decodeHeader(
        changed((view) => view.setUint32(56, 2, true)),
        "x",
      ),
    { code: "HIB_FORMAT_VERSION" },
  );
  for (let at = 0; at < 4088; at++) {
    if (!((at >= 136 && at < 160) || at >= 256)) continue;
    const page = changed((view) => view.setUint8(at, 1 << (at % 8)));
    t.throws(() => decodeHeader(page, "x"), { code: "HIB_FORMAT_VERSION" }, `byte ${at}`);
  }
});

test("header: what contradicts itself is refused", (t) => {
  const refused = (code: string, ...changes: ((view: DataView) => void)[]): void => {
    for (const change of changes) t.throws(() => decodeHeader(changed(change), "x"), { code }, String(change));
  };
  refused(
    "HIB_RAM_TOO_LARGE",
    (view) => view.setBigUint64(64, 2n ** 20n + 1n, true),
    (view) => view.setBigUint64(64, 2n ** 64n - 1n, true),
  );
  refused(
    "HIB_CORRUPT",
    (view) => view.setBigUint64(72, 2n ** 20n + 1n, true),
    (view) => view.setUint32(60, 2 ** 32 - 1, true) ?? view.setBigUint64(80, 8192n, true),
    (view) => view.setBigUint64(80, 4097n, true),
    (view) => view.setBigUint64(80, 2n ** 63n, true),
    (view) => view.setBigUint64(88, 2n ** 40n + 1n, true),
    (view) => view.setBigUint64(96, 2n ** 62n, true),
    (view) => view.setBigUint64(112, 2n ** 50n, true),
    ...[NaN, Infinity, -Infinity, 1e300].map((time) => (view: DataView) => view.setFloat64(128, time, true)),
  );
});

test("header: versions that differ are both named", (t) => {
  const page = encodeHeader({ ...fc.sample(headers, 1)[0]!, machineVersion: 7 });
  t.is(decodeHeader(page, "x", { expectedMachineVersion: 7 }).machineVersion, 7);
  const machine = t.throws(() => decodeHeader(page, "x", { expectedMachineVersion: 3 }), { code: "HIB_MACHINE_VERSION" })!;
  t.regex(machine.message, /7.*3/);
  page[4] = 99;
  const format = t.throws(() => decodeHeader(page, "x"), { code: "HIB_FORMAT_VERSION" })!;
  t.regex(format.message, new RegExp(`99.*${FORMAT_VERSION}`));
});

const WORKED_EXAMPLE: ImageHeader = {
  machineVersion: 1,
  id: "00112233-4455-6677-8899-aabbccddeeff",
  parent: null,
  compatible: 0,
  used: false,
  ramFrames: 65536,
  chunks: 3,
  blobBytes: 1773568,
  catalogueOffset: 0,
  catalogueBytes: 28672,
  catalogueHash: 0xfedc_ba98_7654_3210n,
  catalogueHeadBytes: 20480,
  catalogueHeadHash: 0x0123_4567_89ab_cdefn,
  catalogueDigest: null,
  frames: 1214,
  time: Date.UTC(2026, 0, 1),
  writer: "hibernaculum 0.1.0",
};

test("header: the one printed in design/image-format.md is what it says", async (t) => {
  const text = await readFile("design/image-format.md", "utf8");
  const page = Buffer.alloc(4096);
  for (const [, at, bytes] of text.matchAll(/^ {4}([0-9a-f]{4}) ((?: [0-9a-f]{2}){16})$/gm)) {
    page.write(bytes!.replaceAll(" ", ""), Number.parseInt(at!, 16), "hex");
  }
  t.deepEqual(decodeHeader(page, "design/image-format.md"), WORKED_EXAMPLE);
  t.true(text.includes(checksum(new Uint8Array(4096)).toString(16)));
});

// Checksum and codec

test("checksum: the values of the published XXH64, and the same for a file", async (t) => {
  t.is(checksum(new Uint8Array()), 0xef46_db37_51d8_e999n);
  t.is(checksum(Buffer.from("abc")), 0x44bc_2cf5_ad77_0999n);
  const path = join(await temporaryDirectory(t), "file");
  for (const bytes of [0, 1, 31, (1 << 20) - 1, 1 << 20, (2 << 20) + 12345]) {
    const content = randomBytes(bytes);
    await writeFile(path, content);
    const head = Math.min(bytes, 70_000);
    t.deepEqual(await hashFile(path, { head }), {
      bytes,
      hash: checksum(content),
      digest: null,
      headHash: checksum(content.subarray(0, head)),
    });
  }
});

test("checksum: the core's, of staged chunks, is the library's", (t) => {
  const { control, kernel } = new HandMachine();
  for (const pages of [1, 2, 3, 256]) {
    const staged = new Uint8Array(control.words.buffer, POOL_BASE, pages * FRAME_BYTES);
    staged.set(randomBytes(staged.length));
    t.is(BigInt.asUintN(64, kernel.core.checksum(POOL_BASE, staged.length)), checksum(staged));
  }
});

test("codec: a chunk comes back, compressed or raw, from shared memory too", async (t) => {
  const shared = new Uint8Array(new wasm.Memory({ initial: 1, maximum: 1, shared: true }).buffer);
  for (const [frames, codec] of [
    [COMPRESSIBLE, CODEC_LZ4],
    [INCOMPRESSIBLE, CODEC_RAW],
    [Buffer.alloc(65536), CODEC_LZ4],
  ] as const) {
    shared.set(frames);
    t.deepEqual(await compressChunk(shared.subarray(0, frames.length)), await compressChunk(frames));
    const { chunk, stored } = await encodeChunk(0, 4096, frames);
    t.is(chunk.codec, codec);
    shared.set(stored);
    t.deepEqual(Buffer.from(decodeChunk(chunk, shared.subarray(0, stored.length))), frames);
  }
});

test("codec: a bit that is flipped is found, in chunks that are raw too", async (t) => {
  for (const [frames, codec] of [
    [COMPRESSIBLE, CODEC_LZ4],
    [INCOMPRESSIBLE, CODEC_RAW],
  ] as const) {
    const { chunk, stored } = await encodeChunk(0, 4096, frames);
    t.is(chunk.codec, codec);
    for (let byte = 0; byte < stored.length; byte += 509) {
      const bytes = Buffer.from(stored);
      bytes[byte]! ^= 1 << (byte % 8);
      t.throws(() => decodeChunk(chunk, bytes), { code: "HIB_CORRUPT" }, `byte ${byte}`);
    }
  }
});

test("codec: what does not save a page is stored raw", async (t) => {
  t.is(await compressChunk(Buffer.concat([randomBytes(3000), Buffer.alloc(1096)])), undefined);
});

test("codec: with a checksum that agrees, a wrong length or block is still found, and not decoded", async (t) => {
  const { chunk, stored } = await encodeChunk(0, 4096, COMPRESSIBLE);
  const damaged = (change: (bytes: Buffer) => void, row: Partial<Chunk> = {}): void => {
    const bytes = Buffer.from(stored);
    change(bytes);
    t.throws(() => decodeChunk({ ...chunk, ...row, hash: checksum(piecesOf(bytes)) }, bytes), { code: "HIB_CORRUPT" });
  };
  for (const claimed of [0, 4096, COMPRESSIBLE.length - 1, COMPRESSIBLE.length + 1, 0x7fff_ffff, 0xffff_ffff])
    damaged((bytes) => bytes.writeUInt32LE(claimed));
  damaged((bytes) => bytes.fill(0xff, 4));
  damaged(() => undefined, { payload: 3 });
  damaged(() => undefined, { payload: chunk.payload - 1 });
  damaged(() => undefined, { frames: chunk.frames + 1 });
  t.throws(() => decodeChunk({ ...chunk, codec: 2 }, stored), { code: "HIB_FORMAT_VERSION", message: /codec .*\(2\)/ });
  damaged(() => undefined, { codec: CODEC_RAW });
});

test("codec: pieces of 64 KiB have hashes of their own, and a digest that does not agree is found", (t) => {
  const stored = randomBytes(17 * 4096);
  const pieces = Buffer.from(piecesOf(stored));
  t.is(pieces.length, 16);
  t.is(pieces.readBigUInt64LE(0), checksum(stored.subarray(0, 65536)));
  t.is(pieces.readBigUInt64LE(8), checksum(stored.subarray(65536)));
  const chunk: Chunk = {
    id: 0,
    offset: 4096,
    stored: stored.length,
    payload: stored.length,
    frames: 17,
    codec: CODEC_RAW,
    hash: checksum(pieces),
    pieces,
    digest: digestOf(stored),
  };
  t.notThrows(() => decodeChunk(chunk, stored));
  t.notThrows(() => checkDigest(chunk, stored));
  t.throws(() => checkDigest({ ...chunk, digest: randomBytes(32) }, stored), { code: "HIB_CORRUPT", message: /digest/ });
});

// Blob

const PAGES = 8;

/** Aligned, as the machine's staging buffers are, with something in it. */
function alignedPages(): Uint8Array {
  const bytes = new Uint8Array(new wasm.Memory({ initial: 1, maximum: 1, shared: true }).buffer, 0, PAGES * 4096);
  for (let i = 0; i < bytes.length; i++) bytes[i] = i * 31 + (i >>> 8);
  return bytes;
}

test("blob: writes of aligned and of any memory, at once, arrive whole", async (t) => {
  const path = join(await temporaryDirectory(t), BLOB_NAME);
  const writer = await BlobWriter.open(path);
  const aligned = alignedPages();
  const any = randomBytes(3 * 4096 + 1).subarray(1);
  await writer.write(aligned, 4096);
  await Promise.all([
    writer.write(any, 4096 + aligned.length),
    writer.write(any, 4096 + aligned.length + any.length),
    writer.write(any.subarray(0, 100), 0),
  ]);
  await writer.sync();
  await writer.close();
  await writer.close();
  const expected = Buffer.concat([any.subarray(0, 100), Buffer.alloc(3996), aligned, any, any]);
  t.true(expected.equals(await readFile(path)));

  const reader = new BlobReader(path);
  const buffer = new Uint8Array(5000);
  await reader.read(buffer, 4096, 5000);
  t.true(Buffer.from(buffer).equals(expected.subarray(4096, 9096)));
  reader.readSync(buffer, 50, 100);
  t.true(Buffer.from(buffer.subarray(0, 100)).equals(expected.subarray(50, 150)));
  await t.throwsAsync(reader.read(buffer, expected.length - 10, 11), { code: "HIB_TRUNCATED" });
  t.throws(() => reader.readSync(buffer, expected.length, 1), { code: "HIB_TRUNCATED" });
  reader.close();
  reader.close();
  await t.throwsAsync(reader.read(buffer, 0, 1), { code: "HIB_IO" });
});

test("blob: a writer without O_DIRECT, and two writers of one blob", async (t) => {
  const path = join(await temporaryDirectory(t), BLOB_NAME);
  const one = await BlobWriter.open(path, { direct: false });
  const two = await BlobWriter.open(path);
  t.false(one.direct);
  await Promise.all([one.write(alignedPages(), 0), two.write(alignedPages(), PAGES * 4096)]);
  await one.close();
  await two.close();
  t.true(Buffer.concat([alignedPages(), alignedPages()]).equals(await readFile(path)));
});

// Failure points are the thread's: these run one after the other, before the others.

test.serial("blob: a write that comes out short is continued", async (t) => {
  t.teardown(() => setFailpoints(undefined));
  for (const at of [1, 2]) {
    const path = join(await temporaryDirectory(t), BLOB_NAME);
    const writer = await BlobWriter.open(path);
    setFailpoints(`save.write=short@${at}`);
    await writer.write(alignedPages(), 0);
    await writer.write(alignedPages(), PAGES * 4096);
    await writer.close();
    t.true(Buffer.concat([alignedPages(), alignedPages()]).equals(await readFile(path)));
  }
});

test.serial("blob: a write of nothing, a full disk, a broken disk are errors that name the file", async (t) => {
  t.teardown(() => setFailpoints(undefined));
  const path = join(await temporaryDirectory(t), BLOB_NAME);
  const writer = await BlobWriter.open(path);
  const attempt = async (trap: string, pages: number, code: string): Promise<void> => {
    setFailpoints(trap);
    const { message } = (await t.throwsAsync(writer.write(alignedPages().subarray(0, pages * 4096), 0), { code }))!;
    t.true(message.includes(path), message);
  };
  await attempt("save.write=short", 1, "HIB_IO");
  await attempt("save.write=ENOSPC", 8, "HIB_NO_SPACE");
  await attempt("save.write=EDQUOT", 8, "HIB_NO_SPACE");
  await attempt("save.write=EIO", 8, "HIB_IO");
  setFailpoints("save.sync=EIO");
  await t.throwsAsync(writer.sync(), { code: "HIB_IO" });
  await writer.close();
  await t.throwsAsync(BlobWriter.open(join(path, "x")), { code: "HIB_IO" });
});

test.serial("save: at whichever write or step it fails, discard leaves nothing behind", async (t) => {
  t.teardown(() => setFailpoints(undefined));
  const traps = ["ENOSPC", "EIO"].flatMap((action) => [1, 2, 3, 4].map((at) => `save.write=${action}@${at}`));
  for (const trap of [...traps, "save.sync=EIO", "save.sync=EIO@2", "save.before-rename=EIO", "save.after-rename=EIO"]) {
    const directory = await temporaryDirectory(t);
    setFailpoints(trap);
    const partial = await createPartial(join(directory, "image"));
    await t.throwsAsync(
      async () => {
        await writeImage(partial);
        await partial.publish();
      },
      { code: trap.includes("ENOSPC") ? "HIB_NO_SPACE" : "HIB_IO" },
      trap,
    );
    await partial.discard();
    await partial.discard();
    t.deepEqual(await readdir(directory), [], trap);
  }
});

// Directory

test("image: published, it is alone in its directory, opens, verifies, and reads as the machine did", async (t) => {
  const path = await makeImage(t);
  t.deepEqual(await readdir(dirname(path)), ["image"]);
  t.deepEqual((await readdir(path)).sort(), [BLOB_NAME, CATALOGUE_NAME]);
  const image = await openImage(path, { machineVersion: MACHINE_VERSION });
  const progress: number[][] = [];
  const verified = await verifyChunks(image, (...at) => progress.push(at));
  const total = image.header.blobBytes - 4096;
  t.deepEqual(verified, {
    chunks: 3,
    storedBytes: total,
    decodedFrames: 10,
    frames: FRAMES,
    sameFilledFrames: 5,
    referencedFrames: 0,
  });
  t.is(progress.length, 3);
  t.deepEqual(progress.at(-1), [total, total]);

  const memory = image.memory({ cachedChunks: 1 });
  t.is(memory.frames, RAM_FRAMES);
  for (let pfn = 0; pfn < RAM_FRAMES; pfn++) {
    const expected = expectedFrame(pfn);
    t.true(expected.equals(memory.readFrame(pfn)), `frame ${pfn}`);
    t.is(memory.load32(pfn * 4096 + 4092), expected.readInt32LE(4092));
    t.is(memory.loadFloat64(pfn * 4096 + 8), expected.readDoubleLE(8));
    t.is(
      memory.has(pfn),
      EXTENTS.some((extent) => pfn >= extent.pfn && pfn < extent.pfn + extent.frames),
    );
  }
  const all = Buffer.concat(Array.from({ length: RAM_FRAMES }, (_, pfn) => expectedFrame(pfn)));
  t.true(all.equals(memory.read(0, all.length)));
  t.true(all.subarray(5000, 15000).equals(memory.read(5000, 10000)));
  t.throws(() => memory.readFrame(RAM_FRAMES), { code: "HIB_INCONSISTENT" });
  const seen: number[] = [];
  for await (const { chunk } of memory.chunksInOrder()) seen.push(chunk.id);
  t.deepEqual(seen, [0, 2, 1]);
  image.close();
  image.close();
});

test("image: one without frames is one, too", async (t) => {
  const path = join(await temporaryDirectory(t), "image");
  const partial = await createPartial(path);
  const catalogue = CatalogueWriter.create(partial.cataloguePath);
  const regions = [{ pfn: 0, frames: RAM_FRAMES }];
  catalogue.write({ meta: {}, chunks: [], extents: [], processes: [], mappings: [], blocks: [], ...NOTHING_ELSE, regions });
  const header = {
    ...fc.sample(headers, 1)[0]!,
    ...PLAIN_HEADER,
    ...(await catalogue.close()),
    ramFrames: RAM_FRAMES,
    chunks: 0,
    frames: 0,
    blobBytes: 4096,
  };
  await writeFile(partial.blobPath, encodeHeader(header));
  await partial.publish();
  await t.notThrowsAsync(openAndVerify(path));
});

test("openImage: what is missing is named", async (t) => {
  const path = await makeImage(t);
  const directory = dirname(path);
  const refused = async (where: string, message: RegExp): Promise<void> => {
    await t.throwsAsync(openImage(where), { code: "HIB_NOT_AN_IMAGE", message });
  };
  await refused(join(directory, "nothing"), /no image at .*nothing/);
  await writeFile(join(directory, "file"), "");
  await refused(join(directory, "file"), /no image at .*file/);
  await refused(join(directory, "file", "below"), /no image at/);
  await mkdir(join(directory, "empty"));
  await refused(join(directory, "empty"), /no blob/);
  const bytes = await readFile(join(path, BLOB_NAME));
  await rm(join(path, BLOB_NAME));
  await refused(path, /no blob/);
  await mkdir(join(path, BLOB_NAME));
  await refused(path, /its blob is no regular file/);
  await rm(join(path, BLOB_NAME), { recursive: true });
  await writeFile(join(path, BLOB_NAME), bytes);
  await rm(join(path, CATALOGUE_NAME));
  await refused(path, /no catalogue\.sqlite/);
});

test("openImage: a blob that was never sealed is no image", async (t) => {
  const path = await makeImage(t);
  const file = await open(join(path, BLOB_NAME), "r+");
  await file.write(new Uint8Array(4096), 0, 4096, 0);
  await file.close();
  await t.throwsAsync(openImage(path), { code: "HIB_NOT_AN_IMAGE" });
});

test("openImage: a file that may not be read is an I/O error", async (t) => {
  if (process.getuid?.() === 0) return void t.pass("root may read everything");
  const path = await makeImage(t);
  for (const name of [BLOB_NAME, CATALOGUE_NAME]) {
    await chmod(join(path, name), 0);
    await t.throwsAsync(openImage(path), { code: "HIB_IO" });
    await chmod(join(path, name), 0o600);
  }
  await chmod(path, 0);
  await t.throwsAsync(openImage(path), { code: "HIB_IO" });
  await chmod(path, 0o700);
});

test("openImage: an image of another machine version", async (t) => {
  const path = await makeImage(t, { header: { machineVersion: 12 } });
  await t.throwsAsync(openAndVerify(path), { code: "HIB_MACHINE_VERSION" });
  (await openImage(path)).close();
});

test("openImage: a file of any other length is refused", async (t) => {
  const path = await makeImage(t);
  for (const name of [BLOB_NAME, CATALOGUE_NAME]) {
    const bytes = await readFile(join(path, name));
    const end = bytes.length;
    for (const length of [0, 1, 3, 4, 100, 4095, 4096, 4097, 8192, end >> 1, end - 4096, end - 1, end + 1, end + 4096]) {
      await truncate(join(path, name), length);
      const expected = name === BLOB_NAME && length < 4 ? "HIB_NOT_AN_IMAGE" : "HIB_TRUNCATED";
      await t.throwsAsync(openImage(path), { code: expected }, `${name} of ${length} bytes`);
      await writeFile(join(path, name), bytes);
    }
  }
  await t.notThrowsAsync(openAndVerify(path));
});

test("openImage: a change to any byte of the catalogue is found", async (t) => {
  t.timeout(300_000);
  const path = await makeImage(t);
  const file = join(path, CATALOGUE_NAME);
  const { missed, codes } = await flipEach(file, 0, (await readFile(file)).length, async () => (await openImage(path)).close());
  t.deepEqual(missed, []);
  t.deepEqual([...codes], ["HIB_CORRUPT"]);
  await t.notThrowsAsync(openAndVerify(path));
});

test("verifyChunks: a change to any byte of any chunk, padding too, is found", async (t) => {
  t.timeout(300_000);
  const path = await makeImage(t);
  const image = await openImage(path);
  t.true(image.header.blobBytes >= 4096 * 5);
  const { missed, codes } = await flipEach(
    join(path, BLOB_NAME),
    4096,
    image.header.blobBytes,
    async () => void (await verifyChunks(image)),
  );
  t.deepEqual(missed, []);
  t.deepEqual([...codes], ["HIB_CORRUPT"]);
  await t.notThrowsAsync(verifyChunks(image));
  image.close();
});

test("openImage: checksums that agree over counts that do not", async (t) => {
  const change = (id: number, row: Partial<Chunk>) => (chunks: Chunk[]) =>
    chunks.map((chunk) => (chunk.id === id ? { ...chunk, ...row } : chunk));
  const wrong: Record<string, Changes> = {
    "chunks of the header": { header: { chunks: 4 } },
    "frames of the header": { header: { frames: FRAMES + 1 } },
    "RAM too small": { header: { ramFrames: RAM_FRAMES - 1 } },
    "a chunk is missing": { chunks: (chunks) => chunks.slice(1), header: { chunks: 2 } },
    "chunks overlap": { chunks: change(2, { offset: 4096 }) },
    "a gap": { chunks: change(0, { offset: 0 }) },
    "frames of a chunk": { chunks: change(0, { frames: 3 }) },
    "no frames": { chunks: change(1, { frames: 0 }) },
    "too many frames": { chunks: change(1, { frames: 257 }) },
    "payload of a chunk": { chunks: change(1, { payload: 5000 }) },
    "hashes of pieces": { chunks: change(1, { pieces: new Uint8Array(8) }) },
    "regions of RAM": { regions: [{ pfn: 0, frames: RAM_FRAMES - 1 }] },
    "an object's header": { header: { used: true } },
    "an extent too many": { extents: [...EXTENTS, { pfn: 40, frames: 1, chunk: null, fill: 0n }] },
    "an extent beyond its chunk": { extents: [{ pfn: 0, frames: 3, chunk: 0, first: 0 }], header: { frames: 3 } },
    "an extent of no chunk": { extents: [{ pfn: 0, frames: 1, chunk: 3, first: 0 }], header: { frames: 1 } },
    "extents overlap": {
      extents: [
        { pfn: 0, frames: 2, chunk: 0, first: 0 },
        { pfn: 1, frames: 1, chunk: 2, first: 0 },
      ],
      header: { frames: 3 },
    },
  };
  for (const [what, changes] of Object.entries(wrong)) {
    const path = await makeImage(t, changes);
    await t.throwsAsync(openImage(path), { code: "HIB_CORRUPT" }, what);
  }
  const unknown: Record<string, Changes> = {
    codec: { chunks: change(1, { codec: 2 }) },
    "RAM that begins elsewhere": { regions: [{ pfn: 1, frames: RAM_FRAMES }] },
    "RAM with a gap": {
      regions: [
        { pfn: 0, frames: 32 },
        { pfn: 64, frames: RAM_FRAMES - 32 },
      ],
    },
  };
  for (const [what, changes] of Object.entries(unknown)) {
    const path = await makeImage(t, changes);
    await t.throwsAsync(openImage(path), { code: "HIB_FORMAT_VERSION" }, what);
  }
});

test("verifyChunks: counts and mappings that disagree with the extents", async (t) => {
  for (const changes of [{ meta: { sameFilledFrames: 4 } }, { blobOffset: 4096 }] satisfies Changes[]) {
    const path = await makeImage(t, changes);
    await t.throwsAsync(openAndVerify(path), { code: "HIB_CORRUPT" });
  }
});

test("createPartial, publish: a path that is taken is refused, also one that was taken meanwhile", async (t) => {
  const path = await makeImage(t);
  await t.throwsAsync(createPartial(path), { code: "HIB_IMAGE_EXISTS" });
  const later = join(dirname(path), "later");
  for (const take of [() => mkdir(later), () => writeFile(later, ""), () => mkdir(join(later, "content"), { recursive: true })]) {
    const partial = await createPartial(`${later}/`);
    await writeImage(partial);
    await take();
    await t.throwsAsync(partial.publish(), { code: "HIB_IMAGE_EXISTS" });
    await partial.discard();
    t.deepEqual((await readdir(dirname(path))).sort(), ["image", "later"]);
    await rm(later, { recursive: true });
  }
  await t.throwsAsync(createPartial(join(path, "no", "such", "parent")), { code: "HIB_IO" });
});

test("discard: leaves a published image alone", async (t) => {
  const path = join(await temporaryDirectory(t), "image");
  const partial = await createPartial(path);
  await writeImage(partial);
  await partial.publish();
  await partial.discard();
  await t.notThrowsAsync(openAndVerify(path));
});

test("claimUse: of many at once one gets the image", async (t) => {
  const path = await makeImage(t);
  t.false(await isUsed(path));
  const claims = await Promise.allSettled(Array.from({ length: 10 }, (_, i) => claimUse(path, `machine ${i}`)));
  const refused = claims
    .filter((claim) => claim.status === "rejected")
    .map(({ reason }) => reason as { code: string; message: string });
  t.is(refused.length, 9);
  for (const { code } of refused) t.is(code, "HIB_IMAGE_USED");
  t.true(await isUsed(path));
  const again = (await t.throwsAsync(claimUse(path, "another"), { code: "HIB_IMAGE_USED" }))!;
  t.regex(again.message, new RegExp(`20\\d\\d-.* by machine \\d, process ${process.pid} .*--again`));
  await writeFile(join(path, "used"), ""); // the host died in the middle of it
  await t.throwsAsync(claimUse(path, "another"), { code: "HIB_IMAGE_USED", message: /--again/ });
  await t.notThrowsAsync(openAndVerify(path));
});

test("recordAttempt: counts, and no two get the same number", async (t) => {
  const path = await makeImage(t);
  const counts = await Promise.all(Array.from({ length: 5 }, () => recordAttempt(path)));
  t.deepEqual(counts.sort(), [1, 2, 3, 4, 5]);
  t.is(await recordAttempt(path), 6);
  await t.throwsAsync(recordAttempt(join(path, "nothing")), { code: "HIB_IO" });
});

test("setAside: the image is away from its path, whole, under a name of its own", async (t) => {
  const first = await makeImage(t);
  t.is(await setAside(first, "Corrupt chunk"), `${first}.set-aside-corrupt-chunk`);
  await mkdir(first);
  t.is(await setAside(`${first}/`, "corrupt chunk"), `${first}.set-aside-corrupt-chunk-2`);
  await t.throwsAsync(openImage(first), { code: "HIB_NOT_AN_IMAGE" });
  await t.notThrowsAsync(openAndVerify(`${first}.set-aside-corrupt-chunk`));
  await t.throwsAsync(setAside(first, "x"), { code: "HIB_IO" });
  await t.throwsAsync(setAside(join(`${first}.set-aside-corrupt-chunk`, BLOB_NAME, "x"), "x"), { code: "HIB_IO" });
});

test("removeStalePartials: only those whose process is gone, none of another host", async (t) => {
  const directory = await temporaryDirectory(t);
  const { pid } = spawnSync(process.execPath, ["--version"]);
  // Of a process that is gone, and of one of another life of this container, which had the number that this one has now.
  const me = thisProcess();
  const [gone, stranger] = [processTag({ ...me, pid }), processTag({ ...me, started: "another boot 5" })];
  const stale = [gone, stranger].map((tag) => `.image.partial-${tag}-0123abcd`);
  for (const name of stale) {
    await mkdir(join(directory, name));
    await writeFile(join(directory, name, BLOB_NAME), "x");
  }
  const mine = await createPartial(join(directory, "image"));
  const foreign = `.image.partial-${processTag({ ...me, pid, host: `not-${me.host}` })}-0123abcd`;
  const kept = [basename(dirname(mine.blobPath)), foreign, `.image.partial-${gone}`, `image.partial-${gone}-0123abcd`];
  for (const name of kept.slice(1)) await mkdir(join(directory, name));
  const states = (await listImages(directory)).map(({ name, state, by_pid }) => [name, state, by_pid]);
  t.deepEqual(
    states.sort(),
    [[kept[0], "writing", process.pid], [foreign, "foreign", pid], ...stale.map((name) => [name, "partial", null])].sort(),
    "hib images sees them as the next save does",
  );
  t.deepEqual((await removeStalePartials(directory)).sort(), stale.map((name) => join(directory, name)).sort());
  t.deepEqual((await readdir(directory)).sort(), kept.sort());
  await t.throwsAsync(removeStalePartials(join(directory, "nothing")), { code: "HIB_IO" });
});

test("setAside: not while a resume is at the image; of two at once, who came first goes on", async (t) => {
  const path = await makeImage(t);
  const attempt = await recordAttempt(path);
  await t.throwsAsync(setAside(path, "x"), { code: "HIB_BUSY" });
  await recordOutcome(path, attempt, "HIB_IO", "it failed");
  const names = (await readdir(path)).sort();
  await claimUse(path, "a test");
  await t.throwsAsync(setAside(path, "x"), { code: "HIB_IMAGE_USED" });
  await rm(join(path, "used"));
  t.deepEqual((await readdir(path)).sort(), names, "it leaves no trace");
  const ended = { renamed: 0, resumed: 0, neither: 0 };
  for (let round = 0; round < 60; round++) {
    // It is under way from then on, if its image is still in place: a history that is read during a rename lacks what it names.
    const resume = recordAttempt(path)
      .then((mine) => refuseHeld(path, mine))
      .then(() => stat(join(path, BLOB_NAME)));
    const [aside, resumed] = await Promise.allSettled([setAside(path, "x"), resume]);
    t.false(aside.status === "fulfilled" && resumed.status === "fulfilled", `round ${round}`);
    if (aside.status === "fulfilled") await rename(aside.value, path);
    ended[aside.status === "fulfilled" ? "renamed" : resumed.status === "fulfilled" ? "resumed" : "neither"]++;
    for (const name of await readdir(path)) if (/^(attempt|outcome)-/.test(name)) await rm(join(path, name));
  }
  t.log(ended);
});

test("setAside: notes the number of the last of its attempts: what died by then has had its consequence", async (t) => {
  const path = await makeImage(t);
  const died = (number: number) => writeFile(join(path, `attempt-${number}`), "{}");
  for (const number of [1, 2, 12]) await died(number); // one in between was lost
  t.is(deaths(await readHistory(path)), 3);
  const aside = await setAside(path, "HIB_RESUMES_DIED", "three died");
  t.like((await readHistory(aside)).setAside, { code: "HIB_RESUMES_DIED", message: "three died", attempts: 12 });
  t.is(deaths(await readHistory(aside)), 0);
  await rename(aside, path); // moved back by hand: two more are tried
  await died(13);
  t.is(deaths(await readHistory(path)), 1);
  await died(14);
  t.is(deaths(await readHistory(path)), 2);
});
