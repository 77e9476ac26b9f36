/**
 * Racing writers: processes write as fast as they can, are born and die, while their machine is saved again and again.
 * Every image must be, byte for byte, what each process's program makes of its saved step count; the oracle hashes
 * every unmarked frame at each stop.
 *
 * HIB_SEED repeats a run's choices (not its interleaving). HIB_RACE_ROUNDS or HIB_RACE_MINUTES make it longer.
 */
import { rm } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import test, { type ExecutionContext } from "ava";
import { save, type SaveOptions } from "../src/hibernate.js";
import { openImage } from "../src/image/directory.js";
import type { Machine } from "../src/machine.js";
import type { SaveReport } from "../src/save-report.js";
import { bootMachine, Draws, findWrong, MIB, type Replays, scratch, sleep } from "./support.js";

const ROUNDS = Number(process.env["HIB_RACE_ROUNDS"] ?? (process.env["HIB_RACE_MINUTES"] === undefined ? 400 : Infinity));
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

function drawOptions(draws: Draws): SaveOptions {
  return {
    keepRunning: true,
    oracle: true,
    compression: draws.of(["lz4", "none"]),
    ...(draws.below(4) === 0 ? { reserveFrames: draws.of([0, 1, 65, 300]) } : {}),
  };
}

/** Starts and ends processes until told to stop. */
async function churn(machine: Machine, draws: Draws, going: () => boolean): Promise<void> {
  while (going()) {
    const running = machine.processes();
    if (running.length > PROCESSES_MAX - 4 && draws.below(2) === 0) machine.kernel.end(draws.of(running).slot);
    else if (running.length < PROCESSES_MAX) machine.spawn(drawProgram(draws));
    await sleep(draws.between(0, 10));
  }
}

/** What the rounds met, to see that they met what they are for. */
const met = { rounds: 0, steps: 0, marked: 0, overflow: 0, oracle: 0 };

async function round(t: ExecutionContext, machine: Machine, image: string, replays: Replays, draws: Draws): Promise<void> {
  const options = drawOptions(draws);
  const steps = () => machine.processes().reduce((sum, process) => sum + process.steps, 0);
  let saving = true;
  // A process that is made while a stopped machine is still being read would be half in the image.
  const churning = options.reserveFrames === undefined && draws.below(2) === 0 ? churn(machine, draws, () => saving) : undefined;
  let report: SaveReport;
  try {
    report = await save(machine, image, options);
  } finally {
    saving = false;
    await churning;
  }
  machine.quiesce.stop();
  const opened = await openImage(image);
  try {
    met.rounds++;
    met.marked += report.faults.total;
    met.overflow += report.reserve.overflow_frames;
    met.oracle += report.oracle_frames ?? 0;
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
  t.true(met.marked > 0 && met.oracle > 0 && met.steps > 0 && met.overflow > 0);
});
