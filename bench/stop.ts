/** The stop: handshake, and the atomic copy against a plain gather of the same frames. */
import { FRAME_BYTES, PLANNED_BITMAP, RAM_BASE, SAVEABLE_BITMAP } from "../src/base/layout.js";
import { atomicCopy } from "../src/cow/atomic-copy.js";
import { Reserve } from "../src/cow/reserve.js";
import { type Figure, machineWith, median, pause, percentile, timed } from "./measure.js";

const STOPS = 300;
const COPIES = 9;

export async function stopFigures(megabytes: number): Promise<Figure[]> {
  const pages = Math.floor((megabytes * 0.5 * 2 ** 20) / FRAME_BYTES);
  const machine = await machineWith(megabytes * 2 ** 20, [`zipf:pages=${pages}`, "random:pages=2000"]);
  const { claims, core, kernel, quiesce, tracking } = machine;

  const stops: number[] = [];
  for (let i = 0; i < STOPS; i++) {
    await pause(3);
    const began = performance.now();
    quiesce.stop();
    stops.push((performance.now() - began) * 1000);
    quiesce.go();
  }

  const copies: number[] = [];
  const gathers: number[] = [];
  let frames = 0;
  for (let i = 0; i < COPIES; i++) {
    const reserve = new Reserve(kernel, claims);
    reserve.grow(Math.floor(pages * 0.5));
    tracking.arm();
    core.copyBitmap(PLANNED_BITMAP, SAVEABLE_BITMAP); // so that the residual set is what was marked
    await pause(20);
    quiesce.stop();
    tracking.freezeSaveable();
    reserve.openQueue();
    frames = Math.min(core.listResidual(), claims.unclaimed);
    copies.push((await timed(() => atomicCopy(claims, core, quiesce, frames))) / frames);
    gathers.push((await timed(() => gatherBySet(machine.memory.buffer, claims, frames))) / frames);
    tracking.disarm();
    reserve.release();
    quiesce.go();
  }
  await machine.powerOff();
  const speed = (perFrame: number[]) => FRAME_BYTES / median(perFrame) / 1e6;
  return [
    { name: "stop handshake, 2 busy vCPUs, p50", value: median(stops), unit: "us", target: "<= 150 us" },
    { name: "stop handshake, 2 busy vCPUs, p99", value: percentile(stops, 0.99), unit: "us" },
    {
      name: `atomic copy of ${frames} marked frames`,
      value: speed(copies),
      unit: "GB/s",
      limit: { name: "gather of the same frames by set, one thread", value: speed(gathers) },
      ratio: speed(copies) / speed(gathers),
      target: ">= 0.75",
    },
  ];
}

function gatherBySet(buffer: SharedArrayBuffer, lists: { frames: Int32Array; places: Int32Array }, count: number): void {
  const bytes = new Uint8Array(buffer);
  for (let i = 0; i < count; i++) {
    const from = RAM_BASE + lists.frames[i]! * FRAME_BYTES;
    bytes.set(bytes.subarray(from, from + FRAME_BYTES), lists.places[i]! * FRAME_BYTES);
  }
}
