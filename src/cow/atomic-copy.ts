/**
 * The atomic copy (S1.4): with every vCPU stopped, the residual set is copied into the reserve, by all vCPUs at once.
 *
 * The residual set is every frame that belongs to the image at this instant and whose streamed bytes may not be its
 * bytes: marked since armed, or allocated since the plan was made.
 */
import type { Control } from "../base/control.js";
import { hostNow } from "../base/control.js";
import {
  COMMAND_GATHER,
  COMMAND_SCATTER,
  LIST_FRAMES,
  LIST_PLACES,
  MACHINE_CURSOR,
  MACHINE_LIST_LENGTH,
  MAX_FRAMES,
  SAVEABLE_BITMAP,
  STOP_BITMAP,
} from "../base/layout.js";
import type { Core } from "../vm/memory/core.js";
import { placeOfFrame } from "../vm/memory/physical.js";
import type { Quiesce } from "./quiesce.js";

export interface AtomicCopy {
  /** Frames of the residual set. */
  frames: number;
  /** Of these, how many were copied. The rest stay listed behind them. */
  copied: number;
  /** Time for the list and the copy, ms. */
  list_ms: number;
  copy_ms: number;
}

/**
 * Copies the residual set, or its first `limit` frames, to the places that the first entries of LIST_PLACES name already;
 * LIST_FRAMES then says whose bytes of this instant are there.
 */
export function atomicCopy(control: Control, core: Core, quiesce: Quiesce, limit: number): AtomicCopy {
  const began = hostNow();
  core.copyBitmap(STOP_BITMAP, SAVEABLE_BITMAP);
  const frames = core.listResidual();
  const copied = Math.min(frames, limit);
  const listed = hostNow();
  claimable(control, 0, copied);
  if (copied > 0) quiesce.command(COMMAND_GATHER, () => core.gather());
  return { frames, copied, list_ms: listed - began, copy_ms: hostNow() - listed };
}

/** Makes list entries [from, to) their own places: nobody changes them until they are written. */
export function placeInOwnFrames(control: Control, from: number, to: number): void {
  const lists = listViews(control);
  for (let i = from; i < to; i++) lists.places[i] = placeOfFrame(lists.frames[i]!);
}

/** The atomic restore: list entries from their places to their frames, by all vCPUs at once. Everything is stopped. */
export function atomicRestore(control: Control, core: Core, quiesce: Quiesce, entries: number): void {
  claimable(control, 0, entries);
  quiesce.command(COMMAND_SCATTER, () => core.scatter());
}

/** Opens the list entries [from, to) to claims. */
export function claimable(control: Control, from: number, to: number): void {
  control.store(MACHINE_LIST_LENGTH, to);
  control.store(MACHINE_CURSOR, from);
}

/** The lists of frames and of places, as views of the control area. */
export function listViews(control: Control): { frames: Int32Array; places: Int32Array } {
  return {
    frames: control.words.subarray(LIST_FRAMES >>> 2, (LIST_FRAMES >>> 2) + MAX_FRAMES),
    places: control.words.subarray(LIST_PLACES >>> 2, (LIST_PLACES >>> 2) + MAX_FRAMES),
  };
}
