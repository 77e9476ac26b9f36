/** Frames that the atomic restore must put in place and that found no place in the queue: the reserve was too small. */
import { bit, type Control } from "../base/control.js";
import { DIRECT_BITMAP, CLAIMED_BITMAP, IMAGE_BITMAP, KEEP_BITMAP, MISSING_BITMAP } from "../base/layout.js";
import type { Pfn } from "../base/memory.js";
import type { Claims } from "../cow/claims.js";
import type { ImageMemory } from "../image/image-memory.js";

export interface LateFrame {
  frame: Pfn;
  bytes: Uint8Array;
}

/** Reads them from the image once more, if there are any. Everything is stopped; what is queued is not among them. */
export function readLateFrames({ words }: Control, claims: Claims, open: () => ImageMemory): LateFrame[] {
  if (claims.queue.refused === 0) return [];
  const image = open();
  const inQueue = new Set<Pfn>();
  claims.visitQueued((frame) => inQueue.add(frame));
  const late: LateFrame[] = [];
  for (let frame = 0; frame < image.frames; frame++) {
    if (bit(words, IMAGE_BITMAP, frame) === 0 || bit(words, MISSING_BITMAP, frame) === 1) continue;
    if (bit(words, DIRECT_BITMAP, frame) === 1 || inQueue.has(frame)) continue;
    if (bit(words, KEEP_BITMAP, frame) === 1 && bit(words, CLAIMED_BITMAP, frame) === 0) continue;
    late.push({ frame, bytes: image.readFrame(frame).slice() });
  }
  return late;
}
