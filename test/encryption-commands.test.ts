/** Keys on the command line, by files and by what somebody types; and on their way to the machine that is saved. */
import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import test, { type ExecutionContext } from "ava";
import { openImage } from "../src/image/directory.js";
import { Client } from "../src/server/client.js";
import { ControlServer } from "../src/server/server.js";
import { MachineService } from "../src/server/service.js";
import { bootMachine, MIB, scratch, until } from "./support.js";
import { hasTerminals, HIB, onTerminal, type Running } from "./terminals.js";

const RUNTIME = mkdtempSync(join(tmpdir(), "hib-keys-"));
process.env["HIB_RUNTIME_DIR"] = RUNTIME;
test.after.always(() => rmSync(RUNTIME, { recursive: true, force: true }));

/** A machine that can be saved by its name, in this process; until its test ends. */
async function serveMachine(t: ExecutionContext, name: string): Promise<void> {
  const machine = await bootMachine(t, { ramBytes: 16 * MIB, vcpus: 1, pageThreads: 1 });
  const service = new MachineService(name, machine, { onHibernated: () => undefined });
  service.ready = true;
  const server = await ControlServer.listen(name, service.handlers);
  t.teardown(() => server.close());
}

interface Result {
  code: number | null;
  stdout: string;
  stderr: string;
}

/** A line of the shell, without a terminal; `hib` is the command. */
function shell(cwd: string, line: string, env: Record<string, string> = {}): Promise<Result> {
  const script = `set -o pipefail; hib() { "${process.execPath}" "${HIB}" "$@"; }; ${line}`;
  return new Promise((resolve) => {
    const child = execFile("bash", ["-c", script], { cwd, env: { ...process.env, ...env } }, (_, stdout, stderr) =>
      resolve({ code: child.exitCode, stdout, stderr: stderr.replaceAll(/^[a-z ]+: \d+ %.*\n/gm, "") }),
    );
  });
}

test.serial("keys by files: a save, each command that opens the image, and what is said without them", async (t) => {
  await serveMachine(t, "keyed");
  const directory = scratch(t);
  writeFileSync(join(directory, "key"), randomBytes(32));
  writeFileSync(join(directory, "pass"), "correct horse\n");
  writeFileSync(join(directory, "empty"), "\n");
  const run = (line: string, env?: Record<string, string>): Promise<Result> => shell(directory, line, env);
  const saved = await run("hib save keyed a.hib --keep-running --encrypt --key-file <(cat key) --passphrase-file pass");
  t.is(saved.code, 0, saved.stderr);
  for (const keys of [[{ keyFile: join(directory, "key") }], [{ passphrase: "correct horse" }]])
    (await openImage(join(directory, "a.hib"), { keys })).close();
  const works = [
    "hib verify a.hib --key-file key",
    "hib inspect a.hib --key-file key --pid 1 || hib inspect a.hib --key-file key",
    "hib diff a.hib a.hib --key-file key",
    "hib export a.hib - --key-file key | hib import - b.hib --key-file key && hib verify b.hib --key-file key",
    "hib images a.hib | grep 'encrypted, opened by: key file or passphrase'",
  ];
  for (const line of works) {
    const { code, stderr } = await run(line);
    t.is(code, 0, `${line}: ${stderr}`);
  }
  t.is((await run("hib inspect a.hib", { HIB_PASSPHRASE_FILE: "pass" })).code, 0);
  const refused: [line: string, code: number, message: RegExp, env?: Record<string, string>][] = [
    ["hib verify a.hib", 1, /^hib: HIB_KEY_NEEDED: a\.hib is encrypted: .*header, lengths and the catalogue's checksum agree/],
    ["hib diff a.hib a.hib", 1, /^hib: HIB_KEY_NEEDED: /],
    ["hib resume a.hib --key-file empty", 2, /^hib: HIB_USAGE: .*32 to/],
    ["hib inspect a.hib", 1, /^hib: HIB_USAGE|^hib: HIB_IO: reading the key/, { HIB_PASSPHRASE_FILE: "none" }],
    ["hib verify a.hib --passphrase-file empty", 2, /^hib: HIB_USAGE: empty has no passphrase/],
    ["hib save keyed c.hib --encrypt", 1, /^hib: HIB_KEY_NEEDED: --encrypt needs a key/],
    ["hib save keyed c.hib --key-file key", 2, /^hib: HIB_USAGE: .*add --encrypt/],
    ["hib save keyed c.hib --encrypt --key-file empty", 2, /^hib: HIB_USAGE: .*32 to/],
  ];
  for (const [line, code, message, env] of refused) {
    const result = await run(line, env);
    t.regex(result.stderr, message, line);
    t.is(result.stderr.split("\n").length, 2, line);
    t.is(result.code, code, line);
  }
  t.deepEqual(readdirSync(directory).sort(), ["a.hib", "b.hib", "empty", "key", "pass"]);
});

test.serial("a request for a save has keys in its body, and malformed ones are refused", async (t) => {
  await serveMachine(t, "asked");
  const client = await Client.connect("asked");
  t.teardown(() => client.close());
  const path = join(scratch(t), "image");
  const save = (keys: unknown): Promise<unknown> =>
    client.request("save", { path, keepRunning: true, compression: "lz4", keys: keys as never });
  for (const keys of ["x", [1], [{}], [{ passphrase: 1 }], [{ keyFile: "AAAA", passphrase: "x" }], [{ keyFile: "AAAA" }], []])
    await t.throwsAsync(save(keys), { code: "HIB_USAGE" }, JSON.stringify(keys));
  const secret = randomBytes(100);
  await save([{ keyFile: secret.toString("base64") }]);
  (await openImage(path, { keys: [{ keyFile: secret }] })).close();
});

/** Types a line for each prompt as it comes. */
async function typed(running: Running, lines: [prompt: RegExp, keys: string][]): Promise<{ code: number; shown: string }> {
  let seen = 0;
  for (const [prompt, keys] of lines) {
    await until(() => prompt.test(running.stdout.slice(seen)), `${prompt} in ${JSON.stringify(running.stdout)}`);
    seen = running.stdout.length;
    running.child.stdin!.write(keys);
  }
  return { code: await running.ended, shown: running.stdout };
}

(hasTerminals ? test.serial : test.serial.skip)(
  "a passphrase is typed on the terminal, twice for a new image, and is not shown",
  async (t) => {
    await serveMachine(t, "typed");
    const directory = scratch(t);
    const hib = (...args: string[]): Running => onTerminal(t, directory, args);
    const [first, again] = [/Passphrase for the image: $/, /Once more: $/];
    const save = ["save", "typed", "a.hib", "--keep-running", "--encrypt"];
    const unlike = await typed(hib(...save), [
      [first, "correct horse\r"],
      [again, "correct house\r"],
    ]);
    t.regex(unlike.shown, /HIB_USAGE: what you typed was not the same twice/);
    const given = await typed(hib(...save), [
      [first, "\r"],
      [again, "\r"],
    ]);
    t.regex(given.shown, /HIB_USAGE: the passphrase is empty/);
    const cancelled = await typed(hib(...save), [[first, "corr\u0003"]]);
    t.not(cancelled.code, 0);
    t.deepEqual(readdirSync(directory), []);

    // Corrected by the keys for it; what is typed ahead is for the next prompt.
    const saved = await typed(hib(...save), [[first, "junk\u0015correct hoß\u007frse\rcorrect horse\r"]]);
    t.is(saved.code, 0, saved.shown);
    t.false(/corr|junk|horse/.test(saved.shown), saved.shown);
    const prompt = /Passphrase of a\.hib: $/;
    const opened = await typed(hib("verify", "a.hib"), [[prompt, "correct horse\r"]]);
    t.is(opened.code, 0, opened.shown);
    t.regex((await typed(hib("verify", "a.hib"), [[prompt, "correct hors\r"]])).shown, /HIB_KEY_WRONG/);
    t.regex((await typed(hib("verify", "a.hib"), [[prompt, "\u0004"]])).shown, /HIB_CANCELLED/);
  },
);
