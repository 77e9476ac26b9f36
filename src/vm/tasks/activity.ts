/** What the machine's workload did lately, as the vCPUs recorded it: steps per 10 ms, the longest gap, whose faults they were. */
import { type Control, hostNow } from "../../base/control.js";
import {
  FAULT_COUNT_AREA,
  FAULT_KINDS,
  FAULT_SLOTS,
  MACHINE_TIMELINE_BASE,
  MAX_PROCESSES,
  MAX_VCPUS,
  STEP_TIMELINE,
  TIMELINE_BIN_MS,
  TIMELINE_BINS,
  VCPU_LONGEST_GAP,
  VCPU_LONGEST_WAIT,
  VCPU_WAITED,
  VCPU_WAITS,
} from "../../base/layout.js";

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

/** Stores that waited for room for a pre-image since it was last reset. */
export function waitsForRoom(control: Control, vcpus: number): { waits: number; waited_ms: number; longest_wait_ms: number } {
  const all = { waits: 0, waited_ms: 0, longest_wait_ms: 0 };
  for (let vcpu = 0; vcpu < vcpus; vcpu++) {
    all.waits += control.loadVcpu(vcpu, VCPU_WAITS);
    all.waited_ms += control.loadVcpu(vcpu, VCPU_WAITED) / 1000;
    all.longest_wait_ms = Math.max(all.longest_wait_ms, control.loadVcpu(vcpu, VCPU_LONGEST_WAIT) / 1000);
  }
  return all;
}

export function resetWaits(control: Control, vcpus: number): void {
  for (let vcpu = 0; vcpu < vcpus; vcpu++)
    for (const word of [VCPU_WAITS, VCPU_WAITED, VCPU_LONGEST_WAIT]) control.storeVcpu(vcpu, word, 0);
}

export function resetLongestGap(control: Control, vcpus: number): void {
  for (let vcpu = 0; vcpu < vcpus; vcpu++) control.storeVcpuFloat(vcpu, VCPU_LONGEST_GAP, 0);
}

/** A slot is another process's from now on: faults counted for the one before it are those of processes that have ended. */
export function passFaultsOn(control: Control, slot: number): void {
  for (let thread = 0; thread < MAX_VCPUS; thread++) {
    const first = (FAULT_COUNT_AREA >>> 2) + thread * FAULT_SLOTS * FAULT_KINDS;
    for (let kind = 0; kind < FAULT_KINDS; kind++) {
      const count = first + slot * FAULT_KINDS + kind;
      control.words[first + MAX_PROCESSES * FAULT_KINDS + kind]! += control.words[count]!;
      control.words[count] = 0;
    }
  }
}
