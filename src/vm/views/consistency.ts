/**
 * Is a machine consistent with itself? Buddy allocator, page tables and process table, read from memory: a live
 * machine's that is stopped, or an image's (S0.6). Shares no code with the allocator, only the layout.
 */
import { FRAME_BYTES, MAX_PROCESSES, PTE_COW, PTE_D, PTE_PARKED, PTE_R, PTE_U, PTE_V, PTE_W, PTE_X } from "../../base/layout.js";
import type { Pfn, PhysicalAddress, ReadableMemory } from "../../base/memory.js";
import { type StoredArea, walkAreas } from "../memory/area.js";
import { checkFiles } from "../files/check.js";
import * as K from "../memory/kernel-layout.js";
import { walkObject, walkObjectTables } from "../memory/memory-object.js";
import { walkLeaves, walkTables } from "../memory/page-table.js";
import { listProcesses, type Process } from "../tasks/process.js";

export interface Consistency {
  blocks: number;
  freeFrames: number;
  processes: number;
  mappedPages: number;
  /** What is wrong, a line each; empty if nothing is. At most PROBLEMS_MAX. */
  problems: string[];
}

const PROBLEMS_MAX = 20;

export function checkConsistency(memory: ReadableMemory): Consistency {
  const result: Consistency = { blocks: 0, freeFrames: 0, processes: 0, mappedPages: 0, problems: [] };
  const problem = (text: string): void => {
    if (result.problems.length < PROBLEMS_MAX) result.problems.push(text);
  };
  if (memory.load32(K.KERNEL_MAGIC_WORD) !== K.KERNEL_MAGIC || memory.load32(K.KERNEL_FRAMES) !== memory.frames) {
    problem("the kernel page is not a kernel's of this much RAM");
    return result;
  }
  const kinds = checkBuddy(memory, result, problem);
  checkProcesses(memory, kinds, result, problem);
  return result;
}

/** Kind, owner and first frame of the used block that a frame lies in; kind 0 for free frames. */
interface Kinds {
  kind: Uint8Array;
  head: Uint32Array;
  owner: Int32Array;
}

function checkBuddy(memory: ReadableMemory, result: Consistency, problem: (text: string) => void): Kinds {
  const layout = K.kernelLayout(memory.frames);
  const entry = (frame: Pfn) => layout.frameTable + frame * K.FRAME_ENTRY_BYTES;
  const kinds: Kinds = {
    kind: new Uint8Array(memory.frames),
    head: new Uint32Array(memory.frames),
    owner: new Int32Array(memory.frames),
  };
  for (let arena = 0; arena < layout.arenas; arena++) {
    const end = Math.min((arena + 1) * K.ARENA_FRAMES, memory.frames);
    const free = new Map<Pfn, number>();
    let freeFrames = 0;
    for (let frame = arena * K.ARENA_FRAMES; frame < end; ) {
      const header = memory.load32(entry(frame) + K.FRAME_HEADER);
      const state = header & 0xff;
      const order = (header >>> 8) & 0xff;
      if (
        (state !== K.BLOCK_FREE && state !== K.BLOCK_USED) ||
        order > K.MAX_ORDER ||
        frame % (1 << order) !== 0 ||
        frame + (1 << order) > end
      ) {
        problem(`frame ${frame} should begin a block and has header 0x${header.toString(16)}`);
        break; // the rest of the arena cannot be told
      }
      result.blocks++;
      if (state === K.BLOCK_FREE) {
        free.set(frame, order);
        freeFrames += 1 << order;
      } else {
        kinds.kind.fill(header >>> 16, frame, frame + (1 << order));
        kinds.head.fill(frame, frame, frame + (1 << order));
        kinds.owner.fill(memory.load32(entry(frame) + K.FRAME_OWNER), frame, frame + (1 << order));
      }
      frame += 1 << order;
    }
    for (const [frame, order] of free) {
      if (order < K.MAX_ORDER && free.get(frame ^ (1 << order)) === order)
        problem(`free buddies ${frame} and ${frame ^ (1 << order)} of order ${order} are not merged`);
    }
    const arenaAt = layout.arenaTable + arena * K.ARENA_BYTES;
    const counted = memory.load32(arenaAt + K.ARENA_FREE_FRAMES);
    if (counted !== freeFrames) problem(`arena ${arena} counts ${counted} free frames and has ${freeFrames}`);
    checkFreeLists(memory, arena, arenaAt, free, entry, problem);
    result.freeFrames += freeFrames;
  }
  const counted = memory.load32(K.KERNEL_FREE_FRAMES);
  if (counted !== result.freeFrames) problem(`the kernel counts ${counted} free frames and has ${result.freeFrames}`);
  return kinds;
}

function checkFreeLists(
  memory: ReadableMemory,
  arena: number,
  arenaAt: number,
  free: Map<Pfn, number>,
  entry: (frame: Pfn) => number,
  problem: (text: string) => void,
): void {
  for (let order = 0; order <= K.MAX_ORDER; order++) {
    let previous = 0;
    for (let link = memory.load32(arenaAt + K.ARENA_HEADS + order * 4); link !== 0; ) {
      const frame = link - 1;
      if (free.get(frame) !== order) {
        problem(`free list ${order} of arena ${arena} holds frame ${frame}, which begins no free block of that order`);
        break;
      }
      free.delete(frame);
      if (memory.load32(entry(frame) + K.FRAME_PREVIOUS) !== previous)
        problem(`frame ${frame} does not point back in free list ${order}`);
      previous = link;
      link = memory.load32(entry(frame) + K.FRAME_NEXT);
    }
  }
  if (free.size > 0)
    problem(`${free.size} free blocks of arena ${arena} are in no list, the first at frame ${[...free.keys()][0]}`);
}

/** What is held by leaves and memory objects, counted by frame. */
interface Holders {
  leaves: Uint32Array;
  objects: Uint32Array;
}

function checkProcesses(memory: ReadableMemory, kinds: Kinds, result: Consistency, problem: (text: string) => void): void {
  const counted = (): Uint32Array => new Uint32Array(memory.frames);
  const holders: Holders = { leaves: counted(), objects: counted() };
  const pids = new Set<number>();
  const tables = counted();
  const objects = new Map<PhysicalAddress, number>();
  if (memory.load32(K.KERNEL_SLOTS_USED) > MAX_PROCESSES) problem("the process table says it is larger than it is");
  for (const process of listProcesses(memory)) {
    result.processes++;
    if (pids.has(process.pid)) problem(`two processes have pid ${process.pid}`);
    pids.add(process.pid);
    for (const table of walkTables(memory, process.root)) {
      if (kinds.kind[table] !== K.KIND_PAGE_TABLE || kinds.owner[table] !== process.pid)
        problem(`page table ${table} of process ${process.pid} is a frame of another kind or owner`);
      if (tables[table]!++ > 0) problem(`page table ${table} is used twice`);
    }
    const areas = [...walkAreas(memory, process.areas)];
    checkAreas(process, areas, problem);
    for (const { object } of areas) if (object !== 0) objects.set(object, (objects.get(object) ?? 0) + 1);
    result.mappedPages += checkMappings(memory, process, areas, kinds, holders.leaves, problem);
  }
  for (const object of checkFiles(memory, objects, problem)) {
    if (!checkObjectTables(memory, object, kinds, tables, problem)) continue;
    for (const { frame } of walkObject(memory, object)) {
      if (frame < memory.frames) holders.objects[frame]!++;
      else problem(`a memory object holds frame ${frame}, which is beyond RAM`);
    }
  }
  checkHolders(memory, kinds, holders, tables, pids, problem);
}

/** False if a memory object's pages cannot be told. */
function checkObjectTables(
  memory: ReadableMemory,
  object: PhysicalAddress,
  kinds: Kinds,
  tables: Uint32Array,
  problem: (text: string) => void,
): boolean {
  for (const table of walkObjectTables(memory, object)) {
    if (kinds.kind[table] !== K.KIND_KERNEL_HEAP) {
      problem(`a memory object has a table in frame ${table}, which is of another kind`);
      return false;
    }
    if (tables[table]!++ === 0) continue;
    problem(`frame ${table} is a table of two memory objects`);
    return false;
  }
  return true;
}

/** Every frame of a user's kind is held as often as its block says, and every page table is used. */
function checkHolders(
  memory: ReadableMemory,
  kinds: Kinds,
  holders: Holders,
  tables: Uint32Array,
  pids: ReadonlySet<number>,
  problem: (text: string) => void,
): void {
  const layout = K.kernelLayout(memory.frames);
  for (let frame = 0; frame < memory.frames; frame++) {
    const kind = kinds.kind[frame]!;
    const held = holders.leaves[frame]! + holders.objects[frame]!;
    if (kind === K.KIND_PAGE_TABLE && tables[frame] === 0) problem(`page table ${frame} is in no address space`);
    if (!K.isUserKind(kind)) {
      if (held > 0) problem(`frame ${frame} of kind ${K.KIND_NAMES[kind]} is mapped`);
      continue;
    }
    const head = kinds.head[frame]!;
    const references = memory.load32(layout.frameTable + head * K.FRAME_ENTRY_BYTES + K.FRAME_REFERENCES);
    if (held !== references) problem(`frame ${frame} has ${references} references and is held by ${held}`);
    const owner = kinds.owner[frame]!;
    if (owner !== 0 && !pids.has(owner)) problem(`frame ${frame} belongs to process ${owner}, which is not there`);
    if (kind === K.KIND_USER && references > 1 && owner !== 0)
      problem(`frame ${frame} is shared and belongs to process ${owner}`);
  }
}

function checkAreas(process: Process, areas: readonly StoredArea[], problem: (text: string) => void): void {
  const sorted = [...areas].sort((a, b) => a.start - b.start);
  for (const [i, area] of sorted.entries()) {
    const where = `area 0x${area.start.toString(16)} of process ${process.pid}`;
    if (area.start >= area.end || area.start % FRAME_BYTES !== 0 || area.end % FRAME_BYTES !== 0) problem(`${where} is no range`);
    const next = sorted[i + 1];
    if (next !== undefined && area.end > next.start) problem(`${where} overlaps the next`);
  }
}

/** Checks the leaves of a process against its areas and counts who maps what; returns how many pages are mapped. */
function checkMappings(
  memory: ReadableMemory,
  process: Process,
  areas: readonly StoredArea[],
  kinds: Kinds,
  leaves: Uint32Array,
  problem: (text: string) => void,
): number {
  let pages = 0;
  let area = areas[0];
  let before = { address: 0, frame: 0 };
  for (const { address, frame, flags, level } of walkLeaves(memory, process.root)) {
    const where = (): string => `page 0x${address.toString(16)} of process ${process.pid}`;
    const frames = 512 ** level;
    if (frame + frames > memory.frames) {
      problem(`${where()} maps frame ${frame}, which is beyond RAM`);
      continue;
    }
    pages += frames;
    for (let i = 0; i < frames; i++) leaves[frame + i]!++;
    const kind = kinds.kind[frame]!;
    const owner = kinds.owner[frame]!;
    if (!K.isUserKind(kind) || (owner !== 0 && owner !== process.pid))
      problem(`${where()} maps frame ${frame} of another kind or owner`);
    if (level === 1 && kinds.head[frame] !== frame) problem(`${where()} maps 2 MiB that are no block`);
    // Who takes a block's pages away relies on it: they lie one after another.
    if (level === 0 && kinds.head[frame] !== frame && (before.frame !== frame - 1 || before.address !== address - FRAME_BYTES))
      problem(`${where()} maps frame ${frame} in the middle of a block, and the page before it another`);
    before = { address, frame };
    if (address % (FRAME_BYTES * frames) !== 0) problem(`${where()} is not aligned`);
    // Leaves come in the order of their addresses: most lie in the area of the one before.
    if (area === undefined || address < area.start || address >= area.end)
      area = areas.find(({ start, end }) => address >= start && address < end);
    if (area === undefined) problem(`${where()} lies in no area`);
    else checkFlags(where, area, flags, owner, kind, problem);
  }
  return pages;
}

/** What must hold of a leaf: see address-space.ts. */
function checkFlags(
  where: () => string,
  area: StoredArea,
  flags: number,
  owner: number,
  kind: number,
  problem: (text: string) => void,
): void {
  const permissions = PTE_R | PTE_W | PTE_X;
  const wanted = area.flags & permissions;
  const parked = (flags & PTE_PARKED) !== 0;
  const has = (flags & permissions) | ((flags & PTE_COW) !== 0 ? PTE_W : 0);
  if ((flags & PTE_U) === 0) problem(`${where()} is not the user's`);
  if (parked !== (wanted === 0) || parked === ((flags & PTE_V) !== 0))
    problem(`${where()} is parked and should not be, or the reverse`);
  const clean = kind === K.KIND_FILE_CLEAN;
  if (has !== wanted && !(area.shared && has === (wanted & ~PTE_W)))
    problem(`${where()} has permissions ${flags.toString(2)}, its area ${area.flags.toString(2)}`);
  if ((flags & PTE_W) !== 0 && !area.shared && owner === 0) problem(`${where()} can be stored to and is not its process's alone`);
  if ((flags & PTE_D) !== 0 && clean) problem(`${where()} was stored to and counts as clean`);
}
