/**
 * The plan of a save: which frames to stream. The walker's blocks of kinds that belong to an image, as a bitmap and as
 * a list that page writers claim from. On a running machine it is a guess; the residual set puts it right.
 */
import { KEPT_BITMAP, KERNEL_BITMAP, PLANNED_BITMAP } from "../base/layout.js";
import type { Core } from "../vm/memory/core.js";
import { isSaved, isUserKind } from "../vm/memory/kernel-layout.js";
import type { PhysicalMemory } from "../vm/memory/physical.js";
import { visitBlocks } from "../vm/views/walker.js";
import type { Claims } from "./claims.js";

/**
 * Plans to stream nothing: all that belongs to the image is in the residual set, but for what the last image has. Which frames hold the kernel's data is noted, for the
 * order of the list.
 */
export function planNothing(core: Core, memory: PhysicalMemory): void {
  core.copyBitmap(PLANNED_BITMAP, KEPT_BITMAP); // only marks count of what is in another image
  core.clearBitmap(KERNEL_BITMAP);
  visitBlocks(memory, (frame, order, use, _owner, kind) => {
    if (use !== "free" && isSaved(kind) && !isUserKind(kind))
      core.setBits(KERNEL_BITMAP, frame, Math.min(1 << order, memory.frames - frame));
  });
}

/**
 * Lists the frames to stream and opens them to claims; returns their number.
 *
 * @param more - adds frames that the walker does not know of to PLANNED_BITMAP
 */
export function planFrames(claims: Claims, core: Core, memory: PhysicalMemory, more: () => void = () => undefined): number {
  core.clearBitmap(PLANNED_BITMAP);
  core.clearBitmap(KERNEL_BITMAP);
  visitBlocks(memory, (frame, order, use, _owner, kind) => {
    if (use === "free" || !isSaved(kind)) return;
    const count = Math.min(1 << order, memory.frames - frame);
    core.setBits(PLANNED_BITMAP, frame, count);
    if (!isUserKind(kind)) core.setBits(KERNEL_BITMAP, frame, count);
  });
  more();
  const frames = core.listPlanned(); // without KEPT_BITMAP
  core.mergeBits(PLANNED_BITMAP, KEPT_BITMAP); // of a frame that is in another image, only marks count
  claims.open(0, frames);
  return frames;
}
