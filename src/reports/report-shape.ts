/** Whether what lies in an image as the report of its save can be one: somebody else may have written anything there. */
import { type AdaptiveReport, REPORT_SCHEMA, type SaveReport } from "./save-report.js";

type Check = (value: unknown) => boolean;

/** Frames, bytes, times and rates: never less than nothing, and no more than can be counted. */
const amount: Check = (value) => typeof value === "number" && value >= 0 && value <= 2 ** 53;
const text: Check = (value) => typeof value === "string";

const orNull =
  (check: Check): Check =>
  (value) =>
    value === null || check(value);

/** What older reports do not have. */
const optional =
  (check: Check): Check =>
  (value) =>
    value === undefined || check(value);

const listOf =
  (check: Check): Check =>
  (value) =>
    Array.isArray(value) && value.every(check);

const recordOf =
  (check: Check): Check =>
  (value) =>
    isObject(value) && Object.values(value).every(check);

type Fields<T> = { readonly [Field in keyof T]-?: Check };

/** An object that has all of these fields; others are for a later reader. */
const fields =
  <T>(checks: Fields<T>): Check =>
  (value) =>
    isObject(value) && Object.entries<Check>(checks).every(([field, check]) => check(value[field]));

const amounts = <T>(...names: readonly (keyof T)[]): Check =>
  fields(Object.fromEntries(names.map((name) => [name, amount])) as Fields<T>);

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

const counts = { user: amount, kernel: amount, page_table: amount, device: amount };

const hasLatency = fields<SaveReport["faults"]["latency"]>({
  sample: amount,
  from_ns: listOf(amount),
  counts: listOf(amount),
  p50_ns: amount,
  p99_ns: amount,
});

const hasShape: Check = fields<SaveReport>({
  schema: (value) => value === REPORT_SCHEMA,
  image: fields<SaveReport["image"]>({
    path: text,
    id: text,
    ending: text,
    approach: optional(text),
    parent: optional(orNull(text)),
    consistency_point: optional(text),
    time: text,
  }),
  machine: amounts<SaveReport["machine"]>("ram_frames", "vcpus", "page_writers"),
  frames: fields<SaveReport["frames"]>({
    saved: amount,
    by_kind: recordOf(amount),
    planned: amount,
    streamed: amount,
    skipped: amount,
    same_filled: amount,
    by_reference: amount,
    of_parent: optional(amount),
  }),
  faults: fields<SaveReport["faults"]>({
    total: amount,
    by_kind: fields<SaveReport["faults"]["by_kind"]>(counts),
    by_process: listOf(fields<SaveReport["faults"]["by_process"][number]>({ pid: amount, name: text, ...counts })),
    timeline: fields<SaveReport["faults"]["timeline"]>({ bin_ms: amount, counts: listOf(amount) }),
    // A bin without a beginning could not be shown.
    latency: (value) => hasLatency(value) && isDense(value as SaveReport["faults"]["latency"]),
  }),
  residual_frames: amount,
  atomic_copy: amounts<SaveReport["atomic_copy"]>("frames", "bytes", "list_ms", "copy_ms", "gb_per_s"),
  adaptive: optional(
    orNull(
      fields<AdaptiveReport>({
        max_pause_ms: amount,
        predicted_pause_ms: amount,
        rounds: listOf(amounts<AdaptiveReport["rounds"][number]>("frames", "predicted_pause_ms")),
        throttle_us: amount,
        stop: text,
      }),
    ),
  ),
  capture: optional(orNull(amounts<NonNullable<SaveReport["capture"]>>("resident_bytes"))),
  pause: amounts<SaveReport["pause"]>("safepoint_ms", "devices_ms", "list_ms", "copy_ms", "resume_ms", "total_ms", "kernel_ms"),
  arm_ms: amount,
  reserve: amounts<SaveReport["reserve"]>("estimated_frames", "reserved_frames", "used_frames", "overflow_frames"),
  tail: amounts<SaveReport["tail"]>("frames", "preimages", "waits"),
  blob: fields<SaveReport["blob"]>({
    compression: text,
    chunks: amount,
    raw_chunks: amount,
    plain_bytes: amount,
    stored_bytes: amount,
    ratio: amount,
    stale_bytes: amount,
  }),
  throughput: amounts<SaveReport["throughput"]>("saved_bytes", "gb_per_s"),
  phases_ms: amounts<SaveReport["phases_ms"]>("prepare", "arm", "stream", "stop", "residual", "catalogue", "publish", "total"),
  writers: amounts<SaveReport["writers"]>("stage_ms", "compress_ms", "hash_ms", "write_wait_ms"),
  workload: fields<SaveReport["workload"]>({
    bin_ms: amount,
    before: listOf(amount),
    during: listOf(amount),
    after: listOf(amount),
    speed: orNull(amount),
    longest_gap_ms: amount,
  }),
  changed_files: listOf(text),
  oracle_frames: orNull(amount),
});

function isDense({ from_ns, counts: bins }: SaveReport["faults"]["latency"]): boolean {
  return from_ns.length === bins.length;
}

export function isSaveReport(value: unknown): value is SaveReport {
  return hasShape(value);
}
