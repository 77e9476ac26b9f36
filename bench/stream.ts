/** Streaming by one writer, against the same bytes staged, hashed and written by hand, and against raw LZ4. */
import { compressSync } from "lz4-napi";
import { join } from "node:path";
import { FRAME_BYTES, POOL_BASE, RAM_BASE } from "../src/base/layout.js";
import { save } from "../src/hibernate.js";
import type { SaveOptions } from "../src/save-options.js";
import { BlobWriter } from "../src/image/blob.js";
import { checksum, loadChecksum } from "../src/image/checksum.js";
import { openImage } from "../src/image/directory.js";
import { SAME_FILLED } from "../src/image/extents.js";
import type { Machine } from "../src/machine.js";
import { type Figure, machineWith, median, scratch, timed, withImage } from "./measure.js";

const CHUNK = 2 ** 20;

export async function streamFigures(megabytes: number, rounds: number): Promise<Figure[]> {
  const pages = Math.floor((megabytes * 0.8 * 2 ** 20) / FRAME_BYTES);
  const machine = await machineWith(megabytes * 2 ** 20, [`sequential:pages=${pages},rate=100`], { pageThreads: 1 });
  await loadChecksum();
  const raw: number[] = [];
  const rawLimit: number[] = [];
  const lz4: number[] = [];
  const lz4Limit: number[] = [];
  let bytes = 0;
  for (let round = 0; round < rounds; round++) {
    const frames = await withImage(async (path) => {
      raw.push(await streamTime(machine, path, { compression: "none" }));
      return storedFrames(path);
    });
    bytes = frames.length * FRAME_BYTES;
    rawLimit.push(await stageHashWrite(machine, frames));
    await withImage(async (path) => lz4.push(await streamTime(machine, path, { compression: "lz4" })));
    lz4Limit.push(await compressOnly(machine, frames));
  }
  await machine.powerOff();
  const speed = (ms: number[]) => bytes / median(ms) / 1e6;
  const figure = (name: string, ms: number[], limit: string, limitMs: number[], target: string): Figure => ({
    name,
    value: speed(ms),
    unit: "GB/s",
    limit: { name: limit, value: speed(limitMs) },
    ratio: speed(ms) / speed(limitMs),
    target,
  });
  return [
    figure("streaming, one writer, raw", raw, "stage copy + hash + write of the same bytes", rawLimit, ">= 0.75"),
    figure("streaming, one writer, LZ4", lz4, "lz4-napi over the same staged bytes", lz4Limit, ">= 0.85"),
  ];
}

async function streamTime(machine: Machine, path: string, options: SaveOptions): Promise<number> {
  const report = await save(machine, path, { ...options, keepRunning: true });
  return report.phases_ms.stream;
}

/** Frames with data in an image, in the order of their numbers. */
async function storedFrames(path: string): Promise<number[]> {
  const image = await openImage(path);
  const frames: number[] = [];
  for (let i = 0; i < image.extents.length; i++) {
    if (image.extents.chunk[i] === SAME_FILLED) continue;
    for (let k = 0; k < image.extents.frames[i]!; k++) frames.push(image.extents.pfn[i]! + k);
  }
  image.close();
  return frames;
}

/** The limit: no same-filled test, no marks, no claims, no catalogue; two writes in flight, as the writer has. */
async function stageHashWrite(machine: Machine, frames: number[]): Promise<number> {
  return withImage(async () => {
    const blob = await BlobWriter.open(join(scratch, `limit-${Math.random()}`));
    const writes: Promise<void>[] = [];
    const ms = await timed(async () => {
      for (let i = 0, at = 0; i < frames.length; i += CHUNK / FRAME_BYTES, at += CHUNK) {
        const slot = (at / CHUNK) % 2;
        await writes[slot];
        const staged = stage(machine, frames, i, slot);
        checksum(staged);
        writes[slot] = blob.write(staged, at);
      }
      await Promise.all(writes);
    });
    await blob.close();
    return ms;
  });
}

/** Raw lz4-napi, with the turns of the event loop on which its outputs are freed; staging is not counted. */
async function compressOnly(machine: Machine, frames: number[]): Promise<number> {
  let ms = 0;
  for (let i = 0; i < frames.length; i += CHUNK / FRAME_BYTES) {
    const staged = stage(machine, frames, i, 0);
    ms += await timed(async () => {
      compressSync(staged as Buffer);
      await new Promise(setImmediate);
    });
  }
  return ms;
}

function stage(machine: Machine, frames: number[], from: number, slot: number): Uint8Array {
  const bytes = new Uint8Array(machine.memory.buffer);
  const at = POOL_BASE + slot * CHUNK;
  const count = Math.min(CHUNK / FRAME_BYTES, frames.length - from);
  for (let k = 0; k < count; k++) {
    const frame = RAM_BASE + frames[from + k]! * FRAME_BYTES;
    bytes.set(bytes.subarray(frame, frame + FRAME_BYTES), at + k * FRAME_BYTES);
  }
  return bytes.subarray(at, at + count * FRAME_BYTES);
}
