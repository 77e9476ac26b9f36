/**
 * What the source text must not contain: a second way to store to RAM, an import that points upward, or a circle of imports. Tracking is
 * complete only because every store of the host goes through physical.ts, and every one of the guest through the MMU.
 */
import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import test from "ava";
import { Control } from "../src/base/control.js";
import * as layout from "../src/base/layout.js";
import { RAM_BYTES_MAX, RAM_BYTES_MIN } from "../src/base/limits.js";
import { FRAME_BYTES, MAX_FRAMES, MAX_PROCESSES, MAX_VCPUS, RAM_BASE, TLB_ENTRIES } from "../src/base/layout.js";
import { createMemory } from "../src/vm/memory/physical.js";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));

/** Source files by path, without comments. */
const sources: ReadonlyMap<string, string> = new Map(
  ["src", "workers"]
    .flatMap((folder) => readdirSync(join(ROOT, folder), { recursive: true }).map((name) => join(folder, String(name))))
    .filter((path) => path.endsWith(".ts"))
    .sort()
    .map((path) => [path, readFileSync(join(ROOT, path), "utf8").replace(/\/\*.*?\*\/|(?<=^|\s)\/\/.*?$/gms, "")]),
);

/** How often a pattern is in each file that has it. */
function count(pattern: RegExp): Record<string, number> {
  const found = [...sources].map(([path, text]) => [path, [...text.matchAll(pattern)].length] as const);
  return Object.fromEntries(found.filter(([, times]) => times > 0));
}

/** Every use of `.buffer` there may be. Whoever adds one says here what it is a view of. */
const BUFFERS: Record<string, [times: number, what: string]> = {
  "src/base/control.ts": [2, "the control area: ends where RAM begins (tested below)"],
  "src/capture/capture.ts": [3, "the capture process's own memory; copies of the machine's list and of a word"],
  "src/image/catalogue-writer.ts": [1, "checksums of references"],
  "src/image/catalogue.ts": [1, "checksums of references"],
  "src/image/checksum.ts": [1, "hashes, packed"],
  "src/image/codec.ts": [2, "a payload that was read from a file, and hashes"],
  "src/image/format.ts": [3, "a header's page"],
  "src/image/host-files.ts": [1, "the sums of a file's blocks"],
  "src/image/image-memory.ts": [2, "a frame that was read from a file"],
  "src/restore/examine.ts": [3, "copies of frames"],
  "src/restore/first-frames.ts": [1, "a copy of a frame table"],
  "src/restore/frame-source.ts": [1, "a same-filled page"],
  "src/restore/page-loader.ts": [1, "a same-filled page"],
  "src/vm/memory/physical.ts": [4, "RAM: the choke point"],
  "src/vm/views/consistency.ts": [2, "copies of the frame table and of page tables"],
  "src/vm/personality/step/programs/contents.ts": [2, "templates of initial contents"],
  "src/vm/personality/step/programs/replay.ts": [1, "a replay's own memory"],
  "src/vm/memory/user-memory.ts": [1, "one float64"],
  "src/writer/page-writer.ts": [1, "the control area: as long as Control's view"],
};

test("only physical.ts has a view of RAM", (t) => {
  t.deepEqual(count(/\.buffer\b/g), Object.fromEntries(Object.entries(BUFFERS).map(([path, [times]]) => [path, times])));
  t.deepEqual(count(/memory\.buffer\b/g), {
    "src/base/control.ts": 2, // bounded
    "src/capture/capture.ts": 1, // not the machine's
    "src/vm/memory/physical.ts": 4,
    "src/writer/page-writer.ts": 1, // bounded
  });
  t.regex(sources.get("src/writer/page-writer.ts")!, /new Uint8Array\(memory\.buffer, 0, this\.#control\.words\.byteLength\)/);
});

test("the control area's views end where RAM begins", (t) => {
  const { words, floats } = new Control(createMemory(RAM_BYTES_MIN));
  t.is(words.byteOffset + words.byteLength, RAM_BASE);
  t.is(floats.byteOffset + floats.byteLength, RAM_BASE);
});

test("only physical.ts makes the memory, only core.ts an instance over it", (t) => {
  t.deepEqual(Object.keys(count(/wasm\.Memory|WebAssembly\.Memory/g)), ["src/vm/memory/physical.ts"]);
  t.deepEqual(Object.keys(count(/wasm\.Instance|WebAssembly\.Instance/g)), ["src/vm/memory/core.ts"]);
});

test("importing the library changes nothing in the process: only a machine's threads set flags of the runtime", (t) => {
  t.deepEqual(Object.keys(count(/setFlagsFromString\("/g)), ["workers/page-pool.ts"]);
  const url = JSON.stringify(new URL("../src/index.js", import.meta.url).href);
  const look = `import { runInNewContext } from "node:vm";
    const state = () => JSON.stringify([runInNewContext("typeof gc"), typeof gc, Object.keys(globalThis), process.eventNames(), process.execArgv]);
    const before = state();
    await import(${url});
    if (state() !== before) throw new Error(state() + " after " + before);`;
  t.is(execFileSync(process.execPath, ["--input-type=module", "--eval", look], { encoding: "utf8" }), "");
});

test("what stores to RAM is called where it may be", (t) => {
  const callers = (name: string) => Object.keys(count(new RegExp(`\\.${name}\\(`, "g")));
  for (const name of ["kernelStore8", "kernelStore32", "kernelStoreFloat64", "kernelZero", "kernelCopy", "beforeBulkStore"]) {
    t.true(
      callers(name).every((path) => path === "src/vm/memory/physical.ts"),
      `${name}: ${callers(name)}`,
    );
  }
  // The kernel's loops: blocks and leaves are changed in one room each.
  for (const name of ["insertFree", "removeFree", "useBlock", "freeBlock", "splitBlock", "shareBlock", "releaseBlock"])
    t.deepEqual(callers(name), ["src/vm/memory/buddy.ts"], name);
  for (const name of ["mapRun", "protectLeaves", "shareLeaves", "takeOutLeaves", "copyPages", "leafFlags"])
    t.deepEqual(callers(name), ["src/vm/memory/leaves.ts"], name);
  // Untracked stores: the direct load, frames that are missing, the reserve, and the atomic copy and restore while everything is stopped.
  t.deepEqual(callers("loadFrame"), ["src/restore/frame-source.ts", "src/restore/page-loader.ts", "src/resume-parts.ts"]);
  t.deepEqual(callers("loadPlace"), ["src/restore/page-loader.ts"]);
  t.deepEqual(callers("touch"), ["src/cow/reserve.ts"]);
  t.deepEqual(callers("scatter"), ["src/cow/atomic-copy.ts", "src/vm/engines/vcpu.ts"]);
  t.deepEqual(callers("gather"), ["src/cow/atomic-copy.ts", "src/vm/engines/vcpu.ts"]);
});

/** What each layer may import: a folder, or a file by its path. Node's own modules are everybody's. */
const LAYERS: Record<string, string[]> = {
  "src/base": ["better-sqlite3"], // its lock on a file
  "src/image": ["src/base", "better-sqlite3", "lz4-napi", "xxhash-wasm"],
  "src/vm/memory": ["src/base"],
  "src/vm/tasks": ["src/base", "src/vm/memory"],
  "src/vm/files": ["src/base", "src/vm/memory", "src/vm/tasks"],
  "src/vm/devices": ["src/base", "src/vm/memory", "src/vm/tasks"],
  "src/vm/views": ["src/base", "src/vm/memory", "src/vm/tasks", "src/vm/files", "src/vm/devices"],
  "src/vm/kernel.ts": ["src/base", "src/vm/memory", "src/vm/tasks", "src/vm/files"],
  "src/vm/personality": ["src/base", "src/vm/memory", "src/vm/tasks", "src/vm/files", "src/vm/devices", "src/vm/kernel.ts"],
  "src/vm/engines": ["src/base", "src/vm/memory", "src/vm/tasks", "src/vm/personality", "src/vm/kernel.ts"],
  "src/cow": ["src/base", "src/vm"],
  "src/writer": ["src/base", "src/image", "src/vm/memory/core.ts", "piscina"],
  "src/restore": [
    "src/base",
    "src/cow/claims.ts",
    "src/cow/reserve.ts",
    "src/vm/devices/index.ts",
    "src/image",
    "src/vm/memory/area.ts",
    "src/vm/views/consistency.ts",
    "src/vm/memory/core.ts",
    "src/vm/files/clean-pages.ts",
    "src/vm/files/descriptions.ts",
    "src/vm/files/pipe.ts",
    "src/vm/memory/physical.ts",
    "src/vm/tasks/process.ts",
    "src/vm/tasks/signals.ts",
    "src/vm/kernel.ts",
    "src/vm/memory/kernel-layout.ts",
    "src/vm/views/walker.ts",
  ],
  "src/reports/approaches.ts": [],
  "src/reports/save-report.ts": [
    "src/base",
    "src/vm",
    "src/cow",
    "src/image",
    "src/writer",
    "src/machine.ts",
    "src/reports/approaches.ts",
  ],
  "src/reports/save-progress.ts": ["src/base"],
  "src/reports/report-shape.ts": ["src/reports/save-report.ts"],
  "src/reports/resume-report.ts": ["src/base", "src/image", "src/restore"],
  "src/reports/machine-rows.ts": ["src/base", "src/image", "src/vm"],
  "src/reports/image-catalogue.ts": [
    "src/base",
    "src/image",
    "src/vm",
    "src/reports/machine-rows.ts",
    "src/reports/save-report.ts",
  ],
  "src/reports/image-diff.ts": ["src/base", "src/image", "src/vm"],
  "src/machine-options.ts": ["src/base", "src/vm/devices/block-requests.ts", "src/vm/files/path.ts"],
  "src/machine.ts": ["src/base", "src/vm", "src/cow", "src/writer", "src/machine-options.ts"],
  "src/save-files.ts": ["src/base", "src/vm", "src/image", "src/machine.ts"],
  "src/save-options.ts": [
    "src/base",
    "src/machine-options.ts",
    "src/cow/cancellation.ts",
    "src/reports/approaches.ts",
    "src/reports/save-progress.ts",
  ],
  "src/publish.ts": [
    "src/base",
    "src/cow",
    "src/image",
    "src/reports",
    "src/machine.ts",
    "src/vm/tasks/process.ts",
    "src/writer",
  ],
  "src/capture": [
    "src/base",
    "src/cow/claims.ts",
    "src/image",
    "src/vm/memory/core.ts",
    "src/vm/memory/physical.ts",
    "src/writer",
  ],
  "src/approaches": [
    "src/base",
    "src/capture",
    "src/vm",
    "src/cow",
    "src/image",
    "src/writer",
    "src/reports",
    "src/machine.ts",
    "src/save-files.ts",
    "src/save-options.ts",
    "src/publish.ts",
  ],
  "src/hibernate.ts": [
    "src/approaches",
    "src/base",
    "src/image/directory.ts",
    "src/image/encryption.ts",
    "src/machine.ts",
    "src/reports",
    "src/save-options.ts",
  ],
  "src/resume-options.ts": ["src/base", "src/machine-options.ts", "src/cow/cancellation.ts", "src/reports/resume-report.ts"],
  "src/named-paths.ts": ["src/base", "src/image", "src/vm/views/host-paths.ts"],
  "src/find-image.ts": [
    "src/named-paths.ts",
    "src/base",
    "src/image",
    "src/machine.ts",
    "src/reports/resume-report.ts",
    "src/resume-options.ts",
    "src/vm/files/path.ts",
  ],
  "src/resume-parts.ts": [
    "src/base",
    "src/vm",
    "src/cow",
    "src/image",
    "src/restore",
    "src/machine.ts",
    "src/reports/resume-report.ts",
    "src/find-image.ts",
    "src/residency.ts",
    "src/resume-options.ts",
  ],
  "src/resume.ts": [
    "src/base",
    "src/cow/cancellation.ts",
    "src/find-image.ts",
    "src/machine.ts",
    "src/reports/resume-report.ts",
    "src/resume-options.ts",
    "src/resume-parts.ts",
  ],
  "src/residency.ts": ["src/base", "src/image", "src/restore", "src/machine.ts", "src/reports/resume-report.ts"],
  "src/boot.ts": [
    "src/base",
    "src/image",
    "src/machine.ts",
    "src/resume.ts",
    "src/resume-options.ts",
    "src/reports/resume-report.ts",
  ],
  "src/server": ["src/base", "src/vm", "src/machine.ts", "src/hibernate.ts", "src/resume.ts", "src/reports"],
  "src/stats": [
    "src/base",
    "src/server",
    "src/reports/approaches.ts",
    "src/reports/save-report.ts",
    "src/reports/resume-report.ts",
    "cli-table3",
    "picocolors",
  ],
  "src/cli": ["src", "cli-progress", "commander", "picocolors"],
  "src/index.ts": ["src"],
  workers: [
    "src/base",
    "src/capture",
    "src/image/checksum.ts",
    "src/vm",
    "src/writer",
    "src/restore",
    "src/reports/image-catalogue.ts",
  ],
};

/** What a file imports, values or types: files by their path, packages by name. */
function importsOf(path: string, text: string): string[] {
  return [...text.matchAll(/\b(?:from |import |import\()"([\w@./:-]+)"/g)]
    .map(([, name]) => name!)
    .filter((name) => !name.startsWith("node:"))
    .map((name) => (name.startsWith(".") ? normalize(join(dirname(path), name)).replace(/\.js$/, ".ts") : name));
}

/** The first circle of a graph, its first member again at the end; empty if there is none. */
function findCircle(graph: ReadonlyMap<string, readonly string[]>): string[] {
  const done = new Set<string>();
  const visit = (node: string, above: readonly string[]): string[] => {
    if (above.includes(node)) return [...above.slice(above.indexOf(node)), node];
    if (done.has(node)) return [];
    for (const next of graph.get(node) ?? []) {
      const circle = visit(next, [...above, node]);
      if (circle.length > 0) return circle;
    }
    done.add(node);
    return [];
  };
  for (const node of graph.keys()) {
    const circle = visit(node, []);
    if (circle.length > 0) return circle;
  }
  return [];
}

test("no file imports itself by way of others, not even for a type", (t) => {
  t.deepEqual(
    findCircle(
      new Map([
        ["a", ["b", "c"]],
        ["b", []],
        ["c", ["d", "b"]],
        ["d", ["c"]],
      ]),
    ),
    ["c", "d", "c"],
  );
  t.deepEqual(findCircle(new Map([...sources].map(([path, text]) => [path, importsOf(path, text)]))), []);
});

test("imports only point down", (t) => {
  const isIn = (path: string, place: string) => path === place || path.startsWith(`${place}/`);
  for (const [path, text] of sources) {
    const layer = Object.keys(LAYERS).find((place) => isIn(path, place));
    if (layer === undefined) {
      t.fail(`${path} is in no layer`);
      continue;
    }
    for (const target of importsOf(path, text)) {
      t.true(
        [layer, ...LAYERS[layer]!].some((place) => isIn(target, place)),
        `${path} imports ${target}`,
      );
    }
  }
  t.true(sources.size > 40);
});

test("the areas of the control area do not overlap, and end below RAM", (t) => {
  const threads = MAX_VCPUS + 1;
  const bytes: Record<string, number> = {
    VCPU_AREA: threads * layout.VCPU_BYTES,
    CONTEXT_AREA: MAX_PROCESSES * layout.CONTEXT_BYTES,
    FAULT_COUNT_AREA: threads * layout.FAULT_SLOTS * layout.FAULT_KINDS * 4,
    FAULT_TIMELINE: threads * layout.TIMELINE_BINS * 4,
    FAULT_LATENCY: threads * layout.LATENCY_BINS * 4,
    STEP_TIMELINE: MAX_VCPUS * layout.TIMELINE_BINS * 4,
    LIST_FRAMES: MAX_FRAMES * 4,
    QUEUE_FRAMES: MAX_FRAMES * 4,
    QUEUE_PLACES: MAX_FRAMES * 4,
    TLB_AREA: MAX_VCPUS * (TLB_ENTRIES << layout.TLB_ENTRY_SHIFT),
    POOL_BASE: layout.POOL_BYTES,
  };
  const numbers = Object.entries(layout as Record<string, number>);
  const areas = numbers
    .filter(([name]) => /_AREA$|_BITMAP$|_TIMELINE$|^LIST_|^QUEUE_(FRAMES|PLACES)$|^FAULT_LATENCY$|^POOL_BASE$/.test(name))
    .map(([name, from]) => ({ name, from, to: from + (bytes[name] ?? layout.BITMAP_BYTES) }));
  t.is(areas.length, Object.keys(bytes).length + areas.filter(({ name }) => name.endsWith("_BITMAP")).length);
  const words = numbers.filter(([name]) => name.startsWith("MACHINE_")).map(([, at]) => at);
  t.is(new Set(words).size, words.length);
  areas.push(
    { name: "machine words", from: 0, to: Math.max(...words) + 8 },
    { name: "RAM", from: layout.RAM_BASE, to: Infinity },
  );
  areas.sort((a, b) => a.from - b.from);
  for (const [i, area] of areas.entries())
    t.true(i === 0 || areas[i - 1]!.to <= area.from, `${areas[i - 1]?.name} runs into ${area.name}`);
  t.is(areas.at(-1)!.name, "RAM");
  t.is(layout.FAULT_SLOTS, MAX_PROCESSES + 1);
  t.is(layout.BITMAP_BYTES * 8, MAX_FRAMES);
  t.true(RAM_BYTES_MAX <= MAX_FRAMES * FRAME_BYTES);
});
