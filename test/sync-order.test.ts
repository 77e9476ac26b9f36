/**
 * What is on the disk when a host loses its power: nothing that was not synced. The calls of a publication and of a marker are
 * recorded in their order; at each of them, whatever has not been synced by then may be lost, or may be there. This is the order
 * itself, step by step; crash.test.ts looks at every state that a crash may leave.
 */
import fs from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";
import { basename, dirname, join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { loadChecksum } from "../src/image/checksum.js";
import { createPartial } from "../src/image/directory.js";
import { type ImageHeader, MACHINE_VERSION } from "../src/image/format.js";
import { claimUse, recordAttempt, recordOutcome, releaseUse, setAside } from "../src/image/markers.js";
import { sealBlob } from "../src/image/seal.js";
import { scratch } from "./support.js";

interface Event {
  do: "write" | "sync" | "name";
  /** A file or directory, by the name it was opened by; `name`: what a rename or a link made. */
  path: string;
}

/** Records what is done to files while `work` runs. */
async function record(work: () => Promise<unknown>): Promise<Event[]> {
  const events: Event[] = [];
  const { open, rename, link } = fs;
  const prototypes = new Set<fs.FileHandle>();
  const restore: (() => void)[] = [];
  const paths = new WeakMap<object, string>();
  const note = (does: Event["do"], path: string): void => void events.push({ do: does, path: String(path) });
  const watch = (handle: fs.FileHandle): void => {
    const prototype = Object.getPrototypeOf(handle) as fs.FileHandle;
    if (prototypes.has(prototype)) return;
    prototypes.add(prototype);
    for (const [name, does] of [
      ["write", "write"],
      ["writeFile", "write"],
      ["sync", "sync"],
      ["datasync", "sync"],
    ] as const) {
      const inner = prototype[name] as (...args: unknown[]) => Promise<unknown>;
      const outer = async function (this: object, ...args: unknown[]): Promise<unknown> {
        const result = await inner.apply(this, args);
        note(does, paths.get(this)!);
        return result;
      };
      Object.assign(prototype, { [name]: outer });
      restore.push(() => Object.assign(prototype, { [name]: inner }));
    }
  };
  Object.assign(fs, {
    open: async (path: string, ...rest: []) => {
      const handle = await open(path, ...rest);
      watch(handle);
      paths.set(handle, String(path));
      return handle;
    },
    rename: async (from: string, to: string) => {
      await rename(from, to);
      note("name", to);
    },
    link: async (from: string, to: string) => {
      await link(from, to);
      note("name", to);
    },
  });
  syncBuiltinESMExports();
  try {
    await work();
  } finally {
    for (const undo of restore) undo();
    Object.assign(fs, { open, rename, link });
    syncBuiltinESMExports();
  }
  return events;
}

test.before(() => loadChecksum());

const names = (events: readonly Event[]) =>
  events.map((event) => `${event.do} ${basename(event.path).replace(/^\..*/, "draft")}`);

const header = (): ImageHeader => ({
  machineVersion: MACHINE_VERSION,
  id: "00112233-4455-6677-8899-aabbccddeeff",
  parent: null,
  ramFrames: 4096,
  compatible: 0,
  used: false,
  chunks: 0,
  blobBytes: 4096,
  catalogueOffset: 0,
  catalogueBytes: 0,
  catalogueHash: 0n,
  catalogueHeadBytes: 0,
  catalogueHeadHash: 0n,
  catalogueDigest: null,
  frames: 0,
  time: 0,
  writer: "a test",
});

async function published(t: ExecutionContext): Promise<{ path: string; events: Event[] }> {
  const path = join(scratch(t), "image");
  const events = await record(async () => {
    const image = await createPartial(path);
    await sealBlob(image.blobPath, header());
    await image.publish();
  });
  return { path, events };
}

test.serial("a publication: chunks before the header, all files before the name, the name before the end", async (t) => {
  const { path, events } = await published(t);
  // At the header's write every chunk is on the disk; at the rename the header is, and the names of both files; at the end
  // the image's own name is, too: so a machine that powers off has an image.
  t.deepEqual(names(events), [
    "sync blob",
    "write blob",
    "sync blob",
    "sync draft",
    "name image",
    `sync ${basename(dirname(path))}`,
  ]);
});

test.serial("a marker: its contents before its name, its name before anybody goes on", async (t) => {
  const { path } = await published(t);
  for (const [name, mark] of [
    ["attempt-1", () => recordAttempt(path)],
    ["outcome-1", () => recordOutcome(path, 1, "HIB_IO", "no")],
    ["used", () => claimUse(path, "a test")],
  ] as const)
    t.deepEqual(names(await record(mark)), ["write draft", "sync draft", `name ${name}`, "sync image"], name);
  await releaseUse(path);
  const events = names(await record(() => setAside(path, "HIB_CORRUPT", "it is bad")));
  const renamed = events.indexOf("name image.set-aside-corrupt");
  t.true(renamed > events.indexOf("name attempt-2"), "whoever begins to resume it finds it held");
  t.is(events[renamed + 1], `sync ${basename(dirname(path))}`);
});
