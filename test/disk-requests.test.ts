/**
 * Requests to the disk that get in each other's way, or in the way of a save: two on one sector, one that is written between the
 * stop and the catalogue, one that the host has not written when a hibernation is to be published. And a file that processes
 * write to while a save streams.
 */
import { holdWrites, hostCalls, letWritesGo, waitingWrites } from "./slow-host.js"; // first: see there
import { randomBytes } from "node:crypto";
import { existsSync, openSync, closeSync, readFileSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import ava, { type ExecutionContext } from "ava";
import { FRAME_BYTES } from "../src/base/layout.js";
import { verifyImage } from "../src/cli/verify.js";
import { createProgress } from "../src/cli/progress.js";
import { save } from "../src/hibernate.js";
import { openImage } from "../src/image/directory.js";
import { compareFiles, type FileRow } from "../src/image/host-files.js";
import type { Machine, MachineOptions } from "../src/machine.js";
import { resume } from "../src/resume.js";
import { submitRequest, submittedRequests, takeResult } from "../src/vm/devices/block-requests.js";
import { O_RDWR, SEEK_SET } from "../src/vm/files/flags.js";
import type { DiskOperation } from "../src/vm/personality/step/program.js";
import { bootMachine, MIB, scratch, sleep, until } from "./support.js";

/** One at a time: a live machine wants both cores, and the host's calls are the process's. */
const test = ava.serial;

const SECTORS = 16;
const sector = (fill: number) => new Uint8Array(FRAME_BYTES).fill(fill);
/** Long enough for what would happen if nothing prevented it. */
const A_WHILE_MS = 300;

test.afterEach.always(() => letWritesGo());

/** A machine with a disk full of 0x11, whose requests the test makes in the name of a process that sleeps. */
class Requester {
  readonly machine: Machine;
  readonly disk: string;
  readonly #process: { slot: number; pid: number };

  private constructor(machine: Machine, disk: string) {
    this.machine = machine;
    this.disk = disk;
    this.#process = machine.spawn("idle:ms=3600000");
  }

  static async boot(t: ExecutionContext, options: Partial<MachineOptions> = {}): Promise<Requester> {
    const disk = join(scratch(t), "disk");
    writeFileSync(disk, Buffer.alloc(SECTORS * FRAME_BYTES, 0x11));
    return new Requester(await bootMachine(t, { ramBytes: 16 * MIB, vcpus: 1, disk, ...options }), disk);
  }

  submit(tag: number, operation: DiskOperation, at: number, fill = 0): void {
    const { kernel } = this.machine;
    const data = operation === "write" ? sector(fill) : undefined;
    const answer = kernel.control.locked(() => submitRequest(kernel, { ...this.#process, tag }, { operation, sector: at, data }));
    if (answer !== "submitted") throw new Error(answer);
  }

  /** Waits until requests are done and takes their results. */
  async take(tags: readonly number[]): Promise<{ status: string; data: Uint8Array | undefined }[]> {
    const { kernel } = this.machine;
    const results = [];
    for (const tag of tags) {
      let result: ReturnType<typeof takeResult>;
      const take = () => (result = kernel.control.locked(() => takeResult(kernel, { ...this.#process, tag })));
      await until(() => take() !== undefined, `request ${tag} is done`);
      if (result === undefined || result === "unknown") throw new Error(`no request ${tag}`);
      results.push(result);
    }
    return results;
  }

  contents(at: number): Uint8Array {
    return Uint8Array.from(readFileSync(this.disk).subarray(at * FRAME_BYTES, (at + 1) * FRAME_BYTES));
  }
}

async function rowsOf(path: string): Promise<FileRow[]> {
  const image = await openImage(path);
  try {
    return image.catalogue.files();
  } finally {
    image.close();
  }
}

// ---- two at once ----

test("two requests on one sector: the host has one of them at a time, and requests on others meanwhile", async (t) => {
  const requester = await Requester.boot(t);
  const { machine } = requester;
  holdWrites();
  requester.submit(0, "write", 7, 1);
  requester.submit(1, "write", 7, 2);
  requester.submit(2, "read", 7);
  requester.submit(3, "write", 8, 3);
  machine.devices.service();
  await sleep(A_WHILE_MS); // ticks would begin more
  t.is(waitingWrites(), 2, "sector 7 and sector 8");
  letWritesGo();
  const results = await requester.take([0, 1, 2, 3]);
  t.deepEqual(
    results.map(({ status }) => status),
    ["ok", "ok", "ok", "ok"],
  );
  const fill = results[2]!.data![0]!;
  t.true([0x11, 1, 2].includes(fill), "it is read before, between or after");
  t.deepEqual(results[2]!.data, sector(fill), "and never half of each");
  const last = requester.contents(7);
  t.true(last[0] === 1 || last[0] === 2);
  t.deepEqual(last, sector(last[0]!));
  t.deepEqual(requester.contents(8), sector(3));
  const path = join(scratch(t), "image");
  await save(machine, path);
  const rows = await rowsOf(path);
  t.deepEqual(rows[0]!.except, []);
  t.deepEqual((await compareFiles(rows)).changed, [], "the image knows which of the two was the last");
});

test("two writes of one sector at the stop: the image leaves the sector out, since whoever goes on writes it again", async (t) => {
  const held: (() => void)[] = [];
  let holdsTransfers = true;
  const onDiskTransfer = (): Promise<void> | undefined =>
    holdsTransfers ? new Promise((resolve) => void held.push(resolve)) : undefined;
  const requester = await Requester.boot(t, { onDiskTransfer });
  const { machine } = requester;
  requester.submit(0, "write", 7, 1);
  requester.submit(1, "write", 7, 2);
  machine.devices.service();
  await until(() => held.length === 1, "the host has written one of them, and not begun the other");
  const path = join(scratch(t), "image");
  await save(machine, path, { keepRunning: true });
  const rows = await rowsOf(path);
  t.deepEqual(rows[0]!.except, [7]);
  t.deepEqual((await compareFiles(rows)).changed, []);

  holdsTransfers = false;
  for (const go of held.splice(0)) go();
  await requester.take([0, 1]); // what was to be written when it was saved, and nothing else
  await machine.powerOff();
  t.deepEqual((await compareFiles(rows)).changed, []);
  const resumed = await bootMachine(t, { ramBytes: 16 * MIB, vcpus: 1 });
  await resume(resumed, path);
  await until(() => submittedRequests(resumed.kernel.memory).length === 0, "both are carried out again");
  const last = requester.contents(7);
  t.true(last[0] === 1 || last[0] === 2);
  t.deepEqual(last, sector(last[0]!));
});

// ---- between the stop and the catalogue ----

test("a sector that is written between the stop of a snapshot and its catalogue: the image has what it held at the stop", async (t) => {
  const requester = await Requester.boot(t);
  const { machine, disk } = requester;
  const before = readFileSync(disk);
  const path = join(scratch(t), "image");
  let written = false;
  await save(machine, path, {
    keepRunning: true,
    onProgress: ({ phase }) => {
      if (phase !== "publish" || written) return;
      written = true;
      holdWrites();
      requester.submit(0, "write", 9, 5);
      machine.devices.service();
    },
  });
  t.is(waitingWrites(), 1, "the host is at it while the catalogue is written");
  letWritesGo();
  await requester.take([0]);
  await machine.powerOff();
  const rows = await rowsOf(path);
  t.deepEqual(rows[0]!.except, []);
  const { changed } = await compareFiles(rows);
  t.deepEqual(changed, [{ path: disk, how: "has other contents" }]);
  const other = await bootMachine(t, { ramBytes: 16 * MIB, vcpus: 1 });
  await t.throwsAsync(resume(other, path), { code: "HIB_FILES_CHANGED", message: /has other contents/ });
  writeFileSync(disk, before);
  t.deepEqual((await compareFiles(rows)).changed, []);
  await t.notThrowsAsync(resume(other, path));
});

// ---- a host that is slow ----

test("a hibernation waits for a host that is slow to write: there is no image while a write may still come", async (t) => {
  const requester = await Requester.boot(t);
  const { machine } = requester;
  const path = join(scratch(t), "image");
  holdWrites();
  requester.submit(0, "write", 5, 0x55);
  machine.devices.service();
  let publishing = false;
  const saving = save(machine, path, { onProgress: ({ phase }) => void (publishing ||= phase === "publish") });
  await until(() => publishing, "all of the machine is in the blob");
  const end = Date.now() + A_WHILE_MS;
  await until(() => existsSync(path) || Date.now() > end, "it is published, or nothing happens");
  t.false(existsSync(path), "the image would be there, and its machine's own write would come into a resumed one's disk");
  t.deepEqual(hostCalls, ["write begun"], "nor is the disk synced before it has been written");
  letWritesGo();
  await saving;
  t.deepEqual(hostCalls, ["write begun", "written", "synced"]);
  t.deepEqual(requester.contents(5), sector(0x55));
  const rows = await rowsOf(path);
  t.deepEqual(rows[0]!.except, [5], "the request is the image's to carry out again");
  const resumed = await bootMachine(t, { ramBytes: 16 * MIB, vcpus: 1 });
  await resume(resumed, path);
  await until(() => submittedRequests(resumed.kernel.memory).length === 0, "it is carried out again");
  t.deepEqual(requester.contents(5), sector(0x55));
});

test("a snapshot does not wait for a host that is slow to write", async (t) => {
  const requester = await Requester.boot(t);
  const { machine, disk } = requester;
  const path = join(scratch(t), "image");
  holdWrites();
  requester.submit(0, "write", 5, 0x55);
  machine.devices.service();
  await save(machine, path, { keepRunning: true });
  t.is(waitingWrites(), 1);
  const rows = await rowsOf(path);
  t.deepEqual(rows[0]!.except, [5]);
  t.deepEqual((await compareFiles(rows)).changed, [], "the write has not come");
  letWritesGo();
  await requester.take([0]);
  t.deepEqual((await compareFiles(rows)).changed, [], "it has");
  const descriptor = openSync(disk, "r+");
  writeSync(descriptor, Uint8Array.of(0x22), 0, 1, 6 * FRAME_BYTES);
  closeSync(descriptor);
  t.is((await compareFiles(rows)).changed.length, 1, "of the others it knows what they hold");
});

// ---- files that processes write to ----

const PAGES = 64;
const LARGER = { ramBytes: 96 * MIB, vcpus: 1, pageThreads: 1 };

/** A machine with a file of the host open, all of whose pages it has read. */
async function bootWithFile(t: ExecutionContext) {
  const host = scratch(t);
  const file = join(host, "data");
  writeFileSync(file, randomBytes(PAGES * FRAME_BYTES));
  const machine = await bootMachine(t, { ...LARGER, mounts: [{ path: "/host", host, readOnly: false }] });
  const { slot } = machine.spawn("idle:ms=3600000");
  machine.spawn("zipf:pages=12000,content=random,rate=10000"); // so that a save streams for a while
  const calls = callsOf(machine, slot);
  const fd = calls.open();
  t.deepEqual(calls.read(fd), readFileSync(file));
  return { machine, file, fd, calls };
}

function callsOf({ kernel }: Machine, slot: number) {
  const { control, files } = kernel;
  const locked = <T>(body: () => T): T => control.locked(body);
  return {
    open: () => locked(() => files.open(slot, "/host/data", O_RDWR) as number),
    read: (fd: number): Buffer => {
      locked(() => files.seek(slot, fd, 0, SEEK_SET));
      const parts = Array.from({ length: PAGES }, () => locked(() => files.read(slot, fd, FRAME_BYTES)) as Uint8Array);
      return Buffer.concat(parts);
    },
    write: (fd: number, at: number, bytes: Uint8Array): void => {
      locked(() => files.seek(slot, fd, at, SEEK_SET));
      locked(() => files.write(slot, fd, bytes));
    },
  };
}

for (const ending of ["hibernate", "keep running"] as const) {
  test(`${ending}: a file that is written through while a save streams is in the image as it is at the stop`, async (t) => {
    const { machine, file, fd, calls } = await bootWithFile(t);
    const path = join(scratch(t), "image");
    const writes: number[] = [];
    await save(machine, path, {
      keepRunning: ending === "keep running",
      onProgress: ({ phase, done }) => {
        if (phase !== "stream") return;
        const page = writes.length;
        if (page >= PAGES / 2) return;
        writes.push(done);
        calls.write(fd, page * FRAME_BYTES + 100, randomBytes(5000)); // into the next page, too
      },
    });
    t.true(writes.length > 0, "after its pages were learnt: at the begin of the stream, and while it goes on");
    t.log(`${writes.length} writes, ${writes.filter((done) => done > 0).length} of them after frames were written`);
    const saved = readFileSync(file);
    const verdict = async () => {
      const image = await openImage(path);
      try {
        return {
          ...(await verifyImage(image, { replay: true, progress: createProgress() })),
          references: image.references.length,
        };
      } finally {
        image.close();
      }
    };
    const before = await verdict();
    t.deepEqual(before.consistency?.problems, []);
    t.true(before.ok && before.references > 0);
    t.deepEqual((await compareFiles(await rowsOf(path))).changed, []);
    if (ending === "keep running") {
      calls.write(fd, 3 * FRAME_BYTES, randomBytes(10));
      await t.throwsAsync(verdict(), { code: "HIB_FILES_CHANGED", message: /data: page 3 is not what it was/ });
      await machine.powerOff();
      const refused = await bootMachine(t, LARGER);
      await t.throwsAsync(resume(refused, path), { code: "HIB_FILES_CHANGED", message: /data has other contents/ });
      writeFileSync(file, saved);
      t.true((await verdict()).ok);
    }
    const resumed = await bootMachine(t, LARGER);
    await resume(resumed, path);
    const { slot } = resumed.processes().find(({ text }) => text.startsWith("idle"))!;
    const memory = callsOf(resumed, slot).read(fd);
    t.true(memory.equals(saved), "what the machine has of it is what the file holds");
    t.true(readFileSync(file).equals(saved));
  });
}
