/** What the library is called with: nonsense is refused at once, in words that name it, and changes nothing. */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import test from "ava";
import { bootOrResume, exportImage, importImage, resume, save, type SaveOptions } from "../src/index.js";
import { bootMachine, MIB, scratch } from "./support.js";

test("save, resume, boot, export and import refuse options that they do not have, and values that cannot be", async (t) => {
  const directory = scratch(t);
  const machine = await bootMachine(t, { ramBytes: 8 * MIB, vcpus: 1 });
  const path = join(directory, "a.hib");
  const saves: [object, RegExp][] = [
    [{ keepRunnign: true }, /^save: there is no option "keepRunnign"; there are keepRunning, approach, compression, /],
    [{ toString: 1 }, /no option "toString"/],
    [{ keepRunning: 1 }, /^save: keepRunning must be true or false$/],
    [{ approach: "xyz" }, /approach must be write-fault or copy-on-write or swsusp or adaptive or capture-kernel/],
    [{ approach: "adaptive", maxPause_ms: 0 }, /maxPause_ms must be a number above 0/],
    [{ approach: "adaptive", maxPause_ms: "soon" }, /maxPause_ms must be a number above 0/],
    [{ maxPause_ms: 5 }, /maxPause_ms is an option of the approach adaptive, and this is write-fault/],
    [{ approach: "swsusp", pauseTarget_ms: 5 }, /pauseTarget_ms is an option of the approach write-fault, and this is swsusp/],
    [{ compression: "gzip" }, /compression must be lz4 or none/],
    [{ digest: "md5" }, /digest must be none or sha256/],
    [{ pauseTarget_ms: Number.NaN }, /pauseTarget_ms must be a number, 0 or more/],
    [{ pauseTarget_ms: -1 }, /pauseTarget_ms/],
    [{ pauseTarget_ms: "2" }, /pauseTarget_ms/],
    [{ signal: {} }, /signal must be an AbortSignal/],
    [{ onProgress: 1 }, /onProgress must be a function/],
    [{ name: 5 }, /name must be a string/],
  ];
  for (const [options, message] of saves)
    await t.throwsAsync(save(machine, path, options as SaveOptions), { code: "HIB_USAGE", message });
  await t.throwsAsync(save(machine, path, null as unknown as SaveOptions), { code: "HIB_USAGE" });
  for (const wrong of ["", "a\0b", undefined as unknown as string, 5 as unknown as string]) {
    const expected = { code: "HIB_USAGE", message: /: the path of the image must be a path/ };
    await t.throwsAsync(save(machine, wrong), expected);
    await t.throwsAsync(resume(machine, wrong), expected);
    await t.throwsAsync(bootOrResume(machine, wrong), expected);
    await t.throwsAsync(exportImage(wrong).next(), expected);
    await t.throwsAsync(importImage((async function* () {})(), wrong), expected);
  }
  await t.throwsAsync(resume(machine, path, { allow: "/srv" } as object), { message: /^resume: allow must be a list of paths$/ });
  await t.throwsAsync(resume(machine, path, { agian: true } as object), { code: "HIB_USAGE" });
  await t.throwsAsync(bootOrResume(machine, path, { disk: "" } as object), { message: /^bootOrResume: disk must be a path/ });
  await t.throwsAsync(exportImage(path, { again: "yes" } as object).next(), { message: /^exportImage: again must be/ });
  await t.throwsAsync(importImage((async function* () {})(), path, { nmae: "x" } as object), { message: /no option "nmae"/ });
  t.deepEqual(readdirSync(directory), []);
  t.is(machine.busy, undefined);
  t.false(machine.isOff);
});

test("an option that is undefined is not given, and a pause without limit is one", async (t) => {
  const machine = await bootMachine(t, { ramBytes: 8 * MIB, vcpus: 1 });
  const path = join(scratch(t), "a.hib");
  await save(machine, path, { keepRunning: true, pauseTarget_ms: Infinity, name: undefined } as object);
  t.false(machine.isOff);
});

test("a machine that is powered off while it is saved: the save was cancelled, whenever that was", async (t) => {
  for (const wait of [0, 1, 20, 60]) {
    const directory = scratch(t);
    const machine = await bootMachine(t, { ramBytes: 64 * MIB, vcpus: 2 });
    machine.spawn("random:pages=8000,content=random");
    const saving = save(machine, join(directory, "a.hib"), { keepRunning: true });
    const end = saving.then(
      () => "saved",
      (error: { code: string; message: string }) => `${error.code}: ${error.message}`,
    );
    if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
    await machine.powerOff();
    const told = await end;
    t.true(
      told === "saved" || told.startsWith("HIB_CANCELLED: the machine was powered off while a save of it was under way"),
      told,
    );
    t.deepEqual(readdirSync(directory), told === "saved" ? ["a.hib"] : []);
  }
});
