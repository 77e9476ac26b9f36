/**
 * Texts of others on a terminal: whatever is in an image, or a machine answers, no command lets a character through that a
 * terminal acts on.
 */
import { execFile } from "node:child_process";
import { cpSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import { HibernaculumError } from "../src/base/errors.js";
import { loadChecksum } from "../src/image/checksum.js";
import { FORMAT_VERSION, MACHINE_VERSION } from "../src/image/format.js";
import { ControlServer } from "../src/server/server.js";
import { printable, printableAll, printableJson, printableLines } from "../src/stats/printable.js";
import { recatalogue } from "./damage.js";
import { scratch } from "./support.js";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const KEPT = join(ROOT, `test/fixtures/images/format-${FORMAT_VERSION}-machine-${MACHINE_VERSION}`);

/** Clears the screen, sets the title, by ESC and by C1; begins a new line that looks like another's; turns text around. */
const EVIL = "evil\u001b[2J\u001b]0;title\u0007\u009b2J\u009d0;x\u009c\r\nhib: fake\u202egnp";

function run(directory: string, program: "hib" | "hib-stats", args: string[]): Promise<string> {
  const env = { ...process.env, HIB_RUNTIME_DIR: join(directory, "run"), FORCE_COLOR: "1" };
  return new Promise((resolve) => {
    const all = [join(ROOT, `dist/src/cli/${program}.js`), ...args];
    execFile(process.execPath, all, { cwd: directory, env }, (_, stdout, stderr) => resolve(stdout + stderr));
  });
}

function scan(t: ExecutionContext, what: string, output: string): void {
  t.true(output.includes("evil"), `${what}: shows it: ${JSON.stringify(output)}`);
  t.deepEqual(output.match(/[^\P{Cc}\n]|[\u2028-\u202e\u2066-\u2069]/gu), null, `${what}: ${JSON.stringify(output)}`);
  t.false(/^hib: fake/m.test(output), `${what}: a line of its own`);
}

test("printable: controls and directions are written out, all else stays", (t) => {
  t.is(printable("a\u001b[31m\u0000\u007f\u009b\t\n\u202e"), "a\\x1b[31m\\x00\\x7f\\x9b\\x09\\x0a\\u202e");
  for (const text of ["", "häuser 機械 🙂 \\x1b", "a b"]) t.is(printable(text), text);
  t.deepEqual(printableAll({ "a\n": ["\u001b", 1, null, { b: "\r" }] }), {
    "a\\x0a": ["\\x1b", 1, null, { b: "\\x0d" }],
  } as never);
  const bytes = new Uint8Array(3);
  t.is(printableAll(bytes), bytes);
});

test("printableLines: lines stay, and colors where there are to be any", (t) => {
  const text = "\u001b[31mred\u001b[39m\n\u001b[2J\u001b[1;31m\tx";
  t.is(printableLines(text), "\\x1b[31mred\\x1b[39m\n\\x1b[2J\\x1b[1;31m\tx");
  t.is(printableLines(text, "colors"), "\u001b[31mred\u001b[39m\n\\x1b[2J\\x1b[1;31m\tx");
});

test("printableJson: reads as what it was", (t) => {
  const value = { text: EVIL, list: [1, null, "\u2028"] };
  for (const indent of [undefined, 2]) {
    const json = printableJson(value, indent);
    t.deepEqual(JSON.parse(json), value);
    t.deepEqual(json.match(/[^\P{Cc}\n]|[\u2028-\u202e]/gu), null);
  }
});

test("images, inspect, diff, verify, hib-stats: nothing in an image or in its name reaches the terminal as it is", async (t) => {
  const directory = scratch(t);
  const image = join(directory, `${EVIL}.hib`);
  cpSync(KEPT, image, { recursive: true });
  const text = (value: string): string => `'${value.replaceAll("'", "''")}'`;
  const detail = JSON.stringify({ text: EVIL, failure: EVIL });
  await loadChecksum();
  recatalogue(`
    UPDATE process SET name = ${text(EVIL)}, state = ${text(EVIL)}, detail = ${text(detail)};
    INSERT INTO file (path, mode, device, inode, size, mtime_ns, position, skipped)
      VALUES (${text(`/${EVIL}`)}, 'r', 0, 0, 0, 0, 0, '[]');
    UPDATE blocks SET kind = ${text(EVIL)};`)(image);
  const note = (name: string, value: object): void => writeFileSync(join(image, name), JSON.stringify(value));
  const who = { time: EVIL, pid: EVIL, host: EVIL, who: EVIL, code: EVIL, message: EVIL, from: EVIL };
  for (const args of [
    ["images", directory],
    ["images", "--json", directory],
  ])
    scan(t, args.join(" "), await run(directory, "hib", args));
  note("used", who);
  note("attempt-1", who);
  note("outcome-1", who);
  const commands = [
    ["images", directory],
    ["images", image],
    ["inspect", image],
    ["inspect", image, "--json"],
    ["inspect", image, "--extents", "--json"],
    ["verify", image],
    ["diff", image, image],
    ["resume", image, "--name", "r"],
    ["export", image, `${EVIL}/nowhere`],
    ["resume", EVIL],
    ["save", EVIL],
    [EVIL, `--${EVIL}`],
  ];
  for (const args of commands) scan(t, args.join(" "), await run(directory, "hib", args));
  scan(t, "hib-stats", await run(directory, "hib-stats", [image]));
  cpSync(image, `${image}.set-aside-x`, { recursive: true });
  writeFileSync(join(`${image}.set-aside-x`, "set-aside"), JSON.stringify({ ...who, attempts: 0 }));
  scan(t, "set aside", await run(directory, "hib", ["images", directory]));
});

test.serial("ps, hib-stats, save: nothing that a machine answers reaches the terminal as it is", async (t) => {
  const directory = scratch(t);
  process.env["HIB_RUNTIME_DIR"] = join(directory, "run");
  const entry = { pid: 1, name: EVIL, text: EVIL, state: EVIL, boot: false, steps: 1, steps_per_s: null, pages: 1 };
  const status = {
    name: EVIL,
    pid: 1,
    state: EVIL,
    uptime_ms: 1,
    ram_bytes: 1,
    free_bytes: 1,
    missing_bytes: 0,
    vcpus: 1,
    page_threads: 1,
    resumes: 0,
  };
  const answer = { ...status, processes: [{ ...entry, failure: EVIL, parent: 0, group: 1, nice: 0, ended: null }] };
  const fails = () => Promise.reject(new HibernaculumError("HIB_IO", EVIL));
  const server = await ControlServer.listen("m", {
    status: async () => answer as never,
    report: async () =>
      ({ status: answer, activity: { bin_ms: 1, steps: [], longest_gap_ms: 0 }, save: null, resume: null }) as never,
    save: fails,
    check: fails,
  });
  t.teardown(() => server.close());
  for (const args of [["ps"], ["ps", "--json"], ["save", "m", "x.hib"]]) scan(t, args[0]!, await run(directory, "hib", args));
  scan(t, "hib-stats", await run(directory, "hib-stats", ["m"]));
});
