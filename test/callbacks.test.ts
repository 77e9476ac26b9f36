/**
 * Functions of the embedder that throw, or give promises that reject: what calls them ends as cancelled while it can, and else goes
 * on to its end; the machine is not harmed, and nothing is uncaught.
 */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { setImmediate } from "node:timers/promises";
import ava, { type ExecutionContext } from "ava";
import { bootOrResume } from "../src/boot.js";
import { Control } from "../src/base/control.js";
import type { HibernaculumError } from "../src/base/errors.js";
import { save } from "../src/hibernate.js";
import { readHistory } from "../src/image/markers.js";
import { Machine } from "../src/machine.js";
import { type SavePhase, SaveProgressTeller } from "../src/reports/save-progress.js";
import { RESUME_STEPS, type ResumeStepName } from "../src/reports/resume-report.js";
import { resume } from "../src/resume.js";
import type { SaveOptions } from "../src/save-options.js";
import { createMemory } from "../src/vm/memory/physical.js";
import { KERNEL_RESUMES } from "../src/vm/memory/kernel-layout.js";
import { judge, PROGRAMS, Victim } from "./fixtures/victim.js";
import { bootMachine, findWrong, MIB, scratch, until, whileStopped } from "./support.js";

/** One at a time: a live machine wants both cores, and warnings are the process's. */
const test = ava.serial;

const THROWN = new Error("of the embedder");
const HOW = {
  throws: () => {
    throw THROWN;
  },
  rejects: () => Promise.reject(THROWN),
} as const;

/** Warnings of this process from now on. */
function collectWarnings(t: ExecutionContext): string[] {
  const warnings: string[] = [];
  const listen = ({ name, message }: Error): void => void (name === "HibernaculumWarning" && warnings.push(message));
  process.on("warning", listen);
  t.teardown(() => process.off("warning", listen));
  return warnings;
}

function isCancelled(t: ExecutionContext, error: unknown, what: string): void {
  t.deepEqual(judge(error, "HIB_CANCELLED"), [], what);
  t.is((error as HibernaculumError).cause, THROWN, what);
}

const ENDINGS: SaveOptions[] = [{ keepRunning: true }, { keepRunning: true, pauseTarget_ms: 0 }, { keepRunning: false }];

for (const [how, act] of Object.entries(HOW)) {
  test(`save: an onProgress that ${how} cancels it in any phase`, async (t) => {
    const victim = await Victim.boot(scratch(t));
    t.teardown(() => victim.machine.powerOff());
    for (const options of ENDINGS) {
      for (const phase of ["stream", "residual", "publish"] as SavePhase[]) {
        const onProgress = (progress: { phase: SavePhase }): unknown => (progress.phase === phase ? act() : undefined);
        const failed = await victim.fails(() => save(victim.machine, victim.image, { ...options, onProgress }));
        const what = `${phase}, ${JSON.stringify(options)}`;
        t.truthy(failed, what);
        isCancelled(t, failed!.error, what);
        t.deepEqual(failed!.harm, [], what);
      }
    }
    t.deepEqual(await victim.saveAgain(), []);
  });
}

test("save: once its image is being published, an onProgress that rejects is a warning", async (t) => {
  const warnings = collectWarnings(t);
  const victim = await Victim.boot(scratch(t));
  t.teardown(() => victim.machine.powerOff());
  let reject: (error: Error) => void = () => undefined;
  const late = new Promise((_, no) => (reject = no));
  await save(victim.machine, victim.image, { keepRunning: true, onProgress: () => late });
  reject(THROWN);
  await until(() => warnings.length > 0, "there is a warning");
  t.regex(warnings[0]!, /^onProgress threw Error: of the embedder; .*$/);
  t.deepEqual(await victim.inspect(), []);
});

test("save: nobody is told within a step of it", async (t) => {
  const told: SavePhase[] = [];
  using teller = new SaveProgressTeller(new Control(createMemory(4 * MIB)), ({ phase }) => told.push(phase));
  teller.enter("residual", 1);
  teller.enter("publish", 0);
  t.deepEqual(told, []);
  await setImmediate();
  t.deepEqual(told, ["residual", "publish"]);
});

test("save: an onProgress may ask the machine for whatever is under the kernel lock, also in a tail without room", async (t) => {
  const machine = await bootMachine(t, { ramBytes: 32 * MIB });
  for (const text of ["mapper:rate=100000", "fork:rate=100000", "incrementer:pages=500"]) machine.spawn(text);
  await until(() => machine.processes().every(({ steps }) => steps > 500), "all run");
  for (let round = 0; round < 5; round++) {
    let asked = 0;
    const onProgress = (): void => void (asked += machine.processes().length);
    const options = { keepRunning: true, pauseTarget_ms: 0, reserveFrames: 70, onProgress };
    await save(machine, join(scratch(t), "image"), options);
    t.true(asked > 0);
  }
  t.deepEqual(
    whileStopped(machine, () => findWrong(machine.kernel.memory)),
    [],
  );
});

async function savedImage(t: ExecutionContext): Promise<string> {
  const saved = await Victim.boot(scratch(t));
  const image = join(scratch(t), "image");
  await save(saved.machine, image);
  return image;
}

/** The last step at which a resume can be given up. */
const LAST: ResumeStepName = "consumed";

for (const [how, act] of Object.entries(HOW)) {
  test(`resume: an onStep that ${how} cancels it, and after the patch is a warning`, async (t) => {
    const warnings = collectWarnings(t);
    const image = await savedImage(t);
    const victim = await Victim.boot(scratch(t), {}, undefined, ["boot-housekeeping:200"]);
    t.teardown(() => victim.machine.powerOff());
    const late = RESUME_STEPS.slice(RESUME_STEPS.indexOf(LAST) + 1);
    for (const step of RESUME_STEPS.slice(0, RESUME_STEPS.indexOf(LAST) + 1)) {
      const onStep = ({ name }: { name: ResumeStepName }): unknown => (name === step ? act() : undefined);
      const failed = await victim.fails(() => resume(victim.machine, image, { onStep }));
      t.truthy(failed, step);
      isCancelled(t, failed!.error, step);
      t.deepEqual(failed!.harm, [], step);
      t.is((await readHistory(image)).used, null, step);
    }
    t.deepEqual(warnings, []);
    await resume(victim.machine, image, { onStep: ({ name }) => (late.includes(name) ? act() : undefined) });
    await until(() => warnings.length === late.length, "each is a warning");
    t.is(victim.machine.kernel.memory.load32(KERNEL_RESUMES), 1);
    t.deepEqual(
      whileStopped(victim.machine, () => findWrong(victim.machine.kernel.memory)),
      [],
    );
  });
}

test("resume: an onProgress that throws cancels it, and one that throws when it has failed hides nothing", async (t) => {
  const warnings = collectWarnings(t);
  const image = await savedImage(t);
  const victim = await Victim.boot(scratch(t), {}, undefined, ["boot-housekeeping:200"]);
  t.teardown(() => victim.machine.powerOff());
  const failed = await victim.fails(() => resume(victim.machine, image, { onProgress: HOW.throws }));
  isCancelled(t, failed!.error, "onProgress");
  const onStep = (step: object): void => void ("error" in step && HOW.throws());
  const other = await victim.fails(() => resume(victim.machine, join(image, "nothing"), { onStep }));
  t.deepEqual(judge(other!.error, "HIB_NOT_AN_IMAGE"), []);
  await until(() => warnings.length === 1, "there is a warning");
  await resume(victim.machine, image);
  t.deepEqual(
    victim.machine.processes().map(({ text }) => text),
    PROGRAMS,
  );
});

test("boot: an image whose resume a callback ended is left alone", async (t) => {
  const image = await savedImage(t);
  const machine = await bootMachine(t, { ramBytes: 16 * MIB });
  const result = await bootOrResume(machine, image, { onStep: HOW.throws });
  t.is(result.how, "booted");
  t.like(result, { setAside: null, stuck: null, error: { code: "HIB_CANCELLED" } });
  t.deepEqual(readdirSync(join(image, "..")), ["image"]);
  t.is((await bootOrResume(machine, image)).how, "resumed");
});

test("an onConsole that throws is a warning, and the machine goes on", async (t) => {
  const warnings = collectWarnings(t);
  const machine = await Machine.boot({ ramBytes: 16 * MIB, vcpus: 1, onConsole: HOW.throws });
  t.teardown(() => machine.powerOff());
  for (const text of [PROGRAMS[0]!, "progress:ms=1"]) machine.spawn(text);
  await until(() => machine.processes().every(({ steps }) => steps > 0), "both run");
  await save(machine, join(scratch(t), "image"), { keepRunning: true });
  await until(() => warnings.length > 0, "it has printed");
  t.deepEqual(
    whileStopped(machine, () => findWrong(machine.kernel.memory)),
    [],
  );
});
