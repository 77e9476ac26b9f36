/**
 * kill -9 of the host, at every phase of a save and of a resume (S0.9, S2.5, S2.9): there is a whole image or none,
 * never a half; what is left behind is swept; and a resume that dies leaves a trace, and an image that is whole and
 * either not used yet or used up, never both.
 *
 * Each failure point kills once by name, and some saves are killed at moments that have no name.
 */
import { fork } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { cp, rm } from "node:fs/promises";
import { basename, join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import { type Failpoint, FAILPOINTS } from "../src/base/failpoints.js";
import { save } from "../src/hibernate.js";
import { openImage, removeStalePartials } from "../src/image/directory.js";
import { isUsed } from "../src/image/markers.js";
import { verifyChunks } from "../src/image/verify.js";
import type { Machine } from "../src/machine.js";
import { resume } from "../src/resume.js";
import { boot, BOOT_PROGRAMS, PROGRAMS, runsOn } from "./fixtures/doomed.js";
import { Draws, findWrong, scratch, sleep, whileStopped } from "./support.js";
import { RESUME_KILLS } from "./damage.js";

interface Kill {
  point: Failpoint;
  pass?: number;
  /** Only the coordinating thread has the trap: else it is in every thread, and the first that gets there kills. */
  mainOnly?: boolean;
}

interface SaveKill extends Kill {
  leaves: "nothing" | "an image";
}

const SAVE_KILLS: SaveKill[] = [
  { point: "save.prepare", leaves: "nothing" },
  { point: "save.armed", leaves: "nothing" },
  { point: "save.stream", leaves: "nothing" },
  { point: "save.stream", pass: 2, leaves: "nothing" },
  { point: "save.write", leaves: "nothing" },
  { point: "save.write", pass: 2, leaves: "nothing" },
  { point: "save.stopped", leaves: "nothing" },
  { point: "save.copied", leaves: "nothing" },
  { point: "save.residual", leaves: "nothing" },
  { point: "save.catalogue", leaves: "nothing" },
  { point: "save.sync", leaves: "nothing" },
  { point: "save.seal", leaves: "nothing" },
  { point: "save.write", mainOnly: true, leaves: "nothing" }, // the header
  { point: "save.sync", pass: 2, leaves: "nothing" },
  { point: "save.before-rename", leaves: "nothing" },
  { point: "save.after-rename", leaves: "an image" },
  { point: "save.published", leaves: "an image" },
];

const RANDOM_KILLS = 8;
const DOOMED = fileURLToPath(new URL("fixtures/doomed.js", import.meta.url));

/** Runs a host that is to be killed; returns how it ended. */
function run(args: string[], kill?: Kill): Promise<{ code: number | null; signal: string | null }> {
  const trap = kill === undefined ? undefined : `${kill.point}=kill@${kill.pass ?? 1}`;
  const { HIB_FAILPOINTS: _, ...env } = process.env;
  const child = fork(DOOMED, kill?.mainOnly === true ? [...args, trap!] : args, {
    env: trap !== undefined && kill?.mainOnly !== true ? { ...env, HIB_FAILPOINTS: trap } : env,
  });
  return new Promise((resolve) => child.once("exit", (code, signal) => resolve({ code, signal })));
}

const KILLED = { code: null, signal: "SIGKILL" };
const nameOf = ({ point, pass, mainOnly }: Kill): string =>
  `${point}@${pass ?? 1}${mainOnly === true ? " of the main thread" : ""}`;
const isPartial = (name: string): boolean => /^\..*\.partial-/.test(name);

/** Everything that is wrong with an image: its checksums and counts, the machine in it, and its processes. */
async function inspect(path: string): Promise<string[]> {
  const image = await openImage(path);
  try {
    await verifyChunks(image);
    return findWrong(image.memory());
  } finally {
    image.close();
  }
}

/** Resumes in a new machine, in this process: the saved processes run on, exact. */
async function resumes(t: ExecutionContext, path: string, options: { again?: boolean } = {}): Promise<void> {
  const machine = await boot(BOOT_PROGRAMS);
  try {
    await resume(machine, path, options);
    await runsOn(machine);
    t.deepEqual(
      machine.processes().map(({ text }) => text),
      PROGRAMS,
    );
    t.deepEqual(lookAt(machine), []);
  } finally {
    await machine.powerOff();
  }
}

const lookAt = (machine: Machine): string[] => whileStopped(machine, () => findWrong(machine.kernel.memory));

/** After a kill: the directory holds a whole image or none, is swept of the rest, and takes a new image. */
async function surviveSaveKill(
  t: ExecutionContext,
  survivor: Machine,
  directory: string,
  expected?: SaveKill["leaves"],
): Promise<void> {
  const left = readdirSync(directory);
  const images = left.filter((name) => !isPartial(name));
  for (const name of images) t.deepEqual(await inspect(join(directory, name)), [], name);
  const partials = left.filter(isPartial).map((name) => join(directory, name));
  t.true(partials.length <= 1);
  if (expected !== undefined) t.deepEqual([images.length, partials.length], expected === "an image" ? [1, 0] : [0, 1]);
  t.deepEqual(await removeStalePartials(directory), partials);
  t.deepEqual(readdirSync(directory), images);

  const image = join(directory, "image");
  if (existsSync(image)) {
    await t.throwsAsync(save(survivor, image, { keepRunning: true }), { code: "HIB_IMAGE_EXISTS" });
    await rm(image, { recursive: true });
  }
  await save(survivor, image, { keepRunning: true });
  t.deepEqual(await inspect(image), []);
}

test.serial("save: killed at any failure point, there is a whole image or none", async (t) => {
  const survivor = await boot(PROGRAMS);
  t.teardown(() => survivor.powerOff());
  for (const [i, kill] of SAVE_KILLS.entries()) {
    const directory = scratch(t);
    const args = ["save", join(directory, "image"), i % 2 === 0 ? "hibernate" : "keep-running"];
    t.deepEqual(await run(args, kill), KILLED, nameOf(kill));
    await t.notThrowsAsync(surviveSaveKill(t, survivor, directory, kill.leaves), nameOf(kill));
  }
  t.log(
    `${SAVE_KILLS.length} kills, ${SAVE_KILLS.filter(({ leaves }) => leaves === "an image").length} of them after the image was there`,
  );
});

test.serial("save: not killed, the same host leaves a whole image; the sweep leaves what lives", async (t) => {
  for (const ending of ["hibernate", "keep-running"]) {
    const directory = scratch(t);
    t.deepEqual(await run(["save", join(directory, "image"), ending]), { code: 0, signal: null });
    t.deepEqual(readdirSync(directory), ["image"]);
    t.deepEqual(await inspect(join(directory, "image")), []);
  }
});

test.serial("save: killed at any moment, every image is whole and no other is one", async (t) => {
  const draws = new Draws(t);
  const survivor = await boot(PROGRAMS);
  t.teardown(() => survivor.powerOff());
  let images = 0;
  let partials = 0;
  for (let round = 0; round < RANDOM_KILLS; round++) {
    const directory = scratch(t);
    const child = fork(DOOMED, ["save-on", join(directory, "image")]);
    await new Promise((resolve) => child.once("message", resolve)); // one is saved, the next begins
    await sleep(draws.below(100));
    t.deepEqual(await removeStalePartials(directory), [], "the process that writes it lives");
    child.kill("SIGKILL");
    await new Promise((resolve) => child.once("exit", resolve));
    const left = readdirSync(directory);
    images += left.filter((name) => !isPartial(name)).length;
    partials += left.filter(isPartial).length;
    await surviveSaveKill(t, survivor, directory);
  }
  t.log(`${RANDOM_KILLS} kills: ${images} whole images, ${partials} partial ones swept`);
  t.true(images >= RANDOM_KILLS && partials > 0);
});

test.serial("resume: killed at any failure point, the image is whole, and used up or not", async (t) => {
  const original = join(scratch(t), "image");
  const saved = await boot(PROGRAMS);
  t.teardown(() => saved.powerOff());
  await save(saved, original);
  t.deepEqual(await inspect(original), []);

  for (const kill of RESUME_KILLS) {
    const path = join(scratch(t), basename(original));
    await cp(original, path, { recursive: true });
    t.deepEqual(await run(["resume", path], kill), KILLED, nameOf(kill));
    t.true(existsSync(join(path, "attempt-1")), `${nameOf(kill)}: the attempt is on the disk`);
    t.deepEqual(await inspect(path), [], nameOf(kill));
    t.is(await isUsed(path), kill.leaves === "used", nameOf(kill));
    if (kill.leaves === "used") {
      const booted = await boot([...BOOT_PROGRAMS, ...PROGRAMS]);
      t.teardown(() => booted.powerOff());
      await t.throwsAsync(resume(booted, path), { code: "HIB_IMAGE_USED" }, nameOf(kill));
      await runsOn(booted);
      t.deepEqual(lookAt(booted), [], nameOf(kill));
      await booted.powerOff();
      await resumes(t, path, { again: true });
    } else {
      await resumes(t, path);
      t.true(existsSync(join(path, "attempt-2")));
    }
    t.true(await isUsed(path));
  }
  const path = join(scratch(t), basename(original));
  await cp(original, path, { recursive: true });
  t.deepEqual(await run(["resume", path]), { code: 0, signal: null }, "not killed, the same host resumes it");
  t.log(
    `${RESUME_KILLS.length} kills, ${RESUME_KILLS.filter(({ leaves }) => leaves === "used").length} of them after the image was used up`,
  );
});

test("every failure point kills", (t) => {
  t.deepEqual(
    [...new Set([...SAVE_KILLS, ...RESUME_KILLS].map(({ point }) => point))].sort(),
    FAILPOINTS.filter((point) => /^(save|resume)\./.test(point)).sort(),
  ); // the others: boot.test.ts, lost.test.ts
});
