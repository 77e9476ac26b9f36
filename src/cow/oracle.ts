/**
 * The oracle (test runs): at the stop, every frame that was streamed and bears no mark is hashed again and must be what
 * was streamed. A store that bypassed tracking shows here, by the number of its frame.
 */
import { HibernaculumError } from "../base/errors.js";
import { DIRTY_BITMAP, FRAME_BYTES, KEPT_BITMAP, PLANNED_BITMAP, RAM_BASE, SAVEABLE_BITMAP } from "../base/layout.js";
import { bit, type Control } from "../base/control.js";
import type { Pfn } from "../base/memory.js";
import type { Core } from "../vm/memory/core.js";

/** Hashes by frame, as page writers leave them here. 0 stands for "not streamed". */
export function createOracle(frames: number): SharedArrayBuffer {
  return new SharedArrayBuffer(frames * 8);
}

/**
 * Checks every unmarked frame of the image; everything is stopped.
 *
 * @returns the number of frames checked
 * @throws HIB_ORACLE, naming the first frames that changed without a mark
 */
export function checkOracle(control: Control, core: Core, oracle: SharedArrayBuffer): number {
  const hashes = new Float64Array(oracle);
  const { words } = control;
  let checked = 0;
  const wrong = [];
  for (let frame = 0; frame < hashes.length; frame++) {
    if (
      bit(words, SAVEABLE_BITMAP, frame) === 0 ||
      bit(words, PLANNED_BITMAP, frame) === 0 ||
      bit(words, KEPT_BITMAP, frame) === 1 ||
      bit(words, DIRTY_BITMAP, frame) === 1
    )
      continue;
    checked++;
    if (core.hashFrame(RAM_BASE + frame * FRAME_BYTES) !== hashes[frame]) wrong.push(frame);
  }
  refuse(wrong, "changed after they were read");
  return checked;
}

/**
 * Checks every frame that is left to the image since which stores are tracked; everything is stopped.
 *
 * @param equals - whether a frame is as that image has it
 * @returns the number of frames checked
 * @throws HIB_ORACLE
 */
export function checkKept({ words }: Control, frames: number, equals: (frame: Pfn) => boolean): number {
  const wrong = [];
  let checked = 0;
  for (let frame = 0; frame < frames; frame++) {
    if (bit(words, KEPT_BITMAP, frame) === 0 || bit(words, DIRTY_BITMAP, frame) === 1) continue;
    checked++;
    if (!equals(frame)) wrong.push(frame);
  }
  refuse(wrong, "changed since the last image");
  return checked;
}

function refuse(frames: readonly Pfn[], how: string): void {
  if (frames.length === 0) return;
  const names = frames.slice(0, 8).join(", ");
  throw new HibernaculumError("HIB_ORACLE", `${frames.length} frames ${how} and bear no mark: ${names}`);
}
