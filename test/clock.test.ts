/**
 * The guest's monotonic clock over saves and resumes, whole and failed: it runs with the host's while the machine is there, stands
 * still while it is an image, and never steps back for a process that looks at it.
 */
import { rm } from "node:fs/promises";
import { join } from "node:path";
import ava, { type ExecutionContext } from "ava";
import { type Failpoint, setFailpoints } from "../src/base/failpoints.js";
import { MACHINE_CLOCK_BASE } from "../src/base/layout.js";
import { save } from "../src/hibernate.js";
import { openImage } from "../src/image/directory.js";
import type { Machine } from "../src/machine.js";
import { resume } from "../src/resume.js";
import { KERNEL_CLOCK } from "../src/vm/memory/kernel-layout.js";
import { bootMachine, scratch, until } from "./support.js";

/** One at a time: a live machine wants both cores. */
const test = ava.serial;

/** Looks at its clock in every step and fails if it went back; ticks of an interval timer that come too early. */
const WATCHERS = ["entropy", "entropy", "timers:ms=3"];
const SNAPSHOTS = [Number.POSITIVE_INFINITY, 0]; // copied in the pause, and by a tail
const SAVE_FAILS: Failpoint[] = ["save.prepare", "save.armed", "save.stopped", "save.copied", "save.residual", "save.seal"];
const RESUME_FAILS: Failpoint[] = ["resume.allocate", "resume.stopped", "resume.consume"];

/** Everything that may befall a machine that goes on afterwards. */
async function disturb(t: ExecutionContext, machine: Machine, onEach: (what: string) => Promise<void> | void): Promise<void> {
  const path = join(scratch(t), "image");
  const other = join(scratch(t), "other");
  for (const pauseTarget_ms of SNAPSHOTS) {
    await save(machine, path, { keepRunning: true, pauseTarget_ms });
    await onEach(`a snapshot, ${pauseTarget_ms}`);
    await rm(path, { recursive: true });
  }
  t.teardown(() => setFailpoints(undefined));
  for (const point of SAVE_FAILS) {
    setFailpoints(`${point}=EIO`);
    await t.throwsAsync(save(machine, path, { keepRunning: point < "save.r" }), { code: "HIB_IO" });
    await onEach(`a save that failed at ${point}`);
  }
  setFailpoints(undefined);
  await save(await bootMachine(t, { vcpus: 1 }), other);
  for (const point of RESUME_FAILS) {
    setFailpoints(`${point}=EIO`);
    await t.throwsAsync(resume(machine, other), { code: "HIB_IO" });
    await onEach(`a resume that failed at ${point}`);
  }
  setFailpoints(undefined);
}

test("the clock runs with the host's through every snapshot, and every save and resume that fails", async (t) => {
  const machine = await bootMachine(t);
  machine.spawn("zipf:pages=3000");
  machine.control.setGuestClock(1e9);
  const base = () => machine.control.floats[MACHINE_CLOCK_BASE >>> 3];
  const before = base();
  await disturb(t, machine, (what) => void t.is(base(), before, what));
});

async function lookOn(t: ExecutionContext, machine: Machine, what: string): Promise<void> {
  const steps = () => machine.processes().map((process) => process.steps);
  const before = steps();
  const failures = () => machine.processes().flatMap(({ failure }) => (failure === "" ? [] : [failure]));
  await until(() => failures().length > 0 || steps().every((count, i) => count > before[i]! + 20), "every process gets on");
  t.deepEqual(failures(), [], what);
}

test("no process sees the clock step back: over snapshots, hibernations, resumes, and what fails of them", async (t) => {
  let machine = await bootMachine(t);
  // Later than that of any machine that has just booted: a clock that is not restored is seen.
  machine.control.setGuestClock(1e9);
  for (const text of WATCHERS) machine.spawn(text);
  machine.spawn("zipf:pages=3000");
  await lookOn(t, machine, "at first");
  await disturb(t, machine, (what) => lookOn(t, machine, what));
  const path = join(scratch(t), "image");
  for (let times = 1; times <= 3; times++) {
    const seen = machine.control.guestNow();
    await save(machine, path);
    const image = await openImage(path);
    const stored = image.memory().loadFloat64(KERNEL_CLOCK);
    image.close();
    t.true(stored >= seen && stored <= machine.control.guestNow(), "the image has the clock of its stop");
    machine = await bootMachine(t);
    for (const text of WATCHERS) machine.spawn(text); // the booting machine's own, which end with it
    await resume(machine, path);
    t.true(machine.control.guestNow() >= stored);
    await rm(path, { recursive: true });
    await lookOn(t, machine, `hibernation ${times}`);
    await disturb(t, machine, (what) => lookOn(t, machine, `${what}, after hibernation ${times}`));
  }
});
