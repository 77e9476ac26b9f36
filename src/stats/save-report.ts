/** The fault and atomic-copy report of a save, as text. Everything in it is defined in src/save-report.ts. */
import { FRAME_BYTES } from "../base/layout.js";
import { DEFAULT_APPROACH } from "../reports/approaches.js";
import type { SaveReport } from "../reports/save-report.js";
import { bar, sparkline, sparklineMax } from "./charts.js";
import {
  formatBytes,
  formatCount,
  formatFrames,
  formatGbPerS,
  formatMs,
  formatNs,
  formatPercent,
  formatShort,
} from "./format.js";
import { chartColumns, field, section, table, type View } from "./layout.js";

/** All of it: a screen or two. */
export function renderSaveReport(report: SaveReport, view: View): string {
  const parts = [head, frames, faults, atomicCopy, pause, reserve, blob, times, workload];
  return parts.map((part) => part(report, view)).join("\n");
}

/** What `hib save` prints: what it cost, and what there is now. */
export function renderSaveSummary(report: SaveReport, view: View): string {
  const { pause, frames, faults, blob, phases_ms, throughput, atomic_copy } = report;
  const ending = report.image.ending === "hibernate" ? "the machine is powered off" : "a snapshot";
  return [
    `${view.colors.bold("Saved")} ${report.image.path} (${ending})`,
    field(view, "pause", `${formatMs(pause.total_ms)}: ${pauseParts(report)}`),
    field(
      view,
      "frames",
      `${formatCount(frames.saved)} saved, ${formatCount(frames.same_filled)} of them same-filled; ${formatCount(atomic_copy.frames)} copied atomically`,
    ),
    field(view, "write faults", formatCount(faults.total)),
    field(view, "size", `${formatBytes(blob.stored_bytes)} for ${formatBytes(throughput.saved_bytes)} of memory`),
    field(view, "time", `${formatMs(phases_ms.total)} (${formatGbPerS(throughput.gb_per_s)})`),
    ...changedFiles(report, view),
  ].join("\n");
}

function changedFiles({ changed_files }: SaveReport, view: View): string[] {
  if (changed_files.length === 0) return [];
  return [field(view, "changed files", `${changed_files.join(", ")}: by another program; a resume needs --accept-changed-files`)];
}

function head(report: SaveReport, view: View): string {
  const { image, machine } = report;
  return section(view, "Save", [
    field(view, "image", image.path),
    field(view, "id", image.id),
    field(view, "consistency point", image.time),
    field(view, "ending", image.ending),
    field(view, "approach", approachOf(report)),
    ...changedFiles(report, view),
    field(
      view,
      "machine",
      `${formatBytes(machine.ram_frames * FRAME_BYTES)} of RAM, vCPUs: ${machine.vcpus}, page writers: ${machine.page_writers}`,
    ),
  ]);
}

/** Images that were saved before there were others are of the default one. */
function approachOf({ image: { approach = DEFAULT_APPROACH, consistency_point = "end" } }: SaveReport): string {
  return `${approach}: memory as of the ${consistency_point} of the save`;
}

function frames({ frames: f, atomic_copy }: SaveReport, view: View): string {
  const kinds = Object.entries(f.by_kind).sort(([, a], [, b]) => b - a);
  return section(view, "Frames", [
    field(view, "saved", `${formatCount(f.saved)} (${formatBytes(f.saved * FRAME_BYTES)})`),
    ...kinds.map(([kind, count]) => field(view, `  ${kind}`, `${formatCount(count)} (${formatPercent(count, f.saved)})`)),
    field(view, "planned", `${formatCount(f.planned)} to be streamed while the machine ran`),
    field(view, "streamed", formatCount(f.streamed)),
    field(view, "skipped", `${formatCount(f.skipped)} that were marked before they were read`),
    field(view, "same-filled", `${formatCount(f.same_filled)} (${formatPercent(f.same_filled, f.saved)}), stored without data`),
    field(view, "by reference", `${formatCount(f.by_reference)} clean pages of files of the host`),
    field(view, "copied atomically", formatCount(atomic_copy.frames)),
  ]);
}

function faults({ faults: f }: SaveReport, view: View): string {
  const columns = chartColumns(view);
  const { counts, bin_ms } = f.timeline;
  const perColumn = sparklineMax(counts, columns);
  const lines = [
    field(view, "total", formatCount(f.total)),
    field(
      view,
      "by kind",
      `user ${formatCount(f.by_kind.user)}, kernel ${formatCount(f.by_kind.kernel)}, page table ${formatCount(f.by_kind.page_table)}, device ${formatCount(f.by_kind.device)}`,
    ),
  ];
  if (f.by_process.length > 0) {
    const rows = [...f.by_process]
      .sort((a, b) => sumOf(b) - sumOf(a))
      .map((p) => [
        p.pid === 0 ? "-" : String(p.pid),
        p.name === "" ? "-" : p.name,
        ...[p.user, p.kernel, p.page_table, p.device, sumOf(p)].map(formatCount),
      ]);
    lines.push("", table(view, ["pid", "process", "user", "kernel", "page table", "device", "all"], rows), "");
  }
  if (counts.length > 0) {
    lines.push(
      field(view, "over time", sparkline(counts, { columns })),
      field(
        view,
        "",
        `${formatMs(counts.length * bin_ms)} armed; highest column ${formatShort(perColumn)} faults per ${bin_ms} ms`,
      ),
    );
  }
  return section(view, "Write faults", [...lines, ...latency(f.latency, view)]);
}

/** Latency in powers of two: the recorded bins are four to each. */
function latency({ sample, from_ns, counts, p50_ns, p99_ns }: SaveReport["faults"]["latency"], view: View): string[] {
  const all = counts.reduce((sum, count) => sum + count, 0);
  if (all === 0) return [];
  const octaves = Array.from({ length: Math.ceil(counts.length / 4) }, (_, octave) => ({
    from: from_ns[octave * 4]!,
    count: counts.slice(octave * 4, octave * 4 + 4).reduce((sum, count) => sum + count, 0),
  }));
  const first = octaves.findIndex(({ count }) => count > 0);
  const last = octaves.findLastIndex(({ count }) => count > 0);
  const most = Math.max(...octaves.map(({ count }) => count));
  const columns = chartColumns(view) - 10;
  return [
    field(view, "latency", `p50 ${formatNs(p50_ns)}, p99 ${formatNs(p99_ns)}; one fault in ${sample} is timed`),
    ...octaves.slice(first, last + 1).map(({ from, count }) => {
      const label = `  from ${formatNs(from)}`;
      return field(view, label, count === 0 ? "" : `${bar(count / most, columns)} ${formatShort(count)}`);
    }),
  ];
}

function atomicCopy({ atomic_copy: copy, residual_frames: residual }: SaveReport, view: View): string {
  return section(view, "Atomic copy", [
    field(view, "residual set", formatFrames(residual)),
    field(view, "copied", `${formatCount(copy.frames)} (${formatBytes(copy.bytes)})`),
    field(view, "time", `${formatMs(copy.copy_ms)}, and ${formatMs(copy.list_ms)} for the list`),
    field(view, "rate", copy.gb_per_s === 0 ? "-" : formatGbPerS(copy.gb_per_s)),
  ]);
}

function pause(report: SaveReport, view: View): string {
  const { pause: p } = report;
  const columns = Math.min(30, chartColumns(view) - 12);
  return section(view, "Pause", [
    field(view, "total", formatMs(p.total_ms)),
    ...partsOfPause(report).map(([name, ms]) =>
      field(view, `  ${name}`, `${formatMs(ms).padEnd(8)} ${bar(p.total_ms === 0 ? 0 : ms / p.total_ms, columns)}`),
    ),
    ...(p.kernel_ms > 0
      ? [field(view, "after it", `for ${formatMs(p.kernel_ms)} processes that entered the kernel waited`)]
      : []),
    ...adaptiveFields(report, view),
    field(view, "arming", `${formatMs(report.arm_ms)} until every vCPU had acknowledged (the machine ran)`),
  ]);
}

/** What `adaptive` meant the pause to be; images of before it have no such report. */
function adaptiveFields({ adaptive }: SaveReport, view: View): string[] {
  if (!adaptive) return [];
  const { max_pause_ms, predicted_pause_ms, rounds, stop, throttle_us } = adaptive;
  const left = rounds.map(({ frames }) => formatCount(frames)).join(", ");
  return [
    field(view, "predicted", `${formatMs(predicted_pause_ms)} with a ${stop}; wanted: at most ${formatMs(max_pause_ms)}`),
    field(view, "rounds", `${rounds.length - 1} after the stream; frames left to copy: ${left}`),
    ...(throttle_us > 0
      ? [field(view, "throttle", `${formatCount(throttle_us)} us of sleep for a fault, in the last round`)]
      : []),
  ];
}

function pauseParts(report: SaveReport): string {
  return partsOfPause(report)
    .map(([name, ms]) => `${name} ${formatMs(ms)}`)
    .join(", ");
}

/** By name, in their order. Without a copy there is no list, and a machine that hibernates does not go on. */
function partsOfPause({ pause: p, atomic_copy, image }: SaveReport): [string, number][] {
  const copies = atomic_copy.frames > 0;
  return [
    ["safepoint", p.safepoint_ms],
    ["devices", p.devices_ms],
    ...(copies
      ? ([
          ["list", p.list_ms],
          ["copy", p.copy_ms],
        ] as [string, number][])
      : []),
    ...(image.ending === "keep-running" ? ([["resume", p.resume_ms]] as [string, number][]) : []),
  ];
}

function reserve({ reserve: r, tail: t }: SaveReport, view: View): string {
  return section(view, "Staging reserve", [
    field(view, "estimated", formatFrames(r.estimated_frames)),
    field(view, "reserved", formatFrames(r.reserved_frames)),
    field(view, "used", `${formatFrames(r.used_frames)} (${formatPercent(r.used_frames, r.reserved_frames)})`),
    field(view, "not copied", `${formatFrames(r.overflow_frames)}, written straight to the image`),
    ...(t.frames === 0
      ? []
      : [
          field(view, "tail", `${formatFrames(t.frames)} protected again instead of copied`),
          field(
            view,
            "  pre-images",
            `${formatCount(t.preimages)} kept before a store; ${formatCount(t.waits)} stores waited for room${waited(t)}`,
          ),
        ]),
  ]);
}

function waited({ waits, waited_ms = 0, longest_wait_ms = 0 }: SaveReport["tail"]): string {
  return waits === 0 ? "" : `, ${formatMs(waited_ms)} together and ${formatMs(longest_wait_ms)} at most`;
}

function blob({ blob: b, throughput: t }: SaveReport, view: View): string {
  return section(view, "Image", [
    field(view, "memory", formatBytes(t.saved_bytes)),
    field(
      view,
      "stored",
      `${formatBytes(b.stored_bytes)} in ${formatCount(b.chunks)} chunks, ${formatCount(b.raw_chunks)} of them raw`,
    ),
    field(view, "compression", `${b.compression}: ${formatBytes(b.plain_bytes)} of data became ${formatPercent(b.ratio, 1)}`),
    field(view, "stale", `${formatBytes(b.stale_bytes)} that later copies superseded`),
  ]);
}

function times({ phases_ms: p, throughput, writers: w }: SaveReport, view: View): string {
  return section(view, "Time", [
    field(
      view,
      "total",
      `${formatMs(p.total)} (${formatGbPerS(throughput.gb_per_s)} of memory)${p.publish === 0 ? ", before it was published" : ""}`,
    ),
    field(
      view,
      "phases",
      `prepare ${formatMs(p.prepare)}, arm ${formatMs(p.arm)}, stream ${formatMs(p.stream)}, stop ${formatMs(p.stop)}, residual ${formatMs(p.residual)}, catalogue ${formatMs(p.catalogue)}${p.publish === 0 ? "" : `, publish ${formatMs(p.publish)}`}`,
    ),
    field(
      view,
      "page writers",
      `stage ${formatMs(w.stage_ms)}, compress ${formatMs(w.compress_ms)}, hash ${formatMs(w.hash_ms)}, waiting for writes ${formatMs(w.write_wait_ms)}`,
    ),
  ]);
}

function workload({ workload: w }: SaveReport, view: View): string {
  const columns = chartColumns(view);
  // One scale for the three, so that they can be compared.
  const max = Math.max(...[w.before, w.during, w.after].map((bins) => sparklineMax(bins, columns)));
  const stretch = (label: string, bins: number[]): string[] =>
    bins.length === 0
      ? []
      : [
          field(view, label, sparkline(bins, { columns, max })),
          field(view, "", `mean ${formatShort(mean(bins))} steps per ${w.bin_ms} ms over ${formatMs(bins.length * w.bin_ms)}`),
        ];
  return section(view, "What the workload felt", [
    ...stretch("before", w.before),
    ...stretch("during", w.during),
    ...stretch("after", w.after),
    field(view, "speed", w.speed === null ? "-" : `${formatPercent(w.speed, 1)} of what it was before`),
    field(view, "longest gap", formatMs(w.longest_gap_ms)),
  ]);
}

function sumOf(counts: { user: number; kernel: number; page_table: number; device: number }): number {
  return counts.user + counts.kernel + counts.page_table + counts.device;
}

function mean(bins: readonly number[]): number {
  return bins.reduce((sum, steps) => sum + steps, 0) / bins.length;
}
