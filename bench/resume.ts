/** Resume, eager, against reading, decompressing and copying the same bytes by hand. */
import { closeSync, openSync, readSync } from "node:fs";
import { join } from "node:path";
import { uncompressSync } from "lz4-napi";
import { FRAME_BYTES, RAM_BASE } from "../src/base/layout.js";
import { save } from "../src/hibernate.js";
import { openImage } from "../src/image/directory.js";
import { BLOB_NAME, CHUNK_BYTES, CODEC_LZ4 } from "../src/image/format.js";
import { Machine } from "../src/machine.js";
import { resume } from "../src/resume.js";
import { createMemory } from "../src/vm/memory/physical.js";
import { type Figure, machineWith, median, timed, withImage } from "./measure.js";

export async function resumeFigures(megabytes: number, rounds: number): Promise<Figure[]> {
  const ramBytes = megabytes * 2 ** 20;
  const pages = Math.floor((megabytes * 0.8 * 2 ** 20) / FRAME_BYTES);
  return withImage(async (path) => {
    await save(await machineWith(ramBytes, [`sequential:pages=${pages},rate=100`]), path);
    const resumes: number[] = [];
    let threads = 0;
    const limits: number[] = [];
    let bytes = 0;
    for (let round = 0; round < rounds; round++) {
      const machine = await Machine.boot({ ramBytes, vcpus: 2 });
      machine.spawn("boot-housekeeping:256");
      const report = await resume(machine, path, { keepImage: true });
      resumes.push(report.phases_ms.total);
      threads = report.loaders.threads;
      await machine.powerOff();
      const limit = await readDecompressCopy(path, ramBytes);
      bytes = limit.bytes;
      limits.push(limit.ms);
    }
    const speed = (ms: number[]) => bytes / median(ms) / 1e6;
    return [
      {
        name: `resume, eager, verified, ${threads} loaders`,
        value: speed(resumes),
        unit: "GB/s",
        limit: { name: "read + decompress + copy of the same bytes, one thread", value: speed(limits) },
        ratio: speed(resumes) / speed(limits),
        target: ">= 0.75",
      },
    ];
  });
}

/** The limit: nothing is hashed, compared, classified or protected; memory is as fresh as a booting machine's. */
async function readDecompressCopy(path: string, ramBytes: number): Promise<{ ms: number; bytes: number }> {
  const image = await openImage(path);
  const { chunks } = image;
  image.close();
  const bytes = new Uint8Array(createMemory(ramBytes).buffer);
  const buffer = new Uint8Array(CHUNK_BYTES);
  const blob = openSync(join(path, BLOB_NAME), "r");
  let to = RAM_BASE;
  const ms = await timed(async () => {
    for (const chunk of chunks) {
      readSync(blob, buffer, 0, chunk.stored, chunk.offset);
      const data =
        chunk.codec === CODEC_LZ4 ? uncompressSync(buffer.subarray(0, chunk.payload)) : buffer.subarray(0, chunk.payload);
      bytes.set(data, to);
      to += data.length;
      await new Promise(setImmediate);
    }
  });
  closeSync(blob);
  return { ms, bytes: to - RAM_BASE };
}
