/**
 * Faults: wherever a save or a resume fails or is cancelled, the machine goes on as if nothing had happened, nothing is
 * left on the disk, and the next one succeeds (S0.9, S2.5).
 *
 * The campaign makes every pass of every failure point fail in its turn: pass 1, pass 2, ... until a save has no such
 * pass, and succeeds. So no write, no sync and no claim of a save is left out, and a trap that never fired would show
 * as a sweep without a failure.
 */
import { existsSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { cp } from "node:fs/promises";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import type { ErrorCode } from "../src/base/errors.js";
import { type Failpoint, FAILPOINTS, setFailpoints } from "../src/base/failpoints.js";
import { FileLock } from "../src/base/file-lock.js";
import { save } from "../src/hibernate.js";
import type { SaveOptions } from "../src/save-options.js";
import type { SavePhase } from "../src/reports/save-progress.js";
import { isUsed } from "../src/image/markers.js";
import type { MachineOptions } from "../src/machine.js";
import { resume } from "../src/resume.js";
import { judge, PROGRAMS, Victim } from "./fixtures/victim.js";
import { bootMachine, Draws, findWrong, MIB, scratch, sleep, whileStopped } from "./support.js";

const CODES: Record<string, ErrorCode> = { ENOSPC: "HIB_NO_SPACE", EIO: "HIB_IO", exit: "HIB_WORKER_DIED" };
const ENDINGS: SaveOptions[] = [{ keepRunning: true }, { keepRunning: false }];
/** The same with a residual set that is not copied: a copy-before-write tail, or written with everything stopped. */
const OVERFLOWS: SaveOptions[] = [
  { keepRunning: true, pauseTarget_ms: 0 },
  { keepRunning: false, reserveFrames: 8 },
];

interface Sweep {
  point: Failpoint;
  /** The thread that coordinates the save, or the page writers. */
  in: "main" | "writers";
  actions: string[];
  endings: SaveOptions[];
  machine?: Partial<MachineOptions>;
}

const inMain = (point: Failpoint): Sweep => ({ point, in: "main", actions: ["ENOSPC", "EIO"], endings: ENDINGS });
const inWriters = (point: Failpoint, action: string, machine: Partial<MachineOptions> = {}): Sweep => ({
  point,
  in: "writers",
  actions: [action],
  endings: machine.pageThreads === 2 ? ENDINGS : [...ENDINGS, ...OVERFLOWS],
  machine,
});

const SWEEPS: Sweep[] = [
  inMain("save.prepare"),
  inMain("save.armed"),
  inMain("save.stopped"),
  inMain("save.copied"),
  inMain("save.residual"),
  inMain("save.catalogue"),
  inMain("save.write"), // the header
  inMain("save.sync"),
  inMain("save.seal"),
  inMain("save.before-rename"),
  inMain("save.after-rename"),
  inWriters("save.catalogue", "EIO"),
  inWriters("save.catalogue", "exit"),
  inWriters("save.stream", "EIO"),
  inWriters("save.stream", "exit", { pageThreads: 2 }),
  inWriters("save.write", "ENOSPC"),
  inWriters("save.write", "EIO", { pageThreads: 2 }),
  inWriters("save.write", "exit"),
];

const RESUME_FAULTS: { point: Failpoint; in: Sweep["in"]; action: string }[] = [
  { point: "resume.attempt", in: "main", action: "EIO" },
  { point: "resume.allocate", in: "main", action: "EIO" },
  { point: "resume.verify", in: "main", action: "EIO" },
  { point: "resume.load", in: "writers", action: "exit" },
  { point: "resume.stopped", in: "main", action: "EIO" },
  { point: "resume.consume", in: "main", action: "ENOSPC" }, // claimed by then: the claim is given back
];

/** After these nothing is left that can fail: the image is published, or patched in. What a kill does there is in kill.test.ts. */
const PAST_FAILING: Failpoint[] = ["save.published", "resume.patched", "resume.running"];
/** A boot's own, which is in boot.test.ts, and a vCPU's, in lost.test.ts. */
const OF_OTHERS: Failpoint[] = ["boot.set-aside", "lazy.fill", "vcpu.locked"];

const campaign = { points: new Set<Failpoint>(), runs: 0, losses: 0, overflow: 0 };

function directoryWithBystander(t: ExecutionContext): string {
  const directory = scratch(t);
  writeFileSync(join(directory, "bystander"), "nobody touches this");
  return directory;
}

function count(t: ExecutionContext, wrong: string[], what: string): void {
  campaign.runs++;
  if (wrong.length > 0) campaign.losses++;
  t.deepEqual(wrong, [], what);
}

/** Fails every pass of a point in turn; returns how many there were. */
async function sweep(t: ExecutionContext, directory: string, one: Sweep, action: string, ending: SaveOptions): Promise<number> {
  let victim: Victim | undefined;
  try {
    for (let pass = 1; ; pass++) {
      const trap = `${one.point}=${action}@${pass}`;
      const what = `${trap} in ${one.in}, ${JSON.stringify(ending)}`;
      if (one.in === "writers") await victim?.machine.powerOff();
      if (one.in === "writers" || victim === undefined)
        victim = await Victim.boot(directory, one.machine, one.in === "writers" ? trap : undefined);
      if (one.in === "main") setFailpoints(trap);
      const failed = await victim.fails(async () => {
        const report = await save(victim!.machine, victim!.image, ending);
        if (OVERFLOWS.includes(ending)) campaign.overflow += report.reserve.overflow_frames;
      });
      setFailpoints(undefined);
      if (failed === undefined) {
        count(t, await victim.inspect(), what);
        return pass - 1;
      }
      const wrong = [...judge(failed.error, CODES[action]!), ...failed.harm];
      // Each writer has a trap of its own: that of a second one may fail one more save, later.
      let again: string[] | undefined;
      for (let tries = victim.machine.pageThreads; tries > 0 && again === undefined; tries--) {
        const more = await victim.fails(async () => (again = await victim!.saveAgain()));
        wrong.push(...(more?.harm ?? []));
      }
      wrong.push(...(again ?? ["no save succeeds any more"]));
      count(t, wrong, what);
    }
  } finally {
    setFailpoints(undefined);
    await victim?.machine.powerOff();
  }
}

for (const one of SWEEPS) {
  test.serial(
    `save: fails at any pass of ${one.point} in ${one.in}, ${one.actions.join(" or ")}, and nothing is lost`,
    async (t) => {
      const directory = directoryWithBystander(t);
      const passes = [];
      for (const action of one.actions)
        for (const ending of one.endings) passes.push(await sweep(t, directory, one, action, ending));
      t.log(`passes that failed: ${passes.join(", ")}`);
      t.true(Math.min(...passes) >= 1, "a trap did not fire");
      campaign.points.add(one.point);
    },
  );
}

test.serial("save: a short write is gone on with, and one of nothing at all is an error", async (t) => {
  const directory = directoryWithBystander(t);
  for (let pass = 1; pass <= 3; pass++) {
    // 8 MiB that hardly change: not compressed, the first writes are of 2 MiB each. Half of one is written, then the other half.
    // A write of one page that met the trap would write nothing at all.
    const victim = await Victim.boot(directory, {}, `save.write=short@${pass}`, [
      "sequential:pages=2000,rate=50000,content=random",
    ]);
    try {
      const failed = await victim.fails(() => save(victim.machine, victim.image, { keepRunning: true, compression: "none" }));
      t.is(failed, undefined);
      count(t, await victim.inspect(), `short write ${pass}`);
      setFailpoints("save.write=short"); // the header is one page: half of it is nothing
      const header = await victim.fails(() => save(victim.machine, victim.image, { keepRunning: true }));
      setFailpoints(undefined);
      count(t, [...judge(header?.error, "HIB_IO"), ...header!.harm, ...(await victim.saveAgain())], "short header");
    } finally {
      setFailpoints(undefined);
      await victim.machine.powerOff();
    }
  }
});

const CANCELLATIONS: { when: string; phase?: SavePhase; options: SaveOptions }[] = [
  ...ENDINGS.flatMap((options) => [
    { when: "before it begins", options },
    { when: "when it streams", phase: "stream" as const, options },
    { when: "when it writes the residual set", phase: "residual" as const, options },
    { when: "when it publishes", phase: "publish" as const, options },
  ]),
  ...OVERFLOWS.map((options) => ({ when: "when it writes what was not copied", phase: "residual" as const, options })),
];

test.serial("save: cancelled in any phase, nothing is lost", async (t) => {
  const victim = await Victim.boot(directoryWithBystander(t));
  t.teardown(() => victim.machine.powerOff());
  for (const { when, phase, options } of CANCELLATIONS) {
    const abort = new AbortController();
    if (phase === undefined) abort.abort();
    const onProgress = (progress: { phase: SavePhase }): void => {
      if (progress.phase === phase) abort.abort();
    };
    const failed = await victim.fails(() => save(victim.machine, victim.image, { ...options, signal: abort.signal, onProgress }));
    const what = `${when}, ${JSON.stringify(options)}`;
    t.truthy(failed, `${what}: it was not cancelled`);
    count(t, [...judge(failed!.error, "HIB_CANCELLED"), ...failed!.harm, ...(await victim.saveAgain())], what);
  }
});

test.serial("save: cancelled at any moment, it is whole or not there", async (t) => {
  const draws = new Draws(t);
  const victim = await Victim.boot(directoryWithBystander(t), { pageThreads: 2 });
  t.teardown(() => victim.machine.powerOff());
  const outcomes = { cancelled: 0, whole: 0 };
  for (let round = 0; round < 25 || outcomes.cancelled === 0; round++) {
    const abort = new AbortController();
    const delay = draws.below(60);
    setTimeout(() => abort.abort(), delay);
    const failed = await victim.fails(() => save(victim.machine, victim.image, { keepRunning: true, signal: abort.signal }));
    outcomes[failed === undefined ? "whole" : "cancelled"]++;
    const wrong = failed === undefined ? await victim.inspect() : [...judge(failed.error, "HIB_CANCELLED"), ...failed.harm];
    count(t, wrong, `cancelled after ${delay} ms`);
  }
  t.log(outcomes);
});

test.serial("save, resume: refused while a save runs, which is not disturbed", async (t) => {
  for (const ending of ENDINGS) {
    const victim = await Victim.boot(directoryWithBystander(t));
    t.teardown(() => victim.machine.powerOff());
    const refused: unknown[] = [];
    const attempts: Promise<void>[] = [];
    const intrude = (): void => {
      for (const attempt of [() => save(victim.machine, `${victim.image}-2`), () => resume(victim.machine, victim.image)]) {
        attempts.push(
          attempt().then(
            () => void refused.push("it was let in"),
            (error: unknown) => void refused.push(error),
          ),
        );
      }
    };
    const first = save(victim.machine, victim.image, { ...ending, onProgress: intrude });
    intrude();
    await first;
    await Promise.all(attempts);
    t.true(refused.length >= 8, "one before the start, and some in each of three phases");
    count(t, [...refused.flatMap((error) => judge(error, "HIB_BUSY")), ...(await victim.inspect())], JSON.stringify(ending));
    t.deepEqual(readdirSync(victim.directory), ["bystander"]);
  }
});

test.serial("resume: fails at any point, and the boot goes on; the next one succeeds", async (t) => {
  const original = join(scratch(t), "image");
  const saved = await Victim.boot(scratch(t));
  await save(saved.machine, original);
  for (const { point, action, ...where } of RESUME_FAULTS) {
    const image = join(scratch(t), "image");
    await cp(original, image, { recursive: true });
    const trap = `${point}=${action}`;
    const victim = await Victim.boot(directoryWithBystander(t), {}, where.in === "writers" ? trap : undefined, [
      "boot-housekeeping:200",
    ]);
    t.teardown(() => victim.machine.powerOff());
    if (where.in === "main") setFailpoints(trap);
    const failed = await victim.fails(() => resume(victim.machine, image));
    setFailpoints(undefined);
    t.truthy(failed, `${trap}: it did not fail`);
    t.false(await isUsed(image), trap);
    count(t, [...judge(failed!.error, CODES[action]!), ...failed!.harm], trap);
    await resume(victim.machine, image);
    t.deepEqual(
      victim.machine.processes().map(({ text }) => text),
      PROGRAMS,
    );
    t.deepEqual(
      whileStopped(victim.machine, () => findWrong(victim.machine.kernel.memory)),
      [],
    );
    await victim.machine.powerOff();
    campaign.points.add(point);
  }
});

test.serial("save: failures leave no file open", async (t) => {
  if (!existsSync("/proc/self/fd")) return t.pass("no /proc here");
  const victim = await Victim.boot(directoryWithBystander(t));
  t.teardown(() => victim.machine.powerOff());
  const open = () => readdirSync("/proc/self/fd").length;
  await victim.saveAgain();
  const before = open();
  for (let i = 0; i < 10; i++) {
    setFailpoints(`${i % 2 === 0 ? "save.seal" : "save.write"}=EIO`);
    await t.throwsAsync(save(victim.machine, victim.image, { keepRunning: true }));
  }
  setFailpoints(undefined);
  for (let i = 0; i < 100 && open() > before; i++) await sleep(10);
  t.is(open(), before);
});

test.serial("the campaign met every failure point where something can fail, and lost nothing", (t) => {
  t.log(`points ${campaign.points.size}, runs ${campaign.runs}, losses ${campaign.losses}`);
  t.true(campaign.overflow > 0, "no residual set was larger than what was copied");
  const expected = FAILPOINTS.filter((point) => ![...PAST_FAILING, ...OF_OTHERS].includes(point));
  t.deepEqual([...campaign.points].sort(), expected.sort());
  t.is(campaign.losses, 0);
});

test("a machine that is off is neither saved nor resumed into, and nothing is left on the disk", async (t) => {
  const machine = await bootMachine(t, { ramBytes: 16 * MIB });
  const directory = scratch(t);
  await machine.powerOff();
  await t.throwsAsync(save(machine, join(directory, "image")), { code: "HIB_NO_MACHINE" });
  await t.throwsAsync(resume(machine, join(directory, "image")), { code: "HIB_NO_MACHINE" });
  t.deepEqual(readdirSync(directory), []);
});

test("a lock that is a link is not followed: it would lock what nobody named", (t) => {
  const directory = scratch(t);
  const [disk, other] = [join(directory, "disk"), join(directory, "other")];
  writeFileSync(disk, "");
  for (const target of [other, join(directory, "gone")]) {
    writeFileSync(other, "");
    symlinkSync(target, join(directory, ".disk.lock"));
    t.throws(() => FileLock.take(disk), { code: "EINVAL", message: /not a regular file/ });
    rmSync(join(directory, ".disk.lock"));
  }
  const lock = FileLock.take(disk);
  t.truthy(lock);
  lock!.release();
});
