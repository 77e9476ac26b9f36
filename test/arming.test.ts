/**
 * Arming, streaming and stopping while a process stores, in every order: the core runs here one access at a time (core-steps.ts). The
 * coordinator's part is steps, in the order that src/cow/tracking.ts, approaches/parts.ts and quiesce.ts have.
 */
import test from "ava";
import {
  BITMAP_BYTES,
  DIRTY_BITMAP,
  FAULT_COUNT_AREA,
  FAULT_LATENCY,
  FAULT_TIMELINE,
  FRAME_BYTES,
  FRAME_SHIFT,
  LIST_FRAMES,
  MACHINE_ARMED,
  MACHINE_GENERATION,
  MACHINE_SABOTAGE,
  MACHINE_STOP,
  MAX_VCPUS,
  OPEN_BITMAP,
  PLANNED_BITMAP,
  POOL_BASE,
  RAM_BASE,
  STAGE_LIVE,
  TLB_AREA,
  VCPU_AREA,
  VCPU_BYTES,
  VCPU_GENERATION,
  VCPU_STATE,
  VCPU_STATE_STOPPED,
  VERDICT_STAGED,
} from "../src/base/layout.js";
import { DATA_BASE } from "../src/vm/personality/step/program.js";
import type { Act } from "./core-steps.js";
import { explore } from "./explore.js";
import type { Overlay } from "./overlay.js";
import { HandMachine } from "./support.js";

const FILL = 0x11;
const LAST = FRAME_BYTES - 4;
const STAGING = POOL_BASE;
const VERDICT = STAGING + 2 * FRAME_BYTES;

/** The control area but for what only one thread reads or writes; and two frames. */
function sharedWith(frames: readonly number[]): (address: number) => boolean {
  return (address) => {
    if (address >= RAM_BASE) return frames.includes((address - RAM_BASE) >>> FRAME_SHIFT);
    if (address === MACHINE_SABOTAGE || (address >= FAULT_COUNT_AREA && address < DIRTY_BITMAP)) return false;
    if (address >= FAULT_TIMELINE && address < OPEN_BITMAP) return false;
    return address < TLB_AREA && !(address >= FAULT_LATENCY && address < OPEN_BITMAP);
  };
}

/** As `sharedWith`, of the bitmaps only the words of these frames: what walks them takes no step at the others. */
function sharedWithin(frames: readonly number[]): (address: number) => boolean {
  const isShared = sharedWith(frames);
  return (address) => {
    if (address >= DIRTY_BITMAP && address < DIRTY_BITMAP + BITMAP_BYTES)
      return frames.some((frame) => frame >>> 6 === (address - DIRTY_BITMAP) >>> 3);
    return isShared(address) && !(address > DIRTY_BITMAP && address < OPEN_BITMAP);
  };
}

const word = (vcpu: number, offset: number): number => VCPU_AREA + vcpu * VCPU_BYTES + offset;

/** A vCPU that does one thing after another, with a safepoint before each, and then comes to a stop. */
const vcpu = (number: number, begin: readonly Act[], things: readonly Act[], handshakes = 1): Act[] => [
  { call: "attach", args: [number] },
  ...begin,
  ...things.flatMap((thing): Act[] => [{ call: "acknowledge", args: [] }, thing]),
  // Idle: it passes a safepoint once there is something to acknowledge, and again to stop.
  ...Array.from({ length: handshakes }, (): Act[] => [
    {
      when: (memory) =>
        memory.load32(word(number, VCPU_GENERATION)) !== memory.load32(MACHINE_GENERATION) || memory.load32(MACHINE_STOP) === 1,
    },
    { call: "acknowledge", args: [] },
  ]).flat(),
  { when: (memory) => memory.load32(MACHINE_STOP) === 1 },
  { step: (memory) => memory.store32(word(number, VCPU_STATE), VCPU_STATE_STOPPED) },
];

/** Arms, waits for each vCPU, streams the frame, and stops. */
const save = (vcpus: number): Act[] => {
  const all = Array.from({ length: vcpus }, (_, number) => number);
  const isStopped = (memory: Overlay) => (number: number) => memory.load32(word(number, VCPU_STATE)) === VCPU_STATE_STOPPED;
  const hasAnswered = (memory: Overlay) => (number: number) =>
    memory.load32(word(number, VCPU_GENERATION)) === memory.load32(MACHINE_GENERATION);
  return [
    { call: "attach", args: [MAX_VCPUS] },
    { step: (memory) => memory.store32(MACHINE_ARMED, 1) },
    { step: (memory) => memory.store32(MACHINE_GENERATION, memory.load32(MACHINE_GENERATION) + 1) },
    { when: (memory) => all.every(hasAnswered(memory)) },
    { call: "stage", args: [0, 2, STAGE_LIVE, STAGING, VERDICT, VERDICT + 64] },
    { step: (memory) => memory.store32(MACHINE_STOP, 1) },
    { when: (memory) => all.every(isStopped(memory)) },
  ];
};

/** After the stream another round: what was marked is listed, all write tags go, and the list is streamed. */
const saveInRounds = (frames: number): Act[] => {
  const [stream, [stop, stopped]] = [save(1).slice(0, -2), save(1).slice(-2)];
  const [, , raise, answered] = stream;
  const again: Act = {
    call: "stage",
    args: (results) => [0, results.at(-1)!, STAGE_LIVE, AGAIN, AGAIN_VERDICT, AGAIN_VERDICT + 64],
  };
  return [...stream, { call: "listMarked", args: [frames] }, raise!, answered!, again, stop!, stopped!];
};
const AGAIN = STAGING + 4 * FRAME_BYTES;
const AGAIN_VERDICT = AGAIN + 2 * FRAME_BYTES;

/** What an image would have of the frames: each one's copy by the stream if it bears no mark at the stop, else what it is then. */
function judge(memory: Overlay, frames: readonly number[]): string | undefined {
  let from = STAGING;
  for (const [i, frame] of frames.entries()) {
    const copy = from;
    const verdict = memory.load8(VERDICT + i);
    if (verdict === VERDICT_STAGED) from += FRAME_BYTES;
    if (memory.bit(DIRTY_BITMAP, frame) === 1) continue; // it is copied at the stop
    if (verdict !== VERDICT_STAGED) return "a frame is neither saved nor marked";
    for (let at = 0; at < FRAME_BYTES; at += 4)
      if (memory.load32(copy + at) !== memory.load32(RAM_BASE + frame * FRAME_BYTES + at))
        return "the stream has saved something else than there is at the stop, and there is no mark";
  }
  return undefined;
}

/** Another vCPU's kernel stores to the frame of the process, or to the next one, whose mark is in the same word. */
const OTHERS = { nobody: undefined, "a kernel's to the same frame": 0, "a kernel's to the next frame": 1 } as const;

for (const stores of [1, 2]) {
  for (const [who, next] of Object.entries(OTHERS)) {
    if (stores > 1 && next !== undefined) continue; // too many orders
    test(`arm, stream and stop; stores: ${stores} of a process, and ${who}: no order loses one`, (t) => {
      const machine = new HandMachine();
      const { control, kernel } = machine;
      const process = machine.spawn(1, FILL);
      const frame = machine.frameOf(process, DATA_BASE);
      const frames = [frame, frame ^ 1];
      machine.run(process).store32(DATA_BASE + 8, 1); // A and D are set, and it is not same-filled
      kernel.memory.store32((frame ^ 1) * FRAME_BYTES + 8, 1);
      control.words.set(frames, LIST_FRAMES >>> 2);
      const stored = Array.from(
        { length: stores },
        (_, i): Act => ({ call: "store32", args: [DATA_BASE + (i % 2 === 0 ? 0 : LAST), 0x100 + i] }),
      );
      let unmarked = 0;
      const count = explore({
        memory: machine.memory,
        isShared: sharedWith(frames),
        threads: {
          vcpu: vcpu(0, [{ call: "activate", args: [process.slot, process.root] }], stored),
          ...(next === undefined
            ? {}
            : { other: vcpu(1, [], [{ call: "kernelStore32", args: [frames[next]! * FRAME_BYTES + LAST - 8, 0x7777] }]) }),
          save: save(next === undefined ? 1 : 2),
        },
        judge: (memory) => {
          unmarked += 1 - memory.bit(DIRTY_BITMAP, frame);
          return judge(memory, frames);
        },
      });
      t.log(count);
      t.true(unmarked > 0 && unmarked < count.ends, "the process stores before, and after");
    });
  }
}

test("a second round of the stream while a process stores: no order loses a store", (t) => {
  const machine = new HandMachine();
  const { control, kernel } = machine;
  const process = machine.spawn(1, FILL);
  const frame = machine.frameOf(process, DATA_BASE);
  machine.run(process).store32(DATA_BASE + 8, 1);
  control.words[LIST_FRAMES >>> 2] = frame;
  control.words[(LIST_FRAMES >>> 2) + 1] = frame; // `stage` takes two
  control.words.fill(-1, PLANNED_BITMAP >>> 2, (PLANNED_BITMAP + BITMAP_BYTES) >>> 2);
  kernel.core.clearBitmap(DIRTY_BITMAP);
  const stored = [0x100, 0x101].map((value): Act => ({ call: "store32", args: [DATA_BASE, value] }));
  const met = { again: 0, unmarked: 0 };
  const count = explore({
    memory: machine.memory,
    isShared: sharedWithin([frame]),
    threads: {
      vcpu: vcpu(0, [{ call: "activate", args: [process.slot, process.root] }], stored, 2),
      save: saveInRounds(kernel.memory.frames),
    },
    judge: (memory, { save }) => {
      if (memory.bit(DIRTY_BITMAP, frame) === 1) return undefined; // it is copied at the stop
      met.unmarked++;
      const listed = save![2]!;
      if (listed === 0) return judge(memory, [frame]);
      met.again++;
      if (memory.load8(AGAIN_VERDICT) !== VERDICT_STAGED) return "a frame is neither saved nor marked";
      const same = memory.load32(AGAIN) === memory.load32(RAM_BASE + frame * FRAME_BYTES);
      return same ? undefined : "the round has saved something else than there is at the stop, and there is no mark";
    },
  });
  t.log(count, met);
  t.true(met.again > 0 && met.unmarked > met.again);
});
