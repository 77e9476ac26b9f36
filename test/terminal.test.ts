/** What becomes of machines and clients whose terminal or log goes away. */
import { spawn, spawnSync } from "node:child_process";
import { closeSync, mkdirSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import test, { type ExecutionContext } from "ava";
import { Client } from "../src/server/client.js";
import { scratch, sleep, until } from "./support.js";
import { hasTerminals, HIB, onTerminal, Running } from "./terminals.js";

/** A machine whose standard output is a file that is given. */
function withOutput(t: ExecutionContext, cwd: string, file: string, args: string[]): Running {
  const descriptor = openSync(file, "a");
  const running = new Running(t, spawn(process.execPath, [HIB, ...args], { cwd, stdio: ["ignore", descriptor, "pipe"] }));
  closeSync(descriptor);
  return running;
}

async function connected(name: string, { child }: Running): Promise<Client> {
  for (;;) {
    if (child.exitCode !== null || child.signalCode !== null) throw new Error(`${name} ended`);
    const client = await Client.connect(name).catch(() => undefined);
    const status = await client?.request("status", {}).catch(() => undefined);
    if (status?.state === "running") return client!;
    client?.close();
    await sleep(20);
  }
}

const RUNTIME = mkdtempSync(join(tmpdir(), "hib-terminal-"));
process.env["HIB_RUNTIME_DIR"] = RUNTIME;
test.after.always(() => rmSync(RUNTIME, { recursive: true, force: true }));

test.serial("a machine whose log cannot be written runs on and can be saved and resumed so; it says it once", async (t) => {
  const directory = scratch(t);
  const first = withOutput(t, directory, "/dev/full", ["run", "--name", "full", "--ram", "32M", "progress:ms=5", "idle"]);
  const client = await connected("full", first);
  await sleep(300); // lines that are lost, and none of them ends it
  const path = join(directory, "full.hib");
  await client.request("save", { path, keepRunning: false, compression: "lz4" });
  client.close();
  t.is(await first.ended, 0, first.stderr);
  t.is(first.stderr.match(/cannot be written/g)?.length, 1, first.stderr);
  t.regex(first.stderr, /^hib: standard output cannot be written \([^\n]*ENOSPC[^\n]*\); the machine runs on/m);

  const second = withOutput(t, directory, "/dev/full", ["resume", path]);
  const again = await connected("full", second);
  again.close();
  await sleep(100);
  t.is(second.child.exitCode, null);
  second.child.kill("SIGTERM");
  t.is(await second.ended, 0, second.stderr);
  t.deepEqual(readdirSync(RUNTIME), []);
});

test.serial("a log whose disk was full goes on once there is room", async (t) => {
  const small = join(scratch(t), "small");
  mkdirSync(small);
  if (spawnSync("mount", ["-t", "tmpfs", "-o", "size=8k", "tmpfs", small]).status !== 0)
    return t.pass("skipped: nothing can be mounted here");
  t.teardown(() => spawnSync("umount", ["-l", small]));
  t.not(spawnSync("dd", ["if=/dev/zero", `of=${join(small, "other")}`]).status, 0, "it is full");
  const log = join(small, "log");
  const running = withOutput(t, small, log, ["run", "--name", "log", "--ram", "32M", "idle"]);
  (await connected("log", running)).close();
  await until(() => running.stderr.includes("cannot be written"), "it is told");
  rmSync(join(small, "other"));
  running.child.kill("SIGTERM");
  t.is(await running.ended, 0);
  t.is(readFileSync(log, "utf8"), "log: powered off\n");
});

test.serial("a closed terminal powers the machine off in order, and its save is finished first", async (t) => {
  if (!hasTerminals) return t.pass("skipped: no python3 here");
  const directory = scratch(t);
  const idle = onTerminal(t, directory, ["run", "--name", "closed", "--ram", "32M", "idle"]);
  (await connected("closed", idle)).close();
  idle.child.stdin!.end();
  t.is(await idle.ended, 0);
  t.deepEqual(readdirSync(RUNTIME), []);

  const saving = onTerminal(t, directory, ["run", "--name", "saving", "--ram", "128M", "random:pages=25000,content=random"]);
  const client = await connected("saving", saving);
  const path = join(directory, "a.hib");
  let closed = false;
  const onProgress = ({ phase }: { phase: string }): void => {
    if (phase === "stream" && !closed) saving.child.stdin!.end();
    closed ||= phase === "stream";
  };
  const report = await client.request("save", { path, keepRunning: true, compression: "lz4" }, { onProgress });
  client.close();
  t.true(closed);
  t.is(report.image.path, path);
  t.is(await saving.ended, 0);
  t.deepEqual(readdirSync(RUNTIME), []);
  t.deepEqual(readdirSync(directory), ["a.hib"]);
});

test.serial("a client whose terminal is closed cancels its save and ends without a crash", async (t) => {
  if (!hasTerminals) return t.pass("skipped: no python3 here");
  const directory = scratch(t);
  const machine = withOutput(t, directory, "/dev/null", [
    "run",
    "--name",
    "asked",
    "--ram",
    "256M",
    "zipf:pages=55000,content=text,rate=1000",
  ]);
  (await connected("asked", machine)).close();
  const client = onTerminal(t, directory, ["save", "asked", "a.hib"]);
  await until(() => readdirSync(directory).length > 0, "it is being saved");
  client.child.stdin!.end();
  t.is(await client.ended, 130);
  await until(() => readdirSync(directory).length === 0, "nothing is left");
  machine.child.kill("SIGTERM");
  t.is(await machine.ended, 0);
});

test.serial(
  "an error that nobody catches ends a machine in order: its save is cut off and told so, nothing is left",
  async (t) => {
    const directory = scratch(t);
    const boom = 'data:text/javascript,process.on("SIGUSR2",()=>{throw new Error("boom")})';
    const command = ["--import", boom, HIB, "run", "--name", "boom", "--ram", "128M", "random:pages=25000,content=random"];
    const machine = new Running(t, spawn(process.execPath, command, { cwd: directory, stdio: ["ignore", "ignore", "pipe"] }));
    const client = await connected("boom", machine);
    let sent = false;
    const onProgress = ({ phase }: { phase: string }): void => {
      if (phase === "stream" && !sent) machine.child.kill("SIGUSR2");
      sent ||= phase === "stream"; // a second error ends the process at once
    };
    const request = { path: join(directory, "a.hib"), keepRunning: true, compression: "lz4" } as const;
    await t.throwsAsync(client.request("save", request, { onProgress }), {
      code: "HIB_CANCELLED",
      message: /the machine was told to end and is powered off, and there is no image/,
    });
    client.close();
    t.is(await machine.ended, 1);
    t.regex(machine.stderr, /^hib: HIB_INTERNAL: boom /m);
    t.deepEqual(readdirSync(directory), []);
    t.deepEqual(readdirSync(RUNTIME), []);
  },
);
