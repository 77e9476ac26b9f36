/**
 * Frames of a lazy resume that are not there yet: the read fault.
 *
 * What must hold: a missing frame is placed by whoever claims it, and by nobody else; its bit is cleared only once all of its
 * bytes are there; and nobody reads it, or stores to it, before. Its claim stays, so no loader comes back to a frame that a
 * process has stored to since. A claim is held for no longer than a copy of the frame takes: what is copied has been read, and
 * has agreed with its checksum, before.
 */
import { CLAIMED_BITMAP, MACHINE_LAZY, MISSING_BITMAP } from "../src/base/layout";
import { clearBit, setBit, testBitAtomically } from "./tracking";

/** How long a frame that another thread places is waited for before it is looked at again. */
const PLACE_NS: i64 = 20000;

/** Places a missing frame, or throws: nothing will come of this machine any more. */
// @ts-ignore: decorator
@external("host", "missing")
declare function missing(frame: u32): void;

/** Call before frames are read, or stored to in part: returns once all of them are there. */
export function bringIn(frame: u32, count: u32): void {
  if (load<u32>(MACHINE_LAZY) == 0) return;
  for (const end = frame + count; frame < end; frame++) {
    while (testBitAtomically(MISSING_BITMAP, frame)) {
      if (testBitAtomically(CLAIMED_BITMAP, frame)) awaitPlaced();
      else missing(frame);
    }
  }
}

export function isMissing(frame: u32): bool {
  return testBitAtomically(MISSING_BITMAP, frame);
}

/** Claims a missing frame: true if it is the caller's to place, and then to `settle`. */
export function claimMissing(frame: u32): bool {
  return testBitAtomically(MISSING_BITMAP, frame) && setBit(CLAIMED_BITMAP, frame);
}

/** A frame that the caller has claimed is there. */
export function settle(frame: u32): void {
  clearBit(MISSING_BITMAP, frame);
}

/** Frames that become free are wanted no more: nobody places them once this returns. */
export function forgetMissing(frame: u32, count: u32): void {
  if (load<u32>(MACHINE_LAZY) == 0) return;
  for (const end = frame + count; frame < end; frame++) {
    if (claimMissing(frame)) settle(frame);
    while (testBitAtomically(MISSING_BITMAP, frame)) awaitPlaced();
  }
}

/** Nobody wakes: it is a copy of one frame. */
function awaitPlaced(): void {
  atomic.wait<i32>(MACHINE_LAZY, atomic.load<i32>(MACHINE_LAZY), PLACE_NS);
}
