/**
 * The format across versions and languages. Images of past versions are kept in the tree; this version reads them
 * exactly or refuses them by number. And readers that know nothing but the document (in Python, and in C with SQLite) see in an
 * image what this program sees.
 */
import { execFile, spawnSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { cp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { buffer } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import Database from "better-sqlite3";
import { HibernaculumError } from "../src/base/errors.js";
import { FRAME_BYTES, PTE_PARKED, PTE_R, PTE_W } from "../src/base/layout.js";
import type { ReadableMemory } from "../src/base/memory.js";
import { save } from "../src/hibernate.js";
import { SCHEMA } from "../src/image/catalogue-schema.js";
import { loadChecksum } from "../src/image/checksum.js";
import { type Image, openImage } from "../src/image/directory.js";
import { BLOB_NAME, CATALOGUE_NAME, CODEC_LZ4, FORMAT_VERSION, MACHINE_VERSION } from "../src/image/format.js";
import { exportImage } from "../src/image/stream.js";
import { verifyChunks } from "../src/image/verify.js";
import { resume } from "../src/resume.js";
import { O_RDWR } from "../src/vm/files/flags.js";
import type { FdDescription } from "../src/vm/files/open-files.js";
import { findObjectPage } from "../src/vm/memory/memory-object.js";
import { findFrame, walkLeaves } from "../src/vm/memory/page-table.js";
import { DATA_BASE, type DeviceCalls } from "../src/vm/personality/step/program.js";
import { createSystemCalls } from "../src/vm/personality/step/system-calls.js";
import { listProcesses, type Process } from "../src/vm/tasks/process.js";
import { SIGKILL } from "../src/vm/tasks/signals.js";
import { describeProcess } from "../src/vm/views/describe.js";
import { readProcessMemory } from "../src/vm/views/process-memory.js";
import { headerWord, recatalogue, reheader } from "./damage.js";
import { bootMachine, findWrong, MIB, scratch, until, whileStopped } from "./support.js";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const IMAGES = join(ROOT, "test/fixtures/images");
const CURRENT = join(IMAGES, `format-${FORMAT_VERSION}-machine-${MACHINE_VERSION}`);

/** Versions as the header itself has them: the first words never move. */
function versionsOf(image: string): { format: number; machine: number } {
  const blob = readFileSync(join(image, BLOB_NAME));
  return { format: blob.readUInt32LE(4), machine: blob.readUInt32LE(8) };
}

test("fixtures: there is an image of this version; if not, `npm run fixture` makes it", (t) => {
  t.true(readdirSync(IMAGES).includes(`format-${FORMAT_VERSION}-machine-${MACHINE_VERSION}`));
  for (const name of readdirSync(IMAGES)) {
    const { format, machine } = versionsOf(join(IMAGES, name));
    t.is(name, `format-${format}-machine-${machine}`);
  }
});

for (const name of readdirSync(IMAGES)) {
  test(`fixtures: ${name} is read, verified and resumed exactly, or refused by number`, async (t) => {
    const path = join(scratch(t), "image");
    await cp(join(IMAGES, name), path, { recursive: true });
    const { format, machine: machineVersion } = versionsOf(path);
    if (format !== FORMAT_VERSION) {
      const message = new RegExp(`version ${format}, .* version ${FORMAT_VERSION}; use `);
      await t.throwsAsync(openImage(path), { code: "HIB_FORMAT_VERSION", message });
      return;
    }
    if (machineVersion !== MACHINE_VERSION) {
      const message = new RegExp(`version ${machineVersion}, .* version ${MACHINE_VERSION}; use `);
      await t.throwsAsync(openImage(path, { machineVersion: MACHINE_VERSION }), { code: "HIB_MACHINE_VERSION", message });
    }
    const image = await openImage(path);
    t.teardown(() => image.close());
    await verifyChunks(image); // every version of the machine can be verified
    if (machineVersion !== MACHINE_VERSION) return;
    t.deepEqual(findWrong(image.memory()), []);
    const machine = await bootMachine(t, { ramBytes: image.header.ramFrames * FRAME_BYTES, vcpus: 1 });
    await resume(machine, path);
    const saved = new Map(image.catalogue.processes().map(({ pid, steps }) => [pid, steps]));
    await until(() => machine.processes().every(({ pid, steps }) => steps > saved.get(pid)!), "every process goes on");
    t.deepEqual(
      whileStopped(machine, () => findWrong(machine.kernel.memory)),
      [],
    );
  });
}

test("fixtures: a reader of another version refuses this one's image by number", async (t) => {
  const { format, machine } = versionsOf(CURRENT);
  const other = { machineVersion: machine + 1 };
  const message = new RegExp(`machine version ${machine}, and this kernel is version ${machine + 1}`);
  await t.throwsAsync(openImage(CURRENT, other), { code: "HIB_MACHINE_VERSION", message });
  const path = join(scratch(t), "image");
  await cp(CURRENT, path, { recursive: true });
  const blob = readFileSync(join(path, BLOB_NAME));
  blob.writeUInt32LE(format + 1, 4);
  writeFileSync(join(path, BLOB_NAME), blob);
  const versions = new RegExp(`version ${format + 1}, and this program reads version ${format}; use `);
  await t.throwsAsync(openImage(path), { code: "HIB_FORMAT_VERSION", message: versions });
});

test("design/image-format.md: the schema is in it as it is, and every table, column and key is explained", (t) => {
  const document = readFileSync(join(ROOT, "design/image-format.md"), "utf8");
  t.is(/^```sql\n([^`]*)```$/m.exec(document)![1], SCHEMA.trimStart());
  const database = new Database(join(CURRENT, CATALOGUE_NAME), { readonly: true });
  t.teardown(() => database.close());
  const tables = database.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'").pluck().all() as string[];
  t.is(tables.length, 11);
  for (const table of tables) {
    const section = document.split(new RegExp(`^\\*\\*\`${table}\`\\*\\*`, "m"))[1]?.split("\n**`")[0] ?? "";
    for (const column of database.prepare("SELECT name FROM pragma_table_info(?)").pluck().all(table))
      t.true(section.includes(`\`${String(column)}\``), `${table}.${String(column)}`);
  }
  const details = JSON.parse(database.prepare("SELECT detail FROM process").pluck().get() as string) as Record<string, unknown>;
  const area = (details["areas"] as object[])[0]!;
  const fd: (keyof FdDescription)[] = [
    "fd",
    "kind",
    "path",
    "host",
    "flags",
    "cloexec",
    "position",
    "shared_by",
    "pipe",
    "frame",
    "start",
    "filled",
  ];
  for (const key of [...Object.keys(details), ...Object.keys(area), ...fd])
    t.true(document.includes(`\`${key}\``), `detail: ${key}`);
  for (const key of [...database.prepare("SELECT key FROM meta").pluck().all(), "name"])
    t.true(document.includes(`\`${String(key)}\``), `meta: ${String(key)}`);
});

// Readers that were made from the document

interface Run {
  code: number;
  stdout: Buffer;
  stderr: string;
}
type Reader = (...args: string[]) => Promise<Run>;

const command =
  (file: string, ...first: string[]): Reader =>
  (...args) =>
    new Promise((done) => {
      const child = execFile(file, [...first, ...args], { maxBuffer: 2 ** 28, encoding: "buffer" }, (_, stdout, stderr) =>
        done({ code: child.exitCode ?? -1, stdout, stderr: stderr.toString() }),
      );
    });

const readers = new Map<string, Reader>();
const missing: string[] = [];
if (spawnSync("python3", ["-c", "import sqlite3"]).status === 0)
  readers.set("read_image.py", command("python3", join(ROOT, "examples/read_image.py")));
else missing.push("read_image.py (there is no python3 with sqlite3 here)");
const built = mkdtempSync(join(tmpdir(), "hib-reader-"));
const compiled = spawnSync("cc", [
  "-O2",
  "-Wall",
  "-Werror",
  "-o",
  join(built, "read_image"),
  join(ROOT, "examples/read_image.c"),
  "-lsqlite3",
]);
if (compiled.status === 0) readers.set("read_image.c", command(join(built, "read_image")));
// Whoever has what it takes to build it sees what is wrong with it.
else if (existsSync("/usr/include/sqlite3.h") && compiled.error === undefined) throw new Error(compiled.stderr.toString());
else missing.push("read_image.c (there is no cc with sqlite3.h here)");
test.after.always(() => rmSync(built, { recursive: true, force: true }));
for (const name of missing) test.skip(name, (t) => t.pass());

test.before(loadChecksum);

const hex = (bytes: Uint8Array, address: number): string[] =>
  Array.from({ length: Math.ceil(bytes.length / 16) }, (_, i) => {
    const line = Buffer.from(bytes.subarray(i * 16, i * 16 + 16)).toString("hex");
    return `${(address + i * 16).toString(16).padStart(8, "0")}  ${line.replaceAll(/(..)(?!$)/g, "$1 ")}`;
  });

/** What a reader is to print of a part of a process's memory. */
function expectedDump(memory: ReadableMemory, process: Process, address: number, length: number): string[] {
  const { areas } = describeProcess(memory, process);
  return readProcessMemory(memory, process, address, length).flatMap((part) => {
    if (part.state === "mapped") return hex(part.bytes, part.address);
    const lines: string[] = [];
    for (let at = part.address; at < part.address + part.length; at = Math.floor(at / FRAME_BYTES + 1) * FRAME_BYTES) {
      const area = areas.find(({ start, end, limit }) => at >= (limit || start) && at < end);
      const page = area === undefined ? 0 : area.offset + Math.floor((at - area.start) / FRAME_BYTES);
      const absent = area?.path == null ? "zeros" : `page ${page} of ${area.path}`;
      lines.push(`${at.toString(16).padStart(8, "0")}  ${part.state === "unmapped" ? "not mapped" : absent}`);
    }
    return lines;
  });
}

/** Addresses around where something begins or ends in a process. */
function rangesOf(memory: ReadableMemory, process: Process): [address: number, length: number][] {
  const around = (at: number, before: number, after: number): [number, number] => {
    const from = Math.max(0, at - before * FRAME_BYTES);
    return [from, Math.min(2 ** 32, at + after * FRAME_BYTES) - from];
  };
  return describeProcess(memory, process).areas.flatMap(({ start, end, limit }) => [
    ...(limit === 0 ? [] : [around(limit, 2, 2)]),
    around(start, 2, 24),
    around(end, 4, 2),
  ]);
}

/** All of memory, and each process's, by a reader, is what this program reads. */
async function compare(t: ExecutionContext, read: Reader, image: Image): Promise<void> {
  const memory = image.memory();
  const list = await read(image.path, ...(read === readers.get("read_image.py") ? ["--check", "all"] : ["--check"]));
  t.is(list.stderr, "");
  const { length } = image.chunks;
  const processes = listProcesses(memory).sort((a, b) => a.pid - b.pid);
  const rows = processes.map(({ pid, text, state, steps }) => `${pid} ${text.split(":")[0]} ${state} ${steps}`);
  t.deepEqual(list.stdout.toString().trim().split("\n"), [`${length} of ${length} chunks checked: ok`, ...rows]);
  const all = await read(image.path, "--memory");
  t.is(all.stderr, "");
  t.true(all.stdout.equals(Buffer.from(memory.read(0, image.header.ramFrames * FRAME_BYTES))), "memory");
  const last = image.header.ramFrames - 1;
  t.is(
    (await read(image.path, "--frame", String(last))).stdout.toString().trim(),
    hex(memory.readFrame(last), last * FRAME_BYTES).join("\n"),
  );
  for (const process of processes) {
    const ranges: [number, number][] = process.root === 0 ? [[DATA_BASE, 2 * FRAME_BYTES]] : rangesOf(memory, process);
    const expected = ranges.flatMap(([address, bytes]) => expectedDump(memory, process, address + 40, bytes - 80));
    const asked = ranges.flatMap(([address, bytes]) => ["--read", `${address + 40}:${bytes - 80}`]);
    const { stdout, stderr } = await read(image.path, "--pid", String(process.pid), ...asked);
    t.is(stderr, "");
    t.deepEqual(stdout.toString().split("\n").filter(Boolean), expected, `memory of process ${process.pid}, ${process.text}`);
  }
}

/** What kinds of pages a machine's processes have, so that a test can say that it has compared them all. */
function kindsOf(memory: ReadableMemory): Set<string> {
  const kinds = new Set<string>();
  for (const process of listProcesses(memory)) {
    if (process.root === 0) kinds.add("no tables");
    const { areas } = describeProcess(memory, process);
    for (const { flags } of walkLeaves(memory, process.root)) kinds.add((flags & PTE_PARKED) === 0 ? "leaf" : "parked leaf");
    for (const area of areas) {
      if (area.limit > 0 && area.limit < area.start) kinds.add("below a stack");
      for (let at = area.start; at < area.end; at += FRAME_BYTES) {
        if (area.object === 0 || findFrame(memory, process.root, at) !== undefined) continue;
        const page = area.offset + (at - area.start) / FRAME_BYTES;
        const there = findObjectPage(memory, area.object, page) === undefined ? "absent" : "present";
        kinds.add(`${there} page of a ${area.shared ? "shared" : "private"} ${area.path === null ? "object" : "file"}`);
      }
    }
  }
  return kinds;
}

/** A machine with all that a process's memory can be made of, saved. */
/** @param ancestors - that it is to need at the least */
async function variedImage(t: ExecutionContext, compression: "lz4" | "none", ancestors = 0): Promise<Image> {
  const host = scratch(t);
  writeFileSync(join(host, "data"), randomBytes(30 * FRAME_BYTES + 123));
  const mounts = [{ path: "/host", host, readOnly: false }];
  const machine = await bootMachine(t, { ramBytes: 8 * MIB, vcpus: 1, mounts });
  for (const text of [
    "incrementer:pages=60,rate=20000,seed=1",
    "zipf:pages=50,rate=20000,content=zero",
    "stack:pages=1000,rate=1000",
    "shared",
    "mapper:slots=6,maxpages=8",
    "pipes",
  ])
    machine.spawn(text);
  const { slot } = machine.spawn("idle:ms=1000");
  await until(
    () => machine.processes().every(({ steps, text }) => steps > 60 || text.startsWith("idle")),
    "every process has made steps",
  );
  whileStopped(machine, () => {
    const { control, files } = machine.kernel;
    const nothing = (): undefined => undefined;
    const calls = createSystemCalls(machine.kernel, slot, nothing, {} as DeviceCalls, nothing);
    const fd = calls.open("/host/data", O_RDWR);
    control.locked(() => files.read(slot, fd!, 10 * FRAME_BYTES)); // the first pages are in memory, the others are not
    for (const shared of [true, false]) t.true(calls.mmapFile(fd!, 3, { pages: 40, flags: PTE_R | PTE_W, shared }) > 0);
    t.true(calls.mmap({ pages: 4, flags: PTE_R | PTE_W, shared: true }) > 0);
    calls.pipe();
    machine.kernel.lifecycle.fork(slot); // and never waits for its child
    calls.kill(Math.max(...machine.processes().map(({ pid }) => pid)), SIGKILL);
  });
  await until(() => machine.processes().some(({ state }) => state === "zombie"), "the child is a zombie");
  const path = join(scratch(t), "image");
  await until(() => whileStopped(machine, () => kindsOf(machine.kernel.memory).has("parked leaf")), "a page is parked");
  // A stop comes at some step: one whose mapper has just made all of its pages accessible shows no parked one.
  for (let i = 0; ; i++) {
    const base = ancestors === 0 || i === 0 ? {} : { base: `${path}-${i - 1}` };
    await save(machine, `${path}-${i}`, { ...base, keepRunning: true, compression, name: "varied", digest: "sha256" });
    const image = await openImage(`${path}-${i}`);
    t.teardown(() => image.close());
    if (i >= ancestors && kindsOf(image.memory()).has("parked leaf")) return image;
  }
}

for (const [name, read] of readers) {
  test(`${name}: sees in the image that is kept what this program sees`, async (t) => {
    const image = await openImage(CURRENT);
    t.teardown(() => image.close());
    await compare(t, read, image);
  });

  test(`${name}: sees in new images, raw and LZ4, what this program sees, in every kind of page`, async (t) => {
    for (const compression of ["lz4", "none"] as const) {
      const image = await variedImage(t, compression);
      const lz4 = image.chunks.some(({ codec }) => codec === CODEC_LZ4);
      t.is(lz4, compression === "lz4");
      t.true(image.references.length > 0);
      const kinds = kindsOf(image.memory());
      for (const kind of [
        "leaf",
        "parked leaf",
        "below a stack",
        "present page of a shared file",
        "absent page of a shared file",
        "present page of a private file",
        "absent page of a private file",
        "absent page of a shared object",
        "no tables",
      ])
        t.true(kinds.has(kind), kind);
      await verifyChunks(image);
      await compare(t, read, image);
      const object = join(scratch(t), "object");
      writeFileSync(object, await buffer(Readable.from(exportImage(image.path))));
      t.true((await read(object, "--memory")).stdout.equals((await read(image.path, "--memory")).stdout), "as one object");
    }
  });

  test(`${name}: sees in an image that needs two others what this program sees`, async (t) => {
    const image = await variedImage(t, "lz4", 2);
    t.true(image.ancestors.length >= 2);
    await compare(t, read, image);
  });

  test(`${name}: refuses what is damaged, not known, of another version, or not there`, async (t) => {
    const path = join(scratch(t), "image");
    await cp(CURRENT, path, { recursive: true });
    const check = read === readers.get("read_image.py") ? ["--check", "all"] : ["--check"];
    const refused = async (message: RegExp, ...args: string[]): Promise<void> => {
      const { code, stdout, stderr } = await read(...args);
      t.is(code, 1, String(message));
      t.is(stdout.toString(), "");
      t.regex(stderr, /^read_image(\.py)?: [^\n]*\n$/);
      t.regex(stderr, message);
    };
    const flips: [string, number, RegExp][] = [
      [BLOB_NAME, 0, /not an image/],
      [BLOB_NAME, 4, /format version/],
      [BLOB_NAME, 1000, /header is damaged/],
      [BLOB_NAME, FRAME_BYTES + 2, /chunk \d+ is damaged/],
      [CATALOGUE_NAME, 5000, /catalogue is damaged/],
    ];
    for (const [file, at, message] of flips) {
      const good = readFileSync(join(path, file));
      const bad = Buffer.from(good);
      bad[at]! ^= 1;
      writeFileSync(join(path, file), bad);
      await refused(message, path, ...check);
      writeFileSync(join(path, file), bad.subarray(0, -1));
      await refused(/./, path);
      writeFileSync(join(path, file), good);
    }
    const unknown: [RegExp, (path: string) => void][] = [
      [/features .*0x10/, headerWord(32, 0x10)],
      [/another kind/, headerWord(40, 2)],
      [/another kind/, headerWord(52, 2)],
      [/where nothing is known/, headerWord(256, 1)],
      [/where nothing is known/, headerWord(136, 1)],
      [/where nothing is known/, headerWord(56, 1)],
      [/unknown kind/, recatalogue("UPDATE extent SET kind = 3 WHERE kind = 1")],
      [/unknown codec/, recatalogue("UPDATE chunk SET codec = 2")],
      [/not one of an image/, recatalogue("PRAGMA user_version = 3")],
    ];
    for (const [message, inflict] of unknown) {
      const other = join(scratch(t), "image");
      await cp(CURRENT, other, { recursive: true });
      inflict(other);
      await t.throwsAsync(openImage(other), { instanceOf: HibernaculumError }, String(message));
      await refused(message, other);
    }
    await refused(/no process 99/, path, "--pid", "99", "--read", "0:1");
    await refused(/No such file/, join(path, "nothing"));
    t.is((await read(path, ...check)).code, 0);
  });
}

test("catalogue: says of a machine what a reader needs who does not know the kernel", async (t) => {
  const image = await variedImage(t, "none");
  const { catalogue, header, chunks } = image;
  t.is(catalogue.meta["name"], "varied");
  t.regex(header.writer, /^hibernaculum \d+\.\d+\.\d+/);
  t.deepEqual(catalogue.regions(), [{ pfn: 0, frames: header.ramFrames }]);
  const mounts = catalogue.mounts();
  t.deepEqual(
    mounts.map(({ path, readOnly }) => ({ path, readOnly })),
    [{ path: "/host", readOnly: false }],
  );
  const database = new Database(join(image.path, CATALOGUE_NAME), { readonly: true });
  t.deepEqual(database.prepare("SELECT path, mount, name FROM file").raw().all(), [
    [join(mounts[0]!.host, "data"), "/host", "data"],
  ]);
  database.close();
  // Both ends of a pipe are found by what they have in common.
  const details = catalogue.processes().map(({ detail }) => detail as { fds: FdDescription[] });
  const fds = details.flatMap((detail) => detail.fds);
  const ends = fds.filter(({ pipe }) => pipe !== null);
  t.true(ends.length >= 4);
  for (const { pipe, frame, start, filled } of ends) {
    t.is([...new Set(ends.filter((other) => other.pipe === pipe).map(({ kind }) => kind))].sort().join(), "reader,writer");
    t.true(frame! > 0 && frame! < header.ramFrames && start! < FRAME_BYTES && filled! <= FRAME_BYTES);
  }
  t.true(fds.some(({ path, host }) => host === true && path === join(mounts[0]!.host, "data")));
  // Digests were asked for.
  const stored = readFileSync(join(image.path, BLOB_NAME));
  for (const { offset, stored: bytes, digest } of chunks)
    t.deepEqual(
      digest,
      createHash("sha256")
        .update(stored.subarray(offset, offset + bytes))
        .digest(),
    );
  const file = readFileSync(join(image.path, CATALOGUE_NAME));
  t.deepEqual(Buffer.from(header.catalogueDigest!), createHash("sha256").update(file).digest());
  headerWord(160, 7)(image.path);
  await t.throwsAsync(openImage(image.path), { code: "HIB_CORRUPT", message: /catalogue .*digest/ });
  reheader({ catalogueDigest: null })(image.path);
  recatalogue("UPDATE chunk SET digest = zeroblob(32) WHERE id = 0")(image.path);
  const damaged = await openImage(image.path);
  t.teardown(() => damaged.close());
  await t.throwsAsync(verifyChunks(damaged), { code: "HIB_CORRUPT", message: /chunk 0 .*digest/ });
});

test("openImage: a feature, a codec and a kind of extent that this program does not know have one code", async (t) => {
  const changes = [
    headerWord(32, 0x8000_0000),
    headerWord(256, 1),
    recatalogue("UPDATE extent SET kind = 5 WHERE kind = 1"),
    recatalogue("UPDATE chunk SET codec = 2"),
  ];
  for (const inflict of changes) {
    const path = join(scratch(t), "image");
    await cp(CURRENT, path, { recursive: true });
    inflict(path);
    await t.throwsAsync(openImage(path), { code: "HIB_FORMAT_VERSION", message: /does not know|knows of none/ });
  }
  const path = join(scratch(t), "image");
  await cp(CURRENT, path, { recursive: true });
  headerWord(36, 0x8000_0000)(path);
  (await openImage(path)).close();
});
