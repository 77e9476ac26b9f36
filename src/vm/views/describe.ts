/**
 * What a machine holds, read from its memory (live or an image): each process, the seed's mappings of each, and the buddy
 * blocks by kind and owner.
 */
import { FRAME_BYTES } from "../../base/layout.js";
import type { Pfn, ReadableMemory, VirtualAddress } from "../../base/memory.js";
import { type Area, isDemandZero, walkAreas } from "../memory/area.js";
import { describeFds, type FdDescription } from "../files/open-files.js";
import { KIND_NAMES, type KindName } from "../memory/kernel-layout.js";
import { walkLeaves } from "../memory/page-table.js";
import { type Process, readRegisters } from "../tasks/process.js";
import { readHandlers } from "../tasks/signals.js";
import { visitBlocks } from "./walker.js";

/** An area; what is behind it is told by whether it is shared and whether its first access gives a zeroed frame. */
export type AreaDescription = Pick<Area, "start" | "end" | "flags" | "kind" | "shared"> & { demandZero: boolean };

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
      .map((area) => {
        const { start, end, flags, kind, shared } = area;
        return { start, end, flags, kind, shared, demandZero: isDemandZero(area) };
      })
      .sort((a, b) => a.start - b.start),
    fds: describeFds(memory, process.slot),
    handlers: readHandlers(memory, process.slot),
    registers: Array.from({ length: words.length / 2 }, (_, x) => half(2 * x + 1) + half(2 * x)),
  };
}

/** A run of pages that is contiguous in virtual and in physical memory. */
export interface MappedRun {
  pid: number;
  address: VirtualAddress;
  pfn: Pfn;
  pages: number;
  /** PTE bits V R W X U G A D. */
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
