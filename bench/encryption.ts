/** A save that encrypts, against the same save that does not: what the cipher costs, and what a passphrase does. */
import { randomBytes } from "node:crypto";
import type { Key } from "../src/base/key.js";
import { FRAME_BYTES } from "../src/base/layout.js";
import { save } from "../src/hibernate.js";
import { type Figure, machineWith, median, withImage } from "./measure.js";

const KEY_FILE: Key = { keyFile: randomBytes(32) };
const PASSPHRASE: Key = { passphrase: "correct horse battery staple" };

export async function encryptionFigures(megabytes: number, rounds: number): Promise<Figure[]> {
  const pages = Math.floor((megabytes * 0.8 * 2 ** 20) / FRAME_BYTES);
  const machine = await machineWith(megabytes * 2 ** 20, [`zipf:pages=${pages},content=mixed,rate=100000`]);
  const total = (keys?: readonly Key[]): Promise<number> =>
    withImage(
      async (path) => (await save(machine, path, { keepRunning: true, ...(keys === undefined ? {} : { keys }) })).phases_ms.total,
    );
  const plain: number[] = [];
  const byFile: number[] = [];
  const byPassphrase: number[] = [];
  await total();
  for (let round = 0; round < rounds; round++) {
    plain.push(await total());
    byFile.push(await total([KEY_FILE]));
    byPassphrase.push(await total([PASSPHRASE]));
    plain.push(await total()); // before and after: what else the host does is in both
  }
  await machine.powerOff();
  const limit = { name: "the same save, not encrypted", value: median(plain) };
  const figure = (name: string, times: number[]): Figure => ({
    name,
    value: median(times),
    unit: "ms",
    limit,
    ratio: limit.value / median(times),
    target: ">= 0.91",
  });
  return [figure("save, encrypted, key file", byFile), figure("save, encrypted, passphrase", byPassphrase)];
}
