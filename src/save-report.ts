/**
 * The fault and atomic-copy report of a save: what `hib-stats` shows and what lies in the image's catalogue. Data with
 * definitions; units are in the names. Times are of the host's clock.
 */
import type { FaultStatistics } from "./cow/fault-statistics.js";

export const REPORT_SCHEMA = 1;

export interface SaveReport {
  schema: typeof REPORT_SCHEMA;
  image: { path: string; id: string; ending: "hibernate" | "keep-running"; /** Consistency point, ISO 8601. */ time: string };
  machine: { ram_frames: number; vcpus: number; page_threads: number };
  frames: {
    /** In the image. */
    saved: number;
    /** In the image, by kind of their block. */
    by_kind: Record<string, number>;
    /** In the plan, so meant to be streamed while the machine ran. */
    planned: number;
    /** Read while the machine ran. */
    streamed: number;
    /** Not read because a mark was there already. */
    skipped: number;
    /** In the image without data. */
    same_filled: number;
  };
  faults: FaultStatistics & { by_process: { pid: number; name: string; user: number; kernel: number; page_table: number; device: number }[] };
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
  /** Parts of the machine's stop; `total_ms` is from the request to the last vCPU going on (hibernate: to the copy's end). */
  pause: { safepoint_ms: number; devices_ms: number; list_ms: number; copy_ms: number; overflow_ms: number; resume_ms: number; total_ms: number };
  /** Arm: until every vCPU had acknowledged the TLB shootdown. */
  arm_ms: number;
  reserve: { estimated_frames: number; reserved_frames: number; used_frames: number; /** Written from their places while stopped. */ overflow_frames: number };
  /** Snapshot: residual frames that were protected again instead of copied, pre-images kept of them, and stores that waited for room. */
  tail: { frames: number; preimages: number; waits: number };
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
  phases_ms: { prepare: number; stream: number; stop: number; residual: number; catalogue: number; total: number };
  writers: { stage_ms: number; compress_ms: number; hash_ms: number; write_wait_ms: number };
  workload: {
    bin_ms: number;
    /** Steps of all processes per bin: in the second before, while armed, and after the stop until publication. */
    before: number[];
    during: number[];
    after: number[];
    /** Steps a second while armed over steps a second before. */
    speed: number | null;
    longest_gap_ms: number;
  };
  /** Test runs: frames that the oracle hashed again. */
  oracle_frames: number | null;
}
