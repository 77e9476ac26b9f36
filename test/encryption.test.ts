/**
 * Encrypted images: what opens them, what whoever has no key can read of them (the header), and what he can change without being found out
 * (nothing). Most of it is done to one machine that was saved twice, and once more without a key.
 */
import { randomBytes } from "node:crypto";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { buffer } from "node:stream/consumers";
import test, { type ExecutionContext } from "ava";
import { bootOrResume } from "../src/boot.js";
import type { HibernaculumError } from "../src/base/errors.js";
import type { Key } from "../src/base/key.js";
import { FRAME_BYTES } from "../src/base/layout.js";
import { save } from "../src/hibernate.js";
import { BlobReader } from "../src/image/blob.js";
import { CatalogueWriter } from "../src/image/catalogue-writer.js";
import { checksum, loadChecksum } from "../src/image/checksum.js";
import { deriveKeys, keyObject, seal } from "../src/image/cipher.js";
import { decodeChunk, openPiece, sealChunk } from "../src/image/codec.js";
import { type Image, openImage } from "../src/image/directory.js";
import {
  BLOB_NAME,
  CATALOGUE_NAME,
  type Chunk,
  decodeHeader,
  HEADER_BYTES,
  type ImageHeader,
  PIECE_BYTES,
} from "../src/image/format.js";
import { stretch } from "../src/image/key-slots.js";
import { listImages } from "../src/image/list.js";
import { readHistory, recordAttempt, recordOutcome, setAside } from "../src/image/markers.js";
import { SealedReader, writeSealed } from "../src/image/sealed-file.js";
import { exportImage, importImage } from "../src/image/stream.js";
import { verifyChunks } from "../src/image/verify.js";
import { Machine } from "../src/machine.js";
import { diffImages } from "../src/reports/image-diff.js";
import { resume } from "../src/resume.js";
import { edit, headerWord, reheader } from "./damage.js";
import { readDecrypted } from "./decrypting-reader.js";
import { bootMachine, Draws, findWrong, MIB, scratch, until } from "./support.js";

const RAM = 16 * MIB;
const PROGRAMS = ["incrementer:pages=300,rate=20000,seed=7", "random:pages=500,rate=5000,content=random,seed=8", "chaos:seed=9"];
const DIRECTORY = mkdtempSync(join(tmpdir(), "hib-encryption-"));
const SECRET = randomBytes(32);
const KEY: Key = { keyFile: SECRET };
const PASSPHRASE: Key = { passphrase: "Za\u0308une und 12 Ra\u0308der" };
const OLDER = join(DIRECTORY, "older.hib");
const NEWER = join(DIRECTORY, "newer.hib");
const PLAIN = join(DIRECTORY, "plain.hib");
/** Stands in paths, and in nothing else. */
const MOUNTED = join(DIRECTORY, "mounted-where-nobody-looks");
const NAME = "machine-of-that-name";

test.before("one machine, saved three times", async () => {
  mkdirSync(MOUNTED);
  const machine = await Machine.boot({ ramBytes: RAM, vcpus: 2, mounts: [{ path: "/host", host: MOUNTED, readOnly: true }] });
  try {
    for (const text of PROGRAMS) machine.spawn(text);
    const hasRun = (text: string) => machine.processes().some((process) => process.text === text && process.steps > 300);
    await until(() => PROGRAMS.slice(0, 2).every(hasRun), "both have run");
    const options = { keepRunning: true, compression: "none", name: NAME } as const;
    await save(machine, OLDER, { ...options, keys: [PASSPHRASE, KEY], digest: "sha256" });
    await save(machine, NEWER, { ...options, keys: [KEY], digest: "sha256" });
    await save(machine, PLAIN, options);
  } finally {
    await machine.powerOff();
  }
});
test.after.always(() => rmSync(DIRECTORY, { recursive: true, force: true }));

function copyOf(t: ExecutionContext, image: string): string {
  const path = join(scratch(t), "image");
  cpSync(image, path, { recursive: true });
  return path;
}

const headerOf = (path: string): ImageHeader => decodeHeader(readFileSync(join(path, BLOB_NAME)).subarray(0, HEADER_BYTES), path);

/** Opens an image and verifies all of it; the code of what is wrong, or "whole". */
async function judged(path: string, keys: readonly Key[] = [KEY]): Promise<string> {
  let image: Image | undefined;
  try {
    image = await openImage(path, { keys });
    await verifyChunks(image);
    return "whole";
  } catch (error) {
    return (error as HibernaculumError).code ?? String(error);
  } finally {
    image?.close();
  }
}

/** Makes the checksums of the header and of the catalogue agree with what is there: nobody needs a key for that. */
function fixUp(path: string): void {
  const catalogue = readFileSync(join(path, CATALOGUE_NAME));
  const { catalogueHeadBytes: head } = headerOf(path);
  reheader({
    catalogueBytes: catalogue.length,
    catalogueHash: checksum(catalogue),
    catalogueHeadHash: checksum(catalogue.subarray(0, head)),
    catalogueDigest: null,
  })(path);
}

test("each key opens the image, and by each it is the same; the machine goes on exactly", async (t) => {
  const opened = await Promise.all([[KEY], [PASSPHRASE]].map((keys) => openImage(OLDER, { keys })));
  for (const image of opened) {
    const { chunks } = await verifyChunks(image);
    t.is(chunks, image.header.chunks);
    t.is(image.catalogue.meta["name"], NAME);
    t.deepEqual(findWrong(image.memory()), []);
    image.close();
  }
  // However it was typed, and whatever keys do not fit are tried before.
  const composed = { passphrase: "Zäune und 12 Räder" };
  t.is(await judged(OLDER, [{ keyFile: randomBytes(32) }, composed]), "whole");
  const machine = await bootMachine(t, { ramBytes: RAM, mounts: [{ path: "/host", host: MOUNTED, readOnly: true }] });
  const steps: string[] = [];
  await resume(machine, copyOf(t, OLDER), { keys: [KEY], onStep: ({ name }) => void steps.push(name) });
  t.true(steps.includes("key"));
  const before = machine.processes().reduce((sum, process) => sum + process.steps, 0);
  await until(() => machine.processes().reduce((sum, process) => sum + process.steps, 0) > before + 1000, "it goes on");
  const path = join(scratch(t), "again");
  await save(machine, path, { keys: [KEY] });
  const again = await openImage(path, { keys: [KEY] });
  t.deepEqual(findWrong(again.memory()), []);
  again.close();
});

test("export, import: byte for byte, and not without the key", async (t) => {
  const stream = await buffer(Readable.from(exportImage(OLDER, { keys: [KEY] })));
  const directory = scratch(t);
  await importImage(Readable.from([stream]), join(directory, "image"), { keys: [KEY] });
  for (const name of [BLOB_NAME, CATALOGUE_NAME])
    t.true(readFileSync(join(directory, "image", name)).equals(readFileSync(join(OLDER, name))), name);
  const importing = (bytes: Buffer, keys?: readonly Key[]): Promise<unknown> =>
    importImage(Readable.from([bytes]), join(directory, "other"), keys === undefined ? {} : { keys });
  await t.throwsAsync(importing(stream), { code: "HIB_KEY_NEEDED" });
  await t.throwsAsync(importing(stream, [{ keyFile: randomBytes(32) }]), { code: "HIB_KEY_WRONG" });
  await t.throwsAsync(buffer(Readable.from(exportImage(OLDER))), { code: "HIB_KEY_NEEDED" });
  const damagedChunk = Buffer.from(stream);
  damagedChunk[HEADER_BYTES + 5000]! ^= 1;
  await t.throwsAsync(importing(damagedChunk, [KEY]), { code: "HIB_CORRUPT", message: /not what was encrypted/ });
  t.deepEqual(readdirSync(directory), ["image"]);
});

test("diff: two encrypted images, and one with its plain copy", async (t) => {
  const images = [
    await openImage(OLDER, { keys: [KEY] }),
    await openImage(NEWER, { keys: [KEY] }),
    await openImage(PLAIN, { keys: () => Promise.reject(new Error("nobody is asked for a key of a plain image")) }),
  ];
  const [older, newer, plain] = images as [Image, Image, Image];
  t.true((await diffImages(older, older)).same);
  t.false((await diffImages(older, newer)).same);
  t.true((await diffImages(newer, plain)).frames.same > 100);
  for (const image of images) image.close();
});

test("a reader made from the document alone sees what this program sees", async (t) => {
  await loadChecksum();
  for (const secret of [{ keyFile: SECRET }, PASSPHRASE as { passphrase: string }]) {
    const { frames, processes } = readDecrypted(OLDER, secret);
    const image = await openImage(OLDER, { keys: [KEY] });
    const memory = image.memory();
    t.is(frames.size, image.header.frames);
    for (const [pfn, bytes] of frames) if (!bytes.equals(memory.readFrame(pfn))) t.fail(`frame ${pfn}`);
    t.deepEqual(
      processes.map(({ pid, name }) => [pid, name]),
      image.catalogue.processes().map(({ pid, name }) => [pid, name]),
    );
    image.close();
  }
});

test("no key, another one, one for an image that has none", async (t) => {
  t.is(await judged(OLDER, []), "HIB_KEY_NEEDED");
  t.is(await judged(OLDER, [{ keyFile: randomBytes(32) }]), "HIB_KEY_WRONG");
  t.is(await judged(NEWER, [PASSPHRASE]), "HIB_KEY_WRONG", "there is no slot for one");
  t.is(await judged(OLDER, [{ passphrase: "Zaune und 12 Rader" }]), "HIB_KEY_WRONG");
  t.is(await judged(PLAIN), "HIB_KEY_WRONG", "or whoever may write could put a plain image there");
  await t.throwsAsync(openImage(OLDER), { message: /^\S+ is encrypted: .*--key-file/ });
  const asked: string[] = [];
  const keys = (image: string): Promise<Key[]> => Promise.resolve(asked.push(image) === 1 ? [KEY] : []);
  (await openImage(OLDER, { keys })).close();
  await t.throwsAsync(openImage(OLDER, { keys }), { code: "HIB_KEY_NEEDED" });
  t.deepEqual(asked, [OLDER, OLDER]);
});

test("hib images says of an encrypted image what its header says, and finds damage that needs no key", async (t) => {
  const path = copyOf(t, OLDER);
  const [entry] = await listImages(path);
  const { state, keys, ram_bytes, processes, error } = entry!;
  t.deepEqual(
    { state, keys, ram_bytes, processes, error },
    {
      state: "complete",
      keys: ["passphrase", "key file"],
      ram_bytes: RAM,
      processes: null,
      error: null,
    },
  );
  edit(path, CATALOGUE_NAME, (bytes) => bytes.fill(0, 100, 101));
  t.is((await listImages(path))[0]!.state, "damaged");
});

test("a boot with another key, or none, leaves the image where it is", async (t) => {
  const path = copyOf(t, OLDER);
  for (const [keys, code] of [
    [[{ keyFile: randomBytes(32) }], "HIB_KEY_WRONG"],
    [undefined, "HIB_KEY_NEEDED"],
  ] as const) {
    const result = await bootOrResume(await bootMachine(t, { ramBytes: RAM }), path, keys === undefined ? {} : { keys });
    if (result.how !== "booted" || result.found !== "image") return t.fail();
    t.is(result.error.code, code);
    t.is(result.setAside, null);
  }
  t.is(await judged(path), "whole");
});

test("nothing in the image can be read but the header: no memory, name, path, register or row", async (t) => {
  const plain = await openImage(PLAIN);
  const memory = plain.memory();
  const wanted: [string, Buffer][] = [
    MOUNTED,
    NAME,
    OLDER,
    NEWER,
    PLAIN,
    "incrementer",
    "chaos",
    '"registers":["',
    "CREATE TABLE",
    "SQLite format 3",
  ].map((text) => [text, Buffer.from(text)]);
  // Bytes of frames that hold something, as they are in both: programs have not written to all of them in between.
  for (let pfn = 0; pfn < plain.header.ramFrames; pfn++) {
    const bytes = Buffer.from(memory.readFrame(pfn).subarray(1024, 1056));
    if (new Set(bytes).size > 16) wanted.push([`frame ${pfn}`, bytes]);
  }
  plain.close();
  t.true(wanted.length > 300, `${wanted.length}`);
  const found = (path: string): string[] => {
    const all = Buffer.concat(readdirSync(path).map((name) => readFileSync(join(path, name))));
    return wanted.filter(([, bytes]) => all.includes(bytes)).map(([what]) => what);
  };
  for (const image of [OLDER, NEWER]) t.deepEqual(found(image), []);
  t.is(found(PLAIN).length, wanted.length - 2, "all of that is there if nothing is encrypted, but where the others are");
});

test("a flipped bit is found wherever it is, also by who makes the checksums agree", async (t) => {
  const path = copyOf(t, NEWER);
  const draws = new Draws(t);
  const blob = readFileSync(join(path, BLOB_NAME));
  const catalogue = readFileSync(join(path, CATALOGUE_NAME));
  const flipped = (bytes: Buffer, at: number): Buffer => {
    const copy = Buffer.from(bytes);
    copy[at]! ^= 1 << draws.below(8);
    return copy;
  };
  // Words, lengths, slots and tags of the header, and what is reserved.
  const places = [4, 16, 36, 60, 64, 72, 96, 104, 120, 128, 160, 192, 320, 324, 328, 359, 512, 528, 560, 592, 639, 640, 4087];
  for (const at of [...places, ...Array.from({ length: 60 }, () => draws.below(HEADER_BYTES - 8))]) {
    const copy = flipped(blob, at);
    copy.writeBigUInt64LE(checksum(copy.subarray(0, HEADER_BYTES - 8)), HEADER_BYTES - 8);
    writeFileSync(join(path, BLOB_NAME), copy);
    t.regex(
      await judged(path),
      /^HIB_(CORRUPT|FORMAT_VERSION|NOT_AN_IMAGE|KEY_WRONG|TRUNCATED|RAM_TOO_LARGE)$/,
      `byte ${at} of the header`,
    );
  }
  for (const at of [0, PIECE_BYTES - 1, PIECE_BYTES + 3, catalogue.length - 1].filter((place) => place < catalogue.length)) {
    writeFileSync(join(path, BLOB_NAME), blob);
    writeFileSync(join(path, CATALOGUE_NAME), flipped(catalogue, at));
    t.is(await judged(path), "HIB_CORRUPT");
    fixUp(path);
    t.is(await judged(path), "HIB_CORRUPT", `byte ${at} of the catalogue`);
  }
  writeFileSync(join(path, CATALOGUE_NAME), catalogue);
  for (let i = 0; i < 20; i++) {
    writeFileSync(join(path, BLOB_NAME), flipped(blob, HEADER_BYTES + draws.below(blob.length - HEADER_BYTES)));
    t.is(await judged(path), "HIB_CORRUPT", "a chunk");
  }
  writeFileSync(join(path, BLOB_NAME), blob);
  t.is(await judged(path), "whole");
});

test("chunks and pieces that are exchanged, come from an older image, or have another's row, are found", async (t) => {
  const path = copyOf(t, NEWER);
  const [newer, older] = [await openImage(path, { keys: [KEY] }), await openImage(OLDER, { keys: [KEY] })];
  t.teardown(() => [newer, older].map((image) => image.close()));
  const blob = readFileSync(join(path, BLOB_NAME));
  const stored = (image: Image, { offset, stored: length }: { offset: number; stored: number }): Buffer => {
    const bytes = Buffer.alloc(length);
    image.blob.readSync(bytes, offset, length);
    return bytes;
  };
  const put = async (...parts: [at: number, bytes: Buffer][]): Promise<string> => {
    const copy = Buffer.from(blob);
    for (const [at, bytes] of parts) bytes.copy(copy, at);
    writeFileSync(join(path, BLOB_NAME), copy);
    return judged(path);
  };
  const long = (image: Image) => image.chunks.filter((chunk) => chunk.stored >= 2 * PIECE_BYTES);
  const [a, b] = long(newer) as [Chunk, Chunk];
  const [then] = long(older) as [Chunk];
  const [mine, theirs] = [stored(newer, a), stored(newer, b)];
  const twoOf = (bytes: Buffer): Buffer => bytes.subarray(0, 2 * PIECE_BYTES);
  const [first, second] = [mine.subarray(0, PIECE_BYTES), mine.subarray(PIECE_BYTES, 2 * PIECE_BYTES)];
  t.is(await put([a.offset, twoOf(theirs)], [b.offset, twoOf(mine)]), "HIB_CORRUPT", "pieces of two chunks, exchanged");
  t.is(await put([a.offset, second], [a.offset + PIECE_BYTES, first]), "HIB_CORRUPT", "two pieces of a chunk, exchanged");
  t.is(await put([a.offset, twoOf(stored(older, then))]), "HIB_CORRUPT", "pieces of the older image");
  t.is(await put(), "whole");
  // With the other's row, too, were it possible to write that: the id is in the nonce, the key is of one image.
  t.notThrows(() => decodeChunk(a, mine, newer.blob.key));
  t.throws(() => decodeChunk({ ...b, id: a.id }, theirs, newer.blob.key), { code: "HIB_CORRUPT" });
  t.throws(() => decodeChunk({ ...then, id: a.id }, stored(older, then), newer.blob.key), { code: "HIB_CORRUPT" });
  t.throws(() => decodeChunk(a, mine.subarray(0, -FRAME_BYTES), newer.blob.key), { code: "HIB_CORRUPT" });
  t.throws(() => decodeChunk({ ...a, pieces: a.pieces.subarray(16) }, mine, newer.blob.key), { code: "HIB_CORRUPT" });
  // A piece can be opened without the others, and only in its place.
  const piece = Buffer.alloc(PIECE_BYTES);
  openPiece(a, 1, second, newer.blob.key!, piece);
  t.true(piece.equals(decodeChunk(a, mine, newer.blob.key).subarray(PIECE_BYTES, 2 * PIECE_BYTES)));
  t.throws(() => openPiece(a, 0, second, newer.blob.key!, piece), { code: "HIB_CORRUPT", message: /piece 0/ });
  t.true(
    piece.every((byte) => byte === 0),
    "what is not authentic is not left there",
  );
});

test("a catalogue, a header or slots of another image, and what was cut off, are found", async (t) => {
  const from = (name: string) => readFileSync(join(OLDER, name));
  const path = copyOf(t, NEWER);
  const [blob, catalogue] = [BLOB_NAME, CATALOGUE_NAME].map((name) => readFileSync(join(path, name))) as [Buffer, Buffer];
  const { encryption } = headerOf(path);
  const slots = (bytes: Uint8Array) => reheader({ encryption: { ...encryption!, slots: bytes } });
  const others = headerOf(OLDER).encryption!.slots;
  const olderCatalogue = (): void => writeFileSync(join(path, CATALOGUE_NAME), from(CATALOGUE_NAME));
  const olderHeader = (): void =>
    edit(path, BLOB_NAME, (bytes) => Buffer.concat([from(BLOB_NAME).subarray(0, HEADER_BYTES), bytes.subarray(HEADER_BYTES)]));
  const cut = (name: string, length: number) => (): void => edit(path, name, (bytes) => bytes.subarray(0, length));
  const segment = PIECE_BYTES + 16;
  type Change = (path: string) => void;
  const changes: [what: string, code: RegExp, ...changes: Change[]][] = [
    ["the older catalogue", /CORRUPT/, olderCatalogue, fixUp],
    ["the older catalogue and header", /CORRUPT|TRUNCATED/, olderCatalogue, olderHeader],
    ["the older image's slots", /CORRUPT/, slots(others)],
    ["one slot more", /CORRUPT/, slots(Buffer.concat([encryption!.slots, others]))],
    ["another id", /CORRUPT/, reheader({ id: headerOf(OLDER).id })],
    ["another time", /CORRUPT/, reheader({ time: 1e12 })],
    ["a catalogue that is cut", /CORRUPT/, cut(CATALOGUE_NAME, catalogue.length - 16), fixUp],
    [
      "a catalogue of whole segments",
      /CORRUPT/,
      cut(CATALOGUE_NAME, Math.floor((catalogue.length - 1) / segment) * segment),
      fixUp,
    ],
    [
      "a blob that is cut",
      /CORRUPT/,
      cut(BLOB_NAME, blob.length - FRAME_BYTES),
      reheader({ blobBytes: blob.length - FRAME_BYTES }),
    ],
    ["no encryption", /FORMAT_VERSION/, headerWord(32, 0)],
    ["another cipher", /FORMAT_VERSION/, headerWord(320, 2)],
    ["no slot", /FORMAT_VERSION/, headerWord(324, 0)],
    ["nine slots", /FORMAT_VERSION/, headerWord(324, 9)],
  ];
  for (const [what, code, ...inflict] of [...changes, ["nothing", /^whole$/] as const]) {
    writeFileSync(join(path, BLOB_NAME), blob);
    writeFileSync(join(path, CATALOGUE_NAME), catalogue);
    for (const change of inflict) change(path);
    t.regex(await judged(path), code, what);
  }
});

test("no nonce is used twice under a key, in an image or a catalogue, and no two images have a key in common", async (t) => {
  // Zeros encrypt to the stream of their nonce: where two are alike, two nonces are.
  const path = join(scratch(t), "file");
  const key = keyObject(randomBytes(32));
  const streams: Uint8Array[] = [];
  for (const id of [0, 1, 2, 65_536]) {
    const stored = new Uint8Array(4 * PIECE_BYTES);
    sealChunk(key, id, stored);
    for (let at = 0; at < stored.length; at += PIECE_BYTES) streams.push(stored.subarray(at, at + 64));
  }
  writeFileSync(path, "");
  await writeSealed(path, new Uint8Array(4 * PIECE_BYTES), deriveKeys(randomBytes(32)).catalogue);
  for (let segment = 0; segment < 4; segment++)
    streams.push(
      readFileSync(path)
        .subarray(segment * (PIECE_BYTES + 16))
        .subarray(0, 64),
    );
  const dataKey = randomBytes(32);
  for (const { chunks, catalogue } of [deriveKeys(dataKey), deriveKeys(randomBytes(32))])
    for (const each of [chunks, catalogue]) {
      const bytes = new Uint8Array(64);
      seal(each, 0, 0, bytes);
      streams.push(bytes);
    }
  t.is(new Set(streams.map((bytes) => Buffer.from(bytes).toString("hex"))).size, streams.length);
});

test("segments of a file are found if they are changed, exchanged or cut off", async (t) => {
  const path = join(scratch(t), "file");
  const plain = randomBytes(3 * PIECE_BYTES + 100);
  const key = keyObject(randomBytes(32));
  writeFileSync(path, "");
  await writeSealed(path, Buffer.from(plain), key);
  const sealed = readFileSync(path);
  const segment = PIECE_BYTES + 16;
  const read = (bytes: Uint8Array, offset: number, length: number): Buffer => {
    writeFileSync(path, bytes);
    const file = new BlobReader(path);
    try {
      const into = Buffer.alloc(length);
      new SealedReader(file, bytes.length, key).readSync(into, offset, length);
      return into;
    } finally {
      file.close();
    }
  };
  for (const [offset, length] of [
    [0, plain.length],
    [0, 100],
    [PIECE_BYTES - 1, 2],
    [2 * PIECE_BYTES, PIECE_BYTES],
    [3 * PIECE_BYTES, 100],
  ] as const)
    t.true(read(sealed, offset, length).equals(plain.subarray(offset, offset + length)), `${length} bytes from ${offset}`);
  const exchanged = Buffer.concat([
    sealed.subarray(segment, 2 * segment),
    sealed.subarray(0, segment),
    sealed.subarray(2 * segment),
  ]);
  const flipped = Buffer.from(sealed);
  flipped[2 * segment + 5]! ^= 4;
  t.throws(() => read(exchanged, 0, 1), { code: "HIB_CORRUPT" });
  t.throws(() => read(flipped, 2 * PIECE_BYTES, 1), { code: "HIB_CORRUPT" });
  t.notThrows(() => read(flipped, 0, PIECE_BYTES));
  t.throws(() => read(sealed.subarray(0, -1), 3 * PIECE_BYTES, 1), { code: "HIB_CORRUPT" });
  t.throws(() => read(sealed.subarray(0, 3 * segment), 3 * PIECE_BYTES, 1), { code: "HIB_TRUNCATED" });
});

test("a catalogue that is to be encrypted is on no disk before it is", async (t) => {
  const path = join(scratch(t), "catalogue");
  await loadChecksum();
  const writer = CatalogueWriter.create(path, keyObject(randomBytes(32)));
  const nothing = { regions: [], chunks: [], extents: [], references: [], processes: [], mappings: [], objects: [], blocks: [] };
  writer.write({ meta: { name: NAME }, ...nothing, files: [], mounts: [{ path: "/", host: MOUNTED, readOnly: true }] });
  t.is(readFileSync(path).length, 0);
  t.deepEqual(readdirSync(join(path, "..")), ["catalogue"]);
  const { catalogueBytes, catalogueHeadBytes } = await writer.close();
  t.is(readFileSync(path).length, catalogueBytes);
  t.true(catalogueHeadBytes <= catalogueBytes && catalogueHeadBytes > 4096);
  t.false(readFileSync(path).includes(NAME));
});

test("a slot that asks for more memory or time than any writer does is refused before it gets any", async (t) => {
  const path = copyOf(t, OLDER);
  const slot = 512;
  for (const [log2n, r, p] of [
    [24, 8, 1],
    [63, 8, 1],
    [0xffffffff, 1, 1],
    [17, 0x7fffffff, 1],
    [17, 8, 0x7fffffff],
    [17, 0, 1],
    [0, 8, 1],
    [17, 8, 3],
  ] as const) {
    for (const [i, word] of [log2n, r, p].entries()) headerWord(slot + 4 + 4 * i, word)(path);
    const before = process.cpuUsage();
    await t.throwsAsync(openImage(path, { keys: [PASSPHRASE] }), {
      code: "HIB_CORRUPT",
      message: /scrypt with N = 2\^\d+, r = \d+/,
    });
    t.true(process.cpuUsage(before).user < 20e6, "it was not computed");
  }
  await t.throwsAsync(stretch(Buffer.from("x"), randomBytes(32), { log2n: 14, r: 8, p: 1 }, 2 ** 20), {
    code: "HIB_NO_MEMORY",
    message: /takes 16 MiB/,
  });
});

test("markers beside an encrypted image say what happened by its code: the text of an error may name paths", async (t) => {
  const text = `${MOUNTED} is not allowed`;
  for (const [image, noted] of [
    [OLDER, false],
    [PLAIN, true],
  ] as const) {
    const path = copyOf(t, image);
    await recordOutcome(path, await recordAttempt(path), "HIB_NOT_ALLOWED", text);
    const aside = await setAside(path, "HIB_NOT_ALLOWED", text);
    const { attempts, setAside: why } = await readHistory(aside);
    t.is(attempts[0]!.outcome!.code, "HIB_NOT_ALLOWED");
    t.is(attempts[0]!.outcome!.message === text, noted);
    t.is(why!.message === text, noted);
    const all = readdirSync(aside).map((name) => readFileSync(join(aside, name), "latin1"));
    t.is(
      all.slice(1).some((bytes) => bytes.includes("where-nobody-looks") && !bytes.startsWith("SQLite")),
      noted,
    );
  }
});

test("what is no key is refused, and leaves nothing behind", async (t) => {
  const machine = await bootMachine(t, { ramBytes: RAM });
  const directory = scratch(t);
  const short = join(directory, "short");
  writeFileSync(short, randomBytes(31));
  const refused = (keys: unknown, expected: { code: string; message?: RegExp }): Promise<unknown> =>
    t.throwsAsync(save(machine, join(directory, "image"), { keepRunning: true, keys: keys as Key[] }), expected);
  for (const keys of [
    [],
    [{}],
    [{ passphrase: "" }],
    [{ passphrase: "x", keyFile: "y" }],
    "x",
    Array.from({ length: 9 }, () => KEY),
  ])
    await refused(keys, { code: "HIB_USAGE", message: /keys must be a list/ });
  await refused([{ keyFile: short }], { code: "HIB_USAGE", message: /short: a key file has 32 to/ });
  await refused([{ keyFile: "/dev/zero" }], { code: "HIB_USAGE", message: /32 to 4096/ });
  await refused([{ keyFile: join(directory, "none") }], { code: "HIB_IO" });
  t.deepEqual(readdirSync(directory), ["short"]);
  const many = Array.from({ length: 8 }, () => ({ keyFile: randomBytes(32) }));
  await save(machine, join(directory, "image"), { keepRunning: true, keys: many });
  for (const key of [many[0]!, many[7]!]) t.is(await judged(join(directory, "image"), [key]), "whole");
});
