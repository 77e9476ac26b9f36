/**
 * The format across versions and languages. Images of past versions are kept in the tree; this version reads them
 * exactly or refuses them by number. And a reader that knows nothing but the document (Python, without a library) sees
 * in an image what this program sees.
 */
import { execFile, spawnSync } from "node:child_process";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { cp } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import Database from "better-sqlite3";
import { FRAME_BYTES } from "../src/base/layout.js";
import { save } from "../src/hibernate.js";
import { type Image, openImage } from "../src/image/directory.js";
import { BLOB_NAME, CATALOGUE_NAME, CODEC_LZ4, FORMAT_VERSION, MACHINE_VERSION } from "../src/image/format.js";
import { verifyChunks } from "../src/image/verify.js";
import { resume } from "../src/resume.js";
import { walkLeaves } from "../src/vm/memory/page-table.js";
import { listProcesses } from "../src/vm/tasks/process.js";
import { bootMachine, findWrong, MIB, scratch, until, whileStopped } from "./support.js";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const IMAGES = join(ROOT, "test/fixtures/images");
const READER = join(ROOT, "examples/read_image.py");
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
      const message = new RegExp(`version ${format}, .* version ${FORMAT_VERSION}$`);
      await t.throwsAsync(openImage(path), { code: "HIB_FORMAT_VERSION", message });
      return;
    }
    if (machineVersion !== MACHINE_VERSION) {
      const message = new RegExp(`version ${machineVersion}, .* version ${MACHINE_VERSION}$`);
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
  const versions = new RegExp(`version ${format + 1}, and this program reads version ${format}$`);
  await t.throwsAsync(openImage(path), { code: "HIB_FORMAT_VERSION", message: versions });
});

test("design/image-format.md: every table, column and key of a process is in it", (t) => {
  const document = readFileSync(join(ROOT, "design/image-format.md"), "utf8");
  const database = new Database(join(CURRENT, CATALOGUE_NAME), { readonly: true });
  t.teardown(() => database.close());
  const tables = database.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'").pluck().all() as string[];
  t.deepEqual(tables.sort(), ["blocks", "chunk", "extent", "file", "mapping", "meta", "process", "reference"]);
  for (const table of tables) {
    const section = document.split(new RegExp(`^\\*\\*\`${table}\`\\*\\*`, "m"))[1]?.split("\n\n")[0] ?? "";
    for (const column of database.prepare("SELECT name FROM pragma_table_info(?)").pluck().all(table))
      t.true(section.includes(`\`${String(column)}\``), `${table}.${String(column)}`);
  }
  const details = JSON.parse(database.prepare("SELECT detail FROM process").pluck().get() as string) as object;
  for (const key of Object.keys(details)) t.true(document.includes(`\`${key}\``), `detail.${key}`);
  for (const key of database.prepare("SELECT key FROM meta").pluck().all()) t.true(document.includes(`\`${String(key)}\``));
});

// The reader in Python

const python = spawnSync("python3", ["-c", "import sqlite3"]).status === 0;
const withPython = (title: string, body: (t: ExecutionContext) => Promise<void>): void =>
  python ? test(title, body) : test.skip(`${title} (there is no python3 with sqlite3 here)`, body);

function read(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    const child = execFile("python3", [READER, ...args], { maxBuffer: 2 ** 26 }, (_, stdout, stderr) =>
      resolve({ code: child.exitCode ?? -1, stdout, stderr }),
    );
  });
}

/** The bytes of a dump. */
const bytesOf = (dump: string): Buffer => Buffer.from(dump.replaceAll(/^[0-9a-f]{8} {2}/gm, "").replaceAll(/\s/g, ""), "hex");

async function compare(t: ExecutionContext, image: Image): Promise<void> {
  const memory = image.memory();
  const all = await read(image.path, "--check", "all");
  t.is(all.stderr, "");
  const { length } = image.chunks;
  const rows = listProcesses(memory).map(({ pid, text, state, steps }) => `${pid} ${text.split(":")[0]} ${state} ${steps}`);
  t.deepEqual(all.stdout.trim().split("\n"), [`${length} of ${length} chunks checked: ok`, ...rows]);

  // A frame of each kind there is: raw, LZ4, same-filled, in no extent.
  const kinds = new Map<unknown, number>();
  for (let pfn = 0; pfn < image.header.ramFrames; pfn++) {
    const i = image.extents.find(pfn);
    kinds.set(i < 0 ? "free" : (image.chunks[image.extents.chunk[i]!]?.codec ?? "filled"), pfn);
  }
  for (const pfn of kinds.values()) {
    const { stdout } = await read(image.path, "--frame", String(pfn));
    t.true(bytesOf(stdout).equals(memory.readFrame(pfn)), `frame ${pfn}`);
  }
  for (const { pid, root } of listProcesses(memory)) {
    const { address, frame } = [...walkLeaves(memory, root)].at(-1)!;
    const { stdout } = await read(image.path, "--pid", String(pid), "--read", `${address + 40}:5000`);
    const [present, absent] = stdout.split(/^(?=.*not mapped$)/m);
    t.true(bytesOf(present!).equals(Buffer.from(memory.read(frame * FRAME_BYTES + 40, FRAME_BYTES - 40))));
    t.truthy(absent, "nothing is mapped after the last leaf");
  }
}

withPython("read_image.py: sees in the image that is kept what this program sees", async (t) => {
  const image = await openImage(CURRENT);
  t.teardown(() => image.close());
  await compare(t, image);
});

withPython("read_image.py: sees in new images, raw and LZ4, what this program sees", async (t) => {
  const directory = scratch(t);
  const machine = await bootMachine(t, { ramBytes: 4 * MIB, vcpus: 1 });
  for (const text of ["incrementer:pages=60,rate=20000,seed=1", "zipf:pages=50,rate=20000,content=zero", "heap", "stack"])
    machine.spawn(text);
  await until(() => machine.processes().every(({ steps }) => steps > 60), "every process has made steps");
  for (const compression of ["lz4", "none"] as const) {
    const path = join(directory, compression);
    await save(machine, path, { keepRunning: true, compression });
    const image = await openImage(path);
    t.teardown(() => image.close());
    t.is(
      image.chunks.some(({ codec }) => codec === CODEC_LZ4),
      compression === "lz4",
    );
    await compare(t, image);
  }
});

withPython("read_image.py: refuses what is damaged, of another version, or not there", async (t) => {
  const path = join(scratch(t), "image");
  await cp(CURRENT, path, { recursive: true });
  const refused = async (message: RegExp, ...args: string[]): Promise<void> => {
    const { code, stdout, stderr } = await read(...args);
    t.is(code, 1);
    t.is(stdout, "");
    t.regex(stderr, /^read_image\.py: [^\n]*\n$/);
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
    await refused(message, path, "--check", "all");
    writeFileSync(join(path, file), bad.subarray(0, -1));
    await refused(/./, path);
    writeFileSync(join(path, file), good);
  }
  await refused(/no process 99/, path, "--pid", "99", "--read", "0:1");
  await refused(/No such file/, join(path, "nothing"));
  t.is((await read(path, "--check", "all")).code, 0);
});
