/** What every benchmark uses: medians, a figure with its limit, and a machine to measure on. */
import { closeSync, mkdtempSync, openSync, readFileSync, readSync, rmSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { RAM_BASE } from "../src/base/layout.js";
import { Machine } from "../src/machine.js";

/** A figure beside the limit that was measured in the same run. */
export interface Figure {
  name: string;
  value: number;
  unit: string;
  /** What the limit is, and its value in the same unit. */
  limit?: { name: string; value: number };
  /** How near to the limit, 1 is all of it; what the project asks for. */
  ratio?: number;
  target?: string;
}

export function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
}

export function percentile(values: number[], p: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * p))] ?? Number.NaN;
}

/** Milliseconds that `work` takes. */
export async function timed(work: () => unknown): Promise<number> {
  const began = performance.now();
  await work();
  return performance.now() - began;
}

export const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** Boots a machine and starts its workloads, and lets them run a while. */
export async function machineWith(
  ramBytes: number,
  workloads: string[],
  options: { vcpus?: number; pageThreads?: number; warmup_ms?: number } = {},
): Promise<Machine> {
  const { vcpus = 2, warmup_ms = 1500, ...rest } = options;
  const machine = await Machine.boot({ ramBytes, vcpus, ...rest });
  for (const text of workloads) machine.spawn(text);
  await pause(warmup_ms);
  return machine;
}

/** Directory for images, on the file system of the working directory: /tmp may be memory. */
export const scratch: string = mkdtempSync(join(process.env["HIB_BENCH_DIR"] ?? process.cwd(), ".bench-"));
process.on("exit", () => rmSync(scratch, { recursive: true, force: true }));

let images = 0;

/** Runs `use` with a path for an image, and removes what is there afterwards. */
export async function withImage<T>(use: (path: string) => Promise<T>): Promise<T> {
  const path = join(scratch, `image-${images++}.hib`);
  try {
    return await use(path);
  } finally {
    rmSync(path, { recursive: true, force: true });
  }
}

/** Resident memory of this process beyond the guest's RAM, bytes: all but the frames in the mapping of the machine's memory. */
export function hostBytes(): number {
  let resident = 0;
  let machine = { start: 0, resident: 0 };
  for (const mapping of readFileSync("/proc/self/smaps", "utf8").split(/\n(?=[0-9a-f]+-[0-9a-f]+ )/)) {
    const bytes = Number(/^Rss:\s+(\d+)/m.exec(mapping)?.[1] ?? 0) * 1024;
    resident += bytes;
    if (bytes > machine.resident) machine = { start: Number.parseInt(mapping, 16), resident: bytes };
  }
  return resident - machine.resident + residentPages(machine.start, RAM_BASE / PAGE_BYTES) * PAGE_BYTES;
}

const PAGE_BYTES = 4096;

/** Pages from an address that are present, after /proc/self/pagemap: 8 bytes a page, bit 63. */
function residentPages(address: number, pages: number): number {
  const entries = Buffer.alloc(pages * 8);
  const file = openSync("/proc/self/pagemap", "r");
  readSync(file, entries, 0, entries.length, (address / PAGE_BYTES) * 8);
  closeSync(file);
  let present = 0;
  for (let i = 7; i < entries.length; i += 8) present += entries[i]! >>> 7;
  return present;
}
