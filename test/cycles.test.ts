/**
 * A hundred saves and resumes in a row leave what one leaves: the same memory in the guest, the same open files and
 * threads in the host, and no more of the host's memory.
 */
import { readdirSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import ava, { type ExecutionContext } from "ava";
import { save } from "../src/hibernate.js";
import { Machine } from "../src/machine.js";
import { resume } from "../src/resume.js";
import { checkConsistency } from "../src/vm/views/consistency.js";
import { findWrong, MIB, type Replays, scratch, until, whileStopped } from "./support.js";

/** One at a time: a live machine wants both cores. */
const test = ava.serial;

const CYCLES = 100;
/** Cycles until the host's allocators, pools and caches have what they keep. */
const WARM_UP = 20;
/** A leak of one machine, one image's tables or one chunk buffer a cycle is far more. */
const GROWTH_BYTES_MAX = 64 * MIB;

/** Programs that hold the same frames between any two steps but for their stack and heap, which are checked by content. */
const PROGRAMS = ["zipf:pages=200,content=random", "incrementer:pages=50", "idle:ms=2,content=text", "stack:pages=8,rate=50000"];
const RAM = { ramBytes: 24 * MIB, vcpus: 2, pageThreads: 1 };

interface Holdings {
  files: number;
  threads: number;
  rss: number;
}

const holdings = (): Holdings => ({
  files: readdirSync("/proc/self/fd").length,
  threads: readdirSync("/proc/self/task").length,
  rss: process.memoryUsage.rss(),
});

const median = (numbers: number[]) => [...numbers].sort((a, b) => a - b)[numbers.length >> 1]!;

/** Frames in use by the kernel itself: what a cycle could leak, whatever the processes hold at the moment. */
function kernelFrames(machine: Machine): number {
  const { blocks: _, freeFrames, mappedPages, processes: __, problems: ___ } = checkConsistency(machine.kernel.memory);
  return machine.kernel.memory.frames - freeFrames - mappedPages;
}

/** Checks a running machine exactly, and lets it run a little before the next cycle. */
async function check(t: ExecutionContext, machine: Machine, replays: Replays, cycle: number): Promise<number> {
  const kernel = whileStopped(machine, () => {
    t.deepEqual(findWrong(machine.kernel.memory, replays), [], `cycle ${cycle}`);
    return kernelFrames(machine);
  });
  machine.check();
  const before = machine.processes().map(({ steps }) => steps);
  await until(() => machine.processes().every(({ steps }, i) => steps > before[i]!), "every process has gone on");
  return kernel;
}

function checkHoldings(t: ExecutionContext, seen: Holdings[], kernel: number[]): void {
  const late = seen.slice(WARM_UP);
  t.is(Math.max(...late.map(({ files }) => files)), Math.min(...late.map(({ files }) => files)), "open files");
  t.is(Math.max(...late.map(({ threads }) => threads)), Math.min(...late.map(({ threads }) => threads)), "threads");
  // Page tables come with the first touch of an area and stay; after that nothing does.
  t.is(Math.max(...kernel.slice(WARM_UP)), kernel[WARM_UP]!, "the kernel's frames");
  const rss = (from: number, to = Infinity) => median(late.slice(from, to).map((holding) => holding.rss));
  const third = Math.floor(late.length / 3);
  const growth = rss(-third) - rss(0, third);
  t.log(
    `host memory: ${(rss(0, third) / MIB).toFixed(0)} MiB, and ${(growth / MIB).toFixed(1)} MiB more in the end; ${late[0]!.files} files, ${late[0]!.threads} threads`,
  );
  t.true(growth < GROWTH_BYTES_MAX);
}

test("a machine that is saved a hundred times and goes on", async (t) => {
  const path = join(scratch(t), "image");
  const machine = await Machine.boot(RAM);
  t.teardown(() => machine.powerOff());
  for (const program of PROGRAMS) machine.spawn(program);
  const replays: Replays = new Map();
  const seen: Holdings[] = [];
  const kernel: number[] = [];
  for (let cycle = 0; cycle < CYCLES; cycle++) {
    await save(machine, path, { keepRunning: true });
    await rm(path, { recursive: true });
    kernel.push(await check(t, machine, replays, cycle));
    seen.push(holdings());
  }
  checkHoldings(t, seen, kernel);
});

test("a machine that is hibernated and resumed a hundred times", async (t) => {
  const path = join(scratch(t), "image");
  let machine = await Machine.boot(RAM);
  t.teardown(() => machine.powerOff());
  for (const program of PROGRAMS) machine.spawn(program);
  const replays: Replays = new Map();
  const seen: Holdings[] = [];
  const kernel: number[] = [];
  for (let cycle = 0; cycle < CYCLES; cycle++) {
    await save(machine, path);
    machine = await Machine.boot(RAM);
    machine.spawn("boot-progress");
    machine.spawn("boot-housekeeping:64");
    await resume(machine, path);
    await rm(path, { recursive: true });
    kernel.push(await check(t, machine, replays, cycle));
    seen.push(holdings());
  }
  checkHoldings(t, seen, kernel);
});
