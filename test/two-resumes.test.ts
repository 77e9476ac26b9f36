/** Two that are at one image at once: which of them goes on, and that neither marks what the other put there. */
import { renameSync } from "node:fs";
import { join } from "node:path";
import ava, { type ExecutionContext } from "ava";
import { save } from "../src/hibernate.js";
import { readHistory, recordAttempt, recordOutcome } from "../src/image/markers.js";
import type { Machine } from "../src/machine.js";
import { resume } from "../src/resume.js";
import { bootMachine, findWrong, MIB, scratch, until, whileStopped } from "./support.js";

/** One at a time: a live machine wants both cores. */
const test = ava.serial;

const small = { ramBytes: 16 * MIB, vcpus: 1 };

async function savedImage(t: ExecutionContext): Promise<string> {
  const machine = await bootMachine(t, small);
  machine.spawn("incrementer:pages=100,rate=10000");
  await until(() => machine.processes()[0]!.steps > 200, "it runs");
  const image = join(scratch(t), "image");
  await save(machine, image);
  return image;
}

function isExact(t: ExecutionContext, machine: Machine): void {
  t.is(machine.processes().length, 1);
  t.deepEqual(
    whileStopped(machine, () => findWrong(machine.kernel.memory)),
    [],
  );
}

test("a resume while another is under way is refused, also with --again", async (t) => {
  const image = await savedImage(t);
  const machine = await bootMachine(t, small);
  const other = await recordAttempt(image);
  for (const again of [false, true]) await t.throwsAsync(resume(machine, image, { again }), { code: "HIB_BUSY" });
  await recordOutcome(image, other, "HIB_IO", "it failed");
  await resume(machine, image);
  isExact(t, machine);
});

test("two resumes with --again of an image that was used: both go on, since nobody is asked", async (t) => {
  const image = await savedImage(t);
  await resume(await bootMachine(t, small), image);
  const machines = [await bootMachine(t, small), await bootMachine(t, small)];
  await Promise.all(machines.map((machine) => resume(machine, image, { again: true })));
  for (const machine of machines) isExact(t, machine);
});

test("an image that is set aside, and another saved in its place, while a resume compares files: that one is not marked", async (t) => {
  const image = await savedImage(t);
  const other = await savedImage(t);
  const machine = await bootMachine(t, small);
  const compared = resume(machine, image, {
    onStep: ({ name }) => {
      if (name !== "RAM size") return;
      renameSync(image, `${image}.set-aside-x`);
      renameSync(other, image);
    },
  });
  await t.throwsAsync(compared, { code: "HIB_BUSY", message: /renamed or replaced/ });
  t.is((await readHistory(image)).used, null);
  await resume(machine, image);
  isExact(t, machine);
});
