/**
 * Is a machine consistent with itself? Buddy allocator, page tables and process table, read from memory: a live
 * machine's that is stopped, or an image's (S0.6). Shares no code with the allocator, only the layout.
 */
import { FRAME_BYTES, MAX_PROCESSES, PTE_U } from "../base/layout.js";
import type { Pfn, ReadableMemory } from "../base/memory.js";
import { walkAreas } from "./area.js";
import * as K from "./kernel-layout.js";
import { walkLeaves, walkTables } from "./page-table.js";
import { listProcesses, type Process } from "./process.js";

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

/** Kind and owner of the used block that a frame lies in; kind 0 for free frames. */
interface Kinds {
  kind: Uint8Array;
  owner: Int32Array;
}

function checkBuddy(memory: ReadableMemory, result: Consistency, problem: (text: string) => void): Kinds {
  const layout = K.kernelLayout(memory.frames);
  const entry = (frame: Pfn) => layout.frameTable + frame * K.FRAME_ENTRY_BYTES;
  const kinds: Kinds = { kind: new Uint8Array(memory.frames), owner: new Int32Array(memory.frames) };
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

function checkProcesses(memory: ReadableMemory, kinds: Kinds, result: Consistency, problem: (text: string) => void): void {
  const user = new Map<number, number>();
  const tables = new Map<number, number>();
  const pids = new Set<number>();
  const mapped = new Uint8Array(memory.frames);
  if (memory.load32(K.KERNEL_SLOTS_USED) > MAX_PROCESSES) problem("the process table says it is larger than it is");
  for (const process of listProcesses(memory)) {
    result.processes++;
    if (pids.has(process.pid)) problem(`two processes have pid ${process.pid}`);
    pids.add(process.pid);
    for (const table of walkTables(memory, process.root)) {
      if (kinds.kind[table] !== K.KIND_PAGE_TABLE || kinds.owner[table] !== process.pid)
        problem(`page table ${table} of process ${process.pid} is a frame of another kind or owner`);
      tables.set(process.pid, (tables.get(process.pid) ?? 0) + 1);
    }
    const pages = checkMappings(memory, process, kinds, mapped, problem);
    user.set(process.pid, pages);
    result.mappedPages += pages;
  }
  const owned = countOwned(kinds);
  const count = (kind: number, pid: number) => owned.get(kind)?.get(pid) ?? 0;
  for (const pid of pids) {
    if (count(K.KIND_USER, pid) !== user.get(pid))
      problem(`process ${pid} owns ${count(K.KIND_USER, pid)} user frames and maps ${user.get(pid)}`);
    if (count(K.KIND_PAGE_TABLE, pid) !== tables.get(pid))
      problem(`process ${pid} owns ${count(K.KIND_PAGE_TABLE, pid)} page tables and uses ${tables.get(pid)}`);
  }
}

/** Frames by kind and owner. */
function countOwned({ kind, owner }: Kinds): Map<number, Map<number, number>> {
  const owned = new Map([K.KIND_USER, K.KIND_PAGE_TABLE].map((one) => [one, new Map<number, number>()]));
  for (let frame = 0; frame < kind.length; frame++) {
    const counts = owned.get(kind[frame]!);
    counts?.set(owner[frame]!, (counts.get(owner[frame]!) ?? 0) + 1);
  }
  return owned;
}

/** Checks every page of a process. Returns how many there are. */
function checkMappings(
  memory: ReadableMemory,
  process: Process,
  kinds: Kinds,
  mapped: Uint8Array,
  problem: (text: string) => void,
): number {
  const areas = [...walkAreas(memory, process.areas)];
  let pages = 0;
  let area = areas[0];
  for (const { address, frame, flags } of walkLeaves(memory, process.root)) {
    pages++;
    const where = () => `page 0x${address.toString(16)} of process ${process.pid}`;
    if (frame >= memory.frames) {
      problem(`${where()} maps frame ${frame}, which is beyond RAM`);
      continue;
    }
    if (kinds.kind[frame] !== K.KIND_USER || kinds.owner[frame] !== process.pid)
      problem(`${where()} maps frame ${frame} of another kind or owner`);
    if (mapped[frame] === 1) problem(`${where()} maps frame ${frame}, which is mapped already`);
    mapped[frame] = 1;
    // Leaves come in the order of their addresses: most lie in the area of the one before.
    if (area === undefined || address < area.start || address >= area.end)
      area = areas.find(({ start, end }) => address >= start && address < end);
    if (area === undefined) problem(`${where()} lies in no area`);
    else if ((flags & (area.flags | PTE_U)) !== area.flags)
      problem(`${where()} has permissions ${flags.toString(2)}, its area ${area.flags.toString(2)}`);
    if (address % FRAME_BYTES !== 0) problem(`${where()} is not aligned`);
  }
  return pages;
}
