/** Machines that give no answer: what their clients are told. Here they are sockets that a test plays. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { linkSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import { BLOB_NAME, CATALOGUE_NAME } from "../src/image/format.js";
import { Client } from "../src/server/client.js";
import { prepareRuntimeDirectory, socketPath } from "../src/server/runtime-directory.js";
import { scratch, until } from "./support.js";

const RUNTIME = mkdtempSync(join(tmpdir(), "hib-silence-"));
process.env["HIB_RUNTIME_DIR"] = RUNTIME;
test.after.always(() => rmSync(RUNTIME, { recursive: true, force: true }));
const HIB = fileURLToPath(new URL("../src/cli/hib.js", import.meta.url));

/** Something listens as a machine of that name would. */
async function play(t: ExecutionContext, name: string, onClient: (socket: Socket) => void): Promise<void> {
  await prepareRuntimeDirectory();
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket.on("error", () => undefined));
    onClient(socket);
  });
  server.listen(socketPath(name));
  await once(server, "listening");
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
}

interface Started {
  child: ChildProcess;
  said: { stdout: string; stderr: string };
  ended: Promise<number | string>;
}

function start(t: ExecutionContext, args: string[]): Started {
  const child = spawn(process.execPath, [HIB, ...args], { cwd: scratch(t), stdio: ["ignore", "pipe", "pipe"] });
  t.teardown(() => child.kill("SIGKILL"));
  const said = { stdout: "", stderr: "" };
  child.stdout.setEncoding("utf8").on("data", (text: string) => (said.stdout += text));
  child.stderr.setEncoding("utf8").on("data", (text: string) => (said.stderr += text));
  return { child, said, ended: once(child, "close").then(([code, signal]) => code ?? signal) };
}

test.serial("a client is told, once, that its machine is silent; it waits on, and gets a late answer", async (t) => {
  const got: string[] = [];
  await play(t, "slow", (socket) => {
    socket.setEncoding("utf8").on("data", (text: string) => got.push(...text.trim().split("\n")));
    void until(() => told > 0, "it is told").then(() => setTimeout(() => socket.write('{"id":1,"ok":true,"value":5}\n'), 500));
  });
  let told = 0;
  const client = await Client.connect("slow", { silence_ms: 100, onSilent: () => told++ });
  t.is((await client.request("status", {})) as unknown, 5);
  t.is(told, 1);
  t.is(JSON.parse(got[1]!).command, "cancel", "it was asked for a sign of life");
  client.close();
});

test.serial("a machine that answers what it is asked is not silent, however long a request takes", async (t) => {
  await play(t, "busy", (socket) => {
    let asked = 0;
    socket.setEncoding("utf8").on("data", (text: string) => {
      for (const line of text.trim().split("\n")) {
        const { id, command } = JSON.parse(line);
        if (command === "cancel") socket.write(`{"id":${id},"ok":true,"value":false}\n`);
        if (command === "cancel" && ++asked === 4) socket.write('{"id":1,"ok":true,"value":5}\n');
      }
    });
  });
  // Long enough for a host that is busy itself.
  const client = await Client.connect("busy", { silence_ms: 1000, onSilent: () => t.fail() });
  t.is((await client.request("status", {})) as unknown, 5);
  client.close();
});

test.serial("a request that is cancelled is given up if the machine gives no sign of life", async (t) => {
  await play(t, "mute", () => undefined);
  const client = await Client.connect("mute", { silence_ms: 100 });
  const abort = new AbortController();
  const asked = client.request("check", {}, { signal: abort.signal });
  abort.abort();
  await t.throwsAsync(asked, { code: "HIB_NO_ANSWER", message: /has not answered .* hib ps shows whether/ });
  client.close();
});

test.serial("a machine that closes the connection is there if something listens, and else is gone", async (t) => {
  await play(t, "short", (socket) => socket.destroy());
  const client = await Client.connect("short");
  await t.throwsAsync(client.request("status", {}), { code: "HIB_NO_ANSWER", message: /runs, but closed the connection/ });
  await play(t, "gone", (socket) => {
    rmSync(socketPath("gone"));
    socket.destroy();
  });
  const late = await Client.connect("gone");
  await t.throwsAsync(late.request("status", {}), { code: "HIB_NO_MACHINE", message: /went away/ });
});

test.serial("hib save says that its machine is silent, and ends when it is told to; hib ps lists the machine", async (t) => {
  let asked = 0;
  const heard: string[] = [];
  await play(t, "stopped", (socket) => {
    asked++;
    socket.setEncoding("utf8").on("data", (text: string) => heard.push(...text.trim().split("\n")));
  });
  const terminated = start(t, ["save", "stopped", "a.hib"]);
  await until(() => asked === 1, "it is asked");
  const waiting = start(t, ["save", "stopped", "b.hib"]);
  const listing = start(t, ["ps"]);
  await until(() => asked === 3, "all have asked");
  terminated.child.kill("SIGTERM");
  t.is(await terminated.ended, 1);
  t.regex(terminated.said.stderr, /^hib: HIB_NO_ANSWER: machine stopped has not answered[^\n]*; there is no image at a\.hib\n$/);
  t.is(await listing.ended, 1);
  t.regex(listing.said.stdout, /^stopped +does not answer: HIB_NO_ANSWER: /);
  await until(() => waiting.said.stderr !== "", "it is said");
  t.is(waiting.said.stderr, "machine stopped does not answer yet; Ctrl-C cancels the save, a second one ends this command\n");
  waiting.child.kill("SIGINT");
  await until(() => heard.filter((line) => /"cancel","options":{"request":1}/.test(line)).length === 2, "it cancels");
  waiting.child.kill("SIGINT");
  t.is(await waiting.ended, "SIGINT");
});

test.serial("a machine that dies while it is saved: the client says whether there is an image", async (t) => {
  await play(t, "dies", (socket) => {
    socket.once("data", (text: Buffer) => {
      const { path } = JSON.parse(String(text)).options as { path: string };
      if (path.endsWith("there.hib")) {
        mkdirSync(path);
        for (const name of [BLOB_NAME, CATALOGUE_NAME]) writeFileSync(join(path, name), "");
      }
      rmSync(socketPath("dies"));
      socket.destroy();
    });
  });
  const socket = socketPath("dies");
  const kept = join(scratch(t), "kept.sock");
  linkSync(socket, kept);
  for (const [path, what] of [
    ["a.hib", /went away before it answered; there is no image at a\.hib\n$/],
    ["there.hib", /went away before it answered; its image is at there\.hib; hib verify checks it\n$/],
  ] as const) {
    rmSync(socket, { force: true });
    linkSync(kept, socket);
    const saving = start(t, ["save", "dies", path]);
    t.is(await saving.ended, 1);
    t.regex(saving.said.stderr, what);
  }
});
