/** Incremental images: each has what changed since the last, the chain of them is one image, and it is exact. */
import { cpSync, renameSync, rmSync } from "node:fs";
import { basename, join } from "node:path";
import ava, { type ExecutionContext } from "ava";
import { setFailpoints } from "../src/base/failpoints.js";
import { FRAME_BYTES } from "../src/base/layout.js";
import { save } from "../src/hibernate.js";
import { type Image, openImage } from "../src/image/directory.js";
import { verifyChunks } from "../src/image/verify.js";
import type { Machine } from "../src/machine.js";
import { APPROACH_NAMES } from "../src/reports/approaches.js";
import { resume } from "../src/resume.js";
import { bootMachine, findWrong, MIB, scratch, until, whileStopped } from "./support.js";

/** One at a time: a live machine wants both cores. */
const test = ava.serial;

const WRITERS = ["zipf:pages=2000,rate=20000", "incrementer:pages=300,rate=20000", "heap:slots=20,rate=2000"];

async function busy(t: ExecutionContext): Promise<Machine> {
  const machine = await bootMachine(t);
  for (const text of [...WRITERS, "random:pages=1500,content=random,rate=200"]) machine.spawn(text);
  await until(() => machine.processes().every(({ steps }) => steps > 0), "every process has written");
  return machine;
}

async function withImage<T>(path: string, look: (image: Image) => T | Promise<T>): Promise<T> {
  const image = await openImage(path);
  try {
    return await look(image);
  } finally {
    image.close();
  }
}

const wrongIn = (path: string) => withImage(path, (image) => findWrong(image.memory()));

/** Frames of an image that are not what a machine, which is powered off, has in them. */
async function differing(path: string, machine: Machine): Promise<number[]> {
  return withImage(path, (image) => {
    const memory = image.memory();
    const frames = Array.from({ length: memory.frames }, (_, frame) => frame).filter((frame) => memory.has(frame));
    return frames.filter(
      (frame) => Buffer.compare(memory.readFrame(frame), machine.kernel.memory.read(frame * FRAME_BYTES, FRAME_BYTES)) !== 0,
    );
  });
}

test("a chain of ten, by every approach in turn, while processes write: each image is exact, and so is what is resumed", async (t) => {
  const machine = await busy(t);
  const directory = scratch(t);
  const image = (i: number): string => join(directory, `image-${i}`);
  const whole = await save(machine, image(0), { keepRunning: true });
  t.is(whole.frames.of_parent, 0);
  for (let i = 1; i < 10; i++) {
    const approach = APPROACH_NAMES[i % APPROACH_NAMES.length]!;
    const keepRunning = i < 9;
    const report = await save(machine, image(i), { base: image(i - 1), keepRunning, approach });
    t.is(report.image.parent, image(i - 1));
    t.true(report.frames.of_parent > 500, `${report.frames.of_parent} frames did not change`);
    t.deepEqual(await wrongIn(image(i)), [], `image ${i}, ${approach}`);
  }
  t.deepEqual(await differing(image(9), machine), []);
  await withImage(image(9), async (chain) => {
    t.is(chain.blobs.length, 10);
    const { chunks } = await verifyChunks(chain);
    t.is(chunks, chain.chunks.length);
  });
  const resumed = await bootMachine(t);
  await resume(resumed, image(9));
  t.deepEqual(
    whileStopped(resumed, () => findWrong(resumed.kernel.memory)),
    [],
  );
});
