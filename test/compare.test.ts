/** `hib compare`: a row for each approach, whose image is exact; what is refused is said, and nothing is left behind. */
import { spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";
import process from "node:process";
import ava, { type ExecutionContext } from "ava";
import { type ApproachName, CONSISTENCY_POINTS } from "../src/reports/approaches.js";
import { scratch } from "./support.js";
import { HIB } from "./terminals.js";

const test = ava.serial;

function compare(t: ExecutionContext, ...args: string[]) {
  const directory = scratch(t);
  const result = spawnSync(process.execPath, [HIB, "compare", "--dir", directory, ...args], { encoding: "utf8" });
  t.deepEqual(readdirSync(directory), [], "the images are removed");
  return result;
}

test("compare: each approach has a row with what it cost", (t) => {
  const names: ApproachName[] = ["write-fault", "capture-kernel"];
  const { status, stdout, stderr } = compare(t, "--ram", "32M", "--rate", "50000", "--approaches", names.join(","), "--json");
  t.is(status, 0, stderr);
  const { schema, results } = JSON.parse(stdout);
  t.is(schema, 1);
  t.deepEqual(
    results.map(({ approach }: { approach: string }) => approach),
    names,
  );
  for (const row of results) {
    t.is(row.consistency_point, CONSISTENCY_POINTS[row.approach as keyof typeof CONSISTENCY_POINTS]);
    for (const figure of ["pause_ms", "longest_gap_ms", "speed", "total_ms", "image_bytes", "largest_image_bytes"])
      t.true(row[figure] > 0, `${row.approach}: ${figure}`);
    t.is(row.report.image.ending, "keep-running");
  }
});

test("compare: who does not save the machine is named with the reason, and the others have their rows", (t) => {
  const { status, stdout, stderr } = compare(t, "--ram", "128M", "--fill", "75", "--approaches", "swsusp,copy-on-write");
  t.is(status, 1);
  t.regex(stdout, /^ {2}copy-on-write +start /m);
  t.notRegex(stdout, /^ {2}swsusp/m);
  t.regex(stderr, /^hib: HIB_NO_MEMORY: swsusp copies all that is in use, \d+ frames[^\n]*$/m);
  for (const line of stdout.split("\n")) t.true(line.length <= 80, line);
});
