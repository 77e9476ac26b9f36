/** What the library is called with: nonsense is refused at once, in words that name it, and changes nothing. */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { Readable } from "node:stream";
import test from "ava";
import {
  bootOrResume,
  checkConsistency,
  checkProcess,
  diffImages,
  exportImage,
  type Image,
  importImage,
  isUsed,
  listImages,
  listProcesses,
  Machine,
  type MachineOptions,
  openImage,
  readHistory,
  removeStalePartials,
  resume,
  save,
  type SaveOptions,
  setAside,
  verifyChunks,
} from "../src/index.js";
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
  for (const option of ["again", "disk", "keepImage"]) // a boot has none of them
    await t.throwsAsync(bootOrResume(machine, path, { [option]: true }), { message: /^bootOrResume: there is no option/ });
  for (const call of [save, resume, bootOrResume])
    await t.throwsAsync(call({} as Machine, path), { message: /: the machine must be what Machine.boot has given$/ });
  await t.throwsAsync(exportImage(path, { again: "yes" } as object).next(), { message: /^exportImage: again must be/ });
  await t.throwsAsync(importImage((async function* () {})(), path, { nmae: "x" } as object), { message: /no option "nmae"/ });
  for (const source of [5, ["abc"], [5], null, Readable.from([5]), Readable.from(["abc"])])
    await t.throwsAsync(importImage(source as Readable, path), { code: "HIB_USAGE", message: /^importImage: / });
  t.deepEqual(readdirSync(directory), []);
  t.is(machine.busy, undefined);
  t.false(machine.isOff);
});

test("Machine.boot and spawn refuse what they do not know, and values that cannot be", async (t) => {
  const boots: [object | undefined, RegExp][] = [
    [undefined, /the options must be an object/],
    [{}, /give ramBytes and vcpus/],
    [{ bogus: 1 }, /no option "bogus"; there are ramBytes, vcpus, /],
    [{ pageThread: 99 }, /no option "pageThread"/],
    [{ pageThreads: 99 }, /pageThreads must be a whole number from 1 to 4$/],
    [{ vcpus: 17 }, /vcpus must be a whole number from 1 to 16$/],
    [{ vcpus: 1.5 }, /vcpus/],
    [{ ramBytes: "64M" }, /ramBytes must be a whole number/],
    [{ onConsole: "x" }, /onConsole must be a function/],
    [{ disk: 5 }, /disk must be a path/],
    [{ mounts: ".." }, /mounts must be a list/],
    [{ mounts: [".."] }, /mounts must be a list of which each is { host, path, readOnly }/],
    [{ mounts: [{ host: "/tmp" }] }, /mounts/],
    [{ mounts: [{ host: "/tmp", path: "x", readOnly: true }] }, /a path that begins with \//],
    [{ mounts: [{ host: "/tmp", path: `/${"x".repeat(5000)}`, readOnly: true }] }, /is too long$/],
  ];
  for (const [given, message] of boots) {
    const options = given && (Object.keys(given).length === 0 ? given : { ramBytes: 8 * MIB, vcpus: 1, ...given });
    await t.throwsAsync(Machine.boot(options as MachineOptions), { code: "HIB_USAGE", message });
  }
  const machine = await bootMachine(t, { ramBytes: 8 * MIB, vcpus: 1 });
  for (const text of [undefined, 5, null])
    t.throws(() => machine.spawn(text as unknown as string), {
      code: "HIB_USAGE",
      message: /^spawn: the program must be a string$/,
    });
});

test("what reads images and machines refuses what is none", async (t) => {
  const path = join(scratch(t), "a.hib");
  const image = { header: {}, catalogue: {}, chunks: [], blob: {} };
  const calls: [() => unknown, RegExp][] = [
    [() => openImage(undefined as unknown as string), /^openImage: the path of the image must be a path/],
    [() => openImage(5 as unknown as string), /^openImage: the path/],
    [() => openImage(path, null as unknown as object), /^openImage: the options must be an object/],
    [() => openImage(path, { bogus: 1 } as object), /no option "bogus"/],
    [() => openImage(path, { signal: 5 } as object), /signal must be an AbortSignal/],
    [() => openImage(path, { allow: "/etc" } as object), /allow must be a list of paths/],
    [() => openImage(path, { allow: [5] } as object), /allow must be/],
    [() => openImage(path, { onCheck: 5 } as object), /onCheck must be a function/],
    [
      () => diffImages("a" as unknown as Image, "b" as unknown as Image),
      /^diffImages: the first image must be what openImage has/,
    ],
    [() => diffImages(image as unknown as Image, image as unknown as Image, { bogus: 1 } as object), /no option "bogus"/],
    [() => diffImages(image as unknown as Image, image as unknown as Image, { onProgress: 5 } as object), /onProgress must/],
    [() => verifyChunks(undefined as unknown as Image), /^verifyChunks: the image must be what openImage has given$/],
    [() => verifyChunks("x" as unknown as Image), /^verifyChunks: the image/],
    [() => verifyChunks(image as unknown as Image, 5 as unknown as () => void), /onProgress must be a function/],
    [() => listImages(5 as unknown as string), /^listImages: the directory must be a path/],
    [() => removeStalePartials(undefined as unknown as string), /^removeStalePartials: /],
    [() => isUsed(5 as unknown as string), /^isUsed: /],
    [() => readHistory("" as string), /^readHistory: /],
    [() => setAside(path, 5 as unknown as string), /^setAside: the reason must be a string$/],
    [() => checkProcess(undefined as never, undefined as never), /^checkProcess: the memory must be a machine's memory/],
    [() => listProcesses(undefined as never), /^listProcesses: the memory/],
    [() => checkConsistency({} as never), /^checkConsistency: the memory/],
  ];
  for (const [call, message] of calls) await t.throwsAsync(async () => call(), { code: "HIB_USAGE", message }, String(call));
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
