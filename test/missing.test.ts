/**
 * Frames that are missing, met by several threads in every order: a store waits until the frame is there, whoever places it, and no
 * loader places a frame over what was stored to it since. The compiled core itself runs here (core-steps.ts).
 */
import test from "ava";
import {
  BITMAP_BYTES,
  CLAIMED_BITMAP,
  FRAME_BYTES,
  LAZY_FILLING,
  MACHINE_LAZY,
  MISSING_BITMAP,
  RAM_BASE,
} from "../src/base/layout.js";
import type { Core } from "../src/vm/memory/core.js";
import type { PhysicalMemory } from "../src/vm/memory/physical.js";
import { DATA_BASE } from "../src/vm/personality/step/program.js";
import type { Act } from "./core-steps.js";
import { explore } from "./explore.js";
import type { Overlay } from "./overlay.js";
import { HandMachine } from "./support.js";

const FRAME = 2048;
/** Is settled by who has nothing to settle. */
const OTHER = 3000;
const FIRST = RAM_BASE + FRAME * FRAME_BYTES;
const LAST = FIRST + FRAME_BYTES - 4;
const IMAGE = { first: 0x1111, last: 0x2222 };
const STORED = 0x3333;

function isShared(address: number): boolean {
  const inBitmap = (bitmap: number) => address >= bitmap && address < bitmap + BITMAP_BYTES;
  return address >= RAM_BASE || inBitmap(MISSING_BITMAP) || inBitmap(CLAIMED_BITMAP);
}

/** A machine of which one frame is missing: it holds what it held before the resume. */
function withMissing(): HandMachine {
  const machine = new HandMachine();
  const { control, core } = machine.kernel;
  machine.kernel.memory.store32(FIRST - RAM_BASE, 0xdead);
  machine.kernel.memory.store32(LAST - RAM_BASE, 0xdead);
  core.clearBitmap(CLAIMED_BITMAP);
  core.clearBitmap(MISSING_BITMAP);
  core.setBit(MISSING_BITMAP, FRAME);
  control.store(MACHINE_LAZY, LAZY_FILLING);
  return machine;
}

/** Whether the claim just before was this thread's: what it returned is the last of the results. */
const claimed = (results: readonly number[]): boolean => results.at(-1) === 1;
const put = (at: number, value: number): Act => ({
  step: (memory, results) => {
    if (claimed(results)) memory.store32(at, value);
  },
});
/** What a loader, or a vCPU's handler, does with a frame that it has read. */
const place: Act[] = [
  { call: "claimMissing", args: [FRAME] },
  put(FIRST, IMAGE.first),
  put(LAST, IMAGE.last),
  { call: "settle", args: (results) => [claimed(results) ? FRAME : OTHER] },
];
const attach = (thread: number): Act => ({ call: "attach", args: [thread] });
const there: Act = { call: "bringIn", args: [FRAME, 1] };
const store = (thread: number, at: number): Act[] => [
  attach(thread),
  ...place,
  there,
  { call: "kernelStore32", args: [at - RAM_BASE, STORED] },
];

test("missing: a loader and stores of two vCPUs to one frame, in every order", (t) => {
  const count = explore({
    memory: withMissing().memory,
    isShared,
    threads: { loader: place, first: store(0, FIRST), last: store(1, LAST) },
    judge: (memory) => (memory.load32(FIRST) === STORED && memory.load32(LAST) === STORED ? undefined : "a store is lost"),
  });
  t.log(count);
  t.true(count.states > 50);
});

test("missing: who reads a frame finds all of it, in every order", (t) => {
  const seen: number[][] = [];
  const look = (at: number): Act => ({ step: (memory, results) => void (results as number[]).push(memory.load32(at)) });
  const count = explore({
    memory: withMissing().memory,
    isShared,
    threads: { loader: place, another: place, reader: [attach(0), ...place, there, look(FIRST), look(LAST)] },
    judge: (memory, { reader }) => {
      seen.push(reader!.slice(-2));
      if (memory.load32(FIRST) !== IMAGE.first || memory.load32(LAST) !== IMAGE.last) return "the frame is not the image's";
      return reader!.at(-2) === IMAGE.first && reader!.at(-1) === IMAGE.last ? undefined : "it has read what was there before";
    },
  });
  t.log(count);
  t.true(seen.length > 0);
});

test("missing: a frame that is freed and used again is nobody's to place, in every order", (t) => {
  const free: Act = { call: "forgetMissing", args: [FRAME, 1] };
  const again: Act = { call: "kernelZero", args: [FRAME, 1] };
  const count = explore({
    memory: withMissing().memory,
    isShared,
    threads: { loader: place, kernel: [attach(0), free, again] },
    judge: (memory: Overlay) =>
      memory.load32(FIRST) === 0 && memory.load32(LAST) === 0 ? undefined : "a page is the one that the frame was before",
  });
  t.log(count);
  t.true(count.states > 10);
});

test("missing: nobody calls for a frame while none is missing, whatever the bitmap says", (t) => {
  const machine = withMissing();
  t.throws(() => machine.kernel.core.bringIn(FRAME, 1), { code: "HIB_INTERNAL" });
  machine.control.store(MACHINE_LAZY, 0);
  t.notThrows(() => machine.kernel.core.bringIn(FRAME, 1));
});

/** A process of two pages, of which the first is missing. */
function withProcess() {
  const machine = new HandMachine();
  const { control, core } = machine.kernel;
  const process = machine.spawn(2, 7);
  const frame = machine.frameOf(process, DATA_BASE);
  core.clearBitmap(CLAIMED_BITMAP);
  core.clearBitmap(MISSING_BITMAP);
  core.setBit(MISSING_BITMAP, frame);
  control.store(MACHINE_LAZY, LAZY_FILLING);
  return { machine, process, frame, wants: { message: new RegExp(`^frame ${frame} is missing,`) } };
}

const ACCESSES: Record<string, (core: Core) => unknown> = {
  load8: (core) => core.load8(DATA_BASE + 5),
  load32: (core) => core.load32(DATA_BASE + 8),
  store8: (core) => core.store8(DATA_BASE + 5, 1),
  store32: (core) => core.store32(DATA_BASE + 8, 1),
  store64: (core) => core.store64(DATA_BASE + 8, 1, 2),
  "store32 that ends on the next page": (core) => core.store32(DATA_BASE + FRAME_BYTES - 2, 1),
  prepareStore: (core) => core.prepareStore(DATA_BASE),
};
for (const [name, access] of Object.entries(ACCESSES)) {
  test(`missing: ${name} of a process waits for the frame, and nothing of it was stored`, (t) => {
    const { machine, process, frame, wants } = withProcess();
    const core = machine.run(process);
    const before = machine.kernel.core.hashFrame(RAM_BASE + frame * FRAME_BYTES);
    const next = machine.kernel.core.hashFrame(RAM_BASE + machine.frameOf(process, DATA_BASE + FRAME_BYTES) * FRAME_BYTES);
    t.throws(() => access(core), wants);
    t.throws(() => access(core), wants, "no tag is left of the first attempt");
    t.is(machine.kernel.core.hashFrame(RAM_BASE + frame * FRAME_BYTES), before);
    t.is(machine.kernel.core.hashFrame(RAM_BASE + machine.frameOf(process, DATA_BASE + FRAME_BYTES) * FRAME_BYTES), next);
    machine.kernel.core.settle(frame);
    t.notThrows(() => access(core));
  });
}

const KERNEL: Record<string, (memory: PhysicalMemory, frame: number) => unknown> = {
  "reads its last byte": (memory, frame) => memory.read((frame + 1) * FRAME_BYTES - 1, 1),
  "reads on from the one before": (memory, frame) => memory.read(frame * FRAME_BYTES - 8, 16),
  "stores a part of it": (memory, frame) => memory.write(frame * FRAME_BYTES + 8, new Uint8Array(8)),
  "copies it": (memory, frame) => memory.copy(frame + 1, frame),
};
for (const [what, act] of Object.entries(KERNEL)) {
  test(`missing: the kernel ${what}, and waits for the frame`, (t) => {
    const { machine, frame, wants } = withProcess();
    t.throws(() => act(machine.kernel.memory, frame), wants);
    machine.kernel.core.settle(frame);
    t.notThrows(() => act(machine.kernel.memory, frame));
  });
}

test("missing: a frame that its process gives back is missing no more, and is placed by nobody", (t) => {
  const { machine, process, frame } = withProcess();
  machine.kernel.lifecycle.exit(process.slot, 9);
  t.is(machine.kernel.core.isMissing(frame), 0);
  t.is(machine.kernel.core.claimMissing(frame), 0);
});
