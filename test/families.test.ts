/**
 * Processes that fork, share, map and protect memory, saved and resumed while they are at it: the image and the resumed machine
 * are consistent, no process finds its memory wrong, and all go on. What they hold cannot be recomputed; they check themselves.
 *
 * HIB_SEED repeats a run's choices (not its interleaving). HIB_RACE_ROUNDS makes it longer.
 */
import { rm } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import ava, { type ExecutionContext } from "ava";
import { PTE_D } from "../src/base/layout.js";
import type { ReadableMemory } from "../src/base/memory.js";
import { save } from "../src/hibernate.js";
import { openImage } from "../src/image/directory.js";
import type { Machine } from "../src/machine.js";
import { resume } from "../src/resume.js";
import { checkConsistency } from "../src/vm/views/consistency.js";
import { FRAME_REFERENCES, FRAME_ENTRY_BYTES, kernelLayout } from "../src/vm/memory/kernel-layout.js";
import { walkLeaves } from "../src/vm/memory/page-table.js";
import { listProcesses } from "../src/vm/tasks/process.js";
import { DATA_BASE } from "../src/vm/personality/step/program.js";
import { bootMachine, collectFailures, Draws, MIB, scratch, sleep, until, whileStopped } from "./support.js";

/** One at a time: a live machine wants both cores. */
const test = ava.serial;

const ROUNDS = Number(process.env["HIB_RACE_ROUNDS"] ?? 16);

function drawProgram(draws: Draws): string {
  const seed = draws.below(2 ** 31);
  return draws.of([
    `fork:children=${draws.between(1, 4)},depth=${draws.between(1, 3)},pages=${draws.between(1, 64)},seed=${seed}`,
    `shared:slots=${draws.between(1, 32)},turns=${draws.of([100, 2000, 50_000])},seed=${seed}`,
    `mapper:slots=${draws.between(1, 16)},maxpages=${draws.of([8, 64, 1024])},seed=${seed}`,
  ]);
}

/** What the machine's memory says of itself, and of processes that failed. */
function wrongWith(memory: ReadableMemory): string[] {
  const failed = listProcesses(memory).filter(({ failure }) => failure !== "");
  return [...checkConsistency(memory).problems, ...failed.map(({ pid, text, failure }) => `${pid} ${text}: ${failure}`)];
}

/** The roots of the families go on, wherever they run. */
async function goesOn(machine: Machine): Promise<void> {
  const roots = () => machine.processes().filter(({ parent, boot }) => parent === 0 && !boot);
  const before = new Map(roots().map(({ pid, steps }) => [pid, steps]));
  await until(() => roots().every(({ pid, steps }) => steps > before.get(pid)!), "every family has gone on");
}

/** How many frames the processes of an image share, and what its 2 MiB mappings are. */
function countShared(memory: ReadableMemory): { shared: number; huge: number } {
  const { frameTable } = kernelLayout(memory.frames);
  const mapped = new Set<number>();
  let huge = 0;
  for (const { root } of listProcesses(memory))
    for (const { frame, level } of walkLeaves(memory, root)) {
      mapped.add(frame);
      huge += level;
    }
  const references = (frame: number) => memory.load32(frameTable + frame * FRAME_ENTRY_BYTES + FRAME_REFERENCES);
  return { shared: [...mapped].filter((frame) => references(frame) > 1).length, huge };
}

/** Saves a machine, and looks at the image and at the machine. A hibernated one goes on in a machine that has booted. */
async function round(t: ExecutionContext, machine: Machine, image: string, keepRunning: boolean): Promise<Machine> {
  await save(machine, image, { keepRunning, oracle: true });
  const opened = await openImage(image);
  const seen = countShared(opened.memory());
  t.deepEqual(wrongWith(opened.memory()), []);
  opened.close();
  met.rounds++;
  met.shared += seen.shared;
  met.huge += seen.huge;
  let next = machine;
  if (!keepRunning) {
    met.resumes++;
    next = await bootMachine(t, { ramBytes: machine.kernel.memory.frames * 4096, onConsole });
    next.spawn("boot-progress");
    next.spawn("boot-housekeeping:200");
    await resume(next, image);
  }
  t.deepEqual(
    whileStopped(next, () => wrongWith(next.kernel.memory)),
    [],
  );
  await rm(image, { recursive: true });
  return next;
}

const met = { rounds: 0, resumes: 0, shared: 0, huge: 0 };
/** Of the machines of `round` and the tests that call it. */
const { failures, onConsole } = collectFailures();

test("families that share memory are saved and resumed while they are at it", async (t) => {
  t.timeout(2 ** 31 - 1);
  const draws = new Draws(t);
  const image = join(scratch(t), "image");
  let machine: Machine | undefined;
  // A 2 MiB mapping is there now and then; rounds go on until one was saved.
  for (let i = 0; i < ROUNDS || (met.huge === 0 && i < 10 * ROUNDS); i++) {
    if (i % 10 === 0) {
      await machine?.powerOff();
      machine = await bootMachine(t, { ramBytes: draws.between(64, 96) * MIB, onConsole });
      for (const text of ["fork", "shared", "mapper:maxpages=1024,slots=4"]) machine.spawn(text);
      for (let n = draws.between(1, 4); n > 0; n--) machine.spawn(drawProgram(draws));
    }
    await sleep(draws.below(40));
    machine = await round(t, machine!, image, draws.below(3) > 0);
    if (i % 5 === 4) await goesOn(machine);
  }
  await machine?.powerOff();
  t.deepEqual(failures, []);
  t.log(met);
  for (const [what, count] of Object.entries(met)) t.true(count > 0, what);
});

test("a process table that is full of forks is saved, and every family goes on", async (t) => {
  const machine = await bootMachine(t, { ramBytes: 128 * MIB, onConsole });
  const image = join(scratch(t), "image");
  machine.spawn("fork:children=512,depth=2,pages=2");
  for (const keepRunning of [true, true, false]) {
    await until(() => machine.processes().length >= 500, "the table is full");
    const next = await round(t, machine, image, keepRunning);
    await goesOn(next);
  }
  t.deepEqual(failures, []);
});

test("a machine whose memory is nearly used up is saved, or says how much it lacks and goes on", async (t) => {
  const draws = new Draws(t);
  const image = join(scratch(t), "image");
  for (let i = 0; i < 6; i++) {
    const machine = await bootMachine(t, { ramBytes: 16 * MIB });
    const { kernel } = machine;
    // All but a few frames are taken; a process that finds none fails, and says so.
    for (const text of ["shared:turns=500", "mapper:slots=4,maxpages=16", "fork:children=2,depth=1,pages=4"]) machine.spawn(text);
    await until(() => machine.processes().every(({ steps }) => steps > 0), "all have run");
    const spare = draws.between(10, 120);
    machine.spawn(`incrementer:pages=${kernel.buddy.freeFrames - spare - 30}`);
    await sleep(draws.below(20));
    let error: { code?: string } | undefined;
    try {
      await save(machine, image, { keepRunning: true });
    } catch (caught) {
      error = caught as { code?: string };
    }
    if (error !== undefined) t.is(error.code, "HIB_NO_MEMORY", String(error));
    else {
      const opened = await openImage(image);
      t.deepEqual(checkConsistency(opened.memory()).problems, []);
      opened.close();
      await rm(image, { recursive: true });
    }
    const failures = whileStopped(machine, () => {
      t.deepEqual(checkConsistency(kernel.memory).problems, []);
      return machine.processes().flatMap(({ failure }) => (failure === "" ? [] : [failure]));
    });
    for (const failure of failures) t.regex(failure, /out of memory/);
    t.log({ spare, saved: error === undefined, failures: failures.length });
    await machine.powerOff();
  }
});

for (const text of ["fork:children=1,depth=1,pages=1", "shared:slots=1", "mapper:slots=1,maxpages=1"]) {
  test(`${text} notices that its memory is not what it left there`, async (t) => {
    const machine = await bootMachine(t, { vcpus: 1 });
    machine.spawn(text);
    const failed = () => machine.processes().some(({ failure }) => failure !== "");
    await until(() => machine.processes().some(({ steps }) => steps > 100), "it has run");
    t.false(failed());
    const { memory } = machine.kernel;
    // A page may be written anew before it is looked at: until then there is more damage.
    await until(() => {
      whileStopped(machine, () => {
        for (const { root } of listProcesses(memory))
          for (const { address, frame, flags } of walkLeaves(memory, root))
            if (address >= DATA_BASE && (flags & PTE_D) !== 0)
              for (let at = 0; at < 4096; at += 4) memory.store32(frame * 4096 + at, memory.load32(frame * 4096 + at) ^ 0x10);
      });
      return failed();
    }, "it notices");
    t.regex(machine.processes().find(({ failure }) => failure !== "")!.failure, new RegExp(`^${text.split(":")[0]}: `));
  });
}
