/**
 * Bad images: whatever is wrong with an image is found before the first frame is patched, and told in one line with a
 * code (S0.7, S2.1, S2.5). A machine that was to resume it runs on, exact.
 *
 * The image is small, so that every byte of its header and of its catalogue can be changed, and thousands of its data.
 * Every sweep begins and ends with the image unharmed, which must pass.
 */
import {
  closeSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { chmod, cp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import test, { type ExecutionContext } from "ava";
import type { ErrorCode, HibernaculumError } from "../src/base/errors.js";
import { save } from "../src/hibernate.js";
import { loadChecksum } from "../src/image/checksum.js";
import { openImage } from "../src/image/directory.js";
import { claimUse, isUsed } from "../src/image/markers.js";
import { BLOB_NAME, CATALOGUE_NAME, CODEC_LZ4, FORMAT_VERSION, HEADER_BYTES, MACHINE_VERSION } from "../src/image/format.js";
import { Machine } from "../src/machine.js";
import { resume } from "../src/resume.js";
import { judge, Victim } from "./fixtures/victim.js";
import { Draws, MIB, scratch, until } from "./support.js";
import { edit, examine, reheader } from "./damage.js";

const RAM_BYTES = 8 * MIB;
/** Bytes of the header that mean something; behind them are zeros and the checksum. */
const FIELD_BYTES = 80;

/** The good image; nobody changes it. */
const directory = mkdtempSync(join(tmpdir(), "hib-test-"));
const original = join(directory, "image");
test.after.always(() => rm(directory, { recursive: true }));

test.before("an image of a small machine", async () => {
  const machine = await Machine.boot({ ramBytes: RAM_BYTES, vcpus: 1 });
  // More pages than the machines have that are to resume it, so that some are loaded directly; they compress well.
  for (const text of ["incrementer:pages=1100,content=zero,seed=1,rate=200000", "random:pages=8,content=random,seed=2,rate=5000"])
    machine.spawn(text);
  await until(
    () => machine.processes().every(({ steps }) => steps > 0) && machine.processes()[0]!.steps > 1100,
    "every page is there",
  );
  await save(machine, original);
});

async function copyOf(t: ExecutionContext): Promise<string> {
  const path = join(scratch(t), "image");
  await cp(original, path, { recursive: true });
  return path;
}

/** One file of a copy of the image, to be changed and changed back. */
class Patient {
  readonly path: string;
  readonly bytes: Buffer;
  readonly #descriptor: number;
  readonly #counts: Record<string, number> = {};
  readonly #surprises: string[] = [];

  constructor(path: string, file: string) {
    this.path = path;
    this.bytes = readFileSync(join(path, file));
    this.#descriptor = openSync(join(path, file), "r+");
  }

  async expect(code: ErrorCode | "whole", what: string): Promise<void> {
    const found = await examine(this.path);
    this.#counts[found] = (this.#counts[found] ?? 0) + 1;
    if (found !== code) this.#surprises.push(`${what}: ${found}, expected ${code}`);
  }

  async flip(byte: number, bit: number, code: ErrorCode): Promise<void> {
    writeSync(this.#descriptor, Uint8Array.of(this.bytes[byte]! ^ (1 << bit)), 0, 1, byte);
    await this.expect(code, `bit ${bit} of byte ${byte}`);
    writeSync(this.#descriptor, this.bytes, byte, 1, byte);
  }

  /** Cuts the file to ever shorter lengths, then restores it. */
  async truncate(lengths: Iterable<number>, codeOf: (length: number) => ErrorCode): Promise<void> {
    for (const length of [...new Set(lengths)].sort((a, b) => b - a)) {
      ftruncateSync(this.#descriptor, length);
      await this.expect(codeOf(length), `cut to ${length} bytes`);
    }
    writeSync(this.#descriptor, this.bytes, 0, this.bytes.length, 0);
  }

  done(t: ExecutionContext): void {
    closeSync(this.#descriptor);
    t.log(this.#counts);
    t.deepEqual(this.#surprises.slice(0, 10), []);
  }
}

/** Examines one file of the image again and again, unharmed before and after. */
async function operate(
  t: ExecutionContext,
  file: string,
  sweep: (patient: Patient, draws: Draws) => Promise<void>,
): Promise<void> {
  const patient = new Patient(await copyOf(t), file);
  await patient.expect("whole", "before");
  await sweep(patient, new Draws(t));
  await patient.expect("whole", "after");
  patient.done(t);
}

/** What a reader that trusts nothing before it can be trusted makes of a changed byte of the header. */
const codeOfHeaderByte = (byte: number): ErrorCode =>
  byte < 4 ? "HIB_NOT_AN_IMAGE" : byte < 8 ? "HIB_FORMAT_VERSION" : "HIB_CORRUPT";

test("any bit of the header: every one of its fields, and one of every other byte", (t) =>
  operate(t, BLOB_NAME, async (patient, draws) => {
    for (let bit = 0; bit < FIELD_BYTES * 8; bit++) await patient.flip(bit >> 3, bit & 7, codeOfHeaderByte(bit >> 3));
    for (let byte = FIELD_BYTES; byte < HEADER_BYTES; byte++) await patient.flip(byte, draws.below(8), "HIB_CORRUPT");
  }));

test("any bit of the catalogue: one of every byte", (t) =>
  operate(t, CATALOGUE_NAME, async (patient, draws) => {
    for (let byte = 0; byte < patient.bytes.length; byte++) await patient.flip(byte, draws.below(8), "HIB_CORRUPT");
  }));

test("any bit of the chunks: 3,000 of them", (t) =>
  operate(t, BLOB_NAME, async (patient, draws) => {
    for (let i = 0; i < 3000; i++)
      await patient.flip(draws.between(HEADER_BYTES, patient.bytes.length - 1), draws.below(8), "HIB_CORRUPT");
  }));

for (const file of [BLOB_NAME, CATALOGUE_NAME]) {
  test(`${file}: of any other length`, (t) =>
    operate(t, file, async (patient, draws) => {
      const { length } = patient.bytes;
      const lengths = Array.from({ length: 5000 }, (_, i) => i);
      for (let page = 4096; page < length; page += 4096) lengths.push(page - 1, page, page + 1);
      for (let i = 0; i < 1000; i++) lengths.push(draws.below(length));
      lengths.push(length - 1);
      await patient.truncate(lengths, (cut) => (file === BLOB_NAME && cut < 4 ? "HIB_NOT_AN_IMAGE" : "HIB_TRUNCATED"));
      for (const more of [1, 4096]) {
        writeFileSync(join(patient.path, file), Buffer.concat([patient.bytes, Buffer.alloc(more)]));
        await patient.expect("HIB_TRUNCATED", `${more} bytes more`);
      }
      writeFileSync(join(patient.path, file), patient.bytes);
    }));
}

/** Changes the highest bit of a byte. */
function flipped(bytes: Buffer, at: number): Buffer {
  bytes[at]! ^= 0x80;
  return bytes;
}

/** Puts something else where a file or directory was. */
async function replace(path: string, put: () => void): Promise<void> {
  await rm(path, { recursive: true });
  put();
}

interface Ailment {
  what: string;
  /** Makes the copy of a good image at `path` a bad one. */
  inflict(path: string): unknown;
  code: ErrorCode;
  /** What the message must say besides. */
  says: RegExp;
}

const AILMENTS: Ailment[] = [
  { what: "no such path", inflict: (path) => rm(path, { recursive: true }), code: "HIB_NOT_AN_IMAGE", says: /no image at/ },
  {
    what: "a file",
    code: "HIB_NOT_AN_IMAGE",
    says: /no image at/,
    inflict: (path) => replace(path, () => writeFileSync(path, "HBRN")),
  },
  {
    what: "an empty directory",
    code: "HIB_NOT_AN_IMAGE",
    says: /not an image.*no blob/,
    inflict: (path) => replace(path, () => mkdirSync(path)),
  },
  { what: "no blob", inflict: (path) => rm(join(path, BLOB_NAME)), code: "HIB_NOT_AN_IMAGE", says: /no blob/ },
  { what: "no catalogue", inflict: (path) => rm(join(path, CATALOGUE_NAME)), code: "HIB_NOT_AN_IMAGE", says: /no catalogue/ },
  {
    what: "a blob that is a directory",
    code: "HIB_NOT_AN_IMAGE",
    says: /blob is no regular file/,
    inflict: (path) => replace(join(path, BLOB_NAME), () => mkdirSync(join(path, BLOB_NAME))),
  },
  {
    what: "random bytes",
    inflict: (path) => edit(path, BLOB_NAME, (blob) => blob.map((_, i) => (i * 2654435761) >>> 24)),
    code: "HIB_NOT_AN_IMAGE",
    says: /header/,
  },
  {
    what: "an empty blob",
    inflict: (path) => edit(path, BLOB_NAME, () => Buffer.alloc(0)),
    code: "HIB_NOT_AN_IMAGE",
    says: /header/,
  },
  {
    what: "another magic",
    inflict: (path) => edit(path, BLOB_NAME, (blob) => Buffer.concat([Buffer.from("TXOI"), blob.subarray(4)])),
    code: "HIB_NOT_AN_IMAGE",
    says: /header/,
  },
  {
    what: "another format version",
    code: "HIB_FORMAT_VERSION",
    says: new RegExp(`version ${FORMAT_VERSION + 1}.*reads version ${FORMAT_VERSION}`),
    inflict: (path) => edit(path, BLOB_NAME, (blob) => blob.fill(FORMAT_VERSION + 1, 4, 5)),
  },
  {
    what: "another machine version",
    inflict: reheader({ machineVersion: MACHINE_VERSION + 1 }),
    code: "HIB_MACHINE_VERSION",
    says: /machine version/,
  },
  { what: "a header that counts one frame more", inflict: reheader({ frames: 1 }), code: "HIB_CORRUPT", says: /frames/ },
  {
    what: "a blob without its last page",
    inflict: (path) => edit(path, BLOB_NAME, (blob) => blob.subarray(0, -4096)),
    code: "HIB_TRUNCATED",
    says: /blob is \d+ bytes long/,
  },
  {
    what: "a blob with a byte more",
    inflict: (path) => edit(path, BLOB_NAME, (blob) => Buffer.concat([blob, Buffer.alloc(1)])),
    code: "HIB_TRUNCATED",
    says: /blob is \d+ bytes long/,
  },
  {
    what: "a catalogue without its last byte",
    inflict: (path) => edit(path, CATALOGUE_NAME, (bytes) => bytes.subarray(0, -1)),
    code: "HIB_TRUNCATED",
    says: /catalogue.* bytes long/,
  },
  {
    what: "a bit of the header",
    inflict: (path) => edit(path, BLOB_NAME, (blob) => flipped(blob, 40)),
    code: "HIB_CORRUPT",
    says: /header.*checksum/,
  },
  {
    what: "a bit of the catalogue",
    inflict: (path) => edit(path, CATALOGUE_NAME, (bytes) => flipped(bytes, bytes.length >> 1)),
    code: "HIB_CORRUPT",
    says: /catalogue.*checksum/,
  },
  {
    what: "a bit of the first chunk",
    inflict: (path) => edit(path, BLOB_NAME, (blob) => flipped(blob, HEADER_BYTES)),
    code: "HIB_CORRUPT",
    says: /chunk \d+ .*checksum/,
  },
  {
    what: "the last bit",
    inflict: (path) => edit(path, BLOB_NAME, (blob) => flipped(blob, blob.length - 1)),
    code: "HIB_CORRUPT",
    says: /chunk \d+ .*checksum/,
  },
  { what: "used before", inflict: (path) => claimUse(path, "a test"), code: "HIB_IMAGE_USED", says: /resumed before.*--again/ },
];

/** A machine with boot processes and others, so that nothing patched into it would go unnoticed. */
function booted(t: ExecutionContext, ramBytes: number): Promise<Victim> {
  const victim = Victim.boot(scratch(t), { ramBytes }, undefined, ["boot-progress", "boot-housekeeping:100"]);
  t.teardown(async () => (await victim).machine.powerOff());
  return victim;
}

test("resume: refuses what ails an image, and the machine runs on, exact; then it resumes the good one", async (t) => {
  await loadChecksum();
  const victim = await booted(t, RAM_BYTES);
  for (const { what, inflict, code, says } of AILMENTS) {
    const path = await copyOf(t);
    await inflict(path);
    if (code !== "HIB_IMAGE_USED") t.is(await examine(path), code, what);
    const failed = await victim.fails(() => resume(victim.machine, path));
    t.truthy(failed, `${what}: it was resumed`);
    t.deepEqual([...judge(failed!.error, code), ...failed!.harm], [], what);
    t.regex((failed!.error as Error).message, says, what);
    t.true((failed!.error as Error).message.includes(path), `${what}: the image is not named`);
    if (code !== "HIB_IMAGE_USED") t.false(await isUsed(path), what);
  }
  const good = await copyOf(t);
  const { frames } = await resume(victim.machine, good);
  t.true(frames.patched > 0 && frames.direct > 0);
  t.deepEqual(
    victim.machine.processes().map(({ text }) => text.split(":")[0]),
    ["incrementer", "random"],
  );
  t.true(await isUsed(good));
});

/** Sampled bytes of data that a resume reads up to; each takes a whole load. */
const DATA_FLIPS = 200;

test("resume: finds any flipped bit before it patches: all of header and catalogue, what chunks claim, a sample of data", async (t) => {
  await loadChecksum();
  const victim = await booted(t, RAM_BYTES);
  const path = await copyOf(t);
  const draws = new Draws(t);
  const image = await openImage(path);
  const claims = image.chunks
    .filter(({ codec }) => codec === CODEC_LZ4)
    .flatMap(({ offset }) => [offset, offset + 1, offset + 2, offset + 3]);
  const paddings = image.chunks
    .filter(({ payload, stored }) => payload < stored)
    .map(({ offset, stored }) => offset + stored - 1);
  const { blobBytes, catalogueBytes } = image.header;
  image.close();
  t.true(claims.length > 0 && paddings.length > 0);
  const sample = Array.from({ length: DATA_FLIPS }, () => draws.between(HEADER_BYTES, blobBytes - 1));
  const every = (bytes: number): number[] => Array.from({ length: bytes }, (_, byte) => byte);
  const surprises: string[] = [];
  const counts: Record<string, number> = {};
  const sweep = async (file: string, bytes: number[], codeOf: (byte: number) => ErrorCode): Promise<void> => {
    const good = readFileSync(join(path, file));
    const descriptor = openSync(join(path, file), "r+");
    for (const byte of bytes) {
      const bit = draws.below(8);
      writeSync(descriptor, Uint8Array.of(good[byte]! ^ (1 << bit)), 0, 1, byte);
      const code = await resume(victim.machine, path).then(
        () => "resumed",
        (error: HibernaculumError) => error.code,
      );
      writeSync(descriptor, good, byte, 1, byte);
      counts[code] = (counts[code] ?? 0) + 1;
      if (code !== codeOf(byte)) surprises.push(`${file}: bit ${bit} of byte ${byte}: ${code}`);
    }
    closeSync(descriptor);
  };
  // One failure for all: what was there before the sweep must be there after it, and run on.
  const failed = await victim.fails(async () => {
    await sweep(BLOB_NAME, every(HEADER_BYTES), codeOfHeaderByte);
    await sweep(CATALOGUE_NAME, every(catalogueBytes), () => "HIB_CORRUPT");
    await sweep(BLOB_NAME, [...claims, ...paddings, ...sample], () => "HIB_CORRUPT");
    throw new Error("the sweep is through");
  });
  t.log(counts);
  t.deepEqual(surprises.slice(0, 10), []);
  t.is((failed!.error as Error).message, "the sweep is through");
  t.deepEqual(failed!.harm, []);
  t.false(await isUsed(path));
  t.true((await resume(victim.machine, path)).frames.patched > 0, "unharmed again, it resumes");
});

test("resume: refuses an image of a machine with other RAM, and says how much it had", async (t) => {
  const victim = await booted(t, 2 * RAM_BYTES);
  const failed = await victim.fails(() => resume(victim.machine, original));
  t.deepEqual([...judge(failed?.error, "HIB_RAM_MISMATCH"), ...failed!.harm], []);
  t.regex((failed!.error as Error).message, new RegExp(`--ram ${RAM_BYTES / 2 ** 20}M`));
});

test("save: refuses a path that is taken, by whatever, and leaves that alone", async (t) => {
  const victim = await booted(t, RAM_BYTES);
  const image = await copyOf(t);
  const file = join(scratch(t), "file");
  writeFileSync(file, "mine");
  for (const path of [image, file]) {
    const { mtimeMs } = statSync(path);
    const failed = await victim.fails(() => save(victim.machine, path));
    t.deepEqual([...judge(failed?.error, "HIB_IMAGE_EXISTS"), ...failed!.harm], []);
    t.regex((failed!.error as Error).message, /remove it or choose another path/);
    t.is(statSync(path).mtimeMs, mtimeMs);
  }
  t.is(await examine(image), "whole");
});

// Root reads whatever it likes.
(process.getuid?.() === 0 ? test.skip : test)("resume: an image that may not be read is an I/O error", async (t) => {
  const victim = await booted(t, RAM_BYTES);
  for (const name of ["", BLOB_NAME, CATALOGUE_NAME]) {
    const path = await copyOf(t);
    await chmod(join(path, name), 0);
    const failed = await victim.fails(() => resume(victim.machine, path));
    await chmod(join(path, name), 0o700);
    t.deepEqual([...judge(failed?.error, "HIB_IO"), ...failed!.harm], [], name);
  }
});
