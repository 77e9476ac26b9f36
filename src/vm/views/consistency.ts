/**
 * Is a machine consistent with itself? Buddy allocator, kernel heap, page tables, process table, files and devices, read from
 * memory: a live machine's that is stopped, or an image's (S0.6). Shares no code with the allocator, only the layout.
 *
 * What must hold: an image may be somebody else's, with every checksum right. So whatever a kernel follows is looked at
 * here, before an image is used; each pointer is known to lead to what it should before it is followed; and every walk ends,
 * because nothing is entered twice (inventory.ts).
 */
import { Contradiction } from "../../base/errors.js";
import { checkArguments, readable } from "../../base/options.js";
import { FRAME_BYTES, MAX_FRAMES, PTE_PARKED, PTE_PPN_SHIFT, PTE_R, PTE_U, PTE_V, PTE_W, PTE_X } from "../../base/layout.js";
import type { Pfn, PhysicalAddress, ReadableMemory } from "../../base/memory.js";
import { checkDevices } from "../devices/check.js";
import { checkFiles } from "../files/check.js";
import { AREA_BYTES, AREA_KIND_NAMES, type StoredArea, walkAreas } from "../memory/area.js";
import { type Blocks, Inventory } from "../memory/inventory.js";
import * as K from "../memory/kernel-layout.js";
import { OBJECT_PAGES_MAX, walkObject, walkObjectTables } from "../memory/memory-object.js";
import { LEAF } from "../memory/page-table.js";
import { USER_END } from "../memory/user-layout.js";
import { checkProcessTable } from "../tasks/check.js";
import type { Process } from "../tasks/process.js";
import { type Holders, MappingCheck } from "./mapping-check.js";

export interface Consistency {
  blocks: number;
  freeFrames: number;
  processes: number;
  mappedPages: number;
  /** What is wrong, a line each; empty if nothing is. At most PROBLEMS_MAX. */
  problems: string[];
}

const PROBLEMS_MAX = 20;
const AREA_KINDS: readonly string[] = AREA_KIND_NAMES.slice(1);
const AREA_FLAGS: number = PTE_R | PTE_W | PTE_X | PTE_U;

/** Never throws for what is wrong with a machine. */
export function checkConsistency(memory: ReadableMemory): Consistency {
  checkArguments("checkConsistency", { "the memory": [memory, readable] });
  const result: Consistency = { blocks: 0, freeFrames: 0, processes: 0, mappedPages: 0, problems: [] };
  const problem = (text: string): void => {
    if (result.problems.length < PROBLEMS_MAX) result.problems.push(text);
  };
  try {
    checkMachine(memory, result, problem);
  } catch (error) {
    // A walk that cannot go on: an address outside of RAM, a list without an end.
    if (!(error instanceof Contradiction)) throw error;
    problem(error.what);
  }
  return result;
}

/**
 * For code that looks at all of a machine that somebody else may have made: a consistent one has an end.
 *
 * @throws HIB_INCONSISTENT with the first of what is wrong
 */
export function requireConsistent(memory: ReadableMemory): Consistency {
  const consistency = checkConsistency(memory);
  if (consistency.problems.length > 0) throw new Contradiction(consistency.problems[0]!);
  return consistency;
}

function checkMachine(memory: ReadableMemory, result: Consistency, problem: (text: string) => void): void {
  if (memory.frames > MAX_FRAMES || memory.load32(K.KERNEL_FRAMES) !== memory.frames || !isKernelPage(memory))
    return problem("the kernel page is not a kernel's of this much RAM");
  const { staticFrames } = K.kernelLayout(memory.frames);
  const inventory = new Inventory(checkBuddy(memory, result, problem), problem);
  const { kind } = inventory.blocks;
  for (let frame = 0; frame < staticFrames; frame++)
    if (kind[frame] !== K.KIND_KERNEL_STATIC) return problem(`frame ${frame} holds the kernel's tables, and is of another kind`);
  // Else what was there before would go on as part of the image's machine.
  const lacking = kind.findIndex((its, at) => (K.isSaved(its) || its === K.KIND_FILE_CLEAN) && memory.has?.(at) === false);
  if (lacking >= 0) return problem(`frame ${lacking} is in use, and is not in the image`);
  checkDevices(memory, inventory, problem);
  checkProcesses(memory, inventory, result, problem);
  checkHeap(memory, inventory);
}

function isKernelPage(memory: ReadableMemory): boolean {
  return (
    memory.load32(K.KERNEL_MAGIC_WORD) === K.KERNEL_MAGIC &&
    memory.load32(K.KERNEL_VERSION_WORD) === K.KERNEL_VERSION &&
    memory.load32(K.KERNEL_ARENAS) === K.kernelLayout(memory.frames).arenas
  );
}

/** Free objects of the kernel heap; what is in use has been entered before. */
function checkHeap(memory: ReadableMemory, inventory: Inventory): void {
  for (let sizeClass = 0; sizeClass < K.KERNEL_HEAP_CLASSES; sizeClass++) {
    const bytes = K.KERNEL_HEAP_SMALLEST << sizeClass;
    for (let at = memory.load32(K.KERNEL_HEAP_HEADS + sizeClass * 4) >>> 0; at !== 0; at = memory.load32(at) >>> 0) {
      if (!inventory.object(at, bytes, `a free object of ${bytes} bytes`)) break;
    }
  }
}

function checkBuddy(memory: ReadableMemory, result: Consistency, problem: (text: string) => void): Blocks {
  const layout = K.kernelLayout(memory.frames);
  const entry = (frame: Pfn) => layout.frameTable + frame * K.FRAME_ENTRY_BYTES;
  const blocks: Blocks = {
    kind: new Uint8Array(memory.frames),
    order: new Uint8Array(memory.frames),
    head: new Uint32Array(memory.frames),
    owner: new Int32Array(memory.frames),
  };
  for (let arena = 0; arena < layout.arenas; arena++) {
    const end = Math.min((arena + 1) * K.ARENA_FRAMES, memory.frames);
    const free = new Map<Pfn, number>();
    let freeFrames = 0;
    const first = arena * K.ARENA_FRAMES;
    const entries = new Int32Array(memory.read(entry(first), (end - first) * K.FRAME_ENTRY_BYTES).buffer);
    const word = (frame: Pfn, at: number): number => entries[((frame - first) * K.FRAME_ENTRY_BYTES + at) >>> 2]!;
    for (let frame = first; frame < end; ) {
      const header = word(frame, K.FRAME_HEADER);
      const state = header & 0xff;
      const order = (header >>> 8) & 0xff;
      const kind = header >>> 16;
      if (
        (state !== K.BLOCK_FREE && !(state === K.BLOCK_USED && kind > 0 && kind < K.KIND_NAMES.length)) ||
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
        blocks.kind.fill(kind, frame, frame + (1 << order));
        blocks.order.fill(order, frame, frame + (1 << order));
        blocks.head.fill(frame, frame, frame + (1 << order));
        blocks.owner.fill(word(frame, K.FRAME_OWNER), frame, frame + (1 << order));
      }
      // Whoever looks for the block that a frame lies in, or for a free buddy, must not find one inside of another.
      for (let tail = frame + 1; tail < frame + (1 << order); tail++) {
        if (word(tail, K.FRAME_HEADER) === K.BLOCK_TAIL) continue;
        problem(`frame ${tail} lies in the block at frame ${frame} and says that it is one of its own`);
        break;
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
  return blocks;
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

function checkProcesses(
  memory: ReadableMemory,
  inventory: Inventory,
  result: Consistency,
  problem: (text: string) => void,
): void {
  const counted = (): Uint32Array => new Uint32Array(memory.frames);
  const holders: Holders = { leaves: counted(), levels: new Uint8Array(memory.frames), objects: counted() };
  const tables = new Uint8Array(memory.frames);
  const objects = new Map<PhysicalAddress, number>();
  const processes = checkProcessTable(memory, problem);
  for (const process of processes) {
    result.processes++;
    const areas = enterAreas(memory, process, inventory, problem);
    for (const { object } of areas) if (object !== 0) objects.set(object, (objects.get(object) ?? 0) + 1);
    const check = new MappingCheck(memory, process, areas, inventory.blocks, holders, problem);
    visitLeaves(memory, process, inventory.blocks, tables, problem, check);
    result.mappedPages += check.pages;
  }
  for (const object of checkFiles(memory, inventory, processes, objects, problem)) {
    if (!enterObjectTables(memory, object, inventory)) continue;
    for (const { frame } of walkObject(memory, object)) {
      // It is let go of as a block of its own.
      if (frame >= 0 && frame < memory.frames && inventory.blocks.order[frame] === 0) holders.objects[frame]!++;
      else problem(`a memory object holds frame ${frame}, which is beyond RAM or in a larger block`);
    }
  }
  checkHolders(memory, inventory.blocks, holders, tables, new Set(processes.map(({ pid }) => pid)), problem);
}

/**
 * Visits the leaves of an address space, in the order of their addresses, and checks the tables. Only what the MMU and the kernel
 * understand may be there: zero, a table, or a leaf of 4 KiB or 2 MiB. (A generator takes five times as long; a machine has
 * hundreds of thousands of leaves, and a resume waits for this.)
 */
function visitLeaves(
  memory: ReadableMemory,
  { pid, root }: Process,
  blocks: Blocks,
  tables: Uint8Array,
  problem: (text: string) => void,
  visitor: { leaf: (address: number, frame: Pfn, flags: number, level: number) => void },
): void {
  const below = (table: Pfn, level: number, base: number): void => {
    if (blocks.kind[table] !== K.KIND_PAGE_TABLE || blocks.order[table] !== 0 || blocks.owner[table] !== pid)
      return problem(`page table ${table} of process ${pid} is a frame of another kind or owner`);
    if (tables[table]!++ > 0) return problem(`page table ${table} is used twice`);
    const words = new Int32Array(memory.read(table * FRAME_BYTES, FRAME_BYTES).buffer);
    const span = 2 ** (12 + 9 * level);
    for (let index = 0; index < 512; index++) {
      const pte = words[2 * index]!;
      const high = words[2 * index + 1]!;
      if (pte === 0 && high === 0) continue;
      const isLeaf = (pte & (LEAF | PTE_PARKED)) !== 0;
      if (high !== 0 || (pte & (PTE_V | PTE_PARKED)) === 0 || (isLeaf ? level === 2 : level === 0 || (pte & 0x3ff) !== PTE_V))
        problem(`entry ${index} of page table ${table} of process ${pid} is neither a table nor a leaf`);
      else if (isLeaf) visitor.leaf(base + index * span, pte >>> PTE_PPN_SHIFT, pte & 0x3ff, level);
      else below(pte >>> PTE_PPN_SHIFT, level - 1, base + index * span);
    }
  };
  if (root !== 0) below(root, 2, 0);
}

/** False if a memory object's pages cannot be told. */
function enterObjectTables(memory: ReadableMemory, object: PhysicalAddress, inventory: Inventory): boolean {
  for (const table of walkObjectTables(memory, object))
    if (!inventory.block(table, 0, K.KIND_KERNEL_HEAP, "a table of a memory object")) return false;
  return true;
}

/** Every frame of a user's kind is held as often as its block says, and every page table is used. */
function checkHolders(
  memory: ReadableMemory,
  blocks: Blocks,
  holders: Holders,
  tables: Uint8Array,
  pids: ReadonlySet<number>,
  problem: (text: string) => void,
): void {
  const layout = K.kernelLayout(memory.frames);
  for (let frame = 0; frame < memory.frames; frame++) {
    const kind = blocks.kind[frame]!;
    const held = holders.leaves[frame]! + holders.objects[frame]!;
    if (kind === K.KIND_PAGE_TABLE && tables[frame] === 0) problem(`page table ${frame} is in no address space`);
    if (!K.isUserKind(kind)) {
      if (held > 0) problem(`frame ${frame} of kind ${K.KIND_NAMES[kind]} is mapped`);
      continue;
    }
    const head = blocks.head[frame]!;
    const references = memory.load32(layout.frameTable + head * K.FRAME_ENTRY_BYTES + K.FRAME_REFERENCES);
    if (held !== references) problem(`frame ${frame} has ${references} references and is held by ${held}`);
    const owner = blocks.owner[frame]!;
    if (owner !== 0 && !pids.has(owner)) problem(`frame ${frame} belongs to process ${owner}, which is not there`);
    if (kind === K.KIND_USER && references > 1 && owner !== 0)
      problem(`frame ${frame} is shared and belongs to process ${owner}`);
  }
}

/** The areas of a process, by address. */
function enterAreas(
  memory: ReadableMemory,
  { pid, areas: head }: Process,
  inventory: Inventory,
  problem: (text: string) => void,
): StoredArea[] {
  const areas: StoredArea[] = [];
  for (const area of walkAreas(memory, head)) {
    if (!inventory.object(area.at, AREA_BYTES, `an area of process ${pid}`)) break;
    areas.push(area);
    const { start, end, limit, flags, kind, object, offset, shared } = area;
    const where = `area 0x${start.toString(16)} of process ${pid}`;
    const pages = (end - start) / FRAME_BYTES;
    if (start < FRAME_BYTES || start >= end || end > USER_END || start % FRAME_BYTES !== 0 || !Number.isInteger(pages))
      problem(`${where} is no range`);
    if (!AREA_KINDS.includes(kind) || (flags & ~AREA_FLAGS) !== 0) problem(`${where} is of a kind that there is not`);
    if (limit % FRAME_BYTES !== 0 || limit > start) problem(`${where} may grow down to 0x${limit.toString(16)}`);
    if (object === 0 && shared) problem(`${where} is shared, and there is nothing behind it`);
    if (object !== 0 && !(offset >= 0 && offset + pages <= OBJECT_PAGES_MAX))
      problem(`${where} begins at page ${offset} of what is behind it`);
  }
  areas.sort((a, b) => a.start - b.start);
  for (const [i, area] of areas.entries()) {
    const next = areas[i + 1];
    if (next !== undefined && area.end > next.start)
      problem(`area 0x${area.start.toString(16)} of process ${pid} overlaps the next`);
  }
  return areas;
}
