/** Charts, units and layout of the reports. */
import { fileURLToPath } from "node:url";
import test from "ava";
import { readFaultStatistics, resetFaultStatistics } from "../src/cow/fault-statistics.js";
import { openImage } from "../src/image/directory.js";
import { FORMAT_VERSION, MACHINE_VERSION } from "../src/image/format.js";
import { isSaveReport } from "../src/reports/report-shape.js";
import { faultsByProcess, type SaveReport } from "../src/reports/save-report.js";
import { bar, sparkline, sparklineMax } from "../src/stats/charts.js";
import { formatBytes, formatCount, formatGbPerS, formatMs, formatNs, formatPercent, formatShort } from "../src/stats/format.js";
import { renderProcesses } from "../src/stats/live-report.js";
import { DATA_BASE } from "../src/vm/personality/step/program.js";
import { livePid, type Process } from "../src/vm/tasks/process.js";
import { HandMachine } from "./support.js";
import { field, plainView, table, viewOf, wrap } from "../src/stats/layout.js";

const KEPT = fileURLToPath(
  new URL(`../../test/fixtures/images/format-${FORMAT_VERSION}-machine-${MACHINE_VERSION}`, import.meta.url),
);

test("the table of faults: a process by its name, all that have ended in one row, also when others have their slots", (t) => {
  const machine = new HandMachine();
  const { control, kernel, tracking } = machine;
  const store = (process: Process) => machine.run(process).store32(DATA_BASE, 1);
  const pidOf = (slot: number) => livePid(kernel.memory, slot);
  resetFaultStatistics(control);
  const [ends, stays, leaves] = [machine.spawn(1, 7), machine.spawn(1, 7), machine.spawn(1, 7)];
  tracking.arm();
  for (const process of [ends, stays, leaves]) store(process);
  machine.vcpus[0]!.core.deactivate();
  for (const { slot } of [ends, leaves]) kernel.lifecycle.end(slot);
  const successor = machine.spawn(1, 7);
  t.is(successor.slot, ends.slot);
  const begun = machine.spawn(1, 7);
  t.is(begun.slot, leaves.slot);
  tracking.arm(); // what the kernel stored for it bears marks
  store(successor);
  kernel.lifecycle.end(begun.slot);
  const statistics = readFaultStatistics({ control, vcpus: 1, pidOf }, 0, 0);
  const { by_process, ...rest } = faultsByProcess(statistics, [stays]);
  const rows = by_process.map(({ pid, name, user }) => ({ pid, name, user })).sort((a, b) => a.pid - b.pid);
  t.deepEqual(
    rows.filter(({ name }) => name !== "kernel"),
    [
      { pid: 0, name: "ended processes", user: 2 },
      { pid: stays.pid, name: "test", user: 1 },
      { pid: successor.pid, name: "", user: 1 }, // began after the image
    ],
  );
  t.false("by_owner" in rest);
  const sum = by_process.reduce(
    (all, { user, kernel: ofKernel, page_table, device }) => all + user + ofKernel + page_table + device,
    0,
  );
  t.is(sum, rest.total);
});

test("sparkline: scaled to the largest, averaged to the columns, zero apart from little", (t) => {
  t.is(sparkline([0, 1, 50, 100], { columns: 10 }), "▁▂▅█");
  t.is(sparkline([0, 0], { columns: 10 }), "▁▁");
  t.is(sparkline([], { columns: 10 }), "");
  t.is(sparkline([10, 0, 10, 0], { columns: 2 }), "██");
  t.is(sparkline([5], { columns: 2, max: 10 }), "▅");
  t.is(
    sparkline(
      Array.from({ length: 1000 }, () => 1),
      { columns: 37 },
    ).length,
    37,
  );
  t.is(sparklineMax([10, 0, 4, 0], 2), 5);
});

test("bar: an eighth of a character exact, and never empty for something", (t) => {
  t.is(bar(1, 4), "████");
  t.is(bar(0.5, 4), "██");
  t.is(bar(0.53125, 4), "██▏");
  t.is(bar(0, 4), "");
  t.is(bar(0.0001, 4), "▏");
  t.is(bar(7, 4), "████");
});

test("units change where three digits would not do", (t) => {
  t.is(formatBytes(1023), "1,023 B");
  t.is(formatBytes(2 ** 29), "512 MiB");
  t.is(formatBytes(1.25 * 2 ** 30), "1.25 GiB");
  t.is(formatCount(1234567.4), "1,234,567");
  t.is(formatShort(999), "999");
  t.is(formatShort(999.7), "1 k");
  t.is(formatShort(1_234_000), "1.23 M");
  t.is(formatMs(0.0764), "76.4 us");
  t.is(formatMs(0), "0 ms");
  t.is(formatMs(1.519), "1.52 ms");
  t.is(formatMs(125_000), "2 min 05 s");
  t.is(formatMs(3_725_000), "1 h 02 min");
  t.is(formatNs(250), "250 ns");
  t.is(formatNs(2050), "2.05 us");
  t.is(formatPercent(1, 8), "12.5 %");
  t.is(formatPercent(1, 0), "-");
  t.is(formatGbPerS(0.3184), "318 MB/s");
  t.is(formatGbPerS(1.5), "1.5 GB/s");
});

test("layout: fits the columns, colours only where they are wanted", (t) => {
  t.deepEqual(wrap("one two three", 7), ["one two", "three"]);
  t.deepEqual(wrap("unbreakable word", 4), ["unbreakable", "word"]);
  t.is(field({ ...plainView, columns: 30 }, "label", "one two three"), "  label             one two\n                    three");
  t.is(
    table(
      plainView,
      ["pid", "name"],
      [
        [1, "zipf"],
        [12, "x"],
      ],
    ),
    "  pid  name\n    1  zipf\n   12  x",
  );
  const terminal = { isTTY: true, columns: 20, hasColors: () => true };
  t.is(viewOf(terminal).columns, 40);
  t.true(viewOf(terminal).colors.isColorSupported);
  t.false(viewOf({ ...terminal, hasColors: () => false }).colors.isColorSupported);
  t.false(viewOf({ hasColors: () => true }).colors.isColorSupported);
  t.is(viewOf({ isTTY: true, columns: 200 }).columns, 80);
});

test("renderProcesses: parent, group, nice value, and how a zombie ended", (t) => {
  const status = { name: "jobs", text: "jobs", boot: false, steps: 7, steps_per_s: null, pages: 1, failure: "" };
  const shown = renderProcesses(
    [
      { ...status, pid: 1, state: "blocked", parent: 0, group: 1, nice: 5, ended: null },
      { ...status, pid: 2, name: "", state: "zombie", parent: 1, group: 2, nice: 0, ended: 3 << 8 },
      { ...status, pid: 3, name: "", state: "zombie", parent: 1, group: 2, nice: 0, ended: 15 },
    ],
    plainView,
  );
  t.deepEqual(
    shown.split("\n").map((line) => line.trim().split(/ {2,}/)),
    [
      ["pid", "process", "state", "parent", "group", "nice", "steps", "steps/s", "pages"],
      ["1", "jobs", "blocked", "-", "1", "5", "7", "-", "1"],
      ["2", "-", "zombie: exit 3", "1", "2", "0", "7", "-", "1"],
      ["3", "-", "zombie: signal 15", "1", "2", "0", "7", "-", "1"],
    ],
  );
});

test("isSaveReport: what a save has reported, and nothing that no save can", async (t) => {
  const image = await openImage(KEPT);
  const report = image.catalogue.meta["report"] as SaveReport;
  image.close();
  t.true(isSaveReport(report));
  const forged: [object, string, unknown][] = [
    [report, "schema", 2],
    [report, "frames", null],
    [report, "arm_ms", undefined],
    [report, "changed_files", [5]],
    [report.frames, "saved", -5],
    [report.frames, "saved", 1e300],
    [report.frames.by_kind, "user", "7"],
    [report.image, "ending", 5],
    [report.pause, "total_ms", Infinity],
    [report.blob, "ratio", Number.NaN],
    [report.throughput, "gb_per_s", null],
    [report.workload, "before", [1, -1]],
    [report.workload, "speed", -1],
    [report.faults, "by_process", [{ pid: 1 }]],
    [report.faults.latency, "from_ns", []],
  ];
  for (const [of, field, value] of forged) {
    const fields = of as Record<string, unknown>;
    const was = fields[field];
    fields[field] = value;
    t.false(isSaveReport(report), `${field}: ${String(value)}`);
    fields[field] = was;
  }
  t.true(isSaveReport(report));
  for (const value of [null, undefined, 7, [], {}]) t.false(isSaveReport(value));
});
