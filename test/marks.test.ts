/** Marks of stores of many frames, to the last byte of them; and what arming and disarming leave behind. */
import test from "ava";
import { bit } from "../src/base/control.js";
import {
  CLAIMED_BITMAP,
  CANCEL_NO_ROOM,
  DIRTY_BITMAP,
  FRAME_BYTES,
  KEEP_BITMAP,
  MACHINE_QUEUE_CURSOR,
  SAVEABLE_BITMAP,
  SAVED_BITMAP,
  KEEP_FOR_TAIL,
  MACHINE_CANCEL,
  MACHINE_KEEP_PREIMAGES,
  MACHINE_PREIMAGES,
  OPEN_BITMAP,
  QUEUE_SPARE,
} from "../src/base/layout.js";
import { Claims } from "../src/cow/claims.js";
import { POOL_PLACE } from "../src/vm/memory/physical.js";
import { HandMachine } from "./support.js";

/** A stretch of frames that nobody uses. */
const FIRST = 2048;

/** Frames from FIRST - 1 on that a store marks: how many come first that are not, how many that are, and whether that is all. */
function marksOf(store: (machine: HandMachine) => void): { before: number; marked: number; after: number } {
  const machine = new HandMachine();
  machine.tracking.arm();
  store(machine);
  const marks = Array.from({ length: 1200 }, (_, i) => bit(machine.control.words, DIRTY_BITMAP, FIRST - 1 + i));
  const before = marks.indexOf(1);
  const end = marks.indexOf(0, before);
  return { before, marked: end - before, after: marks.slice(end).reduce((sum, mark) => sum + mark, 0) };
}

for (const frames of [1, 2, 255, 256, 257, 512, 1024]) {
  test(`a store of ${frames} frames marks each of them and no other; one byte more marks one more`, (t) => {
    const at = FIRST * FRAME_BYTES;
    for (const by of ["kernel", "device"] as const) {
      const write = (offset: number, bytes: number) =>
        marksOf(({ kernel }) => kernel.memory.write(at + offset, new Uint8Array(bytes).fill(1), by));
      t.deepEqual(write(0, frames * FRAME_BYTES), { before: 1, marked: frames, after: 0 });
      t.deepEqual(write(0, frames * FRAME_BYTES + 1), { before: 1, marked: frames + 1, after: 0 });
      t.deepEqual(write(-1, frames * FRAME_BYTES + 1), { before: 0, marked: frames + 1, after: 0 });
      t.deepEqual(write(FRAME_BYTES - 1, (frames - 1) * FRAME_BYTES + 2), { before: 1, marked: frames + 1, after: 0 });
    }
    const whole = { before: 1, marked: frames, after: 0 };
    t.deepEqual(
      marksOf(({ kernel }) => kernel.memory.zero(FIRST, frames)),
      whole,
    );
    t.deepEqual(
      marksOf(({ kernel }) => kernel.memory.copy(FIRST, 500, frames)),
      whole,
    );
  });
}

test("disarming is over only once each vCPU has acknowledged", (t) => {
  const machine = new HandMachine({ vcpus: 3 });
  machine.tracking.arm();
  machine.control.answers.length = 0;
  machine.tracking.disarm();
  t.deepEqual(machine.control.answers, [false, false, false, true]);
});

test("arming anew forgets what was wanted, marked and open before", (t) => {
  const { control, kernel, tracking } = new HandMachine();
  const bitmaps = [DIRTY_BITMAP, KEEP_BITMAP, CLAIMED_BITMAP, SAVED_BITMAP, OPEN_BITMAP];
  for (const how of ["arm", "armForRestore"] as const) {
    for (const bitmap of bitmaps) kernel.core.setBit(bitmap, FIRST);
    tracking[how]();
    t.deepEqual(
      bitmaps.map((bitmap) => bit(control.words, bitmap, FIRST)),
      [0, 0, 0, 0, 0],
      how,
    );
  }
});

test("what lies in the pool is no memory of the guest's: nothing is given up for who wants some", (t) => {
  const { control, kernel, tracking } = new HandMachine();
  tracking.arm();
  const claims = new Claims(control);
  claims.closeQueue();
  claims.openQueue({ first: POOL_PLACE, count: QUEUE_SPARE }, Infinity);
  kernel.core.setBit(SAVEABLE_BITMAP, FIRST);
  control.store(MACHINE_CANCEL, 0);
  tracking.armTail();
  kernel.memory.store32(FIRST * FRAME_BYTES, 1);
  const before = claims.queue;
  t.is(before.end - before.start, 1);
  t.is(kernel.core.takeBackPlace(), -1);
  t.is(kernel.core.takeBackHeldPlace(), -1);
  t.deepEqual(claims.queue, before);
  t.is(control.load(MACHINE_CANCEL), 0);
});

test("a coordinator's store during a tail: its spare places are used, and beyond them the save is given up, not the store", (t) => {
  const { control, kernel, tracking } = new HandMachine();
  tracking.arm();
  const places = QUEUE_SPARE + 3;
  const claims = new Claims(control);
  claims.closeQueue();
  control.store(MACHINE_QUEUE_CURSOR, 3); // without the spare there is none
  claims.openQueue({ first: POOL_PLACE, count: places }, Infinity);
  for (let i = 0; i <= QUEUE_SPARE; i++) kernel.core.setBit(SAVEABLE_BITMAP, FIRST + i);
  control.store(MACHINE_CANCEL, 0);
  control.store(MACHINE_KEEP_PREIMAGES, KEEP_FOR_TAIL);
  const store = (i: number) => kernel.memory.store32((FIRST + i) * FRAME_BYTES, i + 1);
  for (let i = 0; i < QUEUE_SPARE; i++) store(i);
  t.is(control.load(MACHINE_CANCEL), 0);
  t.is(control.load(MACHINE_PREIMAGES), QUEUE_SPARE);
  store(QUEUE_SPARE);
  t.is(control.load(MACHINE_CANCEL), CANCEL_NO_ROOM);
  t.is(kernel.memory.load32((FIRST + QUEUE_SPARE) * FRAME_BYTES), QUEUE_SPARE + 1);
  t.is(bit(control.words, OPEN_BITMAP, FIRST + QUEUE_SPARE), 1);
});
