/**
 * A host that has no descriptor left for a while, or few from the beginning: a save fails and the next one works, and no
 * process of the machine is told. Each machine is in a process of its own, which the shell limits.
 */
import { spawn } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { scratch } from "./support.js";

const LIBRARY = new URL("../src/index.js", import.meta.url).href;

interface Result {
  code: number | null;
  stdout: string;
  stderr: string;
}

/** Runs node with so many descriptors. */
function limited(descriptors: number, args: string[], env: Record<string, string> = {}): Promise<Result> {
  const child = spawn("sh", ["-c", `ulimit -n ${descriptors}; exec "$@"`, "sh", process.execPath, ...args], {
    env: { ...process.env, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let [stdout, stderr] = ["", ""];
  child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text));
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
  return limited(100, [script]).then((result) => {
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
