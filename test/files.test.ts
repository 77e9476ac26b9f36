/** Files, fds, pipes, and mappings of files; in memory and of the host. */
import { randomBytes } from "node:crypto";
import { execFileSync, spawnSync } from "node:child_process";
import {
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { FRAME_BYTES, PTE_R, PTE_W } from "../src/base/layout.js";
import { save } from "../src/hibernate.js";
import { openImage } from "../src/image/directory.js";
import { exportImage, importImage } from "../src/image/stream.js";
import { verifyChunks } from "../src/image/verify.js";
import type { Machine } from "../src/machine.js";
import { resume } from "../src/resume.js";
import type { ResumeOptions } from "../src/resume-options.js";
import { GuestFault } from "../src/vm/memory/address-space.js";
import { checkConsistency } from "../src/vm/views/consistency.js";
import * as E from "../src/vm/memory/errno.js";
import {
  O_APPEND,
  O_CLOEXEC,
  O_CREAT,
  O_EXCL,
  O_NONBLOCK,
  O_RDONLY,
  O_RDWR,
  O_TRUNC,
  O_WRONLY,
  SEEK_CUR,
  SEEK_END,
  SEEK_SET,
} from "../src/vm/files/flags.js";
import { CALL_BYTES_MAX } from "../src/vm/files/files.js";
import { readInode } from "../src/vm/files/inode.js";
import { KIND_FILE, KIND_FILE_CLEAN } from "../src/vm/memory/kernel-layout.js";
import { type Process, readProcess } from "../src/vm/tasks/process.js";
import { DATA_BASE } from "../src/vm/personality/step/program.js";
import { createRunner } from "../src/vm/personality/step/programs/index.js";
import { SIGPIPE, signalSet } from "../src/vm/tasks/signals.js";
import {
  bootMachine,
  callsOf,
  Draws,
  type HandCalls,
  HandMachine,
  MIB,
  saveAndGoOn,
  scratch,
  sleep,
  whileStopped,
} from "./support.js";

const PAGES = 8;

/** A process that a test makes the system calls of. */
class Hand {
  readonly machine: HandMachine;
  readonly process: Process;
  readonly calls: HandCalls;
  readonly #vcpu: number;

  constructor(machine: HandMachine, vcpu = 0, process: Process = machine.spawn(PAGES)) {
    this.machine = machine;
    this.process = process;
    this.#vcpu = vcpu;
    this.calls = callsOf(machine, process, vcpu);
  }

  #run() {
    return this.machine.run(this.process, this.#vcpu);
  }

  put(text: string, at = DATA_BASE): number {
    const core = this.#run();
    const bytes = Buffer.from(text, "latin1");
    for (const [i, byte] of bytes.entries()) core.store8((at + i) | 0, byte);
    return bytes.length;
  }

  get(length: number, at = DATA_BASE): string {
    const core = this.#run();
    return Buffer.from(Array.from({ length }, (_, i) => core.load8((at + i) | 0))).toString("latin1");
  }

  write(fd: number, text: string): number | undefined {
    const length = this.put(text);
    return this.calls.write(fd, DATA_BASE, length);
  }

  read(fd: number, most: number): string | number | undefined {
    this.#run();
    const count = this.calls.read(fd, DATA_BASE, most);
    return typeof count === "number" && count >= 0 ? this.get(count) : count;
  }
}

function consistent(t: ExecutionContext, machine: HandMachine): void {
  t.deepEqual(checkConsistency(machine.kernel.memory).problems, []);
}

function mount(machine: HandMachine, path: string, host: string, readOnly = false): void {
  const { kernel } = machine;
  kernel.control.locked(() => kernel.files.names.mounts.add({ path, host, readOnly }));
}

test("files in memory and files of the host do the same, whatever is done with them", (t) => {
  const draws = new Draws(t);
  for (let round = 0; round < 6; round++) {
    const machine = new HandMachine({ ramBytes: 32 * MIB });
    mount(machine, "/host", scratch(t));
    const hand = new Hand(machine);
    hand.calls.mkdir("/memory");
    const fds: [number, number][] = [];
    const names = ["a", "b", "d", "d/a", "d/b", "d/../a", "e/x"];
    const flags = [
      O_RDONLY,
      O_RDWR,
      O_WRONLY | O_CREAT,
      O_RDWR | O_CREAT,
      O_RDWR | O_CREAT | O_EXCL,
      O_RDWR | O_TRUNC,
      O_RDWR | O_APPEND,
    ];
    const both = (what: (root: string, fd: (pair: [number, number]) => number) => unknown): void => {
      const memory = what("/memory", ([fd]) => fd);
      const host = what("/host", ([, fd]) => fd);
      const strip = (value: unknown) => JSON.stringify(value, (key, part: unknown) => (key === "modified" ? 0 : part));
      if (strip(memory) !== strip(host))
        throw new Error(`${String(what)}: in memory ${strip(memory)}, of the host ${strip(host)}`.slice(0, 400));
    };
    for (let step = 0; step < 400; step++) {
      const name = draws.of(names);
      const other = draws.of(names);
      const open = fds.length === 0 ? undefined : draws.of(fds);
      const bytes = draws.below(9000);
      const at = draws.below(12000);
      switch (draws.below(14)) {
        case 0:
        case 1: {
          if (fds.length > 20) break;
          const flag = draws.of(flags);
          const pair = [hand.calls.open(`/memory/${name}`, flag), hand.calls.open(`/host/${name}`, flag)] as [number, number];
          if (pair[0] < 0 || pair[1] < 0) t.is(pair[0], pair[1], `open ${name} ${flag.toString(8)}`);
          else fds.push(pair);
          break;
        }
        case 2:
          if (open !== undefined) both((_, fd) => hand.calls.close(fd(open)));
          fds.splice(fds.indexOf(open!), 1);
          break;
        case 3:
        case 4:
          if (open !== undefined) {
            hand.put(String(step).padEnd(Math.min(bytes, 500), "x"));
            both((_, fd) => hand.calls.write(fd(open), DATA_BASE, bytes));
          }
          break;
        case 5:
        case 6:
          if (open !== undefined) both((_, fd) => hand.read(fd(open), bytes));
          break;
        case 7:
          if (open !== undefined) both((_, fd) => hand.calls.lseek(fd(open), at, draws.of([SEEK_SET])));
          break;
        case 8:
          if (open !== undefined) both((_, fd) => hand.calls.ftruncate(fd(open), at));
          break;
        case 9:
          both((root) => hand.calls.mkdir(`${root}/${name}`));
          break;
        case 10:
          both((root) => hand.calls.unlink(`${root}/${name}`));
          break;
        case 11:
          both((root) => hand.calls.rmdir(`${root}/${name}`));
          break;
        case 12:
          both((root) => hand.calls.rename(`${root}/${name}`, `${root}/${other}`));
          break;
        default:
          both((root) => [hand.calls.stat(`${root}/${other}`), hand.calls.readdir(`${root}/d`), hand.calls.readdir(root)]);
      }
      if (step % 40 === 0) consistent(t, machine);
    }
    for (const open of fds) both((_, fd) => hand.calls.close(fd(open)));
    consistent(t, machine);
  }
});

test("rename: moves, replaces, and never into itself", (t) => {
  const machine = new HandMachine();
  const hand = new Hand(machine);
  const { calls } = hand;
  for (const path of ["/d", "/d/e"]) t.is(calls.mkdir(path), 0);
  const fd = calls.open("/a", O_CREAT | O_RDWR);
  hand.write(fd, "one");
  calls.close(calls.open("/b", O_CREAT | O_RDWR));
  t.is(calls.rename("/a", "/b"), 0);
  t.is(calls.open("/a", O_RDONLY), -E.ENOENT);
  t.is(hand.read(calls.open("/b", O_RDONLY), 10), "one");
  t.is(calls.rename("/d", "/d/e/f"), -E.EINVAL);
  t.is(calls.rename("/b", "/d"), -E.EISDIR);
  t.is(calls.rename("/d", "/b"), -E.ENOTDIR);
  t.is(calls.rename("/d/e", "/e"), 0);
  t.deepEqual(calls.readdir("/"), ["b", "d", "e"]);
  t.is(calls.rename("/b", "/b"), 0);
  t.is(calls.rename("/", "/x"), -E.EBUSY);
  t.is(calls.mkdir(`/${"n".repeat(256)}`), -E.ENAMETOOLONG);
  t.is(calls.rmdir("/d"), 0);
  consistent(t, machine);
});

test("rename: a tree in memory may be as deep as a path may be, and no deeper", (t) => {
  const machine = new HandMachine();
  const { calls } = new Hand(machine);
  const deepest = 64;
  const below = (path: string, depth: number): string => {
    for (let n = 0; n < depth; n++) t.is(calls.mkdir((path += "/d")), 0);
    return path;
  };
  t.is(calls.mkdir("/from"), 0);
  below("/from", 2); // a short branch and a long one: the longest counts
  t.is(calls.mkdir("/from/long"), 0);
  const file = `${below("/from/long", 29)}/f`;
  calls.close(calls.open(file, O_CREAT | O_RDWR)); // 31 names below /from
  const to = below("", deepest - 31);
  t.is(calls.rename("/from", `${to}/d`), -E.ENAMETOOLONG, "34 names and 31 below them");
  t.deepEqual(calls.readdir("/from"), ["d", "long"]);
  t.is(calls.rename(file, "/f"), 0);
  t.is(calls.rename("/from", `${to}/d`), 0, "34 names and 30 below them");
  const long = `${to}/d${file.slice("/from".length, -2)}`;
  t.is(calls.mkdir(`${long}/d`), -E.ENAMETOOLONG);
  t.is(calls.rename("/f", `${long}/f`), -E.ENAMETOOLONG);
  t.is(calls.rename("/f", `${long.slice(0, -2)}/f`), 0);
  consistent(t, machine);
});

test("fds: dup and fork share the position, exec closes what says so, and the last one frees the file", (t) => {
  const machine = new HandMachine({ vcpus: 2 });
  const hand = new Hand(machine);
  const { calls } = hand;
  const free = machine.kernel.buddy.freeFrames;
  const fd = calls.open("/f", O_CREAT | O_RDWR);
  t.is(fd, 0);
  t.is(hand.write(fd, "abcdef"), 6);
  const twin = calls.dup(fd);
  const secret = calls.open("/f", O_RDONLY | O_CLOEXEC);
  calls.lseek(twin, 2, SEEK_SET);
  t.is(hand.read(fd, 2), "cd");
  machine.kernel.lifecycle.fork(hand.process.slot);
  const child = new Hand(machine, 1, readProcess(machine.kernel.memory, 1)!);
  t.is(child.read(fd, 1), "e");
  t.is(hand.read(twin, 1), "f");
  t.is(calls.lseek(fd, 0, SEEK_CUR), 6);
  t.is(calls.dup2(fd, 9), 9);
  t.is(calls.lseek(9, -1, SEEK_END), 5);
  t.is(calls.unlink("/f"), 0);
  consistent(t, machine);
  t.true(machine.kernel.lifecycle.exec(child.process.slot, "idle", createRunner));
  t.is(child.calls.lseek(secret, 0, SEEK_SET), -E.EBADF);
  t.is(child.calls.lseek(twin, 0, SEEK_CUR), 5);
  machine.kernel.lifecycle.end(child.process.slot);
  for (const open of [fd, twin, secret, 9]) t.is(calls.close(open), 0);
  t.is(calls.close(fd), -E.EBADF);
  t.is(typeof calls.wait(-1), "object");
  consistent(t, machine);
  machine.kernel.control.locked(() => machine.kernel.files.descriptions.closeAll(hand.process.slot, "all"));
  t.true(free - machine.kernel.buddy.freeFrames <= 8, "what is left are frames of the kernel heap and page tables");
  for (let i = 0; i < 256; i++) t.is(calls.open("/", O_RDONLY), -E.EISDIR);
  calls.close(calls.open("/g", O_CREAT));
  const many = Array.from({ length: 257 }, () => calls.open("/g", O_RDONLY));
  t.is(many[255], 255);
  t.is(many[256], -E.EMFILE);
  consistent(t, machine);
});

test("a call copies no more than it may, whatever it is asked for: what lies beyond is not touched", (t) => {
  const machine = new HandMachine();
  const hand = new Hand(machine);
  const { calls } = hand;
  const fd = calls.open("/large", O_CREAT | O_RDWR);
  const pages = CALL_BYTES_MAX / FRAME_BYTES;
  const address = calls.mmap({ pages, flags: PTE_R | PTE_W });
  hand.put("first", address);
  hand.put("last", address + CALL_BYTES_MAX - 4);
  for (const more of [1, 2 ** 30]) {
    t.is(calls.lseek(fd, 0, SEEK_SET), 0);
    t.is(calls.write(fd, address, CALL_BYTES_MAX + more), CALL_BYTES_MAX);
    hand.put("spoilt", address);
    t.is(calls.lseek(fd, 0, SEEK_SET), 0);
    t.is(calls.read(fd, address, CALL_BYTES_MAX + more), CALL_BYTES_MAX);
    t.is(hand.get(5, address) + hand.get(4, address + CALL_BYTES_MAX - 4), "firstlast");
  }
  consistent(t, machine);
});

test("pipes: contents in order, writers and readers that wait, the end, and nobody there", (t) => {
  const machine = new HandMachine();
  const hand = new Hand(machine);
  const { calls } = hand;
  const { reader, writer } = calls.pipe() as { reader: number; writer: number };
  t.is(hand.read(reader, 10), undefined, "nothing there yet");
  t.is(hand.write(writer, "abc"), 3);
  t.is(hand.read(reader, 2), "ab");
  t.is(hand.write(writer, "d"), 1);
  t.is(hand.read(reader, 10), "cd");
  hand.put("z".repeat(5000));
  t.is(calls.write(writer, DATA_BASE, 5000), 4096, "more than a pipe holds comes in parts");
  t.is(calls.write(writer, DATA_BASE, 1), undefined, "full");
  t.is(hand.read(reader, 10), "z".repeat(10));
  t.is(calls.write(writer, DATA_BASE, 11), undefined, "not in parts");
  t.is(calls.write(writer, DATA_BASE, 10), 10);
  t.is(calls.write(reader, DATA_BASE, 1), -E.EBADF);
  t.is(calls.lseek(reader, 0, SEEK_SET), -E.ESPIPE);
  calls.close(writer);
  t.is(hand.read(reader, 5000), "z".repeat(4096));
  t.is(hand.read(reader, 10), "", "the end");
  consistent(t, machine);
  const other = calls.pipe(O_NONBLOCK) as { reader: number; writer: number };
  t.is(hand.read(other.reader, 1), -E.EAGAIN);
  calls.close(other.reader);
  t.is(hand.write(other.writer, "x"), -E.EPIPE);
  t.is(readProcess(machine.kernel.memory, hand.process.slot)!.pending, signalSet(SIGPIPE));
  consistent(t, machine);
});

test("mappings of a file: shared ones are the file, private ones begin as it", (t) => {
  const machine = new HandMachine();
  const hand = new Hand(machine);
  const { calls } = hand;
  const fd = calls.open("/f", O_CREAT | O_RDWR);
  hand.write(fd, "hello");
  const rw = PTE_R | PTE_W;
  const shared = calls.mmapFile(fd, 0, { pages: 2, flags: rw, shared: true });
  const own = calls.mmapFile(fd, 0, { pages: 1, flags: rw });
  t.is(hand.get(5, shared), "hello");
  t.is(hand.get(5, own), "hello");
  hand.put("J", shared);
  t.is(hand.get(5, own), "Jello", "not stored to yet");
  hand.put("M", own);
  t.is(hand.get(5, shared), "Jello");
  calls.lseek(fd, 0, SEEK_SET);
  t.is(hand.read(fd, 5), "Jello");
  t.is(calls.ftruncate(fd, 5 * FRAME_BYTES), 0);
  t.is(hand.get(1, shared + FRAME_BYTES), "\0");
  t.is(calls.ftruncate(fd, 5), 0);
  t.throws(() => hand.get(1, shared + FRAME_BYTES), { instanceOf: GuestFault, message: /the file behind it ends before/ });
  t.is(calls.unlink("/f"), 0);
  t.is(calls.close(fd), 0);
  t.is(hand.get(5, shared), "Jello", "mapped, it is still there");
  consistent(t, machine);
  t.is(calls.munmap(shared, 2), 0);
  t.is(calls.munmap(own, 1), 0);
  consistent(t, machine);
  const readOnly = calls.open("/g", O_CREAT | O_RDONLY);
  t.is(calls.mmapFile(readOnly, 0, { pages: 1, flags: rw, shared: true }), -E.EACCES);
  t.true(calls.mmapFile(readOnly, 0, { pages: 1, flags: rw }) > 0);
});

test("the host's files: read-only mounts, links that lead out, and which pages are clean", (t) => {
  const directory = scratch(t);
  const outside = scratch(t);
  writeFileSync(join(outside, "secret"), "secret");
  symlinkSync(outside, join(directory, "out"));
  symlinkSync(join(outside, "secret"), join(directory, "link"));
  mkdirSync(join(directory, "sub"));
  writeFileSync(join(directory, "f"), "x".repeat(10_000));
  const machine = new HandMachine();
  mount(machine, "/ro", directory, true);
  mount(machine, "/rw", directory);
  const hand = new Hand(machine);
  const { calls } = hand;
  t.is(calls.open("/ro/f", O_RDWR), -E.EROFS);
  t.is(calls.mkdir("/ro/x"), -E.EROFS);
  for (const path of ["/rw/out/secret", "/rw/link", "/ro/link"]) t.is(calls.open(path, O_RDONLY), -E.EACCES);
  t.is(calls.open("/rw/sub/../../f", O_RDONLY), -E.ENOENT, "/f, which is in memory");
  t.deepEqual(calls.readdir("/rw"), ["f", "link", "out", "sub"]);

  const fd = calls.open("/rw/f", O_RDWR);
  const kinds = () => {
    const { kernel } = machine;
    const inode = kernel.files.descriptions.find(hand.process.slot, fd)!.behind;
    const { object } = readInode(kernel.memory, inode);
    return [0, 1, 2].map((page) => {
      const frame = kernel.objects.find(object, page);
      return frame === undefined ? 0 : kernel.buddy.kindOf(frame);
    });
  };
  t.deepEqual(kinds(), [0, 0, 0]);
  hand.read(fd, 5000);
  t.deepEqual(kinds(), [KIND_FILE_CLEAN, KIND_FILE_CLEAN, 0]);
  calls.lseek(fd, 4094, SEEK_SET);
  t.is(hand.write(fd, "abcd"), 4);
  t.is(readFileSync(join(directory, "f"), "latin1").slice(4093, 4099), "xabcdx", "written through");
  t.deepEqual(kinds(), [KIND_FILE_CLEAN, KIND_FILE_CLEAN, 0], "and so still the same");
  const own = calls.mmapFile(fd, 0, { pages: 3, flags: PTE_R | PTE_W });
  hand.put("P", own + 8192);
  t.deepEqual(kinds(), [KIND_FILE_CLEAN, KIND_FILE_CLEAN, KIND_FILE_CLEAN], "a private copy changes no page of the file");
  const shared = calls.mmapFile(fd, 0, { pages: 3, flags: PTE_R | PTE_W, shared: true });
  t.is(hand.get(6, shared + 4093), "xabcdx");
  consistent(t, machine);
  hand.put("S", shared);
  t.deepEqual(kinds(), [KIND_FILE, KIND_FILE_CLEAN, KIND_FILE_CLEAN]);
  consistent(t, machine);
});

test("live: files and pipes go on through snapshots and hibernations", async (t) => {
  const draws = new Draws(t);
  const host = scratch(t);
  const images = scratch(t);
  const options = { ramBytes: 64 * MIB, vcpus: 2 };
  let machine: Machine = await bootMachine(t, { ...options, mounts: [{ path: "/host", host, readOnly: false }] });
  for (const text of [
    `files:seed=${draws.below(1000)}`,
    "files:dir=/host",
    "pipes",
    "pipes:kilobytes=700,seed=2",
    "pipes:kilobytes=1",
  ])
    machine.spawn(text);
  let last = 0;
  for (let round = 0; round < Number(process.env["HIB_RACE_ROUNDS"] ?? 12); round++) {
    await sleep(20 + draws.below(150));
    const path = join(images, `image-${round}`);
    machine = await saveAndGoOn(machine, path, { keepRunning: draws.below(2) === 0, boot: () => bootMachine(t, options) });
    rmSync(path, { recursive: true });
    await sleep(20);
    const { problems } = whileStopped(machine, () => checkConsistency(machine.kernel.memory));
    t.deepEqual(problems, []);
    t.deepEqual(
      machine.processes().filter(({ state }) => state === "failed"),
      [],
    );
    const steps = machine.processes().reduce((sum, process) => sum + process.steps, 0);
    t.not(steps, last, "they go on");
    last = steps;
  }
});

test("clean pages: saved by reference, read from their files again, and refused by name if those changed", async (t) => {
  const host = scratch(t);
  const images = scratch(t);
  const file = join(host, "data");
  const contents = randomBytes(300 * FRAME_BYTES + 123);
  writeFileSync(file, contents);
  const options = { ramBytes: 32 * MIB, vcpus: 1 };
  const machine = await bootMachine(t, { ...options, mounts: [{ path: "/host", host, readOnly: false }] });
  const { kernel } = machine;
  const { slot } = machine.spawn("idle:ms=1000");
  const { control, files } = kernel;
  const fd = control.locked(() => files.open(slot, "/host/data", O_RDWR) as number);
  control.locked(() => {
    for (let at = 0; at < contents.length; at += 100_000) {
      files.seek(slot, fd, at, SEEK_SET);
      files.read(slot, fd, 100_000);
    }
    // One page is changed by the machine, and through to the file: it is clean still.
    files.seek(slot, fd, 5 * FRAME_BYTES, SEEK_SET);
    files.write(slot, fd, Buffer.from("changed"));
  });
  const now = readFileSync(file);
  const take = async (name: string, saveClean: boolean) => {
    const path = join(images, name);
    return { path, report: await save(machine, path, { keepRunning: true, oracle: true, saveClean }) };
  };
  const { path, report } = await take("by-reference", false);
  t.is(report.frames.by_reference, 301);
  // As a stream it says the same; the pages stay where they are.
  const imported = await importImage(exportImage(path), join(images, "imported"));
  t.is(imported.header.frames, report.frames.saved + 301);
  const copy = await openImage(imported.path);
  t.is((await verifyChunks(copy)).referencedFrames, 301);
  const { pfn } = copy.references.at(0);
  const referenced = copy.memory().readFrame(pfn);
  copy.close();
  if (spawnSync("python3", ["-c", "import sqlite3"]).status === 0) {
    const dump = execFileSync("python3", ["examples/read_image.py", path, "--frame", String(pfn)], { encoding: "utf8" });
    const hex = dump.replaceAll(/^[0-9a-f]{8} {2}/gm, "").replaceAll(/\s/g, "");
    t.true(Buffer.from(hex, "hex").equals(referenced));
  }
  const stored = await take("stored", true);
  t.is(stored.report.frames.by_reference, 0);
  t.is(stored.report.frames.saved, report.frames.saved + 301);

  const image = await openImage(path);
  const rows = image.catalogue.files();
  t.deepEqual([rows[0]!.path, rows[0]!.mode, Number(rows[0]!.size)], [file, "rw", now.length]);
  t.not(rows[0]!.hash, null);
  t.is((await verifyChunks(image)).referencedFrames, 301);
  image.close();

  const wake = async (from: string, more: ResumeOptions = {}): Promise<Buffer> => {
    const other = await bootMachine(t, options);
    await resume(other, from, { keepImage: true, ...more });
    const { kernel: woken } = other;
    t.deepEqual(whileStopped(other, () => checkConsistency(woken.memory)).problems, []);
    const parts: Uint8Array[] = [];
    woken.control.locked(() => {
      t.is(woken.files.seek(slot, fd, 0, SEEK_CUR), 5 * FRAME_BYTES + 7, "the position came back");
      woken.files.seek(slot, fd, 0, SEEK_SET);
      for (
        let part = woken.files.read(slot, fd, 100_000) as Uint8Array;
        part.length > 0;
        part = woken.files.read(slot, fd, 100_000) as Uint8Array
      )
        parts.push(part);
    });
    await other.powerOff();
    return Buffer.concat(parts);
  };
  t.true(now.equals(await wake(path)));
  t.true(now.equals(await wake(stored.path)));

  // The same file with a byte changed, and the times put back.
  const changed = Buffer.from(now);
  changed[200 * FRAME_BYTES]! ^= 1;
  const { atime, mtime } = statSync(file);
  writeFileSync(file, changed);
  utimesSync(file, atime, mtime);
  for (const from of [path, stored.path])
    await t.throwsAsync(wake(from), { code: "HIB_FILES_CHANGED", message: /data has other contents/ });
  await t.throwsAsync(openImage(path).then(verifyChunks), {
    code: "HIB_FILES_CHANGED",
    message: /data: page 200 is not what it was/,
  });
  t.true(changed.equals(await wake(path, { acceptChangedFiles: true })));
  t.true(now.equals(await wake(stored.path, { acceptChangedFiles: true })), "stored, they are what they were");

  writeFileSync(file, now);
  // To accept what has changed is not to accept what changes next.
  const meanwhile = (step: { name: string }) => step.name === "files of the host" && writeFileSync(file, changed);
  await t.throwsAsync(wake(path, { acceptChangedFiles: true, onStep: meanwhile }), {
    code: "HIB_FILES_CHANGED",
    message: /data: page 200 is not what it was/,
  });
  rmSync(file);
  writeFileSync(`${file}-elsewhere`, now);
  renameSync(`${file}-elsewhere`, file);
  t.true(now.equals(await wake(path)), "a copy is the same file");
  const woken = await bootMachine(t, options);
  await resume(woken, path, { keepImage: true });
  woken.kernel.control.locked(() => t.is(woken.kernel.files.write(slot, fd, Buffer.from("written")), 7, "and can be written to"));
  await woken.powerOff();
  t.is(readFileSync(file).toString("latin1", 5 * FRAME_BYTES + 7, 5 * FRAME_BYTES + 14), "written");

  rmSync(file);
  await t.throwsAsync(wake(path), { code: "HIB_FILES_CHANGED", message: /data is gone/ });
});

test("files end at 4 GiB, and mappings within them: nothing reaches beside a file's tables", (t) => {
  const machine = new HandMachine();
  const directory = scratch(t);
  writeFileSync(join(directory, "large"), "");
  truncateSync(join(directory, "large"), 5 * 2 ** 30);
  mount(machine, "/ro", directory, true);
  const hand = new Hand(machine);
  const { calls } = hand;
  const fd = calls.open("/f", O_CREAT | O_RDWR);
  for (const size of [2 ** 45, 2 ** 32 + 1]) t.is(calls.ftruncate(fd, size), -E.EFBIG);
  t.is(calls.ftruncate(fd, 2 ** 32), 0);
  const request = { pages: 1, flags: PTE_R | PTE_W, shared: true };
  for (const offset of [2 ** 20, 2 ** 20 - 0.5, -1, Number.NaN]) t.is(calls.mmapFile(fd, offset, request), -E.EINVAL);
  t.true(calls.mmapFile(fd, 2 ** 20 - 1, request) > 0);
  calls.lseek(fd, 2 ** 32 - 2, SEEK_SET);
  t.is(hand.write(fd, "abc"), -E.EFBIG);
  const large = calls.open("/ro/large", O_RDONLY);
  calls.lseek(large, 4.5 * 2 ** 30, SEEK_SET);
  t.true((hand.read(large, 10) as number) < 0);
  consistent(t, machine);
});

test("what is stored to a shared mapping of a host's file is the host's once it is unmapped, or synchronised", (t) => {
  const directory = scratch(t);
  const path = join(directory, "f");
  writeFileSync(path, "x".repeat(5000));
  const machine = new HandMachine();
  mount(machine, "/h", directory);
  const hand = new Hand(machine);
  const { calls } = hand;
  const fd = calls.open("/h/f", O_RDWR);
  const at = calls.mmapFile(fd, 0, { pages: 2, flags: PTE_R | PTE_W, shared: true });
  hand.put("first", at);
  t.is(readFileSync(path, "latin1").slice(0, 5), "xxxxx");
  t.is(calls.msync(at, 2), 0);
  t.is(readFileSync(path, "latin1").slice(0, 6), "firstx");
  hand.put("later", at + FRAME_BYTES);
  t.is(calls.munmap(at, 2), 0);
  t.is(readFileSync(path, "latin1").slice(4095, 4102), "xlaterx");
  t.is(readFileSync(path).length, 5000);
  const readOnly = calls.open("/h/f", O_RDONLY);
  const shared = calls.mmapFile(readOnly, 0, { pages: 1, flags: PTE_R, shared: true });
  t.is(calls.mprotect(shared, 1, PTE_R | PTE_W), -E.EACCES);
  t.is(calls.mprotect(shared, 1, 0), 0);
  consistent(t, machine);
});

test("names on the host: a link is removed and not what it leads to; what is no file is not opened", (t) => {
  const directory = scratch(t);
  mkdirSync(join(directory, "d"));
  writeFileSync(join(directory, "d/f"), "f");
  symlinkSync("d/f", join(directory, "link"));
  execFileSync("mkfifo", [join(directory, "fifo")]);
  const machine = new HandMachine();
  mount(machine, "/h", directory);
  const { calls } = new Hand(machine);
  t.is(calls.unlink("/h/link"), 0);
  t.is(readFileSync(join(directory, "d/f"), "latin1"), "f");
  for (const flags of [O_RDONLY, O_RDWR]) t.is(calls.open("/h/fifo", flags), -E.EACCES);
});

test("a process that fails lets go of its files: the other end of its pipe sees the end", (t) => {
  const machine = new HandMachine({ vcpus: 2 });
  const hand = new Hand(machine);
  const { reader, writer } = hand.calls.pipe() as { reader: number; writer: number };
  machine.kernel.lifecycle.fork(hand.process.slot);
  hand.calls.close(writer);
  t.is(hand.read(reader, 1), undefined);
  machine.kernel.turns.putBack(1, 0, { do: "fail", reason: "it did something wrong", status: 6 });
  t.is(readProcess(machine.kernel.memory, 1)!.state, "failed");
  t.is(hand.read(reader, 1), "");
  consistent(t, machine);
});

test("pages of a file that somebody else changed before the save are in the image", async (t) => {
  const host = scratch(t);
  const path = join(scratch(t), "image");
  const file = join(host, "data");
  writeFileSync(file, "a".repeat(3 * FRAME_BYTES));
  const options = { ramBytes: 32 * MIB, vcpus: 1 };
  const machine = await bootMachine(t, { ...options, mounts: [{ path: "/host", host, readOnly: true }] });
  const { control, files } = machine.kernel;
  const { slot } = machine.spawn("idle:ms=1000");
  const fd = control.locked(() => files.open(slot, "/host/data", O_RDONLY) as number);
  control.locked(() => files.read(slot, fd, 2 * FRAME_BYTES));
  writeFileSync(file, "b".repeat(3 * FRAME_BYTES));
  const report = await save(machine, path);
  t.deepEqual([report.frames.by_reference, report.changed_files], [0, [file]]);
  const refused = await bootMachine(t, options);
  await t.throwsAsync(resume(refused, path), { code: "HIB_FILES_CHANGED" });
  const woken = await bootMachine(t, options);
  await resume(woken, path, { acceptChangedFiles: true });
  const { kernel } = woken;
  kernel.control.locked(() => {
    kernel.files.seek(slot, fd, 0, SEEK_SET);
    t.is(
      Buffer.from(kernel.files.read(slot, fd, 3 * FRAME_BYTES) as Uint8Array).toString(),
      "a".repeat(2 * FRAME_BYTES) + "b".repeat(FRAME_BYTES),
    );
  });
  // What was accepted is what the next image is compared with.
  const again = `${path}-again`;
  await save(woken, again);
  const last = await bootMachine(t, options);
  await t.notThrowsAsync(resume(last, again));
});
