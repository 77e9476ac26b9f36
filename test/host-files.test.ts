/**
 * Files under an image (S3.6): a resume goes on only with the files that the machine had, unless it is told otherwise. The
 * checksum of a file that is written to all the time is that of one instant.
 */
import {
  closeSync,
  copyFileSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import ava, { type ExecutionContext } from "ava";
import fc from "fast-check";
import type { HostFile } from "../src/base/host-file.js";
import { save } from "../src/hibernate.js";
import { openImage } from "../src/image/directory.js";
import { FilesOfSave, type FileRow, findChangedFiles } from "../src/image/host-files.js";
import { resume } from "../src/resume.js";
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

async function goesOn(t: ExecutionContext, image: string, options: { acceptChangedFiles?: boolean } = {}) {
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
    what: "its inode, with the same contents",
    change: (disk: string) => {
      copyFileSync(disk, `${disk}.new`);
      renameSync(`${disk}.new`, disk);
    },
    how: /was replaced by another file/,
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
    if (what.startsWith("one byte") || what.startsWith("its inode")) t.is(accepted.failure, "");
    accepted.machine.check();
  });
}

test("a disk of which only the times have changed is the same: its contents say so", async (t) => {
  const { image, disk } = await hibernate(t);
  utimesSync(disk, 1e9, 1e9);
  t.is((await goesOn(t, image)).failure, "");
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

test("a file that is only read: the time of its last change says whether it has changed", async (t) => {
  const { path, file } = createFile(t, 10_000, "r");
  const files = new FilesOfSave();
  await files.prepare([file], undefined);
  files.freeze([]);
  const rows = await files.rows();
  t.is(rows[0]!.hash, null);
  t.deepEqual(await findChangedFiles(rows), []);
  utimesSync(path, 1e9, 1e9);
  t.deepEqual(await findChangedFiles(rows), [{ path, how: "was changed since" }]);
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
      if ((await findChangedFiles(rows)).length > 0) return false;
      const counted = Array.from({ length: BLOCKS }, (_, block) => block).filter((block) => !rows[0]!.except.includes(block));
      for (const block of [counted[0]!, counted.at(-1)!]) {
        const changed = Buffer.from(frozen);
        changed[Math.min(BYTES - 1, block * BLOCK + 4000)]! ^= 1;
        writeFileSync(path, changed);
        if ((await findChangedFiles(rows)).length !== 1) return false;
      }
      return readFileSync(path).length === BYTES;
    }),
    { numRuns: 40 },
  );
  t.pass();
});
