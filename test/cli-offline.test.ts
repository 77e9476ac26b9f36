/** Commands that only read: what they say of damage, of files of the host, of a bad place for their output, and to Ctrl-C. */
import { spawnSync } from "node:child_process";
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs";
import fs from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import { naming } from "../src/base/errors.js";
import { withFittingHint } from "../src/cli/command.js";
import { writeDurably } from "../src/cli/export.js";
import { createProgress } from "../src/cli/progress.js";
import { verifyImage } from "../src/cli/verify.js";
import { BLOB_NAME, FORMAT_VERSION, MACHINE_VERSION } from "../src/image/format.js";
import { HibernaculumError, openImage, save } from "../src/index.js";
import { bootMachine, scratch, sleep, until } from "./support.js";
import { hasTerminals, HIB, onTerminal } from "./terminals.js";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const KEPT = join(ROOT, `test/fixtures/images/format-${FORMAT_VERSION}-machine-${MACHINE_VERSION}`);
const RUNTIME = mkdtempSync(join(tmpdir(), "hib-offline-"));
process.env["HIB_RUNTIME_DIR"] = RUNTIME;
test.after.always(() => rmSync(RUNTIME, { recursive: true, force: true }));

interface Result {
  code: number | null;
  stdout: string;
  stderr: string;
}

function hib(cwd: string, args: string[], { stdout = "pipe" }: { stdout?: "pipe" | number } = {}): Result {
  const {
    status,
    stdout: out,
    stderr,
  } = spawnSync(process.execPath, [HIB, ...args], {
    cwd,
    encoding: "utf8",
    stdio: ["ignore", stdout, "pipe"],
  });
  return { code: status, stdout: out ?? "", stderr };
}

/** A directory with a copy of the kept image: kept.hib. */
async function withImage(t: ExecutionContext): Promise<string> {
  const directory = scratch(t);
  await fs.cp(KEPT, join(directory, "kept.hib"), { recursive: true });
  return directory;
}

test.serial(
  "verify reports files of the host that have changed, and those that it may not read; neither is a mismatch",
  async (t) => {
    const directory = scratch(t);
    const disk = join(directory, "disk");
    writeFileSync(disk, new Uint8Array(2 ** 20));
    const machine = await bootMachine(t, { ramBytes: 16 * 2 ** 20, vcpus: 1, disk });
    await save(machine, join(directory, "a.hib"));
    const same = hib(directory, ["verify", "a.hib"]);
    t.regex(same.stdout, /^ +files of the host +compared: 1, changed since the save: 0$/m);
    writeFileSync(disk, "x", { flag: "r+" });
    const changed = hib(directory, ["verify", "a.hib"]);
    t.is(changed.code, 0, changed.stderr);
    t.regex(changed.stdout, /^a\.hib: ok\n[\s\S]*changed since the save: 1\n +changed +\S+disk has other/m);
    const { files } = JSON.parse(hib(directory, ["verify", "a.hib", "--json"]).stdout);
    t.deepEqual(files, { compared: 1, changed: [{ path: disk, how: "has other contents" }], not_compared: [] });
    // Another user, who has not saved it here.
    const { XDG_STATE_HOME } = process.env;
    process.env["XDG_STATE_HOME"] = join(directory, "state");
    const other = hib(directory, ["verify", "a.hib"]);
    if (XDG_STATE_HOME === undefined) delete process.env["XDG_STATE_HOME"];
    else process.env["XDG_STATE_HOME"] = XDG_STATE_HOME;
    t.is(other.code, 0, other.stderr);
    t.regex(other.stdout.replaceAll(/\n {20}/g, " "), /^ +not compared +\S+disk; --allow \S+disk lets it be read$/m);
  },
);

test.serial("verify exits with 3 for an image whose header is gone, and with 1 for what never was one", async (t) => {
  const directory = await withImage(t);
  const blob = await fs.open(join(directory, "kept.hib", BLOB_NAME), "r+");
  await blob.write(new Uint8Array(4096), 0, 4096, 0);
  await blob.close();
  const damaged = hib(directory, ["verify", "kept.hib"]);
  t.is(damaged.code, 3);
  t.regex(damaged.stderr, /^hib: HIB_NOT_AN_IMAGE: [^\n]*\n$/);
  t.is(hib(directory, ["verify", "."]).code, 1);
});

test.serial("Ctrl-C in verify is answered by one line, and leaves the terminal as it was", async (t) => {
  if (!hasTerminals) return t.pass("skipped: no python3 here");
  const directory = scratch(t);
  const machine = await bootMachine(t, { ramBytes: 16 * 2 ** 20, vcpus: 1 });
  machine.spawn("zipf:pages=1000");
  await sleep(1500); // so many steps that recomputing them takes a while
  await save(machine, join(directory, "a.hib"));
  const verifying = onTerminal(t, directory, ["verify", "a.hib", "--replay"]);
  await until(() => verifying.stdout.includes("replaying"), "it recomputes");
  verifying.child.stdin!.write("\u0003");
  t.is(await verifying.ended, 130);
  t.regex(verifying.stdout, /hib: HIB_CANCELLED: interrupted; nothing was changed/);
  t.false(verifying.stdout.includes("\u001b[?7l"), "lines are wrapped as ever");
});

test.serial("a verification whose signal has fired is cancelled", async (t) => {
  const image = await openImage(KEPT);
  t.teardown(() => image.close());
  const options = { replay: true, progress: createProgress(), signal: AbortSignal.abort() };
  await t.throwsAsync(verifyImage(image, options), { code: "HIB_CANCELLED" });
});

test.serial("output that cannot be written, and a place that is not there, are named", async (t) => {
  const directory = await withImage(t);
  const full = openSync("/dev/full", "w");
  const inspected = hib(directory, ["inspect", "kept.hib"], { stdout: full });
  closeSync(full);
  t.is(inspected.code, 1);
  t.regex(inspected.stderr, /^hib: HIB_NO_SPACE: writing standard output: [^\n]*\n$/);
  const demo = hib(directory, ["demo", "--dir", "nothing"]);
  t.is(demo.code, 1);
  t.regex(demo.stderr, /^hib: HIB_IO: making a directory in nothing: [^\n]*\n$/);
});

test.serial("an exported file is on the disk, under its name, before the command says so", async (t) => {
  const file = join(scratch(t), "a.hibx");
  const events: string[] = [];
  const { open } = fs;
  t.teardown(() => {
    fs.open = open;
    syncBuiltinESMExports();
  });
  fs.open = async (path, ...rest) => {
    const handle = await open(path, ...rest);
    for (const name of ["sync", "datasync", "close"] as const) {
      const inner = handle[name].bind(handle);
      handle[name] = async () => {
        await inner();
        events.push(`${name} ${String(path)}`);
      };
    }
    return handle;
  };
  syncBuiltinESMExports();
  async function* pieces(): AsyncGenerator<Uint8Array> {
    yield new Uint8Array(4096);
  }
  t.is(await writeDurably(file, pieces()), 4096);
  const synced = events.filter((event) => !event.startsWith("close"));
  t.regex(synced[0]!, new RegExp(`sync ${file}$`));
  t.is(synced.at(-1), `sync ${dirname(file)}`);
});

test.serial("a command that only reads does not advise what it cannot do", (t) => {
  const advice = "put the file back, or accept what it holds now with --accept-changed-files";
  const what = "/f: page 3 is not what it was when the machine was saved";
  const changed = new HibernaculumError("HIB_FILES_CHANGED", `${what}; ${advice}`, { what });
  const { code, message } = withFittingHint(naming(changed, "a.hib")) as HibernaculumError;
  t.is(code, "HIB_FILES_CHANGED");
  t.is(message, `a.hib: ${what}; put the file back as it was, and try again`);
  const other = new Error("another");
  t.is(withFittingHint(other), other);
});
