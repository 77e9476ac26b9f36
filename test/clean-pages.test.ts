/**
 * Clean pages, learnt while a machine runs: what a save says of them is what they are at the stop, whatever was closed,
 * opened, read and cut meanwhile, and wherever in that the learning fell.
 */
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import test, { type ExecutionContext } from "ava";
import type { Reference } from "../src/base/host-file.js";
import { FRAME_BYTES } from "../src/base/layout.js";
import type { Kernel } from "../src/vm/kernel.js";
import { CleanPages } from "../src/vm/files/clean-pages.js";
import { O_RDWR, SEEK_SET } from "../src/vm/files/flags.js";
import { readInode } from "../src/vm/files/inode.js";
import { KIND_FILE_CLEAN, KIND_KERNEL_HEAP } from "../src/vm/memory/kernel-layout.js";
import { objectSerial, walkObjectTables } from "../src/vm/memory/memory-object.js";
import { checkConsistency } from "../src/vm/views/consistency.js";
import { Wait } from "../src/vm/tasks/wait.js";
import { HandMachine, scratch } from "./support.js";
import type { Call, InterruptedCall } from "./fixtures/interrupted.js";

const PAGES = 4;
const HALTED = 0;
const DONE = 1;

/** A machine with a process that has files of the host open. */
class Reader {
  readonly machine = new HandMachine();
  readonly slot: number;

  constructor(t: ExecutionContext, files: readonly string[], pages = PAGES) {
    const host = scratch(t);
    for (const name of files) writeFileSync(join(host, name), randomBytes(pages * FRAME_BYTES));
    const { kernel } = this.machine;
    kernel.control.locked(() => kernel.files.names.mounts.add({ path: "/host", host, readOnly: false }));
    this.slot = this.machine.spawn(1).slot;
  }

  open(name: string): number {
    const { control, files } = this.machine.kernel;
    return control.locked(() => files.open(this.slot, `/host/${name}`, O_RDWR) as number);
  }

  /** Reads the next pages. */
  read(fd: number, pages = 1): void {
    const { control, files } = this.machine.kernel;
    for (let page = 0; page < pages; page++) control.locked(() => files.read(this.slot, fd, FRAME_BYTES));
  }

  close(fd: number): void {
    const { control, files } = this.machine.kernel;
    control.locked(() => files.descriptions.close(this.slot, fd));
  }

  /** Closes it; where its tables were, all is now such that frames beyond RAM would seem to be its clean pages. */
  closeAndReuse(fd: number): void {
    const { buddy, memory } = this.machine.kernel;
    const [table] = walkObjectTables(memory, this.behind(fd).object);
    this.close(fd);
    const frames: number[] = [];
    for (let frame: number | undefined; (frame = buddy.allocate(0, 0, KIND_KERNEL_HEAP)) !== undefined; ) frames.push(frame);
    const leaf = frames.find((frame) => frame !== table)!;
    for (const frame of frames) {
      const word = frame === table ? leaf + 1 : KIND_FILE_CLEAN << 16;
      memory.write(frame * FRAME_BYTES, new Uint8Array(new Int32Array(FRAME_BYTES / 4).fill(word).buffer));
    }
  }

  /** The object behind a fd, and the frame of its first page. */
  behind(fd: number): { object: number; frame: number | undefined } {
    const { files, memory, objects } = this.machine.kernel;
    const { object } = readInode(memory, files.descriptions.find(this.slot, fd)!.behind);
    return { object, frame: objects.find(object, 0) };
  }

  /** What a save says that has not learnt anything before the stop. */
  now(): Reference[] {
    const clean = new CleanPages(this.machine.kernel);
    clean.freeze();
    return clean.references();
  }
}

test("a file that is closed and opened again while a save streams, at the same address and with as many changes, is another", (t) => {
  const reader = new Reader(t, ["data"]);
  const { kernel, tracking } = reader.machine;
  let fd = reader.open("data");
  reader.read(fd);
  const first = reader.behind(fd);
  tracking.arm();
  const clean = new CleanPages(kernel);
  clean.learn();
  t.deepEqual(clean.references(), [], "nothing is said before the stop");
  let frame = first.frame;
  for (let times = 0; times < 8; times++) {
    reader.close(fd);
    // The page's frame is the machine's now: of whatever else it is, it is not of the file.
    if (times === 0) frame = kernel.control.locked(() => kernel.buddy.allocate(0, 0, KIND_KERNEL_HEAP));
    fd = reader.open("data");
    reader.read(fd);
    if (times > 0 && reader.behind(fd).object === first.object) break;
  }
  t.is(frame, first.frame);
  t.is(reader.behind(fd).object, first.object);
  t.not(reader.behind(fd).frame, first.frame);
  clean.freeze();
  t.deepEqual(clean.references(), reader.now());
  t.is(clean.references().length, 1);
});

test("a page that is written through to its file after it was learnt is said to be what it is at the stop", (t) => {
  const reader = new Reader(t, ["data"]);
  const { kernel, tracking } = reader.machine;
  const fd = reader.open("data");
  reader.read(fd, PAGES);
  tracking.arm();
  const clean = new CleanPages(kernel);
  clean.learn();
  clean.freeze();
  const hashes = () => clean.references().flatMap((run) => [...run.hashes]); // by frame
  const before = hashes();
  kernel.control.locked(() => {
    kernel.files.seek(reader.slot, fd, FRAME_BYTES + 100, SEEK_SET);
    kernel.files.write(reader.slot, fd, Uint8Array.of(1, 2, 3));
  });
  clean.freeze();
  const after = hashes();
  t.deepEqual(clean.references(), reader.now());
  t.is(before.length, PAGES);
  t.is(before.filter((hash, i) => hash !== after[i]).length, 1);
});

test("a page that is read after the learning is looked at at the stop", (t) => {
  const reader = new Reader(t, ["data"]);
  const { kernel, tracking } = reader.machine;
  const fd = reader.open("data");
  reader.read(fd);
  tracking.arm();
  const clean = new CleanPages(kernel);
  clean.learn();
  reader.read(fd, PAGES - 1);
  clean.freeze();
  t.deepEqual(clean.references(), reader.now());
  t.is(
    clean.references().reduce((sum, { frames }) => sum + frames, 0),
    PAGES,
  );
});

test("no two memory objects have one number, whatever is made and given back", (t) => {
  const reader = new Reader(t, ["data"]);
  const { objects, memory } = reader.machine.kernel;
  const seen = new Set<number>();
  for (let i = 0; i < 100; i++) {
    const object = objects.create()!;
    seen.add(objectSerial(memory, object));
    if (i % 3 > 0) objects.destroy(object);
  }
  t.is(seen.size, 100);
  t.false(seen.has(0));
});

/** A kernel whose control calls `between` after the hold of the lock with this number, and none within that. */
function betweenHolds(kernel: Kernel, number: number, between: () => void): () => boolean {
  const { control } = kernel;
  const locked = control.locked.bind(control);
  let holds = 0;
  control.locked = <T>(body: () => T): T => {
    const result = locked(body);
    if (holds++ === number) between();
    return result;
  };
  return () => holds > number;
}

for (const change of ["cut", "closed", "renamed", "removed"] as const) {
  test(`a file that is ${change} between two pieces of the learning is read anew at the stop`, (t) => {
    let reached = true;
    for (let hold = 0; reached; hold++) {
      const reader = new Reader(t, ["data", "cut"], 1500); // more than a piece
      const { kernel, tracking } = reader.machine;
      const fds = [reader.open("data"), reader.open("cut")];
      for (const fd of fds) reader.read(fd, 1500);
      tracking.arm();
      const met = betweenHolds(kernel, hold, () => {
        const { names } = kernel.files;
        if (change === "closed") reader.closeAndReuse(fds[1]!);
        else if (change === "renamed") kernel.control.locked(() => names.rename("/host/data", "/host/cut"));
        else if (change === "removed")
          for (const name of ["data", "cut"]) while (kernel.control.locked(() => names.unlink(`/host/${name}`)) instanceof Wait);
        else for (const fd of fds) kernel.control.locked(() => kernel.files.ftruncate(reader.slot, fd, FRAME_BYTES));
      });
      const clean = new CleanPages(kernel);
      clean.learn();
      reached = met();
      t.true(reached || hold > 6, "the lock is let go of between pieces");
      clean.freeze();
      t.deepEqual(clean.references(), reader.now(), `after hold ${hold}`);
    }
  });
}

/** What a vCPU may be at the middle of. */
const CALLS: { name: string; call: (fds: { fd: number; cut: number }) => Call }[] = [
  { name: "reads a page", call: ({ fd }) => ({ do: "read", fd, length: FRAME_BYTES }) },
  { name: "cuts a file", call: ({ cut }) => ({ do: "truncate", fd: cut, size: FRAME_BYTES }) },
  { name: "closes a file", call: ({ cut }) => ({ do: "close", fd: cut }) },
  { name: "renames a file", call: () => ({ do: "rename", from: "/host/cut", to: "/host/other" }) },
  { name: "replaces a file", call: () => ({ do: "rename", from: "/host/data", to: "/host/cut" }) },
  { name: "removes a file", call: () => ({ do: "unlink", path: "/host/cut" }) },
  { name: "opens a file", call: () => ({ do: "open", path: "/host/third", flags: O_RDWR }) },
];

for (const { name, call } of CALLS) {
  test(`learning while a vCPU ${name}, before each of its stores: the stop says what is there`, async (t) => {
    t.timeout(300_000);
    let halts = 0;
    const vcpu = new Worker(new URL("./fixtures/interrupted.js", import.meta.url));
    t.teardown(() => vcpu.terminate());
    for (let at = 0; ; at++) {
      const reader = new Reader(t, ["data", "cut", "third"]);
      const { kernel, memory, tracking } = reader.machine;
      const fds = { fd: reader.open("data"), cut: reader.open("cut") };
      for (const fd of [fds.fd, fds.cut, fds.cut, fds.cut]) reader.read(fd);
      tracking.arm();
      const words = new Int32Array(new SharedArrayBuffer(8));
      const answered = once(vcpu, "message");
      const interrupted: InterruptedCall = { ...call(fds), memory, words, slot: reader.slot, at };
      vcpu.postMessage(interrupted);
      Atomics.wait(words, HALTED, 0); // it halts, or it has no such store
      const clean = new CleanPages(kernel);
      clean.learn();
      Atomics.store(words, DONE, 1);
      Atomics.notify(words, DONE);
      const [{ result, halted }] = (await answered) as [{ result: number; halted: boolean }];
      t.true(result >= 0, `${name}: ${result}`);
      clean.freeze();
      t.deepEqual(clean.references(), reader.now(), `before store ${at}`);
      t.deepEqual(checkConsistency(kernel.memory).problems, []);
      if (!halted) break;
      halts++;
    }
    t.log(`places: ${halts}`);
    t.true(halts > 3);
  });
}
