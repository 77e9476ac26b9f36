/** The commands on images: inspect, diff, export, import. The image is the one that is kept in the tree. */
import { execFile, spawn, spawnSync } from "node:child_process";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { cp } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import { FRAME_BYTES } from "../src/base/layout.js";
import type { ExtentDescription } from "../src/cli/inspect.js";
import { type Holdings, type MemoryDump, parseRange } from "../src/cli/inspect-process.js";
import { openImage } from "../src/image/directory.js";
import { claimUse } from "../src/image/markers.js";
import { BLOB_NAME, CATALOGUE_NAME, FORMAT_VERSION, MACHINE_VERSION } from "../src/image/format.js";
import type { ImageDiff } from "../src/reports/image-diff.js";
import { walkAreas } from "../src/vm/memory/area.js";
import { walkLeaves } from "../src/vm/memory/page-table.js";
import { listProcesses, readRegisters } from "../src/vm/tasks/process.js";
import { readProcessMemory } from "../src/vm/views/process-memory.js";
import { scratch, until } from "./support.js";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const HIB = join(ROOT, "dist/src/cli/hib.js");
const KEPT = join(ROOT, `test/fixtures/images/format-${FORMAT_VERSION}-machine-${MACHINE_VERSION}`);

interface Result {
  code: number;
  stdout: string;
  stderr: string;
}

/** Without progress, which a slow machine shows. */
const withoutProgress = (stderr: string): string => stderr.replaceAll(/^[a-z ]+: \d+ %.*\n/gm, "");

/** Runs a line of the shell in a directory; `hib` is the command. */
function shell(directory: string, line: string, env: Record<string, string> = {}): Promise<Result> {
  const script = `set -o pipefail; hib() { "${process.execPath}" "${HIB}" "$@"; }; ${line}`;
  return new Promise((resolve) => {
    const options = {
      cwd: directory,
      env: { ...process.env, HIB_RUNTIME_DIR: join(directory, "run"), ...env },
      maxBuffer: 2 ** 26,
      timeout: 180_000,
    };
    const child = execFile("bash", ["-c", script], options, (_, stdout, stderr) =>
      resolve({ code: child.exitCode ?? -1, stdout, stderr: withoutProgress(stderr) }),
    );
  });
}

/** A directory with a copy of the kept image: kept.hib. */
async function withImage(t: ExecutionContext): Promise<string> {
  const directory = scratch(t);
  await cp(KEPT, join(directory, "kept.hib"), { recursive: true });
  return directory;
}

async function json<T>(directory: string, line: string): Promise<T> {
  const { code, stdout, stderr } = await shell(directory, `${line} --json`);
  if (code !== 0 || stderr !== "") throw new Error(`${line}: ${code}, ${stderr}`);
  return JSON.parse(stdout);
}

/** One line, with a code, and nothing else. */
function isRefused(t: ExecutionContext, { code, stdout, stderr }: Result, exit: number, message: RegExp): void {
  t.is(stdout, "");
  t.regex(stderr, /^hib: HIB_\w+: [^\n]*\n$/);
  t.regex(stderr, message);
  t.is(code, exit, stderr);
}

test("inspect: extents, and what a process holds", async (t) => {
  const directory = await withImage(t);
  const image = await openImage(KEPT);
  t.teardown(() => image.close());
  const memory = image.memory();
  const { extents } = await json<{ extents: ExtentDescription[] }>(directory, "hib inspect kept.hib --extents");
  t.is(extents.length, image.extents.length);
  t.is(
    extents.reduce((sum, { frames }) => sum + frames, 0),
    image.header.frames,
  );
  t.regex(
    (await shell(directory, "hib inspect kept.hib --extents")).stdout,
    /^ +frame +frames +chunk +place\n +0 .*\n[\s\S]* filled with 0{16}$/m,
  );
  for (const process of listProcesses(memory)) {
    const held = await json<Holdings>(directory, `hib inspect kept.hib --pid ${process.pid}`);
    t.is(held.process.text, process.text);
    t.is(held.process.root, process.root);
    const areas = [...walkAreas(memory, process.areas)].toReversed();
    t.deepEqual(
      held.areas.map(({ kind, start, end }) => ({ kind, start, end })),
      areas.map(({ kind, start, end }) => ({ kind, start, end })),
    );
    const pages = [...walkLeaves(memory, process.root)].length;
    for (const list of [held.areas.map((area) => area.mapped_pages), held.mappings.map((mapping) => mapping.pages)])
      t.is(
        list.reduce((sum, count) => sum + count, 0),
        pages,
      );
    const words = Object.values(held.registers).flatMap((value) => [value.slice(8), value.slice(0, 8)]);
    t.deepEqual(
      words.map((word) => Number.parseInt(word, 16) | 0),
      [...readRegisters(memory, process.slot)],
    );
  }
  t.regex(
    (await shell(directory, "hib inspect kept.hib --pid 1")).stdout,
    /^Areas\n[\s\S]* code +0x00010000 +0x00011000 +r-xu +1 [\s\S]*^Registers$/m,
  );
});

test("inspect --read: the memory of a process, with what has no frame", async (t) => {
  const directory = await withImage(t);
  const image = await openImage(KEPT);
  t.teardown(() => image.close());
  const memory = image.memory();
  const one = listProcesses(memory)[0]!;
  const text = Buffer.from(`${one.text}\0`);
  const read = await json<MemoryDump>(directory, `hib inspect kept.hib --pid 1 --read 0x10000:${text.length}`);
  t.deepEqual(
    read.parts.map(({ state, hex }) => [state, hex]),
    [["mapped", text.toString("hex")]],
  );
  const shown = (await shell(directory, "hib inspect kept.hib --pid 1 --read 0x10000:16")).stdout;
  t.is(shown, "00010000  69 6e 63 72 65 6d 65 6e 74 65 72 3a 70 61 67 65  |incrementer:page|\n");

  // The stack of process 4: what it has not touched yet, what it has, and what is above it.
  const stack = listProcesses(memory)[3]!;
  const { limit, end } = [...walkAreas(memory, stack.areas)].find(({ kind }) => kind === "stack")!;
  const lowest = [...walkLeaves(memory, stack.root)].find(({ address }) => address >= limit)!;
  const parts = readProcessMemory(memory, stack, limit - 10, end - limit + 20);
  t.deepEqual(
    [parts[0], parts[1], parts.at(-1)],
    [
      { address: limit - 10, length: 10, state: "unmapped" },
      { address: limit, length: lowest.address - limit, state: "demand-zero" },
      { address: end, length: 10, state: "unmapped" },
    ],
  );
  for (const part of parts.slice(2, -1)) {
    if (part.state !== "mapped") return t.fail(`${part.address} is ${part.state}`);
    t.deepEqual(part.bytes, memory.read(part.pfn * FRAME_BYTES, part.length));
  }
  t.is(
    parts.reduce((sum, { length }) => sum + length, 0),
    end - limit + 20,
  );
  const dump = (await shell(directory, `hib inspect kept.hib --pid 4 --read ${lowest.address - 8192}:8208`)).stdout;
  t.regex(
    dump,
    /^[0-9a-f]{8} {2}8 KiB demand-zero: no frame yet, reads as zeros\n[0-9a-f]{8} {2}(?:[0-9a-f]{2} ){16} \|.{16}\|\n$/,
  );
  t.regex((await shell(directory, "hib inspect kept.hib --pid 1 --read 16:4")).stdout, /^00000010 {2}4 B unmapped\n$/);
});

test("inspect: addresses, lengths and pids are checked", async (t) => {
  t.deepEqual(parseRange("0x10000:64"), { address: 65536, length: 64 });
  t.deepEqual(parseRange("65536:0X40"), { address: 65536, length: 64 });
  t.deepEqual(parseRange("0xffffffff:1"), { address: 2 ** 32 - 1, length: 1 });
  t.deepEqual(parseRange("0:1048576"), { address: 0, length: 2 ** 20 });
  for (const text of [
    "",
    "5",
    ":",
    "1:",
    ":1",
    "1:0",
    "-1:5",
    "0xffffffff:2",
    "0:1048577",
    "1.5:2",
    "0xg:1",
    "1:2:3",
    " 1:2",
    "1e3:1",
  ])
    t.throws(() => parseRange(text), { code: "commander.invalidArgument" }, text);
  const directory = await withImage(t);
  isRefused(t, await shell(directory, "hib inspect kept.hib --read 0:1"), 2, /HIB_USAGE: --read .* give --pid/);
  isRefused(t, await shell(directory, "hib inspect kept.hib --pid 1 --read 0:0"), 2, /HIB_USAGE: .*ADDRESS:LENGTH/);
  isRefused(t, await shell(directory, "hib inspect kept.hib --pid 9"), 2, /HIB_USAGE: no process 9 .*there are 1, 2, 3, 4/);
  isRefused(t, await shell(directory, "hib inspect kept.hib --pid 1 --extents"), 2, /HIB_USAGE: /);
  const blob = readFileSync(join(directory, "kept.hib", BLOB_NAME));
  for (let at = FRAME_BYTES; at < blob.length; at += FRAME_BYTES) blob[at]! ^= 1;
  writeFileSync(join(directory, "kept.hib", BLOB_NAME), blob);
  isRefused(t, await shell(directory, "hib inspect kept.hib --pid 1 --read 0x10000:1"), 1, /HIB_CORRUPT: kept\.hib: chunk/);
});

test("diff: nothing differs between an image and its copy; errors name the image", async (t) => {
  const directory = await withImage(t);
  await cp(KEPT, join(directory, "copy.hib"), { recursive: true });
  const diff = await json<ImageDiff>(directory, "hib diff kept.hib copy.hib");
  t.true(diff.same);
  t.is(diff.frames.changed, 0);
  t.regex(
    (await shell(directory, "hib diff kept.hib copy.hib")).stdout,
    /^ +difference +none$[\s\S]*^ +1 +incrementer +0 +\d+ +0 +0 +0 +0$/m,
  );
  const file = join(directory, "copy.hib", BLOB_NAME);
  const blob = readFileSync(file);
  blob[blob.length - 1]! ^= 1;
  writeFileSync(file, blob);
  isRefused(t, await shell(directory, "hib diff kept.hib copy.hib"), 1, /HIB_CORRUPT: .*copy\.hib: chunk/);
  isRefused(t, await shell(directory, "hib diff kept.hib nothing"), 1, /HIB_NOT_AN_IMAGE: /);
  isRefused(t, await shell(directory, "hib diff kept.hib"), 2, /HIB_USAGE: missing required argument 'b'/);
});

test("export | import: through a pipe, or a file, byte for byte; and it resumes", async (t) => {
  const directory = await withImage(t);
  const piped = await shell(directory, "hib export kept.hib - | hib import - there.hib && hib verify there.hib --replay");
  t.is(piped.stderr, "");
  t.is(piped.code, 0);
  t.regex(piped.stdout, /^imported there\.hib: [\d.]+ KiB\nthere\.hib: ok\n/);
  t.regex(
    (await shell(directory, "hib export kept.hib kept.stream")).stdout,
    /^exported kept\.hib to kept\.stream: [\d.]+ KiB\n$/,
  );
  const imported = await json<{ used: boolean; bytes: number }>(directory, "hib import kept.stream again.hib");
  t.is(imported.used, false);
  t.is(imported.bytes, readFileSync(join(directory, "kept.stream")).length);
  for (const name of ["there.hib", "again.hib"])
    for (const file of [BLOB_NAME, CATALOGUE_NAME])
      t.true(readFileSync(join(directory, name, file)).equals(readFileSync(join(KEPT, file))));
  t.regex((await shell(directory, "cat kept.stream | hib import -")).stdout, /^imported imported-\d+-\d{8}-\d{6}-\d{3}\.hib: /);
  // Not by the function: signals must reach the program itself.
  const resume = `"${process.execPath}" "${HIB}" resume y --name y > log & pid=$!`;
  const lives = "until grep -q 'process 4' log || ! kill -0 $pid; do sleep 0.05; done; kill -TERM $pid; wait $pid";
  const resumed = await shell(
    directory,
    `hib export kept.hib - | hib import - y && { ${resume}; ${lives}; }; status=$?; cat log; exit $status`,
  );
  t.is(resumed.code, 0);
  t.regex(resumed.stdout, /^Resumed .*y$/m);
});

test("export, import: what is refused leaves nothing behind", async (t) => {
  const directory = await withImage(t);
  const before = readdirSync(directory);
  const refused = async (line: string, message: RegExp, env?: Record<string, string>): Promise<void> => {
    isRefused(t, await shell(directory, line, env), 1, message);
    t.deepEqual(readdirSync(directory), before, line);
  };
  await refused("hib import /dev/null x", /HIB_TRUNCATED: \/dev\/null is not what was exported/);
  await refused("hib export kept.hib kept.hib", /HIB_IMAGE_EXISTS: /);
  await refused("hib export nothing -", /HIB_NOT_AN_IMAGE: /);
  await refused("hib export kept.hib nowhere/x", /HIB_IO: /);
  await refused("hib import nothing x", /HIB_IO: reading nothing: ENOENT/);
  await refused("echo hello, world | hib import - x", /HIB_NOT_AN_IMAGE: standard input: not a stream/);
  await refused("hib import - kept.hib < /dev/null", /HIB_IMAGE_EXISTS: .*remove it or choose another path/);
  const full = { HIB_FAILPOINTS: "save.write=ENOSPC@2" };
  await refused("hib export kept.hib x.stream", /HIB_NO_SPACE: /, full);
  await shell(directory, "hib export kept.hib kept.stream");
  before.push("kept.stream");
  await refused("hib import kept.stream x", /HIB_NO_SPACE: /, full);
  await refused("head -c 50000 kept.stream | hib import - x", /HIB_TRUNCATED: .*ends after 50000 bytes/);
  await refused("cat kept.stream kept.stream | hib import - x", /HIB_CORRUPT: .*goes on after its end/);
  await claimUse(join(directory, "kept.hib"), "a test");
  await refused("hib export kept.hib -", /HIB_IMAGE_USED: .*--again/);
  const again = await shell(directory, "hib export kept.hib - --again | hib import - x && hib resume x");
  t.regex(again.stdout, /^imported x: .*; it was used before, and is marked so\n$/);
  t.regex(again.stderr, /^hib: HIB_IMAGE_USED: /m);
});

test("export: a reader that goes away is told that it has no whole image", async (t) => {
  const directory = await withImage(t);
  const { code, stderr } = await shell(directory, "hib export kept.hib - | true");
  t.is(code, 1);
  t.regex(stderr, /^hib: HIB_IO: the reader of standard output went away[^\n]*\n$/);
});

test("export: to a standard output that is closed fails, and to /dev/null it does not", async (t) => {
  const directory = await withImage(t);
  const { code, stderr } = await shell(directory, "hib export kept.hib - >&-");
  t.is(code, 1);
  t.regex(stderr, /^hib: HIB_IO: standard output is closed[^\n]*\n$/);
  t.is((await shell(directory, "hib export kept.hib - > /dev/null")).code, 0);
});

test("import: a signal that comes when the image is there is too late", async (t) => {
  const directory = await withImage(t);
  await shell(directory, "hib export kept.hib kept.stream");
  const child = spawn(process.execPath, [HIB, "import", "kept.stream", "x"], {
    cwd: directory,
    env: { ...process.env, HIB_FAILPOINTS: "save.after-rename=stop" },
    stdio: ["ignore", "pipe", "ignore"],
  });
  t.teardown(() => child.kill("SIGKILL"));
  let stdout = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text));
  const ended = new Promise((resolve) => child.once("close", (code, signal) => resolve(signal ?? code)));
  await until(() => readdirSync(directory).includes("x"), "the image is there");
  child.kill("SIGTERM");
  const goOn = setInterval(() => child.kill("SIGCONT"), 20); // whenever it stops
  t.is(await ended, 0);
  clearInterval(goOn);
  t.regex(stdout, /^imported x: /);
});

test("interruptible: once it is over a signal ends nothing, and before that a second one does", async (t) => {
  const run = (script: string) => {
    const code = `import { interruptible } from ${JSON.stringify(new URL("../src/cli/command.js", import.meta.url).href)};
      const me = (signal) => { process.kill(process.pid, signal); return new Promise((resolve) => setTimeout(resolve, 200)); };
      ${script}`;
    return spawnSync(process.execPath, ["--input-type=module", "-e", code], { encoding: "utf8" });
  };
  for (const signal of ["SIGTERM", "SIGINT", "SIGHUP"]) {
    const over = run(`await interruptible(async () => {}); await me("${signal}"); console.log("told");`);
    t.like(over, { status: 0, stdout: "told\n" });
    const twice = run(`await interruptible(async () => { await me("${signal}"); console.log("once"); await me("${signal}"); });`);
    t.like(twice, { signal, stdout: "once\n" });
  }
});

test("import: one that is killed leaves no image, and the next one removes what it left", async (t) => {
  const directory = await withImage(t);
  await shell(directory, "hib export kept.hib kept.stream");
  const killed = await shell(directory, "hib import kept.stream x", { HIB_FAILPOINTS: "save.seal=kill" });
  t.not(killed.code, 0);
  t.regex(readdirSync(directory).join(" "), /^\.x\.partial-\S+ kept\.hib kept\.stream$/);
  t.is((await shell(directory, "hib import kept.stream x")).code, 0);
  t.deepEqual(readdirSync(directory).sort(), ["kept.hib", "kept.stream", "x"]);
});

test("import: Ctrl-C while it waits for more leaves nothing behind", async (t) => {
  const directory = await withImage(t);
  await shell(directory, "hib export kept.hib kept.stream");
  const child = spawn(process.execPath, [HIB, "import", "-", "x"], { cwd: directory, stdio: ["pipe", "pipe", "pipe"] });
  t.teardown(() => child.kill("SIGKILL"));
  let stderr = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text));
  const ended = new Promise((resolve) => child.once("close", resolve));
  child.stdin.write(readFileSync(join(directory, "kept.stream")).subarray(0, 50_000));
  await until(() => readdirSync(directory).some((name) => name.startsWith(".x.partial-")), "it has begun");
  child.kill("SIGINT");
  t.is(await ended, 130);
  t.regex(withoutProgress(stderr), /^hib: HIB_CANCELLED: [^\n]*\n$/);
  t.deepEqual(readdirSync(directory).sort(), ["kept.hib", "kept.stream"]);
});

test("import: a named pipe is waited for, by nothing that a signal could not end", async (t) => {
  const directory = await withImage(t);
  await shell(directory, "mkfifo pipe && hib export kept.hib kept.stream");
  const child = spawn(process.execPath, [HIB, "import", "pipe", "x"], { cwd: directory, stdio: ["ignore", "pipe", "pipe"] });
  t.teardown(() => child.kill("SIGKILL"));
  const ended = new Promise((resolve) => child.once("close", resolve));
  await until(() => readdirSync(directory).some((name) => name.startsWith(".x.partial-")), "it has begun");
  child.kill("SIGTERM");
  t.is(await ended, 130);
  t.is((await shell(directory, "(sleep 1; cat kept.stream > pipe) & hib import pipe x; code=$?; wait; exit $code")).code, 0);
  t.deepEqual(readdirSync(directory).sort(), ["kept.hib", "kept.stream", "pipe", "x"]);
});

test("an image whose blob is a pipe has one, and it is no file", async (t) => {
  const directory = await withImage(t);
  const { code, stderr } = await shell(directory, "rm kept.hib/blob && mkfifo kept.hib/blob && hib inspect kept.hib");
  t.is(code, 1);
  t.regex(stderr, /^hib: HIB_NOT_AN_IMAGE: \S+kept\.hib is not an image: its blob is no regular file\n$/);
});

test("import: a directory is none, and an image is one already", async (t) => {
  const directory = await withImage(t);
  isRefused(
    t,
    await shell(directory, "hib import kept.hib x"),
    2,
    /HIB_USAGE: kept\.hib is an image already, as it is; give a file/,
  );
  isRefused(
    t,
    await shell(directory, "hib import . x"),
    2,
    /HIB_USAGE: \. is a directory, and no stream of hib export; give a file/,
  );
});

const terminal = spawnSync("script", ["-qec", "true", "/dev/null"]).status === 0;
(terminal ? test : test.skip)("export, import: a terminal is refused (needs script(1))", async (t) => {
  const directory = await withImage(t);
  for (const [line, message] of [
    ["export kept.hib -", /HIB_USAGE: an image is not for a terminal/],
    ["import - x", /HIB_USAGE: standard input is a terminal/],
  ] as const) {
    const { code, stdout } = await shell(directory, `script -qec '"${process.execPath}" "${HIB}" ${line}' /dev/null`);
    t.is(code, 2);
    t.regex(stdout, message);
  }
});

test("help of every command on images", async (t) => {
  for (const command of ["inspect", "diff", "export", "import"]) {
    const { code, stdout } = await shell(scratch(t), `hib ${command} --help`);
    t.is(code, 0);
    t.regex(stdout, new RegExp(`^Usage: hib ${command} [\\s\\S]*130 interrupted`));
  }
});
