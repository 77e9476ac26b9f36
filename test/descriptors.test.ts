/**
 * A host that has no descriptor left for a while, or few from the beginning: a save fails and the next one works, and no
 * process of the machine is told. Each machine is in a process of its own, which the shell limits.
 */
import { spawn } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import { scratch } from "./support.js";

const HIB = fileURLToPath(new URL("../src/cli/hib.js", import.meta.url));
const LIBRARY = new URL("../src/index.js", import.meta.url).href;

interface Result {
  code: number | null;
  stdout: string;
  stderr: string;
}

/** Runs node with so many descriptors, until a machine in it runs. */
function limited(descriptors: number, args: string[], env: Record<string, string> = {}): Promise<Result> {
  const child = spawn("sh", ["-c", `ulimit -n ${descriptors}; exec "$@"`, "sh", process.execPath, ...args], {
    env: { ...process.env, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let [stdout, stderr] = ["", ""];
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    const ran = stdout.includes(": process 1");
    stdout += text;
    if (!ran && stdout.includes(": process 1")) child.kill("SIGTERM"); // it is powered off; a second signal would end it at once
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text));
  return new Promise((resolve) => child.once("close", (code) => resolve({ code, stdout, stderr })));
}

/** Runs a script that has the library, and `exhaust(left)`, which takes all but so many descriptors and returns what gives them back. */
function runScript(t: ExecutionContext, directory: string, body: string): Promise<Result> {
  const script = join(directory, "script.mjs");
  writeFileSync(
    script,
    `import { closeSync, openSync } from "node:fs";
     import { Machine, save } from ${JSON.stringify(LIBRARY)};
     function exhaust(left) {
       const taken = [];
       try { for (;;) taken.push(openSync("/dev/null")); } catch (error) { if (error.code !== "EMFILE") throw error; }
       taken.splice(0, left).forEach((fd) => closeSync(fd));
       return () => taken.splice(0).forEach((fd) => closeSync(fd));
     }
     const until = async (condition) => { while (!condition()) await new Promise((resolve) => setTimeout(resolve, 5)); };
     ${body}`,
  );
  return limited(200, [script]).then((result) => {
    if (result.code !== 0) t.log(result.stdout, result.stderr);
    return result;
  });
}

test("a save that fails for want of descriptors leaves the machine one that can be saved", async (t) => {
  const directory = scratch(t);
  const { code, stdout } = await runScript(
    t,
    directory,
    `const machine = await Machine.boot({ ramBytes: 16 * 2 ** 20, vcpus: 1, pageThreads: 1 });
     for (let left = 0; left < 12; left++) {
       const giveBack = exhaust(left);
       await save(machine, ${JSON.stringify(directory)} + "/" + left + ".hib", { keepRunning: true }).then(
         () => console.log("saved"),
         (error) => console.log(error.code),
       );
       giveBack();
     }
     await save(machine, ${JSON.stringify(join(directory, "last.hib"))}, { keepRunning: true });
     await machine.powerOff();`,
  );
  t.is(code, 0);
  t.true(stdout.includes("HIB_IO"), stdout);
  t.false(stdout.includes("HIB_INTERNAL"), stdout);
});

test("a host without descriptors is nothing that a process is told: files are made, listed, opened and written all the same", async (t) => {
  const directory = scratch(t);
  const { code, stdout } = await runScript(
    t,
    directory,
    `const mounts = [{ host: ${JSON.stringify(directory)}, path: "/d", readOnly: false }];
     const machine = await Machine.boot({ ramBytes: 64 * 2 ** 20, vcpus: 2, pageThreads: 1, mounts });
     for (const seed of [1, 2, 3]) machine.spawn("files:dir=/d,seed=" + seed);
     const steps = () => machine.processes().map(({ steps }) => steps);
     await until(() => steps().every((steps) => steps > 200));
     const giveBack = exhaust(0);
     const before = steps();
     await until(() => steps().every((steps, i) => steps > before[i] + 1000) || machine.processes().some(({ failure }) => failure));
     giveBack();
     console.log(JSON.stringify(machine.processes().map(({ failure }) => failure)));
     await machine.powerOff();`,
  );
  t.is(code, 0);
  t.is(stdout, '["","",""]\n');
});

test("few descriptors: a line and a code, or a machine that runs", async (t) => {
  const env = { HIB_RUNTIME_DIR: scratch(t) };
  for (const descriptors of [20, 24, 32, 48, 64]) {
    const { code, stdout, stderr } = await limited(descriptors, [HIB, "ps"], env);
    t.is(code, 1, `${descriptors}: ${stdout}${stderr}`);
    t.regex(stderr, /^hib: HIB_IO: too few file descriptors [^\n]+\n$/, String(descriptors));
  }
  // Its threads load their code at once: some find no descriptor, whichever come last.
  for (const descriptors of [75, 85, 95, 110]) {
    const args = ["run", "--name", "few", "--ram", "16M", "--cpus", "4", "idle"];
    const { code, stdout, stderr } = await limited(descriptors, [HIB, ...args], env);
    t.true(stdout.includes("few: process 1") ? code === 0 : code === 1, `${descriptors}: ${stdout}${stderr}`);
    t.regex(stderr, code === 0 ? /^$/ : /^hib: HIB_IO: [^\n]+\n$/, String(descriptors));
  }
});
