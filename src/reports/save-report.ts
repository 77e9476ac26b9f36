/**
 * The fault and atomic-copy report of a save: what `hib-stats` shows and what lies in the image's catalogue. Data with
 * definitions; units are in the names. Times are of the host's clock.
 */
import { resolve } from "node:path";
import { type Control, hostNow } from "../base/control.js";
import { FRAME_BYTES, TIMELINE_BIN_MS } from "../base/layout.js";
import type { FaultStatistics } from "../cow/fault-statistics.js";
import { type Chunk, CODEC_RAW } from "../image/format.js";
import { longestGap, stepsPerBin, waitsForRoom } from "../vm/tasks/activity.js";
import type { BlockCount } from "../vm/views/describe.js";
import { isSaved, KIND_NAMES, type KindName } from "../vm/memory/kernel-layout.js";
import type { Process } from "../vm/tasks/process.js";
import type { WriteTotals } from "../writer/page-writer.js";
import { type ApproachName, type ConsistencyPoint, CONSISTENCY_POINTS } from "./approaches.js";

export const REPORT_SCHEMA = 1;

export interface SaveReport {
  schema: typeof REPORT_SCHEMA;
  image: {
    path: string;
    id: string;
    ending: "hibernate" | "keep-running";
    approach: ApproachName;
    /** The image that this one has only the changes since, if there is one. */
    parent: string | null;
    /** Whether the image is the machine as of the save's start or its end; and when that was, ISO 8601. */
    consistency_point: ConsistencyPoint;
    time: string;
  };
  machine: { ram_frames: number; vcpus: number; page_writers: number };
  frames: {
    /** In the image. */
    saved: number;
    /** In the image, by kind of their block. */
    by_kind: Record<string, number>;
    /** In the plan, so meant to be streamed while the machine ran. */
    planned: number;
    /** Read while the machine ran; in each round, if there are several. */
    streamed: number;
    /** Not read because a mark was there already. */
    skipped: number;
    /** In the image without data. */
    same_filled: number;
    /** In files of the host, and not in the image. */
    by_reference: number;
    /** In the image's parent, or an ancestor of that. */
    of_parent: number;
  };
  faults: Omit<FaultStatistics, "by_owner"> & {
    /** pid 0: what the coordinator stores, "kernel", and all processes that have ended, ENDED_PROCESSES. */
    by_process: { pid: number; name: string; user: number; kernel: number; page_table: number; device: number }[];
  };
  /** Residual set at the stop: marked, or allocated since the plan. */
  residual_frames: number;
  atomic_copy: {
    /** Frames of the residual set that were copied while all was stopped. */
    frames: number;
    bytes: number;
    /** Making the list, and copying. */
    list_ms: number;
    copy_ms: number;
    gb_per_s: number;
  };
  /** What `adaptive` did to keep the pause short; null for other approaches. The pause that came of it is `pause.total_ms`. */
  adaptive: AdaptiveReport | null;
  /** Of `capture-kernel`: the host memory of its process; null for other approaches. */
  capture: { resident_bytes: number } | null;
  /** Parts of the machine's stop; `total_ms` is from the request to the last vCPU going on (hibernate: to the copy's end). */
  pause: {
    safepoint_ms: number;
    devices_ms: number;
    list_ms: number;
    copy_ms: number;
    resume_ms: number;
    total_ms: number;
    /** Snapshot: so long after the pause processes that entered the kernel waited. */
    kernel_ms: number;
  };
  /** Arm: until every vCPU had acknowledged the TLB shootdown. */
  arm_ms: number;
  reserve: {
    estimated_frames: number;
    reserved_frames: number;
    used_frames: number /** Not copied, and written from where they were while everything stood still. */;
    overflow_frames: number;
  };
  /**
   * Snapshot: residual frames that were protected again instead of copied, pre-images kept of them, and stores that waited for room: all
   * of their waits together, and the longest.
   */
  tail: { frames: number; preimages: number; waits: number; waited_ms: number; longest_wait_ms: number };
  blob: {
    compression: "lz4" | "none";
    chunks: number;
    raw_chunks: number;
    /** Frames staged for chunks, bytes before and after. */
    plain_bytes: number;
    stored_bytes: number;
    ratio: number;
    /** Decoded bytes in the blob that a later copy superseded, or that were freed before the stop. */
    stale_bytes: number;
  };
  /** Of the machine's memory in the image, per second of the whole save. */
  throughput: { saved_bytes: number; gb_per_s: number };
  /** In the report that lies in the image, `publish` (syncs, header, rename) is still 0 and not part of the total. */
  phases_ms: {
    prepare: number /** With the plan. */;
    arm: number;
    stream: number;
    stop: number;
    residual: number;
    catalogue: number;
    publish: number;
    total: number;
  };
  writers: { stage_ms: number; compress_ms: number; hash_ms: number; write_wait_ms: number };
  workload: {
    bin_ms: number;
    /**
     * Steps of all processes per bin: in the second before; until all was streamed, or where nothing is, written; and after the stop
     * until publication.
     */
    before: number[];
    during: number[];
    after: number[];
    /** Steps a second while armed over steps a second before. */
    speed: number | null;
    longest_gap_ms: number;
  };
  /** Files of the host that somebody else had changed under the machine: a resume will ask whether to go on with them. */
  changed_files: string[];
  /** Test runs: frames that the oracle hashed again. */
  oracle_frames: number | null;
}

export interface AdaptiveReport {
  /** The longest pause that was wanted, and the one that was predicted when the machine was stopped. */
  max_pause_ms: number;
  predicted_pause_ms: number;
  /** What was left to copy after the stream, and after each round; and how long a pause that would have been. */
  rounds: { frames: number; predicted_pause_ms: number }[];
  /** How long processes slept for each of their write-protect faults in the last round, us; 0 if they were not made slower. */
  throttle_us: number;
  /** Whether what was left was copied at the stop, or protected and saved afterwards (a hibernation: from where it was). */
  stop: "copy" | "tail";
}

/**
 * What a save notes the time of, in this order, but for `noted`, which comes before `listed` in a save that copies. `stopping` is when
 * the stop was asked for.
 */
export const SAVE_STEPS = [
  "began",
  "prepared",
  "armed",
  "planned",
  "streamed",
  "stopping",
  "atSafepoint",
  "quiesced",
  "listed",
  "copied",
  "stopped",
  "noted",
  "residual",
] as const;
export type SaveStep = (typeof SAVE_STEPS)[number];

/** What a save knows when all that it saves is in the blob. */
export interface SaveFacts {
  /** Frames of RAM. */
  frames: number;
  vcpus: number;
  path: string;
  id: string;
  /** Consistency point, ms since 1970. */
  time: number;
  keepRunning: boolean;
  approach: ApproachName;
  /** Path of the image that this one has only the changes since. */
  parent: string | null;
  compression: "lz4" | "none";
  at: Readonly<Record<SaveStep, number>>;
  chunks: readonly Chunk[];
  /** Of all tasks of page writers; those of the stream come first, if there is one: one a page writer and round. */
  totals: readonly WriteTotals[];
  faults: FaultStatistics;
  counts: SaveCounts;
}

export interface SaveCounts {
  /** Page writers. */
  writers: number;
  /** Frames: of the plan, of the reserve as it was estimated and as it was at the stop, of the residual set, and copied of it. */
  planned: number;
  estimated: number;
  reserved: number;
  residual: number;
  copied: number;
  tail: { start: number; end: number; preimages: number; refused: number };
  /** Of a stream of several rounds: how many follow the first. */
  rounds: number;
  adaptive: AdaptiveReport | null;
  capture: { resident_bytes: number } | null;
  oracleFrames: number | null;
  changedFiles: string[];
  /** In the image: all frames, and those without data. */
  saved: { frames: number; sameFilled: number; byReference: number; ofParent: number };
  /** The blob's chunks: their bytes, and decoded bytes in them that no extent needs. */
  stored: { bytes: number; staleBytes: number };
}

export function emptyCounts(writers: number): SaveCounts {
  return {
    writers,
    planned: 0,
    estimated: 0,
    reserved: 0,
    residual: 0,
    copied: 0,
    tail: { start: 0, end: 0, preimages: 0, refused: 0 },
    rounds: 0,
    adaptive: null,
    capture: null,
    oracleFrames: null,
    changedFiles: [],
    saved: { frames: 0, sameFilled: 0, byReference: 0, ofParent: 0 },
    stored: { bytes: 0, staleBytes: 0 },
  };
}

/** How far back "before" goes, ms. */
const BEFORE_MS = 1000;

/** Makes the report of a save, with the image's blocks and processes. */
export function saveReport(
  facts: SaveFacts,
  control: Control,
  blocks: readonly BlockCount[],
  processes: readonly Process[],
): SaveReport {
  const { vcpus, at, counts } = facts;
  const { copied, residual, saved, stored, tail } = counts;
  const pause = {
    safepoint_ms: at.atSafepoint - at.stopping,
    devices_ms: at.quiesced - at.atSafepoint,
    list_ms: at.listed - at.quiesced,
    copy_ms: at.copied - at.listed,
    resume_ms: at.stopped - at.copied,
    total_ms: at.stopped - at.stopping,
    kernel_ms: Math.max(0, at.noted - at.stopped),
  };
  const now = hostNow();
  const sum = (of: readonly WriteTotals[], pick: (result: WriteTotals) => number) =>
    of.reduce((all, result) => all + pick(result), 0);
  const streaming = facts.totals.slice(0, counts.planned === 0 ? 0 : counts.writers * (1 + counts.rounds));
  const plainBytes = facts.chunks.reduce((all, chunk) => all + chunk.frames, 0) * FRAME_BYTES;
  const savedBytes = saved.frames * FRAME_BYTES;
  const copiedBytes = copied * FRAME_BYTES;
  const left = residual - copied;
  const stays = !facts.keepRunning || counts.capture !== null; // until all is written
  const before = stepsPerBin(control, vcpus, at.began - BEFORE_MS, at.began);
  const during = stepsPerBin(control, vcpus, at.armed, counts.planned > 0 ? at.streamed : at.residual);
  return {
    schema: REPORT_SCHEMA,
    image: {
      path: resolve(facts.path),
      id: facts.id,
      ending: facts.keepRunning ? "keep-running" : "hibernate",
      approach: facts.approach,
      parent: facts.parent,
      consistency_point: CONSISTENCY_POINTS[facts.approach],
      time: new Date(facts.time).toISOString(),
    },
    machine: { ram_frames: facts.frames, vcpus, page_writers: counts.writers },
    frames: {
      saved: saved.frames,
      by_kind: framesByKind(blocks),
      planned: counts.planned,
      streamed: sum(streaming, (result) => result.written),
      skipped: sum(streaming, (result) => result.skipped),
      same_filled: saved.sameFilled,
      by_reference: saved.byReference,
      of_parent: saved.ofParent,
    },
    faults: faultsByProcess(facts.faults, processes),
    residual_frames: residual,
    atomic_copy: {
      frames: copied,
      bytes: copiedBytes,
      list_ms: pause.list_ms,
      copy_ms: pause.copy_ms,
      gb_per_s: pause.copy_ms === 0 ? 0 : copiedBytes / pause.copy_ms / 1e6,
    },
    adaptive: counts.adaptive,
    capture: counts.capture,
    pause,
    arm_ms: at.armed - at.prepared,
    reserve: {
      estimated_frames: counts.estimated,
      reserved_frames: counts.reserved,
      used_frames: Math.min(counts.reserved, copied + tail.preimages), // places that are used again are claimed last
      overflow_frames: stays ? left : 0,
    },
    tail: { frames: stays ? 0 : left, preimages: tail.preimages, ...waitsForRoom(control, vcpus) },
    blob: {
      compression: facts.compression,
      chunks: facts.chunks.length,
      raw_chunks: facts.chunks.filter((chunk) => chunk.codec === CODEC_RAW).length,
      plain_bytes: plainBytes,
      stored_bytes: stored.bytes,
      ratio: plainBytes === 0 ? 1 : stored.bytes / plainBytes,
      stale_bytes: stored.staleBytes,
    },
    throughput: { saved_bytes: savedBytes, gb_per_s: savedBytes / (now - at.began) / 1e6 },
    phases_ms: {
      prepare: at.prepared - at.began,
      arm: at.planned - at.prepared,
      stream: at.streamed - at.planned,
      stop: at.stopped - at.streamed,
      residual: Math.max(0, at.residual - at.stopped), // what is written before the machine goes on is part of the stop
      catalogue: now - Math.max(at.residual, at.stopped),
      publish: 0,
      total: now - at.began,
    },
    writers: {
      stage_ms: sum(facts.totals, (result) => result.stage_ms),
      compress_ms: sum(facts.totals, (result) => result.compress_ms),
      hash_ms: sum(facts.totals, (result) => result.hash_ms),
      write_wait_ms: sum(facts.totals, (result) => result.write_wait_ms),
    },
    workload: {
      bin_ms: TIMELINE_BIN_MS,
      before,
      during,
      after: facts.keepRunning ? stepsPerBin(control, vcpus, at.stopped, now) : [],
      speed: mean(before) === 0 ? null : mean(during) / mean(before),
      longest_gap_ms: longestGap(control, vcpus),
    },
    changed_files: counts.changedFiles,
    oracle_frames: counts.oracleFrames,
  };
}

/** The report of a save that began then and is published now. */
export function publishedReport(report: SaveReport, began: number): SaveReport {
  const { phases_ms, throughput } = report;
  const total = hostNow() - began;
  return {
    ...report,
    throughput: { ...throughput, gb_per_s: throughput.saved_bytes / total / 1e6 },
    phases_ms: { ...phases_ms, publish: total - phases_ms.total, total },
  };
}

function framesByKind(blocks: readonly BlockCount[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const { kind, frames } of blocks) {
    if (isSaved(KIND_NAMES.indexOf(kind as KindName))) counts[kind] = (counts[kind] ?? 0) + frames;
  }
  return counts;
}

/** In the table of faults, the one row of all processes that ended while tracking was armed. */
const ENDED_PROCESSES = "ended processes";

/** @param processes - of the image; one that began after the consistency point has no name here */
export function faultsByProcess(
  { by_owner, ...faults }: FaultStatistics,
  processes: readonly Pick<Process, "pid" | "text">[],
): SaveReport["faults"] {
  const names = new Map(processes.map(({ pid, text }) => [pid, text.split(":")[0]!]));
  const by_process = by_owner.map(({ owner, ...counts }) => {
    if (typeof owner === "number") return { pid: owner, name: names.get(owner) ?? "", ...counts };
    return { pid: 0, name: owner === "ended" ? ENDED_PROCESSES : owner, ...counts };
  });
  return { ...faults, by_process };
}

function mean(values: number[]): number {
  return values.length === 0 ? 0 : values.reduce((all, value) => all + value, 0) / values.length;
}
