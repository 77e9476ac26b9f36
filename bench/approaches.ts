/** `adaptive`: how far the pause that it predicts is from the one that comes of it, over many snapshots of one machine. */
import { FRAME_BYTES } from "../src/base/layout.js";
import { save } from "../src/hibernate.js";
import { type Figure, machineWith, median, percentile, withImage } from "./measure.js";

/** The first ones only teach what this machine's stops take. */
const LEARNED_AFTER = 3;

export async function predictionFigures(megabytes: number, snapshots: number): Promise<Figure[]> {
  const pages = Math.floor((megabytes * 0.5 * 2 ** 20) / FRAME_BYTES);
  const machine = await machineWith(megabytes * 2 ** 20, [`zipf:pages=${pages},rate=100000`, "random:pages=2000,rate=20000"]);
  const errors: number[] = [];
  for (let i = 0; i < snapshots + LEARNED_AFTER; i++) {
    const { adaptive, pause } = await withImage((path) =>
      save(machine, path, { approach: "adaptive", keepRunning: true, maxPause_ms: 20 }),
    );
    if (i >= LEARNED_AFTER) errors.push(Math.abs(adaptive!.predicted_pause_ms - pause.total_ms));
  }
  await machine.powerOff();
  const name = `error of adaptive's predicted pause, ${snapshots} snapshots`;
  return [
    { name: `${name}, p50`, value: median(errors), unit: "ms" },
    { name: `${name}, p90`, value: percentile(errors, 0.9), unit: "ms" },
  ];
}
