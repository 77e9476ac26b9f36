/**
 * Machines that lose a thread: one that dies with an error, or without a word and perhaps with the kernel lock. Nobody waits for it,
 * a save that is under way ends with its code and leaves nothing, and whoever asks the machine for something is told.
 */
import { spawn, spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import threads, { type Worker } from "node:worker_threads";
import ava, { type ExecutionContext } from "ava";
import { bootOrResume } from "../src/boot.js";
import type { HibernaculumError } from "../src/base/errors.js";
import { LOCK_BROKEN, MACHINE_KERNEL_LOCK } from "../src/base/layout.js";
import { save } from "../src/hibernate.js";
import type { Machine, MachineOptions } from "../src/machine.js";
import type { SavePhase } from "../src/reports/save-progress.js";
import { resume } from "../src/resume.js";
import type { SaveOptions } from "../src/save-options.js";
import { judge } from "./fixtures/victim.js";
import { bootMachine, MIB, scratch, until } from "./support.js";

/** One at a time: a live machine wants both cores. */
const test = ava.serial;

/** Threads of vCPUs, in the order in which they were started. */
let vcpus: Worker[] = [];
/** What threads of vCPUs run instead, if anything. */
let stillborn: string | undefined;
const RealWorker = threads.Worker;
threads.Worker = class extends RealWorker {
  constructor(...how: ConstructorParameters<typeof RealWorker>) {
    const isVcpu = String(how[0]).endsWith("/vcpu.js");
    if (isVcpu && stillborn !== undefined) super(stillborn, { ...how[1], eval: true });
    else super(...how);
    if (isVcpu) vcpus.push(this);
  }
};
syncBuiltinESMExports();

/** Processes that are in the kernel much. */
const BUSY = ["mapper", "fork", "incrementer:pages=500"];

/** @param trap - for the vCPUs, which read it from the environment when they start */
async function booted(t: ExecutionContext, trap?: string, options: Partial<MachineOptions> = {}): Promise<Machine> {
  vcpus = [];
  if (trap !== undefined) process.env["HIB_FAILPOINTS"] = trap;
  const booting = bootMachine(t, { ramBytes: 32 * MIB, ...options });
  delete process.env["HIB_FAILPOINTS"];
  return booting;
}

function spawnBusy(machine: Machine): void {
  for (const text of BUSY) machine.spawn(text);
}

/** Everything that one might ask of a machine that is lost, and that it can be powered off. */
async function isLost(t: ExecutionContext, machine: Machine, what: string): Promise<void> {
  t.true(machine.isLost, what);
  for (const ask of [() => machine.check(), () => machine.begin("check")])
    t.deepEqual(judge(t.throws(ask), "HIB_WORKER_DIED"), []);
  const image = join(scratch(t), "image");
  t.deepEqual(judge(await t.throwsAsync(save(machine, image)), "HIB_WORKER_DIED"), [], what);
  await machine.powerOff();
  t.true(machine.isOff);
}

for (const [how, trap, broken] of [
  ["without a word", "exit", true],
  ["with an error", "EIO", false],
] as const) {
  test(`a vCPU that dies ${how} while it holds the kernel lock: whoever waits for it is told`, async (t) => {
    // Perhaps before it has booted.
    const early = booted(t, `vcpu.locked=${trap}`).then((machine) => until(() => machine.isLost, "").then(() => machine.check()));
    t.regex(((await t.throwsAsync(early)) as HibernaculumError).code, /^HIB_(WORKER_DIED|IO)$/);
    for (const pass of [100, 300, 1000]) {
      const machine = await booted(t, `vcpu.locked=${trap}@${pass}`);
      // No turn of the event loop, so nobody is told of the thread by it.
      const error = t.throws(() => {
        spawnBusy(machine);
        for (const end = Date.now() + 60_000; Date.now() < end; ) machine.processes();
      });
      t.deepEqual(judge(error, "HIB_WORKER_DIED"), [], `pass ${pass}`);
      if (broken) t.is(machine.control.load(MACHINE_KERNEL_LOCK), LOCK_BROKEN);
      await isLost(t, machine, `pass ${pass}`);
    }
  });
}

for (const [how, code, expected] of [
  ["without a word", "process.exit(1)", { code: "HIB_WORKER_DIED", message: /it ended without an error/ }],
  ["with an error", "throw new Error('no such thing')", { code: "HIB_WORKER_DIED", message: /no such thing/ }],
  ["refused by the host", "throw Object.assign(new Error('no'), { code: 'EAGAIN' })", { code: "HIB_IO" }],
] as const) {
  test(`a vCPU that dies ${how} before it has loaded its code: the boot fails`, async (t) => {
    stillborn = code;
    t.teardown(() => (stillborn = undefined));
    await t.throwsAsync(booted(t), expected);
  });
}

test("hib run in a directory that is gone: one line says so", (t) => {
  const gone = scratch(t);
  const hib = fileURLToPath(new URL("../src/cli/hib.js", import.meta.url));
  const command = 'cd "$1" && rmdir "$1" && exec "$2" "$3" run --ram 16M idle';
  const { status, stderr } = spawnSync("/bin/sh", ["-c", command, "sh", gone, process.execPath, hib], { encoding: "utf8" });
  t.is(status, 1);
  t.regex(stderr, /^hib: HIB_IO: [^\n]*the current directory is gone: change to another\n$/);
});

test("HIB_FAILPOINTS that is none is refused when a machine is booted", (t) => {
  const hib = fileURLToPath(new URL("../src/cli/hib.js", import.meta.url));
  const env = { ...process.env, HIB_FAILPOINTS: "bogus" };
  const { status, stderr } = spawnSync(process.execPath, [hib, "run", "--ram", "16M", "idle"], { encoding: "utf8", env });
  t.is(status, 2);
  t.regex(stderr, /^hib: HIB_USAGE: HIB_FAILPOINTS: there is no "bogus"; [^\n]*\n$/);
});

test("a vCPU that dies without a word: it is told, also if nobody asks it for anything", async (t) => {
  const machine = await booted(t, "vcpu.locked=exit@20");
  await until(() => machine.isLost, "it is noticed");
  await isLost(t, machine, "noticed by itself");
});

test("a vCPU that dies while the coordinator waits for its safepoint is not waited for", async (t) => {
  const machine = await booted(t);
  spawnBusy(machine);
  await until(() => machine.processes().every(({ steps }) => steps > 0), "all run");
  void vcpus[0]!.terminate();
  t.true(machine.control.waitForVcpus(() => machine.isLost, 60_000));
  await isLost(t, machine, "no event was delivered");
});

const ENDINGS: SaveOptions[] = [{ keepRunning: true, pauseTarget_ms: 0, reserveFrames: 70 }, { keepRunning: false }];

test("a vCPU that dies in any phase of a save: it fails with that, and nothing is left", async (t) => {
  for (const ending of ENDINGS) {
    for (const phase of ["stream", "residual", "publish"] as SavePhase[]) {
      const machine = await booted(t);
      spawnBusy(machine);
      await until(() => machine.processes().every(({ steps }) => steps > 0), "all run");
      const directory = scratch(t);
      const onProgress = (progress: { phase: SavePhase }): void => {
        if (progress.phase !== phase) return;
        void vcpus[1]!.terminate();
        machine.control.waitForVcpus(() => machine.isLost, 60_000);
      };
      const error = await t.throwsAsync(save(machine, join(directory, "image"), { ...ending, onProgress }));
      const what = `${phase}, ${JSON.stringify(ending)}`;
      t.deepEqual(judge(error, "HIB_WORKER_DIED"), [], what);
      t.deepEqual(readdirSync(directory), [], what);
      await isLost(t, machine, what);
    }
  }
});

test("a vCPU that dies while an image is loaded: the boot ends, and the image is good", async (t) => {
  const saved = await booted(t);
  spawnBusy(saved);
  await until(() => saved.processes().every(({ steps }) => steps > 0), "all run");
  const image = join(scratch(t), "image");
  await save(saved, image);
  const machine = await booted(t);
  const onLoaded = (): void => {
    void vcpus[0]!.terminate();
    machine.control.waitForVcpus(() => machine.isLost, 60_000);
  };
  t.deepEqual(judge(await t.throwsAsync(bootOrResume(machine, image, { onLoaded })), "HIB_WORKER_DIED"), []);
  await isLost(t, machine, "at the stop");
  const next = await booted(t);
  await resume(next, image);
});

test("hib run: a vCPU that dies ends the machine, with one line", async (t) => {
  const runtime = scratch(t);
  for (const trap of ["exit", "EIO"]) {
    const hib = fileURLToPath(new URL("../src/cli/hib.js", import.meta.url));
    const env = { ...process.env, HIB_RUNTIME_DIR: runtime, HIB_FAILPOINTS: `vcpu.locked=${trap}@500` };
    const child = spawn(process.execPath, [hib, "run", "--name", trap, "--ram", "32M", ...BUSY], { env });
    let errors = "";
    child.stderr.on("data", (bytes) => (errors += bytes));
    child.stdout.resume();
    const code = await new Promise((resolve) => child.once("close", resolve));
    t.is(code, 1, errors);
    t.regex(errors, /^hib: HIB_WORKER_DIED: [^\n]+\n$/);
  }
});
