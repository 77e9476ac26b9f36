/**
 * The machine itself: its allocator against a model, its page tables, what its kernel refuses and why, and that a
 * process that ends leaves nothing behind.
 */
import ava from "ava";
import fc from "fast-check";
import { PTE_D, PTE_R, PTE_U, PTE_W, SAVEABLE_BITMAP } from "../src/base/layout.js";
import { hostNow } from "../src/base/control.js";
import { Machine } from "../src/machine.js";
import { bit } from "../src/base/control.js";
import { createRunner } from "../src/vm/personality/step/programs/index.js";
import { tile } from "../src/vm/memory/buddy.js";
import { checkConsistency } from "../src/vm/views/consistency.js";
import { allocateObject, freeObject } from "../src/vm/memory/kernel-heap.js";
import {
  ARENA_FRAMES,
  isSaved,
  KIND_NAMES,
  KIND_RESERVE,
  KIND_USER,
  kernelLayout,
  MAX_ORDER,
} from "../src/vm/memory/kernel-layout.js";
import { GuestFault } from "../src/vm/memory/address-space.js";
import type { Kernel } from "../src/vm/kernel.js";
import { findLeaf, mapPage, unmapPage, walkLeaves, walkTables } from "../src/vm/memory/page-table.js";
import { RAM_BYTES_MAX, RAM_BYTES_MIN } from "../src/base/limits.js";
import { CODE_BASE, DATA_BASE, HEAP_BASE, HEAP_END, STACK_TOP } from "../src/vm/personality/step/program.js";
import { visitBlocks } from "../src/vm/views/walker.js";
import { bootMachine, findWrong, HandMachine, MIB, sleep, until, whileStopped } from "./support.js";
import { drainConsole, printToConsole } from "../src/vm/memory/console-ring.js";

/** One at a time: a live machine wants both cores. */
const test = ava.serial;

const PAGE = 4096;

// ---- buddy allocator ----

function blocksOf({ memory }: Kernel): { frame: number; order: number; used: boolean; owner: number; kind: number }[] {
  const found: ReturnType<typeof blocksOf> = [];
  visitBlocks(memory, (frame, order, use, owner, kind) => void found.push({ frame, order, used: use === "used", owner, kind }));
  return found;
}

/** The saveable bitmap must say what the frame table says. */
function wrongSaveable(kernel: Kernel): number[] {
  const { memory, control } = kernel;
  const expected = new Uint8Array(memory.frames);
  for (const { frame, order, used, kind } of blocksOf(kernel)) {
    if (used && isSaved(kind)) expected.fill(1, frame, frame + 2 ** order);
  }
  return [...expected.entries()].flatMap(([frame, saved]) =>
    bit(control.words, SAVEABLE_BITMAP, frame) === saved ? [] : [frame],
  );
}

const allocatorSteps = fc.array(
  fc.oneof(
    {
      weight: 5,
      arbitrary: fc.record({
        what: fc.constant("allocate" as const),
        order: fc.integer({ min: 0, max: MAX_ORDER }),
        kind: fc.integer({ min: 1, max: KIND_NAMES.length - 1 }),
      }),
    },
    { weight: 4, arbitrary: fc.record({ what: fc.constant("free" as const), which: fc.nat() }) },
    {
      weight: 1,
      arbitrary: fc.record({ what: fc.constant("carve" as const), from: fc.nat(), length: fc.integer({ min: 1, max: 3000 }) }),
    },
  ),
  { maxLength: 80 },
);

test("buddy allocator: blocks tile the arenas and never overlap; all freed, they merge to what there was", (t) => {
  const { kernel } = new HandMachine({ ramBytes: 80 * MIB });
  const { buddy, memory } = kernel;
  const initial = blocksOf(kernel);
  t.true(kernelLayout(memory.frames).arenas === 2 && memory.frames % ARENA_FRAMES !== 0);
  fc.assert(
    fc.property(allocatorSteps, (steps) => {
      const held = new Map<number, number>();
      const taken = new Uint8Array(memory.frames);
      const hold = (frame: number, order: number) => {
        if (frame % 2 ** order !== 0 || taken.subarray(frame, frame + 2 ** order).includes(1))
          throw new Error(`${frame}, order ${order}, is not free`);
        taken.fill(1, frame, frame + 2 ** order);
        held.set(frame, order);
      };
      const release = (frame: number) => {
        buddy.free(frame);
        taken.fill(0, frame, frame + 2 ** held.get(frame)!);
        held.delete(frame);
      };
      for (const step of steps) {
        const free = buddy.freeFrames;
        if (step.what === "allocate") {
          const possible = blocksOf(kernel).some(({ used, order }) => !used && order >= step.order);
          const frame = buddy.allocate(step.order, 7, step.kind);
          if ((frame !== undefined) !== possible)
            throw new Error(`order ${step.order}: ${frame}, and there was ${possible ? "one" : "none"}`);
          if (frame !== undefined) hold(frame, step.order);
        } else if (step.what === "free" && held.size > 0) {
          release([...held.keys()][step.which % held.size]!);
        } else if (step.what === "carve") {
          const from = step.from % memory.frames;
          const inside = (frame: number, order: number) =>
            Math.max(0, Math.min(frame + 2 ** order, from + step.length) - Math.max(frame, from));
          for (const { frame, order } of blocksOf(kernel).filter(({ used }) => !used)) {
            buddy.carve(frame, order, 7, KIND_USER, (part, size) => {
              const what = inside(part, size) === 0 ? "none" : inside(part, size) === 2 ** size ? "all" : "part";
              if (what === "all") hold(part, size);
              return what;
            });
          }
        }
        const now = [...held.values()].reduce((sum, order) => sum + 2 ** order, 0);
        if (step.what === "allocate" && free - buddy.freeFrames < 0) throw new Error("an allocation made frames free");
        if (taken.reduce((sum, one) => sum + one, 0) !== now) throw new Error("the model lost count");
      }
      // Nobody maps these blocks, and that is said of them.
      const problems = checkConsistency(memory).problems.filter(
        (text) => !/held by|which is not there|in no address space/.test(text),
      );
      if (problems.length > 0) throw new Error(problems.join("; "));
      if (wrongSaveable(kernel).length > 0) throw new Error(`saveable bitmap: ${wrongSaveable(kernel).slice(0, 5)}`);
      for (const frame of Array.from(held.keys())) release(frame);
      if (JSON.stringify(blocksOf(kernel)) !== JSON.stringify(initial)) throw new Error("not merged to the initial state");
      if (wrongSaveable(kernel).length > 0) throw new Error("saveable bitmap after all was freed");
    }),
    { numRuns: 60 },
  );
  t.deepEqual(blocksOf(kernel), initial);
});

test("tile: largest aligned blocks, without a gap", (t) => {
  fc.assert(
    fc.property(fc.nat(100_000), fc.nat(10_000), (from, length) => {
      let next = from;
      for (const { frame, order } of tile(from, from + length)) {
        if (frame !== next || frame % 2 ** order !== 0) return false;
        if (order < MAX_ORDER && frame % 2 ** (order + 1) === 0 && frame + 2 ** (order + 1) <= from + length) return false;
        next += 2 ** order;
      }
      return next === from + length;
    }),
  );
  t.pass();
});

test("the saveable bitmap is made again from the frame table as it was kept", (t) => {
  const { kernel } = new HandMachine();
  kernel.buddy.allocate(3, 1, KIND_USER);
  kernel.buddy.allocate(2, 0, KIND_RESERVE);
  t.deepEqual(wrongSaveable(kernel), []);
  kernel.core.clearBitmap(SAVEABLE_BITMAP);
  t.not(wrongSaveable(kernel).length, 0);
  kernel.buddy.rebuildSaveable();
  t.deepEqual(wrongSaveable(kernel), []);
});

test("kernel heap: objects of every size are apart, aligned, and given again once they are free", (t) => {
  const {
    kernel: { buddy, memory },
  } = new HandMachine();
  const sizes = [1, 32, 33, 64, 100, 500, 1024, 2048];
  const objects = sizes.flatMap((bytes) =>
    Array.from({ length: 40 }, () => ({ bytes, at: allocateObject(memory, buddy, bytes)! })),
  );
  const sorted = [...objects].sort((a, b) => a.at - b.at);
  for (const [i, { at, bytes }] of sorted.entries())
    t.true(at % 32 === 0 && (i === 0 || sorted[i - 1]!.at + sorted[i - 1]!.bytes <= at), `${bytes} bytes at ${at}`);
  const free = buddy.freeFrames;
  for (const { at, bytes } of objects) freeObject(memory, at, bytes);
  const again = objects.map(({ bytes }) => allocateObject(memory, buddy, bytes)!);
  t.deepEqual(
    again.sort((a, b) => a - b),
    sorted.map(({ at }) => at),
  );
  t.is(buddy.freeFrames, free);
  t.throws(() => allocateObject(memory, buddy, 2049), { instanceOf: RangeError });
});

// ---- page tables ----

test("page tables: what is mapped is found and walked in order, what is unmapped is gone", (t) => {
  const {
    kernel: { buddy, memory },
  } = new HandMachine();
  const table = () => {
    const frame = buddy.allocate(0, 1, KIND_USER);
    if (frame !== undefined) memory.zero(frame, 1);
    return frame;
  };
  const addresses = fc.uniqueArray(
    fc.oneof(fc.nat(2 ** 20 - 1), fc.constantFrom(0, 511, 512, 2 ** 18 - 1, 2 ** 18, 2 ** 20 - 1)).map((vpn) => vpn * PAGE),
    { minLength: 1, maxLength: 40 },
  );
  fc.assert(
    fc.property(addresses, fc.nat(), (pages, half) => {
      const root = table()!;
      const flags = PTE_R | PTE_W | PTE_U;
      for (const [i, page] of pages.entries()) if (!mapPage(memory, root, page, i, flags, table)) throw new Error("no memory");
      const gone = pages.filter((_, i) => (half >> (i % 30)) & 1);
      for (const page of gone) if (unmapPage(memory, root, page) !== pages.indexOf(page)) throw new Error("unmapped another");
      const left = pages.filter((page) => !gone.includes(page)).sort((a, b) => a - b);
      const leaves = [...walkLeaves(memory, root)];
      if (leaves.map(({ address }) => address).join() !== left.join()) throw new Error("walk");
      if (leaves.some(({ address, frame, level }) => pages[frame] !== address || level !== 0)) throw new Error("frames");
      if (pages.some((page) => (findLeaf(memory, root, page) === 0) !== gone.includes(page))) throw new Error("find");
      if (gone.some((page) => unmapPage(memory, root, page) !== undefined)) throw new Error("unmapped twice");
      for (const frame of Array.from(walkTables(memory, root))) buddy.free(frame);
    }),
    { numRuns: 50 },
  );
  t.false(
    mapPage(memory, table()!, 0, 1, PTE_R, () => undefined),
    "no memory for a table",
  );
});

test("demand zero: a page comes with its first access, zeroed, with A, and D once it is written", (t) => {
  const machine = new HandMachine();
  const process = machine.spawn(3);
  const core = machine.run(process);
  const {
    kernel: { memory, buddy },
  } = machine;
  const dirty = buddy.allocate(0, 0, KIND_USER)!;
  memory.write(dirty * PAGE, new Uint8Array(PAGE).fill(9));
  buddy.free(dirty);
  const leaf = () => findLeaf(memory, process.root, DATA_BASE + PAGE);
  t.is(leaf(), 0);
  t.is(core.load32(DATA_BASE + PAGE), 0);
  t.is(memory.load32(leaf()) & PTE_D, 0);
  core.store32(STACK_TOP - 4, 5);
  core.store32(DATA_BASE + PAGE, 5);
  t.is(memory.load32(leaf()) & PTE_D, PTE_D);
  t.true(memory.read(machine.frameOf(process, DATA_BASE + PAGE) * PAGE + 4, PAGE - 4).every((byte) => byte === 0));
  t.deepEqual(checkConsistency(memory).problems, []);
});

// ---- what the kernel refuses ----

test("accesses that no area allows end in a fault that says why", (t) => {
  const machine = new HandMachine();
  const process = machine.spawn(1);
  const core = machine.run(process);
  const { kernel } = machine.vcpus[0]!;
  const fails = (access: () => void, message: RegExp) => t.throws(access, { instanceOf: GuestFault, message });
  fails(() => core.store32(CODE_BASE, 1), /write to 0x10000: the code area does not allow it/);
  fails(() => core.load32(0), /read of 0x0, which no area holds/);
  fails(() => core.store8(DATA_BASE + PAGE, 1), /write to 0x10001000, which no area holds/);
  fails(() => core.store8(STACK_TOP - PAGE - 1, 1), /no area/);
  fails(() => core.store32(0xffff_fffe, 1), /no area/);
  fails(() => core.load32(HEAP_BASE), /read of 0xe0000000, which is not mapped/);
  fails(() => kernel.space(process.slot).mapBlock(HEAP_END - PAGE, 1), /outside the heap area/);
  fails(() => kernel.space(process.slot).mapBlock(HEAP_BASE + 1, 0), /outside the heap area/);
  kernel.space(process.slot).mapBlock(HEAP_BASE + PAGE, 0);
  fails(() => kernel.space(process.slot).mapBlock(HEAP_BASE, 1), /0xe0001000, which is mapped/);
  fails(() => kernel.space(process.slot).unmapBlock(HEAP_BASE + PAGE, 1), /no such block/);
  fails(() => kernel.space(process.slot).unmapBlock(HEAP_BASE, 0), /no such block/);
  t.deepEqual(checkConsistency(kernel.memory).problems, []);
});

test("a process that fails keeps its reason and its memory; the others go on", async (t) => {
  const machine = await bootMachine(t, { ramBytes: 16 * MIB });
  machine.spawn("incrementer:pages=4");
  machine.spawn("stack:pages=8000"); // more than there is
  await until(() => machine.processes().some(({ state }) => state === "failed"), "the stack does not fit");
  const [healthy, failed] = machine.processes();
  t.regex(failed!.failure, /out of memory at write to 0x/);
  t.is(healthy!.failure, "");
  machine.kernel.lifecycle.end(failed!.slot);
  const { steps } = machine.processes()[0]!;
  await until(() => machine.processes()[0]!.steps > steps, "the other one goes on");
  t.deepEqual(
    whileStopped(machine, () => findWrong(machine.kernel.memory)),
    [],
  );
});

test("a process whose program is not known here fails, and its vCPU goes on", async (t) => {
  const machine = await bootMachine(t, { ramBytes: 16 * MIB, vcpus: 1 });
  machine.kernel.lifecycle.spawn("no-such-program:pages=1", createRunner("idle"));
  machine.spawn("incrementer:pages=4");
  await until(() => machine.processes().some(({ state }) => state === "failed"), "it fails");
  t.regex(machine.processes()[0]!.failure, /no program "no-such-program"/);
  const { steps } = machine.processes()[1]!;
  await until(() => machine.processes()[1]!.steps > steps, "the other one goes on");
});

/** How a spawn may fail for want of memory: `leave` frames are free when it is tried. */
for (const leave of [0, 1, 2, 3, 4, 5, 8]) {
  test(`a spawn that finds ${leave} free frames fails, and takes none of them`, (t) => {
    const machine = new HandMachine({ ramBytes: 8 * MIB });
    const { kernel } = machine;
    kernel.lifecycle.end(machine.spawn(1, 1).slot); // the kernel heap has its frame
    while (kernel.buddy.allocate(0, 0, KIND_RESERVE) !== undefined);
    const reserve = blocksOf(kernel).filter(({ kind }) => kind === KIND_RESERVE);
    for (const { frame } of reserve.slice(0, 2 * leave).filter((_, i) => i % 2 === 0)) kernel.buddy.free(frame);
    t.is(kernel.buddy.freeFrames, leave);
    t.throws(() => machine.spawn(20, 1), { code: "HIB_NO_MEMORY" });
    t.is(kernel.buddy.freeFrames, leave);
    t.deepEqual(checkConsistency(kernel.memory).problems, []);
    t.is(checkConsistency(kernel.memory).processes, 0);
  });
}

test("the process table holds 512; ended processes make room and leave nothing behind", (t) => {
  const machine = new HandMachine({ ramBytes: 32 * MIB });
  const { kernel } = machine;
  const all = Array.from({ length: 512 }, (_, i) => machine.spawn(1, 1 + (i % 200)));
  t.throws(() => machine.spawn(1), { code: "HIB_USAGE", message: /process table is full \(512\)/ });
  t.deepEqual(checkConsistency(kernel.memory).problems, []);
  const full = kernel.buddy.freeFrames;
  kernel.lifecycle.end(all[100]!.slot);
  t.is(machine.spawn(1, 1).slot, all[100]!.slot);
  t.is(kernel.buddy.freeFrames, full);
  for (const { slot } of all) kernel.lifecycle.end(slot);
  const empty = kernel.buddy.freeFrames;
  for (let i = 0; i < 512; i++) machine.spawn(1, 1);
  for (const { slot } of all) kernel.lifecycle.end(slot);
  t.is(kernel.buddy.freeFrames, empty);
  t.is(checkConsistency(kernel.memory).processes, 0);
});

test("running processes that are told to end are gone, with all of their memory", async (t) => {
  const machine = await bootMachine(t);
  const texts = ["zipf:pages=400", "heap:slots=30", "stack:pages=50", "idle", "incrementer:pages=60,rate=1000"];
  const round = async () => {
    for (const text of texts) machine.spawn(text);
    await until(() => machine.processes().every(({ steps }) => steps > 0), "all have run");
    for (const { slot } of machine.processes()) machine.kernel.lifecycle.end(slot);
    await until(() => machine.processes().length === 0, "all are gone");
    return machine.kernel.buddy.freeFrames;
  };
  const free = await round();
  for (let i = 0; i < 5; i++) t.is(await round(), free);
  t.deepEqual(
    whileStopped(machine, () => findWrong(machine.kernel.memory)),
    [],
  );
});

// ---- rate, console, sizes ----

test("a process never runs more steps than its rate allows", async (t) => {
  const machine = await bootMachine(t);
  const began = hostNow();
  const rate = 20_000;
  machine.spawn(`sequential:pages=10,rate=${rate}`);
  machine.spawn("incrementer:pages=10");
  for (let i = 0; i < 20; i++) {
    await sleep(10);
    const { steps } = machine.processes()[0]!;
    t.true(steps <= ((hostNow() - began) * rate) / 1000 + 1, `${steps} steps`);
  }
  await until(() => machine.processes()[0]!.steps > 0, "it runs");
});

test("console ring: what fits comes out as it went in, across its end; what does not is dropped", (t) => {
  const {
    kernel: { memory },
  } = new HandMachine();
  const line = `${"x".repeat(997)} ü`;
  for (let i = 0; i < 20; i++) {
    for (let n = 0; n < 3; n++) printToConsole(memory, line);
    t.is(drainConsole(memory), `${line}\n`.repeat(3));
  }
  t.is(drainConsole(memory), "");
  for (let n = 0; n < 10; n++) printToConsole(memory, line);
  const text = drainConsole(memory);
  t.is(Buffer.byteLength(text), 4087);
  t.true(`${line}\n`.repeat(10).startsWith(text));
});

test("sizes: from too little over four thousand million bytes to too much", async (t) => {
  const boot = (ramBytes: number) => Machine.boot({ ramBytes, vcpus: 1 });
  await t.throwsAsync(boot(RAM_BYTES_MIN - 1), { code: "HIB_USAGE" });
  (await bootMachine(t, { ramBytes: RAM_BYTES_MIN })).spawn("incrementer:pages=10");
  await t.throwsAsync(boot(RAM_BYTES_MAX + 1), { code: "HIB_RAM_TOO_LARGE", message: new RegExp(String(RAM_BYTES_MAX)) });
  t.true(RAM_BYTES_MAX >= 4_000_000_000);
  const machine = await bootMachine(t, { ramBytes: RAM_BYTES_MAX });
  machine.spawn("incrementer:pages=100");
  await until(() => machine.processes()[0]!.steps > 1000, "it runs");
  t.true(machine.kernel.buddy.freeFrames * PAGE > 3_900_000_000);
  const { memory } = machine.kernel;
  const last = memory.frames - 1;
  const { frame, order } = blocksOf(machine.kernel).at(-1)!;
  t.is(frame + 2 ** order - 1, last);
  memory.write(last * PAGE, Uint8Array.of(1, 2, 3, 4));
  t.is(memory.load32(last * PAGE), 0x04030201);
  await t.throwsAsync(Machine.boot({ ramBytes: 16 * MIB, vcpus: 17 }), { code: "HIB_USAGE" });
  await t.throwsAsync(Machine.boot({ ramBytes: 16 * MIB, vcpus: 1, pageThreads: 9 }), { code: "HIB_USAGE" });
});
