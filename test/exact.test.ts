/**
 * Pages through a whole save and a whole resume, compared byte for byte: what a page is while the image streams, at the stop, and once
 * the machine goes on, in all pairs. And a resume into machines that have been through something before.
 */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import ava, { type ExecutionContext } from "ava";
import { setFailpoints } from "../src/base/failpoints.js";
import {
  BITMAP_BYTES,
  CLAIMED_BITMAP,
  FRAME_BYTES,
  KEEP_BITMAP,
  OPEN_BITMAP,
  SAVED_BITMAP,
  PTE_PPN_SHIFT,
  QUEUE_SPARE,
} from "../src/base/layout.js";
import { save } from "../src/hibernate.js";
import { openImage } from "../src/image/directory.js";
import type { Machine } from "../src/machine.js";
import { resume } from "../src/resume.js";
import type { SaveOptions } from "../src/save-options.js";
import { findLeaf } from "../src/vm/memory/page-table.js";
import { DATA_BASE } from "../src/vm/personality/step/program.js";
import { bootMachine, findWrong, scratch, until, whileStopped } from "./support.js";

/** One at a time: a live machine wants both cores. */
const test = ava.serial;

const filled = (low: number, high = low): Uint8Array =>
  new Uint8Array(new Uint32Array(FRAME_BYTES / 4).map((_, i) => (i % 2 === 0 ? low : high)).buffer);
/** Bytes that nothing compresses, and no two pages share. */
const random = (seed: number): Uint8Array => {
  let state = seed;
  return new Uint8Array(FRAME_BYTES).map(() => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) >>> 24);
};
/** All zeros, two same-filled, one whose two halves of a word differ, two of noise, and one that only its last byte makes different. */
const CONTENTS: Readonly<Record<string, Uint8Array>> = {
  zeros: filled(0),
  X: filled(0x1111_1111),
  Y: filled(0xffff_ffff),
  "high words": filled(0, 0x8000_0000),
  noise: random(1),
  "other noise": random(2),
  "X but for its last byte": filled(0x1111_1111).with(FRAME_BYTES - 1, 0x12),
};
const NAMES = Object.keys(CONTENTS);
const PAIRS = NAMES.flatMap((first) => NAMES.map((last) => ({ first, last })));
/** More than the pairs need: the last are written only once the machine goes on. */
const PAGES = PAIRS.length + NAMES.length;

/** Sleeps for an hour: its pages, but for the first, are what the test makes of them. */
const SLEEPER = `idle:ms=3600000,pages=${PAGES + 1},content=random`;

interface Pages {
  write: (page: number, content: Uint8Array) => void;
  frames: readonly number[];
}

/** A machine with a sleeper, and its pages. */
async function withPages(t: ExecutionContext, others: readonly string[] = []): Promise<{ machine: Machine; pages: Pages }> {
  const machine = await bootMachine(t);
  for (const program of [SLEEPER, ...others]) machine.spawn(program);
  await until(() => machine.processes().every(({ steps }) => steps > 0), "every process has run");
  const { memory } = machine.kernel;
  const { root } = machine.processes()[0]!;
  const frames = Array.from(
    { length: PAGES },
    (_, i) => memory.load32(findLeaf(memory, root, DATA_BASE + (i + 1) * FRAME_BYTES)) >>> PTE_PPN_SHIFT,
  );
  return { machine, pages: { frames, write: (page, content) => memory.write(frames[page]! * FRAME_BYTES, content) } };
}

/** Calls one thing right before a machine is stopped for a save, another right after it goes on. */
function aroundStop(machine: Machine, before: () => void, after: () => void = () => undefined): void {
  const { quiesce } = machine;
  quiesce.stop = () => {
    before();
    Object.getPrototypeOf(quiesce).stop.call(quiesce);
  };
  quiesce.left = () => {
    const at = Object.getPrototypeOf(quiesce).left.call(quiesce);
    Object.assign(quiesce, { stop: Object.getPrototypeOf(quiesce).stop, left: Object.getPrototypeOf(quiesce).left });
    after();
    return at;
  };
}

/** Saves a machine whose pages are one thing while it streams, another at the stop, and a third once it goes on. */
async function savePairs(
  machine: Machine,
  { write }: Pages,
  path: string,
  options: SaveOptions,
): Promise<{ tail: { frames: number; preimages: number } }> {
  for (const [page, { first }] of PAIRS.entries()) write(page, CONTENTS[first]!);
  for (const [i, name] of NAMES.entries()) write(PAIRS.length + i, CONTENTS[name]!);
  aroundStop(
    machine,
    () => {
      for (const [page, { first, last }] of PAIRS.entries()) if (first !== last) write(page, CONTENTS[last]!);
    },
    () => {
      if (options.keepRunning === true)
        for (let page = 0; page < PAGES; page++) write(page, CONTENTS[NAMES[page % NAMES.length]!]!);
    },
  );
  return save(machine, path, options);
}

/** What pages are not as they were at the stop. */
function wrongPages(frames: readonly number[], read: (frame: number) => Uint8Array): string[] {
  const wanted = [
    ...PAIRS.map(({ first, last }) => ({ what: `${first}, then ${last}`, last })),
    ...NAMES.map((last) => ({ what: last, last })),
  ];
  return wanted.flatMap(({ what, last }, page) => (Buffer.compare(read(frames[page]!), CONTENTS[last]!) === 0 ? [] : [what]));
}

/** Resumes an image in a machine: it is exact in the image, then in the machine. */
async function isExact(
  t: ExecutionContext,
  path: string,
  frames: readonly number[],
  machine: Machine,
  others = 0,
): Promise<void> {
  const image = await openImage(path);
  const memory = image.memory();
  t.deepEqual(
    wrongPages(frames, (frame) => memory.readFrame(frame)),
    [],
  );
  image.close();
  await resume(machine, path, { keepImage: true });
  const live = machine.kernel.memory;
  t.deepEqual(
    wrongPages(frames, (frame) => live.read(frame * FRAME_BYTES, FRAME_BYTES)),
    [],
  );
  t.is(machine.processes().length, 1 + others);
  // Whatever the others were at.
  const wrong = whileStopped(machine, () => findWrong(live)).filter((line) => !line.includes(SLEEPER));
  t.deepEqual(wrong, []);
}

const WAYS: Record<string, SaveOptions> = {
  hibernation: {},
  "hibernation without places": { reserveFrames: 0 },
  "snapshot, all copied": { keepRunning: true, pauseTarget_ms: Infinity },
  "snapshot, half copied": { keepRunning: true, pauseTarget_ms: 0.02 },
  "snapshot, all in the tail": { keepRunning: true, pauseTarget_ms: 0 },
  "hibernation, copy-on-write": { approach: "copy-on-write" },
  "snapshot, copy-on-write": { approach: "copy-on-write", keepRunning: true },
  "hibernation, adaptive": { approach: "adaptive" },
  "snapshot, adaptive, copied": { approach: "adaptive", keepRunning: true, maxPause_ms: 1000 },
  "snapshot, adaptive, all in the tail": { approach: "adaptive", keepRunning: true, maxPause_ms: 0.01 },
  "hibernation, capture-kernel": { approach: "capture-kernel" },
  "snapshot, capture-kernel": { approach: "capture-kernel", keepRunning: true },
  "hibernation, swsusp": { approach: "swsusp" },
  "snapshot, swsusp": { approach: "swsusp", keepRunning: true },
  "snapshot, copy-on-write with hardly a place": { approach: "copy-on-write", keepRunning: true, reserveFrames: QUEUE_SPARE + 1 },
};

for (const [way, options] of Object.entries(WAYS)) {
  for (const compression of ["lz4", "none"] as const) {
    test(`${way}, ${compression}: pages that are one thing at the stream and another at the stop, in all pairs`, async (t) => {
      const { machine, pages } = await withPages(t);
      const path = join(scratch(t), "image");
      const { tail } = await savePairs(machine, pages, path, { ...options, compression });
      const copiesAll =
        options.pauseTarget_ms === Infinity ||
        options.approach === "swsusp" ||
        options.approach === "capture-kernel" ||
        options.maxPause_ms === 1000;
      t.is(tail.preimages > 0, options.keepRunning === true && !copiesAll, JSON.stringify(tail));
      await isExact(t, path, pages.frames, await bootMachine(t));
    });
  }
}

// ---- what is left of what was before ----

const WRITERS = ["zipf:pages=800", "incrementer:pages=300", "heap:slots=20"];

/** An image of pages in all pairs, and of processes that went on writing. */
async function imageOfPairs(
  t: ExecutionContext,
  options: SaveOptions = {},
): Promise<{ path: string; frames: readonly number[] }> {
  const { machine, pages } = await withPages(t, WRITERS);
  const path = join(scratch(t), "image");
  await savePairs(machine, pages, path, { ...options, oracle: true });
  return { path, frames: pages.frames };
}

test("a resume into a machine that has made a snapshot with a tail before", async (t) => {
  const { path, frames } = await imageOfPairs(t);
  const { machine, pages } = await withPages(t, ["zipf:pages=2000"]);
  await savePairs(machine, pages, join(scratch(t), "other"), { keepRunning: true, pauseTarget_ms: 0 });
  t.true(machine.core.countBits(OPEN_BITMAP) > 0, "of the tail there is something left");
  await isExact(t, path, frames, machine, WRITERS.length);
});

for (const point of ["verify", "stopped", "consume"]) {
  test(`a resume, and then a snapshot with a tail, in a machine whose resume failed at resume.${point} before`, async (t) => {
    const { path, frames } = await imageOfPairs(t);
    const { machine, pages } = await withPages(t, ["zipf:pages=2000"]);
    t.teardown(() => setFailpoints(undefined));
    const fail = async () => {
      setFailpoints(`resume.${point}=EIO`);
      await t.throwsAsync(resume(machine, path), { code: "HIB_IO" });
      setFailpoints(undefined);
    };
    await fail();
    const other = join(scratch(t), "other");
    await savePairs(machine, pages, other, { keepRunning: true, pauseTarget_ms: 0, oracle: true });
    await fail();
    await isExact(t, path, frames, machine, WRITERS.length);
    await isExact(t, other, pages.frames, machine, 1);
  });
}

test("whatever is in the bitmaps of pre-images before a save and before a resume, it means nothing to them", async (t) => {
  const fill = ({ control }: Machine) => {
    for (const bitmap of [CLAIMED_BITMAP, KEEP_BITMAP, OPEN_BITMAP, SAVED_BITMAP])
      control.words.fill(-1, bitmap >>> 2, (bitmap + BITMAP_BYTES) >>> 2);
  };
  const { machine, pages } = await withPages(t, WRITERS);
  const path = join(scratch(t), "image");
  fill(machine);
  const { tail } = await savePairs(machine, pages, path, { keepRunning: true, pauseTarget_ms: 0.02, oracle: true });
  t.true(tail.preimages > 0);
  const other = await bootMachine(t);
  fill(other);
  await isExact(t, path, pages.frames, other, WRITERS.length);
});

// ---- the coordinator's stores during a tail ----

test("a tail with just the spare places: the coordinator's stores find room, and the image is exact", async (t) => {
  const { machine, pages } = await withPages(t);
  const path = join(scratch(t), "image");
  const options = { keepRunning: true, pauseTarget_ms: 0, reserveFrames: QUEUE_SPARE };
  const { tail } = await savePairs(machine, pages, path, options);
  t.true(tail.preimages >= PAIRS.length - NAMES.length, JSON.stringify(tail));
  await isExact(t, path, pages.frames, await bootMachine(t));
});

for (const reserveFrames of [0, 1, 30]) {
  test(`a tail with ${reserveFrames} places: the coordinator's stores beyond them give up the save, not the stores`, async (t) => {
    const { machine, pages } = await withPages(t, WRITERS);
    const directory = scratch(t);
    const path = join(directory, "image");
    const options = { keepRunning: true, pauseTarget_ms: 0, reserveFrames };
    const error = await t.throwsAsync(savePairs(machine, pages, path, options), { code: "HIB_NO_MEMORY" });
    t.regex(error!.message, /room in the reserve/);
    t.deepEqual(readdirSync(directory), []);
    const { memory } = machine.kernel;
    for (const [page, frame] of pages.frames.entries())
      t.is(
        Buffer.compare(memory.read(frame * FRAME_BYTES, FRAME_BYTES), CONTENTS[NAMES[page % NAMES.length]!]!),
        0,
        `page ${page}`,
      );
    machine.check();
    await savePairs(machine, pages, path, { keepRunning: true, pauseTarget_ms: 0, oracle: true });
    await isExact(t, path, pages.frames, await bootMachine(t), WRITERS.length);
  });
}
