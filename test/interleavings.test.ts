/**
 * Every order in which the threads of a save or a resume may take their accesses to shared memory, in small cases: the compiled core
 * itself runs here, one access at a time (core-steps.ts). A wrong order that a race meets once in a million rounds is met always.
 */
import test from "ava";
import {
  BITMAP_BYTES,
  CLAIMED_BITMAP,
  DIRTY_BITMAP,
  FAULT_COUNT_AREA,
  FAULT_TIMELINE,
  FRAME_BYTES,
  FRAME_NONE,
  FRAME_SHIFT,
  KEEP_FOR_TAIL,
  LIST_FRAMES,
  MACHINE_ARMED,
  MACHINE_CANCEL,
  MACHINE_KEEP_PREIMAGES,
  MACHINE_QUEUE_CURSOR,
  MACHINE_QUEUE_END,
  MACHINE_QUEUE_OVERFLOW,
  MACHINE_QUEUE_SAVED,
  MACHINE_SABOTAGE,
  MACHINE_STOP_SET,
  MACHINE_TOUCHING,
  OPEN_BITMAP,
  PLACE_NONE,
  PLANNED_BITMAP,
  POOL_BASE,
  QUEUE_FRAMES,
  QUEUE_PLACES,
  QUEUE_SPARE,
  RAM_BASE,
  SAVEABLE_BITMAP,
  STAGE_TAIL,
  STOP_BITMAP,
  TLB_AREA,
  VCPU_AREA,
  VCPU_BYTES,
  VCPU_LONGEST_WAIT,
  VCPU_WAITED,
  VCPU_WAITS,
  VERDICT_SKIPPED,
  VERDICT_STAGED,
} from "../src/base/layout.js";
import { Claims } from "../src/cow/claims.js";
import { POOL_PLACE } from "../src/vm/memory/physical.js";
import { type Act, Thread } from "./core-steps.js";
import { explore } from "./explore.js";
import { Overlay } from "./overlay.js";
import { HandMachine } from "./support.js";

/** A frame that nobody uses. Its first and last words are what it is told from others by. */
const FRAME = 2048;
const FIRST_WORD = RAM_BASE + FRAME * FRAME_BYTES;
const LAST_WORD = FIRST_WORD + FRAME_BYTES - 4;
const [FIRST_AT_STOP, LAST_AT_STOP] = [0x1111, 0x2222];
/** Another one, and its first word. */
const OTHER = 2080;
const OTHER_WORD = RAM_BASE + OTHER * FRAME_BYTES;
const OTHER_AT_STOP = 0x6666;

/** Staging memory of the page writers, which no other thread reads: two frames each, then what `stage` says of frames. */
const staging = (writer: number): number => POOL_BASE + writer * 4 * FRAME_BYTES;
const verdictOf = (writer: number): number => staging(writer) + 2 * FRAME_BYTES;
const fillOf = (writer: number): number => verdictOf(writer) + 64;
/** Places of the queue, behind that. */
const PLACE = POOL_PLACE + 64;

const WAITS = [VCPU_WAITS, VCPU_WAITED, VCPU_LONGEST_WAIT];

/** What only one thread writes, or nobody, or nobody reads. */
function isShared(address: number): boolean {
  if (address >= VCPU_AREA && address < VCPU_AREA + 17 * VCPU_BYTES && WAITS.includes((address - VCPU_AREA) % VCPU_BYTES))
    return false;
  if (address === MACHINE_SABOTAGE || (address >= FAULT_COUNT_AREA && address < DIRTY_BITMAP)) return false;
  if (address >= FAULT_TIMELINE && address < OPEN_BITMAP) return false;
  if (address === MACHINE_STOP_SET || (address >= DIRTY_BITMAP && address < STOP_BITMAP + BITMAP_BYTES)) return false; // as of the stop
  return !(address >= TLB_AREA && address < PLACE << FRAME_SHIFT);
}

const attach = (thread: number): Act => ({ call: "attach", args: [thread] });
/** A tracked store on a thread. */
const store = (thread: number, offset: number, value: number): Act[] => [
  attach(thread),
  { call: "kernelStore32", args: [FRAME * FRAME_BYTES + offset, value] },
];
const stageTail = (writer: number): Act => ({
  call: "stage",
  args: [0, 1, STAGE_TAIL, staging(writer), verdictOf(writer), fillOf(writer)],
});

/** A machine in a snapshot's tail: one frame is listed, its contents as of the stop are wanted, and the queue has places. */
function inTail({ room = 1 }: { room?: number } = {}): HandMachine {
  const machine = new HandMachine();
  const { control, kernel } = machine;
  kernel.memory.store32(FIRST_WORD - RAM_BASE, FIRST_AT_STOP);
  kernel.memory.store32(LAST_WORD - RAM_BASE, LAST_AT_STOP);
  kernel.memory.store32(OTHER_WORD - RAM_BASE, OTHER_AT_STOP);
  control.words[LIST_FRAMES >>> 2] = FRAME;
  const claims = new Claims(control);
  claims.closeQueue();
  claims.openQueue({ first: PLACE, count: room + QUEUE_SPARE }, Infinity);
  control.store(MACHINE_STOP_SET, STOP_BITMAP);
  kernel.core.setBit(STOP_BITMAP, FRAME);
  control.store(MACHINE_KEEP_PREIMAGES, KEEP_FOR_TAIL);
  control.store(MACHINE_ARMED, 1);
  return machine;
}

const holdsStop = (memory: Overlay, at: number): boolean =>
  memory.load32(at) === FIRST_AT_STOP && memory.load32(at + FRAME_BYTES - 4) === LAST_AT_STOP;

/** Places of the queue that hold this frame and are not saved yet. */
function preimages(memory: Overlay, frame = FRAME): number[] {
  const entries = Array.from({ length: memory.load32(MACHINE_QUEUE_CURSOR) }, (_, i) => i);
  return entries
    .filter((entry) => memory.load32(QUEUE_FRAMES + entry * 4) === frame)
    .map((entry) => memory.load32(QUEUE_PLACES + entry * 4) << FRAME_SHIFT)
    .filter((at) => at !== PLACE_NONE);
}

/** What is wrong with what a tail has of the frame. */
function judgeTail(memory: Overlay, writers: readonly number[]): string | undefined {
  if (memory.load32(MACHINE_CANCEL) !== 0) return undefined; // no image comes of it
  let saved = 0;
  for (const writer of writers) {
    const verdict = memory.load8(verdictOf(writer));
    if (verdict === VERDICT_STAGED && !holdsStop(memory, staging(writer))) return "a page writer has saved a later store";
    if (verdict !== VERDICT_SKIPPED) saved++;
  }
  const kept = preimages(memory);
  if (!kept.every((at) => holdsStop(memory, at))) return "a pre-image holds a later store";
  return saved + kept.length > 0 ? undefined : "the frame as of the stop is lost";
}

const HALVES = { first: 0x3333, last: 0x4444 };
const storesAreThere = (memory: Overlay): string | undefined =>
  memory.load32(FIRST_WORD) === HALVES.first && memory.load32(LAST_WORD) === HALVES.last ? undefined : "a store is lost";

for (const room of [0, 1, 2]) {
  test(`tail: a page writer and two stores to a frame, in every order; places in the queue: ${room}`, (t) => {
    const count = explore({
      memory: inTail({ room }).memory,
      isShared,
      threads: {
        writer: [stageTail(0)],
        first: store(0, 0, HALVES.first),
        last: store(1, FRAME_BYTES - 4, HALVES.last),
      },
      judge: (memory) => judgeTail(memory, [0]) ?? storesAreThere(memory),
      leave: (memory) => memory.load32(MACHINE_QUEUE_OVERFLOW) > 2,
    });
    t.log(count);
    t.true(count.ends > 1);
  });
}

test("tail: what a store without room waits for is staged out of turn, while another writer comes to it, in every order", (t) => {
  const { memory, control } = inTail({ room: 0 });
  control.words[verdictOf(1) >>> 2] = VERDICT_SKIPPED; // as long as nothing is wanted
  let outOfTurn = 0;
  const count = explore({
    memory,
    isShared,
    threads: {
      writer: [stageTail(0)],
      other: [{ call: "stageWanted", args: [0, staging(1), verdictOf(1), fillOf(1)] }],
      vcpu: store(0, 0, HALVES.first),
    },
    judge: (memory) => {
      if (memory.load8(verdictOf(1)) === VERDICT_STAGED) outOfTurn++;
      return judgeTail(memory, [0, 1]) ?? (memory.load32(FIRST_WORD) === HALVES.first ? undefined : "a store is lost");
    },
    leave: (memory) => memory.load32(MACHINE_QUEUE_OVERFLOW) > 2,
  });
  t.log(count);
  t.true(outOfTurn > 0);
});

/** What a page writer saves of the ring at a time: twice, so that a place that it gives back may be used while it looks again. */
const saveRing = (writer: number): Act[] => [0, 1].map((time) => ringStep(writer, time));
const ringStep = (writer: number, time: number): Act => ({
  call: "stagePreimage",
  args: [staging(writer) + time * FRAME_BYTES, verdictOf(writer) + time, fillOf(writer) + 8 * time],
});

test("tail: the one place of the pool is saved and used again for another frame, in every order", (t) => {
  const machine = inTail({ room: 1 });
  const { control, kernel } = machine;
  kernel.core.setBit(STOP_BITMAP, OTHER);
  let used = 0;
  const count = explore({
    memory: machine.memory,
    isShared,
    threads: {
      writer: saveRing(0),
      first: store(0, 0, HALVES.first),
      second: [attach(1), { call: "kernelStore32", args: [OTHER * FRAME_BYTES, HALVES.last] }],
    },
    judge: (memory, { writer }) => {
      if (memory.load32(MACHINE_CANCEL) !== 0) return undefined;
      const saved = new Map(writer!.flatMap((frame, time) => (frame < 0 ? [] : [[frame, staging(0) + time * FRAME_BYTES]])));
      for (const at of preimages(memory)) saved.set(FRAME, at);
      for (const at of preimages(memory, OTHER)) saved.set(OTHER, at);
      if (memory.load32(MACHINE_QUEUE_SAVED) > 1) used++;
      const holds = (frame: number, value: number) => saved.has(frame) && memory.load32(saved.get(frame)!) === value;
      if (!holds(FRAME, FIRST_AT_STOP)) return "the first frame as of the stop is lost";
      return holds(OTHER, OTHER_AT_STOP) ? undefined : "the second frame as of the stop is lost";
    },
    leave: (memory) => memory.load32(MACHINE_QUEUE_OVERFLOW) > 2,
  });
  t.log(count, used);
  t.true(used > 0, "a place was used twice");
  t.is(control.load(MACHINE_CANCEL), 0);
});

test("tail: two page writers at the ring give each place back once, in every order", (t) => {
  const machine = inTail({ room: 2 });
  const { control } = machine;
  const kept = [0, 1].map((entry) => {
    control.words[(QUEUE_FRAMES >>> 2) + entry] = FRAME + entry;
    return control.words[(QUEUE_PLACES >>> 2) + entry]!;
  });
  control.store(MACHINE_QUEUE_CURSOR, 2);
  const end = control.load(MACHINE_QUEUE_END);
  const count = explore({
    memory: machine.memory,
    isShared,
    threads: { one: [ringStep(0, 0)], other: [ringStep(1, 0)], third: [ringStep(2, 0)] },
    judge: (memory, results) => {
      const frames = Object.values(results).flatMap(([frame]) => (frame! < 0 ? [] : [frame!]));
      const back = memory.load32(MACHINE_QUEUE_END) - end;
      const places = Array.from({ length: back }, (_, i) => memory.load32(QUEUE_PLACES + (end + i) * 4));
      if (new Set(frames).size !== frames.length || new Set(places).size !== places.length) return "an entry was saved twice";
      if (back !== frames.length || memory.load32(MACHINE_QUEUE_SAVED) !== back) return "a place was lost";
      return places.every((place, i) => place === kept[i]) ? undefined : "a place is not the one that was saved";
    },
  });
  t.log(count);
  t.true(count.ends > 1);
});

test("tail: what belongs to the image is kept, and freed as soon as it is, while a store asks for it, in every order", (t) => {
  const machine = inTail();
  const word = (bitmap: number) => bitmap + (FRAME >>> 5) * 4;
  machine.control.store(word(STOP_BITMAP), 0);
  machine.control.store(word(SAVEABLE_BITMAP), 1 << (FRAME & 31));
  machine.control.store(MACHINE_STOP_SET, SAVEABLE_BITMAP);
  const shared = [MACHINE_STOP_SET, word(STOP_BITMAP), word(SAVEABLE_BITMAP)];
  const count = explore({
    memory: machine.memory,
    isShared: (address) => shared.includes(address) || isShared(address),
    threads: {
      coordinator: [
        { step: (memory) => memory.store32(word(STOP_BITMAP), memory.load32(word(SAVEABLE_BITMAP))) },
        { step: (memory) => memory.store32(MACHINE_STOP_SET, STOP_BITMAP) },
        { step: (memory) => memory.store32(word(SAVEABLE_BITMAP), 0) }, // once the lock is free, somebody frees the frame
      ],
      vcpu: store(0, 0, HALVES.first),
    },
    judge: (memory) => judgeTail(memory, []),
  });
  t.log(count);
  t.true(count.states > 10);
});

// ---- what keeps a processor from taking accesses in another order (memory-ordering.md) ----

const wordOf = (bitmap: number): number => bitmap + (FRAME >>> 5) * 4;
const isRam = ({ at }: { at: number }): boolean => at >= RAM_BASE;

function accessesOf(acts: readonly Act[], machine: HandMachine): Thread["accesses"] {
  const memory = new Overlay(new Int32Array(machine.memory.buffer));
  const thread = new Thread(acts, isShared);
  while (!thread.done) thread.step(memory);
  return thread.accesses;
}

test("tail: between a claim and the store it is for there is another atomic access, whether a pre-image is kept or not", (t) => {
  for (const kept of [true, false]) {
    const machine = inTail();
    if (!kept) {
      machine.kernel.core.clearBitmap(DIRTY_BITMAP);
      machine.kernel.core.setBit(PLANNED_BITMAP, FRAME);
    }
    const accesses = accessesOf(store(0, 0, HALVES.first), machine);
    const claim = accesses.findIndex(({ at, atomic, writes }) => at === wordOf(CLAIMED_BITMAP) && atomic && writes);
    const stored = accesses.findIndex((access) => isRam(access) && access.writes);
    t.true(claim >= 0 && stored > claim);
    t.true(
      accesses.slice(claim + 1, stored).some(({ atomic }) => atomic),
      `a pre-image is kept: ${kept}`,
    );
  }
});

test("tail: a page writer looks at the claim by a read-modify-write once it has read the frame", (t) => {
  const accesses = accessesOf([stageTail(0)], inTail());
  const read = accesses.findLastIndex(isRam);
  const look = accesses.slice(read).find(({ at }) => at === wordOf(CLAIMED_BITMAP));
  t.like(look, { atomic: true, writes: true });
});

// ---- memory that is lent ----

/** Frames of the guest that are lent: a block that nobody uses. */
const LENT = 1024;
const LENT_PLACE = (RAM_BASE >>> FRAME_SHIFT) + LENT;
const LENT_WORD = RAM_BASE + LENT * FRAME_BYTES;
const MINE = 0x5555;

/** An allocator that takes a place back, and whoever asked for the memory then stores to it, to its first and last words. */
const allocator = (take: "takeBackPlace" | "takeBackHeldPlace"): Act[] => [
  attach(1),
  { call: take, args: [] },
  {
    step: (memory, [, place]) => {
      if (place! < 0) return;
      memory.store32(place! << FRAME_SHIFT, MINE);
      memory.store32((place! << FRAME_SHIFT) + FRAME_BYTES - 4, MINE);
    },
  },
];
const isMine = (memory: Overlay, place: number): boolean =>
  memory.load32(place << FRAME_SHIFT) === MINE && memory.load32((place << FRAME_SHIFT) + FRAME_BYTES - 4) === MINE;

test("reserve: a block that is being touched is given out once that is over, in every order", (t) => {
  const machine = new HandMachine();
  const claims = new Claims(machine.control);
  claims.closeQueue();
  claims.lend(LENT_PLACE, 2);
  machine.kernel.memory.store32(LENT_WORD - RAM_BASE, 1); // touching changes it
  const count = explore({
    memory: machine.memory,
    isShared,
    threads: {
      coordinator: [
        { call: "touch", args: [LENT_PLACE] },
        { call: "touch", args: [LENT_PLACE + 1] },
        { step: (memory) => memory.store32(MACHINE_TOUCHING, FRAME_NONE) },
      ],
      allocator: allocator("takeBackPlace"),
    },
    judge: (memory, { allocator }) =>
      allocator![1] === LENT_PLACE && isMine(memory, LENT_PLACE) ? undefined : "the place is touched after it was given out",
  });
  t.log(count);
  t.true(count.ends > 0);
});

for (const take of ["takeBackPlace", "takeBackHeldPlace"] as const) {
  test(`tail: ${take} while a pre-image is kept, in every order: no place is the guest's and holds a pre-image`, (t) => {
    const machine = inTail({ room: 2 });
    for (let i = 0; i < 2; i++) machine.control.words[(QUEUE_PLACES >>> 2) + i] = LENT_PLACE + i;
    let given = 0;
    const count = explore({
      memory: machine.memory,
      isShared,
      threads: { vcpu: store(0, 0, HALVES.first), allocator: allocator(take) },
      judge: (memory, results) => {
        const place = results["allocator"]![1]!;
        const kept = preimages(memory);
        if (place >= 0) given++;
        if (place >= 0 && !isMine(memory, place)) return "what the guest has is overwritten";
        if (kept.includes(place << FRAME_SHIFT)) return "a place is given out that holds a pre-image";
        return judgeTail(memory, []);
      },
    });
    t.log(count);
    t.true(given > 0 && count.ends > 1);
  });
}
