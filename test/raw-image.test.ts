/**
 * One bit of an image without compression: nothing but checksums tells a chunk that holds frames as they are from one that holds
 * others, wherever in the image the bit is.
 */
import { closeSync, openSync, readFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { save } from "../src/hibernate.js";
import { openImage } from "../src/image/directory.js";
import { BLOB_NAME, CATALOGUE_NAME, CODEC_RAW, HEADER_BYTES } from "../src/image/format.js";
import { resume } from "../src/resume.js";
import { examine } from "./damage.js";
import { bootMachine, Draws, findWrong, MIB, scratch, until, whileStopped } from "./support.js";

const MACHINE = { ramBytes: 8 * MIB, vcpus: 1, pageThreads: 1 };
const FLIPS_A_CHUNK = 100;

async function saved(t: ExecutionContext): Promise<string> {
  const machine = await bootMachine(t, MACHINE);
  for (const text of ["zipf:pages=500,content=random,seed=1", "zipf:pages=500,content=text,seed=2"]) machine.spawn(text);
  await until(() => machine.processes().every(({ steps }) => steps > 0), "they run");
  const path = join(scratch(t), "image");
  await save(machine, path, { compression: "none" });
  return path;
}

test("a flipped bit of an image without compression is found in every chunk, in the header and in the catalogue", async (t) => {
  const path = await saved(t);
  const draws = new Draws(t);
  const image = await openImage(path);
  const chunks = image.chunks.map(({ offset, stored, codec }) => ({ offset, stored, codec }));
  image.close();
  t.true(chunks.length > 1 && chunks.every(({ codec }) => codec === CODEC_RAW));
  t.is(await examine(path), "whole");
  const flip = (file: string, bytes: Buffer, at: number): (() => void) => {
    const descriptor = openSync(join(path, file), "r+");
    writeSync(descriptor, Uint8Array.of(bytes[at]! ^ (1 << draws.below(8))), 0, 1, at);
    return () => {
      writeSync(descriptor, bytes, at, 1, at);
      closeSync(descriptor);
    };
  };
  const surprises: string[] = [];
  const sweep = async (file: string, places: readonly number[], codes: readonly string[]): Promise<void> => {
    const bytes = readFileSync(join(path, file));
    for (const at of places) {
      const restore = flip(file, bytes, at);
      const found = await examine(path);
      if (!codes.includes(found)) surprises.push(`${file}, byte ${at}: ${found}`);
      restore();
    }
  };
  const places = chunks.flatMap(({ offset, stored }) => [
    offset,
    offset + stored - 1,
    ...Array.from({ length: FLIPS_A_CHUNK }, () => offset + draws.below(stored)),
  ]);
  await sweep(BLOB_NAME, places, ["HIB_CORRUPT"]);
  const header = Array.from({ length: 100 }, () => draws.below(HEADER_BYTES));
  await sweep(BLOB_NAME, header, ["HIB_CORRUPT", "HIB_NOT_AN_IMAGE", "HIB_FORMAT_VERSION"]);
  const { length } = readFileSync(join(path, CATALOGUE_NAME));
  const catalogue = Array.from({ length: 100 }, () => draws.below(length));
  await sweep(CATALOGUE_NAME, catalogue, ["HIB_CORRUPT"]);
  t.deepEqual(surprises, []);
  t.is(await examine(path), "whole");

  const machine = await bootMachine(t, MACHINE);
  machine.spawn("zipf:pages=100,seed=3");
  const restore = flip(BLOB_NAME, readFileSync(join(path, BLOB_NAME)), chunks.at(-1)!.offset + 5000);
  await t.throwsAsync(resume(machine, path), { code: "HIB_CORRUPT" });
  t.is(machine.processes()[0]!.text, "zipf:pages=100,seed=3", "the boot goes on");
  restore();
  await resume(machine, path);
  t.deepEqual(
    whileStopped(machine, () => findWrong(machine.kernel.memory)),
    [],
  );
});
