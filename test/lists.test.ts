/** The lists of a stop, and where the bytes of a frame are that was written more than once. */
import test from "ava";
import { bit } from "../src/base/control.js";
import { FRAME_BYTES, FRAME_NONE, MACHINE_QUEUE_CURSOR, MAX_FRAMES, SAVED_BITMAP } from "../src/base/layout.js";
import { Claims } from "../src/cow/claims.js";
import { SAME_FILLED } from "../src/image/extents.js";
import { CODEC_RAW } from "../src/image/format.js";
import { Locations } from "../src/writer/locations.js";
import type { WriteResult } from "../src/writer/page-writer.js";
import { POOL_PLACE } from "../src/vm/memory/physical.js";
import { HandMachine } from "./support.js";

const FRAME = 3;

/** A task's result: frame FRAME, stored as chunk `id` or filled with a word. */
function written(what: { id: number } | { fill: bigint }): WriteResult {
  const stored = "id" in what;
  const column = (value: number) => Int32Array.from(stored ? [value] : []);
  return {
    id: column(stored ? what.id : 0),
    offset: Float64Array.from(stored ? [(1 + what.id) * FRAME_BYTES] : []),
    payload: column(FRAME_BYTES),
    frames: column(1),
    codec: Uint8Array.from(column(CODEC_RAW)),
    hash: BigUint64Array.from(stored ? [0n] : []),
    pieces: stored ? [new Uint8Array()] : [],
    digest: stored ? [null] : [],
    chunkFrames: column(FRAME),
    filledFrames: Int32Array.from(stored ? [] : [FRAME]),
    fills: BigUint64Array.from(stored ? [] : [what.fill]),
    totals: { written: 1, skipped: 0, stage_ms: 0, compress_ms: 0, hash_ms: 0, write_wait_ms: 0 },
  };
}

const X = 0x1111_2222_3333_4444n;
const Y = 0xffff_0000_ffff_0000n;

for (const first of [X, Y, 0n, "stored"] as const) {
  for (const last of [X, Y, 0n, "stored"] as const) {
    test(`locations: what was written last counts: first ${first}, then ${last}`, (t) => {
      const locations = new Locations(8);
      locations.add(written(first === "stored" ? { id: 0 } : { fill: first }));
      locations.add(written(last === "stored" ? { id: 1 } : { fill: last }));
      const { table, frames, sameFilled } = locations.extents((frame) => frame === FRAME);
      t.is(frames, 1);
      t.is(sameFilled, last === "stored" ? 0 : 1);
      t.is(table.pfn[0], FRAME);
      t.is(table.chunk[0], last === "stored" ? 1 : SAME_FILLED);
      if (last !== "stored") t.is(table.fill[0], last);
    });
  }
}

test("claims: places of the guest come before the pool, and no more are lent than there are entries", (t) => {
  const { control } = new HandMachine();
  const claims = new Claims(control);
  claims.closeQueue();
  claims.lend(7000, 3);
  claims.lend(9000, 2);
  claims.touched();
  claims.openQueue({ first: POOL_PLACE, count: 20 }, Infinity);
  t.deepEqual([...claims.places.subarray(0, 7)], [7000, 7001, 7002, 9000, 9001, POOL_PLACE, POOL_PLACE + 1]);
  t.is(claims.unclaimed, 25);
  t.true(claims.frames.subarray(0, 25).every((frame) => frame >>> 0 === FRAME_NONE));
  claims.openQueue({ first: POOL_PLACE, count: 20 }, 4);
  t.is(claims.unclaimed, 4);
  claims.closeQueue();
  claims.lend(7000, MAX_FRAMES - 30);
  t.is(claims.room(20), 10);
});

test("claims: copies take the first places, and their frames need no pre-image", (t) => {
  const { control } = new HandMachine();
  const claims = new Claims(control);
  claims.closeQueue();
  claims.lend(7000, 2);
  control.store(MACHINE_QUEUE_CURSOR, 1); // somebody took the first one back
  claims.openQueue({ first: POOL_PLACE, count: 20 }, Infinity);
  claims.list.set([FRAME, FRAME + 64, FRAME + 65]);
  for (const frame of claims.list.subarray(0, 3)) control.words[(SAVED_BITMAP >>> 2) + (frame >>> 5)] = 0;
  claims.queueCopies(2);
  const queued: number[][] = [];
  claims.visitQueued((frame, place) => queued.push([frame, place]));
  t.deepEqual(queued, [
    [FRAME, 7001],
    [FRAME + 64, POOL_PLACE],
  ]);
  t.deepEqual(
    [FRAME, FRAME + 64, FRAME + 65].map((frame) => bit(control.words, SAVED_BITMAP, frame)),
    [1, 1, 0],
  );
  t.is(claims.unclaimed, 19);
});
