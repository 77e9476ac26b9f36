/**
 * `npm run mutants [PART OF A NAME]`: puts each fault of mutants.ts into a copy of the tree, builds it, and runs the tests that should
 * notice. Prints a score; ends with 1 if one survives, or if its text is no longer there. Takes minutes: not for CI.
 */
import { spawnSync } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { EQUIVALENT, type Mutant, MUTANTS } from "./mutants.js";

const ROOT = fileURLToPath(new URL("../../../", import.meta.url));
/** A test that does not end by then has noticed, too. */
const LIMIT_S = 120;
const LEFT_OUT = new Set(["node_modules", ".git", "dist", "bench"]);

/** `hung`: a test noticed by never coming to its end, none by what it says. */
type Fate = "killed" | "hung" | "survived" | "not found";

function run(tree: string, command: string, args: readonly string[]): Fate {
  // It ends whatever was started with it, too: threads that wait for ever do not end by themselves.
  const { status, stdout } = spawnSync("timeout", ["-s", "KILL", `${LIMIT_S}`, command, ...args], {
    cwd: tree,
    stdio: ["ignore", "pipe", "ignore"],
  });
  if (status === 0) return "survived";
  return status === null || status === 137 || /Timed out while running tests/.test(`${stdout}`) ? "hung" : "killed";
}

/** What tests say in this tree. */
function test(tree: string, { tests }: Pick<Mutant, "tests">): Fate {
  for (const { file, match } of tests) {
    const fate = run(tree, join(tree, "node_modules/.bin/ava"), [
      "--concurrency",
      "1",
      `dist/test/${file}.test.js`,
      ...(match === undefined ? [] : ["--match", match]),
    ]);
    if (fate !== "survived") return fate;
  }
  return "survived";
}

function fateOf(tree: string, mutant: Mutant): Fate {
  const path = join(tree, mutant.file);
  const original = readFileSync(path, "utf8");
  if (original.split(mutant.find).length !== 2) return "not found";
  try {
    writeFileSync(
      path,
      original.replace(mutant.find, () => mutant.replace),
    );
    // Types may complain of what a fault leaves unused: the code is written all the same. The core is not, if it is wrong.
    run(tree, "npm", ["run", "--silent", "build"]);
    return test(tree, mutant);
  } finally {
    writeFileSync(path, original);
  }
}

const tree = mkdtempSync(join(tmpdir(), "hib-mutants-"));
try {
  cpSync(ROOT, tree, { recursive: true, filter: (source) => source === ROOT || !LEFT_OUT.has(basename(source)) });
  symlinkSync(join(ROOT, "node_modules"), join(tree, "node_modules"));
  const wanted = MUTANTS.filter(({ file, breaks }) => `${file}: ${breaks}`.includes(process.argv[2] ?? ""));
  if (run(tree, "npm", ["run", "--silent", "build"]) !== "survived") throw new Error("the tree does not build as it is");
  for (const name of new Set(wanted.flatMap(({ tests }) => tests.map(({ file }) => file)))) {
    const tests = wanted.flatMap((mutant) => mutant.tests).filter(({ file }) => file === name);
    if (test(tree, { tests: tests.slice(0, 1) }) !== "survived") throw new Error(`${name} fails without any fault`);
  }
  const fates = wanted.map((mutant) => {
    const fate = fateOf(tree, mutant);
    process.stdout.write(`${fate.padEnd(15)} ${mutant.file}: ${mutant.breaks}\n`);
    return fate;
  });
  const killed = fates.filter((fate) => fate === "killed" || fate === "hung").length;
  process.stdout.write(`${killed} of ${fates.length} killed; ${EQUIVALENT.length} more are known to change nothing\n`);
  if (killed < fates.length) process.exitCode = 1;
} finally {
  rmSync(tree, { recursive: true, force: true });
}
