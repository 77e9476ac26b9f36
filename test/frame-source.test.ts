/** Where missing frames come from: as little as can be checked by itself, placed where the image has it, and only where it is missing. */
import { closeSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { CLAIMED_BITMAP, FRAME_BYTES, LAZY_FILLING, MACHINE_LAZY, MISSING_BITMAP } from "../src/base/layout.js";
import { checksum, loadChecksum } from "../src/image/checksum.js";
import { chunkAt, newestFirst, packChunks } from "../src/image/chunk-table.js";
import { compressChunk, hashPieces } from "../src/image/codec.js";
import { ExtentTable } from "../src/image/extents.js";
import { type Chunk, CODEC_LZ4, CODEC_RAW, HEADER_BYTES, padded } from "../src/image/format.js";
import { FaultRecord } from "../src/restore/fault-record.js";
import { type FillTask, FrameSource } from "../src/restore/frame-source.js";
import { HandMachine, scratch } from "./support.js";

test.before(loadChecksum);

/** Frames of the machine: those of the chunk are in two runs, and another is filled. */
const [LOW, HIGH, FILLED] = [2000, 3000, 2500];
const SLOTS = 40;
const HIGH_FROM = 20;
const FILL = 0x0123_4567_89ab_cdefn;
const WAS = 0xee;

/** Each slot is full of its number. */
const contents = (): Uint8Array => Uint8Array.from({ length: SLOTS * FRAME_BYTES }, (_, i) => 1 + Math.floor(i / FRAME_BYTES));
const frameOf = (slot: number): number => (slot < HIGH_FROM ? LOW + slot : HIGH + slot - HIGH_FROM);

function imageOf(t: ExecutionContext, codec: number) {
  const path = join(scratch(t), "blob");
  const plain = contents();
  const payload = codec === CODEC_LZ4 ? compressChunk(plain)! : plain;
  const stored = new Uint8Array(padded(payload.length));
  stored.set(payload);
  writeFileSync(path, Buffer.concat([new Uint8Array(HEADER_BYTES), stored]));
  const pieces = hashPieces(stored.length, (at, length) => checksum(stored.subarray(at, at + length)));
  const chunk: Chunk = {
    id: 0,
    offset: HEADER_BYTES,
    stored: stored.length,
    payload: payload.length,
    frames: SLOTS,
    codec,
    hash: checksum(pieces),
    pieces,
    digest: null,
  };
  const extents = ExtentTable.from([
    { pfn: LOW, frames: HIGH_FROM, chunk: 0, first: 0 },
    { pfn: FILLED, frames: 40, chunk: null, fill: FILL },
    { pfn: HIGH, frames: SLOTS - HIGH_FROM, chunk: 0, first: HIGH_FROM },
  ]);
  const descriptor = openSync(path, "r");
  t.teardown(() => closeSync(descriptor));
  const task: FillTask = {
    blobs: [{ path, key: undefined, descriptor }],
    record: new FaultRecord().shared,
    chunks: packChunks([chunk]),
    extents: extents.columns,
    ...extents.byChunk(1),
    filled: extents.sameFilled(),
  };
  return { path, task };
}

/** A machine of which all these frames are missing, and hold something else. */
function machineFor(task: FillTask) {
  const machine = new HandMachine();
  const { core, memory } = machine.kernel;
  core.clearBitmap(CLAIMED_BITMAP);
  core.clearBitmap(MISSING_BITMAP);
  for (let i = 0; i < task.extents.length; i++) {
    const [pfn, frames] = [task.extents.pfn[i]!, task.extents.frames[i]!];
    for (let frame = pfn; frame < pfn + frames; frame++) memory.loadFrame(frame, new Uint8Array(FRAME_BYTES).fill(WAS));
    core.setBits(MISSING_BITMAP, pfn, frames);
  }
  machine.control.store(MACHINE_LAZY, LAZY_FILLING);
  const source = new FrameSource(machine.memory, core, task);
  const isFull = (frame: number, byte: number) => memory.equals(frame, new Uint8Array(FRAME_BYTES).fill(byte));
  /** Slots that are there; each is as the image has it, and the others are as they were. */
  const there = (t: ExecutionContext): number[] => {
    const slots = Array.from({ length: SLOTS }, (_, slot) => slot);
    const found = slots.filter((slot) => core.isMissing(frameOf(slot)) === 0);
    for (const slot of slots) t.true(isFull(frameOf(slot), found.includes(slot) ? slot + 1 : WAS), `slot ${slot}`);
    return found;
  };
  return { core, memory, source, there };
}

const slots = (from: number, to: number): number[] => Array.from({ length: to - from }, (_, i) => from + i);

test("a fault on a raw chunk brings in the piece of 64 KiB that has the frame, and nothing else", (t) => {
  const { task } = imageOf(t, CODEC_RAW);
  const { source, there } = machineFor(task);
  source.bringIn(frameOf(25));
  t.deepEqual(there(t), slots(16, 32));
  source.bringIn(frameOf(39));
  t.deepEqual(there(t), slots(16, 40));
  source.bringIn(frameOf(3));
  t.deepEqual(there(t), slots(0, 40));
});

test("a fault on a compressed chunk brings in all of it", (t) => {
  const { task } = imageOf(t, CODEC_LZ4);
  const { source, there } = machineFor(task);
  source.bringIn(frameOf(25));
  t.deepEqual(there(t), slots(0, SLOTS));
});

test("what was brought in before, or freed, is not placed again", (t) => {
  const { task } = imageOf(t, CODEC_RAW);
  const { core, memory, source } = machineFor(task);
  const stored = new Uint8Array(FRAME_BYTES).fill(0x55);
  source.bringIn(frameOf(17));
  memory.loadFrame(frameOf(17), stored);
  core.forgetMissing(frameOf(5), 1);
  memory.loadFrame(frameOf(5), stored);
  source.bringInChunk(0);
  for (const slot of slots(0, SLOTS))
    t.true(memory.equals(frameOf(slot), [17, 5].includes(slot) ? stored : stored.map(() => slot + 1)));
  t.is(source.filled.frames, SLOTS - 1);
});

test("frames without data come sixteen at a time, or all at once", (t) => {
  const { task } = imageOf(t, CODEC_RAW);
  const { core, memory, source } = machineFor(task);
  const page = new Uint8Array(new BigUint64Array(FRAME_BYTES / 8).fill(FILL).buffer);
  const there = () => slots(0, 40).filter((i) => core.isMissing(FILLED + i) === 0);
  source.bringIn(FILLED + 17);
  t.deepEqual(there(), slots(16, 32));
  t.true(there().every((i) => memory.equals(FILLED + i, page)));
  source.bringInFill(task.filled[0]!);
  t.deepEqual(there(), slots(0, 40));
  t.true(there().every((i) => memory.equals(FILLED + i, page)));
});

test("a damaged piece is found by its own hash, and nothing of it is placed; the others are as good as before", (t) => {
  const { path, task } = imageOf(t, CODEC_RAW);
  const { source, there } = machineFor(task);
  const blob = readFileSync(path);
  blob[HEADER_BYTES + 20 * FRAME_BYTES]! ^= 1;
  writeFileSync(path, blob);
  t.throws(() => source.bringIn(frameOf(31)), { code: "HIB_CORRUPT", message: /^chunk 0 at offset 4096 / });
  t.deepEqual(there(t), []);
  source.bringIn(frameOf(2));
  t.deepEqual(there(t), slots(0, 16));
  t.throws(() => source.bringInChunk(0), { code: "HIB_CORRUPT" });
  t.deepEqual(there(t), slots(0, 16));
});

test("chunks are packed whole, and listed from the end of the blob", (t) => {
  const { task } = imageOf(t, CODEC_RAW);
  const chunk = (id: number, offset: number): Chunk => ({
    id,
    offset,
    stored: 8192,
    payload: 8000 + id,
    frames: 2,
    codec: CODEC_LZ4,
    hash: BigInt(id) << 60n,
    pieces: Uint8Array.from({ length: 8 * (1 + id) }, (_, i) => i + id),
    digest: null,
  });
  const chunks = [chunk(0, 2 ** 33), chunk(1, 4096), chunk(2, 2 ** 40)];
  const packed = packChunks(chunks);
  t.deepEqual([...newestFirst(packed)], [2, 0, 1]);
  t.is(packChunks([]).length, 0);
  t.is(task.chunks.length, 1);
  for (const { id, pieces, ...rest } of chunks) {
    const { pieces: found, ...others } = chunkAt(packed, id);
    t.deepEqual([...found], [...pieces]);
    t.like(others, rest);
  }
  t.throws(() => chunkAt(packed, 3), { code: "HIB_INTERNAL" });
});
