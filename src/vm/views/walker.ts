/**
 * The walker: all blocks of a machine by way of its arenas, with owner and kind from each block's header (S0.1).
 *
 * Works on live RAM and on an image. On a running machine it is a guess (blocks split and merge under it): it then
 * only serves to plan, and what it got wrong is put right at the stop.
 */
import type { Pfn, ReadableMemory } from "../../base/memory.js";
import {
  ARENA_FRAMES,
  BLOCK_FREE,
  BLOCK_USED,
  FRAME_ENTRY_BYTES,
  FRAME_HEADER,
  FRAME_OWNER,
  kernelLayout,
  MAX_ORDER,
} from "../memory/kernel-layout.js";

/** Called for each block: its first frame, order, its use, its owner's pid (0: the kernel), its kind. */
export type VisitBlock = (frame: Pfn, order: number, use: "used" | "free", owner: number, kind: number) => void;

/** Visits blocks in the order of their frames. A frame that begins no block (a machine in motion) is stepped over. */
export function visitBlocks(memory: Pick<ReadableMemory, "frames" | "load32">, visit: VisitBlock): void {
  const layout = kernelLayout(memory.frames);
  for (let arena = 0; arena < layout.arenas; arena++) {
    const end = Math.min((arena + 1) * ARENA_FRAMES, layout.frames);
    let frame = arena * ARENA_FRAMES;
    while (frame < end) {
      const entry = layout.frameTable + frame * FRAME_ENTRY_BYTES;
      const header = memory.load32(entry + FRAME_HEADER);
      const state = header & 0xff;
      const order = (header >>> 8) & 0xff;
      if ((state !== BLOCK_USED && state !== BLOCK_FREE) || order > MAX_ORDER) {
        frame++;
        continue;
      }
      visit(frame, order, state === BLOCK_USED ? "used" : "free", memory.load32(entry + FRAME_OWNER), header >>> 16);
      frame += 1 << order;
    }
  }
}

/** First frames of the used blocks of a kind. */
export function blocksOfKind(memory: ReadableMemory, wanted: number): Pfn[] {
  const found: Pfn[] = [];
  visitBlocks(memory, (frame, _order, use, _owner, kind) => {
    if (use === "used" && kind === wanted) found.push(frame);
  });
  return found;
}
