/**
 * An image as a stream: what comes in is what went out, byte for byte, and from anything else nothing comes. The image is
 * the one that is kept in the tree.
 */
import { randomUUID } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { cp } from "node:fs/promises";
import { dirname, join } from "node:path";
import { Readable } from "node:stream";
import { buffer } from "node:stream/consumers";
import { setImmediate as turn } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import { HibernaculumError } from "../src/base/errors.js";
import { setFailpoints } from "../src/base/failpoints.js";
import { save } from "../src/hibernate.js";
import { openImage } from "../src/image/directory.js";
import { claimUse, isUsed, recordAttempt } from "../src/image/markers.js";
import {
  BLOB_NAME,
  CATALOGUE_NAME,
  decodeHeader,
  encodeHeader,
  encodeOpening,
  FORMAT_VERSION,
  HEADER_BYTES,
  MACHINE_VERSION,
} from "../src/image/format.js";
import { exportImage, importImage } from "../src/image/stream.js";
import { verifyChunks } from "../src/image/verify.js";
import { judge } from "./fixtures/victim.js";
import { bootMachine, Draws, MIB, scratch, until } from "./support.js";

const KEPT = fileURLToPath(
  new URL(`../../test/fixtures/images/format-${FORMAT_VERSION}-machine-${MACHINE_VERSION}`, import.meta.url),
);

const streamOf = (path: string, options = {}): Promise<Buffer> => buffer(Readable.from(exportImage(path, options)));

async function copyOfKept(t: ExecutionContext): Promise<string> {
  const path = join(scratch(t), "kept");
  await cp(KEPT, path, { recursive: true });
  return path;
}

async function* inPieces(bytes: Buffer, length: () => number): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; ) {
    const piece = bytes.subarray(at, at + length());
    yield piece;
    at += piece.length;
  }
}

/** Imports what must not come in. Returns the code, or what is wrong with how it was refused. */
async function refusal(directory: string, stream: Buffer): Promise<string> {
  const error = await importImage(
    inPieces(stream, () => 16_384),
    join(directory, "image"),
  ).then(
    () => undefined,
    (reason: unknown) => reason,
  );
  const left = readdirSync(directory);
  if (left.length > 0) return `left behind: ${left.join(", ")}`;
  if (!(error instanceof HibernaculumError)) return `not refused: ${String(error)}`;
  const wrong = judge(error, error.code);
  return wrong.length > 0 ? wrong.join(", ") : error.code;
}

/** Where the parts of the kept image's object begin. */
function partsOf(stream: Buffer): { catalogue: number; padding: number; trailer: number } {
  const catalogue = readFileSync(join(KEPT, BLOB_NAME)).length;
  const padding = catalogue + readFileSync(join(KEPT, CATALOGUE_NAME)).length;
  return { catalogue, padding, trailer: stream.length - HEADER_BYTES };
}

test("export, import: the same image byte for byte, whatever pieces it comes in; markers of attempts stay", async (t) => {
  const from = await copyOfKept(t);
  await recordAttempt(from);
  const stream = await streamOf(from);
  const draws = new Draws(t);
  for (const length of [() => 1, () => 4095, () => 2 ** 30, () => draws.below(5000)]) {
    const path = join(scratch(t), "image");
    const progress: [number, number][] = [];
    const imported = await importImage(inPieces(stream, length), path, { onProgress: (...at) => progress.push(at) });
    t.deepEqual(readdirSync(dirname(path)), ["image"]);
    t.deepEqual(readdirSync(path).sort(), [BLOB_NAME, CATALOGUE_NAME]);
    for (const name of [BLOB_NAME, CATALOGUE_NAME])
      t.true(readFileSync(join(path, name)).equals(readFileSync(join(KEPT, name))), name);
    const image = await openImage(path, { machineVersion: MACHINE_VERSION });
    await verifyChunks(image);
    t.deepEqual(imported, { path, header: image.header, bytes: stream.length, used: false });
    t.deepEqual(progress.at(-1), [stream.length, stream.length]);
    image.close();
  }
  t.true((await streamOf(KEPT)).equals(stream), "the same image gives the same stream");
});

test("export: reads no further than its reader, in pieces of at most 1 MiB", async (t) => {
  const path = join(scratch(t), "image");
  const machine = await bootMachine(t, { ramBytes: 32 * MIB });
  machine.spawn("zipf:pages=4000,content=random,rate=1000");
  await until(() => machine.processes().every(({ steps }) => steps > 0), "it runs");
  await save(machine, path, { compression: "none" });
  let done = 0;
  let taken = 0;
  for await (const piece of exportImage(path, { onProgress: (bytes) => (done = bytes) })) {
    t.true(piece.length <= MIB);
    taken += piece.length;
    await turn();
    t.true(done <= taken, "nothing is read ahead");
  }
  t.true(taken > 15 * MIB);
});

test("import: a stream that ends early is refused, wherever it ends", async (t) => {
  const stream = await streamOf(KEPT);
  const { catalogue, padding, trailer } = partsOf(stream);
  const draws = new Draws(t);
  const directory = scratch(t);
  const edges = [0, 4, HEADER_BYTES, catalogue, padding, trailer].flatMap((at) => [at - 1, at, at + 1]);
  const lengths = [...edges, stream.length - 1, ...Array.from({ length: 200 }, () => draws.below(stream.length))];
  for (const length of lengths.filter((bytes) => bytes >= 0))
    t.is(await refusal(directory, stream.subarray(0, length)), "HIB_TRUNCATED", `${length} bytes`);
});

test("import: a stream with a flipped bit is refused, whichever it is", async (t) => {
  const stream = await streamOf(KEPT);
  const { catalogue, padding, trailer } = partsOf(stream);
  const draws = new Draws(t);
  const directory = scratch(t);
  const codeOf = (byte: number): string => {
    if (byte < 4) return "HIB_NOT_AN_IMAGE";
    if (byte >= trailer && byte < trailer + 4) return "HIB_TRUNCATED"; // it does not end with a header
    const inPage = byte >= trailer ? byte - trailer : byte;
    return inPage < 8 ? "HIB_FORMAT_VERSION" : "HIB_CORRUPT";
  };
  const range = (from: number, to: number): number[] => Array.from({ length: to - from }, (_, i) => from + i);
  const sample = (from: number, to: number): number[] => Array.from({ length: 300 }, () => draws.between(from, to - 1));
  const bytes = [
    ...range(0, 260),
    ...sample(260, HEADER_BYTES),
    ...range(HEADER_BYTES, HEADER_BYTES + 4), // the length that the first chunk claims
    ...sample(HEADER_BYTES, catalogue),
    ...sample(catalogue, padding),
    ...range(padding, trailer),
    ...range(trailer, trailer + 260),
    ...sample(trailer + 260, stream.length),
  ];
  for (const byte of bytes) {
    const bit = 1 << draws.below(8);
    stream[byte]! ^= bit;
    t.is(await refusal(directory, stream), codeOf(byte), `bit ${bit} of byte ${byte}`);
    stream[byte]! ^= bit;
  }
  await t.notThrowsAsync(
    importImage(
      inPieces(stream, () => 5000),
      join(directory, "image"),
    ),
  );
});

test("import: what is not one stream is refused", async (t) => {
  const stream = await streamOf(KEPT);
  const directory = scratch(t);
  const otherVersion = (at: number): Buffer => {
    const other = Buffer.from(stream);
    other.writeUInt32LE(other.readUInt32LE(at) + 1, at);
    return other;
  };
  t.is(await refusal(directory, Buffer.concat([stream, Buffer.alloc(1)])), "HIB_CORRUPT");
  t.is(await refusal(directory, Buffer.concat([stream, stream])), "HIB_CORRUPT");
  t.is(await refusal(directory, Buffer.concat([Buffer.alloc(1), stream])), "HIB_NOT_AN_IMAGE");
  t.is(await refusal(directory, readFileSync(join(KEPT, BLOB_NAME))), "HIB_TRUNCATED");
  t.is(await refusal(directory, Buffer.from("an image, honestly")), "HIB_NOT_AN_IMAGE");
  t.is(await refusal(directory, otherVersion(4)), "HIB_FORMAT_VERSION");
  t.is(await refusal(directory, otherVersion(partsOf(stream).trailer + 4)), "HIB_FORMAT_VERSION");
  const another = Buffer.from(stream);
  const opening = decodeHeader(another.subarray(0, HEADER_BYTES), "x");
  another.set(encodeHeader({ ...opening, id: randomUUID() }));
  t.is(await refusal(directory, another), "HIB_CORRUPT", "its two ends are of two images");
});

test("import: an object whose opening could not say what comes, as one that is written while a machine is saved", async (t) => {
  const stream = await streamOf(KEPT);
  const { catalogue, padding, trailer } = partsOf(stream);
  const header = decodeHeader(stream.subarray(trailer), "x");
  t.is(header.catalogueOffset, catalogue, "one read of the end finds everything");
  t.is(header.catalogueBytes, padding - catalogue);
  stream.set(encodeOpening(header));
  const path = join(scratch(t), "image");
  await importImage(
    inPieces(stream, () => 100_000),
    path,
  );
  for (const name of [BLOB_NAME, CATALOGUE_NAME])
    t.true(readFileSync(join(path, name)).equals(readFileSync(join(KEPT, name))), name);
  const directory = scratch(t);
  t.is(await refusal(directory, stream.subarray(0, HEADER_BYTES)), "HIB_TRUNCATED");
  t.is(await refusal(directory, stream.subarray(0, -1)), "HIB_TRUNCATED");
  t.is(await refusal(directory, stream.subarray(0, trailer)), "HIB_TRUNCATED");
  t.is(await refusal(directory, Buffer.concat([stream, Buffer.alloc(4096)])), "HIB_CORRUPT");
  t.is(
    await refusal(directory, Buffer.concat([stream.subarray(0, trailer), Buffer.alloc(4096), stream.subarray(trailer)])),
    "HIB_CORRUPT",
  );
  stream.set(encodeOpening({ ...header, id: randomUUID() }));
  t.is(await refusal(directory, stream), "HIB_CORRUPT");
});

test("import: a stream that breaks is an I/O error that names it", async (t) => {
  const directory = scratch(t);
  const stream = await streamOf(KEPT);
  async function* breaking(): AsyncGenerator<Buffer> {
    yield stream.subarray(0, 20_000);
    throw Object.assign(new Error("the line went dead"), { code: "ECONNRESET" });
  }
  const message = /^reading the wire: the line went dead$/;
  await t.throwsAsync(importImage(breaking(), join(directory, "image"), { name: "the wire" }), { code: "HIB_IO", message });
  t.deepEqual(readdirSync(directory), []);
});

test("import: a path that is taken is refused before anything is read, and left alone", async (t) => {
  const path = await copyOfKept(t);
  let asked = 0;
  async function* source(): AsyncGenerator<Buffer> {
    asked++;
    yield await streamOf(KEPT);
  }
  await t.throwsAsync(importImage(source(), path), { code: "HIB_IMAGE_EXISTS", message: /remove it or choose another/ });
  t.is(asked, 0);
  t.deepEqual(readdirSync(dirname(path)), ["kept"]);
});

test("export: an image that was used only if it is asked for, and then its copy is used as well", async (t) => {
  const path = await copyOfKept(t);
  await claimUse(path, "a test");
  await t.throwsAsync(streamOf(path), { code: "HIB_IMAGE_USED", message: /--again/ });
  const copy = join(scratch(t), "image");
  const { used } = await importImage(exportImage(path, { again: true }), copy);
  t.true(used);
  t.true(await isUsed(copy));
  await t.throwsAsync(claimUse(copy, "another"), { code: "HIB_IMAGE_USED", message: /exported from/ });
});

test("export: an image that is resumed meanwhile is not exported", async (t) => {
  const path = await copyOfKept(t);
  const directory = scratch(t);
  async function* source(): AsyncGenerator<Uint8Array> {
    let first = true;
    for await (const piece of exportImage(path)) {
      if (first) await claimUse(path, "a test");
      first = false;
      yield piece;
    }
  }
  await t.throwsAsync(importImage(source(), join(directory, "image")), { code: "HIB_IMAGE_USED" });
  t.deepEqual(readdirSync(directory), []);
});

test("export: a damaged image is not exported to its end", async (t) => {
  const path = await copyOfKept(t);
  const blob = readFileSync(join(path, BLOB_NAME));
  blob[blob.length - 1]! ^= 1;
  writeFileSync(join(path, BLOB_NAME), blob);
  await t.throwsAsync(streamOf(path), { code: "HIB_CORRUPT", message: /chunk \d+ / });
});

test("export, import: cancelled, nothing is left behind", async (t) => {
  const directory = scratch(t);
  const abort = new AbortController();
  async function* source(): AsyncGenerator<Uint8Array> {
    for await (const piece of exportImage(KEPT)) {
      yield piece;
      if (piece.length > HEADER_BYTES) abort.abort();
    }
  }
  const { signal } = abort;
  await t.throwsAsync(importImage(source(), join(directory, "image"), { signal }), { code: "HIB_CANCELLED" });
  t.deepEqual(readdirSync(directory), []);
  await t.throwsAsync(streamOf(KEPT, { signal }), { code: "HIB_CANCELLED" });
});

// Failure points are the thread's: these run one after the other, before the others.

test.serial("import: at whichever write or step it fails, nothing is left behind", async (t) => {
  t.teardown(() => setFailpoints(undefined));
  const stream = await streamOf(KEPT);
  const traps = ["ENOSPC", "EIO"].flatMap((action) => [1, 2, 3].map((at) => `save.write=${action}@${at}`));
  for (const trap of [
    ...traps,
    "save.sync=EIO",
    "save.sync=ENOSPC@2",
    "save.sync=EIO@3",
    "save.seal=EIO",
    "save.before-rename=EIO",
    "save.after-rename=EIO",
  ]) {
    setFailpoints(trap);
    t.is(await refusal(scratch(t), stream), trap.includes("ENOSPC") ? "HIB_NO_SPACE" : "HIB_IO", trap);
  }
  for (const trap of ["save.write=short", "save.write=short@2"]) {
    setFailpoints(trap);
    const path = join(scratch(t), "image");
    await importImage(
      inPieces(stream, () => 50_000),
      path,
    );
    for (const name of [BLOB_NAME, CATALOGUE_NAME])
      t.true(readFileSync(join(path, name)).equals(readFileSync(join(KEPT, name))), `${trap}: ${name}`);
  }
});
