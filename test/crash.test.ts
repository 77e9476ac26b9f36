/**
 * What is there when a host has lost its power: a save, a resume, and a boot that sets an image aside run once, with all that they
 * do to files recorded, and every state that a crash may leave on the disk (crash-states.ts) is looked at as the next host would.
 *
 * In each: what has the name of an image is one, whole and exact, with the files that its machine had; a blob whose header says
 * that it is an image is one; what is partial is known as such and swept; and what was promised before the crash is so: the
 * image of a machine that was powered off is there, one that was resumed is not resumed again, one that was set aside is not
 * found again, and one whose save failed is not there.
 */
import { fork } from "node:child_process";
import { cpSync, existsSync, linkSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import ava, { type ExecutionContext } from "ava";
import { HibernaculumError } from "../src/base/errors.js";
import { findImage } from "../src/find-image.js";
import { holdsImage, openImage, removeStalePartials } from "../src/image/directory.js";
import { BLOB_NAME, CATALOGUE_NAME, decodeHeader, HEADER_BYTES } from "../src/image/format.js";
import { listImages } from "../src/image/list.js";
import { readHistory } from "../src/image/markers.js";
import { verifyChunks } from "../src/image/verify.js";
import type { Machine } from "../src/machine.js";
import { ResumeSteps } from "../src/reports/resume-report.js";
import { type CrashState, crashStates, readRecord } from "./crash-states.js";
import { RECORDED_MACHINE } from "./fixtures/recorded.js";
import { bootMachine, findWrong, scratch } from "./support.js";

/** One at a time: each of them writes much. */
const test = ava.serial;

const RECORDED = fileURLToPath(new URL("fixtures/recorded.js", import.meta.url));
const RECORDER = new URL("fixtures/recorder.js", import.meta.url).href;
const DISK_BYTES = 8 * 4096;

interface Run {
  mode: "save" | "save-fails" | "resume" | "resume-fails" | "boot";
  /** What is there before; default: a disk. */
  from?: string;
}

/** A process did its work once; and what it worked on before and after. */
class Replay {
  readonly root: string;
  readonly #before: string;
  readonly #record: string;
  readonly #store: string;
  readonly #states: string;
  readonly machine: Machine;
  readonly #whole = new Map<string, string>();
  seen = 0;

  private constructor(t: ExecutionContext, machine: Machine) {
    [this.root, this.#before, this.#record, this.#store, this.#states] = [1, 2, 3, 4, 5].map(() => scratch(t)) as [
      string,
      string,
      string,
      string,
      string,
    ];
    this.machine = machine;
  }

  static async run(t: ExecutionContext, { mode, from }: Run): Promise<Replay> {
    const replay = new Replay(t, await bootMachine(t, RECORDED_MACHINE));
    if (from === undefined) writeFileSync(join(replay.root, "disk"), Buffer.alloc(DISK_BYTES, 0x11));
    else cpSync(from, replay.root, { recursive: true });
    cpSync(replay.root, replay.#before, { recursive: true });
    const child = fork(RECORDED, [mode, join(replay.root, "image"), join(replay.root, "disk")], {
      execArgv: ["--import", RECORDER],
      env: { ...process.env, HIB_RECORD_ROOT: replay.root, HIB_RECORD: replay.#record },
    });
    const code = await new Promise((resolve) => child.once("exit", resolve));
    t.is(code, 0, `${mode} ends`);
    return replay;
  }

  /** Looks at every state; returns what is wrong in them. */
  async check(t: ExecutionContext, look: (path: string, state: CrashState) => Promise<string[]>): Promise<void> {
    const wrong: string[] = [];
    const recorded = readRecord(this.#before, this.root, this.#record);
    for (const state of crashStates(recorded)) {
      const path = this.#make(state);
      this.seen++;
      for (const line of await look(path, state)) wrong.push(`${line} (${state.what})`);
      rmSync(path, { recursive: true });
    }
    t.log(`${this.seen} states, after ${recorded.marks.map(({ name }) => name).join(", ")}, too`);
    t.deepEqual([wrong.length, ...wrong.slice(0, 5)], [0]);
  }

  /** Files that hold the same are one file: nobody writes to them. */
  #make({ directories, files }: CrashState): string {
    const path = mkdtempSync(join(this.#states, "state-"));
    for (const directory of directories) mkdirSync(join(path, directory));
    for (const [name, { key, bytes }] of files) {
      const stored = join(this.#store, Buffer.from(key).toString("hex").slice(-200));
      if (!existsSync(stored)) writeFileSync(stored, bytes());
      linkSync(stored, join(path, name));
    }
    return path;
  }

  /** "whole" if an image is one, and is what the process made or found, byte for byte; else what is wrong. */
  async judge(path: string, { files }: CrashState, name: string): Promise<string> {
    const key = [BLOB_NAME, CATALOGUE_NAME].map((file) => files.get(join(name, file))?.key).join();
    let verdict = this.#whole.get(key);
    if (verdict === undefined) this.#whole.set(key, (verdict = await judgeImage(join(path, name))));
    return verdict;
  }

  /** "found" if a resume here would go on with the image; else the code of its refusal. */
  async find(path: string): Promise<string> {
    try {
      const options = existsSync(join(path, "disk")) ? { disk: join(path, "disk") } : {};
      const { image } = await findImage(this.machine, join(path, "image"), options, new ResumeSteps(undefined));
      image.close();
      return "found";
    } catch (error) {
      return error instanceof HibernaculumError ? error.code : String(error);
    } finally {
      this.machine.devices.block.forgetRestore();
    }
  }
}

async function judgeImage(path: string): Promise<string> {
  try {
    const image = await openImage(path);
    try {
      await verifyChunks(image);
      return findWrong(image.memory()).join("; ") || "whole";
    } finally {
      image.close();
    }
  } catch (error) {
    return error instanceof HibernaculumError ? error.code : String(error);
  }
}

/** What has an image's name is one; what is partial is swept; a header vouches for its blob. */
async function lookAtAll(replay: Replay, path: string, state: CrashState): Promise<string[]> {
  const wrong: string[] = [];
  const partials: string[] = [];
  for (const { name, state: listed, path: at } of await listImages(path)) {
    if (listed === "partial") {
      partials.push(at);
      const verdict = await replay.judge(path, state, name);
      if (hasHeader(at) && !["whole", "HIB_NOT_AN_IMAGE"].includes(verdict))
        wrong.push(`a partial image has a header and is ${verdict}`);
    } else {
      const verdict = await replay.judge(path, state, name);
      if (verdict !== "whole" || listed === "damaged") wrong.push(`${name} is ${listed}, and ${verdict}`);
    }
  }
  const hidden = readdirSync(path).filter((name) => name.includes(".partial-"));
  if (hidden.length !== partials.length) wrong.push("a partial image is not listed");
  const swept = await removeStalePartials(path);
  if (swept.length !== partials.length) wrong.push(`${partials.length} partial images, ${swept.length} of them swept`);
  if (readdirSync(path).some((name) => name.includes(".partial-"))) wrong.push("a partial image is left");
  return wrong;
}

/** It is whole, checksum and all: so are the chunks of its blob, whether or not the catalogue has its name yet. */
function hasHeader(path: string): boolean {
  try {
    decodeHeader(readFileSync(join(path, BLOB_NAME)).subarray(0, HEADER_BYTES), path);
    return true;
  } catch {
    return false;
  }
}

/** Markers that are there say all that they are to say. */
async function lookAtMarkers(path: string, has: (name: string) => boolean): Promise<string[]> {
  const { used, attempts, setAside } = await readHistory(path);
  const wrong: string[] = [];
  if (used !== null && !(used.pid > 0 && used.who !== "" && used.time !== "")) wrong.push("used says nothing");
  if (setAside !== null && setAside.code === undefined) wrong.push("set-aside says nothing");
  for (const { number, pid, time, outcome } of attempts) {
    if (!(pid > 0 && time !== "")) wrong.push(`attempt-${number} says nothing`);
    if (outcome !== null && outcome.code === undefined) wrong.push(`outcome-${number} says nothing`);
  }
  if (has("attempt") && attempts.length === 0) wrong.push("an attempt was begun, and is not noted");
  return wrong;
}

/** A directory with the disk, and the image of a machine that was hibernated. */
async function saved(t: ExecutionContext): Promise<string> {
  const { root } = await Replay.run(t, { mode: "save" });
  rmSync(join(root, ".disk.lock"), { force: true });
  return root;
}

test("a hibernation: there is no image, or one that is exact, with its disk; and it is there once the machine is off", async (t) => {
  const replay = await Replay.run(t, { mode: "save" });
  await replay.check(t, async (path, state) => {
    const isThere = await holdsImage(join(path, "image"));
    const wrong = state.marks.has("saved") && !isThere ? ["the machine is off, and there is no image"] : [];
    const found = isThere ? await replay.find(path) : "found";
    if (found !== "found") wrong.push(`the image would not be resumed: ${found}`);
    return [...wrong, ...(await lookAtAll(replay, path, state))];
  });
});

test("a save that fails at the last moment: once it has, no image of the machine that goes on is resumed", async (t) => {
  const replay = await Replay.run(t, { mode: "save-fails" });
  await replay.check(t, async (path, state) => {
    const isThere = await holdsImage(join(path, "image"));
    const found = isThere && state.marks.has("failed") ? await replay.find(path) : "none";
    const wrong = found === "found" ? ["an image whose save failed would be resumed"] : [];
    return [...wrong, ...(await lookAtAll(replay, path, state))];
  });
});

test("a resume: the image stays whole; an attempt is noted before it is made, and the image is used before the machine runs", async (t) => {
  const replay = await Replay.run(t, { mode: "resume", from: await saved(t) });
  await replay.check(t, async (path, state) => {
    const wrong = await lookAtMarkers(join(path, "image"), (name) => state.marks.has(name));
    const { used } = await readHistory(join(path, "image"));
    const found = await replay.find(path);
    if (found !== (used === null ? "found" : "HIB_IMAGE_USED")) wrong.push(`a resume of it says ${found}`);
    if (state.marks.has("consumed") && used === null) wrong.push("its machine runs, and it would be resumed again");
    return [...wrong, ...(await lookAtAll(replay, path, state))];
  });
});

test("a resume that fails once the image is used: it is given back, and the outcome is noted", async (t) => {
  const replay = await Replay.run(t, { mode: "resume-fails", from: await saved(t) });
  await replay.check(t, async (path, state) => {
    const wrong = await lookAtMarkers(join(path, "image"), () => false);
    const { used, attempts } = await readHistory(join(path, "image"));
    const isGivenBack = used === null && attempts[0]?.outcome?.code === "HIB_IO" && (await replay.find(path)) === "found";
    if (state.marks.has("failed") && !isGivenBack) wrong.push("it is not given back, or nothing says why it failed");
    return [...wrong, ...(await lookAtAll(replay, path, state))];
  });
});

test("a boot that sets an image aside: it has one name at any moment, and once the boot goes on it is not found again", async (t) => {
  const from = await saved(t);
  const blob = readFileSync(join(from, "image", BLOB_NAME));
  blob[blob.length - 1]! ^= 1;
  writeFileSync(join(from, "image", BLOB_NAME), blob);
  const replay = await Replay.run(t, { mode: "boot", from });
  await replay.check(t, async (path, state) => {
    const wrong: string[] = [];
    const names = readdirSync(path).filter((name) => name.startsWith("image"));
    if (names.length !== 1) wrong.push(`it has the names ${names.join()}`);
    for (const name of names) {
      wrong.push(...(await lookAtMarkers(join(path, name), () => false)));
      if ((await replay.judge(path, state, name)) !== "HIB_CORRUPT") wrong.push("it is not what it was");
    }
    const { setAside } = names.includes("image") ? { setAside: null } : await readHistory(join(path, names[0]!));
    if (state.marks.has("booted") && setAside === null)
      wrong.push("the boot has gone on, and the image is found again or tells nothing");
    return wrong;
  });
});
