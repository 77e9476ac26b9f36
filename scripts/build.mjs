/** Builds what has changed: the hot core if a file of it is newer, TypeScript incrementally; outputs without a source go. */
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const DIST = join(ROOT, "dist");

/** Numbers that TypeScript and the core have in common. */
const SHARED = ["src/base/layout.ts", "src/vm/memory/block-layout.ts"];

const run = (command, ...args) => {
  const { status, error } = spawnSync(join(ROOT, "node_modules", ".bin", command), args, { cwd: ROOT, stdio: "inherit" });
  if (error !== undefined) console.error(`${command}: ${error.message}; run "npm ci" first`);
  if (status !== 0) process.exit(status ?? 1);
};
const filesIn = (folder) =>
  existsSync(folder) ? readdirSync(folder, { recursive: true }).map((name) => join(folder, String(name))) : [];
const changed = (path) => statSync(path).mtimeMs;

for (const folder of ["src", "workers", "test", "bench"]) {
  for (const path of filesIn(join(DIST, folder))) {
    const source = join(ROOT, path.slice(DIST.length)).replace(/(\.d\.ts|\.js\.map|\.js)$/, ".ts");
    if (source.endsWith(".ts") && statSync(path).isFile() && !existsSync(source)) rmSync(path);
  }
}
for (const [output, entry] of [["core.wasm", "assembly/index.ts"], ["bench/loops.wasm", "assembly/loops.ts"]]) {
  const path = join(DIST, output);
  const sources = [...filesIn(join(ROOT, "assembly")), ...SHARED.map((path) => join(ROOT, path)), join(ROOT, entry)];
  if (existsSync(path) && changed(path) >= Math.max(...sources.map(changed))) continue;
  run("asc", entry, "--config", "assembly/asconfig.json", "--target", "release", "--outFile", path);
}
run("tsc", "-p", ".");
