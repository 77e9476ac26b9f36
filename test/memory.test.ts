/**
 * Address spaces: fork with copy on write, shared mappings, mmap, munmap, mprotect, 2 MiB mappings, stacks, each in chosen cases.
 * All of it together, against a model, is in memory-model.test.ts. No threads: the test takes every step of the vCPUs itself.
 */
import ava, { type ExecutionContext } from "ava";
import {
  FRAME_BYTES,
  MACHINE_SABOTAGE,
  PTE_R,
  PTE_W,
  SABOTAGE_NO_ACK,
  SABOTAGE_NO_KERNEL,
  SABOTAGE_NO_SHOOTDOWN,
  SABOTAGE_NONE,
} from "../src/base/layout.js";
import { readFaultStatistics } from "../src/cow/fault-statistics.js";
import { GuestFault } from "../src/vm/memory/address-space.js";
import { AREA_BYTES, walkAreas } from "../src/vm/memory/area.js";
import { checkConsistency } from "../src/vm/views/consistency.js";
import { EINVAL, ENOMEM } from "../src/vm/memory/errno.js";
import { allocateObject, freeObject } from "../src/vm/memory/kernel-heap.js";
import { KIND_RESERVE, MAX_ORDER } from "../src/vm/memory/kernel-layout.js";
import { walkObjectTables } from "../src/vm/memory/memory-object.js";
import { findEntry, findFrame, HUGE_BYTES, walkLeaves, walkTables } from "../src/vm/memory/page-table.js";
import { listProcesses, type Process, readProcess, readRegisters } from "../src/vm/tasks/process.js";
import { A0, DATA_BASE, HEAP_BASE, HEAP_END, STACK_TOP } from "../src/vm/personality/step/program.js";
import { createRunner } from "../src/vm/personality/step/programs/index.js";
import { callsOf, HandMachine, MIB } from "./support.js";

/** One at a time: they are short. */
const test = ava.serial;

const PAGE = FRAME_BYTES;
const RW = PTE_R | PTE_W;
/** An aligned 2 MiB in the middle of nowhere. */
const WINDOW = 0x4000_0000;

/** Takes all memory but so many single frames, and all free areas, while `body` runs. */
function withFrames<T>({ kernel }: HandMachine, leave: number, body: () => T): T {
  const { buddy, memory } = kernel;
  const frames: number[] = [];
  const areas: number[] = [];
  for (let order = MAX_ORDER; order >= 0; order--)
    for (let head = buddy.allocate(order, 0, KIND_RESERVE); head !== undefined; head = buddy.allocate(order, 0, KIND_RESERVE)) {
      buddy.split(head);
      for (let i = 0; i < 2 ** order; i++) frames.push(head + i);
    }
  for (let at = allocateObject(memory, buddy, AREA_BYTES); at !== undefined; at = allocateObject(memory, buddy, AREA_BYTES))
    areas.push(at);
  const apart = frames.filter((frame) => frame % 2 === 0).slice(0, leave);
  for (const frame of apart) buddy.free(frame);
  try {
    return body();
  } finally {
    for (const frame of frames) if (!apart.includes(frame)) buddy.free(frame);
    for (const at of areas) freeObject(memory, at, AREA_BYTES);
  }
}

function consistent(t: ExecutionContext, { kernel }: HandMachine): void {
  t.deepEqual(checkConsistency(kernel.memory).problems, []);
}

test("mmap: an address above 2 GiB may be given as a signed number, as everywhere", (t) => {
  const machine = new HandMachine();
  const calls = callsOf(machine, machine.spawn(1));
  t.is(calls.mmap({ address: 0xc000_0000 | 0, pages: 1, flags: RW }), 0xc000_0000);
  t.is(calls.mmap({ address: 0xffff_f000 | 0, pages: 1, flags: RW }), -EINVAL);
});

// ---- the heap area ----

test("map: a heap page that mprotect has closed is taken; a range that munmap took is not the heap's any more", (t) => {
  const machine = new HandMachine();
  const calls = callsOf(machine, machine.spawn(1));
  const { core } = machine.vcpus[0]!;
  calls.map(HEAP_BASE, 0);
  core.store32(HEAP_BASE, 7);
  t.is(calls.mprotect(HEAP_BASE, 1, 0), 0);
  t.throws(() => calls.map(HEAP_BASE, 0), { instanceOf: GuestFault, message: /which is mapped/ });
  t.true(calls.map(HEAP_BASE + 4 * PAGE, 2), "the rest of the heap is as it was");
  calls.mprotect(HEAP_BASE + 8 * PAGE, 1, PTE_R);
  t.true(calls.map(HEAP_BASE + 8 * PAGE, 0));
  t.throws(() => core.store32(HEAP_BASE + 8 * PAGE, 1), { instanceOf: GuestFault });
  t.is(core.load32(HEAP_BASE + 8 * PAGE), 0);
  calls.munmap(HEAP_BASE + 16 * PAGE, 4);
  t.throws(() => calls.map(HEAP_BASE + 17 * PAGE, 0), { instanceOf: GuestFault, message: /outside the heap area/ });
  t.throws(() => calls.map(HEAP_BASE + 15 * PAGE, 1), { instanceOf: GuestFault, message: /outside the heap area/ });
  consistent(t, machine);
});

// ---- fork ----

/** Forks a process as its vCPU does; the child, or the error number. The parent is off its vCPU then. */
function fork(machine: HandMachine, process: Process, vcpu = 0): Process {
  machine.run(process, vcpu);
  const { core, kernel } = machine.vcpus[vcpu]!;
  kernel.lifecycle.fork(process.slot);
  core.deactivate();
  const pid = readRegisters(kernel.memory, process.slot)[A0]!;
  return listProcesses(kernel.memory).find((found) => found.pid === pid)!;
}

test("a page that the others let go of is the process's own again, by a store or by mprotect", (t) => {
  const machine = new HandMachine();
  const process = machine.spawn(2, 0xaa);
  const frames = [0, 1].map((page) => machine.frameOf(process, DATA_BASE + page * PAGE));
  machine.kernel.lifecycle.end(fork(machine, process).slot);
  consistent(t, machine);
  machine.run(process).store8(DATA_BASE, 1);
  const calls = callsOf(machine, process);
  calls.mprotect(DATA_BASE + PAGE, 1, PTE_R);
  calls.mprotect(DATA_BASE + PAGE, 1, RW);
  consistent(t, machine);
  machine.run(process).store8(DATA_BASE + PAGE, 1);
  t.deepEqual(
    [0, 1].map((page) => machine.frameOf(process, DATA_BASE + page * PAGE)),
    frames,
  );
});

test("exec: a text of more than a page is refused before anything is gone", (t) => {
  const machine = new HandMachine();
  const process = machine.spawn(1, 0xaa);
  const free = machine.kernel.buddy.freeFrames;
  const { kernel } = machine.vcpus[0]!;
  t.false(kernel.lifecycle.exec(process.slot, `idle:${"x".repeat(PAGE)}`, createRunner));
  t.is(machine.run(process).load8(DATA_BASE), 0xaa);
  t.true(kernel.lifecycle.exec(process.slot, "idle:pages=1", createRunner));
  t.is(kernel.buddy.freeFrames, free);
  const after = readProcess(kernel.memory, process.slot)!;
  t.like(after, { pid: process.pid, text: "idle:pages=1", steps: 0 });
  machine.run(after);
  consistent(t, machine);
});

// ---- stacks ----

/** A process with a stack of up to 24 pages. */
function spawnStack(machine: HandMachine): Process {
  return machine.kernel.lifecycle.spawn("stack", {
    ...createRunner("stack:pages=24"),
    dataPages: 1,
    initialPage: () => false,
  });
}

test("a stack grows past a hole that munmap made, also after its first pages have gone; and not into what is near", (t) => {
  const machine = new HandMachine();
  const process = spawnStack(machine);
  const calls = callsOf(machine, process);
  const { core } = machine.vcpus[0]!;
  const page = (n: number) => STACK_TOP - n * PAGE;
  core.store32(page(4), 4);
  t.is(calls.munmap(page(4), 1), 0, "the lowest");
  core.store32(page(4), 44);
  t.is(calls.munmap(page(2), 1), 0, "one in the middle");
  core.store32(page(5), 5);
  t.throws(() => core.load32(page(2)), { instanceOf: GuestFault }, "what is near is the stack's lower half");
  t.is(core.load32(page(4)), 44);
  calls.shrinkStack(page(3));
  t.deepEqual([core.load32(page(5)), core.load32(page(4))], [0, 0], "both halves shrink");
  calls.mmap({ address: page(24), pages: 1, flags: RW });
  t.throws(() => core.load32(page(8)), { instanceOf: GuestFault, message: /no area/ });
  calls.munmap(page(24), 1);
  t.is(core.load32(page(24)), 0);
  t.throws(() => core.load32(page(25)), { instanceOf: GuestFault, message: /no area/ }, "its limit");
  consistent(t, machine);
});

test("a stack does not grow for an access that is refused, or without memory", (t) => {
  const machine = new HandMachine();
  const process = spawnStack(machine);
  const calls = callsOf(machine, process);
  const { core } = machine.vcpus[0]!;
  const lower = STACK_TOP - 3 * PAGE;
  withFrames(machine, 0, () => t.throws(() => core.store32(lower, 1), { message: /out of memory/ }));
  t.is(calls.mprotect(lower, 2, PTE_R), -ENOMEM, "there is no area yet");
  calls.mprotect(STACK_TOP - PAGE, 1, PTE_R);
  t.throws(() => core.store32(lower, 1), { message: /does not allow/ });
  t.is(calls.mprotect(lower, 2, PTE_R), -ENOMEM);
  t.is(core.load32(lower), 0);
  t.is(calls.mprotect(lower, 2, PTE_R), 0);
  consistent(t, machine);
});

test("a stack is not put into 2 MiB mappings: it gives back single pages", (t) => {
  const machine = new HandMachine();
  const process = machine.kernel.lifecycle.spawn("stack", {
    ...createRunner("stack:pages=2000"),
    dataPages: 1,
    initialPage: () => false,
  });
  const calls = callsOf(machine, process);
  const { core } = machine.vcpus[0]!;
  const bottom = STACK_TOP - 2000 * PAGE;
  core.store32(bottom, 1);
  core.store32(bottom + 1500 * PAGE, 2);
  t.is(calls.madviseHuge(bottom, 2000), 0);
  calls.shrinkStack(bottom + 1000 * PAGE);
  t.deepEqual([core.load32(bottom), core.load32(bottom + 1500 * PAGE)], [0, 2]);
  consistent(t, machine);
});

// ---- areas ----

test("areas that mprotect made alike again are one; those of different objects are not", (t) => {
  const machine = new HandMachine();
  const process = machine.spawn(1);
  const calls = callsOf(machine, process);
  const space = machine.kernel.space(process.slot);
  const count = () => [...space.areas()].length;
  const before = count();
  calls.mmap({ address: WINDOW, pages: 100, flags: RW });
  calls.mmap({ address: WINDOW + 100 * PAGE, pages: 10, flags: RW, shared: true });
  calls.mmap({ address: WINDOW + 110 * PAGE, pages: 10, flags: RW, shared: true });
  for (let i = 0; i < 120; i += 3) calls.mprotect(WINDOW + i * PAGE, 1, i % 2 === 0 ? 0 : PTE_R);
  t.true(count() > before + 60);
  calls.mprotect(WINDOW, 120, RW);
  t.is(count(), before + 3);
  withFrames(machine, 0, () => t.is(calls.mprotect(WINDOW + 5 * PAGE, 3, 0), -ENOMEM));
  t.is(count(), before + 3);
  consistent(t, machine);
});

// ---- memory objects ----

test("a private mapping of an object sees its pages until it stores, and keeps them when the object lets go", (t) => {
  const machine = new HandMachine();
  const process = machine.spawn(1);
  const { kernel } = machine.vcpus[0]!;
  const space = kernel.space(process.slot);
  const core = machine.run(process);
  const object = kernel.objects.create()!;
  const [shared, own] = [WINDOW, WINDOW + 16 * PAGE];
  space.map({ address: shared, pages: 4, flags: RW, shared: true, object });
  space.map({ address: own, pages: 4, flags: RW, shared: false, object });
  kernel.objects.release(object); // the areas hold it now
  for (let page = 0; page < 4; page++) core.store32(shared + page * PAGE, page + 1);
  for (let page = 0; page < 3; page++) t.is(core.load32(own + page * PAGE), page + 1);
  core.store32(own, 100);
  t.is(core.load32(shared), 1);
  core.store32(shared + PAGE, 200);
  t.is(core.load32(own + PAGE), 200);
  t.is(space.protect(own, own + 4 * PAGE, 0), 0);
  t.is(space.protect(own, own + 4 * PAGE, RW), 0);
  core.store32(own + PAGE, 300);
  t.is(core.load32(shared + PAGE), 200);
  consistent(t, machine);
  space.unmap(shared, shared + 4 * PAGE);
  kernel.objects.truncate(object, 0);
  t.deepEqual([core.load32(own), core.load32(own + PAGE), core.load32(own + 2 * PAGE)], [100, 300, 3]);
  core.store32(own + 2 * PAGE, 4); // the leaf was the frame's last holder: it is taken, not copied
  t.is(core.load32(own + 2 * PAGE), 4);
  consistent(t, machine);
  machine.kernel.lifecycle.end(process.slot);
  consistent(t, machine);
});

// ---- without memory ----

test("who finds no memory for the last of its page tables keeps none of them; they go with their last leaf", (t) => {
  const machine = new HandMachine();
  const { buddy, memory } = machine.kernel;
  const process = machine.spawn(1, 0xaa);
  const calls = callsOf(machine, process);
  const tables = () => [...walkTables(memory, process.root)].length;
  const before = tables();

  t.is(calls.mmap({ address: WINDOW, pages: 1, flags: RW }), WINDOW);
  const store = () => machine.run(process).store32(WINDOW, 1);
  for (const leave of [0, 1, 2]) // of a page and two tables
    withFrames(machine, leave, () => {
      t.throws(store, { instanceOf: GuestFault });
      t.deepEqual([tables(), buddy.freeFrames], [before, leave]);
    });
  store();
  t.is(tables(), before + 2);
  t.is(calls.munmap(WINDOW, 1), 0);
  t.is(tables(), before);

  const { objects } = machine.kernel;
  const object = objects.create()!;
  const [near, far] = [DATA_BASE + PAGE, 2 * WINDOW];
  const space = machine.kernel.space(process.slot);
  for (const address of [near, far]) space.map({ address, pages: 1, flags: RW, shared: true, object });
  objects.release(object); // the areas hold it now
  machine.run(process).store32(near, 7);
  for (const leave of [0, 1]) // of two tables
    withFrames(machine, leave, () => {
      t.throws(() => machine.run(process).load32(far), { instanceOf: GuestFault });
      t.deepEqual([tables(), buddy.freeFrames], [before, leave]);
    });
  t.is(machine.run(process).load32(far), 7);
  t.is(calls.munmap(far, 1), 0);
  t.is(tables(), before);

  const block = HEAP_BASE + HUGE_BYTES - PAGE; // a page on either side of a table's end
  const pair = buddy.allocate(1, 0, KIND_RESERVE)!;
  for (const flags of [0, RW]) {
    t.is(space.protect(HEAP_BASE, HEAP_END, flags), 0); // without access its leaves are parked
    for (const leave of [0, 1, 2]) // of three tables
      withFrames(machine, leave, () => {
        buddy.free(pair);
        t.false(calls.map(block, 1));
        t.deepEqual([tables(), buddy.freeFrames, findFrame(memory, process.root, block)], [before, leave + 2, undefined]);
        t.is(buddy.allocate(1, 0, KIND_RESERVE), pair);
      });
  }
  buddy.free(pair);
  t.true(calls.map(block, 1));
  t.is(tables(), before + 3);
  calls.unmap(block, 1);
  t.is(tables(), before);
  consistent(t, machine);
});

test("mmap over something needs no memory: what goes leaves its own", (t) => {
  const machine = new HandMachine();
  const calls = callsOf(machine, machine.spawn(8, 0xaa));
  const { core } = machine.vcpus[0]!;
  withFrames(machine, 0, () => {
    t.is(calls.mmap({ address: DATA_BASE, pages: 7, flags: RW }), -ENOMEM, "it would be cut");
    t.is(calls.mmap({ address: DATA_BASE, pages: 8, flags: RW, shared: true }), -ENOMEM);
    t.is(core.load8(DATA_BASE), 0xaa);
    t.is(calls.mmap({ address: DATA_BASE, pages: 8, flags: RW }), DATA_BASE);
    t.is(core.load8(DATA_BASE), 0);
  });
  consistent(t, machine);
});

// ---- tracking ----

/** A process with a 2 MiB mapping at WINDOW, of which some pages were stored to. */
function spawnHuge(t: ExecutionContext, machine: HandMachine): Process {
  const process = machine.spawn(2, 0xaa);
  const calls = callsOf(machine, process);
  calls.mmap({ address: WINDOW, pages: 600, flags: RW });
  for (let page = 0; page < 600; page += 7) machine.run(process).store32(WINDOW + page * PAGE, page + 1);
  t.is(calls.madviseHuge(WINDOW, 600), 1);
  for (let page = 0; page < 600; page += 7) t.is(machine.run(process).load32(WINDOW + page * PAGE), page + 1);
  return process;
}

const levelAt = ({ kernel }: HandMachine, { root }: Process, address: number) => findEntry(kernel.memory, root, address)?.level;

test("a 2 MiB mapping is tracked at 4 KiB while armed, and is 2 MiB all the time", (t) => {
  const machine = new HandMachine();
  const process = spawnHuge(t, machine);
  const core = machine.run(process);
  const head = machine.frameOf(process, WINDOW);
  machine.tracking.arm();
  core.store32(WINDOW + 3 * PAGE, 1);
  core.store64(WINDOW + 401 * PAGE - 4, 1, 2);
  core.load32(WINDOW + 100 * PAGE);
  const marked = Array.from({ length: 512 }, (_, page) => page).filter((page) => machine.isMarked(head + page));
  t.deepEqual(marked, [3, 400, 401]);
  machine.tracking.disarm();
  t.is(levelAt(machine, process, WINDOW), 1);
  t.is(levelAt(machine, process, WINDOW + 518 * PAGE), 0);
  consistent(t, machine);
});

test("a frame that several processes map faults once, whoever stores first", (t) => {
  const machine = new HandMachine({ vcpus: 2 });
  const process = machine.spawn(1);
  callsOf(machine, process).mmap({ address: WINDOW, pages: 1, flags: RW, shared: true });
  machine.run(process).store32(WINDOW, 1);
  const child = fork(machine, process);
  machine.run(process, 0).store32(WINDOW, 2);
  machine.run(child, 1).store32(WINDOW, 3);
  t.is(machine.frameOf(child, WINDOW), machine.frameOf(process, WINDOW));
  machine.tracking.arm();
  const [parents, childs] = [machine.run(process, 0), machine.run(child, 1)];
  for (let i = 0; i < 3; i++) {
    childs.store32(WINDOW, i);
    t.is(parents.load32(WINDOW), i);
    parents.store32(WINDOW, i + 10);
    t.is(childs.load32(WINDOW), i + 10);
  }
  t.is(readFaultStatistics({ control: machine.control, vcpus: 2, pidOf: () => undefined }, 0, 0).by_kind.user, 1);
  consistent(t, machine);
});

interface Scenario {
  name: string;
  /** Mechanisms without which a change is lost. */
  sabotages: readonly number[];
  before: (t: ExecutionContext, machine: HandMachine) => Process;
  after: (machine: HandMachine, process: Process) => void;
}

const scenarios: Scenario[] = [
  {
    name: "a copy on write",
    sabotages: [SABOTAGE_NO_KERNEL],
    before: (_t, machine) => {
      const process = machine.spawn(4, 0xaa);
      fork(machine, process);
      return process;
    },
    after: (machine, process) => machine.run(process).store32(DATA_BASE + PAGE, 1),
  },
  {
    name: "a copy of 2 MiB on write",
    sabotages: [SABOTAGE_NO_KERNEL],
    before: (t, machine) => {
      const process = spawnHuge(t, machine);
      fork(machine, process);
      return process;
    },
    after: (machine, process) => machine.run(process).store32(WINDOW, 1),
  },
  {
    name: "a store to 2 MiB with a tag from before",
    sabotages: [SABOTAGE_NO_SHOOTDOWN, SABOTAGE_NO_ACK],
    before: (t, machine) => {
      const process = spawnHuge(t, machine);
      machine.run(process).store32(WINDOW + 5 * PAGE, 1);
      return process;
    },
    after: (machine) => machine.vcpus[0]!.core.store32(WINDOW + 5 * PAGE, 2),
  },
  {
    name: "a fork, and the end of the child",
    sabotages: [SABOTAGE_NO_KERNEL],
    before: (t, machine) => spawnHuge(t, machine),
    after: (machine, process) => machine.kernel.lifecycle.end(fork(machine, process).slot),
  },
  {
    name: "2 MiB that munmap splits",
    sabotages: [SABOTAGE_NO_KERNEL],
    before: (t, machine) => spawnHuge(t, machine),
    after: (machine, process) => void callsOf(machine, process).munmap(WINDOW + 9 * PAGE, 3),
  },
];

for (const { name, sabotages, before, after } of scenarios) {
  test(`${name} while armed marks all that it changes; with the mechanism broken that is seen`, (t) => {
    const lost = (sabotage: number) => {
      const machine = new HandMachine();
      const process = before(t, machine);
      machine.control.store(MACHINE_SABOTAGE, sabotage);
      machine.tracking.arm();
      const hashes = machine.hashes();
      after(machine, process);
      t.notDeepEqual(machine.hashes(), hashes);
      consistent(t, machine);
      return machine.lostSince(hashes).length;
    };
    t.is(lost(SABOTAGE_NONE), 0);
    for (const sabotage of sabotages) t.true(lost(sabotage) > 0, `sabotage ${sabotage}`);
  });
}

// ---- 2 MiB ----

test("2 MiB that a fork shares: the first store copies a block, or frames if there is no block; the last holder takes it", (t) => {
  for (const blocks of [true, false]) {
    const machine = new HandMachine({ ramBytes: 24 * MIB });
    const process = spawnHuge(t, machine);
    const child = fork(machine, process);
    const head = machine.frameOf(process, WINDOW);
    t.is(machine.frameOf(child, WINDOW), head);
    const store = () => machine.run(child).store32(WINDOW, 100);
    if (blocks) store();
    else withFrames(machine, 600, store);
    t.is(levelAt(machine, child, WINDOW), blocks ? 1 : 0);
    t.is(machine.run(process).load32(WINDOW), 1);
    machine.run(process).store32(WINDOW, 200);
    t.is(machine.frameOf(process, WINDOW), head, "the child let go of it");
    t.is(levelAt(machine, process, WINDOW), 1);
    t.deepEqual([machine.run(child).load32(WINDOW), machine.run(child).load32(WINDOW + 7 * PAGE)], [100, 8]);
    consistent(t, machine);
  }
});

test("2 MiB that is shared and closed is shared when it is opened again, in parent and child", (t) => {
  const machine = new HandMachine({ ramBytes: 24 * MIB });
  const process = spawnHuge(t, machine);
  callsOf(machine, process).mprotect(WINDOW, 600, 0);
  const child = fork(machine, process);
  for (const one of [process, child]) {
    t.throws(() => machine.run(one).load32(WINDOW), { instanceOf: GuestFault });
    t.is(callsOf(machine, one).mprotect(WINDOW, 600, RW), 0);
    consistent(t, machine);
  }
  machine.run(process).store32(WINDOW + 7 * PAGE, 77);
  t.deepEqual(
    [process, child].map((one) => machine.run(one).load32(WINDOW + 7 * PAGE)),
    [77, 8],
  );
  consistent(t, machine);
});

// ---- want of memory, at every place ----

/** What a process may ask for, and what it then sees. */
const requests: { name: string; ask: (machine: HandMachine, process: Process) => boolean }[] = [
  { name: "a store to a page that a fork shares", ask: stores(DATA_BASE) },
  { name: "a store to a new page", ask: stores(DATA_BASE + 2 * 512 * PAGE) },
  { name: "a store to 2 MiB that a fork shares", ask: stores(WINDOW) },
  { name: "a store to a shared page", ask: stores(WINDOW + 1024 * PAGE) },
  { name: "munmap in 2 MiB", ask: (machine, process) => done(callsOf(machine, process).munmap(WINDOW + PAGE, 1)) },
  { name: "mprotect across 2 MiB", ask: (machine, process) => done(callsOf(machine, process).mprotect(WINDOW + PAGE, 530, 0)) },
  { name: "mmap", ask: (machine, process) => done(callsOf(machine, process).mmap({ pages: 2, flags: RW, shared: true })) },
  { name: "fork", ask: (machine, process) => fork(machine, process) !== undefined },
];

function done(result: number): boolean {
  if (result < 0 && result !== -ENOMEM) throw new Error(`gave ${result}`);
  return result >= 0;
}

function stores(address: number) {
  return (machine: HandMachine, process: Process): boolean => {
    try {
      machine.run(process).store32(address, 0x5555);
      return true;
    } catch (error) {
      if (!(error instanceof GuestFault && error.kind === "no memory")) throw error;
      return false;
    }
  };
}

for (const { name, ask } of requests) {
  test(`${name}, with any number of free frames: done, or nothing has changed and nothing is lost`, (t) => {
    let refused = 0;
    for (const leave of [0, 1, 2, 3, 4, 5, 6, 8, 512, 513, 514, 520]) {
      const machine = new HandMachine({ ramBytes: 24 * MIB });
      const process = machine.spawn(1030, 0);
      const calls = callsOf(machine, process);
      machine.run(process).store32(DATA_BASE, 1);
      calls.mmap({ address: WINDOW, pages: 600, flags: RW });
      calls.mmap({ address: WINDOW + 1024 * PAGE, pages: 4, flags: RW, shared: true });
      machine.run(process).store32(WINDOW, 2);
      calls.madviseHuge(WINDOW, 600);
      const child = fork(machine, process);
      const image = () => [...walkLeaves(machine.kernel.memory, process.root)].map(({ address, frame }) => [address, frame]);
      withFrames(machine, leave, () => {
        const { freeFrames } = machine.kernel.buddy;
        const before = image();
        const result = ask(machine, process);
        if (result) return;
        refused++;
        t.deepEqual(image(), before);
        t.true(freeFrames - machine.kernel.buddy.freeFrames <= 5, "but for tables nothing was taken");
      });
      consistent(t, machine);
      const kept = machine.run(child).load32(DATA_BASE);
      t.deepEqual([kept, machine.run(child).load32(WINDOW)], [1, 2], "the child's are its own");
      for (const { slot } of listProcesses(machine.kernel.memory)) machine.kernel.lifecycle.end(slot);
      consistent(t, machine);
    }
    t.true(refused > 0 && refused < 12, `${refused} refused`);
  });
}

test("a memory object whose table is another's frame, or lies beyond RAM, is seen", (t) => {
  const machine = new HandMachine();
  const process = machine.spawn(1);
  const { memory } = machine.kernel;
  callsOf(machine, process).mmap({ address: WINDOW, pages: 4, flags: RW, shared: true });
  machine.run(process).store32(WINDOW, 1);
  consistent(t, machine);
  const { object } = [...walkAreas(memory, readProcess(memory, process.slot)!.areas)].find((area) => area.object !== 0)!;
  const [upper, lower] = [...walkObjectTables(memory, object)] as [number, number];
  for (const frame of [machine.frameOf(process, WINDOW), upper, memory.frames + 5]) {
    memory.store32(upper * FRAME_BYTES, frame + 1);
    t.regex(checkConsistency(memory).problems.join("\n"), /a table of a memory object: /, `${frame}`);
  }
  memory.store32(upper * FRAME_BYTES, lower + 1);
  consistent(t, machine);
});
