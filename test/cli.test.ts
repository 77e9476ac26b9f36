/**
 * The commands, as a user runs them: child processes, their output and their exit codes. All machines of this file are
 * in one runtime directory, each test's under a name of its own; one test at a time, since `hib ps` sees them all.
 */
import { type ChildProcess, execFile, spawn, spawnSync } from "node:child_process";
import { chmodSync, mkdtempSync, statSync } from "node:fs";
import { cp, mkdtemp, open, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import anyTest, { type ExecutionContext, type TestFn } from "ava";
import { FRAME_BYTES } from "../src/base/layout.js";
import { describeError } from "../src/cli/command.js";
import { parseKernelCommandLine } from "../src/cli/kernel-command-line.js";
import { atNewImage } from "../src/cli/save.js";
import { parseSize } from "../src/cli/size.js";
import { HibernaculumError, Machine, save } from "../src/index.js";
import { Client } from "../src/server/client.js";
import { walkLeaves } from "../src/vm/memory/page-table.js";
import { CODE_BASE } from "../src/vm/personality/step/program.js";
import { INCREMENTER_OFFSET } from "../src/vm/personality/step/programs/incrementer.js";

const RUNTIME = mkdtempSync(join(tmpdir(), "hib-cli-"));
process.env["HIB_RUNTIME_DIR"] = RUNTIME;
const HIB = fileURLToPath(new URL("../src/cli/hib.js", import.meta.url));
const STATS = fileURLToPath(new URL("../src/cli/hib-stats.js", import.meta.url));
/** Enough for a save to have something to do, and little enough to be quick. */
const WORKLOADS = ["zipf:pages=3000,rate=50000", "incrementer:pages=1000,rate=20000", "heap:rate=1000"];

const test = anyTest as TestFn<{ directory: string }>;

test.serial.beforeEach(async (t) => {
  t.context.directory = await mkdtemp(join(tmpdir(), "hib-cli-work-"));
});
test.serial.afterEach.always((t) => rm(t.context.directory, { recursive: true, force: true }));
test.after.always(() => rm(RUNTIME, { recursive: true, force: true }));

interface Result {
  code: number;
  stdout: string;
  stderr: string;
}

function run(
  t: ExecutionContext<{ directory: string }>,
  args: string[],
  { program = HIB, env = {} }: { program?: string; env?: Record<string, string> } = {},
): Promise<Result> {
  return new Promise((resolve) => {
    const options = { cwd: t.context.directory, env: { ...process.env, ...env }, maxBuffer: 2 ** 26 };
    const child = execFile(process.execPath, [program, ...args], options, (_, stdout, stderr) => {
      resolve({ code: child.exitCode ?? -1, stdout, stderr });
    });
  });
}

/** A command that goes on until it is told to end. */
class Running {
  readonly child: ChildProcess;
  readonly ended: Promise<Result>;
  #stdout = "";
  #stderr = "";

  constructor(t: ExecutionContext<{ directory: string }>, args: string[]) {
    this.child = spawn(process.execPath, [HIB, ...args], { cwd: t.context.directory, stdio: ["ignore", "pipe", "pipe"] });
    this.child.stdout!.setEncoding("utf8").on("data", (text: string) => (this.#stdout += text));
    this.child.stderr!.setEncoding("utf8").on("data", (text: string) => (this.#stderr += text));
    this.ended = new Promise((resolve) => {
      this.child.once("close", (code) => resolve({ code: code ?? -1, stdout: this.#stdout, stderr: this.#stderr }));
    });
    t.teardown(() => {
      this.child.kill("SIGKILL");
    });
  }

  get stdout(): string {
    return this.#stdout;
  }

  interrupt(): Promise<Result> {
    this.child.kill("SIGINT");
    return this.ended;
  }
}

/** Starts a machine and waits until it runs. */
async function machine(t: ExecutionContext<{ directory: string }>, name: string, ...args: string[]): Promise<Running> {
  const running = new Running(t, args.length > 0 ? args : ["run", "--name", name, "--ram", "64M", ...WORKLOADS]);
  await until(async () => {
    const client = await Client.connect(name).catch(() => undefined);
    const state = (await client?.request("status", {}).catch(() => undefined))?.state;
    client?.close();
    if (running.child.exitCode !== null) throw new Error(`${name} ended: ${(await running.ended).stderr}`);
    return state === "running";
  });
  return running;
}

async function until(condition: () => Promise<boolean> | boolean): Promise<void> {
  while (!(await condition())) await sleep(5);
}

async function corrupted(directory: string): Promise<string> {
  const copy = join(directory, "corrupt.hib");
  await cp(join(directory, "a.hib"), copy, { recursive: true });
  const blob = await open(join(copy, "blob"), "r+");
  const byte = new Uint8Array(1);
  await blob.read(byte, 0, 1, 50_000);
  await blob.write(Uint8Array.of(byte[0]! ^ 1), 0, 1, 50_000);
  await blob.close();
  return copy;
}

test.serial("a machine's whole life: run, ps, snapshot, inspect, verify, stats, hibernate, resume", async (t) => {
  const a = await machine(t, "life");
  const ps = JSON.parse((await run(t, ["ps", "--json"])).stdout);
  const status = ps.machines.find(({ name }: { name: string }) => name === "life");
  t.is(ps.schema, 1);
  t.is(status.pid, a.child.pid);
  t.is(status.ram_bytes, 64 * 2 ** 20);
  t.deepEqual(
    status.processes.map(({ text }: { text: string }) => text),
    WORKLOADS,
  );
  t.regex((await run(t, ["ps"])).stdout, /^life +pid \d+, running.*\n.*steps\/s.*\n +1 +zipf/m);

  const snapshot = await run(t, ["save", "life", "a.hib", "--keep-running"]);
  t.is(snapshot.code, 0);
  t.regex(snapshot.stdout, /a\.hib \(a snapshot\)[\s\S]*pause +[\d.]+ [mu]s: safepoint/);
  t.true((await run(t, ["ps", "--json"])).stdout.includes('"name":"life"'), "it goes on");
  for (const name of ["blob", "catalogue.sqlite"])
    t.is(statSync(join(t.context.directory, "a.hib", name)).mode & 0o777, 0o600, name);

  const inspected = JSON.parse((await run(t, ["inspect", "a.hib", "--json"])).stdout);
  t.is(inspected.schema, 1);
  t.is(inspected.used, false);
  t.deepEqual(
    inspected.processes.map(({ text }: { text: string }) => text),
    WORKLOADS,
  );
  t.regex((await run(t, ["inspect", "a.hib"])).stdout, /incrementer +\w+ +[\d,]+ +1,001 /);

  const verified = JSON.parse((await run(t, ["verify", "a.hib", "--replay", "--json"])).stdout);
  t.true(verified.ok);
  t.deepEqual(
    verified.processes.map(({ differences }: { differences: string[] }) => differences.length),
    [0, 0, 0],
  );
  t.is(verified.chunks.frames, inspected.header.frames);
  t.regex((await run(t, ["verify", "a.hib"])).stdout, /^a\.hib: ok$/m);

  const report = JSON.parse((await run(t, ["a.hib", "--json"], { program: STATS })).stdout);
  t.is(report.schema, 1);
  t.is(report.frames.saved, inspected.header.frames);
  t.is(report.image.ending, "keep-running");
  const shown = (await run(t, ["a.hib"], { program: STATS })).stdout;
  for (const title of [
    "Frames",
    "Write faults",
    "Atomic copy",
    "Pause",
    "Staging reserve",
    "Image",
    "Time",
    "What the workload felt",
  ]) {
    t.true(shown.split("\n").includes(title), title);
  }
  t.true(
    shown.split("\n").every((line) => line.length <= 80 || line.includes("/")),
    "fits 80 columns",
  );
  const live = JSON.parse((await run(t, ["life", "--json"], { program: STATS })).stdout);
  t.is(live.save.image.id, report.image.id);
  t.regex((await run(t, ["life"], { program: STATS })).stdout, /^Machine life\n[\s\S]*^Atomic copy$/m);

  const hibernated = await run(t, ["save", "life", "b.hib", "--json"]);
  t.is(JSON.parse(hibernated.stdout).image.ending, "hibernate");
  const end = await a.ended;
  t.is(end.code, 0);
  t.regex(end.stdout, /^life: hibernated in .*b\.hib$/m);
  t.false((await run(t, ["ps", "--json"])).stdout.includes('"name":"life"'), "it is gone");

  const b = await machine(t, "life", "resume", "b.hib"); // its image has its name
  const client = await Client.connect("life");
  const { processes, problems } = await client.request("check", {});
  client.close();
  t.deepEqual(problems, []);
  t.deepEqual(
    processes.map(({ differences }) => differences),
    [[], [], []],
  );
  const saved = JSON.parse((await run(t, ["inspect", "b.hib", "--json"])).stdout);
  t.true(saved.used);
  for (const [i, { steps }] of processes.entries()) t.true(steps >= saved.processes[i].steps);
  const other = new Running(t, ["resume", "a.hib", "--json"]); // its name is taken
  await until(
    async () =>
      (await run(t, ["ps", "--json"])).stdout.includes(`"name":"machine-${other.child.pid}"`) || other.child.exitCode !== null,
  );
  t.is(other.child.exitCode, null);
  await other.interrupt();
  const off = await b.interrupt();
  t.is(off.code, 0);
  t.regex(off.stdout, /^Resumed .*b\.hib$[\s\S]*^life: powered off$/m);

  const second = await run(t, ["resume", "b.hib"]);
  t.is(second.code, 1);
  t.regex(second.stderr, /^hib: HIB_IMAGE_USED: [^\n]*\n$/);
  const again = await machine(t, "again", "resume", "b.hib", "--name", "again", "--again", "--json", "--cpus", "1");
  const told = await again.interrupt();
  t.is(JSON.parse(told.stdout).machine.name, "again");
});

test.serial("a damaged image: verify and resume say so", async (t) => {
  const a = await machine(t, "damage");
  await run(t, ["save", "damage", "a.hib", "--keep-running", "--compression", "none"]);
  await a.interrupt();
  const copy = await corrupted(t.context.directory);
  const verified = await run(t, ["verify", copy]);
  t.is(verified.code, 3);
  t.regex(verified.stderr, /^hib: HIB_CORRUPT: [^\n]*\n$/);
  const resumed = await run(t, ["resume", copy, "--name", "damaged"]);
  t.is(resumed.code, 1);
  t.regex(resumed.stderr, /^hib: HIB_CORRUPT: [^\n]*\n$/m);
  const ram = await run(t, ["resume", "a.hib", "--ram", "128M"]);
  t.regex(ram.stderr, /^hib: HIB_RAM_MISMATCH: /);
});

test.serial(
  "a process that is wrong: verify --replay tells it from an image, and a machine that has it when it is seen",
  async (t) => {
    const path = join(t.context.directory, "wrong.hib");
    const wrong = await Machine.boot({ ramBytes: 32 * 2 ** 20, vcpus: 1 });
    const { root, pid } = wrong.spawn("incrementer:pages=8");
    wrong.quiesce.stop();
    const { memory } = wrong.kernel;
    for (const { address, frame } of walkLeaves(memory, root)) {
      if (address !== CODE_BASE) memory.write(frame * FRAME_BYTES + INCREMENTER_OFFSET, Uint8Array.of(99, 98));
    }
    wrong.quiesce.go();
    await until(() => wrong.processes().some(({ state }) => state === "failed"));
    await save(wrong, path);
    const verified = await run(t, ["verify", path, "--replay"]);
    t.is(verified.code, 3);
    t.regex(verified.stdout, /WRONG\n {4}it failed: incrementer/);
    const resumed = await machine(t, "wrong", "resume", path, "--name", "wrong");
    await until(async () => (await run(t, ["ps"])).stdout.includes("failed"));
    const { code, stderr } = await resumed.interrupt();
    t.is(code, 3);
    t.is(stderr.match(new RegExp(`^hib: HIB_SELF_CHECK: process ${pid} `, "gm"))?.length, 1, stderr);
  },
);

test.serial("a process that runs out of memory is reported, and is no mismatch", async (t) => {
  const a = await machine(t, "full", "run", "--name", "full", "--ram", "16M", "stack:pages=16384", "idle");
  await until(async () => (await run(t, ["ps"])).stdout.includes("failed"));
  const { code, stderr } = await a.interrupt();
  t.is(code, 1);
  t.regex(stderr, /^hib: HIB_NO_MEMORY: process 1 /m);
});

test.serial("Ctrl-C in hib save: the machine goes on, and nothing is left behind", async (t) => {
  await machine(t, "cancel", "run", "--name", "cancel", "--ram", "256M", "zipf:pages=55000,content=text,rate=1000");
  const saving = new Running(t, ["save", "cancel", "a.hib"]);
  await until(async () => (await readdir(t.context.directory)).length > 0);
  const { code, stderr, stdout } = await saving.interrupt();
  t.is(code, 130);
  t.is(stdout, "");
  t.regex(stderr, /^hib: HIB_CANCELLED: [^\n]*\n$/m);
  t.deepEqual(await readdir(t.context.directory), []);
  t.is((await run(t, ["save", "cancel", "b.hib", "--keep-running"])).code, 0, "the next save is complete");
  t.is((await run(t, ["verify", "b.hib", "--replay"])).code, 0);
});

test.serial(
  "a client that is killed cancels its save; Ctrl-C on the machine's side cancels it too, and a second one ends it",
  async (t) => {
    const a = await machine(t, "both", "run", "--name", "both", "--ram", "256M", "zipf:pages=55000,content=text,rate=1000");
    const killed = new Running(t, ["save", "both", "a.hib"]);
    await until(async () => (await readdir(t.context.directory)).length > 0);
    killed.child.kill("SIGKILL");
    await until(async () => (await readdir(t.context.directory)).length === 0);
    const saving = new Running(t, ["save", "both", "b.hib"]);
    await until(async () => (await readdir(t.context.directory)).length > 0);
    a.child.kill("SIGINT");
    t.is((await saving.ended).code, 130);
    t.deepEqual(await readdir(t.context.directory), []);
    t.regex((await run(t, ["ps"])).stdout, /^both +pid \d+, running/m);
    const { code, stdout } = await a.interrupt();
    t.is(code, 0);
    t.regex(stdout, /^both: powered off$/m);
  },
);

test.serial("a dead machine's socket is reported and removed, by ps and by a new machine of that name", async (t) => {
  for (const name of ["dead", "dead-too"]) {
    const a = await machine(t, name);
    a.child.kill("SIGKILL");
    await a.ended;
  }
  // Asking whether it runs would remove the socket, too: what it prints tells as well.
  const successor = new Running(t, ["run", "--name", "dead-too", "--ram", "64M", "idle"]);
  await until(() => /process 1: idle/.test(successor.stdout));
  const ps = await run(t, ["ps"]);
  t.is(ps.code, 0);
  t.regex(ps.stderr, /^hib: HIB_NO_MACHINE: machine dead died/m);
  t.regex(ps.stdout, /^dead-too +pid/m);
  t.false((await readdir(RUNTIME)).includes("dead.sock"));
  t.false((await run(t, ["ps"])).stderr.includes("machine dead died"), "it is said once");
  const taken = await run(t, ["run", "--name", "dead-too", "--ram", "64M", "idle"]);
  t.is(taken.code, 1);
  t.regex(taken.stderr, /^hib: HIB_NAME_TAKEN: [^\n]*\n$/);
  t.regex((await successor.interrupt()).stderr, /an earlier machine dead-too died/);
  t.false((await readdir(RUNTIME)).includes("dead-too.sock"), "an orderly end leaves nothing");
});

test.serial("hib boot: hibernate= resumes, an image that was used lets the boot go on, noresume skips", async (t) => {
  const a = await machine(t, "first");
  await run(t, ["save", "first", "a.hib"]);
  await a.ended;
  const boot = (name: string, cmdline: string) =>
    machine(t, name, "boot", "--name", name, "--ram", "64M", "--cmdline", cmdline, "idle");
  const skipped = await (await boot("skipped", "hibernate=a.hib noresume")).interrupt();
  t.regex(skipped.stdout, /noresume: a\.hib is left alone$[\s\S]*process 3: idle$/m);
  const resumed = await (await boot("resumed", "quiet hibernate=a.hib")).interrupt();
  t.regex(resumed.stdout, /command line: quiet hibernate=a\.hib$[\s\S]*ignored.*: quiet$[\s\S]*^Resumed [\s\S]*process 1: zipf/m);
  t.false(resumed.stdout.includes("idle"), "the workloads are the saved machine's");
  const failed = await (await boot("failed", "hibernate=a.hib")).interrupt();
  t.regex(failed.stdout, /^failed\| kernel: resume: HIB_IMAGE_USED: .*$[\s\S]*left as it is$[\s\S]*process 3: idle$/m);
  t.is(failed.code, 0);
  const none = await (await boot("none", "hibernate=nothing.hib hibernate=")).interrupt();
  t.regex(none.stdout, /"hibernate=" names no image; give hibernate=PATH$[\s\S]*booting normally$/m);
});

test.serial("an image on a read-only store: resumed by --again, without a mark; else the refusal says so", async (t) => {
  const a = await machine(t, "gold");
  t.is((await run(t, ["save", "gold", "gold.hib"])).code, 0);
  await a.ended;
  const image = join(t.context.directory, "gold.hib");
  const before = await readdir(image);
  if (!makeReadOnly(t, image)) return t.pass("this user cannot make anything read-only for itself");
  const refused = await run(t, ["resume", image, "--name", "again"]);
  t.is(refused.code, 1);
  t.regex(refused.stderr, /^hib: HIB_IO: \S+gold\.hib is read-only here[^\n]*--again[^\n]*\n$/);
  for (let twice = 0; twice < 2; twice++) {
    const resumed = await machine(t, "again", "resume", image, "--name", "again", "--again");
    t.is((await resumed.interrupt()).code, 0);
  }
  t.deepEqual(await readdir(image), before);
});

/** Root may write wherever it likes, but where a mount says no. False if that cannot be had. */
function makeReadOnly(t: ExecutionContext, path: string): boolean {
  if (process.getuid?.() !== 0) {
    chmodSync(path, 0o500);
    t.teardown(() => chmodSync(path, 0o700));
    return true;
  }
  const mount = (...args: string[]): boolean => spawnSync("mount", args).status === 0;
  if (!mount("--bind", path, path)) return false;
  t.teardown(() => spawnSync("umount", ["-l", path]));
  return mount("-o", "remount,ro,bind", path);
}

test.serial("demo: every process continues exactly, and nothing is left behind", async (t) => {
  const { code, stdout, stderr } = await run(t, [
    "demo",
    "--ram",
    "128M",
    "--seconds",
    "0.5",
    "--dir",
    ".", // relative: every process must find the same place
    "--json",
  ]);
  t.is(code, 0, stderr);
  const { schema, ok, processes, save: report, resume } = JSON.parse(stdout);
  t.is(schema, 1);
  t.true(ok);
  t.is(processes.length, 8);
  for (const { steps, steps_at_save, pages, differences } of processes) {
    t.deepEqual(differences, []);
    t.true(steps > steps_at_save && steps_at_save > 0);
    t.true(pages > 0);
  }
  t.is(report.image.ending, "hibernate");
  t.is(resume.frames.image, report.frames.saved);
  t.regex(stderr, /^1\. Process A[\s\S]*^6\. /m);
  t.deepEqual(await readdir(t.context.directory), []);
});

test.serial("demo: Ctrl-C cleans up", async (t) => {
  const demo = new Running(t, ["demo", "--ram", "128M", "--dir", t.context.directory]);
  await until(async () => (await readdir(t.context.directory)).length > 0);
  const { code } = await demo.interrupt();
  t.is(code, 130);
  t.deepEqual(await readdir(t.context.directory), []);
});

test.serial("help of every command, with the exit codes", async (t) => {
  for (const args of [
    ["run"],
    ["boot"],
    ["ps"],
    ["save"],
    ["resume"],
    ["images"],
    ["inspect"],
    ["verify"],
    ["programs"],
    ["demo"],
    [],
  ]) {
    const { code, stdout, stderr } = await run(t, [...args, "--help"]);
    t.is(code, 0);
    t.is(stderr, "");
    t.regex(stdout, new RegExp(`^Usage: ${["hib", ...args].join(" ")} `));
    t.true(stdout.includes("3 damage or mismatch, 130 interrupted"));
    for (const line of stdout.split("\n")) t.true(line.length <= 80, line);
  }
  t.regex((await run(t, ["run", "--help"])).stdout, /^Workloads; hib programs lists the options of each:\n {2}zipf +writes/m);
  t.regex((await run(t, ["programs"])).stdout, /incrementer: .*\n +one edge\n +pages=1024/);
  t.is(JSON.parse((await run(t, ["programs", "--json"])).stdout).programs[0].name, "zipf");
  t.regex((await run(t, ["--help"], { program: STATS })).stdout, /^Usage: hib-stats [\s\S]*130 interrupted/);
});

test.serial("errors are one line with a code, and the exit code says whose fault it is", async (t) => {
  const cases: [string[], number, RegExp][] = [
    [["sav", "x"], 2, /^hib: HIB_USAGE: unknown command 'sav' \(Did you mean save\?\)\n$/],
    [["save", "--keep-runing", "x"], 2, /^hib: HIB_USAGE: .*\(Did you mean --keep-running\?\)\n$/],
    [["save"], 2, /^hib: HIB_USAGE: missing required argument 'name'\n$/],
    [["save", "nobody"], 1, /^hib: HIB_NO_MACHINE: [^\n]*\n$/],
    [["save", "../x"], 2, /^hib: HIB_USAGE: [^\n]*\n$/],
    [["run", "--ram", "12Q", "idle"], 2, /^hib: HIB_USAGE: [^\n]*\n$/],
    [["run", "--ram", "9G", "idle"], 1, /^hib: HIB_RAM_TOO_LARGE: [^\n]*\n$/],
    [["run", "--cpus", "0", "idle"], 2, /^hib: HIB_USAGE: [^\n]*\n$/],
    [["run", "--ram", "64M", "idle", "zipf:page=1"], 2, /^hib: HIB_USAGE: zipf: no option "page"[^\n]*\n$/],
    [["boot", "--ram", "64M", "zipf:page=1"], 2, /^hib: HIB_USAGE: zipf: no option "page"[^\n]*\n$/],
    [["images", "nowhere"], 1, /^hib: HIB_IO: [^\n]*\n$/],
    [["run", "--cmdline", "x", "idle"], 2, /^hib: HIB_USAGE: unknown option '--cmdline'[^\n]*\n$/],
    [["run"], 2, /^hib: HIB_USAGE: give the machine something to run[^\n]*\n$/],
    [["run", "--ram", "16M", "zipf:pages=100000,content=text"], 1, /^hib: HIB_NO_MEMORY: [^\n]*\n$/],
    [["resume", "nowhere"], 1, /^hib: HIB_NOT_AN_IMAGE: [^\n]*\n$/],
    [["inspect", "."], 1, /^hib: HIB_NOT_AN_IMAGE: [^\n]*\n$/],
    [["verify", "/dev/null"], 1, /^hib: HIB_NOT_AN_IMAGE: [^\n]*\n$/],
    [["verify", "nowhere", "--verbose"], 1, /^hib: HIB_NOT_AN_IMAGE: [^\n]*\nHibernaculumError: [\s\S]*\n +at /],
  ];
  for (const [args, code, stderr] of cases) {
    const result = await run(t, args);
    t.is(result.code, code, args.join(" "));
    t.regex(result.stderr, stderr);
    t.is(result.stdout, "");
  }
  const stats = await run(t, ["nobody"], { program: STATS });
  t.is(stats.code, 1);
  t.regex(stats.stderr, /^hib-stats: HIB_NO_MACHINE: /);
});

test.serial("an image path that is taken is refused, and so is a runtime directory that others can enter", async (t) => {
  await machine(t, "taken");
  const exists = await run(t, ["save", "taken", t.context.directory, "--keep-running"]);
  t.is(exists.code, 1);
  t.regex(exists.stderr, /^hib: HIB_IMAGE_EXISTS: /);
  const refused = await run(t, ["ps"], { env: { HIB_RUNTIME_DIR: tmpdir() } });
  t.is(refused.code, 1);
  t.regex(refused.stderr, /^hib: HIB_IO: [^\n]*\n$/);
  const absent = await run(t, ["run", "--ram", "16M", "idle"], {
    env: { HIB_RUNTIME_DIR: join(t.context.directory, "absent", "too") },
  });
  t.is(absent.code, 1);
  t.regex(absent.stderr, /^hib: HIB_IO: [^\n]*\n$/);
});

test.serial("an unexpected error is one line too, and says how to see more", (t) => {
  t.is(describeError(new TypeError("a\n  b\n")), "HIB_INTERNAL: a b (a bug; --verbose shows where)");
  t.is(describeError("text"), "HIB_INTERNAL: text (a bug; --verbose shows where)");
  t.is(describeError(new HibernaculumError("HIB_BUSY", "wait")), "HIB_BUSY: wait");
});

test.serial("pipes get no escape codes, and one that is closed early is no error", async (t) => {
  await machine(t, "pipe");
  await run(t, ["save", "pipe", "a.hib", "--keep-running"]);
  for (const [program, args] of [
    [HIB, ["ps"]],
    [HIB, ["inspect", "a.hib"]],
    [HIB, ["images"]],
    [STATS, ["a.hib"]],
    [STATS, ["pipe"]],
  ] as const) {
    for (const env of [{ NO_COLOR: "1" }, { CI: "1", TERM: "xterm-256color" }]) {
      const { stdout, stderr } = await run(t, [...args], { program, env });
      t.true(stdout.length > 80);
      t.false((stdout + stderr).includes("\u001b"));
    }
  }
  const child = spawn(process.execPath, [STATS, "a.hib"], { cwd: t.context.directory, stdio: ["ignore", "pipe", "pipe"] });
  child.stdout.destroy();
  let stderr = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text));
  const code = await new Promise((resolve) => child.once("close", resolve));
  t.is(stderr, "");
  t.is(code, 0);
});

test.serial("a default name that is taken by then is no reason to fail, and one that was asked for is", async (t) => {
  const taken = new HibernaculumError("HIB_IMAGE_EXISTS", "taken");
  const tried: string[] = [];
  const make = (path: string): Promise<string> => (tried.push(path) < 4 ? Promise.reject(taken) : Promise.resolve(path));
  t.is(await atNewImage(undefined, "m", make), tried.at(-1)!);
  t.is(new Set(tried).size, 4);
  for (const path of tried) t.regex(path, /^m-\d{8}-\d{6}-\d{3}\.hib$/);
  t.is(await t.throwsAsync(atNewImage("x", "m", () => Promise.reject(taken))), taken);
  const other = new HibernaculumError("HIB_IO", "another");
  t.is(await t.throwsAsync(atNewImage(undefined, "m", () => Promise.reject(other))), other);
  await t.throwsAsync(atNewImage("", "m", make), { code: "HIB_USAGE" });
});

test.serial("sizes: binary and decimal units, and what is none", (t) => {
  const sizes: Record<string, number> = {
    "512M": 2 ** 29,
    "512m": 2 ** 29,
    "512MiB": 2 ** 29,
    "1G": 2 ** 30,
    "1.5G": 1.5 * 2 ** 30,
    "64K": 65536,
    "64KiB": 65536,
    "4GB": 4e9,
    "512MB": 512e6,
    "8kB": 8000,
    "4096": 4096,
    "10 MiB": 10 * 2 ** 20,
    "7B": 7,
  };
  for (const [text, bytes] of Object.entries(sizes)) t.is(parseSize(text), bytes, text);
  for (const text of ["", "M", "-1M", "1e9", "0x10", "12Q", "1.5", "1 2", "M512", "99999999999G"]) {
    t.throws(() => parseSize(text), { code: "commander.invalidArgument" }, text);
  }
});

test.serial("kernel command line: known words are read, others are kept", (t) => {
  t.deepEqual(parseKernelCommandLine(" quiet  hibernate=/a/b root=x "), {
    text: "quiet hibernate=/a/b root=x",
    hibernate: "/a/b",
    noresume: false,
    unknown: ["quiet", "root=x"],
    malformed: [],
  });
  t.is(parseKernelCommandLine("hibernate=a hibernate=b noresume").hibernate, "b");
  t.true(parseKernelCommandLine("hibernate=a noresume").noresume);
  t.is(parseKernelCommandLine('hibernate="a b=c.hib"').hibernate, "a b=c.hib");
  t.deepEqual(parseKernelCommandLine("hibernate nohibernate=x noresume=1"), {
    text: "hibernate nohibernate=x noresume=1",
    hibernate: undefined,
    noresume: false,
    unknown: ["nohibernate=x", "noresume=1"],
    malformed: ['"hibernate" names no image; give hibernate=PATH'],
  });
});

/** Sends signals to a machine once its save streams; returns what the client was told, and the machine's end. */
async function endDuringSave(
  t: ExecutionContext<{ directory: string }>,
  name: string,
  signals: NodeJS.Signals[],
  { keepRunning }: { keepRunning: boolean },
): Promise<{ told: string; path: string; end: Result }> {
  const running = await machine(t, name, "run", "--name", name, "--ram", "128M", "random:pages=25000,content=random");
  const path = join(t.context.directory, `${name}.hib`);
  const client = await Client.connect(name);
  let sent = false;
  const onProgress = ({ phase }: { phase: string }): void => {
    if (sent || phase !== "stream") return;
    sent = true;
    for (const [i, signal] of signals.entries()) setTimeout(() => running.child.kill(signal), 20 * i);
  };
  const told = await client.request("save", { path, keepRunning, compression: "lz4" }, { onProgress }).then(
    () => "saved",
    (error: Error) => error.message,
  );
  client.close();
  return { told, path, end: await running.ended };
}

test.serial("a machine that is told to end during a save finishes it; what the client is told is what is", async (t) => {
  for (const keepRunning of [false, true]) {
    const { told, path, end } = await endDuringSave(t, `term-${keepRunning}`, ["SIGTERM"], { keepRunning });
    t.is(told, "saved");
    t.is(end.code, 0);
    t.is((await run(t, ["verify", path])).code, 0);
  }
});

test.serial("a machine that is told to end twice during a save cuts it off, and nobody is told that it goes on", async (t) => {
  const pairs: NodeJS.Signals[][] = [
    ["SIGTERM", "SIGTERM"],
    ["SIGHUP", "SIGINT"],
    ["SIGINT", "SIGINT"], // the first cancels, which may be over, and told, before the second
  ];
  const all = [];
  for (const signals of pairs) {
    const { told, end } = await endDuringSave(t, `cut-${signals.join("-").toLowerCase()}`, signals, { keepRunning: false });
    t.is(end.code, 0, end.stderr);
    t.true(signals[0] === "SIGINT" || !told.includes("goes on"), told);
    all.push(told);
  }
  t.regex(all.join("\n"), /the save was cut off; the machine was told to end and is powered off/);
  t.deepEqual(
    (await readdir(t.context.directory)).filter((name) => name.includes("partial")),
    [],
  );
});
