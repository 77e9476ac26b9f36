/**
 * The walker: all blocks of a machine by way of its arenas, with owner and kind from each block's header (S0.1).
 *
 * Works on live RAM and on an image. On a running machine it is a guess (blocks split and merge under it): it then
 * only serves to plan, and what it got wrong is put right at the stop.
 */
import type { Pfn, ReadableMemory } from "../base/memory.js";
import {
  ARENA_FRAMES, BLOCK_FREE, BLOCK_USED, FRAME_ENTRY_BYTES, FRAME_HEADER, FRAME_OWNER, kernelLayout, MAX_ORDER,
} from "./kernel-layout.js";

export interface Block {
  frame: Pfn;
  order: number;
  state: "free" | "used";
  owner: number;
  kind: number;
}

/** Blocks in the order of their frames. A frame that is no head of a block (a machine in motion) is stepped over. */
export function* walkBlocks(memory: ReadableMemory): Generator<Block> {
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
      yield {
        frame,
        order,
        state: state === BLOCK_USED ? "used" : "free",
        owner: memory.load32(entry + FRAME_OWNER),
        kind: header >>> 16,
      };
      frame += 1 << order;
    }
  }
}
