/**
 * Files under an image (S3.6): a resume goes on only with the files that the machine had, unless it is told otherwise. The
 * checksum of a file that is written to all the time is that of one instant.
 */
import { execFileSync, spawnSync } from "node:child_process";
import fs, {
  closeSync,
  copyFileSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { join } from "node:path";
import ava, { type ExecutionContext } from "ava";
import fc from "fast-check";
import type { HostFile } from "../src/base/host-file.js";
import { save } from "../src/hibernate.js";
import { openImage } from "../src/image/directory.js";
import { compareFiles, FilesOfSave, type FileRow } from "../src/image/host-files.js";
import type { ResumeStep } from "../src/reports/resume-report.js";
import { resume } from "../src/resume.js";
import type { ResumeOptions } from "../src/resume-options.js";
import { bootMachine, findWrong, scratch, sleep, until, whileStopped } from "./support.js";

/** One at a time: a live machine wants both cores. */
const test = ava.serial;

const BLOCK = 4096;
const SECTORS = 128;

/** Hibernates a machine with a disk at work; returns the paths of image and disk. */
async function hibernate(t: ExecutionContext, options: { keepRunning?: boolean } = {}) {
  const directory = scratch(t);
  const disk = join(directory, "disk");
  writeFileSync(disk, Buffer.alloc(SECTORS * BLOCK, 0x11));
  const machine = await bootMachine(t, { disk });
  machine.spawn("disk:sectors=40");
  await until(() => machine.processes()[0]!.steps > 500, "it runs");
  const image = join(directory, "image");
  await save(machine, image, options);
  return { machine, image, disk };
}

async function goesOn(t: ExecutionContext, image: string, options: ResumeOptions = {}) {
  const machine = await bootMachine(t);
  await resume(machine, image, options);
  const before = machine.processes()[0]!.steps;
  const failed = () => machine.processes()[0]!.failure;
  await until(() => machine.processes()[0]!.steps > before + 200 || failed() !== "", "it goes on");
  return { machine, failure: failed() };
}

test("a machine whose disk is as it was is resumed; its image says which file that is", async (t) => {
  const { image, disk } = await hibernate(t);
  const opened = await openImage(image);
  const [row, ...others] = opened.catalogue.files();
  opened.close();
  t.deepEqual(others, []);
  t.like(row, { path: disk, mode: "rw", size: BigInt(SECTORS * BLOCK), position: SECTORS * BLOCK });
  t.true(row!.hash !== null && row!.except.length <= 8);
  const { machine, failure } = await goesOn(t, image);
  t.is(failure, "");
  t.deepEqual(
    whileStopped(machine, () => findWrong(machine.kernel.memory)),
    [],
  );
});

function poke(path: string, at: number): void {
  const file = openSync(path, "r+");
  writeSync(file, Uint8Array.of(0x22), 0, 1, at);
  closeSync(file);
}

for (const { what, change, how } of [
  { what: "one byte of it", change: (disk: string) => poke(disk, 100 * BLOCK + 77), how: /has other contents/ },
  { what: "its size", change: (disk: string) => truncateSync(disk, 4 * BLOCK), how: /has 16384 bytes and had 524288/ },
  {
    what: "its kind",
    change: (disk: string) => {
      rmSync(disk);
      execFileSync("mkfifo", [disk]);
    },
    how: /is not a regular file/,
  },
  { what: "its existence", change: (disk: string) => rmSync(disk), how: /is gone/ },
]) {
  test(`a machine whose disk has changed in ${what} is refused by name, and the boot goes on`, async (t) => {
    const { image, disk } = await hibernate(t);
    change(disk);
    const machine = await bootMachine(t);
    machine.spawn("boot-housekeeping");
    const error = await t.throwsAsync(resume(machine, image), { code: "HIB_FILES_CHANGED", message: how });
    t.true(error!.message.includes(`${disk} `) && error!.message.includes("--accept-changed-files"));
    t.false(error!.message.includes("\n"));
    t.is(machine.processes()[0]!.text, "boot-housekeeping");
    const accepted = await goesOn(t, image, { acceptChangedFiles: true });
    if (what === "its existence") t.regex(accepted.failure, /^disk: .*: I\/O error$/);
    if (what.startsWith("one byte")) t.is(accepted.failure, "");
    accepted.machine.check();
  });
}

function copyOver(path: string): void {
  copyFileSync(path, `${path}.new`);
  renameSync(`${path}.new`, path);
}

for (const { what, change } of [
  { what: "times have", change: (disk: string) => utimesSync(disk, 1e9, 1e9) },
  { what: "inode has", change: copyOver },
]) {
  test(`a disk of which only the ${what} changed is the same: its contents say so`, async (t) => {
    const { image, disk } = await hibernate(t);
    change(disk);
    const found: string[] = [];
    const onStep = (step: ResumeStep) => step.name === "files of the host" && "found" in step && found.push(step.found);
    t.is((await goesOn(t, image, { onStep })).failure, "");
    t.deepEqual(found, ["1, as they were by their contents"]);
  });
}

test("a disk that was moved: the resume is told where it is, and so is the next image", async (t) => {
  const { image, disk } = await hibernate(t);
  const moved = `${disk}-moved`;
  renameSync(disk, moved);
  await t.throwsAsync(goesOn(t, image), { code: "HIB_FILES_CHANGED", message: /is gone; if the disk was moved, .* --disk FILE/ });
  await t.throwsAsync(goesOn(t, image, { disk: `${disk}-nowhere` }), { code: "HIB_IO", message: /opening the disk/ });
  const { machine, failure } = await goesOn(t, image, { disk: moved });
  t.is(failure, "");
  await save(machine, `${image}-2`);
  await machine.powerOff();
  poke(moved, 100 * BLOCK + 77);
  await t.throwsAsync(goesOn(t, `${image}-2`), { code: "HIB_FILES_CHANGED", message: /disk-moved has other contents/ });
  const bare = await bootMachine(t);
  await save(bare, `${image}-bare`, { keepRunning: true });
  await t.throwsAsync(resume(bare, `${image}-bare`, { disk: moved }), { code: "HIB_USAGE", message: /without a disk/ });
});

test("a disk is one machine's at a time, whoever boots or resumes, and free once that is off", async (t) => {
  const { machine, image, disk } = await hibernate(t, { keepRunning: true });
  const link = `${disk}-link`;
  symlinkSync(disk, link);
  for (const path of [disk, link]) await t.throwsAsync(bootMachine(t, { disk: path }), { code: "HIB_DISK_IN_USE" });
  await t.throwsAsync(goesOn(t, image), { code: "HIB_DISK_IN_USE" });
  const boot = `import { Machine } from ${JSON.stringify(new URL("../src/index.js", import.meta.url).href)};
    await Machine.boot({ ramBytes: 2 ** 24, vcpus: 1, disk: ${JSON.stringify(disk)} }).then(
      () => console.log("booted"), (error) => console.log(error.code));
    process.kill(process.pid, "SIGKILL");`;
  writeFileSync(`${disk}.mjs`, boot);
  const elsewhere = () => spawnSync(process.execPath, [`${disk}.mjs`], { encoding: "utf8" }).stdout;
  t.is(elsewhere(), "HIB_DISK_IN_USE\n");
  await machine.powerOff();
  t.is(elsewhere(), "booted\n");
  const next = await bootMachine(t, { disk });
  await t.throwsAsync(resume(next, image, { disk: link }), { code: "HIB_FILES_CHANGED" });
  await t.throwsAsync(bootMachine(t, { disk }), { code: "HIB_DISK_IN_USE" }, "a resume that failed has not given it back");
  const taken = await resume(next, image, { disk: link, acceptChangedFiles: true });
  t.truthy(taken, "the machine that has it may resume one that had it");
  await t.throwsAsync(bootMachine(t, { disk }), { code: "HIB_DISK_IN_USE" });
  await next.powerOff();
  await (await bootMachine(t, { disk })).powerOff();
});

test("a snapshot whose machine has written on is refused; one whose machine has not is resumed", async (t) => {
  const { machine, image, disk } = await hibernate(t, { keepRunning: true });
  const before = machine.processes()[0]!.steps;
  await until(() => machine.processes()[0]!.steps > before + 1000, "it writes on");
  await machine.powerOff();
  const other = await bootMachine(t);
  await t.throwsAsync(resume(other, image), { code: "HIB_FILES_CHANGED", message: /has other contents/ });

  const quiet = await bootMachine(t, { disk });
  quiet.spawn("idle:ms=3600000");
  const snapshot = `${image}-quiet`;
  await save(quiet, snapshot, { keepRunning: true });
  await quiet.powerOff();
  await t.notThrowsAsync(resume(other, snapshot));
});

/** A file as the machine's side describes it, with its contents in memory. */
function createFile(t: ExecutionContext, bytes: number, mode: "r" | "rw" = "rw") {
  const path = join(scratch(t), "file");
  const contents = Buffer.alloc(bytes, 1);
  writeFileSync(path, contents);
  const descriptor = openSync(path, "r+");
  t.teardown(() => closeSync(descriptor));
  const pending = new Set<number>();
  const file: HostFile = { path, descriptor, mode, position: bytes, observer: undefined, pendingBlocks: () => [...pending] };
  return { path, file, contents, pending };
}

test("a file that is only read: its contents say whether it has changed, and its inode and time whether to read it", async (t) => {
  const { path, file } = createFile(t, 10_000, "r");
  const files = new FilesOfSave();
  await files.prepare([file], undefined);
  files.freeze([]);
  const rows = await files.rows();
  t.not(rows[0]!.hash, null);
  t.deepEqual(await compareFiles(rows), { changed: [], moved: [] });
  t.deepEqual(await compareFiles([{ ...rows[0]!, hash: 0n }]), { changed: [], moved: [] }, "nothing was read");
  utimesSync(path, 1e9, 1e9);
  copyOver(path);
  t.deepEqual(await compareFiles(rows), { changed: [], moved: [path] });
  const [long] = (await compareFiles([{ ...rows[0]!, position: 2 ** 53 - 1 }])).changed; // nobody can sum so much
  t.regex(long!.how, /^has 10000 bytes, and 9007199254740991 of them/);
  poke(path, 5000);
  t.deepEqual(await compareFiles(rows), { changed: [{ path, how: "has other contents" }], moved: [] });
  // The machine's last word on it was another already when it was saved.
  t.deepEqual(await compareFiles([{ ...rows[0]!, hash: null }]), { changed: [{ path, how: "was changed since" }], moved: [] });
});

test("a file that is removed while its contents are about to be read fails no save: a resume says that it is gone", async (t) => {
  const { path, file } = createFile(t, 10_000, "r");
  const files = new FilesOfSave();
  await files.prepare([file], undefined);
  files.freeze([]);
  const { openSync: original } = fs;
  fs.openSync = (...args) => {
    if (args[0] === path) rmSync(path, { force: true });
    return original(...args);
  };
  syncBuiltinESMExports();
  const rows = await files.rows().finally(() => {
    fs.openSync = original;
    syncBuiltinESMExports();
  });
  t.is(rows[0]!.hash, null);
  t.deepEqual((await compareFiles(rows)).changed, [{ path, how: "is gone" }]);
});

test("the checksum is of the instant of the freeze, whatever is written before, meanwhile and after", async (t) => {
  const BLOCKS = 700;
  const BYTES = BLOCKS * BLOCK - 100; // the last block is not whole
  const write = fc.record({ block: fc.nat(BLOCKS - 2), value: fc.nat(255), fails: fc.boolean(), pause: fc.nat(3) });
  const phases = fc.record({ saves: fc.integer({ min: 1, max: 2 }), writes: fc.array(write, { minLength: 5, maxLength: 60 }) });
  await fc.assert(
    fc.asyncProperty(phases, async ({ saves, writes }) => {
      const { path, file, contents, pending } = createFile(t, BYTES);
      const files = new FilesOfSave();
      let at = 0;
      /** Writes as a device does: several in flight, one a block. */
      const go = async (until: number): Promise<void> => {
        const inFlight: Promise<void>[] = [];
        while (at < until) {
          const { block, value, fails, pause } = writes[at++]!;
          if (pending.has(block)) continue;
          pending.add(block);
          file.observer?.writing(block);
          inFlight.push(
            sleep(pause).then(() => {
              const bytes = Buffer.alloc(BLOCK, value);
              bytes.copy(contents, block * BLOCK);
              writeSync(file.descriptor, bytes, 0, BLOCK, block * BLOCK);
              file.observer?.written(block, fails ? undefined : bytes);
              pending.delete(block);
            }),
          );
          if (pause === 3) await sleep(1);
        }
        await Promise.all(inFlight);
      };
      let rows: FileRow[] = [];
      let frozen = Buffer.alloc(0);
      for (let n = 1; n <= saves; n++) {
        const third = Math.floor((writes.length * (n - 0.5)) / saves);
        const before = go(third);
        await files.prepare([file], undefined);
        files.freeze([]);
        frozen = Buffer.from(contents);
        const after = go(Math.floor((writes.length * n) / saves));
        await Promise.all([before, after]);
        rows = await files.rows();
        files.finish();
      }
      // What is left out may hold anything.
      for (const block of rows[0]!.except) frozen.fill(0xee, block * BLOCK, (block + 1) * BLOCK);
      writeFileSync(path, frozen);
      if ((await compareFiles(rows)).changed.length > 0) return false;
      const counted = Array.from({ length: BLOCKS }, (_, block) => block).filter((block) => !rows[0]!.except.includes(block));
      for (const block of [counted[0]!, counted.at(-1)!]) {
        const changed = Buffer.from(frozen);
        changed[Math.min(BYTES - 1, block * BLOCK + 4000)]! ^= 1;
        writeFileSync(path, changed);
        if ((await compareFiles(rows)).changed.length !== 1) return false;
      }
      return readFileSync(path).length === BYTES;
    }),
    { numRuns: 40 },
  );
  t.pass();
});

/** A save that is frozen: what it says of the file, whatever comes afterwards. */
async function frozen(t: ExecutionContext, pending: readonly number[] = []) {
  const created = createFile(t, 16 * BLOCK);
  const files = new FilesOfSave();
  await files.prepare([created.file], undefined);
  for (const block of pending) created.pending.add(block);
  files.freeze([]);
  const write = (block: number, value: number): void => {
    const bytes = Buffer.alloc(BLOCK, value);
    created.file.observer!.writing(block);
    writeSync(created.file.descriptor, bytes, 0, BLOCK, block * BLOCK);
    created.file.observer!.written(block, bytes);
  };
  return { ...created, files, write };
}

test("a block that is written more than once after the freeze keeps the sum that it had at the freeze", async (t) => {
  const { path, files, write, contents } = await frozen(t);
  for (const value of [2, 3, 4]) write(3, value);
  const rows = await files.rows();
  t.deepEqual(rows[0]!.except, []);
  t.deepEqual((await compareFiles(rows)).changed, [{ path, how: "has other contents" }]);
  writeFileSync(path, contents);
  t.deepEqual((await compareFiles(rows)).changed, []);
  files.finish();
});

test("a write that is submitted at the freeze and not begun: its block is left out, and no other", async (t) => {
  const { path, files, write } = await frozen(t, [5]);
  write(5, 2);
  const rows = await files.rows();
  t.deepEqual(rows[0]!.except, [5]);
  t.deepEqual((await compareFiles(rows)).changed, [], "whoever resumes writes it again");
  write(6, 2);
  t.deepEqual((await compareFiles(rows)).changed, [{ path, how: "has other contents" }]);
  files.finish();
});

test("a write that comes between the freeze and the catalogue leaves nothing out", async (t) => {
  const { path, file, files, pending, contents } = await frozen(t);
  pending.add(9);
  file.observer!.writing(9); // and goes on while the catalogue is written
  const rows = await files.rows();
  t.deepEqual(rows[0]!.except, []);
  t.deepEqual((await compareFiles(rows)).changed, []);
  const changed = Buffer.from(contents);
  changed[9 * BLOCK]! ^= 1;
  writeFileSync(path, changed);
  t.deepEqual((await compareFiles(rows)).changed, [{ path, how: "has other contents" }]);
  file.observer!.written(9, undefined);
  files.finish();
});

test("a file that an image names a thousand times, each time spelt differently, is read once", async (t) => {
  const path = join(scratch(t), "file");
  writeFileSync(path, Buffer.alloc(5 * BLOCK, 7));
  const row = (spelt: string, changes: Partial<FileRow> = {}): FileRow => ({
    path: spelt,
    mode: "rw",
    device: 1n,
    inode: 1n,
    size: BigInt(5 * BLOCK),
    mtime: 0n,
    position: 5 * BLOCK,
    hash: 1n,
    except: [],
    ...changes,
  });
  let opened = 0;
  const open = (spelt: string): number => {
    opened++;
    return openSync(spelt, "r");
  };
  const spellings = Array.from({ length: 1000 }, (_, i) => join(path, "..").concat("/.".repeat(i), "/file"));
  const { changed } = await compareFiles(
    spellings.map((spelt) => row(spelt)),
    { open },
  );
  t.is(changed.length, 1000);
  t.is(opened, 1);
  // Which part of it counts may differ, of a disk that is a file of a mount, too; not a thousand times.
  opened = 0;
  await compareFiles(
    spellings.map((spelt, i) => row(spelt, { except: [i % 5] })),
    { open },
  );
  t.is(opened, 4);
});
