/**
 * Every mechanism of write tracking is needed: each scenario loses nothing as it is, and with its one mechanism broken
 * (SABOTAGE_*) a change is lost, and seen to be lost. Then the TLB: no stale tag ever hits, in chosen cases and against
 * a model under random accesses.
 *
 * The test plays the vCPUs itself, so that the order of events is given; two tests at the end run a live machine.
 */
import { join } from "node:path";
import ava, { type ExecutionContext } from "ava";
import fc from "fast-check";
import * as layout from "../src/base/layout.js";
import {
  KEEP_BITMAP,
  FRAME_BYTES,
  LATENCY_SAMPLE,
  QUEUE_FRAMES,
  QUEUE_PLACES,
  MACHINE_PREIMAGES,
  MACHINE_QUEUE_CURSOR,
  MACHINE_QUEUE_OVERFLOW,
  MACHINE_QUEUE_ROOM,
  MACHINE_SABOTAGE,
  TLB_ENTRIES,
} from "../src/base/layout.js";
import { readFaultStatistics } from "../src/cow/fault-statistics.js";
import { save } from "../src/hibernate.js";
import { openImage } from "../src/image/directory.js";
import { GuestFault } from "../src/vm/memory/address-space.js";
import { walkLeaves } from "../src/vm/memory/page-table.js";
import { placeOfFrame, POOL_PLACE } from "../src/vm/memory/physical.js";
import type { Process } from "../src/vm/tasks/process.js";
import { CODE_BASE, DATA_BASE, HEAP_BASE } from "../src/vm/personality/step/program.js";
import { FlatMemory } from "../src/vm/personality/step/programs/replay.js";
import { bootMachine, findWrong, HandMachine, MIB, scratch, until, whileStopped } from "./support.js";
import { drainConsole, printToConsole } from "../src/vm/memory/console-ring.js";

/** One at a time: a live machine wants both cores. */
const test = ava.serial;

const PAGE = FRAME_BYTES;
const ZERO = new Uint8Array(PAGE);

interface Mechanism {
  name: string;
  sabotage: number;
  /** Before arming. */
  before?: (machine: HandMachine, process: Process) => void;
  /** After arming; under sabotage this must change a frame without a mark. */
  after: (machine: HandMachine, process: Process) => void;
}

const read = (machine: HandMachine, process: Process) => void machine.run(process).load32(DATA_BASE);
const write = (machine: HandMachine, process: Process) => machine.run(process).store32(DATA_BASE, 1);
/** Stores through whatever tags the vCPU has: it goes on with the process that it is running. */
const writeOn = (machine: HandMachine) => machine.vcpus[0]!.core.store32(DATA_BASE + 8, 2);
const kernelStore = (name: string, store: (machine: HandMachine, at: number) => void): Mechanism => ({
  name: `${name} by the kernel marks its frame`,
  sabotage: layout.SABOTAGE_NO_KERNEL,
  after: (machine, process) => store(machine, machine.frameOf(process, DATA_BASE) * PAGE),
});

const mechanisms: Mechanism[] = [
  { name: "a store marks its frame", sabotage: layout.SABOTAGE_NO_MARK, after: write },
  { name: "a TLB shootdown drops write tags", sabotage: layout.SABOTAGE_NO_SHOOTDOWN, before: write, after: writeOn },
  { name: "arming awaits acknowledgement", sabotage: layout.SABOTAGE_NO_ACK, before: write, after: writeOn },
  {
    name: "a page-crossing store marks both frames",
    sabotage: layout.SABOTAGE_NO_CROSSING,
    after: (machine, process) => machine.run(process).store64(DATA_BASE + PAGE - 4, 1, 2),
  },
  { name: "an A bit marks its page table", sabotage: layout.SABOTAGE_NO_AD, after: read },
  { name: "a D bit marks its page table", sabotage: layout.SABOTAGE_NO_AD, before: read, after: write },
  kernelStore("a word", ({ kernel }, at) => kernel.memory.store32(at, 3)),
  kernelStore("a float", ({ kernel }, at) => kernel.memory.storeFloat64(at, 3)),
  kernelStore("a byte", ({ kernel }, at) => kernel.core.kernelStore8(at, 3)),
  kernelStore("zeroing", ({ kernel }, at) => kernel.memory.zero(at / PAGE, 2)),
  kernelStore("a bulk copy", ({ kernel }, at) => kernel.memory.write(at + PAGE - 2, Uint8Array.of(3, 3, 3, 3))),
];

for (const { name, sabotage, before, after } of mechanisms) {
  test(`${name}: without that a change is lost`, (t) => {
    const lost = (broken: number) => {
      const machine = new HandMachine();
      const process = machine.spawn(4, 0xaa);
      machine.control.store(MACHINE_SABOTAGE, broken);
      before?.(machine, process);
      machine.tracking.arm();
      const hashes = machine.hashes();
      after(machine, process);
      t.notDeepEqual(machine.hashes(), hashes, "the scenario must change something");
      return machine.lostSince(hashes);
    };
    t.deepEqual(lost(layout.SABOTAGE_NONE), []);
    t.true(lost(sabotage).length > 0);
  });
}

test("arming is over only once each vCPU has acknowledged; one that is off is not awaited", (t) => {
  const machine = new HandMachine({ vcpus: 3 });
  machine.tracking.arm();
  t.deepEqual(machine.control.answers, [false, false, false, true]);
  machine.control.storeVcpu(2, layout.VCPU_STATE, layout.VCPU_STATE_OFF);
  machine.tracking.arm();
  t.deepEqual(machine.control.answers, [false, false, true, true]);
});

test("the mark comes first, then the tag, then the store; one fault in LATENCY_SAMPLE shows it", (t) => {
  const order = (broken: number) => {
    const machine = new HandMachine();
    const process = machine.spawn(4, 0xaa);
    write(machine, process); // A and D are set: the fault to come is the thread's first
    machine.tracking.arm();
    machine.control.store(MACHINE_SABOTAGE, broken);
    const frame = machine.frameOf(process, DATA_BASE);
    const seen: { marked: boolean; stored: boolean }[] = [];
    machine.onClock = () =>
      seen.push({ marked: machine.isMarked(frame), stored: machine.kernel.memory.load32(frame * PAGE) !== 1 });
    machine.run(process).store32(DATA_BASE, 7);
    t.is(machine.kernel.memory.load32(frame * PAGE), 7);
    machine.onClock = () => t.fail("neither a hit nor the next fault is timed");
    machine.run(process).store32(DATA_BASE, 8);
    t.true(LATENCY_SAMPLE > 2);
    return seen;
  };
  t.deepEqual(order(layout.SABOTAGE_NONE), [
    { marked: false, stored: false },
    { marked: true, stored: false },
  ]);
  t.true(order(layout.SABOTAGE_STORE_FIRST).some(({ marked, stored }) => stored && !marked));
});

test("a store by a device marks its frame and is counted as a device's", (t) => {
  const machine = new HandMachine();
  printToConsole(machine.kernel.memory, "hello");
  machine.tracking.arm();
  const hashes = machine.hashes();
  t.is(drainConsole(machine.kernel.memory), "hello\n");
  t.notDeepEqual(machine.hashes(), hashes);
  t.deepEqual(machine.lostSince(hashes), []);
  t.like(readFaultStatistics({ control: machine.control, vcpus: 1, pidOf: () => undefined }, 0, 0).by_kind, {
    user: 0,
    kernel: 0,
    page_table: 0,
    device: 1,
  });
});

test("the bitmap is not itself protected: else the handler faults on its own mark for ever", (t) => {
  const machine = new HandMachine();
  const process = machine.spawn(1, 0xaa);
  machine.tracking.arm();
  write(machine, process);
  machine.tracking.arm();
  machine.control.store(MACHINE_SABOTAGE, layout.SABOTAGE_BITMAP_PROTECTED);
  t.throws(() => write(machine, process), { instanceOf: RangeError });
});

test("a frame found equal is kept as it was before its first store, once; a full queue is counted", (t) => {
  const stored = (broken: number, room: number) => {
    const machine = new HandMachine();
    const process = machine.spawn(3, 0xaa);
    const { control, kernel } = machine;
    const frames = [0, 1, 2].map((page) => machine.frameOf(process, DATA_BASE + page * PAGE));
    control.words.set(
      frames.map((_, i) => POOL_PLACE + i),
      QUEUE_PLACES >>> 2,
    );
    control.store(MACHINE_QUEUE_ROOM, room);
    control.store(MACHINE_SABOTAGE, broken);
    machine.tracking.armForRestore();
    for (const frame of frames.slice(0, 2)) kernel.core.setBit(KEEP_BITMAP, frame);
    const core = machine.run(process);
    for (let round = 1; round <= 2; round++) for (let page = 0; page < 3; page++) core.store32(DATA_BASE + page * PAGE, round);
    const queue = Array.from({ length: control.load(MACHINE_PREIMAGES) }, (_, i) => ({
      page: frames.indexOf(control.words[(QUEUE_FRAMES >>> 2) + i]!),
      old: kernel.memory.read((POOL_PLACE - placeOfFrame(0)) * PAGE + i * PAGE, PAGE).every((byte) => byte === 0xaa),
    }));
    return { queue, claimed: control.load(MACHINE_QUEUE_CURSOR), overflow: control.load(MACHINE_QUEUE_OVERFLOW) };
  };
  const both = [
    { page: 0, old: true },
    { page: 1, old: true },
  ];
  t.deepEqual(stored(layout.SABOTAGE_NONE, 3), { queue: both, claimed: 2, overflow: 0 });
  t.deepEqual(stored(layout.SABOTAGE_NONE, 1), { queue: both.slice(0, 1), claimed: 1, overflow: 1 });
  t.deepEqual(stored(layout.SABOTAGE_NO_PREIMAGE, 3), { queue: [], claimed: 0, overflow: 0 });
});

// ---- crossing accesses ----

test("loads and stores at every offset of a page's end agree with a flat memory", (t) => {
  const machine = new HandMachine();
  const core = machine.run(machine.spawn(2, 0x11));
  const flat = new FlatMemory();
  for (const vpn of [DATA_BASE / PAGE, DATA_BASE / PAGE + 1]) flat.add(vpn).fill(0x11);
  for (let offset = PAGE - 9; offset <= PAGE + 1; offset++) {
    const at = DATA_BASE + offset;
    for (const memory of [core, flat]) {
      memory.store8(at, 0x180 + offset);
      t.is(memory.load8(at), (0x80 + offset) & 0xff);
      memory.store32(at, 0x8123_4567 ^ offset);
      t.is(memory.load32(at) >>> 0, (0x8123_4567 ^ offset) >>> 0);
      memory.store64(at, 0x89ab_cdef ^ offset, 0xfedc_ba98 ^ offset);
    }
    for (let i = PAGE - 16; i < PAGE + 16; i++)
      t.is(core.load8(DATA_BASE + i), flat.load8(DATA_BASE + i), `byte ${i}, store at ${offset}`);
  }
});

test("a crossing store whose second page cannot be written changes nothing", (t) => {
  const machine = new HandMachine();
  const process = machine.spawn(1, 0x11);
  const core = machine.run(process);
  const before = machine.kernel.memory.read(machine.frameOf(process, DATA_BASE) * PAGE, PAGE);
  for (let offset = PAGE - 7; offset < PAGE; offset++) {
    t.throws(() => core.store64(DATA_BASE + offset, -1, -1), { instanceOf: GuestFault, message: /no area/ });
    if (offset > PAGE - 4) t.throws(() => core.store32(DATA_BASE + offset, -1), { instanceOf: GuestFault });
    if (offset > PAGE - 4) t.throws(() => core.load32(DATA_BASE + offset), { instanceOf: GuestFault });
  }
  t.deepEqual(machine.kernel.memory.read(machine.frameOf(process, DATA_BASE) * PAGE, PAGE), before);
});

// ---- the TLB ----

test("tags of one process never hit in another, nor after the slot is used again", (t) => {
  const machine = new HandMachine();
  const a = machine.spawn(1, 0xaa);
  const b = machine.spawn(1, 0xbb);
  machine.run(a).store8(DATA_BASE, 1);
  t.is(machine.run(b).load8(DATA_BASE), 0xbb);
  machine.run(b).store8(DATA_BASE, 2);
  t.is(machine.run(a).load8(DATA_BASE), 1);
  machine.kernel.lifecycle.end(a.slot);
  const c = machine.spawn(1, 0xcc);
  t.is(c.slot, a.slot);
  t.is(machine.run(c).load8(DATA_BASE), 0xcc);
  machine.run(c).store8(DATA_BASE, 3);
  t.is(machine.run(b).load8(DATA_BASE), 2);
});

test("tags of a page that was unmapped never hit, on this vCPU or on the one that ran the process before", (t) => {
  const machine = new HandMachine({ vcpus: 2 });
  const process = machine.spawn(1, 0xaa);
  const [first, second] = machine.vcpus;
  const { slot } = process;
  first!.kernel.space(slot).mapBlock(HEAP_BASE, 0);
  machine.run(process).store32(HEAP_BASE, 1);
  first!.kernel.space(slot).unmapBlock(HEAP_BASE, 0);
  t.throws(() => first!.core.load32(HEAP_BASE), { message: /not mapped/ });
  t.throws(() => first!.core.store32(HEAP_BASE, 1), { message: /not mapped/ });

  first!.kernel.space(slot).mapBlock(HEAP_BASE, 0);
  first!.core.store32(HEAP_BASE, 2);
  const old = machine.frameOf(process, HEAP_BASE);
  machine.run(process, 1);
  second!.kernel.space(slot).unmapBlock(HEAP_BASE, 0);
  machine.spawn(1, 0xbb); // takes the frame
  second!.kernel.space(slot).mapBlock(HEAP_BASE, 0);
  t.not(machine.frameOf(process, HEAP_BASE), old);
  second!.core.store32(HEAP_BASE, 3);
  t.is(machine.run(process, 0).load32(HEAP_BASE), 3);
});

test("a page that was read faults at its first store; one that is not writable at every store", (t) => {
  const machine = new HandMachine();
  const process = machine.spawn(1, 0xaa);
  const core = machine.run(process);
  core.load32(DATA_BASE);
  machine.tracking.arm();
  core.load32(DATA_BASE);
  t.false(machine.isMarked(machine.frameOf(process, DATA_BASE)));
  core.store32(DATA_BASE, 1);
  t.true(machine.isMarked(machine.frameOf(process, DATA_BASE)));
  for (let i = 0; i < 2; i++) {
    t.is(core.load8(CODE_BASE), "t".charCodeAt(0));
    t.throws(() => core.store8(CODE_BASE, 1), { instanceOf: GuestFault, message: /code area does not allow/ });
  }
  t.false(machine.isMarked(machine.frameOf(process, CODE_BASE)));
});

/** Pages that fall on two TLB entries, so that random accesses evict and alias all the time. */
const PAGES = [0, 1, TLB_ENTRIES, TLB_ENTRIES + 1];

interface Access {
  what: "load8" | "load32" | "store8" | "store32" | "store64" | "arm" | "map" | "unmap";
  process: number;
  vcpu: number;
  page: number;
  offset: number;
  value: number;
}

const accesses = fc.array(
  fc.record<Access>({
    what: fc.constantFrom("load8", "load32", "store8", "store32", "store64", "store64", "arm", "map", "unmap"),
    process: fc.nat(1),
    vcpu: fc.nat(1),
    page: fc.constantFrom(...PAGES),
    offset: fc.oneof(fc.constantFrom(0, 8, PAGE - 8, PAGE - 7, PAGE - 4, PAGE - 3, PAGE - 1), fc.nat(PAGE - 1)),
    value: fc.integer(),
  }),
  { minLength: 1, maxLength: 60 },
);

/** Runs accesses on a machine and on a model; throws if they differ or if a frame changed without a mark. */
function agree(machine: HandMachine, steps: readonly Access[]): void {
  const processes = [0, 1].map(() => machine.spawn(TLB_ENTRIES + 3));
  const models = [new FlatMemory(), new FlatMemory()];
  const running: (number | undefined)[] = [];
  let hashes = machine.hashes();
  const check = () => {
    const lost = machine.lostSince(hashes);
    if (lost.length > 0) throw new Error(`frames ${lost} changed without a mark`);
  };
  machine.tracking.arm();
  for (const { what, process, vcpu, page, offset, value } of steps) {
    if (what === "arm") {
      check();
      machine.tracking.arm();
      hashes = machine.hashes();
      continue;
    }
    if (running[1 - vcpu] === process) running[1 - vcpu] = undefined; // a process runs on one vCPU at a time
    if (running[vcpu] !== process) machine.run(processes[process]!, vcpu);
    running[vcpu] = process;
    const { core, kernel } = machine.vcpus[vcpu]!;
    const model = models[process]!;
    const { slot } = processes[process]!;
    const vpn = HEAP_BASE / PAGE + (page & 1);
    const mapped = model.page(vpn) !== undefined;
    const at = what.endsWith("map")
      ? vpn * PAGE
      : mapped && value % 2 === 0
        ? vpn * PAGE + (offset & ~7)
        : DATA_BASE + page * PAGE + offset;
    if (what === "map" && !mapped && kernel.space(slot).mapBlock(at, 0)) model.add(vpn);
    if (what === "unmap" && mapped) {
      kernel.space(slot).unmapBlock(at, 0);
      model.drop(vpn, 1);
    }
    if (what === "store8" || what === "store32") for (const memory of [core, model]) memory[what](at, value);
    if (what === "store64") for (const memory of [core, model]) memory.store64(at, value, ~value);
    if ((what === "load8" || what === "load32") && (core[what](at) | 0) !== (model[what](at) | 0))
      throw new Error(`${what} of 0x${at.toString(16)}`);
  }
  check();
  for (const [i, process] of processes.entries()) {
    for (const { address, frame } of walkLeaves(machine.kernel.memory, process.root)) {
      const expected = models[i]!.page(address / PAGE) ?? ZERO;
      if (address !== CODE_BASE && Buffer.compare(machine.kernel.memory.read(frame * PAGE, PAGE), expected) !== 0)
        throw new Error(`page 0x${address.toString(16)}`);
    }
    machine.kernel.lifecycle.end(process.slot);
  }
}

test("random accesses of two processes on two vCPUs agree with a flat memory, and change nothing unmarked", (t) => {
  const machine = new HandMachine({ ramBytes: 8 * MIB, vcpus: 2 });
  const property = fc.property(accesses, (steps) => agree(machine, steps));
  t.notThrows(() => fc.assert(property, { numRuns: 300 }));
  for (const broken of [
    layout.SABOTAGE_NO_SHOOTDOWN,
    layout.SABOTAGE_NO_CROSSING,
    layout.SABOTAGE_NO_AD,
    layout.SABOTAGE_NO_KERNEL,
  ]) {
    const fails = fc.property(accesses, (steps) => {
      const other = new HandMachine({ ramBytes: 8 * MIB, vcpus: 2 });
      other.control.store(MACHINE_SABOTAGE, broken);
      agree(other, steps);
    });
    t.true(fc.check(fails, { endOnFailure: true, numRuns: 3000 }).failed, `sabotage ${broken}`);
  }
});

// ---- a live machine ----

async function sabotaged(t: ExecutionContext, sabotage: number): Promise<Awaited<ReturnType<typeof bootMachine>>> {
  const machine = await bootMachine(t, { vcpus: 3 });
  for (const seed of [1, 2, 3, 4]) machine.spawn(`zipf:pages=1000,seed=${seed}`);
  await until(() => machine.processes().every(({ steps }) => steps > 1000), "all run");
  machine.control.store(MACHINE_SABOTAGE, sabotage);
  return machine;
}

for (const sabotage of [layout.SABOTAGE_NO_MARK, layout.SABOTAGE_NO_KERNEL]) {
  test(`the oracle catches sabotage ${sabotage} in a live save; the machine goes on unharmed`, async (t) => {
    const machine = await sabotaged(t, sabotage);
    const directory = scratch(t);
    await t.throwsAsync(save(machine, join(directory, "image"), { oracle: true, keepRunning: true }), { code: "HIB_ORACLE" });
    machine.control.store(MACHINE_SABOTAGE, layout.SABOTAGE_NONE);
    t.deepEqual(
      whileStopped(machine, () => findWrong(machine.kernel.memory)),
      [],
    );
    await save(machine, join(directory, "image"), { oracle: true });
    const image = await openImage(join(directory, "image"));
    t.deepEqual(findWrong(image.memory()), []);
    image.close();
  });
}

test("recomputation catches a missing mark where nobody asks the oracle", async (t) => {
  const machine = await sabotaged(t, layout.SABOTAGE_NO_MARK);
  const path = join(scratch(t), "image");
  await save(machine, path);
  const image = await openImage(path);
  t.true(findWrong(image.memory()).length > 0);
  image.close();
});

test("without pre-images a snapshot's tail lacks what was stored to since: no image comes of it", async (t) => {
  const machine = await sabotaged(t, layout.SABOTAGE_NO_PREIMAGE);
  const path = join(scratch(t), "image");
  const options = { keepRunning: true, pauseTarget_ms: 0 };
  await t.throwsAsync(save(machine, path, options), { code: "HIB_INTERNAL", message: /was not written/ });
  machine.control.store(MACHINE_SABOTAGE, layout.SABOTAGE_NONE);
  await save(machine, path, options);
});
