/**
 * `npm run bench`: every figure beside its limit, measured in the same run, and their ratio.
 *
 *     npm run bench -- [--quick] [--json] [--snapshots N]      N: whose pauses are measured at each size; default 20, or 5
 *
 * Images go to the working directory, or to HIB_BENCH_DIR. Nothing here fails for being slow.
 */
import { cpus } from "node:os";
import process from "node:process";
import { parseArgs } from "node:util";
import Table from "cli-table3";
import { encryptionFigures } from "./encryption.js";
import { predictionFigures } from "./approaches.js";
import { type FeltRow, type GrowthRow, inOwnProcess, type PauseRow } from "./growth.js";
import type { LazyRow } from "./lazy.js";
import type { Figure } from "./measure.js";
import { resumeFigures } from "./resume.js";
import { stopFigures } from "./stop.js";
import { storeFigures } from "./store.js";
import { streamFigures } from "./stream.js";

const { values: options } = parseArgs({
  options: {
    quick: { type: "boolean", default: false },
    json: { type: "boolean", default: false },
    snapshots: { type: "string" },
  },
});
const megabytes = options.quick ? 256 : 1024;
const rounds = options.quick ? 3 : 5;

const say = (text: string): void => void process.stderr.write(`${text}\n`);
const plain = { style: { head: [], border: [] } };

say("one store, one fault ...");
const figures: Figure[] = storeFigures();
say("the stop ...");
figures.push(...(await stopFigures(megabytes)));
say("streaming ...");
figures.push(...(await streamFigures(megabytes, rounds)));
say("encryption ...");
figures.push(...(await encryptionFigures(megabytes, rounds)));
say("resume ...");
figures.push(...(await resumeFigures(megabytes, rounds)));
say("predictions of the pause ...");
figures.push(...(await predictionFigures(256, options.quick ? 10 : 100)));
say("lazy resume ...");
const lazy: LazyRow[] = (options.quick ? [256 * 2 ** 20] : [2 ** 30, 4e9]).map((bytes) => inOwnProcess("lazy", bytes, rounds));
say("cost growth ...");
const sizes = options.quick ? [256 * 2 ** 20, 512 * 2 ** 20] : [256 * 2 ** 20, 2 ** 30, 4e9];
const growth: GrowthRow[] = sizes.map((ramBytes) => inOwnProcess("growth", ramBytes));
say("the pause of a snapshot ...");
const snapshots = Number(options.snapshots ?? (options.quick ? 5 : 20));
const pauses: PauseRow[] = sizes.map((ramBytes) => inOwnProcess("pause", ramBytes, snapshots));
say("what the workload feels ...");
const felt: FeltRow[] = [];
for (const rate of [100_000, 0]) felt.push(inOwnProcess("felt", rate, megabytes));

if (options.json) {
  process.stdout.write(
    `${JSON.stringify({ schema: 1, node: process.version, cpu: cpus()[0]?.model, cores: cpus().length, figures, lazy, growth, pauses, felt })}\n`,
  );
} else {
  process.stdout.write(`Node ${process.version}, ${cpus().length} x ${cpus()[0]?.model}\n\n`);
  print(
    ["figure", "value", "limit (same run)", "ratio", "asked for"],
    figures.map((figure) => [
      figure.name,
      `${round(figure.value)} ${figure.unit}`,
      figure.limit === undefined ? "" : `${round(figure.limit.value)} ${figure.unit}: ${figure.limit.name}`,
      figure.ratio === undefined ? "" : round(figure.ratio),
      figure.target ?? "",
    ]),
  );
  process.stdout.write(
    "\nLazy resume: 80 % of the machine is one process's; the machine that it is resumed in has booted before\n",
  );
  print(
    [
      "RAM MiB",
      "eager ms",
      "first instruction ms: cold",
      "warm",
      "open",
      "load",
      "stop",
      "all resident ms",
      "faults",
      "p50 ms",
      "p99 ms",
    ],
    lazy.map((row) => Object.values(row).map((value: number) => round(value))),
  );
  process.stdout.write("\nCost growth: mixed contents, three writers and a heap, machine 85 % full, hibernated\n");
  print(
    ["RAM MiB", "saved MiB", "total s", "s/GB", "pause ms", "residual", "host MiB", "image MiB", "speed"],
    growth.map((row) => Object.values(row).map((value: number) => round(value))),
  );
  process.stdout.write("\nThe pause of a snapshot, one after another: three quarters of the machine written by two processes\n");
  print(
    [
      "RAM MiB",
      "snapshots",
      "pause p50 ms",
      "p99",
      "kernel p50 ms",
      "gap p50 ms",
      "p99",
      "residual",
      "pre-images",
      "waits",
      "fault p99 ns",
      "total s",
    ],
    pauses.map((row) => Object.values(row).map((value: number) => round(value))),
  );
  process.stdout.write(`\nWhat the workload feels: zipf writer, ${megabytes} MiB, snapshot (--keep-running)\n`);
  print(
    ["stores", "total s", "pause ms", "longest gap ms", "speed", "image MiB"],
    felt.map((row) => Object.values(row).map((value: string | number) => (typeof value === "number" ? round(value) : value))),
  );
}

function print(head: string[], rows: string[][]): void {
  const table = new Table({ head, ...plain });
  table.push(...rows);
  process.stdout.write(`${table.toString()}\n`);
}

function round(value: number): string {
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}
