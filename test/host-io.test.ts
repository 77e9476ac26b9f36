/**
 * The host reads and writes for one process while others make their calls. In most tests one thread has all of the machine's
 * vCPUs, and another's calls are made in the middle of the host's: at just that place, whatever it is.
 */
import { randomBytes } from "node:crypto";
import fs, { existsSync, readFileSync, writeFileSync } from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import ava, { type ExecutionContext } from "ava";
import {
  FILE_LOCKS,
  FRAME_BYTES,
  MACHINE_FILE_LOCKS,
  MACHINE_KERNEL_LOCK,
  MACHINE_POWER_OFF,
  PTE_R,
  PTE_W,
} from "../src/base/layout.js";
import { Quiesce } from "../src/cow/quiesce.js";
import { O_APPEND, O_CREAT, O_RDONLY, O_RDWR, SEEK_CUR, SEEK_END, SEEK_SET } from "../src/vm/files/flags.js";
import { walkHostInodes } from "../src/vm/files/inode.js";
import type { Kernel } from "../src/vm/kernel.js";
import { DATA_BASE } from "../src/vm/personality/step/program.js";
import { createRunner } from "../src/vm/personality/step/programs/index.js";
import { readProcess } from "../src/vm/tasks/process.js";
import { checkConsistency } from "../src/vm/views/consistency.js";
import { HALT, HALTED, type SlowVcpu } from "./fixtures/slow-vcpu.js";
import { callsOf, type HandCalls, HandMachine, MIB, scratch, until } from "./support.js";

/** One at a time: they share the host's calls. */
const test = ava.serial;

const RW = PTE_R | PTE_W;

type HostCall = "openSync" | "readSync" | "writeSync" | "fstatSync";

/** Has something happen the next time that the host is asked for something: before it does it, or after. */
function during(call: HostCall, when: "before" | "after", happen: () => void): () => boolean {
  const original = fs[call] as (...args: unknown[]) => unknown;
  let met = false;
  const restore = (): void => {
    (fs as unknown as Record<string, unknown>)[call] = original;
    syncBuiltinESMExports();
  };
  (fs as unknown as Record<string, unknown>)[call] = (...args: unknown[]): unknown => {
    restore();
    met = true;
    if (when === "before") happen();
    const result = original(...args);
    if (when === "after") happen();
    return result;
  };
  syncBuiltinESMExports();
  return () => {
    restore();
    return met;
  };
}

/** Two processes with a directory of the host at /h, each on a vCPU of its own. */
function start(t: ExecutionContext) {
  const directory = scratch(t);
  const machine = new HandMachine({ vcpus: 2 });
  const { kernel } = machine;
  kernel.control.locked(() => kernel.files.names.mounts.add({ path: "/h", host: directory, readOnly: false }));
  const [one, two] = [machine.spawn(4), machine.spawn(4)];
  const hand = (vcpu: number, process: typeof one) => {
    const calls = callsOf(machine, process, vcpu);
    const core = machine.run(process, vcpu);
    return {
      process,
      calls,
      core,
      put: (text: string): number => {
        for (const [i, byte] of Buffer.from(text, "latin1").entries()) core.store8((DATA_BASE + i) | 0, byte);
        return DATA_BASE;
      },
      get: (length: number, from = DATA_BASE): string =>
        Buffer.from(Array.from({ length }, (_, i) => core.load8((from + i) | 0))).toString("latin1"),
      /** A call that has to wait for who is at work on the file: a thread's only, so it is given up. */
      waits: (call: (calls: HandCalls) => unknown): void => {
        const { control } = machine.vcpus[vcpu]!.kernel;
        control.wait = () => {
          throw new RangeError("it waits");
        };
        t.throws(() => call(calls), { instanceOf: RangeError, message: "it waits" });
        delete (control as Partial<typeof control>).wait;
      },
    };
  };
  return {
    directory,
    machine,
    kernel,
    first: hand(0, one),
    second: hand(1, two),
    unlocked: () => t.is(kernel.control.load(MACHINE_KERNEL_LOCK), 0, "the kernel is not locked meanwhile"),
    consistent: () => t.deepEqual(checkConsistency(kernel.memory).problems, []),
  };
}

/** What a process does that has nothing to do with the file. */
function goOn(t: ExecutionContext, { calls, put, get }: ReturnType<typeof start>["second"], kernel: Kernel): void {
  const { reader, writer } = calls.pipe() as { reader: number; writer: number };
  t.is(calls.write(writer, put("pipe"), 4), 4);
  t.is(calls.read(reader, put("...."), 4), 4);
  t.is(get(4), "pipe");
  const fd = calls.open("/h/other", O_RDWR | O_CREAT);
  t.is(calls.write(fd, put("other"), 5), 5);
  t.is(calls.lseek(fd, 0, SEEK_SET), 0);
  t.is(calls.read(fd, put("....."), 5), 5);
  t.is(get(5), "other");
  t.true(calls.mmap({ pages: 2, flags: RW, shared: true }) > 0);
  t.deepEqual(calls.readdir("/h"), ["f", "other"]);
  kernel.lifecycle.fork(1);
}

for (const when of ["before", "after"] as const) {
  for (const what of ["read", "fault", "write"] as const) {
    test(`another process goes on ${when} the host ${what === "fault" ? "reads a page for an access" : `does a ${what}`}`, (t) => {
      const { directory, machine, first, second, unlocked, consistent } = start(t);
      writeFileSync(join(directory, "f"), "first".padEnd(10_000, "."));
      const fd = first.calls.open("/h/f", O_RDWR);
      const at = first.calls.mmapFile(fd, 0, { pages: 3, flags: RW, shared: true });
      first.put("WRITE");
      const met = during(what === "write" ? "writeSync" : "readSync", when, () => {
        unlocked();
        goOn(t, second, machine.vcpus[1]!.kernel);
      });
      if (what === "read") t.is(first.calls.read(fd, first.put("....."), 5), 5);
      else if (what === "write") t.is(first.calls.write(fd, DATA_BASE, 5), 5);
      else t.is(first.get(5, at), "first");
      t.true(met());
      if (what === "read") t.is(first.get(5), "first");
      if (what === "write") t.is(readFileSync(join(directory, "f"), "latin1").slice(0, 6), "WRITE.");
      consistent();
    });
  }

  test(`who wants the same file waits ${when} the host reads or writes it, and no position is lost`, (t) => {
    const { directory, machine, kernel, first, second, consistent } = start(t);
    writeFileSync(join(directory, "f"), "0123456789".repeat(1000));
    const fd = first.calls.open("/h/f", O_RDWR | O_APPEND);
    const own = second.calls.open("/h/f", O_RDWR);
    const map = second.calls.mmapFile(own, 0, { pages: 3, flags: RW, shared: true });
    const inMiddle = (): void => {
      second.waits((calls) => calls.read(own, DATA_BASE, 5));
      second.waits((calls) => calls.write(own, DATA_BASE, 5));
      second.waits((calls) => calls.lseek(own, 0, SEEK_END));
      second.waits((calls) => calls.ftruncate(own, 0));
      second.waits((calls) => calls.unlink("/h/f"));
      second.waits(() => second.core.load8((map + FRAME_BYTES) | 0));
      t.is(typeof second.calls.fstat(own), "object");
    };
    for (const call of ["readSync", "writeSync"] as const) {
      const met = during(call, when, inMiddle);
      if (call === "readSync") t.is(first.calls.read(fd, DATA_BASE, 7), 7);
      else t.is(first.calls.write(fd, first.put("ab"), 2), 2);
      t.true(met());
    }
    t.is(first.calls.lseek(fd, 0, SEEK_CUR), 10_002);
    t.is(second.calls.lseek(own, 0, SEEK_CUR), 0);
    t.is(second.get(3, map), "012");
    t.is(first.calls.read(fd, DATA_BASE, 10), 0);
    consistent();
    // One description of both: the position of a read that the host has not done yet is nobody's.
    machine.vcpus[0]!.kernel.lifecycle.fork(first.process.slot);
    const child = readProcess(kernel.memory, 2)!;
    const shared = callsOf(machine, child, 1);
    t.is(shared.lseek(fd, 5000, SEEK_SET), 5000);
    machine.run(first.process, 0);
    t.is(first.calls.read(fd, DATA_BASE, 3), 3);
    t.is(shared.lseek(fd, 0, SEEK_CUR), 5003);
  });

  test(`a file is renamed ${when} the host opens or reads it: what was asked for is read all the same`, (t) => {
    for (const call of ["openSync", "readSync"] as const) {
      const { directory, first, second, consistent } = start(t);
      const contents = randomBytes(9000);
      writeFileSync(join(directory, "f"), contents);
      writeFileSync(join(directory, "g"), "replaces it");
      const fd = first.calls.open("/h/f", O_RDWR);
      const met = during(call, when, () => {
        t.is(second.calls.rename("/h/f", "/h/moved"), 0);
        t.is(second.calls.rename("/h/g", "/h/f"), 0);
      });
      t.is(first.calls.read(fd, DATA_BASE, 9000), 9000);
      t.true(met());
      t.true(Buffer.from(first.get(9000), "latin1").equals(contents));
      t.is(first.calls.write(fd, first.put("end"), 3), 3);
      t.is(readFileSync(join(directory, "moved"), "latin1").slice(9000), "end");
      consistent();
    }
  });

  test(`what is written back ${when} the host does a write of the same page does not undo it`, (t) => {
    const { directory, first, second, consistent } = start(t);
    writeFileSync(join(directory, "f"), "x".repeat(6000));
    const fd = first.calls.open("/h/f", O_RDWR);
    const own = second.calls.open("/h/f", O_RDWR);
    const map = second.calls.mmapFile(own, 0, { pages: 2, flags: RW, shared: true });
    second.core.store8(map | 0, 0x41);
    second.core.store8((map + 5) | 0, 0x41);
    const met = during("writeSync", when, () => t.is(second.calls.munmap(map, 2), 0));
    first.calls.lseek(fd, 4, SEEK_SET);
    t.is(first.calls.write(fd, first.put("12345"), 5), 5);
    t.true(met());
    t.is(readFileSync(join(directory, "f"), "latin1").slice(0, 10), "Axxx12345x");
    first.calls.lseek(fd, 0, SEEK_SET);
    first.calls.read(fd, DATA_BASE, 10);
    t.is(first.get(10), "Axxx12345x", "and so has the page cache");
    consistent();
  });

  test(`a file that is removed is closed by who has it open ${when} the host reads it: it is gone, and nothing is left`, (t) => {
    const { directory, kernel, first, second, consistent } = start(t);
    writeFileSync(join(directory, "f"), "x".repeat(6000));
    const fd = second.calls.open("/h/f", O_RDONLY);
    const met = during("readSync", when, () => t.is(second.calls.close(fd), 0));
    t.is(first.calls.unlink("/h/f"), 0);
    t.true(met());
    t.false(existsSync(join(directory, "f")));
    t.deepEqual([...walkHostInodes(kernel.memory)], []);
    consistent();
  });
}

test("a call that has waited reads and writes where the position is by then", (t) => {
  const { directory, machine, kernel, first } = start(t);
  writeFileSync(join(directory, "f"), "0123456789");
  const fd = first.calls.open("/h/f", O_RDWR);
  const { descriptions } = kernel.files;
  const { at, behind } = descriptions.find(first.process.slot, fd)!;
  const word = MACHINE_FILE_LOCKS + ((behind >>> 7) % FILE_LOCKS) * 4;
  const { control } = machine.vcpus[0]!.kernel;
  control.wait = () => {
    descriptions.setPosition(at, 5); // who had it before has moved it
    control.store(word, 0);
  };
  control.store(word, 1);
  t.is(first.calls.read(fd, DATA_BASE, 2), 2);
  t.is(first.get(2), "56");
  first.put("ab");
  control.store(word, 1);
  t.is(first.calls.write(fd, DATA_BASE, 2), 2);
  t.is(readFileSync(join(directory, "f"), "latin1"), "01234ab789");
  control.store(word, 1);
  t.is(first.calls.lseek(fd, 1, SEEK_CUR), 6);
});

test("the machine's own write is not taken for somebody else's, whoever writes back meanwhile", (t) => {
  const { directory, kernel, first, second } = start(t);
  writeFileSync(join(directory, "f"), "x".repeat(6000));
  const fd = first.calls.open("/h/f", O_RDWR);
  const map = second.calls.mmapFile(second.calls.open("/h/f", O_RDWR), 0, { pages: 2, flags: RW, shared: true });
  second.core.store8((map + FRAME_BYTES) | 0, 0x41); // another page than the one that is written
  t.is(first.calls.write(fd, first.put("12"), 2), 2);
  // When the call has asked the host what the file is, and does not have the kernel lock yet.
  const met = during("fstatSync", "after", () => {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20); // so that the host's clock goes on
    t.is(second.calls.msync(map, 2), 0);
  });
  t.is(first.calls.write(fd, first.put("12"), 2), 2);
  t.true(met());
  const [inode] = walkHostInodes(kernel.memory);
  const { mtimeNs, size } = fs.statSync(join(directory, "f"), { bigint: true });
  t.deepEqual([inode!.host!.modified, BigInt(inode!.host!.size)], [mtimeNs, size]);
});

test("threads: a stop waits for what the host is doing, and meanwhile the kernel is anybody's", async (t) => {
  const directory = scratch(t);
  const machine = new HandMachine({ ramBytes: 16 * MIB });
  const { kernel, control } = machine;
  kernel.control.locked(() => kernel.files.names.mounts.add({ path: "/h", host: directory, readOnly: false }));
  const text = "files:dir=/h";
  kernel.lifecycle.spawn(text, createRunner(text));
  const words = new Int32Array(new SharedArrayBuffer(8));
  const workerData: SlowVcpu = { memory: machine.memory, words, number: 0 };
  const vcpu = new Worker(new URL("./fixtures/slow-vcpu.js", import.meta.url), { workerData });
  t.teardown(() => vcpu.terminate());
  for (let round = 0; round < 20; round++) {
    Atomics.store(words, HALT, 1);
    await until(() => Atomics.load(words, HALTED) === 1, "the host reads");
    kernel.control.locked(() => t.true(Array.isArray(kernel.files.names.list("/h"))));
    let asked = 0;
    const quiesce = new Quiesce(kernel.control, 1);
    const wait = kernel.control.waitForVcpus.bind(kernel.control);
    kernel.control.waitForVcpus = (done, ms) => {
      if (asked++ > 0) return wait(done, ms);
      t.false(done(), "it is not at a safepoint while the host reads");
      t.is(kernel.control.load(MACHINE_KERNEL_LOCK), 0);
      Atomics.store(words, HALT, 0);
      Atomics.notify(words, HALT);
      return wait(done, ms);
    };
    quiesce.stop();
    t.true(asked > 0);
    t.deepEqual(checkConsistency(kernel.memory).problems, []);
    t.is(readProcess(kernel.memory, 0)!.failure, "");
    quiesce.go();
    delete (kernel.control as Partial<typeof kernel.control>).waitForVcpus;
  }
  control.store(MACHINE_POWER_OFF, 1);
  control.ringDoorbell();
  await new Promise((resolve) => vcpu.once("exit", resolve));
});
