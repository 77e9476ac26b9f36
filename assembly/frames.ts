/**
 * Work on whole frames: the kernel's tracked stores, the writers' staging, the atomic copy and the atomic restore.
 *
 * What must hold: whatever stores to RAM on behalf of the running machine calls beforeStore() first. The only
 * untracked stores are to frames that are no part of a running machine's contents: places of the reserve (`gather`, `touch`,
 * pre-images), frames that a booting kernel has allocated for direct loads, and any frame while everything is stopped and is
 * being replaced (`scatter`).
 */
import {
  BITMAP_BYTES, CLAIMED_BITMAP, DIRTY_BITMAP, FAULT_KERNEL, FRAME_BYTES, FRAME_NONE, FRAME_SHIFT, KEPT_BITMAP, KERNEL_BITMAP, LIST_FRAMES,
  MACHINE_CANCEL, MACHINE_CURSOR, MACHINE_LIST_LENGTH, MACHINE_QUEUE_CURSOR, MACHINE_QUEUE_OVERFLOW, MACHINE_QUEUE_SAVED, MACHINE_QUEUE_SAVER, OPEN_BITMAP, PLACE_NONE, PLANNED_BITMAP, QUEUE_FRAMES, QUEUE_PLACES, SAVED_BITMAP, VERDICT_SAME_FILLED, SAVEABLE_BITMAP,
  VERDICT_SKIPPED, STAGE_LIVE, STAGE_TAIL, VERDICT_STAGED, STOP_BITMAP, VCPU_AREA, VCPU_BYTES, VCPU_WANTED,
} from "../src/base/layout";
import { bringIn } from "./missing";
import { frameAt, physical, placeAt } from "./ram";
import { beforeStore, giveBackPlace, isPreimageWanted, setBit, testBit, testBitAfterReads } from "./tracking";

/** Entries claimed at once by a gathering vCPU. */
const GATHER_CLAIM: u32 = 64;

// ---- tracked stores of the kernel and of devices ----

export function kernelStore32(address: u32, value: u32): void {
  beforeStore(address >>> FRAME_SHIFT, FAULT_KERNEL);
  store<u32>(physical(address), value);
}

export function kernelStoreFloat64(address: u32, value: f64): void {
  beforeStore(address >>> FRAME_SHIFT, FAULT_KERNEL);
  store<f64>(physical(address), value);
}

export function kernelStore8(address: u32, value: u32): void {
  beforeStore(address >>> FRAME_SHIFT, FAULT_KERNEL);
  store<u8>(physical(address), <u8>value);
}

/** Zeroes whole frames. */
export function kernelZero(frame: u32, count: u32): void {
  for (let i: u32 = 0; i < count; i++) beforeStore(frame + i, FAULT_KERNEL);
  memory.fill(frameAt(frame), 0, <usize>count << FRAME_SHIFT);
}

/** Copies whole frames. */
export function kernelCopy(to: u32, from: u32, count: u32): void {
  bringIn(from, count);
  for (let i: u32 = 0; i < count; i++) beforeStore(to + i, FAULT_KERNEL);
  memory.copy(frameAt(to), frameAt(from), <usize>count << FRAME_SHIFT);
}

/** Marks the frames of a byte range before a bulk store by the kernel or a device (kind: FAULT_KERNEL, FAULT_DEVICE). */
export function beforeBulkStore(address: u32, bytes: u32, kind: u32): void {
  const last = (address + bytes - 1) >>> FRAME_SHIFT;
  for (let frame = address >>> FRAME_SHIFT; frame <= last; frame++) {
    beforeStore(frame, kind);
  }
}

// ---- bitmaps and lists ----

/** Sets a frame's bit; true if this call set it. */
export function setFrameBit(bitmap: u32, frame: u32): bool { return setBit(bitmap, frame); }

/** Sets `count` bits. Callers hold the kernel lock or are alone; neighbours' bits are left alone atomically. */
export function setBits(bitmap: u32, frame: u32, count: u32): void { changeBits(bitmap, frame, count, true); }
/** Clears `count` bits, as `setBits` sets them. */
export function clearBits(bitmap: u32, frame: u32, count: u32): void { changeBits(bitmap, frame, count, false); }

// @ts-ignore: decorator
@inline
function changeBits(bitmap: u32, frame: u32, count: u32, value: bool): void {
  const end = frame + count;
  while (frame < end) {
    const word = bitmap + ((frame >>> 5) << 2);
    const from = frame & 31;
    const n: u32 = min<u32>(32 - from, end - frame);
    const mask: u32 = n == 32 ? 0xffffffff : ((1 << n) - 1) << from;
    if (value) atomic.or<u32>(word, mask);
    else atomic.and<u32>(word, ~mask);
    frame += n;
  }
}

export function clearBitmap(bitmap: u32): void { memory.fill(bitmap, 0, BITMAP_BYTES); }
export function copyBitmap(to: u32, from: u32): void { memory.copy(to, from, BITMAP_BYTES); }

/** Adds the bits of `from`. Others may set bits of `to` meanwhile. */
export function mergeBits(to: u32, from: u32): void {
  for (let at: u32 = 0; at < <u32>BITMAP_BYTES; at += 8) {
    const bits = load<u64>(from + at);
    if (bits != 0) atomic.or<u64>(to + at, bits);
  }
}

/** Takes the bits of `other` out of `bitmap`. */
export function subtractBits(bitmap: u32, other: u32): void {
  for (let at: u32 = 0; at < <u32>BITMAP_BYTES; at += 8) store<u64>(bitmap + at, load<u64>(bitmap + at) & ~load<u64>(other + at));
}

/** Takes the bits of `marks` out of `bitmap` and clears them there. A mark that a handler sets meanwhile is taken, or stays. */
export function takeMarks(bitmap: u32, marks: u32): void {
  for (let at: u32 = 0; at < <u32>BITMAP_BYTES; at += 8) {
    if (load<u64>(marks + at) != 0) store<u64>(bitmap + at, load<u64>(bitmap + at) & ~atomic.xchg<u64>(marks + at, 0));
  }
}

export function countBits(bitmap: u32): u32 {
  let count: u32 = 0;
  for (let at: u32 = 0; at < <u32>BITMAP_BYTES; at += 8) count += <u32>popcnt(load<u64>(bitmap + at));
  return count;
}

/** Number of frames that an atomic copy would have to take now: saveable and (marked or not planned). */
export function countResidual(): u32 {
  let count: u32 = 0;
  for (let at: u32 = 0; at < <u32>BITMAP_BYTES; at += 8) {
    count += <u32>popcnt(residualWord(SAVEABLE_BITMAP, at));
  }
  return count;
}

// @ts-ignore: decorator
@inline
function residualWord(saveable: u32, at: u32): u64 {
  return load<u64>(saveable + at) & (load<u64>(DIRTY_BITMAP + at) | ~load<u64>(PLANNED_BITMAP + at));
}

/**
 * Writes the planned frames, but for those that the last image has, into LIST_FRAMES, the kernel's first: so a reader that looks for page tables in an image finds them
 * in a few chunks. Returns their number.
 */
export function listPlanned(): u32 {
  let length: u32 = 0;
  for (let at: u32 = 0; at < <u32>BITMAP_BYTES; at += 8) {
    length = listWord(planned(at) & load<u64>(KERNEL_BITMAP + at), at << 3, length);
  }
  for (let at: u32 = 0; at < <u32>BITMAP_BYTES; at += 8) {
    length = listWord(planned(at) & ~load<u64>(KERNEL_BITMAP + at), at << 3, length);
  }
  return length;
}

// @ts-ignore: decorator
@inline
function planned(at: u32): u64 { return load<u64>(PLANNED_BITMAP + at) & ~load<u64>(KEPT_BITMAP + at); }

/**
 * Plans another round of the stream, in a machine of so many frames: takes away the marks that there are, and writes into LIST_FRAMES
 * what belongs to the image and bore one, or is not planned yet. Returns its length. The machine runs: a mark is either seen here, or
 * it stays. Once all vCPUs have dropped their write tags, what is listed may be read.
 *
 * A frame that bore a mark and is free now is not planned any more: if it is used again, the residual set has it.
 */
export function listMarked(frames: u32): u32 {
  let length: u32 = 0;
  for (let at: u32 = 0; at << 3 < frames; at += 8) {
    const marked = atomic.xchg<u64>(DIRTY_BITMAP + at, 0);
    store<u64>(KEPT_BITMAP + at, load<u64>(KEPT_BITMAP + at) & ~marked);
    const planned = load<u64>(PLANNED_BITMAP + at);
    const stale = load<u64>(SAVEABLE_BITMAP + at) & (marked | ~planned);
    store<u64>(PLANNED_BITMAP + at, (planned & ~marked) | stale);
    length = listWord(stale, at << 3, length);
  }
  return length;
}

/** Writes the residual set (of STOP_BITMAP) into LIST_FRAMES, the kernel's frames first; returns its size. */
export function listResidual(): u32 {
  let length: u32 = 0;
  for (let at: u32 = 0; at < <u32>BITMAP_BYTES; at += 8) {
    length = listWord(residualWord(STOP_BITMAP, at) & load<u64>(KERNEL_BITMAP + at), at << 3, length);
  }
  for (let at: u32 = 0; at < <u32>BITMAP_BYTES; at += 8) {
    length = listWord(residualWord(STOP_BITMAP, at) & ~load<u64>(KERNEL_BITMAP + at), at << 3, length);
  }
  return length;
}

// @ts-ignore: decorator
@inline
function listWord(word: u64, first: u32, length: u32): u32 {
  while (word != 0) {
    store<u32>(LIST_FRAMES + (length << 2), first + <u32>ctz(word));
    word &= word - 1;
    length++;
  }
  return length;
}

// ---- staging (page writers) ----

/** All 512 words of the frame at this byte address are the same. */
export function isSameFilled(at: usize): bool {
  const first = load<u64>(at);
  if (load<u64>(at + 8) != first || load<u64>(at + 4088) != first) return false;
  const splat = i64x2.splat(first);
  // Counted, not compared with an end: that of the memory's last frame is 2^32, which is 0 here.
  for (let left: u32 = FRAME_BYTES; left != 0; left -= 128) {
    let different = v128.xor(v128.load(at), splat);
    different = v128.or(different, v128.xor(v128.load(at, 16), splat));
    different = v128.or(different, v128.xor(v128.load(at, 32), splat));
    different = v128.or(different, v128.xor(v128.load(at, 48), splat));
    different = v128.or(different, v128.xor(v128.load(at, 64), splat));
    different = v128.or(different, v128.xor(v128.load(at, 80), splat));
    different = v128.or(different, v128.xor(v128.load(at, 96), splat));
    different = v128.or(different, v128.xor(v128.load(at, 112), splat));
    if (v128.any_true(different)) return false;
    at += 128;
  }
  return true;
}

/**
 * Stages the entries [first, first + count) of the list, or of the queue: tells for each in a byte at `verdicts` whether it was copied to the
 * next free frame at `to`, is same-filled (its word goes to `fills`, 8 bytes an entry), or was skipped.
 * Returns the number of frames staged.
 *
 *     STAGE_LIVE    frames of a running machine. A marked frame is skipped. RAM may change under the copy: the mark,
 *                   looked at once the machine has stopped, makes that harmless.
 *     STAGE_TAIL    frames whose contents are wanted as of the stop. One that the handler has opened is skipped: its
 *                   pre-image is kept. Any other is saved now, and need not be kept any more.
 *     STAGE_QUEUED  what the queue's places hold: copies and pre-images, which nobody changes.
 */
export function stage(first: u32, count: u32, mode: u32, to: usize, verdicts: usize, fills: usize): u32 {
  let staged: u32 = 0;
  for (let i: u32 = 0; i < count; i++) {
    const entry = (first + i) << 2;
    const place = to + (<usize>staged << FRAME_SHIFT);
    const fill = fills + (i << 3);
    let verdict: u32;
    if (mode == STAGE_LIVE) verdict = stageLive(load<u32>(LIST_FRAMES + entry), place, fill);
    else if (mode == STAGE_TAIL) verdict = stageTail(load<u32>(LIST_FRAMES + entry), place, fill);
    else verdict = stageQueued(load<u32>(QUEUE_PLACES + entry), place, fill);
    store<u8>(verdicts + i, <u8>verdict);
    if (verdict == VERDICT_STAGED) staged++;
  }
  return staged;
}

// @ts-ignore: decorator
@inline
function stageFrame(from: usize, to: usize, fill: usize): u32 {
  if (isSameFilled(from)) {
    store<u64>(fill, load<u64>(from));
    return VERDICT_SAME_FILLED;
  }
  memory.copy(to, from, FRAME_BYTES);
  return VERDICT_STAGED;
}

// @ts-ignore: decorator
@inline
function stageLive(frame: u32, to: usize, fill: usize): u32 {
  return testBit(DIRTY_BITMAP, frame) ? VERDICT_SKIPPED : stageFrame(frameAt(frame), to, fill);
}

/** The guest may have taken the place back. */
// @ts-ignore: decorator
@inline
function stageQueued(from: u32, to: usize, fill: usize): u32 {
  return from == PLACE_NONE ? VERDICT_SKIPPED : stageFrame(placeAt(from), to, fill);
}

/**
 * Stages a frame that a handler may open at any time. Handler: claim, keep, open, store. Here: copy, then look for a claim.
 * So a copy that saw a later store also sees the claim. A claim without "open" is a handler at work, or one that found no
 * room and takes the claim back; either is over soon.
 */
function stageTail(frame: u32, to: usize, fill: usize): u32 {
  while (true) {
    if (testBit(OPEN_BITMAP, frame) || load<u32>(MACHINE_CANCEL) != 0) return VERDICT_SKIPPED;
    if (!testBitAfterReads(CLAIMED_BITMAP, frame)) {
      const verdict = stageFrame(frameAt(frame), to, fill);
      if (!testBitAfterReads(CLAIMED_BITMAP, frame)) {
        setBit(SAVED_BITMAP, frame);
        return verdict;
      }
    }
    atomic.wait<i32>(MACHINE_QUEUE_OVERFLOW, atomic.load<i32>(MACHINE_QUEUE_OVERFLOW), 20000);
  }
}

/**
 * Stages the frame that a store on a vCPU waits for, if there is one that is not saved yet: out of turn, so that the store
 * need not wait for all that is listed before. Returns the frame, its verdict and fill as of `stage`; or -1.
 */
export function stageWanted(vcpu: u32, to: usize, verdict: usize, fill: usize): i32 {
  const word: usize = VCPU_AREA + vcpu * VCPU_BYTES + VCPU_WANTED;
  const wanted = atomic.load<u32>(word);
  if (wanted == 0 || atomic.cmpxchg<u32>(word, wanted, 0) != wanted) return -1;
  const frame = wanted - 1;
  if (!isPreimageWanted(frame)) return -1;
  store<u8>(verdict, <u8>stageTail(frame, to, fill));
  atomic.notify(MACHINE_QUEUE_OVERFLOW, -1);
  return <i32>frame;
}

/**
 * Stages the next entry of the queue that lies in the pool, and gives its place back: the pool is a ring, and lasts as long as
 * page writers are as fast as stores. Returns its frame, with the verdict and fill as of `stage`; or -1, if there is none, its
 * handler is still at work on it, or another writer is at this.
 *
 * Guest memory comes before the pool in the queue. Its places are used once: an allocator may take them back at any time.
 */
export function stagePreimage(to: usize, verdict: usize, fill: usize): i32 {
  if (atomic.load<u32>(MACHINE_QUEUE_SAVED) >= atomic.load<u32>(MACHINE_QUEUE_CURSOR)) return -1;
  if (atomic.cmpxchg<u32>(MACHINE_QUEUE_SAVER, 0, 1) != 0) return -1;
  const frame = stageNextPreimage(to, verdict, fill);
  atomic.store<u32>(MACHINE_QUEUE_SAVER, 0);
  return <i32>frame;
}

function stageNextPreimage(to: usize, verdict: usize, fill: usize): u32 {
  const entry = load<u32>(MACHINE_QUEUE_SAVED);
  if (entry >= atomic.load<u32>(MACHINE_QUEUE_CURSOR)) return FRAME_NONE;
  const frame = atomic.load<u32>(QUEUE_FRAMES + (entry << 2)); // stored once the place is filled
  if (frame == FRAME_NONE) return FRAME_NONE;
  const place = load<u32>(QUEUE_PLACES + (entry << 2));
  store<u8>(verdict, <u8>stageFrame(placeAt(place), to, fill));
  store<u32>(QUEUE_PLACES + (entry << 2), PLACE_NONE); // it is not written again with the queue
  atomic.store<u32>(MACHINE_QUEUE_SAVED, entry + 1);
  giveBackPlace(place);
  return frame;
}

// ---- atomic copy and atomic restore ----

/** Copies the queue's frames to their places, claiming entries until none is left. */
export function gather(): void { copyClaims(true); }
/** Copies the queue's places to their frames, claiming entries until none is left. */
export function scatter(): void { copyClaims(false); }

// @ts-ignore: decorator
@inline
function copyClaims(out: bool): void {
  const length = load<u32>(MACHINE_LIST_LENGTH);
  while (true) {
    let i = atomic.add<u32>(MACHINE_CURSOR, GATHER_CLAIM);
    if (i >= length) return;
    const end: u32 = min<u32>(i + GATHER_CLAIM, length);
    while (i < end) {
      const frame = load<u32>(QUEUE_FRAMES + (i << 2));
      const place = load<u32>(QUEUE_PLACES + (i << 2));
      if (place == PLACE_NONE) { i++; continue; }
      let run: u32 = 1;
      while (
        i + run < end && load<u32>(QUEUE_FRAMES + ((i + run) << 2)) == frame + run &&
        load<u32>(QUEUE_PLACES + ((i + run) << 2)) == place + run
      ) run++;
      const inRam = frameAt(frame);
      const inPool = placeAt(place);
      if (out) memory.copy(inPool, inRam, run << FRAME_SHIFT);
      else memory.copy(inRam, inPool, run << FRAME_SHIFT);
      i += run;
    }
  }
}

/** Touches memory that the guest does not use, so that the pause does not pay for the host's first touch. */
export function touch(place: u32): void {
  memory.fill(placeAt(place), 0, FRAME_BYTES);
}
