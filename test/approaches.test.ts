/**
 * Every approach to a save: its image is exact while processes write as fast as they can, and the report says which it is; wherever
 * it fails or is cancelled the machine goes on and nothing is left on the disk. What all pairs of contents, races and orders show of them is
 * in exact, racing and interleavings.
 */
import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import ava, { type ExecutionContext } from "ava";
import { type Failpoint, setFailpoints } from "../src/base/failpoints.js";
import type { Pfn } from "../src/base/memory.js";
import { bit } from "../src/base/control.js";
import { openHostMemory } from "../src/capture/host-memory.js";
import { Claims } from "../src/cow/claims.js";
import { planFrames } from "../src/cow/plan.js";
import { Quiesce } from "../src/cow/quiesce.js";
import { WriteTracking } from "../src/cow/tracking.js";
import { renderSaveReport } from "../src/stats/save-report.js";
import { plainView } from "../src/stats/layout.js";
import { O_RDWR, SEEK_SET } from "../src/vm/files/flags.js";
import { readInode } from "../src/vm/files/inode.js";
import {
  DIRTY_BITMAP,
  FRAME_BYTES,
  MACHINE_QUEUE_OVERFLOW,
  MACHINE_THROTTLE,
  PLANNED_BITMAP,
  QUEUE_SPARE,
  RAM_BASE,
  SAVEABLE_BITMAP,
} from "../src/base/layout.js";
import { PausePredictions } from "../src/approaches/predicted-pause.js";
import { save } from "../src/hibernate.js";
import { openImage } from "../src/image/directory.js";
import { APPROACH_NAMES, CONSISTENCY_POINTS } from "../src/reports/approaches.js";
import type { SavePhase } from "../src/reports/save-progress.js";
import { judge, Victim } from "./fixtures/victim.js";
import type { SaveOptions } from "../src/save-options.js";
import { KIND_KERNEL_HEAP } from "../src/vm/memory/kernel-layout.js";
import { bootMachine, findWrong, HandMachine, MIB, scratch, until, untilNow, whileStopped } from "./support.js";

/** One at a time: a live machine wants both cores. */
const test = ava.serial;

const WRITERS = ["zipf:pages=2000", "incrementer:pages=300", "heap:slots=20", "random:pages=500,content=random"];

async function busy(t: ExecutionContext, options: Parameters<typeof bootMachine>[1] = {}) {
  const machine = await bootMachine(t, options);
  for (const text of WRITERS) machine.spawn(text);
  await until(() => machine.processes().every(({ steps }) => steps > 1000), "every process writes");
  return machine;
}

async function wrongIn(path: string): Promise<string[]> {
  const image = await openImage(path);
  try {
    return findWrong(image.memory());
  } finally {
    image.close();
  }
}

for (const approach of APPROACH_NAMES) {
  for (const keepRunning of [true, false]) {
    const ending = keepRunning ? "snapshot" : "hibernation";
    test(`${approach}, ${ending}: writers race, the image is exact, and what goes on is`, async (t) => {
      const machine = await busy(t);
      const path = join(scratch(t), "image");
      const report = await save(machine, path, { approach, keepRunning, oracle: true });
      t.like(report.image, { approach, consistency_point: CONSISTENCY_POINTS[approach] });
      t.is(report.frames.streamed > 0, CONSISTENCY_POINTS[approach] === "end");
      t.deepEqual(await wrongIn(path), []);
      t.is(machine.isOff, !keepRunning);
      if (keepRunning)
        t.deepEqual(
          whileStopped(machine, () => findWrong(machine.kernel.memory)),
          [],
        );
    });
  }

  test(`${approach}: fails at any point or is cancelled in any phase, and nothing is lost`, async (t) => {
    t.teardown(() => setFailpoints(undefined));
    const victim = await Victim.boot(scratch(t), { ramBytes: 32 * MIB });
    t.teardown(() => victim.machine.powerOff());
    const points: Failpoint[] = [
      "save.prepare",
      "save.armed",
      "save.stopped",
      "save.copied",
      "save.residual",
      "save.catalogue",
      "save.seal",
    ];
    const phases: (SavePhase | undefined)[] = [undefined, "stream", "residual", "publish"];
    for (const keepRunning of [true, false]) {
      for (const point of points) {
        if (point === "save.armed" && (approach === "swsusp" || approach === "capture-kernel")) continue; // it never is
        setFailpoints(`${point}=EIO`);
        const failed = await victim.fails(() => save(victim.machine, victim.image, { approach, keepRunning }));
        setFailpoints(undefined);
        t.deepEqual([...judge(failed?.error, "HIB_IO"), ...failed!.harm], [], `${point}, ${keepRunning}`);
      }
      for (const phase of phases) {
        if (phase === "stream" && CONSISTENCY_POINTS[approach] === "start") continue;
        const abort = new AbortController();
        if (phase === undefined) abort.abort();
        const onProgress = (progress: { phase: SavePhase }): void => {
          if (progress.phase === phase) abort.abort();
        };
        const options = { approach, keepRunning, signal: abort.signal, onProgress };
        const failed = await victim.fails(() => save(victim.machine, victim.image, options));
        t.deepEqual([...judge(failed?.error, "HIB_CANCELLED"), ...failed!.harm], [], `${phase}, ${keepRunning}`);
      }
    }
    t.deepEqual(await victim.saveAgain(), []);
  });
}

for (const approach of APPROACH_NAMES.filter((name) => name !== "capture-kernel")) {
  for (const [trap, code] of [
    ["save.write=ENOSPC@2", "HIB_NO_SPACE"],
    ["save.stream=exit", "HIB_WORKER_DIED"],
  ] as const) {
    test(`${approach}: ${trap} in a page writer, and nothing is lost`, async (t) => {
      const programs = ["sequential:pages=2000,rate=50000,content=random"]; // 8 MiB are more than one write
      const victim = await Victim.boot(scratch(t), { ramBytes: 32 * MIB }, trap, programs);
      t.teardown(() => victim.machine.powerOff());
      const failed = await victim.fails(() =>
        save(victim.machine, victim.image, { approach, keepRunning: true, compression: "none" }),
      );
      t.deepEqual([...judge(failed?.error, code), ...failed!.harm], []);
      t.deepEqual(await victim.saveAgain(), []);
    });
  }
}

test("copy-on-write: a pool of a few places is used again and again, and whoever finds it empty waits for its own frame", async (t) => {
  const machine = await busy(t, { pageThreads: 1 });
  const { control, quiesce } = machine;
  // The writers begin once a store waits.
  quiesce.left = () => {
    const left = Object.getPrototypeOf(quiesce).left.call(quiesce);
    untilNow(() => control.load(MACHINE_QUEUE_OVERFLOW), "a store waits");
    return left;
  };
  const path = join(scratch(t), "image");
  const few = 10;
  const options: SaveOptions = { approach: "copy-on-write", keepRunning: true, reserveFrames: QUEUE_SPARE + few };
  const { frames, reserve, residual_frames, tail } = await save(machine, path, options);
  t.is(reserve.reserved_frames, QUEUE_SPARE + few);
  t.is(residual_frames, frames.saved);
  t.true(tail.preimages > QUEUE_SPARE + few, `places were used again: ${JSON.stringify(tail)}`);
  t.true(tail.waits > 0 && tail.longest_wait_ms > 0 && tail.waited_ms >= tail.longest_wait_ms);
  t.deepEqual(await wrongIn(path), []);
});

test("copy-on-write: a machine that has hardly a free frame is saved, and takes none", async (t) => {
  const machine = await bootMachine(t);
  machine.spawn("random:pages=1000");
  await until(() => machine.processes()[0]!.steps > 50_000, "all its pages are there");
  const { buddy } = machine.kernel;
  machine.control.locked(() => {
    while (buddy.freeFrames > 8) buddy.allocateFree(0, 0, KIND_KERNEL_HEAP);
  });
  const path = join(scratch(t), "image");
  const { reserve, tail } = await save(machine, path, { approach: "copy-on-write", keepRunning: true });
  t.true(reserve.reserved_frames > 1000 && tail.preimages > 0);
  t.deepEqual(await wrongIn(path), []);
});

for (const [trap, code] of [
  ["save.write=ENOSPC@2", "HIB_NO_SPACE"],
  ["save.stream=kill", "HIB_WORKER_DIED"],
] as const) {
  test(`capture-kernel: ${trap} in its process, and nothing is lost`, async (t) => {
    const victim = await Victim.boot(scratch(t), { ramBytes: 32 * MIB }, undefined, [
      "sequential:pages=2000,rate=50000,content=random",
    ]);
    t.teardown(() => victim.machine.powerOff());
    const options: SaveOptions = { approach: "capture-kernel", keepRunning: true, compression: "none" };
    process.env["HIB_FAILPOINTS"] = trap; // its process has a copy; this one has read it long ago
    const failed = await victim.fails(() => save(victim.machine, victim.image, options));
    delete process.env["HIB_FAILPOINTS"];
    t.deepEqual([...judge(failed?.error, code), ...failed!.harm], []);
    t.deepEqual(await victim.saveAgain(), []);
  });
}

test("capture-kernel: whoever has the descriptor sees what the machine stores, and cannot store", async (t) => {
  const machine = await bootMachine(t, { ramBytes: 16 * MIB });
  using memory = openHostMemory(machine.control);
  const frame = machine.control.locked(() => machine.kernel.buddy.allocate(0, 0, KIND_KERNEL_HEAP)!);
  machine.kernel.memory.store32(frame * FRAME_BYTES, 0x12345678);
  const at = memory.base + RAM_BASE + frame * FRAME_BYTES;
  const script = `
    const fs = require("node:fs");
    const seen = Buffer.alloc(4);
    fs.readSync(3, seen, 0, 4, ${at});
    let refusal = "none";
    try { fs.writeSync(3, Buffer.alloc(4), 0, 4, ${at}); } catch (error) { refusal = error.code; }
    console.log(seen.readUInt32LE().toString(16), refusal);`;
  const { stdout, stderr } = spawnSync(process.execPath, ["-e", script], {
    stdio: ["ignore", "pipe", "pipe", memory.descriptor],
    encoding: "utf8",
  });
  t.is(stdout, "12345678 EBADF\n", stderr);
  t.is(machine.kernel.memory.load32(frame * FRAME_BYTES), 0x12345678);
});

test("capture-kernel: its process is gone with the save, and needs no room in the machine", async (t) => {
  const machine = await bootMachine(t);
  machine.spawn("random:pages=12000,content=random");
  await until(() => machine.processes()[0]!.steps > 200_000, "three quarters of the memory are in use");
  const path = join(scratch(t), "image");
  const children = () => readFileSync(`/proc/self/task/${process.pid}/children`, "latin1");
  const before = children();
  const options: SaveOptions = { approach: "capture-kernel", keepRunning: true };
  const { atomic_copy, capture, reserve, residual_frames, tail } = await save(machine, path, options);
  t.is(atomic_copy.frames + reserve.reserved_frames + tail.frames, 0);
  t.is(reserve.overflow_frames, residual_frames);
  t.true(capture!.resident_bytes > 0 && capture!.resident_bytes < 300 * MIB);
  await until(() => children() === before, "it is gone");
  t.deepEqual(await wrongIn(path), []);
});

test("swsusp: everything is copied; nothing faults before, and afterwards only what is tracked for the next image", async (t) => {
  for (const keepRunning of [true, false]) {
    const machine = await busy(t);
    const image = join(scratch(t), "image");
    const { atomic_copy, faults, frames, residual_frames, tail } = await save(machine, image, {
      approach: "swsusp",
      keepRunning,
    });
    t.is(atomic_copy.frames, frames.saved);
    t.is(residual_frames, frames.saved);
    t.is(faults.total > 0, keepRunning);
    t.is(tail.frames, 0);
  }
});

test("swsusp: a machine with half of its RAM in use is refused with the figures, and goes on", async (t) => {
  const victim = await Victim.boot(scratch(t), { ramBytes: 64 * MIB }, undefined, ["random:pages=12000"]);
  t.teardown(() => victim.machine.powerOff());
  await until(() => victim.machine.processes().at(-1)!.steps > 200_000, "all its pages are there");
  for (const keepRunning of [true, false]) {
    const failed = await victim.fails(() => save(victim.machine, victim.image, { approach: "swsusp", keepRunning }));
    t.deepEqual([...judge(failed?.error, "HIB_NO_MEMORY"), ...failed!.harm], []);
    t.regex((failed!.error as Error).message, /in use, \d+ frames \(\d+ MiB\), and there is room for \d+ frames \(\d+ MiB\)/);
  }
  t.deepEqual(await victim.saveAgain(), []);
});

test("swsusp: who has more in use by the time of the stop is refused there, and goes on", async (t) => {
  const victim = await Victim.boot(scratch(t), { ramBytes: 32 * MIB });
  const { machine } = victim;
  t.teardown(() => machine.powerOff());
  const { buddy } = machine.kernel;
  const taken: Pfn[] = [];
  const { devices } = machine;
  devices.quiesce = () => {
    Object.getPrototypeOf(devices).quiesce.call(devices);
    for (let frame = buddy.allocate(0, 0, KIND_KERNEL_HEAP); frame !== undefined && taken.push(frame) < 8000; )
      frame = buddy.allocate(0, 0, KIND_KERNEL_HEAP);
  };
  const failed = await victim.fails(async () => {
    try {
      await save(machine, victim.image, { approach: "swsusp", keepRunning: true });
    } finally {
      machine.control.locked(() => {
        for (const frame of taken.splice(0)) buddy.free(frame);
      });
    }
  });
  t.deepEqual([...judge(failed?.error, "HIB_NO_MEMORY"), ...failed!.harm], []);
  t.regex((failed!.error as Error).message, /swsusp copies all that is in use/);
});

test("adaptive: rounds go on while they pay, and stop before the pause that is wanted is missed", async (t) => {
  const machine = await bootMachine(t);
  machine.spawn("random:pages=3000,rate=200000,content=random");
  await until(() => machine.processes()[0]!.steps > 50_000, "all its pages are there");
  const path = join(scratch(t), "image");
  // What is left after the stream takes longer than this, in any prediction.
  const options: SaveOptions = { approach: "adaptive", keepRunning: true, maxPause_ms: 0.001, oracle: true };
  const report = await save(machine, path, options);
  const { adaptive, atomic_copy, frames, pause } = report;
  t.regex(
    renderSaveReport(report, plainView),
    /approach +adaptive: memory as of the end of the save[\s\S]*predicted +\S+ \w+ with a tail; wanted/,
  );
  t.like(adaptive, { max_pause_ms: 0.001, stop: "tail" });
  t.is(atomic_copy.frames, 0);
  t.true(adaptive!.predicted_pause_ms > 0 && pause.total_ms > 0);
  const left = adaptive!.rounds.map((round) => round.frames);
  t.true(left.length > 1, JSON.stringify(left));
  for (const [i, count] of left.slice(1, -1).entries()) t.true(count < left[i]!, "each round but the last left less");
  t.true(frames.streamed + frames.skipped > frames.planned, "rounds count as streamed");
  t.deepEqual(await wrongIn(path), []);
  const long = await save(machine, `${path}-2`, { approach: "adaptive", keepRunning: true, maxPause_ms: 1000 });
  t.like(long.adaptive, { stop: "copy" });
  t.is(long.adaptive!.rounds.length, 1);
  t.true(long.atomic_copy.frames > 0, "as far as there are places");
  t.is(long.atomic_copy.frames + long.tail.frames, long.residual_frames);
});

test("adaptive: no store goes by a write tag from before a round", async (t) => {
  const machine = await bootMachine(t, { vcpus: 1 });
  machine.spawn("random:pages=2000"); // stores to every page all the time, and never leaves its vCPU
  await until(() => machine.processes()[0]!.steps > 100_000, "all its pages are there");
  const options: SaveOptions = { approach: "adaptive", keepRunning: true, maxPause_ms: 0.001, oracle: true };
  const { adaptive, oracle_frames } = await save(machine, join(scratch(t), "image"), options);
  t.true(adaptive!.rounds.length > 1 && oracle_frames! > 0);
});

test("adaptive: a frame that a round finds marked and free is in the residual set once it is used again", (t) => {
  const { kernel, tracking } = new HandMachine();
  const { core, control } = kernel;
  tracking.arm();
  const claims = new Claims(control);
  planFrames(claims, core, kernel.memory);
  const frame = kernel.buddy.allocate(0, 0, KIND_KERNEL_HEAP)!;
  core.setBit(PLANNED_BITMAP, frame); // as if it had been there, and was streamed
  kernel.memory.store32(frame * FRAME_BYTES, 1);
  kernel.buddy.free(frame);
  tracking.rearm();
  t.is(bit(control.words, DIRTY_BITMAP, frame), 0);
  core.setBit(SAVEABLE_BITMAP, frame); // allocated again, and not stored to
  tracking.freezeSaveable();
  const length = core.listResidual();
  t.true(claims.list.subarray(0, length).includes(frame));
});

test("adaptive: pages of a file that are written through to it before a round are referred to as they are then", async (t) => {
  const host = scratch(t);
  writeFileSync(join(host, "data"), "a".repeat(3 * FRAME_BYTES));
  const machine = await bootMachine(t, { vcpus: 1, mounts: [{ path: "/host", host, readOnly: false }] });
  const { control, files, memory, objects } = machine.kernel;
  const { slot } = machine.spawn("idle:ms=1000");
  const fd = control.locked(() => files.open(slot, "/host/data", O_RDWR) as number);
  control.locked(() => files.read(slot, fd, 3 * FRAME_BYTES));
  const { object } = readInode(memory, files.descriptions.find(slot, fd)!.behind);
  const { tracking } = machine;
  tracking.rearm = () => {
    control.locked(() => {
      files.seek(slot, fd, 10, SEEK_SET);
      files.write(slot, fd, Buffer.from("bbb"));
    });
    tracking.rearm = WriteTracking.prototype.rearm;
    return tracking.rearm();
  };
  const path = join(scratch(t), "image");
  const { adaptive, frames } = await save(machine, path, { approach: "adaptive", keepRunning: true, maxPause_ms: 0.001 });
  t.true(adaptive!.rounds.length > 1);
  t.is(frames.by_reference, 3);
  const image = await openImage(path);
  t.is(Buffer.from(image.memory().readFrame(objects.find(object, 0)!)).toString("utf8", 8, 16), "aabbbaaa");
  image.close();
});

test("adaptive: throttle makes those slower that fault, and nobody else", async (t) => {
  const machine = await bootMachine(t, { vcpus: 1 });
  const { control, tracking } = machine;
  for (const text of ["random:pages=8000", "incrementer:pages=1"]) machine.spawn(text);
  const steps = () => machine.processes().map((process) => process.steps);
  await until(() => steps().every((count) => count > 1000), "both run");
  /** Steps of the one that faults, for each of the other, until that one has made many. */
  const share = async (): Promise<number> => {
    const [faulting, other] = steps();
    await until(() => steps()[1]! > other! + 3_000_000, "the other goes on");
    return (steps()[0]! - faulting!) / (steps()[1]! - other!);
  };
  const before = ((await share()) + (await share()) + (await share())) / 3;
  control.store(MACHINE_THROTTLE, 1_000_000);
  let throttled = 0;
  for (let i = 0; i < 3; i++) {
    tracking.arm(); // so that there are pages without a mark
    throttled = Math.max(throttled, await share());
  }
  control.store(MACHINE_THROTTLE, 0);
  tracking.disarm();
  t.true(throttled < before / 10, `${throttled} of ${before}`);
});

test("adaptive: a throttle is raised while rounds do not pay, and is off once the machine is stopped", async (t) => {
  const machine = await bootMachine(t, { ramBytes: 16 * MIB });
  machine.spawn("random:pages=500");
  await until(() => machine.processes()[0]!.steps > 1000, "it writes");
  const { control, tracking } = machine;
  const seen: number[] = [];
  tracking.rearm = () => {
    seen.push(control.load(MACHINE_THROTTLE));
    return WriteTracking.prototype.rearm.call(tracking);
  };
  let atStop = -1;
  const { quiesce } = machine;
  quiesce.stop = () => {
    atStop = control.load(MACHINE_THROTTLE);
    quiesce.stop = Quiesce.prototype.stop;
    quiesce.stop();
  };
  const path = join(scratch(t), "image");
  const options: SaveOptions = { approach: "adaptive", keepRunning: true, maxPause_ms: 0.001, throttle: true, oracle: true };
  const { adaptive } = await save(machine, path, options);
  t.true(adaptive!.throttle_us > 0);
  t.is(seen.at(-1), adaptive!.throttle_us);
  t.deepEqual(
    [...seen].sort((a, b) => a - b),
    seen,
  );
  t.is(atStop, 0);
  t.deepEqual(await wrongIn(path), []);
});

test("adaptive: what a pause takes is learned from the stops of the machine", (t) => {
  const predictions = new PausePredictions();
  const before = predictions.pause(10_000);
  for (let i = 0; i < 20; i++) predictions.learn(10_000, { total_ms: 26, copy_ms: 20 });
  t.true(Math.abs(predictions.pause(10_000) - 26) < 0.1 && Math.abs(before - 26) > 1);
  t.true(Math.abs(predictions.pause(0) - 6) < 0.1);
  t.true(Math.abs(predictions.framesWithin(16) - 5000) < 50);
  t.is(predictions.framesWithin(1), 0);
});
