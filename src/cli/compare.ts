/**
 * `hib compare`: every approach to a save, in turn, on a machine with the same seeded workload; one table.
 *
 * What must hold: each approach has a machine of its own, and its row counts only once its image was verified: all checksums, all
 * tables, and every process recomputed from its first step.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import { type Command, InvalidArgumentError } from "commander";
import { hostNow } from "../base/control.js";
import { attemptTo, HibernaculumError } from "../base/errors.js";
import { FRAME_BYTES, MAX_VCPUS, POOL_BYTES } from "../base/layout.js";
import { RAM_BYTES_MAX } from "../base/limits.js";
import { save } from "../hibernate.js";
import { openImage } from "../image/directory.js";
import { Machine } from "../machine.js";
import { APPROACH_NAMES, type ApproachName, type ConsistencyPoint } from "../reports/approaches.js";
import type { SaveProgress } from "../reports/save-progress.js";
import type { SaveReport } from "../reports/save-report.js";
import { formatBytes, formatCount, formatMs, formatPercent } from "../stats/format.js";
import { field, table, type View } from "../stats/layout.js";
import { stepsPerBin } from "../vm/tasks/activity.js";
import { WRITER_BYTES } from "../writer/page-writer.js";
import { checkInterrupted, createCommand, describeError, EXIT_FAILED, interruptible, ramOption, wholeNumber } from "./command.js";
import { note, print, printJson, stdoutView } from "./output.js";
import { createProgress, type ProgressDisplay } from "./progress.js";
import { saveStep } from "./save.js";
import { verifyImage } from "./verify.js";

interface CompareOptions {
  ram: number;
  cpus: number;
  rate: number;
  seed: number;
  fill: number;
  approaches: ApproachName[];
  dir: string;
  json?: boolean;
}

/** What an approach cost, of a snapshot. Sizes in bytes; `largest_image` is what a machine of this RAM may have in use at most. */
interface Row {
  approach: ApproachName;
  consistency_point: ConsistencyPoint;
  pause_ms: number;
  longest_gap_ms: number;
  /** Steps a second from the save's begin to its end over those of the second before. */
  speed: number;
  total_ms: number;
  image_bytes: number;
  copies_bytes: number;
  largest_image_bytes: number;
  report: SaveReport;
}

/** An approach that did not save this machine, and why. */
interface Refusal {
  approach: ApproachName;
  error: string;
}

/** How long a machine works before it is saved: long enough to see the workload's speed. */
const WARM_UP_MS = 1500;
const BEFORE_MS = 1000;
const RAM_MIN = 16 * 2 ** 20;

export function addCompare(program: Command): void {
  createCommand(program, "compare", "save a machine by each approach in turn, and show what each costs")
    .addOption(ramOption("memory; at least 16M", "512M", checkRam))
    .option("--cpus <n>", `vCPUs, 1 to ${MAX_VCPUS}`, wholeNumber(1, MAX_VCPUS), 2)
    .option("--rate <n>", "stores a second of the workload", wholeNumber(1, 10 ** 7), 200_000)
    .option("--seed <n>", "of the workload", wholeNumber(0, 2 ** 31 - 1), 1)
    .option("--fill <percent>", "how much of the memory the workload has", wholeNumber(1, 80), 40)
    .option("--approaches <names>", "which, with commas between", parseApproaches, [...APPROACH_NAMES])
    .option("--dir <dir>", "where the images are made; they are removed", tmpdir())
    .option("--json", "for programs, with the report of each save")
    .action(compare);
}

async function compare(options: CompareOptions): Promise<void> {
  const progress = createProgress();
  const directory = await attemptTo(`making a directory in ${options.dir}`, () =>
    mkdtemp(join(resolve(options.dir), "hib-compare-")),
  );
  try {
    const results = await interruptible((signal) => compareAll(options, directory, progress, signal));
    progress.stop();
    const { ram, cpus, rate, seed, fill } = options;
    const rows = results.filter((result) => "report" in result);
    if (options.json === true) printJson({ schema: 1, ram_bytes: ram, cpus, rate, seed, fill, results } as { schema: number });
    else if (rows.length > 0) print(renderTable(rows, options, stdoutView()));
    for (const result of results) if ("error" in result) note(`hib: ${result.error}`);
    if (rows.length < results.length) process.exitCode = EXIT_FAILED;
  } finally {
    progress.stop();
    await rm(directory, { recursive: true, force: true });
  }
}

async function compareAll(
  options: CompareOptions,
  directory: string,
  progress: ProgressDisplay,
  signal: AbortSignal,
): Promise<(Row | Refusal)[]> {
  // The first save of a process is slower: code runs for the first time.
  await measure("write-fault", { ...options, ram: RAM_MIN }, join(directory, "rehearsal"), progress, signal);
  const results: (Row | Refusal)[] = [];
  for (const approach of options.approaches) {
    try {
      results.push(await measure(approach, options, join(directory, approach), progress, signal));
    } catch (error) {
      // One that needs more memory than there is says something of the approach. Whatever else is wrong says nothing.
      if (!(error instanceof HibernaculumError && error.code === "HIB_NO_MEMORY")) throw error;
      results.push({ approach, error: describeError(error) });
    }
  }
  return results;
}

/** Boots a machine, saves it, and has its image verified. */
async function measure(
  approach: ApproachName,
  options: CompareOptions,
  path: string,
  progress: ProgressDisplay,
  signal: AbortSignal,
): Promise<Row> {
  progress.update({ label: `${approach}: working`, done: 0, total: 1 });
  const machine = await Machine.boot({ ramBytes: options.ram, vcpus: options.cpus });
  try {
    for (const text of workloads(options)) machine.spawn(text);
    await sleep(WARM_UP_MS, undefined, { signal }).catch(() => checkInterrupted(signal));
    const { control, vcpus } = machine;
    const rate = (from: number, to: number) => mean(stepsPerBin(control, vcpus, from, to));
    const began = hostNow();
    const before = rate(began - BEFORE_MS, began);
    const onProgress = (step: SaveProgress): void =>
      progress.update({ ...saveStep(step), label: `${approach}: ${saveStep(step).label}` });
    const report = await save(machine, path, { approach, keepRunning: true, signal, onProgress });
    const speed = rate(began, hostNow()) / before;
    await machine.powerOff();
    await verifyExactly(approach, path, progress, signal);
    return rowOf(report, speed);
  } finally {
    await machine.powerOff();
    await rm(path, { recursive: true, force: true });
  }
}

/** @throws HIB_INCONSISTENT */
async function verifyExactly(approach: string, path: string, progress: ProgressDisplay, signal: AbortSignal): Promise<void> {
  const image = await openImage(path);
  try {
    const { ok, consistency, processes } = await verifyImage(image, { replay: true, progress, signal });
    if (ok) return;
    const found = [...(consistency?.problems ?? []), ...(processes ?? []).flatMap(({ differences }) => differences)];
    throw new HibernaculumError("HIB_INCONSISTENT", `the image that ${approach} made is not exact: ${found[0]}`);
  } finally {
    image.close();
  }
}

function rowOf(report: SaveReport, speed: number): Row {
  const { capture, image, machine, pause, phases_ms, blob, reserve, workload } = report;
  return {
    approach: image.approach,
    consistency_point: image.consistency_point,
    pause_ms: pause.total_ms,
    longest_gap_ms: workload.longest_gap_ms,
    speed,
    total_ms: phases_ms.total,
    image_bytes: blob.stored_bytes,
    copies_bytes: reserve.used_frames * FRAME_BYTES + (capture?.resident_bytes ?? 0),
    largest_image_bytes: largestImage(image.approach, machine),
    report,
  };
}

/** Only what copies all that it saves needs room for it: in RAM, and in the part of the pool that is not the page writers'. */
function largestImage(approach: ApproachName, { ram_frames, page_writers }: SaveReport["machine"]): number {
  const ram = ram_frames * FRAME_BYTES;
  return approach === "swsusp" ? (ram + POOL_BYTES - page_writers * WRITER_BYTES) / 2 : ram;
}

function renderTable(rows: readonly Row[], { ram, cpus, rate, seed, fill }: CompareOptions, view: View): string {
  const cells = rows.map((row) => [
    row.approach,
    row.consistency_point,
    formatMs(row.pause_ms),
    formatMs(row.longest_gap_ms),
    formatPercent(row.speed, 1),
    formatMs(row.total_ms),
    formatBytes(row.image_bytes),
    formatBytes(row.copies_bytes),
    formatPercent(row.largest_image_bytes, ram),
  ]);
  return [
    view.colors.bold(`Snapshots of ${formatBytes(ram)}, ${fill} % filled; each is exact`),
    field(view, "workload", `vCPUs: ${cpus}, ${formatCount(rate)} stores a second, seed ${seed}`),
    "",
    table(view, ["approach", "point", "pause", "gap", "speed", "total", "image", "copies", "fits"], cells),
    "",
    field(view, "point", "whether the image is the machine at the save's start or its end"),
    field(view, "pause, gap", "how long all of the machine stood still; the longest that a busy vCPU did"),
    field(view, "speed", "of the workload from the save's start to its end, of what it was before"),
    field(view, "copies", "most memory in use for copies and pre-images; of capture-kernel, its process"),
    field(view, "fits", "how much of this RAM a machine may have in use to be saved"),
  ].join("\n");
}

/** Programs that share the memory and the rate. */
function workloads({ ram, rate, seed, fill }: CompareOptions): string[] {
  const pages = (share: number): number => Math.max(1, Math.floor((ram / FRAME_BYTES) * (fill / 100) * share));
  const stores = (share: number): number => Math.max(1, Math.floor(rate * share));
  return [
    `zipf:pages=${pages(0.5)},rate=${stores(0.6)},seed=${seed}`,
    `random:pages=${pages(0.1)},rate=${stores(0.1)},seed=${seed + 1}`,
    `sequential:pages=${pages(0.3)},rate=${stores(0.2)},seed=${seed + 2}`,
    `incrementer:pages=${pages(0.1)},rate=${stores(0.1)},seed=${seed + 3}`,
  ];
}

function parseApproaches(text: string): ApproachName[] {
  const names = [...new Set(text.split(","))];
  const wrong = names.find((name) => !(APPROACH_NAMES as readonly string[]).includes(name));
  if (wrong !== undefined) throw new InvalidArgumentError(`There is no "${wrong}"; there are ${APPROACH_NAMES.join(", ")}.`);
  return names as ApproachName[];
}

function checkRam(bytes: number): void {
  if (bytes < RAM_MIN || bytes > RAM_BYTES_MAX)
    throw new InvalidArgumentError(`Give ${formatBytes(RAM_MIN)} to ${formatBytes(RAM_BYTES_MAX)}.`);
}

function mean(values: readonly number[]): number {
  return values.length === 0 ? 0 : values.reduce((sum, value) => sum + value, 0) / values.length;
}
