/** What commands print: that it fits, that a pipe gets whole lines, and that no marker or mistake makes it read like nonsense. */
import { spawnSync } from "node:child_process";
import { cpSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import { renderImage } from "../src/cli/images.js";
import { renderPrograms, renderSummaries } from "../src/cli/programs.js";
import { fitting } from "../src/cli/terminal.js";
import { FORMAT_VERSION, MACHINE_VERSION } from "../src/image/format.js";
import { listImages } from "../src/image/list.js";
import { plainView } from "../src/stats/layout.js";
import { programHelp } from "../src/vm/personality/step/programs/index.js";
import { scratch } from "./support.js";
import { HIB } from "./terminals.js";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const KEPT = join(ROOT, `test/fixtures/images/format-${FORMAT_VERSION}-machine-${MACHINE_VERSION}`);

function shell(t: ExecutionContext, line: string): { code: number | null; stdout: string; stderr: string } {
  const cwd = scratch(t);
  cpSync(KEPT, join(cwd, "kept.hib"), { recursive: true });
  writeFileSync(join(cwd, "README.hibx"), "");
  const script = `hib() { "${process.execPath}" "${HIB}" "$@"; }; ${line}`;
  const env = { ...process.env, HIB_RUNTIME_DIR: join(cwd, "run") };
  const { status, stdout, stderr } = spawnSync("bash", ["-c", script], { cwd, env, encoding: "utf8" });
  return { code: status, stdout, stderr };
}

test("programs: every option is there, with its range, and every line fits", (t) => {
  for (const columns of [40, 60, 80]) {
    const view = { ...plainView, columns };
    const text = renderPrograms(view);
    for (const line of [...text.split("\n"), ...renderSummaries(view).split("\n")]) t.true(line.length <= columns, line);
    const words = text.replaceAll(/\s+/g, " ");
    for (const { name, summary, options } of programHelp()) {
      t.true(words.includes(`${name}: ${summary}`), name);
      for (const { name: option, default: initial, help, range } of options)
        t.true(words.includes(`${option}=${initial} ${help} (${range})`), `${name}: ${option}`);
    }
    t.is(words.split("all that is random follows from it").length, 2, "what many have is said once");
  }
});

test("a status line leaves out what there is no room for, the last first, and cuts no number", (t) => {
  const parts = ["m1: running 12.3 s", "200 k steps/s", "300 MiB free"];
  t.is(fitting(parts, 80), "m1: running 12.3 s, 200 k steps/s, 300 MiB free");
  t.is(fitting(parts, 46), "m1: running 12.3 s, 200 k steps/s");
  t.is(fitting(parts, 32), "m1: running 12.3 s");
  t.is(fitting(parts, 5), "m1: r");
  t.is(fitting([], 5), "");
});

test("images: one line a fact in a pipe, and as wide as the terminal on one", async (t) => {
  const directory = scratch(t);
  const path = join(directory, "kept $& twice.hib");
  cpSync(KEPT, path, { recursive: true });
  writeFileSync(join(path, "used"), JSON.stringify({ time: "2026-01-01T00:00:00.000Z", pid: 5, host: "h", who: "a resume" }));
  const [image] = await listImages(directory);
  const whole = renderImage(image!, { ...plainView, columns: Infinity }).split("\n");
  t.is(whole.length, 2);
  t.regex(whole[0]!, /^kept \$& twice\.hib {2}used, [\d.]+ [KM]iB, RAM [\d.]+ MiB, processes: \d+, saved 2\S+Z$/);
  t.is(whole[1], "    used 2026-01-01T00:00:00.000Z by process 5 on h");
  const narrow = renderImage(image!, { ...plainView, columns: 40 }).split("\n");
  for (const line of narrow) t.true(line.length <= 40, line);
  t.is(narrow.join(" ").replaceAll(/ +/g, " "), whole.join(" ").replaceAll(/ +/g, " "));
});

test("images: another version is no damage, and one that was set aside and then used is used", async (t) => {
  const states = (await listImages(join(ROOT, "test/fixtures/images"))).map(({ name, state }) => [name, state]);
  t.deepEqual(
    states.filter(([, state]) => state !== "other version"),
    [[`format-${FORMAT_VERSION}-machine-${MACHINE_VERSION}`, "complete"]],
  );
  t.true(states.length > 2);
  const path = join(scratch(t), "a.hib.set-aside-corrupt");
  cpSync(KEPT, path, { recursive: true });
  t.like(await listImages(path), [{ state: "set aside" }]);
  writeFileSync(join(path, "used"), "");
  t.like(await listImages(path), [{ state: "used" }]);
});

test("images: a marker that cannot be read is said to be one", async (t) => {
  const directory = scratch(t);
  const path = join(directory, "a.hib");
  cpSync(KEPT, path, { recursive: true });
  for (const name of ["used", "attempt-1", "attempt-2", "outcome-2"]) writeFileSync(join(path, name), "");
  const [image] = await listImages(path);
  const text = renderImage(image!, { ...plainView, columns: Infinity });
  t.regex(text, /^ {4}used; who used it cannot be read$/m);
  t.regex(text, /^ {4}attempt 1: its marker cannot be read$/m);
  t.false(/process 0|\?|undefined/.test(text), text);
  rmSync(join(path, "used"));
});

test("mistakes are answered by one line that says what to give", (t) => {
  const cases: [string, number, RegExp][] = [
    ["hib", 2, /HIB_USAGE: give one of the commands that hib --help lists/],
    ["hib --verbose", 2, /HIB_USAGE: give one of the commands/],
    ["hib help nothing", 2, /HIB_USAGE: give one of the commands/],
    ["hib demo --ram 1M", 2, /HIB_USAGE: .*Give 16 MiB to /],
    ["hib compare --ram 1M", 2, /HIB_USAGE: .*Give 16 MiB to /],
    [
      "hib compare --approaches swsusp,x",
      2,
      /HIB_USAGE: .*no "x"; there are write-fault, copy-on-write, swsusp, adaptive, capture-kernel/,
    ],
    ["hib compare --rate 0", 2, /HIB_USAGE: .*Give a whole number from 1 to /],
    ["hib compare --dir nothing", 1, /HIB_IO: making a directory in nothing/],
    [
      "hib save m1 --approach x",
      2,
      /HIB_USAGE: .*Allowed choices are write-fault, copy-on-write, swsusp, adaptive, capture-kernel/,
    ],
    ["hib save m1 --approach adaptive --max-pause 0", 2, /HIB_USAGE: .*Give a whole number from 1 to /],
    ["hib save m1 --approach adaptive --max-pause soon", 2, /HIB_USAGE: .*Give a whole number from 1 to /],
    ["hib bogus --help", 2, /HIB_USAGE: unknown command 'bogus'/],
    ["hib run --ram 1.1G idle", 2, /HIB_USAGE: .*no whole number of bytes/],
    ["hib run --ram 99999999999999999999G idle", 2, /HIB_USAGE: .*too large/],
    ["hib run --ram 16M --mount nothere:/d idle", 1, /HIB_IO: nothere cannot be mounted: there is no such directory/],
    ["hib run --ram 16M --mount .:/d:ro files:dir=/d", 2, /HIB_USAGE: files:dir=\/d writes to \/d, which is mounted read-only/],
    ["hib resume ''", 2, /HIB_USAGE: .*path of the image must be/],
    ["hib inspect README.hibx", 1, /HIB_NOT_AN_IMAGE: no image at README\.hibx; hib import makes one/],
    ["hib images $'a\\nb'", 1, /HIB_IO: listing a\\x0ab: /],
    ["hib run --mount x idle", 2, /HIB_USAGE: .*invalid\. Give HOST:PATH/],
    ["hib import - <&-", 1, /HIB_IO: standard input is closed/],
    ["hib import kept.hib nodir/x.hib", 1, /HIB_IO: there is no directory nodir to put the image in/],
    ["hib resume kept.hib --ram 32M", 1, /HIB_RAM_MISMATCH: kept\.hib is of a machine with [\d.]+ MiB of RAM.*leave --ram out/],
    [
      "hib resume kept.hib --ram $((4 * 1048576 + 4096))",
      1,
      /machine with 4,194,304 bytes of RAM, and --ram says 4,198,400 bytes;/,
    ],
  ];
  for (const [line, code, message] of cases) {
    const result = shell(t, line);
    t.is(result.code, code, line);
    t.regex(result.stderr, /^hib: HIB_\w+: [^\n]*\n$/, line);
    t.regex(result.stderr, message);
    t.is(result.stdout, "");
  }
  t.regex(shell(t, "hib verify kept.hib --allow nothing").stderr, /^hib: --allow nothing: there is no such file or directory\n/);
});
