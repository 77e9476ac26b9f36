/** The control socket: who may open it, what becomes of bad requests, of clients that go away, and of dead sockets. */
import { chmod, chown, mkdir, mkdtemp, readdir, rm, stat, symlink, writeFile } from "node:fs/promises";
import { once } from "node:events";
import { createConnection, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { spawnSync } from "node:child_process";
import anyTest, { type ExecutionContext, type TestFn } from "ava";
import { MACHINE_KERNEL_LOCK } from "../src/base/layout.js";
import { HibernaculumError, Machine } from "../src/index.js";
import { Client } from "../src/server/client.js";
import { LineReader, type MachineStatus, parseRequest, REQUEST_BYTES_MAX, RequestError } from "../src/server/protocol.js";
import {
  checkName,
  listNames,
  prepareRuntimeDirectory,
  probe,
  removeDead,
  runtimeDirectory,
  socketPath,
  sweepHidden,
} from "../src/server/runtime-directory.js";
import { ControlServer, type Handlers, refuseLive, type ServerOptions } from "../src/server/server.js";
import { MachineService } from "../src/server/service.js";

const test = anyTest as TestFn<{ directory: string }>;
const STATUS = { name: "fake" } as MachineStatus;

// The directory comes from the environment: one test at a time.
test.serial.beforeEach(async (t) => {
  t.context.directory = await mkdtemp(join(tmpdir(), "hib-server-"));
  process.env["HIB_RUNTIME_DIR"] = t.context.directory;
});
test.serial.afterEach.always((t) => rm(t.context.directory, { recursive: true, force: true }));

function never(): Promise<never> {
  return Promise.reject(new Error("not asked for in this test"));
}

async function listen(
  t: ExecutionContext<{ directory: string }>,
  handlers: Partial<Handlers> = {},
  options: ServerOptions = {},
): Promise<ControlServer> {
  const server = await ControlServer.listen(
    "m",
    { status: async () => STATUS, save: never, check: never, report: never, ...handlers },
    options,
  );
  t.teardown(() => server.close());
  return server;
}

/** A connection that says whatever it likes. */
class Raw {
  readonly socket: Socket;
  readonly lines: string[] = [];
  readonly closed: Promise<void>;

  constructor(path: string) {
    this.socket = createConnection(path);
    const reader = new LineReader((line) => this.lines.push(line));
    this.socket.on("data", (bytes) => reader.push(bytes));
    this.socket.on("error", () => undefined);
    this.closed = new Promise((resolve) => this.socket.once("close", () => resolve()));
  }

  async ask(text: string): Promise<{ id: number | null; ok?: boolean; error?: { code: string; message: string } }> {
    const before = this.lines.length;
    this.socket.write(`${text}\n`);
    while (this.lines.length === before) await sleep(1);
    return JSON.parse(this.lines[before]!);
  }
}

/** A socket that nobody listens on any more. */
function leaveDeadSocket(path: string): void {
  const script = `require("net").createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, "SIGKILL"))`;
  spawnSync(process.execPath, ["-e", script]);
}

test.serial("only the owner can open the socket", async (t) => {
  const before = process.umask();
  const server = await listen(t);
  t.is(process.umask(), before);
  t.is((await stat(server.path)).mode & 0o777, 0o600);
  t.deepEqual(await readdir(t.context.directory), ["m.sock"]);

  await chmod(t.context.directory, 0o750);
  await t.throwsAsync(prepareRuntimeDirectory(), { code: "HIB_IO", message: /open to others \(mode 750\)/ });
  await t.throwsAsync(Client.connect("m"), { code: "HIB_IO" });
  await t.throwsAsync(listNames(), { code: "HIB_IO" });
  await chmod(t.context.directory, 0o700);
  const link = join(t.context.directory, "link");
  await symlink(t.context.directory, link);
  process.env["HIB_RUNTIME_DIR"] = link;
  await t.throwsAsync(prepareRuntimeDirectory(), { code: "HIB_IO", message: /not a directory/ });
  process.env["HIB_RUNTIME_DIR"] = join(t.context.directory, "new");
  t.is((await stat(await prepareRuntimeDirectory())).mode & 0o777, 0o700);
});

test.serial("a runtime directory in a place of others is refused before anything is made", async (t) => {
  const place = join(t.context.directory, "place");
  await mkdir(place);
  process.env["HIB_RUNTIME_DIR"] = join(place, "mine");
  await chmod(place, 0o777);
  await t.throwsAsync(prepareRuntimeDirectory(), { code: "HIB_IO", message: /inside \S+place, which anybody may write to/ });
  await chmod(place, 0o1777);
  await prepareRuntimeDirectory();
  await chmod(place, 0o755);
  if (process.getuid?.() !== 0) return;
  await chown(place, 12345, 12345);
  await t.throwsAsync(prepareRuntimeDirectory(), { code: "HIB_IO", message: /place, which belongs to user 12345/ });
  await t.throwsAsync(Client.connect("m"), { code: "HIB_IO", message: /12345/ });
  const link = join(t.context.directory, "link");
  await symlink(place, link);
  process.env["HIB_RUNTIME_DIR"] = join(link, "mine");
  await t.throwsAsync(listNames(), { code: "HIB_IO", message: /place, which belongs to user 12345/ });
});

test.serial("a path that a socket has no room for: nothing is made", async (t) => {
  process.env["HIB_RUNTIME_DIR"] = join(t.context.directory, "d".repeat(90));
  const name = "a-machine-with-a-name";
  await t.throwsAsync(refuseLive(name), { code: "HIB_USAGE", message: /too long/ });
  await t.throwsAsync(ControlServer.listen(name, {} as Handlers), { code: "HIB_USAGE", message: /too long/ });
  await t.throwsAsync(Client.connect(name), { code: "HIB_USAGE", message: /too long/ });
  t.deepEqual(await readdir(t.context.directory), []);
});

test.serial("the runtime directory: the variable, then XDG_RUNTIME_DIR, then one of the user's own", (t) => {
  const { XDG_RUNTIME_DIR } = process.env;
  delete process.env["HIB_RUNTIME_DIR"];
  process.env["XDG_RUNTIME_DIR"] = "/run/user/7";
  t.is(runtimeDirectory(), "/run/user/7/hibernaculum");
  delete process.env["XDG_RUNTIME_DIR"];
  t.is(runtimeDirectory(), join(tmpdir(), `hibernaculum-${process.getuid?.()}`));
  if (XDG_RUNTIME_DIR !== undefined) process.env["XDG_RUNTIME_DIR"] = XDG_RUNTIME_DIR;
});

test.serial("names that are none, and paths that a socket has no room for", (t) => {
  for (const name of ["", ".", "..", ".m", "a/b", "a b", "-m", "é", "x".repeat(65)])
    t.throws(() => checkName(name), { code: "HIB_USAGE" }, name);
  for (const name of ["m", "0", "a.b_c-d", "x".repeat(64)]) t.notThrows(() => checkName(name));
  process.env["HIB_RUNTIME_DIR"] = `/tmp/${"d".repeat(80)}`;
  t.throws(() => socketPath("a-machine-with-a-name"), { code: "HIB_USAGE", message: /too long/ });
});

test.serial("bad requests are answered, and the connection goes on", async (t) => {
  const raw = new Raw((await listen(t)).path);
  const bad: [string, number | null][] = [
    ["{", null],
    ["", null],
    ["null", null],
    ["7", null],
    ["[]", null],
    ['{"command":"status"}', null],
    ['{"id":"1","command":"status"}', null],
    ['{"id":1}', 1],
    ['{"id":2,"command":"reboot"}', 2],
    ['{"id":3,"command":"constructor"}', 3],
    ['{"id":4,"command":"status","options":7}', 4],
    ['{"id":5,"command":"save"}', 5],
    ['{"id":6,"command":"save","options":{"path":"x","keepRunning":true,"compression":"lz4"}}', 6],
    ['{"id":7,"command":"save","options":{"path":"/x","keepRunning":1,"compression":"lz4"}}', 7],
    ['{"id":8,"command":"save","options":{"path":"/x","keepRunning":true,"compression":"zip"}}', 8],
    ['{"id":9,"command":"cancel"}', 9],
    ...["reserveFrames", "oracle", "onProgress", "__proto__", "signal"].map((name): [string, number] => [
      `{"id":11,"command":"save","options":{"path":"/x","keepRunning":true,"compression":"lz4","${name}":1}}`,
      11,
    ]),
    ['{"id":12,"command":"status","options":{"path":"/x"}}', 12],
    ['{"id":13,"command":"check","options":[1]}', 13],
  ];
  for (const [line, id] of bad) {
    const answer = await raw.ask(line);
    t.is(answer.id, id, line);
    t.is(answer.error?.code, "HIB_USAGE", line);
    t.false(answer.error?.message.includes("\n"));
  }
  t.deepEqual(await raw.ask('{"id":10,"command":"status"}'), { id: 10, ok: true, value: STATUS } as never);
});

test.serial("clients are limited by number: who is idle makes room, and is told", async (t) => {
  let finish = (): void => undefined;
  const waits = new Promise<void>((resolve) => (finish = resolve));
  const check = () => waits.then(() => ({ processes: [], problems: [] }));
  const { path } = await listen(t, { check }, { clientsMax: 4 });
  const idle: Raw[] = [];
  for (let i = 0; i < 50; i++) {
    idle.push(new Raw(path));
    await idle.at(-1)!.ask('{"id":1,"command":"status"}');
  }
  await Promise.all(idle.slice(0, 46).map(({ closed }) => closed));
  for (const { lines } of idle.slice(0, 46)) {
    t.is(lines.length, 2);
    t.regex(lines[1]!, /^\{"id":null,"ok":false,"error":\{"code":"HIB_BUSY","message":"machine m has 4 clients, [^"]*idle/);
  }
  // Those who wait for something stay, and whoever comes then is refused.
  const clients = await Promise.all(Array.from({ length: 4 }, () => Client.connect("m")));
  const checks = clients.map((client) => client.request("check", {}));
  await Promise.all(clients.map((client) => client.request("status", {})));
  const late = await Client.connect("m");
  await t.throwsAsync(late.request("status", {}), { code: "HIB_BUSY", message: /came last/ });
  finish();
  t.is((await Promise.all(checks)).length, 4);
  for (const client of clients) client.close();
});

test.serial("a client that says nothing for long is sent away, and one that waits for an answer is not", async (t) => {
  let finish = (): void => undefined;
  const waits = new Promise<void>((resolve) => (finish = resolve));
  const check = () => waits.then(() => ({ processes: [], problems: [] }));
  const { path } = await listen(t, { check }, { idle_ms: 20, tend_ms: 5 });
  const waiting = await Client.connect("m");
  const answer = waiting.request("check", {});
  const idle = new Raw(path);
  await idle.closed;
  t.regex(idle.lines.join("\n"), /^\{"id":null,"ok":false,"error":\{"code":"HIB_BUSY","message":"machine m has heard nothing/);
  finish();
  t.deepEqual(await answer, { processes: [], problems: [] });
  waiting.close();
});

test.serial("a request that is too long ends its connection and no other", async (t) => {
  const { path } = await listen(t);
  const raw = new Raw(path);
  raw.socket.write("x".repeat(REQUEST_BYTES_MAX + 1));
  await raw.closed;
  t.is(JSON.parse(raw.lines[0]!).error.code, "HIB_USAGE");
  const client = await Client.connect("m");
  t.deepEqual(await client.request("status", {}), STATUS);
  client.close();
});

test.serial("lines: split anywhere, and the limit is exact", (t) => {
  const lines: string[] = [];
  const reader = new LineReader((line) => lines.push(line), 8);
  for (const byte of Buffer.from("one\n\ntwo €\nlast")) reader.push(Buffer.of(byte));
  t.deepEqual(lines, ["one", "", "two €"]);
  reader.push(Buffer.from("1234\n"));
  t.is(lines.at(-1), "last1234");
  t.throws(() => reader.push(Buffer.from("123456789")), { code: "HIB_USAGE" });
  const other = new LineReader(() => undefined, 8);
  t.throws(() => other.push(Buffer.from("123456789\n")), { code: "HIB_USAGE" });
});

test.serial("parseRequest tells the id when it can", (t) => {
  t.deepEqual(parseRequest('{"id":1,"command":"status"}'), { id: 1, command: "status", options: {} });
  t.is(t.throws(() => parseRequest('{"id":5,"command":"x"}'), { instanceOf: RequestError }).id, 5);
});

test.serial("progress comes before the answer, errors keep their codes, and answers find their requests", async (t) => {
  await listen(t, {
    check: async (_, { progress }) => {
      for (let done = 0; done < 3; done++) progress({ done, total: 3 });
      await sleep(1);
      return { processes: [], problems: ["none"] };
    },
    save: async () => {
      throw new HibernaculumError("HIB_NO_SPACE", "full");
    },
    report: async () => {
      throw new TypeError("a bug");
    },
  });
  const client = await Client.connect("m");
  const seen: number[] = [];
  const check = client.request("check", {}, { onProgress: ({ done }) => seen.push(done) });
  t.deepEqual(await client.request("status", {}), STATUS, "answered while the other is under way");
  await t.throwsAsync(client.request("save", { path: "/x", keepRunning: true, compression: "lz4" }), {
    code: "HIB_NO_SPACE",
    message: "full",
  });
  await t.throwsAsync(client.request("report", {}), { code: "HIB_INTERNAL", message: "a bug" });
  t.deepEqual((await check).problems, ["none"]);
  t.deepEqual(seen, [0, 1, 2]);
  client.close();
});

test.serial("a callback that throws cancels its own request, and the connection stays", async (t) => {
  let aborts = 0;
  const answered = (late: boolean): Handlers["check"] => {
    return (_, { signal, progress }) =>
      new Promise((resolve, reject) => {
        signal.addEventListener("abort", () => {
          aborts++;
          if (late) resolve({ processes: [], problems: [] });
          else reject(new HibernaculumError("HIB_CANCELLED", "the check was cancelled"));
        });
        progress({ done: 0, total: 1 });
      });
  };
  await listen(t, { check: answered(false), report: answered(true) as never });
  const client = await Client.connect("m");
  const cause = new Error("of the caller");
  const onProgress = (): never => {
    throw cause;
  };
  const error = await t.throwsAsync(client.request("check", {}, { onProgress }), { code: "HIB_CANCELLED" });
  t.is(error?.message, "onProgress threw Error: of the caller: the check was cancelled");
  t.is(error?.cause, cause);
  const warned = once(process, "warning");
  t.deepEqual(await client.request("report", {}, { onProgress: onProgress as never }), { processes: [], problems: [] } as never);
  t.regex(((await warned) as [Error])[0].message, /^onProgress threw/);
  t.is(aborts, 2);
  t.deepEqual(await client.request("status", {}), STATUS);
  client.close();
});

test.serial("a signal cancels its own request, and a client that goes away cancels all of its", async (t) => {
  const aborted: string[] = [];
  const pending =
    (name: string): Handlers["check"] =>
    (_, { signal, progress }) =>
      new Promise((_resolve, reject) => {
        signal.addEventListener("abort", () => {
          aborted.push(name);
          reject(new HibernaculumError("HIB_CANCELLED", name));
        });
        progress({ done: 0, total: 1 });
      });
  await listen(t, { check: pending("check"), report: pending("report") as never });
  const client = await Client.connect("m");
  const abort = new AbortController();
  const report = client.request("report", {});
  const check = client.request("check", {}, { signal: abort.signal, onProgress: () => abort.abort() });
  await t.throwsAsync(check, { code: "HIB_CANCELLED", message: "check" });
  t.deepEqual(aborted, ["check"]);
  const gone = t.throwsAsync(report, { code: "HIB_NO_MACHINE" });
  client.close();
  await gone;
  while (aborted.length < 2) await sleep(1);
  t.deepEqual(aborted, ["check", "report"]);
});

test.serial("closing lets the answers out, and then the socket is gone", async (t) => {
  let finish = (): void => undefined;
  const server = await listen(t, {
    check: () => new Promise((resolve) => (finish = () => resolve({ processes: [], problems: ["x".repeat(1e6)] }))),
  });
  const client = await Client.connect("m");
  const check = client.request("check", {});
  await client.request("status", {});
  const closed = server.close();
  await sleep(50); // time enough to go wrong in
  finish();
  t.is((await check).problems[0]!.length, 1e6);
  await closed;
  t.deepEqual(await readdir(t.context.directory), []);
  await t.throwsAsync(Client.connect("m"), { code: "HIB_NO_MACHINE", message: /no machine named m/ });
});

test.serial("a name is taken while its machine lives, and no longer", async (t) => {
  await listen(t);
  await t.throwsAsync(listen(t), { code: "HIB_NAME_TAKEN" });
  t.deepEqual(await readdir(t.context.directory), ["m.sock"], "the one that failed leaves nothing");
  t.is(await probe(socketPath("m")), "alive");
});

test.serial("a socket that is removed is made anew, and its name is not free meanwhile", async (t) => {
  const notices: string[] = [];
  const server = await listen(t, {}, { tend_ms: 5, onNotice: (line) => notices.push(line) });
  const before = await Client.connect("m");
  for (const remove of [server.path, t.context.directory]) {
    await rm(remove, { recursive: true });
    while (notices.length === 0) await sleep(1);
    t.regex(notices.splice(0).join("\n"), /^the control socket \S+ was removed; it was made again$/);
    const client = await Client.connect("m");
    t.deepEqual(await client.request("status", {}), STATUS);
    client.close();
    t.deepEqual(await readdir(t.context.directory), ["m.sock"]);
    t.is((await stat(server.path)).mode & 0o777, 0o600);
  }
  t.deepEqual(await before.request("status", {}), STATUS, "who is connected stays so");
  before.close();
  await server.close();
  t.deepEqual(await readdir(t.context.directory), []);
});

(process.platform === "linux" ? test.serial : test.serial.skip)(
  "a name whose socket is gone is taken all the same",
  async (t) => {
    const server = await listen(t, {}, { tend_ms: 1e9 });
    await rm(server.path);
    await t.throwsAsync(listen(t), { code: "HIB_NAME_TAKEN" });
    await t.throwsAsync(refuseLive("m"), { code: "HIB_NAME_TAKEN" });
    await server.close();
    await (await listen(t)).close();
    t.false(await refuseLive("m"));
  },
);

test.serial("an end removes only its own socket", async (t) => {
  const server = await listen(t, {}, { tend_ms: 1e9 });
  await rm(server.path);
  await writeFile(server.path, "another's");
  await server.close();
  t.deepEqual(await readdir(t.context.directory), ["m.sock"]);
});

test.serial("what a process left that ended while its socket was on its way is swept", async (t) => {
  for (const name of [".00000001", ".00000002"]) leaveDeadSocket(join(t.context.directory, name));
  await writeFile(join(t.context.directory, ".00000003"), "no socket");
  await sweepHidden(t.context.directory, Date.now() + 30_000);
  t.is((await readdir(t.context.directory)).length, 3, "all are young");
  await sweepHidden(t.context.directory, Date.now() + 90_000);
  t.deepEqual(await readdir(t.context.directory), [".00000003"]);
});

test.serial("a dead socket is told from none, and only one of many gets its name", async (t) => {
  const path = socketPath("m");
  t.is(await probe(path), "absent");
  leaveDeadSocket(path);
  t.is(await probe(path), "dead");
  t.deepEqual(await listNames(), ["m"]);
  await t.throwsAsync(Client.connect("m"), { code: "HIB_NO_MACHINE", message: /died/ });
  t.deepEqual(await readdir(t.context.directory), []);

  leaveDeadSocket(path);
  const outcomes = await Promise.allSettled(Array.from({ length: 8 }, () => listen(t)));
  t.is(outcomes.filter(({ status }) => status === "fulfilled").length, 1);
  for (const outcome of outcomes) if (outcome.status === "rejected") t.is(outcome.reason.code, "HIB_NAME_TAKEN");
  t.deepEqual(await readdir(t.context.directory), ["m.sock"]);
});

test.serial("a live socket that is taken for a dead one is put back", async (t) => {
  const server = await listen(t);
  t.false(await removeDead(server.path));
  const client = await Client.connect("m");
  t.deepEqual(await client.request("status", {}), STATUS);
  client.close();
});

test.serial("somebody who answers nonsense is no machine", async (t) => {
  const server = createServer((socket) => socket.end("hello\n"));
  await new Promise<void>((resolve) => server.listen(socketPath("m"), resolve));
  t.teardown(() => server.close());
  const client = await Client.connect("m");
  await t.throwsAsync(client.request("status", {}), { code: "HIB_NO_MACHINE" });
});

test.serial("a machine does one thing at a time, and a save that is cancelled before it began leaves nothing", async (t) => {
  const machine = await Machine.boot({ ramBytes: 32 * 2 ** 20, vcpus: 1 });
  t.teardown(() => machine.powerOff());
  machine.spawn("zipf:pages=2000,rate=10000");
  const service = new MachineService("m", machine, { onHibernated: () => t.fail("nobody asked for it") });
  await listen(t, service.handlers);
  const client = await Client.connect("m");
  const snapshot = (name: string, signal?: AbortSignal) =>
    client.request(
      "save",
      { path: join(t.context.directory, name), keepRunning: true, compression: "lz4" },
      signal === undefined ? {} : { signal },
    );
  await t.throwsAsync(snapshot("early"), { code: "HIB_BUSY", message: /booting/ });
  service.ready = true;
  // Both are sent before the machine sees either.
  const [first, second] = await Promise.allSettled([snapshot("a.hib"), snapshot("b.hib")]);
  t.is(first.status, "fulfilled");
  t.like(second, { status: "rejected", reason: { code: "HIB_BUSY" } });
  await t.throwsAsync(snapshot("c.hib", AbortSignal.abort()), { code: "HIB_CANCELLED" });
  t.deepEqual((await readdir(t.context.directory)).sort(), ["a.hib", "m.sock"]);
  t.is(machine.busy, undefined);
  const [check, meanwhile, refused] = await Promise.allSettled([
    client.request("check", {}),
    client.request("status", {}),
    snapshot("d.hib"),
  ]);
  t.like(meanwhile, { value: { state: "checking" } });
  t.like(refused, {
    status: "rejected",
    reason: { code: "HIB_BUSY", message: "a check of this machine is under way; wait for it or cancel it" },
  });
  const { processes, problems } = check.status === "fulfilled" ? check.value : (t.fail(String(check.reason)) as never);
  t.deepEqual(problems, []);
  t.is(processes[0]!.name, "zipf");
  t.deepEqual(processes[0]!.differences, []);
  client.close();
});

test.serial("a machine that is off holds no lock: its processes can still be listed", async (t) => {
  for (let round = 0; round < 8; round++) {
    const machine = await Machine.boot({ ramBytes: 32 * 2 ** 20, vcpus: 2 });
    // Always in and out of the kernel, so that some vCPU is likely to be inside when it is told to end.
    for (const text of ["heap", "heap:seed=2", "stack:pages=64"]) machine.spawn(text);
    while (machine.processes().some(({ steps }) => steps === 0)) await sleep(1);
    await machine.powerOff();
    t.is(machine.control.load(MACHINE_KERNEL_LOCK), 0, `round ${round}`);
    t.is(machine.processes().length, 3);
  }
});

test.serial("check: a process that cannot be recomputed is told from one that is exact", async (t) => {
  const machine = await Machine.boot({ ramBytes: 32 * 2 ** 20, vcpus: 1 });
  t.teardown(() => machine.powerOff());
  const service = new MachineService("m", machine, { onHibernated: () => t.fail("nobody asked for it") });
  for (const text of ["fork", "incrementer:pages=4"]) machine.spawn(text);
  const { processes } = await service.handlers.check({}, { signal: new AbortController().signal, progress: () => undefined });
  const of = (name: string) => processes.filter((process) => process.name === name);
  for (const { not_recomputed } of of("fork")) t.regex(not_recomputed!, /depends on other processes/);
  t.true(of("fork").length > 0);
  t.deepEqual(
    of("incrementer").map(({ differences, not_recomputed }) => [differences, not_recomputed]),
    [[[], null]],
  );
});
