/**
 * Files that are cut while processes map them: whoever maps a page that is no more has lost it when the call returns, on whatever vCPU
 * he runs; and no image has anything of what was cut off.
 */
import { readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import ava, { type ExecutionContext } from "ava";
import { Control } from "../src/base/control.js";
import {
  COMMAND_RUN,
  FRAME_BYTES,
  MACHINE_COMMAND,
  MACHINE_COMMAND_BELL,
  MACHINE_KERNEL_LOCK,
  MACHINE_STOP,
  PTE_R,
  PTE_W,
  VCPU_STATE,
  VCPU_STATE_RUNNING,
  VCPU_STATE_STOPPED,
  VCPU_TRIM,
} from "../src/base/layout.js";
import type { Machine } from "../src/machine.js";
import { O_CREAT, O_RDWR, O_TRUNC, SEEK_SET } from "../src/vm/files/flags.js";
import { GuestFault } from "../src/vm/memory/address-space.js";
import { walkLeaves } from "../src/vm/memory/page-table.js";
import { type Process, readProcess } from "../src/vm/tasks/process.js";
import { SIGBUS } from "../src/vm/tasks/signals.js";
import { checkConsistency } from "../src/vm/views/consistency.js";
import { DATA_BASE } from "../src/vm/personality/step/program.js";
import { HANDLER } from "../src/vm/memory/user-layout.js";
import { go, runScripts, Script } from "./scripted.js";
import {
  bootMachine,
  callsOf,
  collectFailures,
  Draws,
  HandMachine,
  MIB,
  saveAndGoOn,
  scratch,
  sleep,
  whileStopped,
} from "./support.js";

/** One at a time: a live machine wants both cores. */
const test = ava.serial;

const RW = PTE_R | PTE_W;
const PAGES = 4;

interface Mapped {
  machine: HandMachine;
  /** Runs on vCPU 0 and cuts; and on vCPU 1, if it was put there. */
  cutter: Process;
  other: Process;
  calls: ReturnType<typeof callsOf>;
  fd: number;
  /** Where the other has the file, shared and private. */
  shared: number;
  own: number;
  free: number;
}

/** Two processes that have a file open, and the other has mapped it twice and touched every page, as the kernel sees it. */
function start(t: ExecutionContext, directory: string, where: "runs" | "rests"): Mapped {
  const machine = new HandMachine({ vcpus: 2 });
  const { kernel } = machine;
  kernel.control.locked(() => kernel.files.names.mounts.add({ path: "/host", host: scratch(t), readOnly: false }));
  const cutter = machine.spawn(1);
  const other = machine.spawn(1);
  const theirs = callsOf(machine, other, 1);
  const core = machine.run(other, 1);
  const theirFd = theirs.open(`${directory}/f`, O_RDWR | O_CREAT);
  t.is(theirs.ftruncate(theirFd, PAGES * FRAME_BYTES), 0);
  const shared = theirs.mmapFile(theirFd, 0, { pages: PAGES, flags: RW, shared: true });
  const own = theirs.mmapFile(theirFd, 0, { pages: PAGES, flags: RW });
  const { freeFrames: free } = kernel.buddy;
  for (let page = 0; page < PAGES; page++) {
    core.store8((shared + page * FRAME_BYTES) | 0, 10 + page);
    if (page % 2 === 0) core.store8((own + page * FRAME_BYTES) | 0, 20 + page);
    else core.load8((own + page * FRAME_BYTES) | 0);
  }
  const calls = callsOf(machine, cutter, 0);
  const fd = calls.open(`${directory}/f`, O_RDWR);
  // So that the kernel knows who runs where.
  for (const [vcpu, process] of [cutter, other].entries()) {
    if (process === other && where === "rests") continue;
    let slot = kernel.control.locked(() => kernel.scheduler.pick(vcpu));
    if (slot !== process.slot) slot = kernel.control.locked(() => kernel.scheduler.pick(vcpu));
    t.is(slot, process.slot);
  }
  if (where === "rests") machine.vcpus[1]!.core.deactivate();
  return { machine, cutter, other, calls, fd, shared, own, free };
}

function leavesFrom(machine: HandMachine, process: Process, address: number, pages: number): number[] {
  const { memory } = machine.kernel;
  return Array.from(walkLeaves(memory, readProcess(memory, process.slot)!.root), (leaf) => leaf.address).filter(
    (at) => at >= address && at < address + pages * FRAME_BYTES,
  );
}

/** Has what a vCPU waits for happen, one after another; then it is not to wait any more. */
function whileItWaits({ vcpus: [first] }: HandMachine, ...happenings: (() => void)[]): () => number {
  const { control } = first!.kernel;
  let waits = 0;
  control.waitForVcpus = (done) => {
    const happen = happenings[waits++];
    happen?.();
    if (happen === undefined || !done()) throw new Error("it waits for ever");
    return true;
  };
  return () => waits;
}

for (const directory of ["", "/host"]) {
  const where = directory === "" ? "in memory" : "of the host";

  test(`a file ${where} is cut while a process maps it that does not run: its leaves go at once`, (t) => {
    const { machine, other, calls, fd, shared, own, free } = start(t, directory, "rests");
    t.is(calls.ftruncate(fd, FRAME_BYTES + 100), 0);
    t.deepEqual(leavesFrom(machine, other, shared, PAGES).length, 2);
    t.deepEqual(leavesFrom(machine, other, own, PAGES).length, 2, "private copies, too");
    t.deepEqual(checkConsistency(machine.kernel.memory).problems, []);
    // It is put on its vCPU again, whose TLB still knew the pages.
    const core = machine.run(other, 1);
    for (const address of [shared, own]) {
      t.throws(() => core.load8((address + 2 * FRAME_BYTES) | 0), { instanceOf: GuestFault, message: /ends before/ });
      t.throws(() => core.store8((address + 3 * FRAME_BYTES) | 0, 1), { instanceOf: GuestFault, message: /ends before/ });
    }
    t.is(core.load8(shared | 0), 10);
    core.store8((shared + FRAME_BYTES + 200) | 0, 77); // beyond the end, on the last page
    t.is(calls.ftruncate(fd, PAGES * FRAME_BYTES), 0);
    for (const at of [100, 200, FRAME_BYTES, 2 * FRAME_BYTES]) t.is(core.load8((shared + FRAME_BYTES + at) | 0), 0, `${at}`);
    t.is(core.load8((own + 2 * FRAME_BYTES) | 0), 0);
    t.is(core.load8(own | 0), 20);
    t.true(machine.kernel.buddy.freeFrames > free - 16);
    t.deepEqual(checkConsistency(machine.kernel.memory).problems, []);
  });

  test(`a file ${where} is cut while a process on another vCPU maps it: the call waits for that vCPU`, (t) => {
    const { machine, other, calls, fd, shared, own } = start(t, directory, "runs");
    const { control, kernel } = machine;
    const their = machine.vcpus[1]!;
    let child: Process | undefined;
    const waits = whileItWaits(machine, () => {
      t.is(control.load(MACHINE_KERNEL_LOCK), 0, "it does not keep the others from their calls");
      t.is(their.core.load8((shared + 2 * FRAME_BYTES) | 0), 12, "in the middle of a batch it still has the page");
      their.core.store8((own + 3 * FRAME_BYTES) | 0, 99);
      // It forks, before it looks what it was told: the child has no page more than the file.
      their.kernel.lifecycle.fork(other.slot);
      child = readProcess(kernel.memory, 2);
      t.is(leavesFrom(machine, child!, shared, PAGES).length, 1);
      their.kernel.turns.settle(other.slot);
      machine.run(other, 1);
    });
    t.is(calls.ftruncate(fd, FRAME_BYTES), 0);
    t.is(waits(), 1);
    t.is(control.loadVcpu(1, VCPU_TRIM), 0);
    for (const address of [shared, own]) {
      t.is(leavesFrom(machine, other, address, PAGES).length, 1);
      for (const page of [1, 2, 3])
        t.throws(() => their.core.load8((address + page * FRAME_BYTES) | 0), { instanceOf: GuestFault, message: /ends before/ });
    }
    t.deepEqual(checkConsistency(kernel.memory).problems, []);
    t.is(calls.ftruncate(fd, PAGES * FRAME_BYTES), 0);
    t.is(their.core.load8((own + 3 * FRAME_BYTES) | 0), 0, "what was stored to the page that is gone is gone");
  });

  test(`a file ${where} does not get longer before every vCPU has lost what was cut off`, (t) => {
    const { machine, other, calls, fd, shared } = start(t, directory, "runs");
    const { control, kernel } = machine;
    const their = machine.vcpus[1]!;
    // As if somebody else had cut it, and were waiting.
    const third = machine.spawn(1);
    const { contents, descriptions } = kernel.files;
    const inode = (): number => descriptions.find(readProcess(kernel.memory, 0)!.slot, fd)!.behind;
    control.locked(() => contents.trims.cut(readObject(machine, inode()), third.slot));
    t.is(control.loadVcpu(0, VCPU_TRIM), 0, "it does not map the file");
    t.is(control.loadVcpu(1, VCPU_TRIM), 1);
    for (const grow of [
      () => calls.ftruncate(fd, 9 * FRAME_BYTES),
      () => {
        calls.lseek(fd, 20 * FRAME_BYTES, SEEK_SET);
        return calls.write(fd, DATA_BASE, 1);
      },
    ]) {
      control.storeVcpu(1, VCPU_TRIM, 1);
      const size = kernel.files.fstat(0, fd);
      const waits = whileItWaits(machine, () => {
        t.deepEqual(kernel.files.fstat(0, fd), size);
        their.kernel.turns.settle(other.slot);
      });
      t.true(grow()! >= 0);
      t.is(waits(), 1);
    }
    t.is(their.core.load8(shared | 0), 10);
  });

  test(`a file ${where} is not cut while a vCPU that runs who maps it is stopped: the call is made again later`, (t) => {
    const { machine, other, calls, fd, shared } = start(t, directory, "runs");
    const { control } = machine;
    control.storeVcpu(1, VCPU_STATE, VCPU_STATE_STOPPED);
    const before = machine.hashes();
    t.is(calls.ftruncate(fd, 0) as number | undefined, undefined);
    t.is(calls.open(`${directory}/f`, O_RDWR | O_TRUNC) as number | undefined, undefined);
    t.like(calls.fstat(fd), { size: PAGES * FRAME_BYTES });
    t.is(leavesFrom(machine, other, shared, PAGES).length, PAGES);
    t.is(control.loadVcpu(1, VCPU_TRIM), 0);
    const after = machine.hashes();
    t.true(before.filter((hash, frame) => hash !== after[frame]).length < 8, "nothing but words of the kernel's has changed");
    control.storeVcpu(1, VCPU_STATE, VCPU_STATE_RUNNING);
    whileItWaits(machine, () => machine.vcpus[1]!.kernel.turns.settle(other.slot));
    t.is(calls.ftruncate(fd, 0), 0);
    t.is(leavesFrom(machine, other, shared, PAGES).length, 0);
  });
}

function readObject({ kernel: { memory } }: HandMachine, inode: number): number {
  return memory.load32(inode + 8) >>> 0;
}

test("two that cut what the other maps do not wait for each other", (t) => {
  const { machine, cutter, other, calls, fd, shared } = start(t, "", "runs");
  const { control } = machine;
  const mine = calls.mmapFile(fd, 0, { pages: PAGES, flags: RW, shared: true });
  const core = machine.run(cutter, 0);
  for (let page = 0; page < PAGES; page++) t.is(core.load8((mine + page * FRAME_BYTES) | 0), 10 + page);
  const waits = whileItWaits(
    machine,
    () => control.storeVcpu(0, VCPU_TRIM, 1), // the other has cut it, too, and waits for this one
    () => {
      t.is(control.loadVcpu(0, VCPU_TRIM), 0, "which does what it was told while it waits");
      machine.vcpus[1]!.kernel.turns.settle(other.slot);
    },
  );
  t.is(calls.ftruncate(fd, FRAME_BYTES), 0);
  t.is(waits(), 2);
  t.is(leavesFrom(machine, cutter, mine, PAGES).length, 1);
  t.is(leavesFrom(machine, other, shared, PAGES).length, 1);
});

test("a process that leaves its vCPU before it has looked what that was told loses its leaves then", (t) => {
  const { machine, other, calls, fd, shared } = start(t, "", "runs");
  whileItWaits(machine, () => machine.vcpus[1]!.kernel.turns.putBack(other.slot, 1, { do: "ready" }));
  t.is(calls.ftruncate(fd, FRAME_BYTES), 0);
  t.is(machine.control.loadVcpu(1, VCPU_TRIM), 0);
  t.is(leavesFrom(machine, other, shared, PAGES).length, 1);
});

test("a vCPU is stopped only once it has done what it was told", (t) => {
  const { machine, other, calls, fd, shared } = start(t, "", "runs");
  const { control } = machine;
  const their = machine.vcpus[1]!.kernel;
  whileItWaits(machine, () =>
    their.turns.settle(other.slot, () => {
      t.is(leavesFrom(machine, other, shared, PAGES).length, 1);
      t.not(control.load(MACHINE_KERNEL_LOCK), 0, "and nobody can tell it anything in between");
    }),
  );
  t.is(calls.ftruncate(fd, FRAME_BYTES), 0);
});

test("a vCPU that is told at the last moment before it stops has done it when it is stopped", (t) => {
  const { load, wait } = Control.prototype;
  let told = 0;
  let atStop: number | undefined;
  t.teardown(() => Object.assign(Control.prototype, { load, wait }));
  runScripts(({ control, off }) => ({
    main: new Script([
      ({ system }) => {
        Control.prototype.load = function (offset) {
          const value = load.call(this, offset);
          if (offset === MACHINE_STOP && value === 1 && told++ === 0) this.storeVcpu(0, VCPU_TRIM, 1);
          return value;
        };
        Control.prototype.wait = function (offset, ...rest) {
          if (offset !== MACHINE_COMMAND_BELL) return wait.call(this, offset, ...rest);
          atStop = this.loadVcpu(0, VCPU_TRIM);
          t.is(this.loadVcpu(0, VCPU_STATE), VCPU_STATE_STOPPED);
          this.store(MACHINE_STOP, 0);
          this.store(MACHINE_COMMAND, COMMAND_RUN);
          this.ring(MACHINE_COMMAND_BELL);
        };
        control.store(MACHINE_STOP, 1);
        system.kill(0, 0);
        return "done";
      },
      () => {
        off();
        return "asked";
      },
    ]),
  }));
  t.true(told > 0);
  t.is(atStop, 0);
});

test("an access beyond the end is SIGBUS: to be handled, or the end of the process", (t) => {
  const seen: number[] = [];
  let address = 0;
  const machine = runScripts(({ off }) => ({
    main: new Script(
      [
        ({ system }) => {
          const fd = system.open("/f", O_CREAT | O_RDWR)!;
          system.ftruncate(fd, 2 * FRAME_BYTES);
          address = system.mmapFile(fd, 0, { pages: 2, flags: RW, shared: true });
          system.sigaction(SIGBUS, 1);
          return "done";
        },
        ({ memory, system }) => {
          memory.store8((address + FRAME_BYTES) | 0, 1);
          t.is(system.ftruncate(0, FRAME_BYTES), 0);
          return "done";
        },
        ({ memory, registers, system }) => {
          if (seen.length > 0) {
            system.sigaction(SIGBUS, "default");
            system.fork();
            return "asked";
          }
          registers[10] = 2; // it is taken again after the handler
          memory.load8((address + FRAME_BYTES) | 0);
          return "done";
        },
        ({ memory, registers, system }) => {
          if (registers[20] === 0) memory.load8((address + FRAME_BYTES) | 0);
          const ended = system.wait(-1);
          if (ended === undefined) return "waits";
          seen.push((ended as { status: number }).status);
          off();
          return "asked";
        },
        go(4),
      ],
      [
        ({ registers }) => {
          seen.push(registers[20]!, registers[22]! >>> 0);
          return registers[HANDLER] === 1 ? undefined : "done";
        },
      ],
    ),
  }));
  t.deepEqual(seen, [SIGBUS, address + FRAME_BYTES, SIGBUS]);
  t.deepEqual(machine.problems(), []);
});

test("live: files are cut and lengthened while others map them, through snapshots and hibernations", async (t) => {
  const draws = new Draws(t);
  const host = scratch(t);
  const images = scratch(t);
  const { failures, onConsole } = collectFailures();
  const options = { ramBytes: 64 * MIB, vcpus: 3, onConsole };
  let machine: Machine = await bootMachine(t, { ...options, mounts: [{ path: "/host", host, readOnly: false }] });
  for (const text of ["cutter:pages=3", "cutter:dir=/host", "cutter:pages=40,dir=/host,rounds=200", "cutter:pages=1"])
    machine.spawn(`${text},seed=${draws.below(1000)}`);
  let last = 0;
  for (let round = 0; round < Number(process.env["HIB_RACE_ROUNDS"] ?? 10); round++) {
    await sleep(20 + draws.below(100));
    const path = join(images, `image-${round}`);
    machine = await saveAndGoOn(machine, path, { keepRunning: draws.below(2) === 0, boot: () => bootMachine(t, options) });
    rmSync(path, { recursive: true });
    t.deepEqual(
      whileStopped(machine, () => [
        ...checkConsistency(machine.kernel.memory).problems,
        ...[0, 1, 2].filter((vcpu) => machine.control.loadVcpu(vcpu, VCPU_TRIM) !== 0),
      ]),
      [],
    );
    t.deepEqual(
      machine.processes().flatMap(({ failure }) => (failure === "" ? [] : [failure])),
      [],
    );
    const steps = machine.processes().reduce((sum, process) => sum + process.steps, 0);
    t.not(steps, last, "they go on");
    last = steps;
  }
  t.deepEqual(failures, []);
});

test("the host's file is cut with it, and what is written back later does not lengthen it", (t) => {
  const host = scratch(t);
  const path = join(host, "f");
  writeFileSync(path, "x".repeat(3 * FRAME_BYTES));
  const machine = new HandMachine();
  const { kernel } = machine;
  kernel.control.locked(() => kernel.files.names.mounts.add({ path: "/host", host, readOnly: false }));
  const process = machine.spawn(1);
  const calls = callsOf(machine, process);
  const fd = calls.open("/host/f", O_RDWR);
  const at = calls.mmapFile(fd, 0, { pages: 3, flags: RW, shared: true });
  const core = machine.run(process);
  for (let page = 0; page < 3; page++) core.store8((at + page * FRAME_BYTES) | 0, 0x41);
  t.is(calls.ftruncate(fd, FRAME_BYTES + 10), 0);
  t.is(statSync(path).size, FRAME_BYTES + 10);
  t.is(calls.munmap(at, 3), 0);
  t.is(readFileSync(path, "latin1"), `A${"x".repeat(FRAME_BYTES - 1)}A${"x".repeat(9)}`);
  t.deepEqual(checkConsistency(kernel.memory).problems, []);
});
