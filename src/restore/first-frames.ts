/**
 * What a lazy resume loads before the first instruction: all but the pages of processes. The kernel's own frames are read and stored to
 * directly, and they are what is examined (S2.2). Pages that are in files of the host come with them: a file may be renamed or changed
 * once the machine runs.
 */
import { type Control, countBits } from "../base/control.js";
import { MISSING_BITMAP } from "../base/layout.js";
import type { PhysicalAddress, ReadableMemory } from "../base/memory.js";
import { type ExtentTable, REFERENCED } from "../image/extents.js";
import type { Core } from "../vm/memory/core.js";
import { FRAME_ENTRY_BYTES, isUserKind, kernelLayout } from "../vm/memory/kernel-layout.js";
import { visitBlocks } from "../vm/views/walker.js";
import type { LoadTask } from "./page-loader.js";

/**
 * Fills MISSING_BITMAP with what can come later; returns how many frames those are. What the image's allocator says is not examined yet:
 * if it is wrong, whatever is left out for it, the examination finds it.
 *
 * @throws HIB_CORRUPT and others of who reads an image
 */
export function leaveOut(core: Core, image: ReadableMemory, extents: ExtentTable): number {
  const { frameTable, staticFrames } = kernelLayout(image.frames);
  core.clearBitmap(MISSING_BITMAP);
  let from = staticFrames; // where a run of users' blocks begins that ends at `end`
  let end = from;
  const table = new Int32Array(image.read(frameTable, image.frames * FRAME_ENTRY_BYTES).buffer);
  const load32 = (address: PhysicalAddress): number => table[(address - frameTable) >>> 2]!;
  visitBlocks({ frames: image.frames, load32 }, (frame, order, use, _owner, kind) => {
    if (use !== "used" || !isUserKind(kind) || frame < staticFrames) return;
    if (frame !== end) {
      core.setBits(MISSING_BITMAP, from, end - from);
      from = frame;
    }
    end = Math.min(frame + (1 << order), image.frames);
  });
  core.setBits(MISSING_BITMAP, from, end - from);
  keepOnly(core, extents, image.frames);
  return core.countBits(MISSING_BITMAP);
}

/** What is not in the image, or in a file of the host, is not left out. */
function keepOnly(core: Core, extents: ExtentTable, frames: number): void {
  let end = 0;
  for (let i = 0; i < extents.length; i++) {
    const first = extents.pfn[i]!;
    const next = first + extents.frames[i]!;
    core.clearBits(MISSING_BITMAP, end, first - end);
    if (extents.chunk[i] === REFERENCED) core.clearBits(MISSING_BITMAP, first, next - first);
    end = next;
  }
  core.clearBits(MISSING_BITMAP, end, frames - end);
}

/** The part of a task that is left: chunks and extents that have a frame that is not left out. */
export function withoutLeftOut(task: LoadTask, { words }: Control): LoadTask {
  const { extents, filled, order, start, wanted } = task;
  const isWanted = (i: number): boolean =>
    countBits(words, MISSING_BITMAP, extents.pfn[i]!, extents.frames[i]!) < extents.frames[i]!;
  return {
    ...task,
    wanted: wanted.filter((number) => order.subarray(start[number]!, start[number + 1]!).some(isWanted)),
    filled: filled.filter(isWanted),
  };
}
