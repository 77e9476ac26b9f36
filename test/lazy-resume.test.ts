/**
 * A lazy resume: the machine goes on before its memory is there, and is exactly the machine that was saved all the same. What cannot be
 * brought in ends it before anything has used it, and the image is as it was.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync, readdirSync, readlinkSync, readSync, writeSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import ava, { type ExecutionContext } from "ava";
import { bit } from "../src/base/control.js";
import { HibernaculumError } from "../src/base/errors.js";
import { setFailpoints } from "../src/base/failpoints.js";
import { LAZY_NONE, MACHINE_GENERATION, MACHINE_LAZY, MISSING_BITMAP } from "../src/base/layout.js";
import { save } from "../src/hibernate.js";
import { openImage } from "../src/image/directory.js";
import { BLOB_NAME, type Chunk } from "../src/image/format.js";
import { readHistory } from "../src/image/markers.js";
import type { Machine } from "../src/machine.js";
import type { ResumeReport } from "../src/reports/resume-report.js";
import { resume } from "../src/resume.js";
import type { ResumeOptions } from "../src/resume-options.js";
import { kernelLayout, KERNEL_ENTROPY } from "../src/vm/memory/kernel-layout.js";
import { bootMachine, findWrong, hibernate, scratch, sleep, until, whileStopped } from "./support.js";

/** One at a time: a live machine wants both cores. */
const test = ava.serial;

const HIB = fileURLToPath(new URL("../src/cli/hib.js", import.meta.url));

const WRITERS = ["zipf:pages=800", "incrementer:pages=300", "stack:pages=60", "heap:slots=20", "chaos:workers=3"];
/** Sleeps for an hour: a machine of nothing else is the same memory for as long as a test wants. */
const SLEEPER = "idle:ms=3600000,pages=600,content=random";

const steps = (machine: Machine) => machine.processes().map((process) => process.steps);
const wrongIn = (machine: Machine) => whileStopped(machine, () => findWrong(machine.kernel.memory));
const missing = ({ control, core }: Machine) => (control.load(MACHINE_LAZY) === LAZY_NONE ? 0 : core.countBits(MISSING_BITMAP));

/** Resumes an image lazily in a machine that has booted, and has loaders wait until they are let go. */
async function resumeHeld(t: ExecutionContext, path: string, options: ResumeOptions = {}) {
  const machine = await bootMachine(t);
  machine.spawn("boot-housekeeping:400");
  let letGo: () => void = () => undefined;
  const held = new Promise<void>((resolve) => (letGo = resolve));
  t.teardown(() => letGo());
  const report = await resume(machine, path, { lazy: true, onRunning: () => held, ...options });
  return { machine, report, letGo };
}

/** The chunks that hold what the first process has, the fullest first. */
async function chunksOfUsers(path: string, isMissing: (frame: number) => boolean): Promise<Chunk[]> {
  const image = await openImage(path);
  const counts = new Map<number, number>();
  for (const { chunk, pfn, frames } of image.extents)
    for (let frame = pfn; typeof chunk === "number" && frame < pfn + frames; frame++)
      if (isMissing(frame)) counts.set(chunk, (counts.get(chunk) ?? 0) + 1);
  image.close();
  return [...counts].sort((a, b) => b[1] - a[1]).map(([id]) => image.chunks[id]!);
}

/** Turns one bit of a chunk over, and back again when it is called once more. */
function flip(path: string, { offset }: Chunk): void {
  const file = openSync(join(path, BLOB_NAME), "r+");
  const byte = Buffer.alloc(1);
  readSync(file, byte, 0, 1, offset + 100);
  byte[0]! ^= 4;
  writeSync(file, byte, 0, 1, offset + 100);
  closeSync(file);
}

for (const compression of ["lz4", "none"] as const) {
  test(`every frame of the image is in place in the end, byte for byte; compression: ${compression}`, async (t) => {
    const path = await hibernate(t, [SLEEPER], { compression });
    const { machine, report, letGo } = await resumeHeld(t, path, { keepImage: true });
    t.true(report.frames.later > 500);
    t.true(missing(machine) > 300, "but for what it is called, nobody has used what a process that sleeps has");
    const { direct, equal, equal_written, different, later, image: all } = report.frames;
    t.is(direct + equal + equal_written + different + later, all);
    t.is(report.resident, null);
    letGo();
    await machine.resident();
    t.true(report.resident!.resident_ms > report.phases_ms.total && report.resident!.loaded_frames > 0);
    t.is(missing(machine), 0);
    const image = await openImage(path);
    t.teardown(() => image.close());
    const memory = image.memory();
    const from = kernelLayout(memory.frames).staticFrames;
    const frames = Array.from({ length: memory.frames - from }, (_, i) => from + i).filter((frame) => memory.has(frame));
    const differing = frames.filter((frame) => !machine.kernel.memory.equals(frame, memory.readFrame(frame)));
    t.deepEqual(differing, [machine.kernel.memory.load32(KERNEL_ENTROPY)]); // its pool of random words is another
    t.deepEqual(wrongIn(machine), []);
  });

  test(`processes run on memory that comes when they use it, and by loaders meanwhile; compression: ${compression}`, async (t) => {
    const path = await hibernate(t, WRITERS, { compression });
    const { machine, report, letGo } = await resumeHeld(t, path);
    const before = steps(machine);
    await until(() => steps(machine).some((count, i) => count > (before[i] ?? 0)), "processes run");
    t.true(missing(machine) < report.frames.later, "what they use has come");
    t.true(missing(machine) > 0);
    letGo();
    await machine.resident();
    t.is(missing(machine), 0);
    t.deepEqual(wrongIn(machine), []);
    await sleep(50);
    t.deepEqual(wrongIn(machine), []);
    machine.check();
  });
}

test("without loaders a machine is as it should be, wherever it is looked at", async (t) => {
  const path = await hibernate(t, WRITERS);
  const { machine, letGo } = await resumeHeld(t, path);
  for (let round = 0; round < 3; round++, await sleep(30)) t.deepEqual(wrongIn(machine), []);
  letGo();
  await machine.resident();
});

test("a save waits until all is there, and is exact; nobody else saves meanwhile", async (t) => {
  const path = await hibernate(t, WRITERS);
  const { machine, letGo } = await resumeHeld(t, path);
  const next = join(scratch(t), "next");
  const saving = save(machine, next, { oracle: true });
  await t.throwsAsync(save(machine, `${next}-2`), { code: "HIB_BUSY" });
  const generation = machine.control.load(MACHINE_GENERATION);
  t.is(await Promise.race([saving, sleep(300)]), undefined);
  t.is(machine.control.load(MACHINE_GENERATION), generation, "nothing was armed");
  letGo();
  await saving;
  const again = await bootMachine(t);
  await resume(again, next, { lazy: true });
  t.deepEqual(wrongIn(again), []);
  await again.resident();
  t.deepEqual(wrongIn(again), []);
});

test("a save that waits can be cancelled: the machine runs on, and all of it comes", async (t) => {
  const path = await hibernate(t, [SLEEPER]);
  const { machine, letGo } = await resumeHeld(t, path);
  const abort = new AbortController();
  const saving = save(machine, join(scratch(t), "next"), { signal: abort.signal });
  abort.abort();
  await t.throwsAsync(saving, { code: "HIB_CANCELLED" });
  letGo();
  await machine.resident();
  t.deepEqual(wrongIn(machine), []);
});

test("a machine that is powered off before all is there ends, and its image stays used", async (t) => {
  const path = await hibernate(t, WRITERS);
  const { machine, letGo } = await resumeHeld(t, path);
  const { done } = machine.arriving!;
  letGo();
  await machine.powerOff();
  t.is(await done, undefined);
  t.not((await readHistory(path)).used, null);
});

for (const who of ["a loader", "a process", "the kernel"] as const) {
  test(`damage that ${who} finds ends the machine by the chunk's name, and the image is as it was`, async (t) => {
    const path = await hibernate(t, [who === "a process" ? "incrementer:pages=900,rate=20000" : SLEEPER], {
      compression: "none",
    });
    const { machine, letGo } = await resumeHeld(t, path);
    const { words } = machine.control;
    const isMissing = (frame: number) => bit(words, MISSING_BITMAP, frame) === 1;
    const chunk = (await chunksOfUsers(path, isMissing))[0]!;
    flip(path, chunk);
    const { done } = machine.arriving!;
    await t.throwsAsync(resume(await bootMachine(t), path), { code: "HIB_IMAGE_USED" }, "this machine has it");
    if (who === "a loader") letGo();
    else if (who === "a process") {
      await until(() => machine.isLost, "a vCPU meets it");
      letGo();
    } else {
      t.throws(() => findWrong(machine.kernel.memory), { code: "HIB_CORRUPT" });
      letGo();
    }
    const error = await t.throwsAsync<HibernaculumError>(done as Promise<unknown>, { instanceOf: HibernaculumError });
    t.is(error!.code, "HIB_CORRUPT");
    t.regex(error!.message, new RegExp(`^${path}: chunk ${chunk.id} at offset ${chunk.offset} `));
    t.throws(() => machine.check(), { message: error!.message });
    t.true(machine.isOff, "no process runs");
    const history = await readHistory(path);
    t.is(history.used, null);
    t.is(history.attempts.at(-1)?.outcome?.code, "HIB_CORRUPT");
    flip(path, chunk);
    const again = await bootMachine(t);
    await resume(again, path, { lazy: true });
    t.deepEqual(wrongIn(again), []);
  });
}

test("nothing of an image stays open once all is there, or the machine is off", async (t) => {
  const path = await hibernate(t, [SLEEPER]);
  const open = () => readdirSync("/proc/self/fd").filter((fd) => linkOf(fd).startsWith(path)).length;
  for (const ending of ["resident", "off"]) {
    const { machine, letGo } = await resumeHeld(t, path, { keepImage: true });
    t.true(open() > 0);
    if (ending === "resident") letGo();
    else setImmediate(letGo);
    await (ending === "resident" ? machine.resident() : machine.powerOff());
    t.is(open(), 0, ending);
  }
});

function linkOf(fd: string): string {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`);
  } catch {
    return ""; // the one that the directory was read by
  }
}

// ---- what fails ----

for (const point of ["attempt", "allocate", "verify", "stopped", "consume"]) {
  test(`a lazy resume that fails at resume.${point} costs nothing`, async (t) => {
    const path = await hibernate(t, [SLEEPER]);
    const machine = await bootMachine(t);
    machine.spawn("zipf:pages=300,content=random"); // all of its pages are there: it allocates no more
    const free = machine.kernel.buddy.freeFrames;
    setFailpoints(`resume.${point}=EIO`);
    t.teardown(() => setFailpoints(undefined));
    await t.throwsAsync(resume(machine, path, { lazy: true }), { code: "HIB_IO" });
    t.is(machine.kernel.buddy.freeFrames, free);
    t.is(machine.arriving, undefined);
    t.is((await readHistory(path)).used, null);
    t.deepEqual(wrongIn(machine), []);
    await resume(machine, path, { lazy: true });
    await machine.resident();
    t.deepEqual(wrongIn(machine), []);
  });
}

for (const [action, code] of [
  ["EIO", "HIB_IO"],
  ["exit", "HIB_WORKER_DIED"],
]) {
  test(`a loader that fails (${action}) ends the machine, and the image can be resumed again`, async (t) => {
    const path = await hibernate(t, [SLEEPER]);
    process.env["HIB_FAILPOINTS"] = `lazy.fill=${action}@2`; // threads that start now have it
    const { machine, letGo } = await resumeHeld(t, path).finally(() => delete process.env["HIB_FAILPOINTS"]);
    const { done } = machine.arriving!;
    letGo();
    await t.throwsAsync(done, { code: code! });
    t.true(machine.isOff);
    t.is((await readHistory(path)).used, null);
    const again = await bootMachine(t);
    await resume(again, path, { lazy: true });
    await again.resident();
    t.deepEqual(wrongIn(again), []);
  });
}

test("a process that dies while memory comes leaves a whole image, which is marked as used", async (t) => {
  const path = await hibernate(t, [SLEEPER]);
  const env = { ...process.env, HIB_RUNTIME_DIR: scratch(t), HIB_FAILPOINTS: "lazy.fill=kill@2" };
  const child = spawn(process.execPath, [HIB, "resume", path, "--lazy"], { env, stdio: "ignore" });
  const [, signal] = (await once(child, "exit")) as [number | null, string | null];
  t.is(signal, "SIGKILL");
  const machine = await bootMachine(t);
  await t.throwsAsync(resume(machine, path), { code: "HIB_IMAGE_USED" });
  await resume(machine, path, { again: true });
  t.deepEqual(wrongIn(machine), []);
});

test("hib resume --lazy tells both times; damage that is found late is told in one line", async (t) => {
  const path = await hibernate(t, ["incrementer:pages=900,rate=20000"], { compression: "none" });
  const image = await openImage(path);
  const last = image.chunks.toSorted((a, b) => b.offset - a.offset)[0]!;
  image.close();
  const run = (...more: string[]) => {
    const env = { ...process.env, HIB_RUNTIME_DIR: scratch(t) };
    const child = spawn(process.execPath, [HIB, "resume", path, "--lazy", "--json", ...more], { env });
    const out: string[] = [];
    const errors: string[] = [];
    child.stdout.setEncoding("utf8").on("data", (text: string) => out.push(text));
    child.stderr.setEncoding("utf8").on("data", (text: string) => errors.push(text));
    return { child, ended: once(child, "exit") as Promise<[number]>, out: () => out.join(""), errors: () => errors.join("") };
  };
  flip(path, last);
  const damaged = run();
  t.deepEqual((await damaged.ended)[0], 1);
  t.regex(damaged.errors(), new RegExp(`^hib: HIB_CORRUPT: .*: chunk ${last.id} at offset ${last.offset} [^\n]*\n$`, "m"));
  flip(path, last);
  const whole = run();
  await until(() => whole.out().includes("\n"), "all is resident, and the report is there");
  whole.child.kill("SIGTERM");
  await whole.ended;
  const { frames, phases_ms, resident } = JSON.parse(whole.out()) as ResumeReport;
  t.true(frames.later > 500);
  t.true(resident!.resident_ms > phases_ms.total);
});
