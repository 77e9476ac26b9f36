/**
 * Names of host files that are open: they are renamed and removed as on any other system, and an image made afterwards has what it
 * needs of them.
 */
import { randomBytes } from "node:crypto";
import { existsSync, linkSync, mkdirSync, readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { FRAME_BYTES, PTE_R, PTE_W } from "../src/base/layout.js";
import { save } from "../src/hibernate.js";
import { openImage } from "../src/image/directory.js";
import type { Machine } from "../src/machine.js";
import { resume } from "../src/resume.js";
import { O_CREAT, O_RDONLY, O_RDWR, SEEK_SET } from "../src/vm/files/flags.js";
import { type readInode, walkHostInodes } from "../src/vm/files/inode.js";
import { describeFds } from "../src/vm/files/open-files.js";
import * as E from "../src/vm/memory/errno.js";
import { AGAIN } from "../src/vm/tasks/wait.js";
import { checkConsistency } from "../src/vm/views/consistency.js";
import { bootMachine, callsOf, HandMachine, MIB, scratch, whileStopped } from "./support.js";

const RW = PTE_R | PTE_W;

/** A process with a directory of the host at /h. */
function start(t: ExecutionContext, ramBytes = 16 * MIB) {
  const directory = scratch(t);
  const machine = new HandMachine({ ramBytes, vcpus: 2 });
  const { kernel } = machine;
  kernel.control.locked(() => kernel.files.names.mounts.add({ path: "/h", host: directory, readOnly: false }));
  const process = machine.spawn(16);
  const calls = callsOf(machine, process);
  const core = machine.run(process);
  const at = calls.mmap({ pages: 300, flags: RW });
  return {
    directory,
    machine,
    process,
    calls,
    put: (text: string): number => {
      for (const [i, byte] of Buffer.from(text, "latin1").entries()) core.store8((at + i) | 0, byte);
      return at;
    },
    get: (length: number, from = at): string =>
      Buffer.from(Array.from({ length }, (_, i) => core.load8((from + i) | 0))).toString("latin1"),
    /** Reads from the start. */
    all: (fd: number, length: number): string => {
      calls.lseek(fd, 0, SEEK_SET);
      const count = calls.read(fd, at, length)!;
      return Buffer.from(Array.from({ length: count }, (_, i) => core.load8((at + i) | 0))).toString("latin1");
    },
    openPaths: () => Array.from(walkHostInodes(kernel.memory), ({ host }) => host!.path),
    consistent: () => t.deepEqual(checkConsistency(kernel.memory).problems, []),
  };
}

test("a file that is removed while it is open and mapped is the machine's own from then on", (t) => {
  const { directory, machine, process, calls, put, get, all, openPaths, consistent } = start(t);
  const path = join(directory, "f");
  writeFileSync(path, "x".repeat(10_000));
  const free = machine.kernel.buddy.freeFrames;
  const fd = calls.open("/h/f", O_RDWR);
  const second = calls.open("/h/f", O_RDONLY);
  const shared = calls.mmapFile(fd, 0, { pages: 3, flags: RW, shared: true });
  t.is(get(2, shared + 4095), "xx");
  t.is(calls.unlink("/h/f"), 0);
  t.false(existsSync(path));
  t.deepEqual(openPaths(), []);
  t.like(describeFds(machine.kernel.memory, process.slot)[0], { fd, path: null, host: null });
  consistent();
  t.is(all(second, 20_000), "x".repeat(10_000), "also what nobody had read");
  calls.lseek(fd, 9_999, SEEK_SET);
  t.is(calls.write(fd, put("abc"), 3), 3);
  t.is(get(3, shared + 9_999), "abc", "a mapping of it sees what is written");
  t.like(calls.fstat(second), { size: 10_002 });
  const other = calls.open("/h/f", O_RDWR | O_CREAT);
  t.is(calls.write(other, put("new"), 3), 3);
  t.is(readFileSync(path, "latin1"), "new");
  t.is(all(fd, 3), "xxx");
  t.is(calls.munmap(shared, 3), 0);
  t.is(readFileSync(path, "latin1"), "new", "nothing of the old file reaches the new one");
  consistent();
  for (const open of [fd, second, other]) calls.close(open);
  consistent();
  t.true(free - machine.kernel.buddy.freeFrames <= 8, "its pages went with the last fd");
});

test("a file that is renamed while it is open, by its own name or a directory's, is found at its new path", (t) => {
  const { directory, machine, process, calls, put, all, openPaths, consistent } = start(t);
  mkdirSync(join(directory, "d"));
  writeFileSync(join(directory, "d/f"), "first");
  writeFileSync(join(directory, "d/g"), "second");
  const f = calls.open("/h/d/f", O_RDWR);
  const g = calls.open("/h/d/g", O_RDWR);
  t.is(calls.rename("/h/d/f", "/h/d/e"), 0);
  t.is(calls.rename("/h/d", "/h/a long name, longer than the one before it was"), 0);
  const moved = join(directory, "a long name, longer than the one before it was");
  t.deepEqual(openPaths().sort(), [join(moved, "e"), join(moved, "g")]);
  consistent();
  // Another vCPU has no handle of it, and this one has one from before.
  const there = callsOf(machine, process, 1);
  t.is(there.lseek(g, 0, SEEK_SET), 0);
  t.is(all(f, 10), "first");
  machine.run(process, 0);
  t.is(calls.write(g, put("SEC"), 3), 3);
  t.is(readFileSync(join(moved, "g"), "latin1"), "SECond");
  t.is(calls.rename("/h/nothing", "/h/g"), -E.ENOENT);
  t.is(
    calls.rename(`/h/${"a long name, longer than the one before it was"}`, "/h/a long name, longer than the one before it was/x"),
    -E.EINVAL,
  );
  t.deepEqual(openPaths().sort(), [join(moved, "e"), join(moved, "g")], "a rename that failed has changed nothing");
  consistent();
});

test("a file that is replaced while it is open is the machine's own, and who replaces it keeps its handle", (t) => {
  const { directory, calls, all, openPaths, consistent } = start(t);
  writeFileSync(join(directory, "old"), "old");
  writeFileSync(join(directory, "new"), "new");
  const [old, young] = [calls.open("/h/old", O_RDWR), calls.open("/h/new", O_RDWR)];
  t.is(calls.rename("/h/new", "/h/old"), 0);
  t.deepEqual(openPaths(), [join(directory, "old")]);
  t.deepEqual([all(old, 9), all(young, 9)], ["old", "new"]);
  consistent();
});

test("of a file with two names, one may go; the one that it was opened by stays, for it leads to what others see", (t) => {
  const { directory, calls, all, openPaths, consistent } = start(t);
  writeFileSync(join(directory, "a"), "linked");
  linkSync(join(directory, "a"), join(directory, "b"));
  const fd = calls.open("/h/a", O_RDWR);
  t.is(calls.unlink("/h/a"), -E.EBUSY);
  t.is(calls.rename("/h/a", "/h/b"), 0, "of two names of one file, none is moved");
  t.true(existsSync(join(directory, "a")));
  t.is(calls.unlink("/h/b"), 0);
  t.deepEqual(openPaths(), [join(directory, "a")]);
  t.is(calls.unlink("/h/a"), 0);
  t.deepEqual(openPaths(), []);
  t.is(all(fd, 9), "linked");
  consistent();
});

test("a large file comes into memory in several calls; one that is too large for it stays open and keeps its name", (t) => {
  const { directory, machine, calls, openPaths, consistent } = start(t);
  const contents = randomBytes(2.5 * MIB);
  writeFileSync(join(directory, "large"), contents);
  writeFileSync(join(directory, "huge"), "");
  truncateSync(join(directory, "huge"), 12 * MIB);
  const { kernel } = machine;
  const unlink = (path: string) => kernel.control.locked(() => kernel.files.names.unlink(path));
  calls.open("/h/large", O_RDWR);
  for (let call = 0; call < 2; call++) t.is(unlink("/h/large"), AGAIN);
  t.true(existsSync(join(directory, "large")));
  consistent();
  const [{ object }] = Array.from(walkHostInodes(kernel.memory)) as [ReturnType<typeof readInode>];
  t.is(unlink("/h/large"), 0);
  const page = kernel.objects.find(object, 500)!;
  t.deepEqual(
    Buffer.from(kernel.memory.read(page * FRAME_BYTES, FRAME_BYTES)),
    contents.subarray(500 * FRAME_BYTES, 501 * FRAME_BYTES),
  );
  calls.open("/h/huge", O_RDWR);
  const free = kernel.buddy.freeFrames;
  t.is(unlink("/h/huge"), -E.EBUSY);
  t.is(kernel.buddy.freeFrames, free, "nothing was read in vain");
  t.deepEqual(openPaths(), [join(directory, "huge")]);
  t.is(statSync(join(directory, "huge")).size, 12 * MIB);
  consistent();
});

test("without memory for a new path nothing is renamed", (t) => {
  const { directory, machine, calls, openPaths, consistent } = start(t);
  writeFileSync(join(directory, "f"), "f");
  calls.open("/h/f", O_RDWR);
  const { kernel } = machine;
  const taken: number[] = [];
  for (let frame = kernel.buddy.allocate(0, 0, 3); frame !== undefined; frame = kernel.buddy.allocate(0, 0, 3)) taken.push(frame);
  const long = "n".repeat(250); // of a size class of which there are no free objects
  t.is(calls.rename("/h/f", `/h/${long}`), -E.ENOMEM);
  t.true(existsSync(join(directory, "f")));
  t.deepEqual(openPaths(), [join(directory, "f")]);
  for (const frame of taken) kernel.buddy.free(frame);
  t.is(calls.rename("/h/f", `/h/${long}`), 0);
  consistent();
});

test("live: files that lost or changed their names come back from an image, and their old names do not matter", async (t) => {
  const host = scratch(t);
  const path = join(scratch(t), "image");
  const contents = { gone: randomBytes(10 * FRAME_BYTES + 7), renamed: randomBytes(5 * FRAME_BYTES) };
  for (const [name, bytes] of Object.entries(contents)) writeFileSync(join(host, name), bytes);
  const options = { ramBytes: 32 * MIB, vcpus: 1 };
  const machine = await bootMachine(t, { ...options, mounts: [{ path: "/host", host, readOnly: false }] });
  const { slot } = machine.spawn("idle:ms=1000");
  const call = <T>({ kernel }: Machine, what: (files: Machine["kernel"]["files"]) => T): T =>
    kernel.control.locked(() => what(kernel.files));
  const fds = call(machine, (files) => {
    const opened = ["gone", "renamed"].map((name) => files.open(slot, `/host/${name}`, O_RDWR) as number);
    for (const fd of opened) files.read(slot, fd, 2 * FRAME_BYTES);
    t.is(files.names.unlink("/host/gone"), 0);
    t.is(files.names.rename("/host/renamed", "/host/name"), 0);
    return opened;
  });
  const report = await save(machine, path);
  t.is(report.frames.by_reference, 2, "two pages that were read of the one that has a name");
  writeFileSync(join(host, "gone"), "somebody else's");
  const image = await openImage(path);
  t.deepEqual(
    image.catalogue.files().map((file) => file.path),
    [join(host, "name")],
  );
  image.close();
  const woken = await bootMachine(t, options);
  await resume(woken, path);
  t.deepEqual(whileStopped(woken, () => checkConsistency(woken.kernel.memory)).problems, []);
  for (const [i, bytes] of Object.values(contents).entries()) {
    const read = call(woken, (files) => {
      files.seek(slot, fds[i]!, 0, SEEK_SET);
      return files.read(slot, fds[i]!, MIB) as Uint8Array;
    });
    t.true(bytes.equals(read));
  }
  t.is(readFileSync(join(host, "gone"), "latin1"), "somebody else's");
});
