/** The report of a resume, as text. Everything in it is defined in src/resume-report.ts. */
import type { ResumeReport } from "../reports/resume-report.js";
import { formatBytes, formatCount, formatGbPerS, formatMs } from "./format.js";
import { field, section, type View } from "./layout.js";

export function renderResumeReport(report: ResumeReport, view: View): string {
  const { frames: f, loaders: l, own_bytes: o, phases_ms: p } = report;
  return section(view, "Resume", [
    field(view, "image", report.image.path),
    field(view, "consistency point", report.image.time),
    field(view, "frames", `${formatCount(f.image)} in the image, ${formatCount(f.same_filled)} of them same-filled`),
    field(view, "  direct", `${formatCount(f.direct)} free here: loaded into their places`),
    field(view, "  equal", `${formatCount(f.equal)} the same here as there`),
    field(view, "  equal, written", `${formatCount(f.equal_written)} the same, and written by the boot meanwhile`),
    field(view, "  different", `${formatCount(f.different)} queued for the atomic restore`),
    field(
      view,
      "  patched",
      `${formatCount(f.patched)} while all was stopped${f.overflow > 0 ? `, ${formatCount(f.overflow)} of them read once more` : ""}`,
    ),
    ...(f.later === 0 ? [] : [field(view, "  later", `${formatCount(f.later)} brought in while the machine runs`)]),
    field(view, "pause", pauseParts(report)),
    field(
      view,
      "for itself",
      `${formatBytes(o.places + o.buffers + o.tables)}: places ${formatBytes(o.places)}, buffers ${formatBytes(o.buffers)}, tables ${formatBytes(o.tables)}`,
    ),
    field(view, "read", `${formatBytes(l.read_bytes)} by page threads: ${l.threads}`),
    field(
      view,
      "time",
      `${formatMs(p.total)} (${formatGbPerS(report.gb_per_s)}): open ${formatMs(p.open)}, classify ${formatMs(p.classify)}, load ${formatMs(p.load)}, stop ${formatMs(p.stop)}`,
    ),
    ...residentLines(report, view),
  ]);
}

/** What `hib resume` prints. */
export function renderResumeSummary(report: ResumeReport, view: View): string {
  const { frames: f } = report;
  return [
    `${view.colors.bold("Resumed")} ${report.image.path}`,
    field(
      view,
      "frames",
      `${formatCount(f.image)}: ${formatCount(f.direct)} direct, ${formatCount(f.equal)} equal, ${formatCount(f.equal_written)} equal and written, ${formatCount(f.different)} different`,
    ),
    field(view, "pause", pauseParts(report)),
    f.later === 0
      ? field(view, "time", `${formatMs(report.phases_ms.total)} (${formatGbPerS(report.gb_per_s)})`)
      : field(
          view,
          "first instruction",
          `after ${formatMs(report.phases_ms.total)}; frames that come later: ${formatCount(f.later)}`,
        ),
  ].join("\n");
}

/** When all of a machine that was resumed lazily was there, and what processes waited for meanwhile. */
export function residentLines({ frames, resident }: ResumeReport, view: View): string[] {
  if (frames.later === 0) return [];
  if (resident === null) return [field(view, "all resident", "not yet")];
  const { count, p50_ms, p99_ms } = resident.faults;
  const faults =
    count === 0
      ? "no read faults"
      : `read faults: ${formatCount(count)}, half of them within ${formatMs(p50_ms)}, 99 of 100 within ${formatMs(p99_ms)}`;
  return [field(view, "all resident", `after ${formatMs(resident.resident_ms)}; ${faults}`)];
}

function pauseParts({ pause: p }: ResumeReport): string {
  return `${formatMs(p.total_ms)}: safepoint ${formatMs(p.safepoint_ms)}, examine ${formatMs(p.examine_ms)}, mark the image used ${formatMs(p.consume_ms)}, patch ${formatMs(p.patch_ms)}, rebuild ${formatMs(p.rebuild_ms)}`;
}
