/**
 * The campaign of random programs: processes that do random things with all that the kernel has, saved live at random moments
 * and resumed, against the same seeds run without a save. HIB_RACE_ROUNDS makes it longer.
 */
import { randomBytes } from "node:crypto";
import { readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import ava from "ava";
import { FRAME_BYTES } from "../src/base/layout.js";
import { save } from "../src/hibernate.js";
import type { Machine } from "../src/machine.js";
import { APPROACH_NAMES } from "../src/reports/approaches.js";
import { resume } from "../src/resume.js";
import { checkConsistency } from "../src/vm/views/consistency.js";
import { findFrame } from "../src/vm/memory/page-table.js";
import { DATA_BASE } from "../src/vm/personality/step/program.js";
import { CHAOS_DIGESTS } from "../src/vm/personality/step/programs/chaos.js";
import { bootMachine, collectFailures, Draws, MIB, scratch, sleep, whileStopped } from "./support.js";

/** One at a time: a live machine wants both cores. */
const test = ava.serial;

const OPTIONS = { ramBytes: 128 * MIB, vcpus: 2 };
const ROUNDS = Number(process.env["HIB_RACE_ROUNDS"] ?? 60);

/** The digests of completed generations, by program; nobody has failed, and the machine is consistent. */
function digests(machine: Machine): Map<string, number[]> {
  const { memory } = machine.kernel;
  return whileStopped(machine, () => {
    const { problems } = checkConsistency(memory);
    if (problems.length > 0) throw new Error(problems.join("; "));
    const processes = machine.processes();
    for (const { pid, text, failure } of processes) if (failure !== "") throw new Error(`${pid} ${text}: ${failure}`);
    const found = new Map<string, number[]>();
    for (const { root, text, parent } of processes) {
      const frame = parent === 0 ? findFrame(memory, root, DATA_BASE) : undefined;
      const word = (at: number): number => (frame === undefined ? 0 : memory.load32(frame * FRAME_BYTES + at * 4));
      found.set(
        text,
        parent === 0 ? Array.from({ length: Math.min(word(0), CHAOS_DIGESTS) }, (_, i) => word(i + 1)) : found.get(text)!,
      );
    }
    return found;
  });
}

test("random programs that are saved and resumed come to what they come to without a save", async (t) => {
  const draws = new Draws(t);
  const images = scratch(t);
  const texts = Array.from({ length: 5 }, (_, i) => {
    const [workers, operations] = [draws.between(1, 5), draws.between(5, 25)];
    return `chaos:seed=${draws.below(2 ** 31)},workers=${workers},operations=${operations + i}`;
  });
  const { failures, onConsole } = collectFailures();
  const options = { ...OPTIONS, onConsole };
  let machine = await bootMachine(t, options);
  for (const text of texts) machine.spawn(text);
  let resumes = 0;
  let busiest = 0;
  /** The image since which the machine tracks what changes, and what opens its chain. */
  let last: string | undefined;
  let key: { keys?: { keyFile: Buffer }[] } = {};
  for (let round = 0; round < ROUNDS; round++) {
    await sleep(draws.below(60));
    const path = join(images, `image-${round}`);
    const keepRunning = draws.below(3) !== 0;
    const approach = draws.of(APPROACH_NAMES);
    const all = approach === "write-fault" && draws.below(4) === 0 ? { pauseTarget_ms: 0 } : {};
    const base = last !== undefined && draws.below(2) === 0 ? { base: last } : {};
    if (base.base === undefined) {
      for (const name of readdirSync(images)) rmSync(join(images, name), { recursive: true });
      key = draws.below(3) === 0 ? { keys: [{ keyFile: randomBytes(32) }] } : {};
    }
    await save(machine, path, { keepRunning, approach, oracle: true, ...base, ...key, ...all });
    last = path;
    // A snapshot is resumed now and then, too, and its machine is gone: from here on the image is the one that counts.
    if (!keepRunning || draws.below(3) === 0) {
      await machine.powerOff();
      machine = await bootMachine(t, options);
      await resume(machine, path, { lazy: draws.below(2) === 0, ...key });
      resumes++;
    }
    busiest = Math.max(busiest, machine.processes().length);
  }
  await machine.resident();
  const saved = digests(machine);
  await machine.powerOff();
  t.deepEqual(failures, []);

  const undisturbed = await bootMachine(t, options);
  for (const text of texts) undisturbed.spawn(text);
  const isThere = (): boolean => {
    const now = digests(undisturbed);
    return texts.every((text) => now.get(text)!.length >= Math.min(saved.get(text)!.length, 100));
  };
  while (!isThere()) await sleep(200);
  const expected = digests(undisturbed);
  let compared = 0;
  for (const text of texts) {
    const [a, b] = [saved.get(text)!, expected.get(text)!];
    const both = Math.min(a.length, b.length);
    t.deepEqual(a.slice(0, both), b.slice(0, both), text);
    t.true(both > 0, text);
    compared += both;
  }
  t.deepEqual(failures, []);
  t.true(resumes > 0);
  t.log({ rounds: ROUNDS, resumes, programs: texts.length, generations: compared, processes_at_once: busiest, losses: 0 });
});
