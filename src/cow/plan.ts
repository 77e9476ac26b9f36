/**
 * The plan of a save: which frames to stream. The walker's blocks of kinds that belong to an image, as a bitmap and as
 * a list that page writers claim from. On a running machine it is a guess; the residual set puts it right.
 */
import type { Control } from "../base/control.js";
import { PLANNED_BITMAP } from "../base/layout.js";
import type { Core } from "../vm/core.js";
import { isSaved } from "../vm/kernel-layout.js";
import type { PhysicalMemory } from "../vm/physical.js";
import { visitBlocks } from "../vm/walker.js";
import { claimable } from "./atomic-copy.js";

/** Lists the frames to stream and opens them to claims; returns their number. */
export function planFrames(control: Control, core: Core, memory: PhysicalMemory): number {
  core.clearBitmap(PLANNED_BITMAP);
  visitBlocks(memory, (frame, order, used, _owner, kind) => {
    if (used && isSaved(kind)) core.setBits(PLANNED_BITMAP, frame, Math.min(1 << order, memory.frames - frame), 1);
  });
  const frames = core.listBitmap(PLANNED_BITMAP);
  claimable(control, 0, frames);
  return frames;
}
