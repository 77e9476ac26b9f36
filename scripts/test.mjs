/**
 * Runs tests with ava: all; those of files that are named, as `test/resume.test.ts` or `resume`; or with --fast those that
 * together take less than a minute and touch every layer. Other options go to ava.
 */
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const FAST = ["choke-point", "scheduler", "machine", "memory-model", "diff", "stats", "programs", "stream"];

const compiled = (name) => join("dist", "test", `${basename(name).replace(/(\.test)?\.[tj]s$/, "")}.test.js`);
const options = [];
for (const argument of process.argv.slice(2)) {
  if (argument === "--fast") options.push(...FAST.map(compiled));
  else if (existsSync(join(ROOT, compiled(argument)))) options.push(compiled(argument));
  else options.push(argument);
}
// What saves note of their images is not to lie among the user's own.
const state = mkdtempSync(join(tmpdir(), "hib-state-"));
const env = { ...process.env, XDG_STATE_HOME: state };
const { status } = spawnSync(join(ROOT, "node_modules", ".bin", "ava"), options, { cwd: ROOT, stdio: "inherit", env });
rmSync(state, { recursive: true, force: true });
process.exit(status ?? 1);
