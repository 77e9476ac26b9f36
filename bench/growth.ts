/** Cost growth: does time per GB stay flat, is the pause the same whatever is written, does host memory stay small? */
import { execFileSync } from "node:child_process";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { save } from "../src/hibernate.js";
import type { SaveReport } from "../src/reports/save-report.js";
import { lazyRow } from "./lazy.js";
import { hostBytes, machineWith, median, percentile, withImage } from "./measure.js";

export interface GrowthRow {
  ram_mib: number;
  saved_mib: number;
  total_s: number;
  s_per_gb: number;
  pause_ms: number;
  residual_frames: number;
  /** Resident memory beyond guest RAM at its peak. */
  host_mib: number;
  image_mib: number;
  speed: number;
}

const MIB = 2 ** 20;

/** A row measured in a process of its own, whose memory is that machine's only. */
export function inOwnProcess<Row>(kind: "growth" | "felt" | "pause" | "lazy", ...numbers: number[]): Row {
  const output = execFileSync(process.execPath, [fileURLToPath(import.meta.url), kind, ...numbers.map(String)], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit"],
  });
  return JSON.parse(output) as Row;
}

/** Saves a machine with mixed contents and running writers, 85 % full. */
async function growthRow(ramBytes: number): Promise<GrowthRow> {
  const pages = Math.floor((ramBytes * 0.85) / 4096 / 3);
  const machine = await machineWith(ramBytes, [
    `zipf:pages=${pages},rate=100000`,
    `sequential:pages=${pages},rate=50000`,
    `incrementer:pages=${pages},rate=2000`,
    "heap:rate=2000",
  ]);
  let peak = 0;
  const watch = setInterval(() => (peak = Math.max(peak, hostBytes())), 100);
  const report = await withImage((path) => save(machine, path));
  clearInterval(watch);
  const used = report.frames.saved * 4096;
  return {
    ram_mib: Math.round(ramBytes / MIB),
    saved_mib: Math.round(used / MIB),
    total_s: report.phases_ms.total / 1000,
    s_per_gb: report.phases_ms.total / 1000 / (used / 1e9),
    pause_ms: report.pause.total_ms,
    residual_frames: report.residual_frames,
    host_mib: Math.round(peak / MIB),
    image_mib: Math.round(report.blob.stored_bytes / MIB),
    speed: report.workload.speed ?? Number.NaN,
  };
}

export interface FeltRow {
  workload: string;
  total_s: number;
  pause_ms: number;
  longest_gap_ms: number;
  speed: number;
  image_mib: number;
}

/** The "zipf writer" of design/figures: 1 GiB of memory-like data, saved while it runs on (snapshot). */
async function feltRow(rate: number, megabytes: number): Promise<FeltRow> {
  const pages = (megabytes * MIB) / 4096;
  const machine = await machineWith(megabytes * 1.5 * MIB, [`zipf:pages=${pages},rate=${rate}`], { vcpus: 1 });
  const report = await withImage((path) => save(machine, path, { keepRunning: true }));
  await machine.powerOff();
  return {
    workload: rate === 0 ? "unthrottled" : `${rate}/s`,
    total_s: report.phases_ms.total / 1000,
    pause_ms: report.pause.total_ms,
    longest_gap_ms: report.workload.longest_gap_ms,
    speed: report.workload.speed ?? Number.NaN,
    image_mib: Math.round(report.blob.stored_bytes / MIB),
  };
}

export interface PauseRow {
  ram_mib: number;
  snapshots: number;
  pause_p50_ms: number;
  pause_p99_ms: number;
  /** Processes that entered the kernel after it waited. */
  kernel_p50_ms: number;
  gap_p50_ms: number;
  gap_p99_ms: number;
  residual_frames: number;
  /** Medians: pre-images that faults kept, and stores that waited for room. */
  preimages: number;
  waits: number;
  fault_p99_ns: number;
  total_s: number;
}

/** Snapshots of one machine, one after another, three quarters of which two writers store to. */
async function pauseRow(ramBytes: number, snapshots: number): Promise<PauseRow> {
  const pages = Math.floor((ramBytes * 0.75) / 4096 / 2);
  const machine = await machineWith(ramBytes, [`zipf:pages=${pages},rate=100000`, `incrementer:pages=${pages},rate=2000`]);
  const reports: SaveReport[] = [];
  for (let i = 0; i < snapshots; i++) reports.push(await withImage((path) => save(machine, path, { keepRunning: true })));
  await machine.powerOff();
  const all = (of: (report: SaveReport) => number) => reports.map(of);
  return {
    ram_mib: Math.round(ramBytes / MIB),
    snapshots,
    pause_p50_ms: median(all(({ pause }) => pause.total_ms)),
    pause_p99_ms: percentile(
      all(({ pause }) => pause.total_ms),
      0.99,
    ),
    kernel_p50_ms: median(all(({ pause }) => pause.kernel_ms)),
    gap_p50_ms: median(all(({ workload }) => workload.longest_gap_ms)),
    gap_p99_ms: percentile(
      all(({ workload }) => workload.longest_gap_ms),
      0.99,
    ),
    residual_frames: median(all(({ residual_frames }) => residual_frames)),
    preimages: median(all(({ tail }) => tail.preimages)),
    waits: median(all(({ tail }) => tail.waits)),
    fault_p99_ns: median(all(({ faults }) => faults.latency.p99_ns ?? 0)),
    total_s: median(all(({ phases_ms }) => phases_ms.total)) / 1000,
  };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [kind, first, second] = process.argv.slice(2);
  const rows = { growth: growthRow, felt: feltRow, pause: pauseRow, lazy: lazyRow };
  const row = await rows[kind as keyof typeof rows](Number(first), Number(second));
  process.stdout.write(JSON.stringify(row));
}
