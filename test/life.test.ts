/**
 * Processes that signal, stop, start and end each other race with saves and resumes. Each image must be consistent and hold processes
 * that have not failed, and whoever is resumed from it goes on, checking itself.
 *
 * HIB_SEED repeats a run's choices (not its interleaving). HIB_RACE_ROUNDS makes it longer.
 */
import { rm } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import ava, { type ExecutionContext } from "ava";
import { hostNow } from "../src/base/control.js";
import { FRAME_BYTES, MACHINE_ARMED, PTE_PPN_SHIFT } from "../src/base/layout.js";
import type { ReadableMemory } from "../src/base/memory.js";
import { save } from "../src/hibernate.js";
import { openImage } from "../src/image/directory.js";
import type { Machine } from "../src/machine.js";
import { resume } from "../src/resume.js";
import { checkConsistency } from "../src/vm/views/consistency.js";
import * as K from "../src/vm/memory/kernel-layout.js";
import { findLeaf } from "../src/vm/memory/page-table.js";
import { listProcesses, type Process, readRegisters } from "../src/vm/tasks/process.js";
import { HANDLER, SIGNAL_FRAME, SP } from "../src/vm/personality/step/program.js";
import { STATE } from "../src/vm/personality/step/programs/states.js";
import { PROGRESS_DRAWN, PROGRESS_SAVES } from "../src/vm/personality/step/programs/progress.js";
import { JOBS } from "../src/vm/personality/step/programs/jobs.js";
import { SIGCONT, SIGKILL, signalSet, SIGSTOP, SIGUSR1, SIGUSR2 } from "../src/vm/tasks/signals.js";
import { STATUS_CONTINUED, WCONTINUED, WNOHANG, WUNTRACED } from "../src/vm/tasks/status.js";
import { bootMachine, collectFailures, Draws, scratch, sleep, until, untilNow } from "./support.js";
import { processAddress } from "../src/vm/memory/kernel-layout.js";

/** One at a time: a live machine wants both cores. */
const test = ava.serial;

const ROUNDS = Number(process.env["HIB_RACE_ROUNDS"] ?? 20);

function drawPrograms(draws: Draws): string[] {
  const seed = () => draws.below(2 ** 31);
  return [
    ...[1, 2, 3].map(() => `signals:seed=${seed()}`),
    ...[3, 10, 30].map((ms) => `jobs:ms=${ms},seed=${seed()}`),
    `sleeper:ms=${draws.of([5, 50])},seed=${seed()}`,
    `timers:ms=${draws.of([2, 10])},seed=${seed()}`,
    "progress:ms=5",
    `incrementer:pages=200,seed=${seed()}`,
  ];
}

/** A word of a process's memory; 0 if it is not there. */
function userWord(memory: ReadableMemory, { root }: Process, address: number): number {
  const leaf = findLeaf(memory, root, address - (address % FRAME_BYTES));
  return leaf === 0 ? 0 : memory.load32((memory.load32(leaf) >>> PTE_PPN_SHIFT) * FRAME_BYTES + (address % FRAME_BYTES));
}

/** Situations that the images are to show, by how many processes were in them. */
const met = {
  inHandler: 0,
  inHandlerThatMasks: 0,
  nested: 0,
  asleepInHandler: 0,
  sleepInterrupted: 0,
  pending: 0,
  masked: 0,
  blocked: 0,
  stopped: 0,
  zombie: 0,
  orphan: 0,
  intervalTimer: 0,
};

/** @param started - pids of the processes that the test has started */
function meet(memory: ReadableMemory, entry: Process, started: ReadonlySet<number>): void {
  const at = processAddress(memory, entry.slot);
  if (entry.pending !== 0) met.pending++;
  if (entry.mask !== 0) met.masked++;
  if (entry.state === "blocked") met.blocked++;
  if (entry.state === "stopped") met.stopped++;
  if (entry.state === "zombie") met.zombie++;
  if (entry.parent === 0 && !started.has(entry.pid)) met.orphan++;
  if (memory.loadFloat64(at + K.PROCESS_ALARM_INTERVAL) > 0) met.intervalTimer++;
  const registers = readRegisters(memory, entry.slot);
  if (registers[HANDLER] === 0 || entry.state === "zombie") return;
  met.inHandler++;
  if (entry.text.startsWith("signals:") && registers[HANDLER] === 1) {
    met.inHandlerThatMasks++;
    if (entry.mask !== signalSet(SIGUSR1, SIGUSR2))
      throw new Error(`process ${entry.pid} handles SIGUSR1 with mask ${entry.mask}`);
  }
  if (entry.state === "sleeping") met.asleepInHandler++;
  const frame = registers[SP]! >>> 0;
  if (userWord(memory, entry, frame + SIGNAL_FRAME.registers + HANDLER * 4) !== 0) met.nested++;
  if (userWord(memory, entry, frame + SIGNAL_FRAME.wake + 4) !== 0) met.sleepInterrupted++;
}

const failures = (processes: readonly Process[]) =>
  processes.filter(({ failure }) => failure !== "").map(({ pid, text, failure }) => `${pid} ${text}: ${failure}`);

/** Looks at an image: it is consistent, nobody in it has failed. Returns its processes. */
async function look(t: ExecutionContext, path: string, started: ReadonlySet<number>): Promise<Process[]> {
  const image = await openImage(path);
  try {
    const memory = image.memory();
    const processes = listProcesses(memory);
    t.deepEqual(checkConsistency(memory).problems, []);
    t.deepEqual(failures(processes), []);
    t.false(processes.some(({ state }) => state === "embryo"));
    for (const entry of processes) meet(memory, entry, started);
    return processes;
  } finally {
    image.close();
  }
}

/** Everyone whom the test started has gone on. */
async function goesOn(machine: Machine, before: readonly Process[], started: ReadonlySet<number>): Promise<void> {
  const steps = new Map(before.map((entry) => [entry.pid, entry.steps]));
  const first = (entry: Process) => started.has(entry.pid);
  await until(
    () =>
      machine
        .processes()
        .filter(first)
        .every((entry) => entry.steps > steps.get(entry.pid)!),
    "all go on",
  );
}

test("whatever signals, alarms, stops and ends race with a save, its image goes on", async (t) => {
  t.timeout(2 ** 31 - 1);
  const draws = new Draws(t);
  const directory = scratch(t);
  const programs = drawPrograms(draws);
  const { failures: reaped, onConsole } = collectFailures();
  let machine = await bootMachine(t, { onConsole });
  const started = new Set(programs.map((program) => machine.spawn(program).pid));
  let hibernations = 0;
  for (let round = 1; round <= ROUNDS; round++) {
    await sleep(draws.below(60));
    const path = join(directory, `image-${round}`);
    const keepRunning = draws.below(2) === 0;
    await save(machine, path, { keepRunning, oracle: true });
    const processes = await look(t, path, started);
    if (!keepRunning) {
      hibernations++;
      await sleep(draws.below(40)); // the wall clock goes on, the guest's does not
      machine = await bootMachine(t, { onConsole, vcpus: draws.between(1, 2) });
      machine.spawn("boot-housekeeping:50");
      await resume(machine, path);
    }
    t.is(processes.filter(({ pid }) => started.has(pid)).length, started.size, "none of them is gone");
    await goesOn(machine, processes, started);
    t.deepEqual([...failures(machine.processes()), ...reaped], [], `round ${round}`);
    machine.check();
    await rm(path, { recursive: true, force: true });
  }
  t.log({ rounds: ROUNDS, hibernations, ...met });
  t.true(hibernations > 0);
  for (const [what, times] of Object.entries(met)) t.true(times > 0, what);
});

test("an alarm and a sleep have left after a resume what they had left before, however long it lay", async (t) => {
  const machine = await bootMachine(t);
  machine.spawn("idle:ms=3600000");
  machine.spawn("timers:ms=100000");
  await until(() => machine.processes().every(({ steps }) => steps > 0), "both have begun");
  const due = ({ kernel: { memory } }: Machine) => [
    memory.loadFloat64(processAddress(memory, 0) + K.PROCESS_WAKE),
    memory.loadFloat64(processAddress(memory, 1) + K.PROCESS_ALARM),
  ];
  const path = join(scratch(t), "image");
  await save(machine, path);
  const before = due(machine);
  const clock = machine.kernel.memory.loadFloat64(K.KERNEL_CLOCK);
  t.true(before.every((time) => time > clock));
  const wall = Date.now();
  await sleep(300);
  const fresh = await bootMachine(t);
  const began = hostNow();
  await resume(fresh, path);
  t.deepEqual(due(fresh), before);
  const ran = fresh.control.guestNow() - clock;
  t.true(ran >= 0 && ran <= hostNow() - began, "the guest's clock stood still meanwhile");
  t.true(Date.now() - wall >= 300, "the wall clock did not");
});

test("who waits for stops before a save is told of them after it, and once; what was to be told before it, too", async (t) => {
  const { failures: reaped, onConsole } = collectFailures();
  let machine = await bootMachine(t, { onConsole });
  const { pid, slot } = machine.spawn("jobs:ms=100000,seed=3");
  const path = join(scratch(t), "image");
  const at = processAddress(machine.kernel.memory, slot);
  const leader = () => machine.processes().find((entry) => entry.pid === pid)!;
  const children = () => machine.processes().filter(({ parent }) => parent === pid);
  const is = (state: number, what: Process["state"]) => () =>
    leader().state === what && readRegisters(machine.kernel.memory, slot)[STATE] === state;
  /** Ends the sleep of the leader, who is to do this next. */
  const hurry = (state: number) => {
    machine.kernel.memory.store32(at + K.PROCESS_REGISTERS + STATE * 4, state);
    machine.kernel.memory.storeFloat64(at + K.PROCESS_WAKE, 1);
    machine.control.ringDoorbell();
  };
  /** What wait still has for it. */
  const tells = () => {
    const { control, lifecycle } = machine.kernel;
    return control.locked(() => lifecycle.wait(slot, -1, WNOHANG | WUNTRACED | WCONTINUED));
  };
  const saveAndResume = async () => {
    await save(machine, path, { oracle: true });
    await look(t, path, new Set([pid]));
    machine = await bootMachine(t, { onConsole });
    await resume(machine, path);
    await rm(path, { recursive: true });
  };
  await until(is(JOBS.stop, "sleeping"), "the leader has its children");
  await until(() => children().every(({ state }) => state === "sleeping"), "they sleep");
  t.is(children().length, 3);

  hurry(JOBS.awaitStops);
  await until(is(JOBS.awaitStops, "blocked"), "it waits for their stops");
  await saveAndResume();
  t.true(is(JOBS.awaitStops, "blocked")());
  machine.kernel.groups.kill(undefined, -children()[0]!.group, SIGSTOP);
  await until(is(JOBS.goOn, "sleeping"), "it was told of all three");
  t.is(tells(), 0);

  machine.kernel.groups.kill(undefined, -children()[0]!.group, SIGCONT);
  await until(() => children().every(({ state }) => state === "sleeping"), "they go on");
  await saveAndResume();
  t.deepEqual(
    children().map(({ status }) => status),
    [STATUS_CONTINUED, STATUS_CONTINUED, STATUS_CONTINUED],
  );
  hurry(JOBS.awaitContinues);
  await until(is(JOBS.end, "sleeping"), "it was told of all three");
  await saveAndResume();
  t.is(tells(), 0);
  t.deepEqual([...failures(machine.processes()), ...reaped], []);
});

// ---- a helper of user space (S3.7) ----

const drawn = ({ kernel: { memory } }: { kernel: { memory: ReadableMemory } }, entry: Process) =>
  userWord(memory, entry, PROGRESS_DRAWN);
const helper = (processes: readonly Process[]) => processes.find(({ text }) => text.startsWith("progress"))!;

test("a helper draws while the machine is saved, is in the image, and goes on", async (t) => {
  let shown = "";
  const machine = await bootMachine(t, { onConsole: (text) => (shown += text) });
  machine.spawn("progress:ms=1");
  machine.spawn("zipf:pages=10000,content=random,rate=20000"); // so that there is something to save
  await until(() => machine.processes().every(({ steps }) => steps > 0), "both run");
  const before = drawn(machine, helper(machine.processes()));
  t.is(before, 0);
  let armed = 0;
  const path = join(scratch(t), "image");
  await save(machine, path, {
    oracle: true,
    onProgress: () => {
      // The save does not go on before this returns: the helper has all the time that it needs.
      if (armed > 0 || machine.control.load(MACHINE_ARMED) === 0) return;
      armed = untilNow(() => drawn(machine, helper(machine.processes())), "it draws while the machine is armed");
    },
  });
  t.true(armed > 0, "it ran while the machine was armed");
  t.regex(shown, /save: \[#* *\] \d+ %/);
  const image = await openImage(path);
  const saved = helper(listProcesses(image.memory()));
  const inImage = drawn({ kernel: { memory: image.memory() } }, saved);
  t.deepEqual(checkConsistency(image.memory()).problems, []);
  image.close();
  t.true(inImage >= armed);

  let later = "";
  const fresh = await bootMachine(t, { onConsole: (text) => (later += text) });
  await resume(fresh, path);
  await until(() => later.includes("save 1: over"), "it finds the save over");
  const now = helper(fresh.processes());
  t.true(now.steps > saved.steps);
  t.is(now.failure, "");
  t.is(userWord(fresh.kernel.memory, now, PROGRESS_SAVES), 1);
});

for (const how of ["stopped", "dead", "hung"] as const) {
  test(`a helper that is ${how} does not hold up a save`, async (t) => {
    const machine = await bootMachine(t);
    const { pid, slot } = machine.spawn(how === "hung" ? "incrementer:pages=1" : "progress:ms=1");
    const other = machine.spawn("incrementer:pages=300");
    const started = new Set([pid, other.pid]);
    await until(() => machine.processes().every(({ steps }) => steps > 0), "both run");
    if (how === "stopped") {
      t.is(machine.kernel.groups.kill(undefined, pid, SIGSTOP), 0);
      await until(() => machine.processes()[slot]!.state === "stopped", "it stops");
    }
    if (how === "dead") {
      machine.kernel.groups.kill(undefined, pid, SIGKILL);
      await until(() => machine.processes().length === 1, "it ends");
    }
    const path = join(scratch(t), "image");
    await save(machine, path, { oracle: true });
    const processes = await look(t, path, started);
    t.is(processes.length, how === "dead" ? 1 : 2);
    const fresh = await bootMachine(t);
    await resume(fresh, path);
    if (how === "stopped") {
      t.is(fresh.processes()[slot]!.state, "stopped");
      fresh.kernel.groups.kill(undefined, pid, SIGCONT);
    }
    await goesOn(fresh, processes, how === "dead" ? new Set([other.pid]) : started);
    t.deepEqual(failures(fresh.processes()), []);
  });
}
