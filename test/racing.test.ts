/**
 * Racing writers: processes write as fast as they can, are born and die, while their machine is saved again and again.
 * Every image must be, byte for byte, what each process's program makes of its saved step count; the oracle hashes
 * every unmarked frame at each stop.
 *
 * HIB_SEED repeats a run's choices (not its interleaving). HIB_RACE_ROUNDS or HIB_RACE_MINUTES make it longer.
 */
import { randomBytes } from "node:crypto";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import ava, { type ExecutionContext } from "ava";
import { save } from "../src/hibernate.js";
import type { SaveOptions } from "../src/save-options.js";
import { openImage } from "../src/image/directory.js";
import type { Machine } from "../src/machine.js";
import type { SaveReport } from "../src/reports/save-report.js";
import { bootMachine, Draws, findWrong, MIB, type Replays, scratch, sleep, until, whileStopped } from "./support.js";

/** One at a time: a live machine wants both cores. */
const test = ava.serial;

const ROUNDS = Number(process.env["HIB_RACE_ROUNDS"] ?? (process.env["HIB_RACE_MINUTES"] === undefined ? 300 : Infinity));
const END = Date.now() + 60_000 * Number(process.env["HIB_RACE_MINUTES"] ?? Infinity);
const ROUNDS_PER_MACHINE = 20;
const PROCESSES_MAX = 16;

/** A program of a few pages, so that hot frames are written many times during one save. */
function drawProgram(draws: Draws): string {
  const seed = draws.below(2 ** 31);
  const rate = draws.of([0, 0, 20_000, 200_000]);
  const pages = draws.below(8) === 0 ? draws.between(500, 1500) : draws.between(1, 300);
  const content = draws.of(["mixed", "zero", "text", "random"]);
  const writer = `pages=${pages},content=${content},seed=${seed},rate=${rate}`;
  return draws.of([
    `zipf:${writer},alpha=${draws.of(["0", "0.5", "0.99", "1.5"])}`,
    `random:${writer}`,
    `sequential:${writer}`,
    `incrementer:${writer}`,
    `stack:pages=${draws.between(1, 60)},seed=${seed},rate=${rate}`,
    `heap:slots=${draws.between(1, 30)},maxorder=${draws.below(5)},seed=${seed},rate=${rate}`,
    `idle:ms=${draws.between(1, 20)},pages=3,seed=${seed}`,
  ]);
}

const KEY = { keyFile: randomBytes(32) };

function drawOptions(draws: Draws): SaveOptions {
  return {
    keepRunning: true,
    oracle: true,
    compression: draws.of(["lz4", "none"]),
    ...(draws.below(3) === 0 ? { keys: [KEY] } : {}),
    ...drawApproach(draws),
  };
}

function drawApproach(draws: Draws): SaveOptions {
  const approach = draws.of(["write-fault", "write-fault", "copy-on-write", "swsusp", "adaptive", "capture-kernel"] as const);
  if (approach === "swsusp" || approach === "capture-kernel") return { approach };
  return {
    approach,
    // The residual set is copied at the stop, or protected again; the queue of pre-images has room, or stores wait.
    ...(approach === "write-fault" && draws.below(2) === 0 ? { pauseTarget_ms: draws.of([0, 0.05, Infinity]) } : {}),
    ...(approach === "adaptive" ? { maxPause_ms: draws.of([0.1, 3, 20]) } : {}),
    ...(draws.below(4) === 0 ? { reserveFrames: draws.of([0, 1, 65, 300]) } : {}),
  };
}

/** Starts and ends processes until told to stop. */
async function churn(machine: Machine, draws: Draws, going: () => boolean): Promise<void> {
  while (going()) {
    const running = machine.processes();
    if (running.length > PROCESSES_MAX - 4 && draws.below(2) === 0) machine.kernel.lifecycle.end(draws.of(running).slot);
    else if (running.length < PROCESSES_MAX) machine.spawn(drawProgram(draws));
    await sleep(draws.between(0, 10));
  }
}

/** What the rounds met, to see that they met what they are for. */
const met = { rounds: 0, encrypted: 0, steps: 0, marked: 0, oracle: 0, copied: 0, tail: 0, preimages: 0, waits: 0, again: 0 };

async function round(t: ExecutionContext, machine: Machine, image: string, replays: Replays, draws: Draws): Promise<void> {
  const options = drawOptions(draws);
  const steps = () => machine.processes().reduce((sum, process) => sum + process.steps, 0);
  let saving = true;
  // Without room for what the coordinator itself stores a save is given up: here it is to succeed. And while a machine stands still
  // for longer than a turn of this thread, nothing can be started.
  const canChurn = options.reserveFrames === undefined && options.approach !== "capture-kernel";
  const churning = canChurn && draws.below(2) === 0 ? churn(machine, draws, () => saving) : undefined;
  let report: SaveReport;
  try {
    report = await save(machine, image, options);
  } finally {
    saving = false;
    await churning;
  }
  machine.quiesce.stop();
  const opened = await openImage(image, { keys: options.keys });
  try {
    met.rounds++;
    if (options.keys !== undefined) met.encrypted++;
    met.marked += report.faults.total;
    met.oracle += report.oracle_frames ?? 0;
    met.copied += report.atomic_copy.frames;
    met.tail += report.tail.frames;
    met.preimages += report.tail.preimages;
    met.waits += report.tail.waits;
    met.again += (report.adaptive?.rounds.length ?? 1) - 1;
    met.steps = Math.max(met.steps, steps());
    const wrong = findWrong(opened.memory(), replays);
    t.deepEqual(wrong, [], `round ${met.rounds}, ${JSON.stringify(options)}`);
    machine.check();
  } finally {
    opened.close();
    machine.quiesce.go();
  }
  await rm(image, { recursive: true });
}

test("whatever races with a save, the image is the machine at one instant", async (t) => {
  t.timeout(2 ** 31 - 1);
  const draws = new Draws(t);
  const directory = scratch(t);
  while (met.rounds < ROUNDS && Date.now() < END) {
    const machine = await bootMachine(t, {
      ramBytes: draws.between(128, 192) * MIB,
      vcpus: draws.between(1, 3),
      pageThreads: draws.between(1, 2),
    });
    for (let i = draws.between(3, 10); i > 0; i--) machine.spawn(drawProgram(draws));
    const replays: Replays = new Map();
    for (let i = 0; i < ROUNDS_PER_MACHINE && met.rounds < ROUNDS && Date.now() < END; i++) {
      await sleep(draws.below(30));
      await round(t, machine, join(directory, "image"), replays, draws);
    }
    await machine.powerOff();
  }
  t.log(met);
  for (const [what, count] of Object.entries(met)) t.true(count > 0, what);
});

test("a process that is started while a machine that hibernates is read is not in its image by half", async (t) => {
  const machine = await bootMachine(t);
  machine.spawn("zipf:pages=500");
  await until(() => machine.processes()[0]!.steps > 1000, "it runs");
  const path = join(scratch(t), "image");
  let started = false;
  await save(machine, path, {
    reserveFrames: 0, // so that the residual set is written from where it is
    onProgress({ phase }) {
      if (phase !== "residual" || started) return;
      started = true;
      try {
        machine.spawn("incrementer:pages=20");
      } catch (error) {
        t.like(error, { code: "HIB_BUSY" }); // to refuse is as good
      }
    },
  });
  t.true(started);
  const image = await openImage(path);
  t.deepEqual(findWrong(image.memory()), []);
  image.close();
});

test("a snapshot whose stores wait for room can be cancelled: the machine goes on", async (t) => {
  const machine = await bootMachine(t, { pageThreads: 1 });
  for (const seed of [1, 2, 3]) machine.spawn(`heap:slots=200,maxorder=3,seed=${seed}`);
  machine.spawn("zipf:pages=3000,content=random");
  await until(() => machine.processes().every(({ steps }) => steps > 3000), "there is much to save");
  const cancel = new AbortController();
  const saved = save(machine, join(scratch(t), "image"), {
    keepRunning: true,
    reserveFrames: 0,
    signal: cancel.signal,
    onProgress: ({ phase }) => phase === "residual" && cancel.abort(),
  });
  // Meanwhile this thread takes the kernel lock, as the console does: it may be held by a store that waits.
  const looking = setInterval(() => machine.processes(), 1);
  await t.throwsAsync(saved, { code: "HIB_CANCELLED" });
  clearInterval(looking);
  t.deepEqual(
    whileStopped(machine, () => findWrong(machine.kernel.memory)),
    [],
  );
});
