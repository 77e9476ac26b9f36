/**
 * The last frame of a machine with the largest RAM: it ends at 2^32, which no 32-bit number holds. It is staged, hashed, saved
 * and resumed like any other. The host gives frames as they are touched, so such a machine costs no more than its tables.
 */
import { randomBytes } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import ava from "ava";
import {
  DIRTY_BITMAP,
  FRAME_BYTES,
  LIST_FRAMES,
  QUEUE_FRAMES,
  QUEUE_PLACES,
  MACHINE_CURSOR,
  MACHINE_LIST_LENGTH,
  POOL_BASE,
  SAVEABLE_BITMAP,
  STAGE_LIVE,
  STAGE_QUEUED,
  VERDICT_SAME_FILLED,
  VERDICT_STAGED,
} from "../src/base/layout.js";
import { bit } from "../src/base/control.js";
import { RAM_BYTES_MAX } from "../src/base/limits.js";
import { save } from "../src/hibernate.js";
import { checksum, loadChecksum } from "../src/image/checksum.js";
import { openImage } from "../src/image/directory.js";
import { verifyChunks } from "../src/image/verify.js";
import { resume } from "../src/resume.js";
import { O_RDWR } from "../src/vm/files/flags.js";
import type { Kernel } from "../src/vm/kernel.js";
import { KIND_FILE_CLEAN, KIND_RESERVE, KIND_USER, MAX_ORDER } from "../src/vm/memory/kernel-layout.js";
import { frameAddress, placeOfFrame, POOL_PLACE } from "../src/vm/memory/physical.js";
import { bootMachine, findWrong, HandMachine, scratch, until, whileStopped } from "./support.js";

/** One at a time: a live machine wants both cores. */
const test = ava.serial;

const LAST = RAM_BYTES_MAX / FRAME_BYTES - 1;
const BLOCK = 1 << MAX_ORDER;

/** Takes all memory that is free, and gives back the last block of the largest order. Returns another block, to be given back. */
function leaveLastBlock({ buddy, control }: Kernel): number {
  return control.locked(() => {
    const other = buddy.allocate(MAX_ORDER, 0, KIND_RESERVE)!;
    for (let order = MAX_ORDER; order >= 0; order--) while (buddy.allocate(order, 0, KIND_RESERVE) !== undefined);
    buddy.free(LAST + 1 - BLOCK);
    return other;
  });
}

/** Takes all of the last block but its last frame. */
function leaveLastFrame(kernel: Kernel): number {
  const other = leaveLastBlock(kernel);
  kernel.control.locked(() => {
    // The lower half of what is left, and again.
    for (let order = MAX_ORDER - 1; order >= 0; order--) kernel.buddy.allocate(order, 0, KIND_RESERVE);
  });
  return other;
}

test("the last frame: every word of it counts, wherever it is looked at", async (t) => {
  await loadChecksum();
  const { control, kernel, tracking } = new HandMachine({ ramBytes: RAM_BYTES_MAX });
  const { core, memory } = kernel;
  t.is(frameAddress(LAST) + FRAME_BYTES, 2 ** 32);
  const frameBytes = () => memory.read(LAST * FRAME_BYTES, FRAME_BYTES);
  const stage = (mode: number) => {
    control.words[LIST_FRAMES >>> 2] = LAST;
    control.words[QUEUE_PLACES >>> 2] = placeOfFrame(LAST);
    core.stage(0, 1, mode, POOL_BASE, POOL_BASE + 0x2000, POOL_BASE + 0x3000);
    return new Uint8Array(control.words.buffer)[POOL_BASE + 0x2000]!;
  };
  const modes = [STAGE_LIVE, STAGE_QUEUED];
  for (const mode of modes) t.is(stage(mode), VERDICT_SAME_FILLED);
  t.true(memory.isFilledWith(LAST, 0, 0));
  const hashes = new Set([core.hashFrame(frameAddress(LAST))]);
  // A word of each vector that is compared, and of every stretch of eight vectors.
  for (let at = 8; at < FRAME_BYTES; at += 8) {
    memory.store32(LAST * FRAME_BYTES + at, at);
    t.false(memory.isFilledWith(LAST, 0, 0), `word at ${at}`);
    hashes.add(core.hashFrame(frameAddress(LAST)));
    for (const mode of modes) t.is(stage(mode), VERDICT_STAGED);
    t.is(BigInt.asUintN(64, core.checksum(frameAddress(LAST), FRAME_BYTES)), checksum(frameBytes()));
    memory.store32(LAST * FRAME_BYTES + at, 0);
  }
  t.is(hashes.size, FRAME_BYTES / 8, "each has a hash of its own");

  // Stores that reach the end mark the last frame and, of two, both.
  const marks = () => [LAST - 1, LAST].map((frame) => bit(control.words, DIRTY_BITMAP, frame));
  const contents = randomBytes(2 * FRAME_BYTES);
  const stores: [() => void, number[]][] = [
    [() => memory.write((LAST - 1) * FRAME_BYTES, contents), [1, 1]],
    [() => memory.write(LAST * FRAME_BYTES - 1, Uint8Array.of(1, 2)), [1, 1]],
    [() => memory.write((LAST + 1) * FRAME_BYTES - 1, Uint8Array.of(3)), [0, 1]],
    [() => memory.storeFloat64((LAST + 1) * FRAME_BYTES - 8, 1.5), [0, 1]],
    [() => memory.copy(LAST - 1, LAST - 3, 2), [1, 1]],
    [() => memory.zero(LAST - 1, 2), [1, 1]],
  ];
  for (const [store, marked] of stores) {
    tracking.arm();
    store();
    t.deepEqual(marks(), marked, store.toString());
  }
  tracking.disarm();
  t.true(memory.isFilledWith(LAST, 0, 0));

  // Out to two places and back, in one run.
  memory.write((LAST - 1) * FRAME_BYTES, contents);
  for (const i of [0, 1]) {
    control.words[(QUEUE_FRAMES >>> 2) + i] = LAST - 1 + i;
    control.words[(QUEUE_PLACES >>> 2) + i] = POOL_PLACE + i;
  }
  const copy = (how: () => void) => {
    control.store(MACHINE_LIST_LENGTH, 2);
    control.store(MACHINE_CURSOR, 0);
    how();
  };
  copy(() => core.gather());
  t.deepEqual(Buffer.from(memory.readPlace(POOL_PLACE, 0, FRAME_BYTES * 2)), contents);
  memory.zero(LAST - 1, 2);
  copy(() => core.scatter());
  t.deepEqual(Buffer.from(memory.read((LAST - 1) * FRAME_BYTES, FRAME_BYTES * 2)), contents);
  t.true(memory.equals(LAST, contents.subarray(FRAME_BYTES)));

  // The allocator: the last block merges, and bears its bits.
  leaveLastFrame(kernel);
  t.is(kernel.buddy.allocate(0, 0, KIND_USER), LAST);
  t.is(bit(control.words, SAVEABLE_BITMAP, LAST), 1);
  kernel.buddy.free(LAST);
  t.is(kernel.buddy.freeFrames, 1);
});

/** Boots a machine whose last frame is nearly zeros: one byte in its middle is not. */
const bootLargest = async (t: Parameters<typeof bootMachine>[0], mounts: { path: string; host: string; readOnly: boolean }[]) => {
  const machine = await bootMachine(t, { ramBytes: RAM_BYTES_MAX, mounts });
  machine.kernel.memory.write(LAST * FRAME_BYTES + 3000, Uint8Array.of(0xee));
  return machine;
};

test("a machine with the largest RAM: its last frame, written while it is saved, is in the image and is resumed", async (t) => {
  const directory = scratch(t);
  const machine = await bootLargest(t, []);
  const other = leaveLastBlock(machine.kernel);
  // Of the block's two halves this takes the upper one for its first 512 pages: a frame with one byte in zeros, and more of them.
  const { pid } = machine.spawn("incrementer:pages=600,content=zero");
  machine.kernel.control.locked(() => machine.kernel.buddy.free(other)); // room for a save
  const steps = () => machine.processes().find((process) => process.pid === pid)!.steps;
  const { memory } = machine.kernel;
  await until(() => steps() > 2000, "all pages have been written");
  t.is(memory.read(LAST * FRAME_BYTES, FRAME_BYTES).filter((byte) => byte !== 0).length, 1);
  for (const [name, options] of Object.entries({
    snapshot: { keepRunning: true },
    tail: { keepRunning: true, pauseTarget_ms: 0 },
    // No room for a copy: the last frame is a place, its own.
    hibernated: { reserveFrames: 0 },
  })) {
    const path = join(directory, name);
    await save(machine, path, { ...options, oracle: true });
    const image = await openImage(path);
    t.deepEqual(findWrong(image.memory()), [], name);
    t.is(
      image
        .memory()
        .readFrame(LAST)
        .filter((byte) => byte !== 0).length,
      1,
      name,
    );
    image.close();
  }
  const woken = await bootLargest(t, []);
  await resume(woken, join(directory, "hibernated"));
  t.deepEqual(
    whileStopped(woken, () => findWrong(woken.kernel.memory)),
    [],
  );
});

test("a machine with the largest RAM: a clean page in its last frame is saved by reference", async (t) => {
  const [host, directory] = [scratch(t), scratch(t)];
  const contents = randomBytes(2 * FRAME_BYTES);
  writeFileSync(join(host, "data"), contents);
  const machine = await bootLargest(t, [{ path: "/host", host, readOnly: false }]);
  const { slot } = machine.spawn("idle:ms=3600000");
  const { buddy, control, files } = machine.kernel;
  await until(() => machine.processes()[0]!.steps > 0, "it sleeps");
  const fd = control.locked(() => files.open(slot, "/host/data", O_RDWR) as number);
  t.is((control.locked(() => files.read(slot, fd, FRAME_BYTES)) as Uint8Array).length, FRAME_BYTES);
  const other = leaveLastFrame(machine.kernel);
  t.is((control.locked(() => files.read(slot, fd, FRAME_BYTES)) as Uint8Array).length, FRAME_BYTES);
  t.is(buddy.kindOf(LAST), KIND_FILE_CLEAN);
  control.locked(() => buddy.free(other)); // room for a save

  const path = join(directory, "image");
  await save(machine, path, { oracle: true });
  const image = await openImage(path);
  t.is((await verifyChunks(image)).referencedFrames, 2);
  t.deepEqual(Buffer.from(image.memory().readFrame(LAST)), contents.subarray(FRAME_BYTES));
  image.close();
  const woken = await bootLargest(t, []);
  await resume(woken, path);
  t.true(woken.kernel.memory.equals(LAST, contents.subarray(FRAME_BYTES)));
  t.deepEqual(
    whileStopped(woken, () => findWrong(woken.kernel.memory)),
    [],
  );
});
