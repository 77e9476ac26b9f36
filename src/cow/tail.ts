/**
 * The copy-before-write tail of a snapshot: residual frames that the atomic copy did not take are protected again, so that
 * the machine can go on before they are saved. Each is then saved as it was at the stop: by a page writer, or, if somebody
 * stores to it first, by the fault handler, which keeps its pre-image in a queue (S3.3; assembly/tracking.ts).
 *
 * The queue follows the residual set in the lists; its places are those of the reserve that the atomic copy left over.
 */
import type { Control } from "../base/control.js";
import {
  MACHINE_PREIMAGES, MACHINE_QUEUE_CURSOR, MACHINE_QUEUE_OVERFLOW, MACHINE_QUEUE_ROOM, MAX_FRAMES, QUEUE_SPARE,
} from "../base/layout.js";
import { type AtomicCopy, listViews } from "./atomic-copy.js";
import type { Reserve } from "./reserve.js";
import type { WriteTracking } from "./tracking.js";

/**
 * Protects list entries [copied, frames); everything is stopped.
 *
 * @param limit - places of the reserve that may be used in all
 */
export function protectTail(control: Control, tracking: WriteTracking, reserve: Reserve, { frames, copied }: AtomicCopy, limit: number): void {
  const room = Math.min(limit - copied, MAX_FRAMES - frames - QUEUE_SPARE);
  const places = reserve.list(listViews(control).places.subarray(frames), room + QUEUE_SPARE, copied);
  control.store(MACHINE_QUEUE_CURSOR, frames);
  control.store(MACHINE_QUEUE_ROOM, frames + Math.max(0, places - QUEUE_SPARE));
  control.store(MACHINE_QUEUE_OVERFLOW, 0);
  control.store(MACHINE_PREIMAGES, 0);
  tracking.armTail(copied, frames);
}

/** The queue, once no handler is at work on it: where it ends in the lists, and what was kept and what had to wait. */
export function tailQueue(control: Control): { end: number; preimages: number; waits: number } {
  return {
    end: control.load(MACHINE_QUEUE_CURSOR),
    preimages: control.load(MACHINE_PREIMAGES),
    waits: control.load(MACHINE_QUEUE_OVERFLOW),
  };
}
