/** Write-protect faults since armed, as the fault handler counted them. */
import type { Control } from "../base/control.js";
import {
  FAULT_COUNT_AREA,
  FAULT_KINDS,
  FAULT_LATENCY,
  FAULT_SLOTS,
  FAULT_TIMELINE,
  LATENCY_BINS,
  LATENCY_SAMPLE,
  MAX_VCPUS,
  TIMELINE_BIN_MS,
  TIMELINE_BINS,
} from "../base/layout.js";
import { readTimeline } from "../vm/tasks/activity.js";

/** Threads that can take a fault: the vCPUs and the coordinator. */
const THREADS = MAX_VCPUS + 1;

export interface FaultCounts {
  user: number;
  kernel: number;
  page_table: number;
  device: number;
}

/** A process by its pid; what the coordinator stores; or processes that have ended, together. */
export type FaultOwner = number | "kernel" | "ended";

export interface FaultStatistics {
  total: number;
  by_kind: FaultCounts;
  /** By the pid of the process on whose vCPU it happened. */
  by_owner: (FaultCounts & { owner: FaultOwner })[];
  timeline: { bin_ms: number; counts: number[] };
  /** One fault in `sample` is timed, from the slow path's entry to its end, clock read included. */
  latency: { sample: number; from_ns: number[]; counts: number[]; p50_ns: number; p99_ns: number };
}

export function resetFaultStatistics(control: Control): void {
  const clear = (area: number, words: number) => control.words.fill(0, area >>> 2, (area >>> 2) + words);
  clear(FAULT_COUNT_AREA, THREADS * FAULT_SLOTS * FAULT_KINDS);
  clear(FAULT_LATENCY, THREADS * LATENCY_BINS);
  clear(FAULT_TIMELINE, THREADS * TIMELINE_BINS);
}

/**
 * Reads the counts of the faults of `vcpus` vCPUs and the coordinator between two host times (the armed stretch).
 *
 * @param pidOf - of the process in a slot; undefined if it is free
 */
export function readFaultStatistics(
  { control, vcpus, pidOf }: { control: Control; vcpus: number; pidOf(slot: number): number | undefined },
  from: number,
  to: number,
): FaultStatistics {
  const zero = (): FaultCounts => ({ user: 0, kernel: 0, page_table: 0, device: 0 });
  const kinds = ["user", "kernel", "page_table", "device"] as const;
  const byOwner = new Map<FaultOwner, FaultCounts>();
  const byKind = zero();
  let total = 0;
  const threads = [...Array(vcpus).keys(), MAX_VCPUS];
  for (const thread of threads) {
    for (let slot = 0; slot < FAULT_SLOTS; slot++) {
      for (const [kind, name] of kinds.entries()) {
        const at = (FAULT_COUNT_AREA >>> 2) + (thread * FAULT_SLOTS + slot) * FAULT_KINDS + kind;
        const count = control.words[at]!;
        if (count === 0) continue;
        const owner = thread === MAX_VCPUS ? "kernel" : (pidOf(slot) ?? "ended");
        if (!byOwner.has(owner)) byOwner.set(owner, zero());
        byOwner.get(owner)![name] += count;
        byKind[name] += count;
        total += count;
      }
    }
  }
  return {
    total,
    by_kind: byKind,
    by_owner: [...byOwner].map(([owner, counts]) => ({ owner, ...counts })),
    timeline: { bin_ms: TIMELINE_BIN_MS, counts: readTimeline(control, FAULT_TIMELINE, vcpus, from, to) },
    latency: readLatency(control, threads),
  };
}

function readLatency(control: Control, threads: number[]): FaultStatistics["latency"] {
  const counts = Array.from({ length: LATENCY_BINS }, () => 0);
  for (const thread of threads) {
    for (let bin = 0; bin < LATENCY_BINS; bin++) {
      counts[bin]! += control.words[(FAULT_LATENCY >>> 2) + thread * LATENCY_BINS + bin]!;
    }
  }
  const from_ns = counts.map((_, bin) => Math.round(2 ** (4 + Math.floor(bin / 4)) * (1 + (bin % 4) / 4)));
  const quantile = (q: number) => {
    const all = counts.reduce((sum, count) => sum + count, 0);
    let seen = 0;
    for (let bin = 0; bin < LATENCY_BINS; bin++) {
      seen += counts[bin]!;
      if (all > 0 && seen >= q * all) return from_ns[bin]!;
    }
    return 0;
  };
  return { sample: LATENCY_SAMPLE, from_ns, counts, p50_ns: quantile(0.5), p99_ns: quantile(0.99) };
}
