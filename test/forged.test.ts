/**
 * Images from somebody else, whose every checksum is right. Whatever a kernel would follow is found out before the image is
 * used: by `hib verify` and by a resume alike, in one line with a code; `inspect` and `diff` end, too. What is not followed is
 * harmless: a machine that has it runs on.
 */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { randomInt } from "node:crypto";
import { mkdtempSync } from "node:fs";
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import { describeMemory, findProcess } from "../src/cli/inspect-process.js";
import { openImage } from "../src/image/directory.js";
import { FRAME_BYTES, PTE_PPN_SHIFT, PTE_V } from "../src/base/layout.js";
import { walkAreas } from "../src/vm/memory/area.js";
import * as K from "../src/vm/memory/kernel-layout.js";
import { findLeaf, walkTables } from "../src/vm/memory/page-table.js";
import { walkFds } from "../src/vm/files/descriptions.js";
import { walkHostInodes } from "../src/vm/files/inode.js";
import { walkDirectory } from "../src/vm/files/tree.js";
import { CODE_BASE } from "../src/vm/personality/step/program.js";
import { listProcesses, type Process } from "../src/vm/tasks/process.js";
import { SIGKILL, SIGSTOP, SIGTERM } from "../src/vm/tasks/signals.js";
import { blocksOfKind } from "../src/vm/views/walker.js";
import { diff, Host, inspect, makeImage, verify } from "./fixtures/forged.js";
import { Forgery } from "./forger.js";
import { scratch } from "./support.js";

const directory = mkdtempSync(join(tmpdir(), "hib-test-"));
let original: string;
let forgery: Forgery;
let host: Host;

test.before("an image that has something of everything", async () => {
  original = await makeImage(directory);
  forgery = await Forgery.of(original);
  host = new Host(directory);
});

test.after.always(async () => {
  await host.powerOff();
  await rm(directory, { recursive: true });
});

/** What is forged, by what it must be refused for; or /ok/ if a machine that has it is none the worse. */
interface Case {
  what: string;
  forge(f: Forgery): void;
  says: RegExp;
}

// ---- where things are ----

const slotAt = (f: Forgery, { slot }: Process): number => K.processAddress(f, slot);
const named = (f: Forgery, name: string): Process => listProcesses(f).find(({ text }) => text.startsWith(name))!;
const some = (f: Forgery): Process => named(f, "zipf");
const word = (f: Forgery, address: number): number => f.load32(address) >>> 0;
/** An address in the last frame of RAM, and one beyond. */
const beyond = (f: Forgery): number => f.frames * FRAME_BYTES + 64;
const areasOf = (f: Forgery, process: Process) => [...walkAreas(f, process.areas)];
const sharedArea = (f: Forgery) =>
  listProcesses(f)
    .flatMap((process) => areasOf(f, process))
    .find(({ object }) => object !== 0)!;
const pipeOf = (f: Forgery): number =>
  [...walkFds(f, named(f, "pipes").slot)].map((fd) => fd.description).find(({ kind }) => kind === "reader" || kind === "writer")!
    .behind;
const aFd = (f: Forgery) => [...walkFds(f, named(f, "files").slot)].find((fd) => fd.description.kind === "inode")!.description;
const freeObject = (f: Forgery): { head: number; at: number } => {
  for (let sizeClass = 0; sizeClass < K.KERNEL_HEAP_CLASSES; sizeClass++) {
    const head = K.KERNEL_HEAP_HEADS + sizeClass * 4;
    if (f.load32(head) !== 0) return { head, at: word(f, head) };
  }
  throw new Error("no object of the kernel heap is free");
};
const entryAt = (f: Forgery, frame: number): number => K.kernelLayout(f.frames).frameTable + frame * K.FRAME_ENTRY_BYTES;
const requests = (f: Forgery): number => f.load32(K.KERNEL_BLOCK) * FRAME_BYTES;

/** Stores each value in turn to a word, as a case each. */
const words = (what: string, at: (f: Forgery) => number, values: Record<string, (f: Forgery) => number>, says: RegExp): Case[] =>
  Object.entries(values).map(([how, value]) => ({ what: `${what}: ${how}`, forge: (f) => f.store32(at(f), value(f) | 0), says }));
const floats = (what: string, at: (f: Forgery) => number, values: readonly number[], says: RegExp): Case[] =>
  values.map((value) => ({ what: `${what}: ${value}`, forge: (f) => f.storeFloat64(at(f), value), says }));

/** Addresses that lead nowhere. */
const WILD: Record<string, (f: Forgery) => number> = {
  "beyond RAM": beyond,
  "with the sign bit": () => 0x80000040,
  "the control area": () => -0x1000000,
  "not aligned": (f) => sharedArea(f).at + 2,
  "the kernel page": () => 0x40,
  "a process's page": (f) => (f.load32(findLeaf(f, some(f).root, CODE_BASE)) >>> PTE_PPN_SHIFT) * FRAME_BYTES,
};
const WILD_FRAMES: Record<string, (f: Forgery) => number> = {
  "beyond RAM": (f) => f.frames,
  "with the sign bit": () => -1,
  "the last that there can be": () => 2 ** 22 - 1,
  "the kernel's tables": () => 1,
  "a page table": (f) => some(f).root,
};
const COUNTS = [NaN, -1, Infinity, -Infinity];
const TIMES = [NaN, -1, -Infinity];
/** Sets with a signal that nobody can mask, or that there is not. */
const MASKS: Record<string, () => number> = { SIGKILL: () => 1 << SIGKILL, SIGSTOP: () => 1 << SIGSTOP, "signal 0": () => 1 };

const REFUSED: Case[] = [
  // the kernel page
  ...words(
    "slots used",
    () => K.KERNEL_SLOTS_USED,
    { "-1": () => -1, "513": () => 513, "2^31": () => 2 ** 31 },
    /process table says/,
  ),
  ...words("next pid", () => K.KERNEL_NEXT_PID, { "-5": () => -5, "0": () => 0, "one that there is": () => 2 }, /pid/),
  ...words("frames of RAM", () => K.KERNEL_FRAMES, { "2^31 - 1": () => 2 ** 31 - 1, "-1": () => -1 }, /kernel page/),
  ...words("arenas", () => K.KERNEL_ARENAS, { "1000": () => 1000 }, /kernel page/),
  ...words("console", () => K.KERNEL_CONSOLE, WILD_FRAMES, /console/),
  ...words("entropy pool", () => K.KERNEL_ENTROPY, WILD_FRAMES, /entropy/),
  ...words(
    "entropy pool",
    () => K.KERNEL_ENTROPY,
    { "the console's frame": (f) => f.load32(K.KERNEL_CONSOLE) },
    /something else/,
  ),
  ...words("requests to the disk", () => K.KERNEL_BLOCK, WILD_FRAMES, /requests to the disk/),
  ...words("the disk's state", () => K.KERNEL_BLOCK_STATE, WILD_FRAMES, /disk's state/),
  ...floats("clock", () => K.KERNEL_CLOCK, COUNTS, /clock/),
  ...floats("least virtual run time", () => K.KERNEL_VRUNTIME, [NaN, Infinity], /virtual run time/),

  // devices
  ...words(
    "console ring",
    (f) => f.load32(K.KERNEL_CONSOLE) * FRAME_BYTES,
    { "-1": () => -1, "2^31 - 1": () => 2 ** 31 - 1 },
    /ring/,
  ),
  ...words("entropy left", (f) => f.load32(K.KERNEL_ENTROPY) * FRAME_BYTES, { "-1": () => -1, "1024": () => 1024 }, /entropy/),
  ...words(
    "path of the disk",
    (f) => f.load32(K.KERNEL_BLOCK_STATE) * FRAME_BYTES,
    { "-1": () => -1, "4093": () => 4093 },
    /disk's state/,
  ),
  ...words("state of a request", requests, { "7": () => 7, "2": () => 2 }, /request 0 to the disk/),
  {
    what: "data of a request",
    forge: (f) => {
      f.store32(requests(f), 1);
      f.store32(requests(f) + 0x10, f.frames + 5);
    },
    says: /data of request 0/,
  },

  // the kernel heap
  ...words("head of a free list of the heap", (f) => freeObject(f).head, WILD, /free object/),
  ...words("a free list of the heap", (f) => freeObject(f).at, WILD, /free object/),
  ...words("a free list of the heap", (f) => freeObject(f).at, { "in a circle": (f) => freeObject(f).at }, /free object.*twice/),
  ...words("a free list of the heap", (f) => freeObject(f).at, { "an area": (f) => areasOf(f, some(f))[0]!.at }, /free object/),

  // processes
  ...words("state", (f) => slotAt(f, some(f)) + K.PROCESS_STATE, { "99": () => 99, "-1": () => -1, "10": () => 10 }, /in state/),
  ...words(
    "pid",
    (f) => slotAt(f, some(f)) + K.PROCESS_PID,
    { "0": () => 0, "-1": () => -1, "another's": (f) => named(f, "files").pid },
    /pid/,
  ),
  ...words(
    "parent",
    (f) => slotAt(f, some(f)) + K.PROCESS_PARENT,
    { itself: (f) => some(f).pid, nobody: () => 2 ** 30 },
    /parent/,
  ),
  ...words(
    "length of the text",
    (f) => slotAt(f, some(f)) + K.PROCESS_TEXT_BYTES,
    { "-1": () => -1, "2^31": () => 2 ** 31, "4097": () => 4097 },
    /text has/,
  ),
  ...words("nice value", (f) => slotAt(f, some(f)) + K.PROCESS_NICE, { "1000": () => 1000, "-2^31": () => -(2 ** 31) }, /nice/),
  ...words("fd table", (f) => slotAt(f, some(f)) + K.PROCESS_FDS, WILD_FRAMES, /fds/),
  ...floats("steps", (f) => slotAt(f, some(f)) + K.PROCESS_STEPS, COUNTS, /steps/),
  ...floats("rate", (f) => slotAt(f, some(f)) + K.PROCESS_RATE, COUNTS, /rate/),
  ...floats("alarm", (f) => slotAt(f, some(f)) + K.PROCESS_ALARM, TIMES, /alarm/),
  ...floats("interval", (f) => slotAt(f, some(f)) + K.PROCESS_ALARM_INTERVAL, TIMES, /alarm/),
  ...floats("virtual run time", (f) => slotAt(f, some(f)) + K.PROCESS_VRUNTIME, [NaN, Infinity], /virtual run time/),
  ...words(
    "status of a living process",
    (f) => slotAt(f, some(f)) + K.PROCESS_STATUS,
    { "-1": () => -1, "that it exited": () => 0x100, "that no signal stopped it": () => 0x7f },
    /status of process/,
  ),
  ...words("flags", (f) => slotAt(f, some(f)) + K.PROCESS_FLAGS, { "-1": () => -1, "4": () => 4 }, /flags/),
  {
    what: "an orphan with a parent",
    forge: (f) => {
      f.store32(slotAt(f, some(f)) + K.PROCESS_FLAGS, K.FLAG_ORPHAN);
      f.store32(slotAt(f, some(f)) + K.PROCESS_PARENT, named(f, "files").pid);
    },
    says: /lost its parent/,
  },
  ...words("mask", (f) => slotAt(f, some(f)) + K.PROCESS_MASK, MASKS, /the mask of process/),
  ...words(
    "mask to go back to",
    (f) => slotAt(f, some(f)) + K.PROCESS_SUSPENDED_MASK,
    { SIGKILL: () => 1 | (1 << SIGKILL), "not marked": () => 1 << SIGTERM },
    /goes back/,
  ),
  ...words("mask for a handler", (f) => slotAt(f, some(f)) + K.PROCESS_HANDLER_MASKS + 31 * 4, MASKS, /handler of signal 31/),

  ...words("x0", (f) => slotAt(f, some(f)) + K.PROCESS_REGISTERS, { "1": () => 1 }, /x0/),

  // areas and page tables
  ...words("areas", (f) => slotAt(f, some(f)) + K.PROCESS_AREAS, WILD, /area|refers/),
  ...words("next area", (f) => areasOf(f, some(f))[0]!.at + 16, WILD, /area|refers/),
  ...words(
    "areas in a circle",
    (f) => areasOf(f, some(f)).at(-1)!.at + 16,
    { "of all": (f) => some(f).areas, "of one": (f) => areasOf(f, some(f)).at(-1)!.at },
    /no end|twice/,
  ),
  ...words(
    "kind of an area",
    (f) => areasOf(f, some(f))[0]!.at + 12,
    { "9": () => 9, "0": () => 0, "-1": () => -1 },
    /of a kind/,
  ),
  ...words("memory object", (f) => sharedArea(f).at + 24, WILD, /memory object|beyond|refers|held by/),
  ...words(
    "page of a memory object",
    (f) => sharedArea(f).at + 28,
    { "-1": () => -1, "2^31 - 1": () => 2 ** 31 - 1 },
    /begins at page/,
  ),
  ...words("table of a memory object", (f) => sharedArea(f).object + 4, WILD_FRAMES, /memory object|inode/),
  ...words(
    "root table",
    (f) => slotAt(f, some(f)) + K.PROCESS_ROOT,
    {
      ...WILD_FRAMES,
      "a page table": (f) => [...walkTables(f, some(f).root)][1]!,
      none: () => 0,
      "another's": (f) => named(f, "files").root,
    },
    /page table|refers|maps/,
  ),
  ...words(
    "first entry of the root table",
    (f) => some(f).root * FRAME_BYTES,
    {
      itself: (f) => (some(f).root << PTE_PPN_SHIFT) | PTE_V,
      "beyond RAM": (f) => (f.frames << PTE_PPN_SHIFT) | PTE_V,
      "not valid, and not zero": () => 0x400,
      "a leaf of 1 GiB": () => 0x1f,
    },
    /page table|beyond|refers|twice/,
  ),
  ...words(
    "a leaf",
    (f) => findLeaf(f, some(f).root, CODE_BASE),
    {
      "beyond RAM": (f) => (f.frames << PTE_PPN_SHIFT) | 0x1b,
      "the kernel page": () => 0x1b,
      "a page table": (f) => (some(f).root << PTE_PPN_SHIFT) | 0x1b,
    },
    /maps frame|refers|text has/,
  ),
  ...words(
    "upper half of a leaf",
    (f) => findLeaf(f, some(f).root, CODE_BASE) + 4,
    { "1": () => 1 },
    /neither a table nor a leaf/,
  ),
  ...words(
    "a table of the last level",
    (f) => [...walkTables(f, some(f).root)].at(-1)! * FRAME_BYTES + 511 * 8,
    { "a table": (f) => (some(f).root << PTE_PPN_SHIFT) | PTE_V },
    /neither/,
  ),

  // the frame table
  ...words(
    "header in the middle of a block",
    (f) => entryAt(f, freeBlock(f) + 1),
    { "a used block": () => K.BLOCK_USED | (5 << 8) | (1 << 16), "a free block": () => K.BLOCK_FREE },
    /lies in the block/,
  ),
  ...words(
    "header of a block",
    (f) => entryAt(f, some(f).root),
    {
      "kind 300": () => K.BLOCK_USED | (300 << 16),
      "order 200": () => K.BLOCK_USED | (200 << 8) | (2 << 16),
      free: () => K.BLOCK_FREE,
    },
    /frame|free/,
  ),
  ...words(
    "the kernel's frames",
    (f) => entryAt(f, 0),
    { "a process's": (f) => (f.load32(entryAt(f, 0)) & 0xffff) | (K.KIND_USER << 16) },
    /kernel's tables/,
  ),
  ...words(
    "free list",
    (f) => entryAt(f, freeBlock(f)) + K.FRAME_NEXT,
    { itself: (f) => freeBlock(f) + 1, "beyond RAM": (f) => f.frames + 1, "with the sign bit": () => -7 },
    /free list|point back|free blocks/,
  ),

  // files
  ...words("root of the file system", () => K.KERNEL_ROOT, WILD, /inode|refers|path|root/),
  ...words("mounts", () => K.KERNEL_MOUNTS, WILD, /mount|path|refers/),
  ...words("mounts", (f) => word(f, K.KERNEL_MOUNTS), { "in a circle": (f) => word(f, K.KERNEL_MOUNTS) }, /no end|twice/),
  ...words(
    "length of a path",
    (f) => word(f, word(f, K.KERNEL_MOUNTS) + 8),
    { "-1": () => -1, "2^31": () => 2 ** 31, "2001": () => 2001 },
    /path has/,
  ),
  ...words("files of the host", () => K.KERNEL_HOST_INODES, { ...WILD, none: () => 0 }, /inode|refers|path|list|held/),
  ...words("files of the host", (f) => hostInode(f) + 52, { "in a circle": hostInode }, /no end|inode/),
  ...words("type of an inode", (f) => hostInode(f) + 4, { "9": () => 9, "-1": () => -1 }, /type|inode/),
  ...words("entries of a directory", (f) => word(f, K.KERNEL_ROOT) + 12, WILD, /name|refers/),
  ...words(
    "entries of a directory",
    (f) => word(f, word(f, K.KERNEL_ROOT) + 12),
    { "in a circle": (f) => word(f, word(f, K.KERNEL_ROOT) + 12) },
    /no end|twice/,
  ),
  {
    what: "a directory in itself",
    forge: (f) => {
      const root = word(f, K.KERNEL_ROOT);
      f.store32([...walkDirectory(f, root)][0]!.at + 4, root);
      f.store32(root, 2); // as often as it is held
    },
    says: /two names|held/,
  },
  ...words(
    "length of a name",
    (f) => word(f, word(f, K.KERNEL_ROOT) + 12) + 8,
    { "-1": () => -1, "0": () => 0, "256": () => 256 },
    /name/,
  ),
  ...words(
    "file description",
    (f) => (f.load32(slotAt(f, named(f, "files")) + K.PROCESS_FDS) - 1) * FRAME_BYTES,
    WILD,
    /description|refers/,
  ),
  ...words("kind of a description", (f) => aFd(f).at + 4, { "9": () => 9, "-1": () => -1 }, /description/),
  ...words("what is behind a description", (f) => aFd(f).at + 8, WILD, /inode|refers|path|held/),
  ...floats("position", (f) => aFd(f).at + 16, [...COUNTS, 0.5, 2 ** 60], /position/),
  ...words("ring of a pipe", (f) => pipeOf(f) + 8, WILD_FRAMES, /ring of pipe/),
  ...words("begin of a pipe", (f) => pipeOf(f) + 12, { "-1": () => -1, "4096": () => 4096 }, /pipe/),
  ...words("bytes in a pipe", (f) => pipeOf(f) + 16, { "-1": () => -1, "4097": () => 4097 }, /pipe/),
];

/** Words that are compared and never followed, and what only the process itself looks at. */
const HARMLESS: Case[] = [
  ...words("channel", (f) => slotAt(f, some(f)) + K.PROCESS_CHANNEL, WILD, /ok/),
  ...words("vCPU", (f) => slotAt(f, some(f)) + K.PROCESS_VCPU, { "99": () => 99, "-2^31": () => -(2 ** 31) }, /ok/),
  ...words("group", (f) => slotAt(f, some(f)) + K.PROCESS_GROUP, { "-1": () => -1, "2^31 - 1": () => 2 ** 31 - 1 }, /ok/),
  ...words("pending signals", (f) => slotAt(f, some(f)) + K.PROCESS_PENDING, { all: () => -1 }, /ok/),
  ...floats("time to wake", (f) => slotAt(f, some(f)) + K.PROCESS_WAKE, COUNTS, /ok/),
  ...floats("alarm", (f) => slotAt(f, some(f)) + K.PROCESS_ALARM, [Infinity, 5e-324], /ok/),
  ...floats("interval", (f) => slotAt(f, some(f)) + K.PROCESS_ALARM_INTERVAL, [Infinity, 5e-324], /ok/),
  ...words("no entropy pool", () => K.KERNEL_ENTROPY, { "0": () => 0 }, /ok/),
  ...floats("generation", () => K.KERNEL_GENERATION, COUNTS, /ok/),
  ...["zipf", "files", "pipes", "mapper", "shared", "jobs", "signals", "heap", "disk", "timers"].map((name) => ({
    what: `registers of ${name}`,
    forge: (f: Forgery) => {
      const at = slotAt(f, named(f, name)) + K.PROCESS_REGISTERS;
      for (let x = 2; x < 64; x++) f.store32(at + x * 4, (0x9e3779b9 * x) | 0);
    },
    says: /ok/,
  })),
];

function freeBlock(f: Forgery): number {
  const layout = K.kernelLayout(f.frames);
  for (let order = K.MAX_ORDER; order > 0; order--) {
    const link = f.load32(layout.arenaTable + K.ARENA_HEADS + order * 4);
    if (link !== 0) return link - 1;
  }
  throw new Error("no block is free");
}

function hostInode(f: Forgery): number {
  return [...walkHostInodes(f)][0]!.at;
}

async function runCases(t: ExecutionContext, cases: readonly Case[], expected: "HIB_INCONSISTENT" | "ok"): Promise<void> {
  const path = join(scratch(t), "forged");
  const surprises: string[] = [];
  for (const { what, forge, says } of cases) {
    forge(forgery);
    await forgery.write(path);
    forgery.restore();
    const verified = await verify(path, directory);
    const others = [await inspect(path, directory), await diff(path, original, directory)];
    const attempt = (lazy: boolean) =>
      host.resume(path, { lazy }).catch((error: unknown) => ({ code: String(error), message: "" }));
    const [resumed, lazily] = [await attempt(false), await attempt(true)];
    if (verified.code !== expected) surprises.push(`${what}: hib verify says ${verified.code} ${verified.message}`);
    else if (!says.test(verified.message || verified.code)) surprises.push(`${what}: ${verified.message}`);
    if (resumed.code !== expected) surprises.push(`${what}: a resume says ${resumed.code} ${resumed.message}`);
    if (lazily.code !== expected || lazily.message !== resumed.message)
      surprises.push(`${what}: a lazy resume says ${lazily.code} ${lazily.message}`);
    for (const { code, message } of others)
      if (code !== "ok" && code !== "HIB_INCONSISTENT") surprises.push(`${what}: inspect or diff says ${code} ${message}`);
  }
  t.log(`${cases.length} images`);
  t.deepEqual(surprises, []);
}

test.serial("an image that is put together again as it was is as good", async (t) => {
  await runCases(t, [{ what: "nothing", forge: () => undefined, says: /ok/ }], "ok");
  t.true(blocksOfKind(forgery, K.KIND_KERNEL_HEAP).every((frame) => forgery.changeable.includes(frame)));
});

test.serial("whatever a kernel would follow is looked at before an image is used", (t) =>
  runCases(t, REFUSED, "HIB_INCONSISTENT"),
);

test.serial("what no kernel follows is the worse for nobody but the process that has it", (t) => runCases(t, HARMLESS, "ok"));

/** Silence that is longer than any case takes: it hangs. */
const SILENCE_MS = 60_000;
/** MiB of JavaScript's own that a verification, a diff and a resume may take: less than 1 GiB with all the rest. */
const HEAP_MIB = 512;

/** Runs cases in a process of their own, and throws with the case at hand if that dies, or says nothing for long. */
async function fuzz(seed: number, first: number, cases: number): Promise<Record<string, number>> {
  const script = fileURLToPath(new URL("fixtures/fuzz.js", import.meta.url));
  const child = spawn(
    process.execPath,
    [`--max-old-space-size=${HEAP_MIB}`, script, directory, ...[seed, first, cases].map(String)],
    {
      stdio: ["ignore", "pipe", "pipe"],
    },
  );
  let errors = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => (errors += text));
  const ended = new Promise<string>((resolve) => child.once("close", (code, signal) => resolve(String(code ?? signal))));
  const outcomes: Record<string, number> = {};
  let last = "";
  let watch = watchdog(child);
  for await (const line of createInterface({ input: child.stdout })) {
    clearTimeout(watch);
    watch = watchdog(child);
    if (line.startsWith("case ")) last = line;
    else {
      const outcome = line.split(" ", 2).join(" ");
      outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
    }
  }
  const how = await ended;
  clearTimeout(watch);
  if (how !== "0") throw new Error(`HIB_SEED=${seed}, ${last}: it ended with ${how} ${errors}`);
  return outcomes;
}

function watchdog(child: ChildProcess): NodeJS.Timeout {
  return setTimeout(() => child.kill("SIGKILL"), SILENCE_MS);
}

test.serial(
  "words of kernel memory and rows of the catalogue, changed at random: a code or a machine that runs, always",
  async (t) => {
    const seed = Number(process.env["HIB_SEED"] ?? randomInt(2 ** 31));
    t.log(`HIB_SEED=${seed}`);
    const rounds = Number(process.env["HIB_FUZZ_ROUNDS"] ?? 200);
    const minutes = Number(process.env["HIB_FUZZ_MINUTES"] ?? 0);
    const end = Date.now() + minutes * 60_000;
    t.timeout((minutes + 15) * 60_000);
    const outcomes: Record<string, number> = {};
    let first = 0;
    do {
      for (const [outcome, times] of Object.entries(await fuzz(seed, first, rounds)))
        outcomes[outcome] = (outcomes[outcome] ?? 0) + times;
      first += rounds;
    } while (Date.now() < end);
    t.log(outcomes);
    t.true(outcomes["ok ok"]! > 0 && outcomes["HIB_INCONSISTENT HIB_INCONSISTENT"]! > 0);
  },
);

test.serial("a process without page tables, a zombie, has no memory to be read", async (t) => {
  const path = join(scratch(t), "forged");
  const zombie = some(forgery);
  for (const at of [K.PROCESS_ROOT, K.PROCESS_AREAS]) forgery.store32(slotAt(forgery, zombie) + at, 0);
  await forgery.write(path);
  forgery.restore();
  const image = await openImage(path);
  t.teardown(() => image.close());
  const { parts } = describeMemory(image, findProcess(image, zombie.pid), { address: 0, length: 2 * FRAME_BYTES });
  t.deepEqual(parts, [{ address: 0, length: 2 * FRAME_BYTES, state: "unmapped" }]);
});

test.serial("a report that is none is told in one line", async (t) => {
  const path = join(scratch(t), "forged");
  for (const value of ["null", "[]", '{"frames":{}}']) {
    await forgery.write(path, { catalogue: `UPDATE meta SET value = '${value}' WHERE key = 'report'` });
    const { stderr, code } = await hibStats(path);
    t.is(code, 1, value);
    t.regex(stderr, /^hib(-stats)?: HIB_CORRUPT: [^\n]*the report of its save is malformed[^\n]*\n$/, value);
  }
});

function hibStats(path: string): Promise<{ stderr: string; code: number }> {
  const script = fileURLToPath(new URL("../src/cli/hib-stats.js", import.meta.url));
  return new Promise((resolve) =>
    execFile(process.execPath, [script, path], (error, _, stderr) => resolve({ stderr, code: Number(error?.code ?? 0) })),
  );
}
