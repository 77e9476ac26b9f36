/** The difference of two images is what a comparison of every byte says. */
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { FRAME_BYTES } from "../src/base/layout.js";
import { save } from "../src/hibernate.js";
import { type Image, openImage } from "../src/image/directory.js";
import { type Change, diffImages, type ImageDiff } from "../src/reports/image-diff.js";
import type { Machine } from "../src/machine.js";
import { walkLeaves } from "../src/vm/memory/page-table.js";
import { listProcesses, readRegisters } from "../src/vm/tasks/process.js";
import { bootMachine, MIB, scratch, until } from "./support.js";

async function opened(t: ExecutionContext, path: string): Promise<Image> {
  const image = await openImage(path);
  t.teardown(() => image.close());
  return image;
}

async function snapshot(t: ExecutionContext, machine: Machine, compression: "lz4" | "none" = "lz4"): Promise<Image> {
  const path = join(scratch(t), "image");
  await save(machine, path, { keepRunning: true, compression });
  return opened(t, path);
}

function hasRunOn(machine: Machine, steps: number): Promise<void> {
  const before = new Map(machine.processes().map((process) => [process.pid, process.steps]));
  return until(() => machine.processes().every((process) => process.steps > before.get(process.pid)! + steps), "it runs on");
}

/** Frames and pages of processes, byte by byte. */
function bruteForce(a: Image, b: Image): Pick<ImageDiff, "frames"> & { pages: Map<string, Change> } {
  const [left, right] = [a.memory(), b.memory()];
  const equal = (x: number, y: number): boolean => Buffer.compare(left.readFrame(x), right.readFrame(y)) === 0;
  const frames = { same: 0, changed: 0, only_a: 0, only_b: 0 };
  for (let pfn = 0; pfn < left.frames; pfn++) {
    if (left.has(pfn) && right.has(pfn)) frames[equal(pfn, pfn) ? "same" : "changed"]++;
    else if (left.has(pfn)) frames.only_a++;
    else if (right.has(pfn)) frames.only_b++;
  }
  const pages = new Map<string, Change>();
  const both = listProcesses(right);
  for (const { pid, root } of listProcesses(left)) {
    const other = both.find((process) => process.pid === pid);
    if (other === undefined) continue;
    const before = new Map([...walkLeaves(left, root)].map(({ address, frame }) => [address, frame]));
    const after = new Map([...walkLeaves(right, other.root)].map(({ address, frame }) => [address, frame]));
    for (const address of new Set([...before.keys(), ...after.keys()])) {
      const [x, y] = [before.get(address), after.get(address)];
      const change = x === undefined ? "new" : y === undefined ? "gone" : equal(x, y) ? undefined : "changed";
      if (change !== undefined) pages.set(`${pid} ${address}`, change);
    }
  }
  return { frames, pages };
}

test("diff: frames, pages and registers are what a comparison of every byte says; the other way round it is mirrored", async (t) => {
  const machine = await bootMachine(t, { ramBytes: 16 * MIB, vcpus: 2 });
  for (const text of [
    "incrementer:pages=300,rate=3000",
    "zipf:pages=300,content=random,rate=2000",
    "heap:slots=20,rate=500",
    "stack:pages=64,rate=500",
  ])
    machine.spawn(text);
  await hasRunOn(machine, 50);
  const a = await snapshot(t, machine);
  machine.spawn("random:pages=5");
  await hasRunOn(machine, 50);
  const b = await snapshot(t, machine, "none");
  const progress: number[][] = [];
  const diff = await diffImages(a, b, { onProgress: (...at) => progress.push(at) });
  const expected = bruteForce(a, b);
  t.false(diff.same);
  t.deepEqual(diff.frames, expected.frames);
  t.true(diff.frames.changed > 0 && diff.frames.only_b > 0);
  const found = new Map<string, Change>();
  for (const { pid, ranges } of diff.processes.both)
    for (const { address, pages, change } of ranges)
      for (let page = 0; page < pages; page++) found.set(`${pid} ${address + page * FRAME_BYTES}`, change);
  t.deepEqual([...found].sort(), [...expected.pages].sort());
  t.deepEqual([...new Set(found.values())].sort(), ["changed", "gone", "new"]);
  t.deepEqual(diff.processes.gone, []);
  t.deepEqual(
    diff.processes.new.map(({ text }) => text),
    ["random:pages=5"],
  );
  for (const { pid, steps, pages, ranges, registers } of diff.processes.both) {
    t.true(steps.b > steps.a);
    t.is(
      pages.changed + pages.new + pages.gone,
      ranges.reduce((sum, range) => sum + range.pages, 0),
    );
    const [before, after] = [a, b].map((image) => {
      const memory = image.memory();
      return readRegisters(memory, listProcesses(memory).find((process) => process.pid === pid)!.slot);
    });
    const differing = [...before!.keys()].filter((word) => before![word] !== after![word]).map((word) => `x${word >> 1}`);
    t.deepEqual(Object.keys(registers), [...new Set(differing)]);
  }
  const total = a.header.blobBytes + b.header.blobBytes - 2 * FRAME_BYTES;
  t.deepEqual(progress.at(-1), [total, total]);

  const mirrored = await diffImages(b, a);
  t.deepEqual(mirrored.frames, { ...diff.frames, only_a: diff.frames.only_b, only_b: diff.frames.only_a });
  t.deepEqual(mirrored.processes.gone, diff.processes.new);
});

test("diff: nothing between an image and itself, and something between two of a machine that only keeps time", async (t) => {
  const machine = await bootMachine(t, { ramBytes: 8 * MIB, vcpus: 1 });
  machine.spawn("idle");
  const a = await snapshot(t, machine);
  const same = await diffImages(a, a);
  t.true(same.same);
  t.deepEqual(same.frames, { same: a.header.frames, changed: 0, only_a: 0, only_b: 0 });
  t.deepEqual(
    same.processes.both.flatMap(({ ranges, registers }) => [...ranges, ...Object.keys(registers)]),
    [],
  );
  t.false((await diffImages(a, await snapshot(t, machine))).same, "the clock went on");
});

test("diff: machines with other RAM cannot be compared", async (t) => {
  const images = [];
  for (const ramBytes of [8 * MIB, 16 * MIB]) {
    const machine = await bootMachine(t, { ramBytes, vcpus: 1 });
    machine.spawn("idle");
    images.push(await snapshot(t, machine));
  }
  const message = new RegExp(`${8 * MIB} bytes of RAM and .* ${16 * MIB} bytes`);
  await t.throwsAsync(diffImages(images[0]!, images[1]!), { code: "HIB_RAM_MISMATCH", message });
});

test("diff: another program under the same pid is another process", async (t) => {
  const images = [];
  for (const text of ["incrementer:pages=3", "random:pages=3"]) {
    const machine = await bootMachine(t, { ramBytes: 8 * MIB, vcpus: 1 });
    machine.spawn(text);
    images.push(await snapshot(t, machine));
  }
  const { processes } = await diffImages(images[0]!, images[1]!);
  t.deepEqual(processes.both, []);
  t.deepEqual(
    [...processes.gone, ...processes.new].map(({ text }) => text),
    ["incrementer:pages=3", "random:pages=3"],
  );
});
