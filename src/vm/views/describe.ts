/**
 * What a machine holds, read from its memory (live or an image): each process, the seed's mappings of each, and the buddy
 * blocks by kind and owner.
 */
import { FRAME_BYTES } from "../../base/layout.js";
import type { Pfn, PhysicalAddress, ReadableMemory, VirtualAddress } from "../../base/memory.js";
import { type Area, isDemandZero, walkAreas } from "../memory/area.js";
import { walkFds } from "../files/descriptions.js";
import { describeFds, type FdDescription } from "../files/open-files.js";
import { KIND_NAMES, type KindName } from "../memory/kernel-layout.js";
import { objectInode, walkObject } from "../memory/memory-object.js";
import { readInode } from "../files/inode.js";
import { walkLeaves } from "../memory/page-table.js";
import { type Process, readRegisters } from "../tasks/process.js";
import { readHandlers } from "../tasks/signals.js";
import { visitBlocks } from "./walker.js";

/** An area, with all that tells what is at an address without a page. */
export interface AreaDescription extends Area {
  /** Path on the host of the file whose pages its object has; null: a page that the object has not is zeros. */
  path: string | null;
  /** A page without a frame is zeros: its first access gives it a frame. */
  demandZero: boolean;
}

/** A process with all that it holds, so that nobody who reads it need know the kernel's layout. */
export interface ProcessDescription extends Omit<Process, "areas"> {
  /** By address. */
  areas: AreaDescription[];
  /** Open files and pipes. */
  fds: FdDescription[];
  /** Signals with a handler, by number. */
  handlers: Record<number, number>;
  /** x0 to x31, 16 hexadecimal digits each. */
  registers: string[];
}

export function describeProcess(memory: ReadableMemory, process: Process): ProcessDescription {
  const words = readRegisters(memory, process.slot);
  const half = (word: number): string => (words[word]! >>> 0).toString(16).padStart(8, "0");
  return {
    ...process,
    areas: [...walkAreas(memory, process.areas)]
      .map(({ at: _at, next: _next, ...area }) => ({
        ...area,
        path: hostPath(memory, area.object),
        demandZero: isDemandZero(area),
      }))
      .sort((a, b) => a.start - b.start),
    fds: describeFds(memory, process.slot),
    handlers: readHandlers(memory, process.slot),
    registers: Array.from({ length: words.length / 2 }, (_, x) => half(2 * x + 1) + half(2 * x)),
  };
}

/** Path of the host's file whose pages an object has; null if there is none. */
function hostPath(memory: ReadableMemory, object: PhysicalAddress): string | null {
  const inode = object === 0 ? 0 : objectInode(memory, object);
  return inode === 0 ? null : (readInode(memory, inode).host?.path ?? null);
}

/** A run of pages of a memory object that is contiguous in physical memory. */
export interface ObjectRun {
  object: PhysicalAddress;
  page: number;
  pfn: Pfn;
  pages: number;
}

/** Pages of the objects behind areas and fds of processes: what they see where they have no page of their own. */
export function* describeObjects(memory: ReadableMemory, processes: readonly Process[]): Generator<ObjectRun> {
  const objects = new Set<PhysicalAddress>();
  for (const { areas, slot } of processes) {
    for (const { object } of walkAreas(memory, areas)) objects.add(object);
    for (const { description } of walkFds(memory, slot))
      if (description.kind === "inode") objects.add(readInode(memory, description.behind).object);
  }
  objects.delete(0);
  for (const object of objects) {
    let run: ObjectRun | undefined;
    for (const { page, frame } of walkObject(memory, object)) {
      if (run !== undefined && run.page + run.pages === page && run.pfn + run.pages === frame) {
        run.pages++;
        continue;
      }
      if (run !== undefined) yield run;
      run = { object, page, pfn: frame, pages: 1 };
    }
    if (run !== undefined) yield run;
  }
}

/** A run of pages that is contiguous in virtual and in physical memory. */
export interface MappedRun {
  pid: number;
  address: VirtualAddress;
  pfn: Pfn;
  pages: number;
  /** The low ten bits of the leaf: V R W X U G A D, copy-on-write, parked. */
  flags: number;
  /** Order of the buddy blocks that the frames lie in. */
  order: number;
}

/** All mappings of processes, as runs. `orders` has the order of each frame's block. */
export function* describeMappings(
  memory: ReadableMemory,
  processes: readonly Process[],
  orders: Uint8Array,
): Generator<MappedRun> {
  for (const { pid, root } of processes) {
    let run: MappedRun | undefined;
    for (const { address, frame, flags, level } of walkLeaves(memory, root)) {
      const pages = 512 ** level;
      if (
        run !== undefined &&
        run.address + run.pages * FRAME_BYTES === address &&
        run.pfn + run.pages === frame &&
        run.flags === flags &&
        run.order === orders[frame]
      ) {
        run.pages += pages;
        continue;
      }
      if (run !== undefined) yield run;
      run = { pid, address, pfn: frame, pages, flags, order: orders[frame]! };
    }
    if (run !== undefined) yield run;
  }
}

export interface BlockCount {
  kind: KindName | "free";
  owner: number;
  order: number;
  blocks: number;
  frames: number;
}

/** Blocks counted by kind, owner and order; each frame's order goes to `orders`. */
export function countBlocks(memory: ReadableMemory, orders?: Uint8Array): BlockCount[] {
  const counts = new Map<string, BlockCount>();
  visitBlocks(memory, (frame, order, use, owner, kindNumber) => {
    const kind = use === "used" ? (KIND_NAMES[kindNumber] ?? "none") : "free";
    const key = `${kind} ${owner} ${order}`;
    let count = counts.get(key);
    if (count === undefined) counts.set(key, (count = { kind, owner, order, blocks: 0, frames: 0 }));
    count.blocks++;
    count.frames += 1 << order;
    orders?.fill(order, frame, frame + (1 << order));
  });
  return [...counts.values()];
}
