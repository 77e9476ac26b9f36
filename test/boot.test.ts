/**
 * Boots that find an image (S2.1, S2.2, S2.5, S2.9): whatever is wrong with it and wherever a resume of it fails or
 * dies, the console says why, the image is set aside or left alone as it must be, the boot goes on with its workloads, and
 * an image that was not damaged can still be resumed by hand, exact. Commands are run as a user runs them.
 */
import { execFile, execFileSync, spawn, type ChildProcess } from "node:child_process";
import {
  closeSync,
  existsSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { cp, rm } from "node:fs/promises";
import { hostname, tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import ava, { type ExecutionContext } from "ava";
import { bootOrResume } from "../src/boot.js";
import { type Failpoint, FAILPOINTS } from "../src/base/failpoints.js";
import { thisProcess } from "../src/base/host-process.js";
import { save } from "../src/hibernate.js";
import { loadChecksum } from "../src/image/checksum.js";
import { openImage } from "../src/image/directory.js";
import { BLOB_NAME, CATALOGUE_NAME, HEADER_BYTES } from "../src/image/format.js";
import type { ImageEntry } from "../src/image/list.js";
import { claimUse, deaths, readHistory, recordAttempt, recordOutcome } from "../src/image/markers.js";
import type { Machine } from "../src/machine.js";
import { resume } from "../src/resume.js";
import { RESUME_STEPS } from "../src/reports/resume-report.js";
import { Client } from "../src/server/client.js";
import type { MachineStatus } from "../src/server/protocol.js";
import { KERNEL_FREE_FRAMES } from "../src/vm/memory/kernel-layout.js";
import { boot as bootMachine, BOOT_PROGRAMS, PROGRAMS, RAM_BYTES, runsOn } from "./fixtures/doomed.js";
import { findWrong, scratch, until, whileStopped } from "./support.js";
import { edit, reheader, RESUME_KILLS } from "./damage.js";

/** One at a time: a live machine wants both cores. */
const test = ava.serial;

const HIB = fileURLToPath(new URL("../src/cli/hib.js", import.meta.url));
const RUNTIME = mkdtempSync(join(tmpdir(), "hib-boot-"));
process.env["HIB_RUNTIME_DIR"] = RUNTIME;
test.after.always(() => rm(RUNTIME, { recursive: true, force: true }));

/** What a normal boot starts; the saved machine has others. */
const WORKLOADS = ["sequential:pages=50,rate=5000", "idle:ms=2"];

const campaign = { points: new Set<Failpoint>(), runs: 0, losses: 0 };

/** Good images, which nobody changes: of a machine, and of one whose allocator miscounts although every checksum agrees. */
const originals = mkdtempSync(join(tmpdir(), "hib-boot-images-"));
const good = join(originals, "good");
const inconsistent = join(originals, "inconsistent");
test.after.always(() => rm(originals, { recursive: true }));

test.before("images", async () => {
  await loadChecksum();
  const machine = await bootMachine(PROGRAMS);
  await save(machine, good, { keepRunning: true });
  machine.kernel.memory.store32(KERNEL_FREE_FRAMES, machine.kernel.buddy.freeFrames + 1);
  await save(machine, inconsistent);
  await machine.powerOff();
});

/** A copy of an image at `DIRECTORY/snap.hib`. */
async function copyOf(t: ExecutionContext, original: string = good): Promise<string> {
  const path = join(scratch(t), "snap.hib");
  await cp(original, path, { recursive: true });
  return path;
}

/** The images beside a path, as `hib images --json` lists them. */
async function images(path: string): Promise<ImageEntry[]> {
  const { stdout } = await new Promise<{ stdout: string }>((resolve) => {
    execFile(process.execPath, [HIB, "images", dirname(path), "--json"], (_, stdout) => resolve({ stdout }));
  });
  return JSON.parse(stdout).images;
}

/** One image as it must be: its name, its state, and the codes of what its attempts came to. */
async function isListed(t: ExecutionContext, path: string, expected: Partial<ImageEntry>, what: string): Promise<ImageEntry> {
  const all = await images(path);
  t.is(all.length, 1, what);
  for (const [key, value] of Object.entries(expected)) t.deepEqual(all[0]![key as keyof ImageEntry], value, `${what}: ${key}`);
  return all[0]!;
}

let named = 0;

/** `hib boot` with WORKLOADS, in a process of its own. */
class Boot {
  readonly name: string = `boot-${process.pid}-${named++}`;
  readonly child: ChildProcess;
  readonly ended: Promise<number | string>;
  console = "";
  #alive = true;

  constructor(t: ExecutionContext, path: string, { ram = RAM_BYTES, traps }: { ram?: number; traps?: string | undefined } = {}) {
    const { HIB_FAILPOINTS: _, ...env } = process.env;
    const cmdline = `hibernate=${path} console=ttyS0`;
    this.child = spawn(
      process.execPath,
      [HIB, "boot", "--name", this.name, "--ram", String(ram), "--cmdline", cmdline, ...WORKLOADS],
      {
        env: traps === undefined ? env : { ...env, HIB_FAILPOINTS: traps },
        stdio: ["ignore", "pipe", "pipe"],
      },
    );
    for (const stream of [this.child.stdout!, this.child.stderr!])
      stream.setEncoding("utf8").on("data", (text: string) => (this.console += text));
    this.ended = new Promise((resolve) => this.child.once("close", (code, signal) => resolve(code ?? signal ?? "unknown")));
    void this.ended.then(() => (this.#alive = false));
    t.teardown(() => this.child.kill("SIGKILL"));
  }

  /** Waits until it runs, and every process has made steps. */
  async runs(): Promise<MachineStatus> {
    for (;;) {
      if (!this.#alive) throw new Error(`${this.name} ended: ${this.console}`);
      const client = await Client.connect(this.name).catch(() => undefined);
      const status = await client?.request("status", {}).catch(() => undefined);
      client?.close();
      if (status?.state === "running" && status.processes.every(({ steps }) => steps > 0)) return status;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  /** Lets it go on after a trap's `stop`, also if it has not come to stop yet. */
  goOn(): void {
    const timer = setInterval(() => this.child.kill("SIGCONT"), 20);
    void this.ended.then(() => clearInterval(timer));
  }

  async powerOff(): Promise<void> {
    this.child.kill("SIGINT");
    await this.ended;
  }

  /** The boot goes on normally, its workloads run; then it is powered off. */
  async goesOn(t: ExecutionContext, what: string): Promise<void> {
    const { processes, resumes } = await this.runs();
    t.deepEqual(
      processes.filter(({ boot }) => !boot).map(({ text }) => text),
      WORKLOADS,
      what,
    );
    t.is(resumes, 0, what);
    t.regex(this.console, /^.*kernel: booting normally$/m, what);
    await this.powerOff();
    t.is(await this.ended, 0, what);
  }

  /** The saved machine runs instead; then it is powered off. */
  async resumes(t: ExecutionContext, what: string): Promise<void> {
    const { processes, resumes } = await this.runs();
    t.deepEqual(
      processes.map(({ text }) => text),
      PROGRAMS,
      what,
    );
    t.is(resumes, 1, what);
    await this.powerOff();
  }
}

/** Resumed by hand, the machine is exact and goes on: nothing of it was lost. */
async function isNotLost(t: ExecutionContext, path: string, what: string, options: { again?: boolean } = {}): Promise<void> {
  const machine = await bootMachine(BOOT_PROGRAMS);
  t.teardown(() => machine.powerOff());
  try {
    campaign.losses++;
    await resume(machine, path, options);
    await runsOn(machine);
    t.deepEqual(
      machine.processes().map(({ text }) => text),
      PROGRAMS,
      what,
    );
    t.deepEqual(
      whileStopped(machine, () => findWrong(machine.kernel.memory)),
      [],
      what,
    );
    campaign.losses--;
  } finally {
    await machine.powerOff();
  }
}

const flip =
  (file: string, at: (length: number) => number) =>
  (path: string): void =>
    edit(path, file, (bytes) => {
      bytes[at(bytes.length)]! ^= 0x80;
      return bytes;
    });

const cut =
  (file: string, bytes: number) =>
  (path: string): void => {
    const descriptor = openSync(join(path, file), "r+");
    ftruncateSync(descriptor, bytes);
    closeSync(descriptor);
  };

/** Where the chunk with a frame begins in the blob. */
async function chunkOf(path: string, frame: number): Promise<() => number> {
  const image = await openImage(path);
  const { chunks, extents } = image;
  image.close();
  for (let i = 0; i < extents.length; i++) {
    const first = extents.pfn[i]!;
    if (first <= frame && frame < first + extents.frames[i]!) return () => chunks[extents.chunk[i]!]!.offset;
  }
  throw new Error(`frame ${frame} is in no chunk`);
}

interface Failure {
  what: string;
  inflict?: (path: string) => unknown;
  traps?: string;
  ram?: number;
  original?: string;
  /** The step at which it fails. */
  step: (typeof RESUME_STEPS)[number];
  code: string;
  /** The image is still good. */
  whole?: boolean;
}

const SET_ASIDE: Failure[] = [
  { what: "no blob", inflict: (path) => rm(join(path, BLOB_NAME)), step: "image", code: "HIB_NOT_AN_IMAGE" },
  { what: "another magic", inflict: flip(BLOB_NAME, () => 0), step: "magic", code: "HIB_NOT_AN_IMAGE" },
  { what: "an empty blob", inflict: cut(BLOB_NAME, 0), step: "magic", code: "HIB_NOT_AN_IMAGE" },
  { what: "another format version", inflict: flip(BLOB_NAME, () => 4), step: "format version", code: "HIB_FORMAT_VERSION" },
  { what: "a bit of the header", inflict: flip(BLOB_NAME, () => 40), step: "header checksum", code: "HIB_CORRUPT" },
  {
    what: "another machine version",
    inflict: reheader({ machineVersion: 77 }),
    step: "machine version",
    code: "HIB_MACHINE_VERSION",
  },
  { what: "no catalogue", inflict: (path) => rm(join(path, CATALOGUE_NAME)), step: "complete", code: "HIB_NOT_AN_IMAGE" },
  { what: "a truncated blob", inflict: cut(BLOB_NAME, 2 * HEADER_BYTES), step: "complete", code: "HIB_TRUNCATED" },
  { what: "a truncated catalogue", inflict: cut(CATALOGUE_NAME, 4096), step: "complete", code: "HIB_TRUNCATED" },
  {
    what: "a bit of the catalogue",
    inflict: flip(CATALOGUE_NAME, (length) => length >> 1),
    step: "catalogue checksum",
    code: "HIB_CORRUPT",
  },
  { what: "counts that disagree", inflict: reheader({ frames: 3 }), step: "counts", code: "HIB_CORRUPT" },
  { what: "too little RAM", ram: RAM_BYTES / 2, step: "RAM size", code: "HIB_RAM_MISMATCH", whole: true },
  { what: "too much RAM", ram: RAM_BYTES * 2, step: "RAM size", code: "HIB_RAM_MISMATCH", whole: true },
  {
    what: "a bit of the first chunk",
    inflict: flip(BLOB_NAME, () => HEADER_BYTES),
    step: "chunk checksums",
    code: "HIB_CORRUPT",
  },
  {
    what: "a bit of the chunk with the kernel's page, which says where disk and mounts are",
    inflict: async (path) => flip(BLOB_NAME, await chunkOf(path, 0))(path),
    step: "files of the host",
    code: "HIB_CORRUPT",
  },
  { what: "a machine that contradicts itself", original: inconsistent, step: "consistency", code: "HIB_INCONSISTENT" },
  { what: "attempt", traps: "resume.attempt=EIO", step: "attempt", code: "HIB_IO", whole: true },
  { what: "allocation", traps: "resume.allocate=ENOMEM", step: "frames", code: "HIB_IO", whole: true },
  { what: "before the load", traps: "resume.verify=EIO", step: "chunk checksums", code: "HIB_IO", whole: true },
  { what: "a loader's read", traps: "resume.load=EIO", step: "chunk checksums", code: "HIB_IO", whole: true },
  { what: "a loader's end", traps: "resume.load=exit", step: "chunk checksums", code: "HIB_WORKER_DIED", whole: true },
  { what: "a later loader's end", traps: "resume.load=exit@2", step: "chunk checksums", code: "HIB_WORKER_DIED", whole: true },
  { what: "at the stop", traps: "resume.stopped=EIO", step: "consistency", code: "HIB_IO", whole: true },
  { what: "once it is claimed", traps: "resume.consume=ENOSPC", step: "consumed", code: "HIB_NO_SPACE", whole: true },
];

test("an image is resumed, and the console tells each step of S2.1 and S2.2 in order", async (t) => {
  const path = await copyOf(t);
  const boot = new Boot(t, path);
  await boot.resumes(t, "resumed");
  const told = [...boot.console.matchAll(/^.*\| kernel: resume: ([^:]+): (.+)$/gm)];
  t.deepEqual(
    told.map(([, name]) => name!),
    [...RESUME_STEPS],
  );
  t.regex(boot.console, /process structures: processes: 3, areas: 9$/m);
  t.regex(boot.console, /ignored, not known here: console=ttyS0$/m);
  const { used } = await isListed(t, path, { name: "snap.hib", state: "used", error: null }, "consumed");
  t.is(used?.pid, boot.child.pid);

  const next = new Boot(t, path);
  await next.goesOn(t, "used");
  t.regex(next.console, /not used before: FAILED\n.*HIB_IMAGE_USED: .*\n.*left as it is$/m);
  await isListed(t, path, { name: "snap.hib", state: "used" }, "an image that was used stays where it is");
});

test("whatever fails, the console says why, the image is set aside, the boot goes on, and nothing is lost", async (t) => {
  for (const { what, inflict, traps, ram, original, step, code, whole = false } of SET_ASIDE) {
    const path = await copyOf(t, original);
    await inflict?.(path);
    const boot = new Boot(t, path, { ...(ram === undefined ? {} : { ram }), traps });
    await boot.goesOn(t, what);
    t.regex(boot.console, new RegExp(`kernel: resume: ${step}: FAILED\n.*kernel: resume: ${code}: `), what);
    const slug = code.slice(4).toLowerCase().replaceAll("_", "-");
    const aside = `${path}.set-aside-${slug}`;
    t.true(boot.console.includes(`kernel: resume: the image is set aside as ${aside};`), what);
    const { set_aside, attempts } = await isListed(t, path, { name: basename(aside), state: "set aside", used: null }, what);
    t.is(set_aside?.from, "snap.hib", what);
    t.is(set_aside?.code, code, what);
    t.true(boot.console.includes(set_aside!.message), what);
    // An attempt that its process survived has an outcome.
    t.deepEqual(
      attempts.map(({ outcome }) => outcome?.code),
      RESUME_STEPS.indexOf(step) <= RESUME_STEPS.indexOf("attempt") && step !== "attempt" ? [] : [code],
      what,
    );
    campaign.runs++;
    if (traps !== undefined) campaign.points.add(traps.split("=")[0] as Failpoint);
    if (whole) await isNotLost(t, aside, what);

    const next = new Boot(t, path);
    await next.goesOn(t, `${what}: the next boot`);
    t.true(next.console.includes(`kernel: resume: no image at ${path}\n`), what);
  }
});

test("where no image is, nothing is renamed", async (t) => {
  const directory = scratch(t);
  mkdirSync(join(directory, "home"));
  writeFileSync(join(directory, "home", "letter"), "mine");
  for (const name of ["nothing", "home", "home/letter"]) {
    const boot = new Boot(t, join(directory, name));
    await boot.goesOn(t, name);
    t.is([...boot.console.matchAll(/kernel: resume: /g)].length, 1, "one line");
    t.true(boot.console.includes(`kernel: resume: no image at ${join(directory, name)}\n`));
    t.false(/HIB_/.test(boot.console), name);
  }
  t.true(existsSync(join(directory, "home", "letter")));
});

test("killed at any point of a resume: after one death the next boot tries again, after two it sets the image aside", async (t) => {
  for (const { point, pass = 1, leaves } of RESUME_KILLS) {
    const what = `${point}@${pass}`;
    const path = await copyOf(t);
    const kill = async (): Promise<void> => {
      const doomed = new Boot(t, path, { traps: `${point}=kill@${pass}` });
      t.is(await doomed.ended, "SIGKILL", what);
      campaign.runs++;
      campaign.points.add(point);
    };
    await kill();
    if (leaves === "used") {
      await isListed(t, path, { name: "snap.hib", state: "used" }, what);
      const next = new Boot(t, path);
      await next.goesOn(t, what);
      t.regex(next.console, /HIB_IMAGE_USED: .*--again/, what);
      await isListed(t, path, { name: "snap.hib", state: "used" }, what);
      await isNotLost(t, path, what, { again: true });
      continue;
    }
    await isListed(t, path, { name: "snap.hib", state: "complete" }, what);
    const once = await copyOf(t, path);
    await new Boot(t, once).resumes(t, `${what}: after one death`);

    await kill();
    const third = new Boot(t, path);
    await third.goesOn(t, `${what}: after two deaths`);
    t.regex(third.console, /kernel: resume: HIB_RESUMES_DIED: .* 2 resumes of it died/, what);
    t.false(third.console.includes("kernel: resume: magic"), `${what}: it is not even looked into`);
    const { name, attempts } = await isListed(t, path, { state: "set aside" }, what);
    t.is(name, "snap.hib.set-aside-resumes-died");
    t.deepEqual(
      attempts.map(({ state, outcome }) => [state, outcome]),
      [
        ["died", null],
        ["died", null],
      ],
      what,
    );
    await isNotLost(t, join(dirname(path), name), what);
  }
});

test("setting aside fails, or its process dies of it: the boot goes on, the next one sets aside", async (t) => {
  for (const action of ["EIO", "kill"]) {
    const path = await copyOf(t);
    const boot = new Boot(t, path, { ram: RAM_BYTES * 2, traps: `boot.set-aside=${action}` });
    if (action === "kill") t.is(await boot.ended, "SIGKILL");
    else {
      await boot.goesOn(t, action);
      t.regex(boot.console, /could not be set aside, the next boot finds it again: HIB_IO: /);
    }
    await isListed(t, path, { name: "snap.hib", state: "complete" }, action);
    const next = new Boot(t, path, { ram: RAM_BYTES * 2 });
    await next.goesOn(t, action);
    await isListed(t, path, { name: "snap.hib.set-aside-ram-mismatch", state: "set aside" }, action);
    await isNotLost(t, `${path}.set-aside-ram-mismatch`, action);
    campaign.runs++;
    campaign.points.add("boot.set-aside");
  }
});

test("a second machine while one resumes: it boots normally, whatever fails for it, and the first goes on", async (t) => {
  const path = await copyOf(t);
  const first = new Boot(t, path, { traps: "resume.stopped=stop" });
  await until(() => /chunk checksums: /.test(first.console), "it has loaded all");
  const held = { name: "snap.hib", state: "resuming", by_pid: first.child.pid! } as const;
  await isListed(t, path, held, "held");
  const second = new Boot(t, path);
  await second.goesOn(t, "second");
  t.regex(second.console, new RegExp(`attempt: FAILED\n.*HIB_BUSY: .* by process ${first.child.pid} .*\n.*left as it is$`, "m"));
  await isListed(t, path, held, "not renamed");
  const third = new Boot(t, path, { ram: RAM_BYTES * 2 });
  await third.goesOn(t, "third");
  t.regex(third.console, /HIB_RAM_MISMATCH: .*\n.*left as it is$/m);
  await isListed(t, path, held, "not renamed, though it did not fit");
  const byHand = await bootMachine(BOOT_PROGRAMS);
  t.teardown(() => byHand.powerOff());
  await t.throwsAsync(resume(byHand, path), { code: "HIB_BUSY" });
  await byHand.powerOff();
  first.goOn();
  await first.resumes(t, "first");
  const { attempts } = await isListed(t, path, { name: "snap.hib", state: "used" }, "used by the first");
  t.deepEqual(
    attempts.map(({ outcome }) => outcome?.code),
    [undefined, "HIB_BUSY", "HIB_BUSY"],
  );
});

test("several machines at the same moment: one resumes, the others boot normally", async (t) => {
  for (let round = 0; round < 3; round++) {
    const path = await copyOf(t);
    const boots = Array.from({ length: 3 }, () => new Boot(t, path));
    const resumes = await Promise.all(boots.map(async (boot) => (await boot.runs()).resumes));
    await Promise.all(boots.map((boot) => boot.powerOff()));
    t.deepEqual(resumes.sort(), [0, 0, 1], boots.map(({ console }) => console).join("\n"));
    for (const { console } of boots) t.regex(console, /Resumed |HIB_BUSY|HIB_IMAGE_USED/);
    await isListed(t, path, { name: "snap.hib", state: "used" }, "used, and not renamed");
    campaign.runs += boots.length;
  }
});

for (const point of ["resume.verify", "resume.stopped", "resume.consume"] as const) {
  test(`Ctrl-C while an image is being resumed, at ${point}: the machine is powered off, the image is as it was`, async (t) => {
    const path = await copyOf(t);
    const boot = new Boot(t, path, { traps: `${point}=stop` });
    await until(() => isStopped(boot.child.pid!), "it is at that point");
    boot.child.kill("SIGINT");
    boot.goOn();
    t.is(await boot.ended, 0);
    const { attempts } = await isListed(t, path, { name: "snap.hib", state: "complete" }, "cancelled");
    t.deepEqual(
      attempts.map(({ outcome }) => outcome?.code),
      ["HIB_CANCELLED"],
    );
    await new Boot(t, path).resumes(t, "the next boot");
  });
}

/** After /proc: a process that a signal has stopped. */
function isStopped(pid: number): boolean {
  return / T /.test(readFileSync(`/proc/${pid}/stat`, "latin1"));
}

test("markers that are pipes, links or endless are none", async (t) => {
  const path = await copyOf(t);
  execFileSync("mkfifo", [join(path, "attempt-1"), join(path, "set-aside")]);
  symlinkSync("/dev/zero", join(path, "outcome-1"));
  const { attempts, setAside } = await readHistory(path);
  t.deepEqual(setAside as unknown, {}, "one that says nothing");
  t.is(attempts.length, 1);
  t.like(attempts[0], { number: 1, state: "over", pid: 0 });
  t.deepEqual(attempts[0]!.outcome as unknown, {});
});

// ---- the same through the library ----

async function booted(t: ExecutionContext): Promise<Machine> {
  const machine = await bootMachine(BOOT_PROGRAMS);
  t.teardown(() => machine.powerOff());
  return machine;
}

test("bootOrResume: tells what happened, and the machine is there to go on", async (t) => {
  const machine = await booted(t);
  const nowhere = join(scratch(t), "nothing");
  t.deepEqual(await bootOrResume(machine, nowhere), { how: "booted", found: "no image" });

  const damaged = await copyOf(t);
  flip(BLOB_NAME, () => HEADER_BYTES)(damaged);
  const failed = await bootOrResume(machine, damaged);
  t.like(failed, { how: "booted", found: "image", error: { code: "HIB_CORRUPT" }, setAside: `${damaged}.set-aside-corrupt` });

  const path = await copyOf(t);
  const cancel = new AbortController();
  const cancelled = await bootOrResume(machine, path, { signal: cancel.signal, onProgress: () => cancel.abort() });
  t.like(cancelled, { how: "booted", error: { code: "HIB_CANCELLED" }, setAside: null, stuck: null });

  machine.begin("save");
  t.like(await bootOrResume(machine, path), { how: "booted", error: { code: "HIB_BUSY" }, setAside: null });
  machine.busy = undefined;

  const result = await bootOrResume(machine, path);
  t.is(result.how, "resumed");
  await runsOn(machine);
  t.deepEqual(
    whileStopped(machine, () => findWrong(machine.kernel.memory)),
    [],
  );
});

test("bootOrResume: who loses the race for the image at the last moment boots on, and leaves it alone", async (t) => {
  const path = await copyOf(t);
  const machine = await booted(t);
  const claim = () =>
    writeFileSync(join(path, "used"), JSON.stringify({ time: "just now", ...thisProcess(), who: "another machine" }));
  const result = await bootOrResume(machine, path, { onLoaded: claim });
  t.like(result, { how: "booted", error: { code: "HIB_IMAGE_USED" }, setAside: null });
  t.is((await readHistory(path)).used?.who, "another machine");
  await runsOn(machine);
});

test("readHistory: an attempt is under way, over, or died; a number that was given again is a stranger's", async (t) => {
  const path = await copyOf(t);
  const write = (name: string, value: object) => writeFileSync(join(path, name), JSON.stringify(value));
  t.is(await recordAttempt(path), 1); // under way: this process
  t.is(await recordAttempt(path), 2);
  await recordOutcome(path, 2, "HIB_IO", "text");
  const me = { time: "then", ...thisProcess() };
  write("attempt-3", { ...me, started: "another boot 5" });
  write("attempt-4", { ...me, host: `not-${hostname()}` });
  write("attempt-5", {});
  const history = await readHistory(path);
  t.deepEqual(
    history.attempts.map(({ state }) => state),
    ["under way", "over", "died", "died", "died"],
  );
  t.is(deaths(history), 3);
  // Deaths that led to its being set aside have had their consequence, should somebody move it back.
  write("set-aside", { from: "snap.hib", attempts: 4 });
  t.is(deaths(await readHistory(path)), 1);
  await claimUse(path, "me", 1);
  t.is((await readHistory(path)).attempts[0]!.state, "over");
});

test("every point of a resume and of a boot was met, and nothing was lost", (t) => {
  t.log(`points ${campaign.points.size}, runs ${campaign.runs}, losses: ${campaign.losses}`);
  t.deepEqual([...campaign.points].sort(), FAILPOINTS.filter((point) => /^(resume|boot)\./.test(point)).sort());
  t.is(campaign.losses, 0);
});
