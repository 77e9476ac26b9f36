/** A running machine's live figures, as text. */
import type { LiveReport } from "../server/protocol.js";
import { sparkline, sparklineMax } from "./charts.js";
import { formatBytes, formatCount, formatMs, formatShort } from "./format.js";
import { chartColumns, field, section, table, type View } from "./layout.js";
import { renderResumeReport } from "./resume-report.js";
import { renderSaveReport } from "./save-report.js";

/** What is not there yet of a machine that was resumed lazily; empty if all is. */
export function comingOf({ missing_bytes }: { missing_bytes: number }): string {
  return missing_bytes === 0 ? "" : `, ${formatBytes(missing_bytes)} to come`;
}

export function renderLiveReport(report: LiveReport, view: View): string {
  const { status, activity } = report;
  const columns = chartColumns(view);
  const live = section(view, `Machine ${status.name}`, [
    field(view, "state", `${status.state}, up ${formatMs(status.uptime_ms)}, resumed: ${formatCount(status.resumes)}`),
    field(
      view,
      "RAM",
      `${formatBytes(status.ram_bytes)}, ${formatBytes(status.free_bytes)} free${comingOf(status)}; vCPUs: ${status.vcpus}`,
    ),
    ...(activity.steps.length === 0
      ? []
      : [
          field(view, "last second", sparkline(activity.steps, { columns })),
          field(view, "", `highest column ${formatShort(sparklineMax(activity.steps, columns))} steps per ${activity.bin_ms} ms`),
        ]),
    field(view, "longest gap", formatMs(activity.longest_gap_ms)),
    "",
    renderProcesses(status.processes, view),
  ]);
  const saved =
    report.save === null ? "No save of this machine since it was booted here.\n" : renderSaveReport(report.save, view);
  const resumed = report.resume === null ? [] : [renderResumeReport(report.resume, view)];
  return [live, ...resumed, saved].join("\n");
}

/** A zombie's state says how it ended, in a few letters. */
function describeState(state: string, ended: number | null): string {
  if (ended === null) return state;
  return ended < 0x100 ? `${state}: signal ${ended}` : `${state}: exit ${ended >> 8}`;
}

/** Processes as a table: what runs, how far it is and how fast it goes. */
export function renderProcesses(processes: LiveReport["status"]["processes"], view: View): string {
  if (processes.length === 0) return "  no processes";
  return table(
    view,
    ["pid", "process", "state", "parent", "group", "nice", "steps", "steps/s", "pages"],
    processes.map((p) => [
      String(p.pid),
      p.name === "" ? "-" : p.name,
      p.state === "failed" ? view.colors.red(p.state) : describeState(p.state, p.ended),
      p.parent === 0 ? "-" : String(p.parent),
      String(p.group),
      String(p.nice),
      formatCount(p.steps),
      p.steps_per_s === null ? "-" : formatShort(p.steps_per_s),
      formatCount(p.pages),
    ]),
  );
}
