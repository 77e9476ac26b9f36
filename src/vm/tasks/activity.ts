/** What the machine's workload did lately: steps per 10 ms and the longest gap, as the vCPUs recorded it. */
import { type Control, hostNow } from "../../base/control.js";
import { MACHINE_TIMELINE_BASE, STEP_TIMELINE, TIMELINE_BIN_MS, TIMELINE_BINS, VCPU_LONGEST_GAP } from "../../base/layout.js";

/** The timeline bin of a host time. Bins are kept for TIMELINE_BINS * TIMELINE_BIN_MS, some 41 s. */
export function binOf(control: Control, time: number): number {
  return Math.floor((time - control.floats[MACHINE_TIMELINE_BASE >>> 3]!) / TIMELINE_BIN_MS);
}

/** Sums a timeline area (STEP_TIMELINE, FAULT_TIMELINE) over threads, for host times [from, to). */
export function readTimeline(control: Control, area: number, threads: number, from: number, to: number): number[] {
  const last = binOf(control, Math.min(to, hostNow()));
  const first = Math.max(binOf(control, from), last - TIMELINE_BINS + 1, 0);
  const counts = [];
  for (let bin = first; bin < last; bin++) {
    let sum = 0;
    for (let thread = 0; thread < threads; thread++) {
      sum += control.words[(area >>> 2) + thread * TIMELINE_BINS + (bin % TIMELINE_BINS)]! >>> 0;
    }
    counts.push(sum);
  }
  return counts;
}

/** Steps per 10 ms of all vCPUs between two host times. */
export function stepsPerBin(control: Control, vcpus: number, from: number, to: number): number[] {
  return readTimeline(control, STEP_TIMELINE, vcpus, from, to);
}

/** Longest time that any busy vCPU went without finishing a batch since it was last reset, ms. */
export function longestGap(control: Control, vcpus: number): number {
  let longest = 0;
  for (let vcpu = 0; vcpu < vcpus; vcpu++) longest = Math.max(longest, control.loadVcpuFloat(vcpu, VCPU_LONGEST_GAP));
  return longest;
}

export function resetLongestGap(control: Control, vcpus: number): void {
  for (let vcpu = 0; vcpu < vcpus; vcpu++) control.storeVcpuFloat(vcpu, VCPU_LONGEST_GAP, 0);
}
