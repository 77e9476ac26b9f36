/**
 * Which frames of an image can be loaded directly (S1.6), and which are in use here (S1.7).
 *
 * Frames that are free now and used in the image are allocated, so that nothing of the booting machine gets them, and
 * loaded where they belong. All other frames of the image hold something of the booting machine.
 */
import { countBits } from "../base/control.js";
import { DIRECT_BITMAP, IMAGE_BITMAP, MISSING_BITMAP } from "../base/layout.js";
import type { Pfn } from "../base/memory.js";
import type { ExtentTable } from "../image/extents.js";
import { KIND_LOADING } from "../vm/memory/kernel-layout.js";
import type { Kernel } from "../vm/kernel.js";
import { blocksOfKind, visitBlocks } from "../vm/views/walker.js";

export interface Classified {
  /** Frames of the image that were free here and are allocated now. */
  direct: number;
  /** Frames of the image that are used here. */
  conflicts: number;
}

/**
 * Fills IMAGE_BITMAP and DIRECT_BITMAP, and allocates what is to be loaded directly: of what is not left out for later
 * (MISSING_BITMAP).
 *
 * @param reserve - takes its places, under the same hold of the kernel lock: were a frame of the image freed in between, it
 * could become a place, and the atomic restore would read it and write it at once
 */
export function classify(kernel: Kernel, extents: ExtentTable, reserve: (conflicts: number) => void): Classified {
  const { core, control } = kernel;
  core.clearBitmap(IMAGE_BITMAP);
  core.clearBitmap(DIRECT_BITMAP);
  for (let i = 0; i < extents.length; i++) core.setBits(IMAGE_BITMAP, extents.pfn[i]!, extents.frames[i]!);
  const inImage = (frame: Pfn, order: number): "all" | "none" | "part" => {
    const found = countBits(control.words, IMAGE_BITMAP, frame, 1 << order, MISSING_BITMAP);
    if (found === 0) return "none";
    if (found < 1 << order) return "part";
    core.setBits(DIRECT_BITMAP, frame, 1 << order);
    return "all";
  };
  return control.locked(() => {
    const free: { frame: Pfn; order: number }[] = [];
    visitBlocks(kernel.memory, (frame, order, use) => {
      if (use === "free") free.push({ frame, order });
    });
    for (const { frame, order } of free) kernel.buddy.carve(frame, order, 0, KIND_LOADING, inImage);
    const direct = core.countBits(DIRECT_BITMAP);
    const conflicts = core.countBits(IMAGE_BITMAP) - core.countBits(MISSING_BITMAP) - direct;
    reserve(conflicts);
    return { direct, conflicts };
  });
}

/** Gives back what `classify` allocated: the resume failed, and the boot goes on. */
export function declassify(kernel: Kernel): void {
  kernel.control.locked(() => {
    for (const frame of blocksOfKind(kernel.memory, KIND_LOADING)) kernel.buddy.free(frame);
  });
}
