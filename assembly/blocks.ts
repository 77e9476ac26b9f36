/**
 * The buddy allocator's blocks: lists, splits and merges, once a frame. What must hold, and which arena's block to take back when
 * there is none, is said in src/vm/memory/buddy.ts. Callers hold the kernel lock, and every store is one of the kernel's.
 */
import { FRAME_SHIFT, MACHINE_FRAMES, SAVEABLE_BITMAP } from "../src/base/layout";
import {
  ARENA_BYTES, ARENA_FRAMES, ARENA_FREE_FRAMES, ARENA_HEADS, BLOCK_FREE, BLOCK_TAIL, BLOCK_USED, FRAME_ENTRY_BYTES, FRAME_HEADER,
  FRAME_NEXT, FRAME_OWNER, FRAME_PREVIOUS, FRAME_REFERENCES, KERNEL_FREE_FRAMES, MAX_ORDER, SAVED_KINDS,
} from "../src/vm/memory/block-layout";
import { clearBits, kernelStore32, setBits } from "./frames";
import { forgetMissing } from "./missing";
import { physical } from "./ram";

const NO_FRAME: i32 = -1;

let arenas: u32 = 0;
let arenaTable: u32 = 0;
let frameTable: u32 = 0;

/** Says where the tables are. */
export function bindBlocks(count: u32, arenaAt: u32, frameAt: u32): void {
  arenas = count;
  arenaTable = arenaAt;
  frameTable = frameAt;
}

// @ts-ignore: decorator
@inline
function word(at: u32): u32 { return load<u32>(physical(at)); }

// @ts-ignore: decorator
@inline
function entryOf(frame: u32): u32 { return frameTable + frame * FRAME_ENTRY_BYTES; }

// @ts-ignore: decorator
@inline
function headerOf(frame: u32): u32 { return word(entryOf(frame) + FRAME_HEADER); }

// @ts-ignore: decorator
@inline
export function orderOf(frame: u32): u32 { return (headerOf(frame) >>> 8) & 0xff; }

// @ts-ignore: decorator
@inline
export function kindOf(frame: u32): u32 { return headerOf(frame) >>> 16; }

// @ts-ignore: decorator
@inline
export function referencesOf(head: u32): u32 { return word(entryOf(head) + FRAME_REFERENCES); }

// @ts-ignore: decorator
@inline
function isSaved(kind: u32): bool { return ((SAVED_KINDS >>> kind) & 1) != 0; }

// @ts-ignore: decorator
@inline
function setHeader(frame: u32, state: u32, order: u32, kind: u32): void {
  kernelStore32(entryOf(frame) + FRAME_HEADER, state | (order << 8) | (kind << 16));
}

function countFree(arena: u32, frames: i32): void {
  const at = arenaTable + arena * ARENA_BYTES + ARENA_FREE_FRAMES;
  kernelStore32(at, word(at) + frames);
  kernelStore32(KERNEL_FREE_FRAMES, word(KERNEL_FREE_FRAMES) + frames);
}

// @ts-ignore: decorator
@inline
function listOf(arena: u32, order: u32): u32 { return arenaTable + arena * ARENA_BYTES + ARENA_HEADS + (order << 2); }

/** Makes a block free, and the first of its list. */
export function insertFree(frame: u32, order: u32): void {
  const arena = frame / ARENA_FRAMES;
  const list = listOf(arena, order);
  const next = word(list);
  setHeader(frame, BLOCK_FREE, order, 0);
  kernelStore32(entryOf(frame) + FRAME_OWNER, 0);
  kernelStore32(entryOf(frame) + FRAME_NEXT, next);
  kernelStore32(entryOf(frame) + FRAME_PREVIOUS, 0);
  if (next != 0) kernelStore32(entryOf(next - 1) + FRAME_PREVIOUS, frame + 1);
  kernelStore32(list, frame + 1);
  countFree(arena, 1 << order);
}

/** Takes a free block out of its list. */
export function removeFree(frame: u32, order: u32): void {
  const arena = frame / ARENA_FRAMES;
  const next = word(entryOf(frame) + FRAME_NEXT);
  const previous = word(entryOf(frame) + FRAME_PREVIOUS);
  if (next != 0) kernelStore32(entryOf(next - 1) + FRAME_PREVIOUS, previous);
  if (previous != 0) kernelStore32(entryOf(previous - 1) + FRAME_NEXT, next);
  else kernelStore32(listOf(arena, order), next);
  setHeader(frame, BLOCK_TAIL, 0, 0);
  countFree(arena, -(1 << order));
}

/** Makes a block that is in no list used, and held once. */
export function useBlock(frame: u32, order: u32, owner: u32, kind: u32): void {
  setHeader(frame, BLOCK_USED, order, kind);
  kernelStore32(entryOf(frame) + FRAME_OWNER, owner);
  kernelStore32(entryOf(frame) + FRAME_REFERENCES, 1);
  if (isSaved(kind)) setBits(SAVEABLE_BITMAP, frame, 1 << order);
}

/** Allocates a block of 2^order frames from what is free; -1 if no block is large enough. */
export function allocateFree(order: u32, owner: u32, kind: u32): i32 {
  for (let arena: u32 = 0; arena < arenas; arena++) {
    if (word(arenaTable + arena * ARENA_BYTES + ARENA_FREE_FRAMES) < <u32>1 << order) continue;
    for (let larger = order; larger <= <u32>MAX_ORDER; larger++) {
      const link = word(listOf(arena, larger));
      if (link == 0) continue;
      const frame = link - 1;
      removeFree(frame, larger);
      for (let half = larger; half > order; ) {
        half--;
        insertFree(frame + (1 << half), half);
      }
      useBlock(frame, order, owner, kind);
      return frame;
    }
  }
  return NO_FRAME;
}

/** Frees a used block. */
export function freeBlock(frame: u32): void {
  const order = orderOf(frame);
  forgetMissing(frame, 1 << order);
  if (isSaved(kindOf(frame))) clearBits(SAVEABLE_BITMAP, frame, 1 << order);
  setHeader(frame, BLOCK_TAIL, 0, 0);
  mergeFree(frame, order);
}

/** Frees used blocks of one frame each, one after another and of one kind, in pieces as large as can be. */
export function freeRun(from: u32, to: u32): void {
  if (from == to) return;
  forgetMissing(from, to - from);
  if (isSaved(kindOf(from))) clearBits(SAVEABLE_BITMAP, from, to - from);
  for (let frame = from; frame < to; frame++) setHeader(frame, BLOCK_TAIL, 0, 0);
  while (from < to) {
    const order: u32 = min<u32>(min<u32>(ctz(from | (1 << MAX_ORDER)), MAX_ORDER), 31 - clz(to - from));
    mergeFree(from, order);
    from += 1 << order;
  }
}

/** Puts a block that is in no list into one, merging it with free buddies. */
function mergeFree(first: u32, order: u32): void {
  const frames = load<u32>(MACHINE_FRAMES);
  while (order < <u32>MAX_ORDER) {
    const buddy = first ^ (1 << order);
    if (buddy + (1 << order) > frames) break;
    if ((headerOf(buddy) & 0xffff) != (BLOCK_FREE | (order << 8))) break;
    removeFree(buddy, order);
    first = min(first, buddy);
    order++;
  }
  insertFree(first, order);
}

/** First frame of the used block that a frame lies in; -1 if it lies in none. */
export function headOf(frame: u32): i32 {
  for (let order: u32 = 0; order <= <u32>MAX_ORDER; order++) {
    const head = frame & ~((1 << order) - 1);
    const header = headerOf(head);
    if ((header & 0xff) == BLOCK_USED && ((header >>> 8) & 0xff) >= order) return head;
  }
  return NO_FRAME;
}

/** As `headOf`, of a frame that a leaf maps. */
export function mappedHead(frame: u32): u32 {
  const head = headOf(frame);
  if (head < 0) unreachable();
  return head;
}

/** Makes a used block 2^order blocks of one frame each, with the same owner, kind and references. */
export function splitBlock(head: u32): void {
  const order = orderOf(head);
  if (order == 0) return;
  const kind = kindOf(head);
  const owner = word(entryOf(head) + FRAME_OWNER);
  const references = referencesOf(head);
  for (let frame = head; frame < head + (1 << order); frame++) {
    setHeader(frame, BLOCK_USED, 0, kind);
    kernelStore32(entryOf(frame) + FRAME_OWNER, owner);
    kernelStore32(entryOf(frame) + FRAME_REFERENCES, references);
  }
}

/** One more holds it; who was its owner is not its only holder any more. */
export function shareBlock(head: u32): void {
  kernelStore32(entryOf(head) + FRAME_REFERENCES, referencesOf(head) + 1);
  setOwner(head, 0);
}

/** One fewer holds it; the last one frees it. */
export function releaseBlock(head: u32): void {
  const references = referencesOf(head) - 1;
  if (references == 0) freeBlock(head);
  else kernelStore32(entryOf(head) + FRAME_REFERENCES, references);
}

export function setOwner(head: u32, owner: u32): void { kernelStore32(entryOf(head) + FRAME_OWNER, owner); }

/** Changes what a used block is for; whether it is saved follows. */
export function setKind(head: u32, kind: u32): void {
  const order = orderOf(head);
  setHeader(head, BLOCK_USED, order, kind);
  if (isSaved(kind)) setBits(SAVEABLE_BITMAP, head, 1 << order);
  else clearBits(SAVEABLE_BITMAP, head, 1 << order);
}
