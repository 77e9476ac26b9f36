/**
 * Devices and a save: whatever a disk has in flight when the save is armed, while it streams, at the stop, and at the atomic
 * restore, each request is done exactly, and none of its DMA is lost or lands in another machine. Each mechanism is also
 * broken on purpose. Then the entropy device and the clocks.
 *
 * HIB_SEED repeats the racing test's choices.
 */
import { closeSync, ftruncateSync, openSync, readFileSync, truncateSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import ava, { type ExecutionContext } from "ava";
import { FRAME_BYTES, MACHINE_SABOTAGE, SABOTAGE_NO_DEVICE, SABOTAGE_NO_QUIESCE, SABOTAGE_NONE } from "../src/base/layout.js";
import type { ReadableMemory } from "../src/base/memory.js";
import { setFailpoints } from "../src/base/failpoints.js";
import { save } from "../src/hibernate.js";
import type { SaveOptions } from "../src/save-options.js";
import { openImage } from "../src/image/directory.js";
import { Machine, type MachineOptions } from "../src/machine.js";
import { APPROACH_NAMES } from "../src/reports/approaches.js";
import { resume } from "../src/resume.js";
import { type DiskRequest, submitRequest, submittedRequests, TABLE_ORDER, takeResult } from "../src/vm/devices/block-requests.js";
import { createDeviceCalls } from "../src/vm/devices/calls.js";
import {
  KERNEL_BLOCK,
  KERNEL_BLOCK_STATE,
  KERNEL_CLOCK,
  KERNEL_ENTROPY,
  KERNEL_GENERATION,
  KIND_DMA,
} from "../src/vm/memory/kernel-layout.js";
import type { DiskOperation } from "../src/vm/personality/step/program.js";
import { createRunner } from "../src/vm/personality/step/programs/index.js";
import { blocksOfKind } from "../src/vm/views/walker.js";
import { bootMachine, Draws, findWrong, MIB, type Replays, scratch, sleep, until, whileStopped } from "./support.js";

/** One at a time: a live machine wants both cores. */
const test = ava.serial;

const SECTORS = 256;

function createDisk(t: ExecutionContext, sectors = SECTORS): string {
  const path = join(scratch(t), "disk");
  const file = openSync(path, "w");
  ftruncateSync(file, sectors * FRAME_BYTES);
  closeSync(file);
  return path;
}

/** The host's side of a disk as a test wants it: requests that the host has carried out wait here for their transfer. */
class Transfers {
  /** All so far. */
  readonly seen: DiskRequest[] = [];
  readonly #waiting: (() => void)[] = [];
  holds = false;

  readonly hook = (request: DiskRequest): Promise<void> | undefined => {
    this.seen.push(request);
    return this.holds ? new Promise((resolve) => this.#waiting.push(resolve)) : undefined;
  };

  get waiting(): number {
    return this.#waiting.length;
  }

  /** Lets the first `count` go, and all that come later if no count is given. */
  release(count?: number): void {
    if (count === undefined) this.holds = false;
    for (const go of this.#waiting.splice(0, count ?? Infinity)) go();
  }
}

async function bootWithDisk(
  t: ExecutionContext,
  options: Partial<MachineOptions> = {},
): Promise<{ machine: Machine; transfers: Transfers; disk: string }> {
  const disk = options.disk ?? createDisk(t);
  const transfers = new Transfers();
  const machine = await bootMachine(t, { disk, onDiskTransfer: transfers.hook, ...options });
  return { machine, transfers, disk };
}

const steps = (machine: Machine) => machine.processes().map((process) => process.steps);
const wrongIn = (machine: Machine, replays?: Replays) => whileStopped(machine, () => findWrong(machine.kernel.memory, replays));
const submitted = (memory: ReadableMemory) => submittedRequests(memory).length;

/** Entries of the request table that are in use, and their data. */
function diskEntries(memory: ReadableMemory) {
  const table = memory.read(memory.load32(KERNEL_BLOCK) * FRAME_BYTES, FRAME_BYTES << TABLE_ORDER);
  const words = new Int32Array(Uint8Array.from(table).buffer);
  return Array.from({ length: words.length / 8 }, (_, entry) => {
    const [state, status, operation, sector, frame] = words.subarray(entry * 8);
    return {
      entry,
      state,
      status,
      operation,
      sector: sector!,
      data: Buffer.from(memory.read(frame! * FRAME_BYTES, FRAME_BYTES)),
    };
  }).filter(({ state }) => state !== 0);
}

/** Every process gets on, by at least this many steps, and everything is right. */
async function goesOn(t: ExecutionContext, machine: Machine, by = 200, replays?: Replays): Promise<void> {
  const before = steps(machine);
  const failures = () => machine.processes().filter(({ failure }) => failure !== "");
  await until(
    () => failures().length > 0 || steps(machine).every((count, i) => count >= before[i]! + by),
    "every process gets on",
  );
  t.deepEqual(wrongIn(machine, replays), []);
  machine.check();
}

/** A machine whose disk process waits for requests, of which some are reads, that the host has carried out. */
async function stuck(t: ExecutionContext, options: Partial<MachineOptions> = {}) {
  const booted = await bootWithDisk(t, options);
  booted.machine.spawn("disk:sectors=16,depth=8");
  await until(() => booted.transfers.seen.some(({ operation }) => operation === "read"), "the disk is read");
  booted.transfers.holds = true;
  // Until the process waits for one of them, and none of the others is still to come.
  const { memory } = booted.machine.kernel;
  const state = () => [steps(booted.machine)[0], booted.transfers.waiting, submitted(memory)].join();
  let before = "";
  const isStuck = () => {
    const settled = before === state() && booted.transfers.waiting > 0 && booted.transfers.waiting === submitted(memory);
    before = state();
    return settled;
  };
  do await sleep(30);
  while (!isStuck());
  return { ...booted, inFlight: booted.transfers.waiting };
}

// ---- the disk, without a save ----

test("disk: sectors are written and read back, by two processes at a time; the file has what was written", async (t) => {
  const { machine, transfers, disk } = await bootWithDisk(t);
  machine.spawn("disk:sectors=32,seed=1");
  machine.spawn("disk:first=32,sectors=32,seed=2,depth=16");
  await goesOn(t, machine, 1000);
  t.true(
    readFileSync(disk)
      .subarray(0, 64 * FRAME_BYTES)
      .some((byte) => byte !== 0),
  );
  t.deepEqual([...new Set(transfers.seen.map(({ operation }) => operation))].sort(), ["flush", "read", "write"]);
  await machine.powerOff();
});

/** A request in the name of a process that sleeps: how it ended. */
async function carryOut(machine: Machine, operation: DiskOperation, sector: number, fill = 0) {
  const { kernel } = machine;
  const { slot, pid } = machine.processes().find(({ text }) => text.startsWith("idle")) ?? machine.spawn("idle:ms=3600000");
  const data = operation === "write" ? new Uint8Array(FRAME_BYTES).fill(fill) : undefined;
  const name = { slot, pid, tag: 15 };
  const answer = kernel.control.locked(() => submitRequest(kernel, name, { operation, sector, data }));
  if (answer !== "submitted") throw new Error(answer);
  machine.devices.service();
  let result: ReturnType<typeof takeResult>;
  await until(() => (result = kernel.control.locked(() => takeResult(kernel, name))) !== undefined, "the request is done");
  if (result === undefined || result === "unknown") throw new Error("there is no such request");
  return result;
}

test("disk: what goes wrong with the file is the guest's to see, and the machine goes on", async (t) => {
  let fails: string | undefined;
  const { machine, disk } = await bootWithDisk(t, {
    onDiskTransfer: () => {
      if (fails !== undefined) throw Object.assign(new Error(fails), { code: fails });
    },
  });
  t.is((await carryOut(machine, "write", 7, 5)).status, "ok");
  t.deepEqual((await carryOut(machine, "read", 7)).data, new Uint8Array(FRAME_BYTES).fill(5));
  for (const [code, status] of [
    ["EIO", "I/O error"],
    ["ENOSPC", "no space"],
  ] as const) {
    fails = code;
    t.deepEqual(await carryOut(machine, "write", 1), { status, data: undefined });
    t.deepEqual(await carryOut(machine, "read", 1), { status, data: undefined });
    t.deepEqual(await carryOut(machine, "flush", 0), { status, data: undefined });
  }
  const { pid } = machine.spawn("disk:first=100");
  const find = () => machine.processes().find((process) => process.pid === pid)!;
  await until(() => find().failure !== "", "a process that did not expect it ends");
  t.is(find().failure, "disk: write of sector 100: no space");
  fails = undefined;
  await until(() => submitted(machine.kernel.memory) === 0, "what it had in flight is over");
  t.is((await carryOut(machine, "read", SECTORS)).status, "out of range");
  t.is((await carryOut(machine, "write", 2 ** 32 - 1)).status, "out of range");
  truncateSync(disk, FRAME_BYTES * 7 + 100);
  t.is((await carryOut(machine, "read", 7)).status, "I/O error");
  t.is((await carryOut(machine, "write", 7, 6)).status, "ok");
  t.is((await carryOut(machine, "read", 7)).data!.at(-1), 6);
  machine.check();
});

test("disk: many requests of many processes, some of which end with theirs in flight", async (t) => {
  const { machine, transfers } = await bootWithDisk(t);
  machine.spawn("disk:first=200,sectors=16,depth=16");
  await goesOn(t, machine);
  const frames = () => whileStopped(machine, () => blocksOfKind(machine.kernel.memory, KIND_DMA).length);
  const slots = new Set<number>();
  for (let round = 0; round < 4; round++) {
    const others = () => diskEntries(machine.kernel.memory).filter(({ entry }) => entry >= 16);
    await until(() => others().length === 0, "nothing is left of an earlier round");
    transfers.holds = true;
    const doomed = [0, 1, 2].map((i) => machine.spawn(`disk:first=${i * 16},sectors=16,depth=16,seed=${round}`));
    await until(() => transfers.waiting >= 48, "theirs are in flight");
    for (const { slot } of doomed) {
      slots.add(slot);
      machine.kernel.lifecycle.end(slot);
    }
    await until(() => machine.processes().length === 1, "they have ended");
    const heir = machine.spawn("disk:first=100,sectors=16"); // has the slot of one
    t.true(slots.has(heir.slot));
    await until(() => machine.processes().find(({ pid }) => pid === heir.pid)!.steps === 2, "whose tags it waits for");
    transfers.release();
    await goesOn(t, machine);
    machine.kernel.lifecycle.end(heir.slot);
    await until(() => machine.processes().length === 1, "it has ended");
  }
  machine.kernel.lifecycle.end(machine.processes()[0]!.slot);
  await until(() => machine.processes().length === 0, "all have ended");
  await until(() => diskEntries(machine.kernel.memory).length === 0, "nothing is left of their requests");
  t.is(frames(), 3, "the console, the pool, the table");
});

test("disk: a process that asks for one where there is none is not started, or fails", async (t) => {
  const machine = await bootMachine(t);
  t.throws(() => machine.spawn("disk"), { code: "HIB_USAGE", message: /the machine has none: give it one with --disk/ });
  t.throws(() => machine.spawn("files:dir=/nowhere"), { code: "HIB_USAGE", message: /there is no directory \/nowhere/ });
  machine.kernel.lifecycle.spawn("disk", createRunner("disk"), { boot: false }); // as by exec
  await until(() => machine.processes()[0]!.failure !== "", "it fails");
  t.regex(machine.processes()[0]!.failure, /the machine has none: give it one with --disk/);
});

test("disk: what cannot be one is refused", async (t) => {
  const directory = scratch(t);
  await t.throwsAsync(Machine.boot({ ramBytes: 16 * MIB, vcpus: 1, disk: join(directory, "none") }), {
    code: "HIB_IO",
    message: /the disk: ENOENT.*none'; give a file .*truncate -s 64M/,
  });
  await t.throwsAsync(Machine.boot({ ramBytes: 16 * MIB, vcpus: 1, disk: directory }), { code: "HIB_IO" });
  for (const bytes of [0, 100, FRAME_BYTES + 1]) {
    const disk = createDisk(t);
    truncateSync(disk, bytes);
    await t.throwsAsync(Machine.boot({ ramBytes: 16 * MIB, vcpus: 1, disk }), { code: "HIB_USAGE", message: /cannot be a disk/ });
  }
});

// ---- DMA in flight: when a save is armed, while it streams, at the stop, at the atomic restore ----

/** Reads that are done have the data that the file has (nobody writes to it meanwhile). */
function wrongDone(memory: ReadableMemory, disk: string): number[] {
  const file = readFileSync(disk);
  return diskEntries(memory)
    .filter(({ state, operation }) => state === 2 && operation === 0)
    .filter(({ sector, data }) => !data.equals(file.subarray(sector * FRAME_BYTES, (sector + 1) * FRAME_BYTES)))
    .map(({ sector }) => sector);
}

/**
 * Saves a machine whose disk has reads in flight when it is armed. They end once their frames have been read by the
 * page writer, so that only the mark of a device store brings them into the image.
 */
async function saveWhileReading(t: ExecutionContext, sabotage: number, options: SaveOptions = {}) {
  const { machine, transfers, disk } = await bootWithDisk(t, { ramBytes: 96 * MIB, pageThreads: 1 });
  for (let sector = 0; sector < 8; sector++) await carryOut(machine, "write", sector, sector + 1);
  const { slot, pid } = machine.processes()[0]!; // sleeps, and takes nothing
  transfers.holds = true;
  for (let tag = 0; tag < 8; tag++) {
    const answer = machine.control.locked(() =>
      submitRequest(machine.kernel, { slot, pid, tag }, { operation: "read", sector: tag }),
    );
    t.is(answer, "submitted");
  }
  machine.devices.service();
  await until(() => transfers.waiting === 8, "they are in flight");
  machine.spawn("zipf:pages=12000,content=random,rate=10000");
  machine.control.store(MACHINE_SABOTAGE, sabotage);
  const path = join(scratch(t), "image");
  let released = false;
  const saving = save(machine, path, {
    ...options,
    onProgress: ({ phase, done, total }) => {
      if (phase !== "stream" || done < 1000 || done > 0.9 * total || released) return;
      released = true;
      transfers.release();
    },
  });
  return { machine, transfers, disk, path, saving, released: () => released };
}

test("DMA that is in flight when a save is armed and ends while it streams is in the image", async (t) => {
  const { saving, path, disk, released } = await saveWhileReading(t, SABOTAGE_NONE, { oracle: true });
  await saving;
  t.true(released());
  const image = await openImage(path);
  const memory = image.memory();
  t.is(diskEntries(memory).filter(({ state }) => state === 2).length, 8);
  t.deepEqual(wrongDone(memory, disk), []);
  t.deepEqual(findWrong(memory), []);
  image.close();
});

test("DMA while a save streams: without its marks the oracle stops the save, and without the oracle the image lacks it", async (t) => {
  const caught = await saveWhileReading(t, SABOTAGE_NO_DEVICE, { oracle: true });
  await t.throwsAsync(caught.saving, { code: "HIB_ORACLE" });
  const { saving, path, disk } = await saveWhileReading(t, SABOTAGE_NO_DEVICE);
  await saving;
  const image = await openImage(path);
  t.true(submitted(image.memory()) > 0 || wrongDone(image.memory(), disk).length > 0);
  image.close();
});

/** Hibernates with requests in flight, which end while the stopped machine is written: what was changed by that. */
async function hibernateReading(t: ExecutionContext, sabotage: number) {
  const { machine, transfers, disk, inFlight } = await stuck(t);
  machine.spawn("zipf:pages=2000,content=random");
  machine.control.store(MACHINE_SABOTAGE, sabotage);
  const path = join(scratch(t), "image");
  let atStop: ReturnType<typeof diskEntries> | undefined;
  await save(machine, path, {
    reserveFrames: 0, // so that the residual set is written from where it is, while the event loop turns
    onProgress: ({ phase }) => {
      if (phase !== "residual" || atStop !== undefined) return;
      atStop = diskEntries(machine.kernel.memory);
      transfers.release();
    },
  });
  return { path, disk, inFlight, atStop: atStop!, after: diskEntries(machine.kernel.memory) };
}

test("DMA in flight at the stop: not a byte comes after quiesce, and whoever resumes carries the requests out again", async (t) => {
  const { path, disk, inFlight, atStop, after } = await hibernateReading(t, SABOTAGE_NONE);
  t.deepEqual(after, atStop);
  const image = await openImage(path);
  t.deepEqual(diskEntries(image.memory()), atStop);
  t.is(submitted(image.memory()), inFlight);
  t.true(image.memory().load32(KERNEL_BLOCK_STATE) > 0);
  image.close();

  const transfers = new Transfers();
  transfers.holds = true;
  const machine = await bootMachine(t, { onDiskTransfer: transfers.hook });
  await resume(machine, path);
  t.is(machine.kernel.memory.load32(KERNEL_BLOCK_STATE), 0);
  await until(() => transfers.waiting === inFlight, "all are carried out again");
  t.is(machine.devices.hostFiles[0]!.path, disk);
  transfers.release();
  await goesOn(t, machine);
});

test("DMA at the stop: a device that goes on storing after quiesce is seen", async (t) => {
  const { atStop, after } = await hibernateReading(t, SABOTAGE_NO_QUIESCE);
  t.notDeepEqual(after, atStop);
});

test("DMA in flight at the stop of a snapshot is carried out once, and the machine goes on", async (t) => {
  const { machine, transfers, inFlight } = await stuck(t);
  const before = transfers.seen.length;
  const path = join(scratch(t), "image");
  for (const pauseTarget_ms of [0, Infinity]) {
    await save(machine, path, { keepRunning: true, oracle: true, pauseTarget_ms });
    const image = await openImage(path);
    t.is(submitted(image.memory()), inFlight);
    t.deepEqual(findWrong(image.memory()), []);
    image.close();
    await rm(path, { recursive: true });
  }
  machine.kernel.lifecycle.end(machine.processes()[0]!.slot);
  await until(() => machine.processes().length === 0, "nobody submits more");
  transfers.release();
  await until(() => submitted(machine.kernel.memory) === 0, "all are done");
  t.is(transfers.seen.length, before);
  t.is(machine.kernel.memory.load32(KERNEL_BLOCK_STATE), 0, "its frame was given back");
});

/** Resumes an image in a machine whose own disk has requests in flight; they end afterwards. */
async function restoreWhileReading(t: ExecutionContext, sabotage: number) {
  const saved = await stuck(t);
  const path = join(scratch(t), "image");
  await save(saved.machine, path);
  const { machine, transfers, inFlight } = await stuck(t);
  machine.control.store(MACHINE_SABOTAGE, sabotage);
  await resume(machine, path);
  await until(() => transfers.waiting === inFlight + saved.inFlight, "the restored machine's requests are in flight, too");
  const seen = transfers.seen.length;
  transfers.release(inFlight); // the booting machine's
  // A request that is taken for done is missed, or the process has made another by then.
  const missed = (): number => saved.inFlight - whileStopped(machine, () => submitted(machine.kernel.memory));
  return { machine, transfers, lost: () => Math.max(missed(), transfers.seen.length - seen) };
}

test("DMA in flight at the atomic restore never comes to the restored machine, which goes on with its own disk", async (t) => {
  const restored = await restoreWhileReading(t, SABOTAGE_NONE);
  for (let turn = 0; turn < 100; turn++) await new Promise(setImmediate);
  t.is(restored.lost(), 0);
  restored.transfers.release();
  await goesOn(t, restored.machine);
});

test("DMA at the atomic restore: a booting machine's device that is not quiesced damages the restored one", async (t) => {
  const restored = await restoreWhileReading(t, SABOTAGE_NO_QUIESCE);
  await until(() => restored.lost() > 0, "a request of the restored machine is taken for done");
  t.pass();
});

test("a save or resume that fails leaves the devices at work", async (t) => {
  const { machine } = await bootWithDisk(t);
  machine.spawn("disk");
  machine.spawn("entropy");
  const path = join(scratch(t), "image");
  t.teardown(() => setFailpoints(undefined));
  for (const point of ["save.prepare", "save.armed", "save.stopped", "save.residual", "save.seal"]) {
    setFailpoints(`${point}=EIO`);
    await t.throwsAsync(save(machine, path), { code: "HIB_IO" });
    t.is(machine.kernel.memory.load32(KERNEL_BLOCK_STATE), 0);
    await goesOn(t, machine);
  }
  setFailpoints(undefined);
  const other = await bootMachine(t);
  await save(other, path);
  setFailpoints("resume.stopped=EIO");
  await t.throwsAsync(resume(machine, path), { code: "HIB_IO" });
  await goesOn(t, machine);
});

// ---- entropy and clocks ----

const pool = (memory: ReadableMemory) => Buffer.from(memory.read(memory.load32(KERNEL_ENTROPY) * FRAME_BYTES, FRAME_BYTES));
const callsOf = (machine: Machine) => createDeviceCalls(machine.kernel, { slot: 0, pid: 0 }, () => machine.devices.service());

test("entropy: the pool is refilled, words that were given are wiped, and an empty pool is waited for", async (t) => {
  const machine = await bootMachine(t);
  const calls = callsOf(machine);
  const drawn = Array.from({ length: 3000 }, () => calls.random());
  t.false(drawn.includes(undefined));
  t.true(new Set(drawn).size > 2990);
  const silent = createDeviceCalls(machine.kernel, { slot: 0, pid: 0 }, () => undefined);
  const all: number[] = [];
  for (let word = silent.random(); word !== undefined; word = silent.random()) all.push(word);
  t.true(all.length > 0);
  t.true(pool(machine.kernel.memory).every((byte) => byte === 0));
  machine.devices.service();
  t.not(silent.random(), undefined);
});

test("entropy: of a pool that nobody has drawn from, no word is in an image", async (t) => {
  const machine = await bootMachine(t, { ramBytes: 16 * MIB, vcpus: 1 });
  t.not(pool(machine.kernel.memory).readUInt32LE(FRAME_BYTES - 4), 0, "its last word is one of the words (or you won a lottery)");
  const path = join(scratch(t), "image");
  await save(machine, path);
  const image = await openImage(path);
  t.true(pool(image.memory()).every((byte) => byte === 0));
  image.close();
});

test("entropy: two resumes of one image have other random words and another generation, each higher than before", async (t) => {
  const saved = await bootMachine(t);
  saved.spawn("entropy:rate=100");
  await until(() => steps(saved)[0]! > 10, "it runs");
  const directory = scratch(t);
  const snapshot = join(directory, "snapshot");
  await save(saved, snapshot, { keepRunning: true });
  const image = await openImage(snapshot);
  const memory = image.memory();
  t.true(
    pool(memory).every((byte) => byte === 0),
    "the image holds none that is still to be given",
  );
  const filled = (machine: Machine) =>
    machine.kernel.memory.load32(machine.kernel.memory.load32(KERNEL_ENTROPY) * FRAME_BYTES) > 250;
  await until(() => filled(saved), "who goes on has filled its pool");
  const pools = [whileStopped(saved, () => pool(saved.kernel.memory))];
  const generations = [memory.loadFloat64(KERNEL_GENERATION)];
  image.close();
  t.is(callsOf(saved).generation(), generations[0]!, "who goes on is the same machine");
  for (const again of [false, true]) {
    const machine = await bootMachine(t);
    await resume(machine, snapshot, { again });
    pools.push(whileStopped(machine, () => pool(machine.kernel.memory)));
    generations.push(callsOf(machine).generation());
    t.true(generations.at(-1)! > generations[0]!);
    await goesOn(t, machine);
    await machine.powerOff();
  }
  t.is(new Set(generations).size, 3);
  const words = pools.flatMap((bytes) => Array.from({ length: 100 }, (_, i) => bytes.readBigUInt64LE(8 + i * 8)));
  t.is(new Set(words).size, words.length);
});

test("timer: the monotonic clock stands still while a machine is an image, the wall clock goes on", async (t) => {
  const saved = await bootMachine(t);
  saved.control.setGuestClock(1e9);
  const path = join(scratch(t), "image");
  await save(saved, path);
  const image = await openImage(path);
  const clock = image.memory().loadFloat64(KERNEL_CLOCK);
  const { time } = image.header;
  image.close();
  await sleep(300);
  const machine = await bootMachine(t);
  await resume(machine, path);
  const calls = callsOf(machine);
  const monotonic = calls.monotonicTime() - clock;
  const wall = calls.wallTime() - time;
  t.true(monotonic >= 0);
  t.true(wall - monotonic > 250, `${wall} ms passed, ${monotonic} ms of them for the machine`);
});

// ---- all of it at once ----

test("devices at work through snapshots and hibernations of a machine with 2 vCPUs", async (t) => {
  const draws = new Draws(t);
  const disk = createDisk(t);
  const directory = scratch(t);
  const slow = () => (draws.below(3) === 0 ? sleep(draws.below(15)) : undefined);
  const onDiskTransfer = async (): Promise<void> => void (await slow());
  let machine = await bootMachine(t, { disk, onDiskTransfer });
  const programs = [
    "disk:sectors=60,depth=12,seed=1",
    "disk:first=60,sectors=9,depth=9,seed=2",
    "disk:first=80,sectors=100,depth=16,seed=3",
    "entropy:rate=5000",
    "zipf:pages=800,rate=20000",
    "heap:slots=20,rate=5000",
  ];
  for (const program of programs) machine.spawn(program);
  const replays: Replays = new Map();
  let inFlight = 0;
  for (let round = 1; round <= 15; round++) {
    await sleep(draws.below(40));
    const path = join(directory, `image-${round}`);
    const keepRunning = draws.below(2) === 0;
    const approach = draws.of(APPROACH_NAMES);
    await save(machine, path, {
      keepRunning,
      approach,
      oracle: true,
      ...(approach === "write-fault" && draws.below(2) === 0 ? { pauseTarget_ms: draws.of([0, 0.05, Infinity]) } : {}),
    });
    const image = await openImage(path);
    inFlight += submitted(image.memory());
    t.deepEqual(findWrong(image.memory(), replays), [], `image ${round}`);
    image.close();
    if (!keepRunning) {
      machine = await bootMachine(t, { vcpus: draws.between(1, 2), onDiskTransfer });
      machine.spawn("boot-housekeeping:200");
      await resume(machine, path);
      t.is(machine.processes().length, programs.length);
    }
    await rm(path, { recursive: true });
    await goesOn(t, machine, 30, replays);
  }
  t.true(inFlight > 0);
  t.log(`${inFlight} requests were in flight at the stops`);
});
