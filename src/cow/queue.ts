/**
 * The queue of frames' contents that belong elsewhere: what a resume's atomic restore will put in place, and the pre-images
 * that the fault handler keeps. Entries are claimed (assembly/tracking.ts); an entry's place is prepared here, before.
 */
import type { Control } from "../base/control.js";
import {
  MACHINE_PREIMAGES,
  MACHINE_QUEUE_CURSOR,
  MACHINE_QUEUE_END,
  MACHINE_QUEUE_OVERFLOW,
  MACHINE_QUEUE_ROOM,
  QUEUE_SPARE,
} from "../base/layout.js";

/** Opens the list entries [start, end) as a queue; each has its place already. The last QUEUE_SPARE are the coordinator's. */
export function openQueue(control: Control, start: number, end: number): void {
  control.store(MACHINE_QUEUE_CURSOR, start);
  control.store(MACHINE_QUEUE_ROOM, Math.max(start, end - QUEUE_SPARE));
  control.store(MACHINE_QUEUE_END, end);
  control.store(MACHINE_QUEUE_OVERFLOW, 0);
  control.store(MACHINE_PREIMAGES, 0);
}

/** The queue so far: where its claimed entries end, pre-images among them, and claims that were refused. */
export function readQueue(control: Control): { end: number; preimages: number; refused: number } {
  return {
    end: control.load(MACHINE_QUEUE_CURSOR),
    preimages: control.load(MACHINE_PREIMAGES),
    refused: control.load(MACHINE_QUEUE_OVERFLOW),
  };
}
