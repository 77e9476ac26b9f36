/** Incremental images: each has what changed since the last, the chain of them is one image, and it is exact. */
import { randomBytes } from "node:crypto";
import { closeSync, cpSync, openSync, readdirSync, readFileSync, renameSync, rmSync, writeSync } from "node:fs";
import { basename, join } from "node:path";
import ava, { type ExecutionContext } from "ava";
import { asTree } from "../src/cli/images.js";
import { setFailpoints } from "../src/base/failpoints.js";
import { FRAME_BYTES } from "../src/base/layout.js";
import { save } from "../src/hibernate.js";
import { type Image, openImage } from "../src/image/directory.js";
import { asParent, BLOB_NAME, decodeHeader, encodeHeader, HEADER_BYTES, type ImageHeader } from "../src/image/format.js";
import { listImages } from "../src/image/list.js";
import { mergeImage } from "../src/image/merge.js";
import { removeImage } from "../src/image/remove.js";
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

/**
 * Frames of an image that are not what a machine, which is powered off, has in them. By copy-on-write: other approaches give guest
 * memory back after the stop.
 */
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
    const keepRunning = i < 9;
    const approach = keepRunning ? APPROACH_NAMES[i % APPROACH_NAMES.length]! : "copy-on-write";
    const report = await save(machine, image(i), { base: image(i - 1), keepRunning, approach, oracle: true });
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
  const report = await save(resumed, image(10), { base: image(9), oracle: true, approach: "copy-on-write" });
  t.true(report.frames.of_parent > 500, `${report.frames.of_parent} frames did not change since the resume`);
  t.deepEqual(await differing(image(10), resumed), []);
});

test("whatever approach the last image was made by, its stores are tracked since, and any other can go on from it", async (t) => {
  const machine = await bootMachine(t, { ramBytes: 32 * MIB });
  for (const text of [
    "zipf:pages=700,rate=20000",
    "incrementer:pages=100,rate=20000",
    "random:pages=500,content=random,rate=200",
  ])
    machine.spawn(text);
  await until(() => machine.processes().every(({ steps }) => steps > 0), "every process has written");
  const directory = scratch(t);
  let base: string | undefined;
  for (const [i, first] of APPROACH_NAMES.entries()) {
    for (const [j, second] of APPROACH_NAMES.entries()) {
      const path = join(directory, `image-${i}-${j}`);
      for (const approach of [first, second]) {
        const image = `${path}-${approach}`;
        const { frames } = await save(machine, image, {
          ...(base === undefined ? {} : { base }),
          approach,
          keepRunning: true,
          oracle: true,
        });
        if (base !== undefined) t.true(frames.of_parent > 100, `${approach} on top of ${base}`);
        t.deepEqual(await wrongIn(image), [], image);
        base = image;
        if (first === second) break;
      }
      base = undefined; // a whole one again
    }
  }
});

test("an incremental save that fails leaves tracking on; but one that fails in its tail wants a whole image next", async (t) => {
  t.teardown(() => setFailpoints(undefined));
  const machine = await busy(t);
  const directory = scratch(t);
  const image = (name: string): string => join(directory, name);
  const again = (name: string, base: string) =>
    save(machine, image(name), { base: image(base), keepRunning: true, oracle: true });
  await save(machine, image("whole"), { keepRunning: true });
  for (const point of ["save.prepare", "save.armed", "save.stopped", "save.catalogue", "save.seal"]) {
    setFailpoints(`${point}=EIO`);
    await t.throwsAsync(again("none", "whole"), { code: "HIB_IO" }, point);
    setFailpoints(undefined);
  }
  const report = await again("first", "whole");
  t.true(report.frames.of_parent > 500);
  t.deepEqual(await wrongIn(image("first")), []);
  setFailpoints("save.residual=EIO");
  await t.throwsAsync(again("none", "first"), { code: "HIB_IO" });
  setFailpoints(undefined);
  const refused = await t.throwsAsync(again("second", "first"), { code: "HIB_PARENT" });
  t.regex(refused!.message, /make a whole image/);
  await save(machine, image("whole-2"), { keepRunning: true });
  await again("third", "whole-2");
  t.deepEqual(await wrongIn(image("third")), []);
});

test("a base that is not the last image of this machine is refused by name", async (t) => {
  const machine = await busy(t);
  const other = await bootMachine(t, { ramBytes: 16 * MIB });
  const directory = scratch(t);
  const image = (name: string): string => join(directory, name);
  const refuses = async (base: string, code: string, message: RegExp, path = image("new")): Promise<void> => {
    const error = await t.throwsAsync(save(machine, path, { base, keepRunning: true }), { code });
    t.regex(error!.message, message);
  };
  await save(other, image("other"), { keepRunning: true });
  await refuses(image("other"), "HIB_PARENT", /make a whole image/);
  await save(machine, image("first"), { keepRunning: true });
  await refuses(image("other"), "HIB_PARENT", /other is not the image/);
  await refuses(image("nothing"), "HIB_NOT_AN_IMAGE", /nothing/);
  await refuses(image("first"), "HIB_USAGE", /another directory/, join(scratch(t), "elsewhere"));
  await save(machine, image("second"), { base: image("first"), keepRunning: true });
  await refuses(image("first"), "HIB_PARENT", /first is not the image/);
});

test("a chain that is cut, exchanged, doubled or in a circle is refused by name; one that was renamed is not", async (t) => {
  const machine = await busy(t);
  const directory = scratch(t);
  const image = (name: string): string => join(directory, name);
  await save(machine, image("a"), { keepRunning: true });
  await save(machine, image("b"), { base: image("a"), keepRunning: true });
  await save(machine, image("c"), { base: image("b") });
  const opens = () => withImage(image("c"), ({ blobs }) => blobs.length);
  const refuses = async (code: string, message: RegExp): Promise<void> => {
    const error = await t.throwsAsync(opens(), { code });
    t.regex(error!.message, message);
  };
  t.is(await opens(), 3);
  const first = decodeHeader(readFileSync(join(image("a"), BLOB_NAME)).subarray(0, HEADER_BYTES), "a");
  const last = decodeHeader(readFileSync(join(image("c"), BLOB_NAME)).subarray(0, HEADER_BYTES), "c");
  const writeFirst = (header: ImageHeader): void => {
    const file = openSync(join(image("a"), BLOB_NAME), "r+");
    writeSync(file, encodeHeader(header), 0, HEADER_BYTES, 0);
    closeSync(file);
  };
  writeFirst({ ...first, parent: asParent(last) });
  await refuses("HIB_PARENT", /c is its own ancestor/);
  writeFirst(first);
  renameSync(image("a"), image("renamed"));
  t.is(await opens(), 3, "the id counts");
  renameSync(image("renamed"), join(scratch(t), "away"));
  await refuses("HIB_PARENT", /b has only what changed since the image a .*put it there/);
  cpSync(image("b"), image("a"), { recursive: true });
  await refuses("HIB_PARENT", /a .*put it there/);
  t.is(await withImage(image("a"), ({ path }) => basename(path)).catch(({ code }: { code: string }) => code), "HIB_PARENT");
  rmSync(image("b"), { recursive: true });
  rmSync(image("a"), { recursive: true });
  await refuses("HIB_PARENT", /c has only what changed since the image b /);
});

test("a merged image has every frame of its chain, needs no other, and only what is needed of the chunks", async (t) => {
  const machine = await busy(t);
  const directory = scratch(t);
  const image = (name: string): string => join(directory, name);
  await save(machine, image("a"), { keepRunning: true, digest: "sha256" });
  await save(machine, image("b"), { base: image("a"), keepRunning: true, compression: "none" });
  await save(machine, image("c"), { base: image("b"), approach: "copy-on-write" });
  const { header, images } = await mergeImage(image("c"), image("whole"));
  t.deepEqual([header.parent, images], [null, 3]);
  await withImage(image("whole"), async (whole) => {
    await verifyChunks(whole);
    await withImage(image("c"), (chain) => {
      t.is(whole.header.frames, chain.header.frames);
      t.true(whole.chunks.length < chain.chunks.length);
      const [left, right] = [chain.memory(), whole.memory()];
      for (let frame = 0; frame < left.frames; frame++) {
        if (left.has(frame) !== right.has(frame) || Buffer.compare(left.readFrame(frame), right.readFrame(frame)) !== 0)
          t.fail(`frame ${frame}`);
      }
      t.deepEqual([...whole.catalogue.objects()], [...chain.catalogue.objects()]);
      t.deepEqual(whole.catalogue.processes(), chain.catalogue.processes());
    });
  });
  t.deepEqual(await differing(image("whole"), machine), []);
  await t.throwsAsync(mergeImage(image("a"), image("other")), { code: "HIB_USAGE" });
  await t.throwsAsync(mergeImage(image("c"), image("b")), { code: "HIB_IMAGE_EXISTS" });
  for (const name of ["a", "b", "c"]) rmSync(image(name), { recursive: true });
  const resumed = await bootMachine(t);
  await resume(resumed, image("whole"));
  t.deepEqual(
    whileStopped(resumed, () => findWrong(resumed.kernel.memory)),
    [],
  );
  t.deepEqual(readdirSync(directory), ["whole"]);
});

test("an image that another needs is not removed; the list shows which needs which, and what lacks its parent", async (t) => {
  const machine = await busy(t);
  const directory = scratch(t);
  const image = (name: string): string => join(directory, name);
  await save(machine, image("z"), { keepRunning: true });
  await save(machine, image("y"), { base: image("z"), keepRunning: true });
  await save(machine, image("a"), { base: image("y"), keepRunning: true });
  await save(machine, image("m"), { keepRunning: true });
  const tree = async () => asTree(await listImages(directory)).map(({ image, depth }) => `${depth} ${image.name} ${image.state}`);
  t.deepEqual(await tree(), ["0 m complete", "0 z complete", "1 y complete", "2 a complete"]);
  const error = await t.throwsAsync(removeImage(image("z")), { code: "HIB_PARENT" });
  t.regex(error!.message, /z is needed by y; .*hib merge/);
  await t.throwsAsync(removeImage(image("none")), { code: "HIB_NOT_AN_IMAGE" });
  await removeImage(image("m"));
  renameSync(image("y"), join(scratch(t), "y"));
  t.deepEqual(await tree(), ["0 a incomplete", "0 z complete"]);
  t.true((await removeImage(image("a"))) > 0);
  t.true((await removeImage(image("z"))) > 0);
  t.deepEqual(readdirSync(directory), []);
});

test("an encrypted chain is read with its key, resumed lazily, merged and encrypted anew; it does not mix with plain images", async (t) => {
  const machine = await busy(t);
  const directory = scratch(t);
  const image = (name: string): string => join(directory, name);
  const keys = [{ keyFile: randomBytes(32) }, { passphrase: "a long one" }];
  const key = { keys: [keys[0]!] };
  await save(machine, image("plain"), { keepRunning: true });
  await t.throwsAsync(save(machine, image("x"), { base: image("plain"), keepRunning: true, keys }), { code: "HIB_USAGE" });
  await save(machine, image("a"), { keepRunning: true, keys });
  await t.throwsAsync(save(machine, image("x"), { base: image("a"), keepRunning: true }), { code: "HIB_USAGE" });
  await save(machine, image("b"), { base: image("a"), keepRunning: true, approach: "capture-kernel", ...key });
  await save(machine, image("c"), { base: image("b"), approach: "copy-on-write", ...key });
  await t.throwsAsync(openImage(image("c")), { code: "HIB_KEY_NEEDED" });
  await t.throwsAsync(openImage(image("c"), { keys: [keys[1]!] }), { code: "HIB_KEY_WRONG" });
  await mergeImage(image("c"), image("whole"), key);
  for (const name of ["c", "whole"]) {
    const opened = await openImage(image(name), key);
    try {
      await verifyChunks(opened);
      t.deepEqual(findWrong(opened.memory()), [], name);
    } finally {
      opened.close();
    }
  }
  const resumed = await bootMachine(t);
  await resume(resumed, image("c"), { lazy: true, ...key });
  await resumed.resident();
  t.deepEqual(
    whileStopped(resumed, () => findWrong(resumed.kernel.memory)),
    [],
  );
  const report = await save(resumed, image("d"), { base: image("c"), oracle: true, ...key });
  t.true(report.frames.of_parent > 500);
});
