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
  MAX_FRAMES,
  QUEUE_SPARE,
} from "../base/layout.js";
import { listViews } from "./atomic-copy.js";
import type { Reserve } from "./reserve.js";

/**
 * Opens a queue at entry `start` of the lists, with `room` entries and the coordinator's own behind them, as far as the
 * reserve has places for them.
 *
 * @param skip - places of the reserve that are in use already
 */
export function openQueue(control: Control, reserve: Reserve, start: number, room: number, skip = 0): void {
  const wanted = Math.min(room + QUEUE_SPARE, MAX_FRAMES - start);
  const places = reserve.list(listViews(control).places.subarray(start), wanted, skip);
  control.store(MACHINE_QUEUE_CURSOR, start);
  control.store(MACHINE_QUEUE_ROOM, start + Math.max(0, places - QUEUE_SPARE));
  control.store(MACHINE_QUEUE_END, start + places);
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
