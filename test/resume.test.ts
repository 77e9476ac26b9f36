/**
 * Resume: whatever the booting machine holds and goes on writing, the saved machine is put in place exactly, and
 * what cannot be resumed leaves the booted machine as it was. Each way that a frame can go (S1.6, S1.7) is provoked.
 */
import { existsSync } from "node:fs";
import { copyFile, open } from "node:fs/promises";
import { join } from "node:path";
import ava, { type ExecutionContext } from "ava";
import { setFailpoints } from "../src/base/failpoints.js";
import {
  DIRECT_BITMAP,
  CLAIMED_BITMAP,
  KEEP_BITMAP,
  FRAME_BYTES,
  IMAGE_BITMAP,
  QUEUE_PLACES,
  MACHINE_KERNEL_LOCK,
  MACHINE_PREIMAGES,
  MACHINE_QUEUE_END,
  MACHINE_QUEUE_OVERFLOW,
  MACHINE_SABOTAGE,
  MACHINE_STOP,
  QUEUE_SPARE,
  SABOTAGE_NO_PREIMAGE,
} from "../src/base/layout.js";
import { save } from "../src/hibernate.js";
import { type Image, openImage } from "../src/image/directory.js";
import { BLOB_NAME } from "../src/image/format.js";
import type { Machine, MachineOptions } from "../src/machine.js";
import { resume } from "../src/resume.js";
import type { ResumeOptions } from "../src/resume-options.js";
import type { ResumeReport } from "../src/reports/resume-report.js";
import { bit } from "../src/base/control.js";
import { placeOfFrame } from "../src/vm/memory/physical.js";
import { classify, declassify } from "../src/restore/classify.js";
import {
  KERNEL_CLOCK,
  KERNEL_ENTROPY,
  KERNEL_RESUMES,
  KIND_KERNEL_HEAP,
  kernelLayout,
  PROCESS_BYTES,
  PROCESS_WAKE,
  processAddress,
} from "../src/vm/memory/kernel-layout.js";
import { bootMachine, Draws, findWrong, hibernate, scratch, sleep, until, whileStopped } from "./support.js";

/** One at a time: a live machine wants both cores. */
const test = ava.serial;

const WRITERS = [
  "zipf:pages=800",
  "incrementer:pages=300",
  "stack:pages=60",
  "heap:slots=20",
  "sequential:pages=200,rate=100000",
  "idle:ms=5",
];
/** Sleeps for an hour: a machine of nothing else is the same memory for as long as a test wants. */
const SLEEPER = "idle:ms=3600000,pages=600,content=random";

const steps = (machine: Machine) => machine.processes().map((process) => process.steps);
const rootsOf = (machine: Machine) => machine.processes().map(({ root }) => root);
const wrongIn = (machine: Machine) => whileStopped(machine, () => findWrong(machine.kernel.memory));

/** A machine that has booted: its boot processes run and write. */
async function booted(t: ExecutionContext, options: Partial<MachineOptions> = {}): Promise<Machine> {
  const machine = await bootMachine(t, options);
  machine.spawn("boot-progress");
  machine.spawn("boot-housekeeping:400");
  await until(() => steps(machine).every((count) => count > 0), "the boot processes run");
  return machine;
}

/** What a report says of frames must add up. */
function checkReport(t: ExecutionContext, { frames }: ResumeReport): ResumeReport["frames"] {
  const { direct, equal, equal_written, different, later, image } = frames;
  t.is(direct + equal + equal_written + different + later, image, "every frame went one way");
  return frames;
}

/** The resumed machine goes on, and is then still what its programs make of it. */
async function runsOn(t: ExecutionContext, machine: Machine): Promise<void> {
  t.deepEqual(wrongIn(machine), []);
  const before = steps(machine);
  await until(() => steps(machine).every((count, i) => count > before[i]!), "every process goes on");
  t.deepEqual(wrongIn(machine), []);
  machine.check();
}

/** The first frame that satisfies a condition on its bits, from frame `from`. */
function findFrame(machine: Machine, from: number, condition: (is: (bitmap: number) => boolean) => boolean): number {
  for (let frame = from; frame < machine.kernel.memory.frames; frame++) {
    if (condition((bitmap) => bit(machine.control.words, bitmap, frame) === 1)) return frame;
  }
  throw new Error("there is no such frame");
}

/** The last frame of the process table: unused here and there, and so equal. */
const unusedTable = ({ kernel: { memory } }: Machine) => Math.floor(processAddress(memory, 511) / FRAME_BYTES);

for (const { vcpus, pageThreads } of [
  { vcpus: 1, pageThreads: 2 },
  { vcpus: 2, pageThreads: 1 },
  { vcpus: 3, pageThreads: 2 },
]) {
  test(`a machine of 2 vCPUs goes on exactly on ${vcpus}, with ${pageThreads} loaders and racing boot processes`, async (t) => {
    const path = await hibernate(t, WRITERS);
    const machine = await booted(t, { vcpus, pageThreads });
    const frames = checkReport(t, await resume(machine, path));
    t.true(frames.direct > 500 && frames.different > 0 && frames.equal > 0);
    t.true(frames.patched >= frames.different && frames.overflow === 0);
    t.is(machine.processes().length, WRITERS.length, "the boot processes are gone");
    t.is(machine.kernel.memory.load32(KERNEL_RESUMES), 1);
    await runsOn(t, machine);
  });
}

for (const queueFrames of [undefined, 7, 0]) {
  test(`every frame of the image is in place, byte for byte; places in the queue: ${queueFrames ?? "enough"}`, async (t) => {
    const path = await hibernate(t, [SLEEPER]);
    const machine = await booted(t);
    const report = await resume(machine, path, { keepImage: true, ...(queueFrames === undefined ? {} : { queueFrames }) });
    const { overflow, patched } = checkReport(t, report);
    t.is(overflow > 0, queueFrames !== undefined);
    if (queueFrames !== undefined) t.is(patched - overflow, queueFrames);
    const image = await openImage(path);
    t.teardown(() => image.close());
    // The kernel's own tables change as the machine goes on (clock, vCPU numbers, the reserve freed): checked by their sense.
    // Its pool of random words is another.
    const pool = machine.kernel.memory.load32(KERNEL_ENTROPY);
    t.deepEqual(differing(machine, image, kernelLayout(machine.kernel.memory.frames).staticFrames), [pool]);
    t.deepEqual(wrongIn(machine), []);
  });
}

function differing(machine: Machine, image: Image, from = 0): number[] {
  const memory = image.memory();
  const frames = Array.from({ length: memory.frames - from }, (_, i) => from + i).filter((frame) => memory.has(frame));
  return frames.filter((frame) => !machine.kernel.memory.equals(frame, memory.readFrame(frame)));
}

test("equal here and there, and left alone: nothing is patched", async (t) => {
  const path = await hibernate(t, [SLEEPER]);
  const machine = await booted(t);
  const frame = unusedTable(machine);
  let equal = false;
  const frames = checkReport(
    t,
    await resume(machine, path, {
      onLoaded: () => {
        equal = findFrame(machine, frame, (is) => is(KEEP_BITMAP) && !is(CLAIMED_BITMAP)) === frame;
      },
    }),
  );
  t.true(equal);
  t.true(frames.equal > 0 && frames.patched < frames.image - frames.direct);
});

/** Who stores to what was found equal: the coordinator, which has places of its own, or a vCPU, which has none of them. */
interface EqualWrite {
  sabotage?: number;
  queueFrames?: number;
  /** The coordinator also stores to so many frames that were equal, once the machine has stopped and the image is being consumed. */
  later?: number;
}

/** Resumes a machine in which frames are written to after they were found equal; returns whether they are the image's again. */
async function writeEqual(t: ExecutionContext, options: EqualWrite) {
  const path = await hibernate(t, [SLEEPER]);
  const machine = await booted(t);
  const { control, kernel } = machine;
  control.store(MACHINE_SABOTAGE, options.sabotage ?? 0);
  const frame = unusedTable(machine);
  const write = (to: number) => kernel.memory.write(to * FRAME_BYTES + PROCESS_BYTES, new Uint8Array(PROCESS_BYTES).fill(0xee));
  const written = [frame];
  const settings: ResumeOptions = {
    ...(options.queueFrames === undefined ? {} : { queueFrames: options.queueFrames }),
    onLoaded: () => {
      if (options.later === undefined) return write(frame);
      const first = kernelLayout(kernel.memory.frames).processTable / FRAME_BYTES;
      written.length = 0;
      for (let from = first; written.length < options.later; from = written.at(-1)! + 1)
        written.push(findFrame(machine, from, (is) => is(KEEP_BITMAP) && !is(CLAIMED_BITMAP)));
      setImmediate(() => {
        t.is(control.load(MACHINE_STOP), 1, "it is being consumed");
        for (const to of written) write(to);
      });
    },
  };
  const frames = checkReport(t, await resume(machine, path, { ...settings, keepImage: false, again: true }));
  const image = await openImage(path);
  t.teardown(() => image.close());
  const memory = image.memory();
  const same = written.filter((one) => kernel.memory.equals(one, memory.readFrame(one))).length;
  return { restored: same === written.length, frames };
}

test("equal, but written afterwards: the unmodified version is copied back", async (t) => {
  const { restored, frames } = await writeEqual(t, {});
  t.true(restored);
  t.true(frames.equal_written > 0);
});

test("equal, but written afterwards: without the pre-image the machine would be wrong", async (t) => {
  const { restored } = await writeEqual(t, { sabotage: SABOTAGE_NO_PREIMAGE });
  t.false(restored);
});

test("equal, but written afterwards by a vCPU, and no room for the pre-image: it is read again", async (t) => {
  const program = "incrementer:pages=4000,rate=2000";
  const path = await hibernate(t, [program]);
  const machine = await bootMachine(t);
  machine.spawn(program);
  let refused = 0;
  const report = await resume(machine, path, {
    queueFrames: 0, // a vCPU finds no place at all
    onLoaded: () => {
      // This thread waits; the vCPUs do not.
      const before = machine.control.load(MACHINE_QUEUE_OVERFLOW);
      const kept = () => machine.control.load(MACHINE_QUEUE_OVERFLOW) - before;
      while (kept() < 20) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
      refused = kept();
    },
  });
  const { overflow } = checkReport(t, report);
  t.true(refused >= 20 && overflow > refused);
  await runsOn(t, machine);
});

test("equal, and written by the coordinator while the image is being consumed, beyond its spare places: read again", async (t) => {
  const { restored } = await writeEqual(t, { queueFrames: 0, later: QUEUE_SPARE + 8 });
  t.true(restored);
});

test("the same machine booted again, a little further on, writes what was found equal", async (t) => {
  // It goes round once in forty seconds, so that while it is loaded most of its pages are as they were at first.
  const program = "incrementer:pages=8000,rate=200";
  const path = await hibernate(t, [program]);
  const machine = await bootMachine(t);
  machine.spawn(program);
  const report = await resume(machine, path, {
    onLoaded: () => {
      // This thread waits; the vCPUs do not.
      while (machine.control.load(MACHINE_PREIMAGES) < 5) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    },
  });
  const frames = checkReport(t, report);
  t.true(frames.equal_written >= 5 && frames.equal > 1000);
  await runsOn(t, machine);
});

test("places of the reserve are no frames of the image, whatever the booting machine frees meanwhile", async (t) => {
  const path = await hibernate(t, WRITERS);
  const machine = await booted(t);
  machine.spawn("heap:slots=100");
  machine.spawn("stack:pages=500");
  await until(() => steps(machine).every((count) => count > 0), "they allocate and free");
  const image = await openImage(path);
  let held = false;
  classify(machine.kernel, image.extents, () => {
    held = machine.control.load(MACHINE_KERNEL_LOCK) !== 0;
  });
  declassify(machine.kernel);
  image.close();
  t.true(held, "the reserve is taken under the same hold of the kernel lock");
  await resume(machine, path, {
    onLoaded: () => {
      const { words } = machine.control;
      for (let entry = 0; entry < machine.control.load(MACHINE_QUEUE_END); entry++) {
        const frame = words[(QUEUE_PLACES >>> 2) + entry]! - placeOfFrame(0);
        if (frame >= 0 && bit(words, IMAGE_BITMAP, frame) === 1) t.fail(`frame ${frame} of the image is a place`);
      }
    },
  });
  t.deepEqual(wrongIn(machine), []);
});

test("free here and used there: allocated before the load, and used by nobody else meanwhile", async (t) => {
  const path = await hibernate(t, [SLEEPER]);
  const machine = await booted(t);
  let direct = -1;
  const frames = checkReport(
    t,
    await resume(machine, path, {
      onLoaded: () => {
        direct = machine.core.countBits(DIRECT_BITMAP);
        machine.spawn("zipf:pages=2000"); // the booting machine goes on allocating
        t.notThrows(() => findFrame(machine, 0, (is) => is(DIRECT_BITMAP) && is(IMAGE_BITMAP)));
      },
    }),
  );
  t.is(frames.direct, direct);
  t.true(direct > 0);
  t.deepEqual(wrongIn(machine), []);
});

test("saved and resumed again and again, whatever the number of vCPUs, threads and places", async (t) => {
  const draws = new Draws(t);
  const directory = scratch(t);
  let machine = await bootMachine(t);
  for (const program of WRITERS) machine.spawn(program);
  for (let round = 1; round <= 12; round++) {
    await sleep(draws.below(40));
    const path = join(directory, `image-${round}`);
    await save(machine, path, { oracle: true, compression: draws.of(["lz4", "none"]) });
    machine = await booted(t, { vcpus: draws.between(1, 3), pageThreads: draws.between(1, 2) });
    const lazy = draws.below(2) === 0; // a save that follows waits until all is there
    const places = draws.below(3) === 0 ? { queueFrames: draws.below(200) } : {};
    checkReport(t, await resume(machine, path, { lazy, ...places }));
    t.is(machine.kernel.memory.load32(KERNEL_RESUMES), round);
    t.deepEqual(wrongIn(machine), [], `round ${round}`);
    machine.check();
  }
});

test("time stands still for the saved machine: its clock goes on where it was, and sleepers sleep what was left", async (t) => {
  const saved = await bootMachine(t);
  saved.control.setGuestClock(1e9);
  saved.spawn(SLEEPER);
  saved.spawn("idle:ms=1");
  await until(() => steps(saved).every((count) => count > 0), "both have run");
  const path = join(scratch(t), "image");
  await save(saved, path);
  const image = await openImage(path);
  const clock = image.memory().loadFloat64(KERNEL_CLOCK);
  const wake = image.memory().loadFloat64(processAddress(image.memory(), 0) + PROCESS_WAKE);
  image.close();
  t.true(clock >= 1e9 && wake > clock);

  const machine = await booted(t); // its own clock is near 0
  await resume(machine, path);
  const now = machine.control.guestNow();
  t.true(now >= clock && now < wake, `${now} is after ${clock}`);
  t.is(machine.kernel.memory.loadFloat64(processAddress(machine.kernel.memory, 0) + PROCESS_WAKE), wake);
  const [sleeper, busy] = steps(machine);
  await until(() => steps(machine)[1]! > busy! + 10, "who sleeps 1 ms goes on");
  t.is(steps(machine)[0], sleeper);
  t.is(machine.processes()[0]!.state, "sleeping");
});

test("a process that was in the same slot before has read the same pages: nothing of that is left on the vCPU", async (t) => {
  const program = "incrementer:pages=300,rate=100000";
  const saved = await bootMachine(t, { vcpus: 1 });
  saved.spawn(program);
  await until(() => steps(saved)[0]! > 10 * 300, "it has gone round ten times");
  const path = join(scratch(t), "image");
  const roots = rootsOf(saved);
  await save(saved, path);
  const machine = await bootMachine(t, { vcpus: 1 });
  const { buddy } = machine.kernel;
  // What it gets here is elsewhere in RAM.
  machine.control.locked(() => Array.from({ length: 2000 }, () => buddy.allocate(0, 0, KIND_KERNEL_HEAP)));
  machine.spawn("incrementer:pages=300,rate=2000");
  await until(() => steps(machine)[0]! >= 300, "it has read each page");
  t.notDeepEqual(rootsOf(machine), roots);
  await resume(machine, path);
  const before = steps(machine)[0]!;
  await until(() => steps(machine)[0]! > before + 300 || machine.processes()[0]!.state === "failed", "it has read each page");
  await runsOn(t, machine);
});

test("the image is used, on the disk, while the machine that was booted still stands there", async (t) => {
  const path = await hibernate(t, [SLEEPER]);
  const machine = await booted(t);
  const seen: Record<string, { used: boolean; stopped: number; boot: boolean; resumes: number }> = {};
  await resume(machine, path, {
    onStep: ({ name }) => {
      seen[name] = {
        used: existsSync(join(path, "used")),
        stopped: machine.control.load(MACHINE_STOP),
        boot: machine.processes().every(({ boot }) => boot),
        resumes: machine.kernel.memory.load32(KERNEL_RESUMES),
      };
    },
  });
  t.deepEqual(seen["consistency"], { used: false, stopped: 1, boot: true, resumes: 0 });
  t.deepEqual(seen["consumed"], { used: true, stopped: 1, boot: true, resumes: 0 });
  t.deepEqual(seen["runnable"], { used: true, stopped: 1, boot: false, resumes: 1 });
  t.deepEqual(seen["scheduler"], { used: true, stopped: 0, boot: false, resumes: 1 });
});

test("an image is good for one resume, unless it is asked for by name", async (t) => {
  const path = await hibernate(t, [SLEEPER]);
  await resume(await booted(t), path);
  const second = await booted(t);
  await t.throwsAsync(resume(second, path), { code: "HIB_IMAGE_USED" });
  t.deepEqual(
    second.processes().map(({ boot }) => boot),
    [true, true],
  );
  await resume(second, path, { again: true });
  t.deepEqual(wrongIn(second), []);
  t.is(second.processes()[0]!.text, SLEEPER);
});

// ---- what cannot be resumed ----

/** A resume fails, and the booted machine has lost nothing by it: not a frame, not a step, and it can still resume. */
async function failsHarmlessly(
  t: ExecutionContext,
  path: string,
  code: string,
  options: ResumeOptions = {},
  boot: Partial<MachineOptions> = {},
) {
  const machine = await booted(t, boot);
  machine.spawn("zipf:pages=300,content=random"); // all of its pages are there: it allocates no more
  const free = machine.kernel.buddy.freeFrames;
  await t.throwsAsync(resume(machine, path, options), { code });
  t.is(machine.kernel.buddy.freeFrames, free);
  t.is(machine.processes().length, 3);
  t.is(machine.busy, undefined);
  machine.spawn("incrementer:pages=500");
  await runsOn(t, machine);
  return machine;
}

test("an image of other RAM is refused", async (t) => {
  const path = await hibernate(t, [SLEEPER]);
  await failsHarmlessly(t, path, "HIB_RAM_MISMATCH", {}, { ramBytes: 65 * 2 ** 20 });
});

test("an image with one bit flipped in its last chunk is refused; mended, it is resumed", async (t) => {
  const path = await hibernate(t, WRITERS);
  const blob = join(path, BLOB_NAME);
  await copyFile(blob, `${blob}.good`);
  const file = await open(blob, "r+");
  const at = (await file.stat()).size - FRAME_BYTES;
  const byte = new Uint8Array(1);
  await file.read(byte, 0, 1, at);
  await file.write(Uint8Array.of(byte[0]! ^ 4), 0, 1, at);
  await file.close();
  const machine = await failsHarmlessly(t, path, "HIB_CORRUPT");
  await copyFile(`${blob}.good`, blob);
  checkReport(t, await resume(machine, path));
  await runsOn(t, machine);
});

test("a resume that is cancelled costs nothing", async (t) => {
  const cancel = new AbortController();
  await failsHarmlessly(t, await hibernate(t, WRITERS), "HIB_CANCELLED", {
    signal: cancel.signal,
    onProgress: () => cancel.abort(),
  });
});

for (const point of ["attempt", "allocate", "verify", "stopped", "consume"]) {
  test(`a resume that fails at resume.${point} costs nothing`, async (t) => {
    const path = await hibernate(t, WRITERS);
    setFailpoints(`resume.${point}=EIO`);
    t.teardown(() => setFailpoints(undefined));
    await failsHarmlessly(t, path, "HIB_IO");
  });
}
