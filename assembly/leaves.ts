/**
 * The leaves of an address space, many at a time: what fork, mprotect, munmap and the end of a process do once a page. What must hold
 * of leaves is said in src/vm/memory/address-space.ts.
 *
 * Each loop takes on so many leaves at most and returns the first page that it has not looked at. What it has done by then is whole,
 * so its caller may go on later. Pages are counted in 4 KiB; ranges do not end within a 2 MiB leaf. Callers hold the kernel lock.
 */
import { FRAME_SHIFT, PTE_COW, PTE_PARKED, PTE_PPN_SHIFT, PTE_R, PTE_U, PTE_V, PTE_W, PTE_X } from "../src/base/layout";
import { KIND_USER, UNWRITTEN_KINDS } from "../src/vm/memory/block-layout";
import { freeBlock, freeRun, kindOf, mappedHead, orderOf, referencesOf, releaseBlock, setKind, setOwner, shareBlock, splitBlock } from "./blocks";
import { kernelCopy, kernelStore32, kernelZero } from "./frames";
import { invalidate } from "./mmu";
import { addressOf, frameAt } from "./ram";

const PERMISSIONS: u32 = PTE_R | PTE_W | PTE_X;
const FLAGS: u32 = (1 << PTE_PPN_SHIFT) - 1;
const HUGE_PAGES: u32 = 512;

/** Leaves that the last loop has taken on. */
export let taken: u32 = 0;

/** The leaf that was found last: the byte address of its PTE, and its level. */
let leaf: usize = 0;
let level: u32 = 0;

// @ts-ignore: decorator
@inline
function tableOf(pte: u32): usize { return frameAt(pte >>> PTE_PPN_SHIFT); }

// @ts-ignore: decorator
@inline
function isLeaf(pte: u32): bool { return (pte & (PERMISSIONS | PTE_PARKED)) != 0; }

/** Finds the first leaf of [page, last) that maps something, parked ones too; returns its page, or `last` if there is none. */
function nextLeaf(root: usize, page: u32, last: u32): u32 {
  while (page < last) {
    const top = load<u32>(root + ((page >>> 18) << 3));
    if ((top & PTE_V) == 0) {
      page = ((page >>> 18) + 1) << 18;
      continue;
    }
    const middle = tableOf(top) + (((page >>> 9) & 511) << 3);
    const pte = load<u32>(middle);
    if (isLeaf(pte)) {
      leaf = middle;
      level = 1;
      return page;
    }
    const end = min(last, (page | 511) + 1);
    if ((pte & PTE_V) != 0) {
      for (const table = tableOf(pte); page < end; page++) {
        const at = table + ((page & 511) << 3);
        if (!isLeaf(load<u32>(at))) continue;
        leaf = at;
        level = 0;
        return page;
      }
    }
    page = end;
  }
  return last;
}

/** Where a leaf of this level is for a page; 0 if a table is missing. */
function placeOf(root: usize, page: u32, leafLevel: u32): usize {
  const top = load<u32>(root + ((page >>> 18) << 3));
  if ((top & PTE_V) == 0) return 0;
  const middle = tableOf(top) + (((page >>> 9) & 511) << 3);
  if (leafLevel == 1) return middle;
  const pte = load<u32>(middle);
  return (pte & PTE_V) == 0 ? 0 : tableOf(pte) + ((page & 511) << 3);
}

// @ts-ignore: decorator
@inline
function put(at: usize, pte: u32): void { kernelStore32(addressOf(at), pte); }

// @ts-ignore: decorator
@inline
function pagesOf(leafLevel: u32): u32 { return leafLevel == 0 ? 1 : HUGE_PAGES; }

/** Drops the tags of pages of the process that runs on this thread, if one does. */
export function invalidatePages(page: u32, count: u32): void {
  for (let i: u32 = 0; i < count; i++) invalidate((page + i) << FRAME_SHIFT);
}

/** Maps consecutive frames with these flags. Returns the first page that has no table. */
export function mapRun(root: u32, page: u32, frame: u32, count: u32, flags: u32): u32 {
  const valid = (flags & PTE_PARKED) == 0 ? PTE_V : 0;
  const last = page + count;
  for (; page < last; page++, frame++) {
    const at = placeOf(frameAt(root), page, 0);
    if (at == 0) break;
    put(at, (frame << PTE_PPN_SHIFT) | flags | valid);
  }
  return page;
}

/**
 * What a leaf of an area may be. A and D stay as they are, and a frame that nobody else holds any more, neither another process nor an
 * object, becomes this process's.
 */
export function leafFlags(pte: u32, frame: u32, leafLevel: u32, permissions: u32, shared: bool, pid: u32): u32 {
  const flags = (pte & FLAGS & ~(PERMISSIONS | PTE_COW | PTE_PARKED | PTE_V)) | permissions | PTE_U;
  if (permissions == 0) return flags | PTE_PARKED;
  if (shared) return ((UNWRITTEN_KINDS >>> kindOf(mappedHead(frame))) & 1) != 0 ? flags & ~PTE_W : flags;
  if ((flags & PTE_W) == 0) return flags;
  const head = leafLevel == 0 ? mappedHead(frame) : frame;
  if (referencesOf(head) > 1) return (flags & ~PTE_W) | PTE_COW;
  setOwner(head, pid);
  if (kindOf(head) != KIND_USER) setKind(head, KIND_USER);
  return flags;
}

/** Gives the leaves of an area's pages the permissions that the area has now. */
export function protectLeaves(root: u32, page: u32, last: u32, permissions: u32, shared: bool, pid: u32, most: u32): u32 {
  taken = 0;
  for (page = nextLeaf(frameAt(root), page, last); page < last; page = nextLeaf(frameAt(root), page, last)) {
    if (taken == most) return page;
    const pte = load<u32>(leaf);
    const frame = pte >>> PTE_PPN_SHIFT;
    const flags = leafFlags(pte, frame, level, permissions, shared, pid);
    put(leaf, (frame << PTE_PPN_SHIFT) | flags | ((flags & PTE_PARKED) == 0 ? PTE_V : 0));
    invalidatePages(page, pagesOf(level));
    page += pagesOf(level);
    taken++;
  }
  return last;
}

/**
 * Gives a child the leaves of an area's pages: frames are shared, and private ones are copied by whoever stores to them first. Stops
 * at a page for which the child has no table. The parent's tags stay: they are to be dropped.
 */
export function shareLeaves(root: u32, page: u32, last: u32, child: u32, shared: bool, most: u32): u32 {
  taken = 0;
  for (page = nextLeaf(frameAt(root), page, last); page < last; page = nextLeaf(frameAt(root), page, last)) {
    if (taken == most) return page;
    const at = placeOf(frameAt(child), page, level);
    if (at == 0) return page;
    const pte = load<u32>(leaf);
    const frame = pte >>> PTE_PPN_SHIFT;
    if (level == 0) splitBlock(mappedHead(frame));
    const writable = !shared && (pte & PTE_W) != 0;
    const copied = writable ? (pte & ~PTE_W) | PTE_COW : pte;
    put(at, copied);
    if (writable) put(leaf, copied);
    shareBlock(frame);
    page += pagesOf(level);
    taken++;
  }
  return last;
}

/** Takes leaves out and lets go of their frames. A block that goes as a whole goes in one call, however few leaves that may take on. */
export function takeOutLeaves(root: u32, page: u32, last: u32, most: u32): u32 {
  /** A block that is freed as a whole, with its last leaf: the frames after `whole`, up to `end`. */
  let whole: u32 = 0;
  let end: u32 = 0;
  /** Frames that nobody holds any more, one after another: they are freed together. */
  let free: u32 = 0;
  let freeEnd: u32 = 0;
  taken = 0;
  for (page = nextLeaf(frameAt(root), page, last); page < last; page = nextLeaf(frameAt(root), page, last)) {
    const frame = load<u32>(leaf) >>> PTE_PPN_SHIFT;
    const within = frame > whole && frame < end;
    if (taken >= most && !within) break;
    taken++;
    put(leaf, 0);
    invalidatePages(page, pagesOf(level));
    if (level == 1) releaseBlock(frame);
    else if (within) {
      if (frame == end - 1) freeBlock(whole);
    } else {
      const head = mappedHead(frame);
      const frames: u32 = 1 << orderOf(head);
      // A block lies at consecutive addresses. If all of them go, it goes in one.
      if (frames > 1 && head == frame && page + frames <= last) {
        whole = head;
        end = head + frames;
      } else {
        splitBlock(head);
        if (referencesOf(frame) > 1 || kindOf(frame) != KIND_USER) releaseBlock(frame);
        else {
          if (frame != freeEnd) {
            freeRun(free, freeEnd);
            free = frame;
          }
          freeEnd = frame + 1;
        }
      }
    }
    page += pagesOf(level);
  }
  freeRun(free, freeEnd);
  return page;
}

/** Copies the pages of [page, page + count) to consecutive frames; those without a leaf are zeros there. */
export function copyPages(root: u32, page: u32, to: u32, count: u32): void {
  const last = page + count;
  for (; page < last; page++, to++) {
    const at = placeOf(frameAt(root), page, 0);
    const pte = at == 0 ? 0 : load<u32>(at);
    if (isLeaf(pte)) kernelCopy(to, pte >>> PTE_PPN_SHIFT, 1);
    else kernelZero(to, 1);
  }
}
