/**
 * `hib demo`: the main job, as a story. Process A runs a machine and hibernates it live; process B resumes it and
 * proves that every process of it went on exactly where it was.
 *
 * What must hold: A and B share nothing but the image, and B's proof looks at every page and every register. However
 * this ends, A and B are gone and the temporary directory too.
 */
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type Command, InvalidArgumentError } from "commander";
import { attemptTo, HibernaculumError } from "../base/errors.js";
import { FRAME_BYTES, MAX_VCPUS } from "../base/layout.js";
import { RAM_BYTES_MAX } from "../base/limits.js";
import { openImage } from "../image/directory.js";
import type { ResumeReport } from "../reports/resume-report.js";
import type { SaveReport } from "../reports/save-report.js";
import type { CheckResult, MachineStatus } from "../server/protocol.js";
import { formatBytes, formatCount, formatMs } from "../stats/format.js";
import { table, wrap } from "../stats/layout.js";
import { renderProcesses } from "../stats/live-report.js";
import { renderResumeSummary } from "../stats/resume-report.js";
import { renderSaveReport, renderSaveSummary } from "../stats/save-report.js";
import { ChildMachine, isGone } from "./child-machine.js";
import { createCommand, EXIT_DONE, EXIT_MISMATCH, interruptible, ramOption, wholeNumber } from "./command.js";
import { note, print, printJson, stdoutView } from "./output.js";
import { createProgress } from "./progress.js";
import { saveStep } from "./save.js";
import { renderVerification, type Verification, verifyImage } from "./verify.js";

interface DemoOptions {
  ram: number;
  cpus: number;
  seconds: number;
  dir: string;
  keep?: boolean;
  json?: boolean;
}

/** How long the machine works before it is saved: long enough to see the workload's speed. */
const WARM_UP_MS = 1500;

export function addDemo(program: Command): void {
  createCommand(program, "demo", "show it all: run, hibernate live, resume in a fresh process, prove that it is exact")
    .addOption(ramOption("memory, of which 60 % are filled; at least 16M", "1G", checkRam))
    .option("--cpus <n>", `vCPUs, 1 to ${MAX_VCPUS}`, wholeNumber(1, MAX_VCPUS), 2)
    .option("--seconds <s>", "how long the machine runs on after it was resumed", parseSeconds, 3)
    .option("--dir <dir>", "where the temporary directory is made", tmpdir())
    .option("--keep", "keep the temporary directory, with the image")
    .option("--json", "print all reports for programs; the narration goes to stderr")
    .addHelpText("after", "\nExits with 3 if a process did not continue exactly.")
    .action(async (options: DemoOptions) => {
      process.exitCode = await interruptible((signal) => demo(options, signal));
    });
}

async function demo(options: DemoOptions, signal: AbortSignal): Promise<number> {
  // An absolute path: it also names the machines' sockets, and theirs must be the same for every process.
  const directory = await attemptTo(`making a directory in ${options.dir}`, () =>
    mkdtemp(join(resolve(options.dir), "hib-demo-")),
  );
  // The machines of a demo are nobody else's business: `hib ps` does not list them.
  process.env["HIB_RUNTIME_DIR"] = directory;
  const story = new Story(options, directory, signal);
  try {
    return await story.tell();
  } finally {
    await story.end();
    if (options.keep === true) note(`kept: ${directory}`);
    else await rm(directory, { recursive: true, force: true });
  }
}

class Story {
  readonly #options: DemoOptions;
  readonly #image: string;
  readonly #signal: AbortSignal;
  readonly #view = stdoutView();
  readonly #progress = createProgress();
  readonly #say: (text: string) => void;
  readonly #began = performance.now();
  readonly #machines: ChildMachine[] = [];
  #step = 0;

  constructor(options: DemoOptions, directory: string, signal: AbortSignal) {
    this.#options = options;
    this.#image = join(directory, "demo.hib");
    this.#signal = signal;
    this.#say = options.json === true ? note : print;
  }

  async tell(): Promise<number> {
    const a = await this.#boot();
    const save = await this.#hibernate(a);
    const verification = await this.#verify();
    const { b, resume } = await this.#resume();
    const check = await this.#prove(b);
    const status = await b.client.request("status", {});
    const code = await b.stop();
    this.#checkInterrupted();
    const saved = await this.#savedSteps();
    const ok = verification.ok && code === EXIT_DONE && isExact(check, saved);
    this.#report({ ok, save, verification, resume, check, status, saved });
    return ok ? EXIT_DONE : EXIT_MISMATCH;
  }

  /** Whatever happened: the processes are gone, and the terminal is clean. */
  async end(): Promise<void> {
    this.#progress.stop();
    await Promise.all(this.#machines.map((machine) => machine.stop()));
  }

  async #boot(): Promise<ChildMachine> {
    const { ram, cpus } = this.#options;
    this.#chapter(`Process A boots a machine with ${formatBytes(ram)} of RAM, and programs that write to 60 % of it.`);
    const a = this.#start("demo-a", "run", ["--ram", String(ram), "--cpus", String(cpus), ...workloads(ram)]);
    await a.running(this.#signal);
    await this.#wait(WARM_UP_MS);
    this.#say(renderProcesses((await a.client.request("status", {})).processes, this.#view));
    return a;
  }

  async #hibernate(a: ChildMachine): Promise<SaveReport> {
    this.#chapter(
      `The machine is saved while it runs. Only the last step, the atomic copy, stops it; then A (pid ${a.pid}) ends.`,
    );
    const save = await a.client.request(
      "save",
      { path: this.#image, keepRunning: false, compression: "lz4" },
      { signal: this.#signal, onProgress: (progress) => this.#progress.update(saveStep(progress)) },
    );
    this.#progress.stop();
    const code = await this.#interruptibly(a.ended);
    this.#say(renderSaveSummary(save, this.#view));
    if (code !== EXIT_DONE || !isGone(a.pid))
      throw new HibernaculumError("HIB_INTERNAL", `process A (pid ${a.pid}) ended with ${code}`);
    this.#say(`  Process A (pid ${a.pid}) is gone. All that is left of the machine is its image.`);
    return save;
  }

  async #verify(): Promise<Verification> {
    this.#chapter("The image is verified while nothing runs: every checksum, the allocator, the page tables.");
    const image = await openImage(this.#image);
    try {
      const verification = await verifyImage(image, { replay: false, progress: this.#progress, signal: this.#signal });
      this.#progress.stop();
      this.#say(renderVerification(this.#image, verification, this.#view));
      return verification;
    } finally {
      image.close();
    }
  }

  async #resume(): Promise<{ b: ChildMachine; resume: ResumeReport }> {
    this.#checkInterrupted();
    this.#chapter("Process B boots a machine of its own, whose boot processes run and write, and resumes the image over them.");
    const b = this.#start("demo-b", "resume", [this.#image]);
    await b.running(this.#signal);
    const { resume } = await b.client.request("report", {});
    if (resume === null) throw new HibernaculumError("HIB_INTERNAL", "process B does not know that it resumed an image");
    this.#say(renderResumeSummary(resume, this.#view));
    this.#say(`  The machine goes on in process B (pid ${b.pid}).`);
    return { b, resume };
  }

  async #prove(b: ChildMachine): Promise<CheckResult> {
    this.#chapter(
      `It runs on for ${formatMs(this.#options.seconds * 1000)}. Then every process is recomputed from its first step, and compared.`,
    );
    await this.#wait(this.#options.seconds * 1000);
    const check = await b.client.request(
      "check",
      {},
      {
        signal: this.#signal,
        onProgress: ({ done, total }) => this.#progress.update({ label: "recomputing", done, total }),
      },
    );
    this.#progress.stop();
    return check;
  }

  #report(all: {
    ok: boolean;
    save: SaveReport;
    verification: Verification;
    resume: ResumeReport;
    check: CheckResult;
    status: MachineStatus;
    saved: Map<number, number>;
  }): void {
    const { ok, save, verification, resume, check, status, saved } = all;
    const { colors } = this.#view;
    const processes = check.processes.map((found) => ({ ...found, steps_at_save: saved.get(found.pid) ?? null }));
    this.#say(
      table(
        this.#view,
        ["pid", "process", "steps at save", "steps now", "pages", "exact"],
        processes.map((p) => [
          String(p.pid),
          p.name,
          formatCount(p.steps_at_save ?? 0),
          formatCount(p.steps),
          formatCount(p.pages),
          p.differences.length === 0 ? colors.green("yes") : colors.red("NO"),
        ]),
      ),
    );
    for (const { pid, differences } of processes)
      for (const difference of differences) this.#say(`  process ${pid}: ${difference}`);
    for (const problem of check.problems) this.#say(`  ${problem}`);
    for (const { pid, failure } of status.processes) if (failure !== "") this.#say(`  process ${pid} failed: ${failure}`);
    const total = performance.now() - this.#began;
    this.#chapter("The report of the save, as hib-stats shows it.");
    this.#say(renderSaveReport(save, this.#view));
    const pages = processes.reduce((sum, p) => sum + p.pages, 0);
    const verdict = `Every process continued exactly: ${formatCount(pages)} pages compared. The machine was stopped for ${formatMs(save.pause.total_ms)}; all of this took ${formatMs(total)}.`;
    const lines = wrap(ok ? verdict : "Something differs: see above.", this.#view.columns);
    this.#say(lines.map((line) => colors.bold(ok ? colors.green(line) : colors.red(line))).join("\n"));
    if (this.#options.json === true)
      printJson({ schema: 1, ok, total_ms: total, processes, problems: check.problems, save, verification, resume } as {
        schema: number;
      });
  }

  async #savedSteps(): Promise<Map<number, number>> {
    const image = await openImage(this.#image);
    try {
      return new Map(image.catalogue.processes().map(({ pid, steps }) => [pid, steps]));
    } finally {
      image.close();
    }
  }

  #start(name: string, command: string, args: string[]): ChildMachine {
    const { colors } = this.#view;
    const machine = new ChildMachine(name, command, args, (text) => {
      // What it says of itself is told better here; its console is shown.
      for (const line of text.split("\n")) if (line.startsWith(`${name}| `)) this.#say(colors.dim(`  ${line}`));
    });
    this.#machines.push(machine);
    return machine;
  }

  #chapter(text: string): void {
    const lines = wrap(`${++this.#step}. ${text}`, this.#view.columns);
    this.#say(`${this.#step === 1 ? "" : "\n"}${lines.map(this.#view.colors.bold).join("\n")}`);
  }

  async #wait(ms: number): Promise<void> {
    await this.#interruptibly(sleep(ms, undefined, { ref: false }));
  }

  /** Waits for something that does not know of our signal. */
  async #interruptibly<T>(waiting: Promise<T>): Promise<T> {
    const stop = new AbortController();
    const interrupted = once(this.#signal, "abort", { signal: stop.signal }).catch(() => undefined);
    try {
      this.#checkInterrupted();
      const first = await Promise.race([waiting.then((value) => ({ value })), interrupted]);
      this.#checkInterrupted();
      return (first as { value: T }).value;
    } finally {
      stop.abort();
    }
  }

  #checkInterrupted(): void {
    if (this.#signal.aborted)
      throw new HibernaculumError("HIB_CANCELLED", "interrupted; both machines are gone and nothing was left behind");
  }
}

/**
 * Programs that fill about 60 % of the RAM. The rates keep the recomputation at the end short and what the atomic copy
 * has to take within the reserve, and are high enough that thousands of frames are written while the machine is saved.
 */
function workloads(ramBytes: number): string[] {
  const pages = (share: number): number => Math.max(1, Math.floor((ramBytes / FRAME_BYTES) * share));
  return [
    `zipf:pages=${pages(0.26)},rate=60000,seed=1`,
    `zipf:pages=${pages(0.14)},rate=60000,seed=2,alpha=1.2`,
    `random:pages=${pages(0.03)},rate=10000`,
    `sequential:pages=${pages(0.13)},rate=200000`,
    `incrementer:pages=${pages(0.04)},rate=20000`,
    "stack:rate=50000",
    "heap:rate=2000",
    "idle",
  ];
}

/** Every process of the image is there, has gone on, and is right. */
function isExact({ processes, problems }: CheckResult, saved: Map<number, number>): boolean {
  const found = new Map(processes.map((check) => [check.pid, check]));
  return (
    problems.length === 0 &&
    saved.size > 0 &&
    [...saved].every(([pid, steps]) => {
      const check = found.get(pid);
      return check !== undefined && check.steps >= steps && check.differences.length === 0;
    })
  );
}

/** In less the programs would not find room beside each other. */
const RAM_MIN = 16 * 2 ** 20;

function checkRam(bytes: number): void {
  if (bytes < RAM_MIN || bytes > RAM_BYTES_MAX)
    throw new InvalidArgumentError(`Give ${formatBytes(RAM_MIN)} to ${formatBytes(RAM_BYTES_MAX)}.`);
}

function parseSeconds(text: string): number {
  const seconds = /^\d+(\.\d+)?$/.test(text) ? Number(text) : Number.NaN;
  if (!(seconds <= 3600)) throw new InvalidArgumentError("Give a number of seconds from 0 to 3600.");
  return seconds;
}
