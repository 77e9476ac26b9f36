/**
 * The pause of a snapshot: what is done between the stop and the go, what after it, and that what is done after it is as of the stop.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import {
  FRAME_BYTES,
  MACHINE_KERNEL_LOCK,
  MACHINE_STOP_SET,
  MAX_VCPUS,
  SAVEABLE_BITMAP,
  STOP_BITMAP,
} from "../src/base/layout.js";
import type { Pfn } from "../src/base/memory.js";
import { WriteTracking } from "../src/cow/tracking.js";
import { save } from "../src/hibernate.js";
import { openImage } from "../src/image/directory.js";
import type { Machine } from "../src/machine.js";
import { resume } from "../src/resume.js";
import { O_RDONLY, SEEK_SET } from "../src/vm/files/flags.js";
import { readInode } from "../src/vm/files/inode.js";
import { KIND_FILE_CLEAN, KIND_FILE_KEPT, KIND_KERNEL_HEAP } from "../src/vm/memory/kernel-layout.js";
import { bootMachine, findWrong, HandMachine, MIB, scratch, sleep, whileStopped } from "./support.js";

/** Calls something whenever a method of an object is called, before it. */
function before<T extends object>(object: T, method: keyof T & string, call: () => void): void {
  const original = object[method] as (...args: unknown[]) => unknown;
  Object.assign(object, {
    [method]: (...args: unknown[]) => {
      call();
      return original.apply(object, args);
    },
  });
}

/** The steps of a save's stop, in the order in which they come. */
function watch(machine: Machine): string[] {
  const seen: string[] = [];
  const { claims, devices, quiesce, tracking } = machine;
  // By the coordinator: a vCPU may be in the kernel at any time.
  const isClosed = () => (machine.control.load(MACHINE_KERNEL_LOCK) & 0xff) > MAX_VCPUS;
  before(quiesce, "stop", () => seen.push("stop"));
  before(devices, "quiesce", () => seen.push("devices"));
  before(claims, "openQueue", () => seen.push("queue"));
  before(claims, "queueCopies", () => seen.push("copies"));
  before(tracking, "armTail", () => seen.push("protect"));
  before(quiesce, "release", () => seen.push("go"));
  before(tracking, "freezeSaveable", () => seen.push(!isClosed() ? "note" : "note, kernel closed"));
  before(quiesce, "left", () => seen.push(!isClosed() ? "open" : "closed"));
  return seen;
}

const busy = async (t: ExecutionContext): Promise<Machine> => {
  const machine = await bootMachine(t, { ramBytes: 64 * MIB, vcpus: 2 });
  for (const text of ["zipf:pages=3000", "incrementer:pages=500", "heap:slots=20"]) machine.spawn(text);
  await sleep(200);
  return machine;
};

test("a snapshot goes on before anything is listed or copied, and the kernel opens once all is noted", async (t) => {
  const machine = await busy(t);
  const seen = watch(machine);
  const path = join(scratch(t), "image");
  const report = await save(machine, path, { keepRunning: true, oracle: true });
  t.deepEqual(seen.slice(seen.indexOf("stop")), ["stop", "devices", "queue", "protect", "go", "note, kernel closed", "open"]);
  t.is(report.atomic_copy.frames, 0);
  t.is(report.tail.frames, report.residual_frames);
  const image = await openImage(path);
  t.deepEqual(findWrong(image.memory()), []);
  image.close();
});

test("a snapshot that is to copy does so before it goes on, and only so many frames", async (t) => {
  const machine = await busy(t);
  const seen = watch(machine);
  const report = await save(machine, join(scratch(t), "image"), { keepRunning: true, pauseTarget_ms: 0.1 });
  t.deepEqual(seen.slice(seen.indexOf("stop")), ["stop", "devices", "queue", "note", "copies", "protect", "go", "open"]);
  t.is(report.atomic_copy.frames, 100);
});

test("a hibernation copies no more than its pause allows, and writes the rest from where it is", async (t) => {
  const machine = await bootMachine(t, { ramBytes: 64 * MIB, vcpus: 2 });
  machine.spawn("random:pages=6000");
  await sleep(200);
  const path = join(scratch(t), "image");
  const { atomic_copy, reserve, residual_frames, tail } = await save(machine, path, { pauseTarget_ms: 1, oracle: true });
  t.is(atomic_copy.frames, Math.min(1000, residual_frames));
  t.is(reserve.overflow_frames, residual_frames - atomic_copy.frames);
  t.is(tail.frames, 0);
  const image = await openImage(path);
  t.deepEqual(findWrong(image.memory()), []);
  image.close();
});

test("what belongs to the image counts once it is all there", (t) => {
  const { control, kernel } = new HandMachine();
  const seen: number[] = [];
  const core = {
    ...kernel.core,
    copyBitmap: (to: number, from: number) => {
      seen.push(control.load(MACHINE_STOP_SET));
      kernel.core.copyBitmap(to, from);
    },
  };
  const tracking = new WriteTracking(control, core, 1);
  tracking.arm();
  tracking.freezeSaveable();
  t.deepEqual(seen, [SAVEABLE_BITMAP]);
  t.is(control.load(MACHINE_STOP_SET), STOP_BITMAP);
});

/** A machine whose process has read three pages of a file of the host, and the frames that hold them. */
async function withFile(t: ExecutionContext) {
  const host = scratch(t);
  const file = join(host, "data");
  writeFileSync(file, "a".repeat(3 * FRAME_BYTES));
  const options = { ramBytes: 32 * MIB, vcpus: 1 };
  const machine = await bootMachine(t, { ...options, mounts: [{ path: "/host", host, readOnly: false }] });
  const { control, files, memory, objects } = machine.kernel;
  const { slot } = machine.spawn("idle:ms=1000");
  const fd = control.locked(() => files.open(slot, "/host/data", O_RDONLY) as number);
  control.locked(() => files.read(slot, fd, 3 * FRAME_BYTES));
  const { object } = readInode(memory, files.descriptions.find(slot, fd)!.behind);
  const frames = [0, 1, 2].map((page) => objects.find(object, page)!);
  return { machine, options, file, slot, fd, frames };
}

const kinds = (machine: Machine, frames: readonly Pfn[]) => frames.map((frame) => machine.kernel.buddy.kindOf(frame));

for (const when of ["before the save", "before the stop", "after the stop"] as const) {
  test(`clean pages of a file that somebody else changes ${when} are stored as they were, and the machine is not changed`, async (t) => {
    const { machine, options, file, slot, fd, frames } = await withFile(t);
    const change = () => writeFileSync(file, "b".repeat(3 * FRAME_BYTES));
    if (when === "before the save") change();
    if (when === "before the stop") before(machine.quiesce, "stop", change);
    if (when === "after the stop") before(machine.tracking, "freezeSaveable", change);
    const path = join(scratch(t), "image");
    const report = await save(machine, path, { keepRunning: true, oracle: true });
    t.deepEqual([report.frames.by_reference, report.changed_files], [0, [file]]);
    t.deepEqual(kinds(machine, frames), [KIND_FILE_CLEAN, KIND_FILE_CLEAN, KIND_FILE_CLEAN]);
    const image = await openImage(path);
    for (const frame of frames) t.is(Buffer.from(image.memory().readFrame(frame)).toString(), "a".repeat(FRAME_BYTES));
    image.close();
    const woken = await bootMachine(t, options);
    await resume(woken, path, { acceptChangedFiles: true });
    t.deepEqual(kinds(woken, frames), [KIND_FILE_KEPT, KIND_FILE_KEPT, KIND_FILE_KEPT]);
    const { control, files } = woken.kernel;
    control.locked(() => {
      files.seek(slot, fd, 0, SEEK_SET);
      t.is(Buffer.from(files.read(slot, fd, 3 * FRAME_BYTES) as Uint8Array).toString(), "a".repeat(3 * FRAME_BYTES));
    });
    // Nobody has stored to these pages, so nobody undoes what somebody else wrote; who does store to one writes that one.
    const { memory, objects } = woken.kernel;
    const { object } = readInode(memory, files.descriptions.find(slot, fd)!.behind);
    t.is(
      control.locked(() => files.contents.writeBack(object, 0, 3)),
      0,
    );
    t.is(readFileSync(file, "utf8"), "b".repeat(3 * FRAME_BYTES));
    control.locked(() => objects.makeDirty(object, frames[1]!));
    control.locked(() => files.contents.writeBack(object, 0, 3));
    t.is(readFileSync(file, "utf8"), "b".repeat(FRAME_BYTES) + "a".repeat(FRAME_BYTES) + "b".repeat(FRAME_BYTES));
  });
}

test("frames that are freed and allocated as soon as the kernel opens: the image is as of the stop", async (t) => {
  const machine = await bootMachine(t, { ramBytes: 64 * MIB, vcpus: 2 });
  machine.spawn("random:pages=3000");
  await sleep(100);
  const { buddy, memory } = machine.kernel;
  const path = join(scratch(t), "image");
  const had = machine.control.locked(() => Array.from({ length: 500 }, () => buddy.allocate(0, 0, KIND_KERNEL_HEAP)!));
  for (const frame of had) memory.store32(frame * FRAME_BYTES, frame);
  before(machine.quiesce, "left", () =>
    machine.control.locked(() => {
      for (const frame of had) buddy.free(frame);
      for (let i = 0; i < 500; i++) memory.zero(buddy.allocate(0, 0, KIND_KERNEL_HEAP)!, 1);
    }),
  );
  await save(machine, path, { keepRunning: true });
  const image = await openImage(path);
  for (const frame of had) t.is(image.memory().load32(frame * FRAME_BYTES), frame);
  image.close();
  t.deepEqual(
    whileStopped(machine, () => findWrong(memory)),
    [],
  );
});
