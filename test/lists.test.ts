/** The lists of a stop, and where the bytes of a frame are that was written more than once. */
import test from "ava";
import { FRAME_BYTES, LIST_FRAMES, MAX_FRAMES } from "../src/base/layout.js";
import { Claims } from "../src/cow/claims.js";
import { CODEC_RAW, SAME_FILLED } from "../src/image/format.js";
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

test("claims: the queue of a stop begins behind what is listed, however many places there are", (t) => {
  const { control } = new HandMachine();
  const claims = new Claims(control);
  claims.closeQueue();
  const listed = MAX_FRAMES - 5;
  control.words[(LIST_FRAMES >>> 2) + listed - 1] = FRAME;
  t.is(claims.layOut({ first: POOL_PLACE, count: 20 }, 10, listed, Infinity), 10);
  t.is(claims.queue.start, listed);
  t.is(claims.frames[listed - 1], FRAME, "what is listed is not overwritten");
  claims.closeQueue();
  t.is(claims.layOut({ first: POOL_PLACE, count: 20 }, 18, listed, Infinity), 18);
  t.is(claims.queue.start, MAX_FRAMES - 2, "with fewer places they are all in the queue");
});
