/**
 * Somebody on the host puts a link that leads out of a mount in a directory's place, at just any moment of a call: before each of what
 * the kernel asks the host for. What lies outside is never read, made, moved or removed.
 */
import fs, { lstatSync, mkdirSync, readdirSync, readFileSync, renameSync, symlinkSync, writeFileSync } from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { join } from "node:path";
import ava, { type ExecutionContext } from "ava";
import { save } from "../src/hibernate.js";
import type { Machine } from "../src/machine.js";
import { resume } from "../src/resume.js";
import { mountRoot, MountRoots } from "../src/vm/files/mount-roots.js";
import { O_CREAT, O_EXCL, O_RDONLY, O_RDWR, O_TRUNC } from "../src/vm/files/flags.js";
import * as E from "../src/vm/memory/errno.js";
import { DATA_BASE } from "../src/vm/personality/step/program.js";
import { checkConsistency } from "../src/vm/views/consistency.js";
import { bootMachine, callsOf, type HandCalls, HandMachine, MIB, scratch } from "./support.js";

/** One at a time: they share the host's calls. */
const test = ava.serial;

const HOST_CALLS = [
  "openSync",
  "statSync",
  "lstatSync",
  "fstatSync",
  "realpathSync",
  "readlinkSync",
  "readdirSync",
  "mkdirSync",
  "rmdirSync",
  "unlinkSync",
  "renameSync",
] as const;

/** Calls `happen` before the host's call number `at`; returns whether there was one, once `call` is over. */
function beforeHostCall(at: number, happen: () => void, call: () => void): boolean {
  const host = fs as unknown as Record<string, (...args: unknown[]) => unknown>;
  const originals = HOST_CALLS.map((name) => [name, host[name]!] as const);
  let calls = 0;
  for (const [name, original] of originals) {
    host[name] = Object.assign((...args: unknown[]) => {
      if (calls++ === at) happen();
      return original(...args);
    }, original);
  }
  syncBuiltinESMExports();
  try {
    call();
  } finally {
    for (const [name, original] of originals) host[name] = original;
    syncBuiltinESMExports();
  }
  return calls > at;
}

/** A mount with a directory d, and beside it one that is nobody's business. */
function start(t: ExecutionContext) {
  const directory = scratch(t);
  const [inside, outside] = [join(directory, "mounted"), join(directory, "outside")];
  for (const path of [inside, join(inside, "d"), join(inside, "d/empty"), outside, join(outside, "empty")]) mkdirSync(path);
  for (const path of [inside, join(inside, "d")]) for (const name of ["f", "g"]) writeFileSync(join(path, name), "mine");
  for (const name of ["f", "g", "h"]) writeFileSync(join(outside, name), "SECRET");
  const machine = new HandMachine();
  const { kernel } = machine;
  kernel.control.locked(() => kernel.files.names.mounts.add({ path: "/h", host: inside, readOnly: false }));
  const process = machine.spawn(1);
  const calls = callsOf(machine, process);
  const core = machine.run(process);
  const read = (fd: number): string => {
    const count = calls.read(fd, DATA_BASE, 100)!;
    return Buffer.from(Array.from({ length: Math.max(0, count) }, (_, i) => core.load8((DATA_BASE + i) | 0))).toString("latin1");
  };
  return { inside, outside, machine, calls, read };
}

const WAYS: { what: string; swap: (inside: string, outside: string) => void }[] = [
  {
    what: "a directory",
    swap: (inside, outside) => {
      renameSync(join(inside, "d"), join(inside, "away"));
      symlinkSync(outside, join(inside, "d"));
    },
  },
  {
    what: "a file",
    swap: (inside, outside) => {
      renameSync(join(inside, "d/f"), join(inside, "away"));
      symlinkSync(join(outside, "f"), join(inside, "d/f"));
    },
  },
];

const CALLS: { name: string; call: (calls: HandCalls, read: (fd: number) => string) => unknown }[] = [
  { name: "open", call: (calls, read) => read(calls.open("/h/d/f", O_RDONLY)) },
  { name: "open to write", call: (calls) => calls.write(calls.open("/h/d/f", O_RDWR | O_TRUNC), DATA_BASE, 3) },
  { name: "make a file", call: (calls) => calls.open("/h/d/new", O_RDWR | O_CREAT | O_EXCL) },
  { name: "make or open", call: (calls) => calls.write(calls.open("/h/d/h", O_RDWR | O_CREAT), DATA_BASE, 3) },
  { name: "stat", call: (calls) => JSON.stringify(calls.stat("/h/d/f")).replace(/"size":6/, "SECRET") },
  { name: "readdir", call: (calls) => JSON.stringify(calls.readdir("/h/d")).replace(/"h"/, "SECRET") },
  { name: "mkdir", call: (calls) => calls.mkdir("/h/d/made") },
  { name: "rmdir", call: (calls) => calls.rmdir("/h/d/empty") },
  { name: "unlink", call: (calls) => calls.unlink("/h/d/f") },
  { name: "rename out of", call: (calls) => calls.rename("/h/d/f", "/h/g") },
  { name: "rename into", call: (calls) => calls.rename("/h/f", "/h/d/f") },
];

for (const { what, swap } of WAYS) {
  for (const { name, call } of CALLS) {
    test(`${name}: a link in the place of ${what}, at any moment`, (t) => {
      let places = 0;
      for (; ; places++) {
        const { inside, outside, machine, calls, read } = start(t);
        let result: unknown;
        const met = beforeHostCall(
          places,
          () => swap(inside, outside),
          () => (result = call(calls, read)),
        );
        t.false(`${result}`.includes("SECRET"), `place ${places}`);
        t.deepEqual(readdirSync(outside), ["empty", "f", "g", "h"], `place ${places}`);
        for (const file of ["f", "g", "h"]) t.is(readFileSync(join(outside, file), "latin1"), "SECRET", `place ${places}`);
        for (const file of ["f", "g"])
          if (lstatSync(join(inside, file), { throwIfNoEntry: false })?.isFile() === true)
            t.is(readFileSync(join(inside, file), "latin1"), "mine", `place ${places}`);
        t.deepEqual(checkConsistency(machine.kernel.memory).problems, []);
        if (!met) break;
      }
      t.true(places >= 2, `${places}`);
    });
  }
}

test("a file that is not the one that was opened is not written to, whatever its path leads to by now", (t) => {
  const { inside, outside, calls } = start(t);
  const fd = calls.open("/h/d/f", O_RDWR);
  WAYS[0]!.swap(inside, outside);
  t.is(calls.write(fd, DATA_BASE, 3), -E.EIO);
  t.is(readFileSync(join(outside, "f"), "latin1"), "SECRET");
});

test("live: a mount is the directory that it was at the boot, and at the resume, whatever is in its place later", async (t) => {
  const directory = scratch(t);
  const [above, elsewhere] = [join(directory, "above"), join(directory, "elsewhere")];
  for (const path of [above, join(above, "mounted"), elsewhere, join(elsewhere, "mounted")]) mkdirSync(path);
  writeFileSync(join(above, "mounted/f"), "mine");
  writeFileSync(join(elsewhere, "mounted/f"), "SECRET");
  const options = { ramBytes: 16 * MIB, vcpus: 1 };
  const exchange = (): void => {
    renameSync(above, join(directory, "moved"));
    renameSync(elsewhere, above);
  };
  const putBack = (): void => {
    renameSync(above, elsewhere);
    renameSync(join(directory, "moved"), above);
  };
  const host = join(above, "mounted");
  const machine = await bootMachine(t, { ...options, mounts: [{ path: "/h", host, readOnly: false }] });
  const { slot } = machine.spawn("idle:ms=1000");
  const look = ({ kernel: { control, files } }: Machine, name: string): void =>
    control.locked(() => {
      t.is(Buffer.from(files.read(slot, files.open(slot, "/h/f", O_RDONLY) as number, 9) as Uint8Array).toString(), "mine");
      t.is(files.names.mkdir(`/h/${name}`), 0);
    });
  exchange();
  look(machine, "booted");
  putBack();
  t.deepEqual(readdirSync(host), ["booted", "f"]);
  machine.kernel.control.locked(() => machine.kernel.files.descriptions.closeAll(slot, "all"));
  const image = join(directory, "image");
  await save(machine, image);
  const woken = await bootMachine(t, options);
  await resume(woken, image);
  exchange();
  look(woken, "resumed");
  putBack();
  t.deepEqual(readdirSync(host), ["booted", "f", "resumed"]);
  t.deepEqual(readdirSync(join(elsewhere, "mounted")), ["f"]);
});

test("a mount that leads elsewhere by the time it is opened for a resume is refused, and one that is not there stays so", (t) => {
  const { inside, outside, machine } = start(t);
  const roots = new MountRoots(machine.control);
  t.teardown(() => roots.close());
  const link = `${inside}-link`;
  symlinkSync(outside, link);
  t.throws(() => roots.prepareRestore([inside, link], [inside]), { code: "HIB_NOT_ALLOWED", message: /mount .*-link/ });
  roots.forgetRestore();
  t.is(mountRoot(machine.control, 0, inside), inside);
  roots.prepareRestore([join(inside, "nothing")], [inside]);
  roots.restore();
  mkdirSync(join(inside, "nothing"));
  t.throws(() => readdirSync(mountRoot(machine.control, 0, inside)), { code: "ENOENT" });
});
