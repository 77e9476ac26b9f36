/**
 * Write tracking: the mark.
 *
 * What must hold: a frame's bit in the dirty bitmap is set before the first byte of it changes after arming. The
 * bitmap lies in the control area, which is never protected, so the handler cannot fault (S3.1). It does no I/O,
 * takes no lock and allocates nothing.
 */
import {
  DIRTY_BITMAP, EQUAL_BITMAP, FAULT_COUNT_AREA, FAULT_KERNEL, FAULT_KINDS, FAULT_PAGE_TABLE, FAULT_TIMELINE,
  FRAME_BYTES, FRAME_SHIFT, LIST_FRAMES, LIST_PLACES, MACHINE_ARMED, MACHINE_KEEP_PREIMAGES, MACHINE_PREIMAGES,
  MACHINE_QUEUE_CURSOR, MACHINE_QUEUE_OVERFLOW, MACHINE_QUEUE_ROOM, MACHINE_SABOTAGE, MAX_PROCESSES, OPEN_BITMAP,
  SABOTAGE_BITMAP_PROTECTED, SABOTAGE_NO_AD, SABOTAGE_NO_KERNEL, SABOTAGE_NO_MARK, SABOTAGE_NO_PREIMAGE,
  TIMELINE_BINS, VCPU_AREA, VCPU_BYTES, VCPU_FAULTS,
} from "../src/base/layout";
import { frameAt, placeAt } from "./ram";

/** Faults that this thread has taken since it started; the MMU looks here to tell a fault from a plain refill. */
export let faults: u32 = 0;
/** This thread's number: a vCPU's, or MAX_VCPUS for the coordinator. */
export let self: u32 = 0;
/** Slot of the process that runs on this thread. */
export let currentSlot: u32 = 0;
/** Current bin of the fault timeline; the vCPU loop moves it. */
let timelineBin: u32 = 0;

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

/** Call before any store to a frame of RAM: marks it if tracking is armed and it has no mark yet. */
// @ts-ignore: decorator
@inline
export function beforeStore(frame: u32, kind: u32): void {
  if (load<u32>(MACHINE_ARMED) != 0) {
    const open: usize = load<u32>(MACHINE_KEEP_PREIMAGES) != 0 ? OPEN_BITMAP : DIRTY_BITMAP;
    if (!testBit(open, frame)) writeProtectFault(frame, kind);
  }
}

function writeProtectFault(frame: u32, kind: u32): void {
  const sabotage = load<u32>(MACHINE_SABOTAGE);
  if (sabotage != 0) {
    if (sabotage == SABOTAGE_NO_MARK) return;
    if (sabotage == SABOTAGE_NO_KERNEL && kind == FAULT_KERNEL) return;
    if (sabotage == SABOTAGE_NO_AD && kind == FAULT_PAGE_TABLE) return;
    if (sabotage == SABOTAGE_BITMAP_PROTECTED) writeProtectFault(DIRTY_BITMAP >>> FRAME_SHIFT, kind);
  }
  const keep = load<u32>(MACHINE_KEEP_PREIMAGES) != 0;
  if (!setBit(DIRTY_BITMAP, frame)) {
    // Another thread's fault on this frame: its store is allowed once its pre-image is safe, a few hundred ns.
    if (keep) while (atomic.load<u32>(OPEN_BITMAP + ((frame >>> 5) << 2)) >>> (frame & 31) & 1 ^ 1) {}
    return;
  }
  if (keep) {
    if (testBit(EQUAL_BITMAP, frame) && sabotage != SABOTAGE_NO_PREIMAGE) keepPreimage(frame);
    setBit(OPEN_BITMAP, frame);
  }
  faults++;
  const count = FAULT_COUNT_AREA + (((self * MAX_PROCESSES + currentSlot) * FAULT_KINDS + kind) << 2);
  store<u32>(count, load<u32>(count) + 1);
  const bin = FAULT_TIMELINE + ((self * TIMELINE_BINS + timelineBin) << 2);
  store<u32>(bin, load<u32>(bin) + 1);
  const total = VCPU_AREA + self * VCPU_BYTES + VCPU_FAULTS;
  store<u32>(total, load<u32>(total) + 1);
}

/**
 * Claims a place in the queue of the atomic restore. Places are prepared beforehand (LIST_PLACES holds their host
 * frame numbers). Returns the entry, or -1 if there is no room.
 */
export function claimQueueEntry(): i32 {
  const entry = atomic.add<u32>(MACHINE_QUEUE_CURSOR, 1);
  if (entry < load<u32>(MACHINE_QUEUE_ROOM)) return entry;
  atomic.add<u32>(MACHINE_QUEUE_OVERFLOW, 1);
  return -1;
}

/** S1.7 "equal but written afterwards": keep the unmodified version, to be copied back by the atomic restore. */
function keepPreimage(frame: u32): void {
  const entry = claimQueueEntry();
  if (entry < 0) return; // Counted; resume reads the frame from the image again once everything is stopped.
  memory.copy(placeAt(load<u32>(LIST_PLACES + (entry << 2))), frameAt(frame), FRAME_BYTES);
  atomic.store<u32>(LIST_FRAMES + (entry << 2), frame);
  atomic.add<u32>(MACHINE_PREIMAGES, 1);
}
