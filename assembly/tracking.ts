/**
 * Write tracking: the mark.
 *
 * What must hold: a frame's bit in the dirty bitmap is set before the first byte of it changes after arming. The
 * bitmap lies in the control area, which is never protected, so the handler cannot fault (S3.1). It does no I/O,
 * takes no lock and allocates nothing. While pre-images are kept for a snapshot's tail it may wait for room, also for a
 * store of the kernel that is made under the kernel lock.
 */
import {
  CANCEL_NO_MEMORY, CANCEL_NO_ROOM, CLAIMED_BITMAP, DIRTY_BITMAP, KEEP_BITMAP, KEEP_FOR_RESTORE, KEEP_NONE, FAULT_COUNT_AREA, FAULT_DEVICE, FAULT_KERNEL, FAULT_KINDS, FAULT_PAGE_TABLE, FAULT_SLOTS, FAULT_TIMELINE,
  FRAME_BYTES, FRAME_NONE, FRAME_SHIFT, MACHINE_ARMED, MACHINE_CANCEL, MACHINE_KEEP_PREIMAGES, MACHINE_PREIMAGES,
  MACHINE_QUEUE_CURSOR, MACHINE_QUEUE_END, MACHINE_QUEUE_OVERFLOW, MACHINE_QUEUE_ROOM, MACHINE_QUEUE_START, MAX_FRAMES, MACHINE_SABOTAGE, MACHINE_STOP_SET, MACHINE_TOUCHING, MAX_VCPUS, OPEN_BITMAP, PLACE_NONE, PLANNED_BITMAP, QUEUE_FRAMES, QUEUE_PLACES, RAM_BASE,
  SABOTAGE_BITMAP_PROTECTED, SABOTAGE_NO_AD, SABOTAGE_NO_DEVICE, SABOTAGE_NO_KERNEL, SABOTAGE_NO_MARK, SABOTAGE_NO_PREIMAGE, SAVED_BITMAP,
  TIMELINE_BINS, VCPU_AREA, VCPU_BYTES, VCPU_LONGEST_WAIT, VCPU_WAITED, VCPU_WAITS, VCPU_WANTED,
} from "../src/base/layout";
import { frameAt, placeAt } from "./ram";

/** Host clock, ms. */
// @ts-ignore: decorator
@external("host", "now")
export declare function now(): f64;

/** How long a store without room for its pre-image waits before it looks again. */
const WAIT_NS: i64 = 100000;
/** How long a claimed place that is not filled yet is waited for before it is looked at again. */
const FILL_NS: i64 = 20000;
/** The first place that is guest memory. */
const RAM_PLACE: u32 = RAM_BASE >>> FRAME_SHIFT;
/** How often: after some five seconds the save is given up, not the machine. */
const WAITS_MAX = 50000;

/** Faults that this thread has taken since it started; the MMU looks here to tell a fault from a plain refill. */
export let faults: u32 = 0;
/** This thread's number: a vCPU's, or MAX_VCPUS for the coordinator. */
export let self: u32 = 0;
/** Slot of the process that runs on this thread. */
export let currentSlot: u32 = 0;
/** Current bin of the fault timeline; the vCPU loop moves it. */
let timelineBin: u32 = 0;

export function faultsTaken(): u32 { return faults; }
export function bindThread(number: u32): void { self = number; }
export function setCurrentSlot(slot: u32): void { currentSlot = slot; }
export function setTimelineBin(bin: u32): void { timelineBin = bin % TIMELINE_BINS; }

// @ts-ignore: decorator
@inline
export function testBit(bitmap: usize, frame: u32): bool {
  return (load<u32>(bitmap + ((frame >>> 5) << 2)) & (1 << (frame & 31))) != 0;
}

/** Sets a bit atomically; true if this call set it. */
// @ts-ignore: decorator
@inline
export function setBit(bitmap: usize, frame: u32): bool {
  const word = bitmap + ((frame >>> 5) << 2);
  const bit: u32 = 1 << (frame & 31);
  if ((load<u32>(word) & bit) != 0) return false;
  return (atomic.or<u32>(word, bit) & bit) == 0;
}

// @ts-ignore: decorator
@inline
export function clearBit(bitmap: usize, frame: u32): void {
  atomic.and<u32>(bitmap + ((frame >>> 5) << 2), ~(1 << (frame & 31)));
}

// @ts-ignore: decorator
@inline
export function testBitAtomically(bitmap: usize, frame: u32): bool {
  return (atomic.load<u32>(bitmap + ((frame >>> 5) << 2)) & (1 << (frame & 31))) != 0;
}

/** Tests a bit after everything that this thread has read so far: an atomic read-modify-write, which no read passes. */
// @ts-ignore: decorator
@inline
export function testBitAfterReads(bitmap: usize, frame: u32): bool {
  return (atomic.or<u32>(bitmap + ((frame >>> 5) << 2), 0) & (1 << (frame & 31))) != 0;
}

/** Call before any store to a frame of RAM: marks it if tracking is armed and it has no mark yet. */
// @ts-ignore: decorator
@inline
export function beforeStore(frame: u32, kind: u32): void {
  if (atomic.load<u32>(MACHINE_ARMED) != 0) {
    const open: usize = atomic.load<u32>(MACHINE_KEEP_PREIMAGES) != 0 ? OPEN_BITMAP : DIRTY_BITMAP;
    if (!testBit(open, frame)) writeProtectFault(frame, kind);
  }
}

function writeProtectFault(frame: u32, kind: u32): void {
  const sabotage = load<u32>(MACHINE_SABOTAGE);
  if (sabotage != 0) {
    if (sabotage == SABOTAGE_NO_MARK) return;
    if (sabotage == SABOTAGE_NO_KERNEL && kind == FAULT_KERNEL) return;
    if (sabotage == SABOTAGE_NO_DEVICE && kind == FAULT_DEVICE) return;
    if (sabotage == SABOTAGE_NO_AD && kind == FAULT_PAGE_TABLE) return;
    if (sabotage == SABOTAGE_BITMAP_PROTECTED) writeProtectFault(DIRTY_BITMAP >>> FRAME_SHIFT, kind);
  }
  if (atomic.load<u32>(MACHINE_KEEP_PREIMAGES) == KEEP_NONE) {
    if (!setBit(DIRTY_BITMAP, frame)) return;
  } else if (!openFrame(frame, sabotage)) return;
  faults++;
  const count = FAULT_COUNT_AREA + (((self * FAULT_SLOTS + currentSlot) * FAULT_KINDS + kind) << 2);
  store<u32>(count, load<u32>(count) + 1);
  const bin = FAULT_TIMELINE + ((self * TIMELINE_BINS + timelineBin) << 2);
  store<u32>(bin, load<u32>(bin) + 1);
}

/**
 * A fault while pre-images are kept: claims the frame, keeps its old contents if they are wanted, and only then opens it
 * to stores. True if this call did so, false if another thread's fault did.
 */
function openFrame(frame: u32, sabotage: u32): bool {
  let waits = 0;
  let began: f64 = 0;
  const wanted: usize = VCPU_AREA + self * VCPU_BYTES + VCPU_WANTED;
  while (true) {
    if (setBit(CLAIMED_BITMAP, frame)) {
      if (!isPreimageWanted(frame) || sabotage == SABOTAGE_NO_PREIMAGE || keepPreimage(frame)) {
        if (waits > 0) {
          atomic.store<u32>(wanted, 0);
          noteWait(began);
        }
        setBit(OPEN_BITMAP, frame);
        return true;
      }
      if (self == MAX_VCPUS) {
        // The coordinator runs the writers that could make room: rather than wait for itself it gives up the save.
        atomic.store<u32>(MACHINE_CANCEL, CANCEL_NO_ROOM);
        setBit(OPEN_BITMAP, frame);
        return true;
      }
      // No room: let go of it, so that a page writer may save the frame, ask for that, and look again.
      clearBit(CLAIMED_BITMAP, frame);
      atomic.store<u32>(wanted, frame + 1);
      if (load<u32>(MACHINE_KEEP_PREIMAGES) == KEEP_NONE) {
        setBit(DIRTY_BITMAP, frame); // the claim is taken back, and tracking may go on
        return true;
      }
      if (atomic.load<u32>(MACHINE_CANCEL) != 0) {
        // Nobody saves frames any more, and nobody needs this one: there will be no image.
        setBit(CLAIMED_BITMAP, frame);
        setBit(OPEN_BITMAP, frame);
        return true;
      }
      if (waits == 0) began = now();
      if (++waits > WAITS_MAX) atomic.store<u32>(MACHINE_CANCEL, CANCEL_NO_ROOM);
      atomic.wait<i32>(MACHINE_QUEUE_OVERFLOW, atomic.load<i32>(MACHINE_QUEUE_OVERFLOW), WAIT_NS);
    } else {
      // Another thread has it: the store may go once the pre-image is safe, a few hundred ns.
      if (testBitAtomically(OPEN_BITMAP, frame)) return false;
      if (load<u32>(MACHINE_KEEP_PREIMAGES) == KEEP_NONE) return false;
    }
  }
}

/** Counts a store that waited for room, for the report. */
function noteWait(began: f64): void {
  const words: usize = VCPU_AREA + self * VCPU_BYTES;
  const waited = <u32>((now() - began) * 1000);
  store<u32>(words + VCPU_WAITS, load<u32>(words + VCPU_WAITS) + 1);
  store<u32>(words + VCPU_WAITED, load<u32>(words + VCPU_WAITED) + waited);
  if (waited > load<u32>(words + VCPU_LONGEST_WAIT)) store<u32>(words + VCPU_LONGEST_WAIT, waited);
}

/**
 * Whether an image still needs the frame's contents as they are. Both threads that may meet at a frame, the one that claims it
 * and the one that makes its pre-image unneeded, set their bit first and then look for the other's.
 */
export function isPreimageWanted(frame: u32): bool {
  if (load<u32>(MACHINE_KEEP_PREIMAGES) == KEEP_FOR_RESTORE) return testBitAtomically(KEEP_BITMAP, frame);
  return isResidual(frame) && !testBitAtomically(SAVED_BITMAP, frame);
}

/**
 * Whether a frame is in the residual set of the stop. Nobody changes SAVEABLE until STOP is a copy of it. But that may happen
 * between the two loads here, and then the bit may be of a later time.
 */
function isResidual(frame: u32): bool {
  if (!testBit(DIRTY_BITMAP, frame) && testBit(PLANNED_BITMAP, frame)) return false;
  while (true) {
    const set = atomic.load<u32>(MACHINE_STOP_SET);
    const inSet = testBitAtomically(set, frame);
    if (atomic.load<u32>(MACHINE_STOP_SET) == set) return inSet;
  }
}

/**
 * Claims an entry of the queue. Places are prepared beforehand (QUEUE_PLACES holds their host frame numbers). Returns
 * the entry, or -1 if there is no room.
 */
export function claimQueueEntry(): i32 {
  const room = atomic.load<u32>(self == MAX_VCPUS ? MACHINE_QUEUE_END : MACHINE_QUEUE_ROOM); // before the place that is there since
  let entry = atomic.load<u32>(MACHINE_QUEUE_CURSOR);
  while (entry < room) {
    const seen = atomic.cmpxchg<u32>(MACHINE_QUEUE_CURSOR, entry, entry + 1);
    if (seen == entry) return entry;
    entry = seen;
  }
  atomic.add<u32>(MACHINE_QUEUE_OVERFLOW, 1);
  return -1;
}

/**
 * Copies a frame's contents to a place of the queue before they change (S1.7 "equal but written afterwards", S3.3).
 * False if there is no room and the store must not go yet.
 */
function keepPreimage(frame: u32): bool {
  const entry = claimQueueEntry();
  if (entry < 0) return load<u32>(MACHINE_KEEP_PREIMAGES) == KEEP_FOR_RESTORE; // read from the image again at the stop
  memory.copy(placeAt(load<u32>(QUEUE_PLACES + (entry << 2))), frameAt(frame), FRAME_BYTES);
  atomic.store<u32>(QUEUE_FRAMES + (entry << 2), frame);
  atomic.add<u32>(MACHINE_PREIMAGES, 1);
  return true;
}

/**
 * Gives a place back whose contents are saved: it is that of a new entry, at the end of the queue. So claims go on as ever. The
 * caller is the one page writer that may change the end.
 */
export function giveBackPlace(place: u32): void {
  const end = load<u32>(MACHINE_QUEUE_END);
  if (end == MAX_FRAMES) return; // no claim will be missing: there are as many entries as frames
  store<u32>(QUEUE_FRAMES + (end << 2), FRAME_NONE);
  store<u32>(QUEUE_PLACES + (end << 2), place);
  atomic.store<u32>(MACHINE_QUEUE_END, end + 1);
  atomic.add<u32>(MACHINE_QUEUE_ROOM, 1);
  if (atomic.load<u32>(MACHINE_QUEUE_OVERFLOW) != 0) atomic.notify(MACHINE_QUEUE_OVERFLOW, 1);
}

// ---- memory that is lent ----

/**
 * Takes a place of guest memory out of the queue that nothing has claimed yet; -1 if there is none. The caller holds the
 * kernel lock. Guest memory comes before the pool in the queue, and pre-images are claimed from the same end.
 */
export function takeBackPlace(): i32 {
  // The coordinator needs its spare places only while pre-images are kept for an image that is still wanted.
  const all = load<u32>(MACHINE_KEEP_PREIMAGES) == KEEP_NONE || load<u32>(MACHINE_CANCEL) != 0;
  const room = atomic.load<u32>(all ? MACHINE_QUEUE_END : MACHINE_QUEUE_ROOM);
  let entry = atomic.load<u32>(MACHINE_QUEUE_CURSOR);
  while (entry < room) {
    const place = load<u32>(QUEUE_PLACES + (entry << 2));
    if (place < RAM_PLACE) return -1;
    const seen = atomic.cmpxchg<u32>(MACHINE_QUEUE_CURSOR, entry, entry + 1);
    if (seen == entry) {
      store<u32>(QUEUE_PLACES + (entry << 2), PLACE_NONE);
      // The coordinator touches it without the lock; that takes no longer than a millisecond or two.
      while (entry >= atomic.load<u32>(MACHINE_TOUCHING)) {
        atomic.wait<i32>(MACHINE_TOUCHING, atomic.load<i32>(MACHINE_TOUCHING), FILL_NS);
      }
      return <i32>place;
    }
    entry = seen;
  }
  return -1;
}

/**
 * Takes back a place of guest memory that holds a copy or a pre-image, and gives up the save or resume that needs it; -1 if there
 * is none, and then nothing is given up: what lies in the pool is still wanted. The caller holds the kernel lock. Page writers
 * may still read such a place, which harms nothing: what they write is thrown away. A handler or loader may still fill it: that
 * is waited for.
 */
export function takeBackHeldPlace(): i32 {
  const end = atomic.load<u32>(MACHINE_QUEUE_CURSOR);
  for (let entry = load<u32>(MACHINE_QUEUE_START); entry < end; entry++) {
    const place = load<u32>(QUEUE_PLACES + (entry << 2));
    if (place == PLACE_NONE) continue;
    if (place < RAM_PLACE) return -1; // the pool, which comes last
    let waits = 0;
    while (atomic.load<u32>(QUEUE_FRAMES + (entry << 2)) == FRAME_NONE) {
      if (++waits > WAITS_MAX) return -1;
      atomic.wait<i32>(MACHINE_QUEUE_OVERFLOW, atomic.load<i32>(MACHINE_QUEUE_OVERFLOW), FILL_NS);
    }
    if (atomic.load<u32>(MACHINE_CANCEL) == 0) atomic.store<u32>(MACHINE_CANCEL, CANCEL_NO_MEMORY);
    atomic.store<u32>(MACHINE_QUEUE_START, entry + 1);
    store<u32>(QUEUE_PLACES + (entry << 2), PLACE_NONE);
    return <i32>place;
  }
  return -1;
}
