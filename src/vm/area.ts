/**
 * Areas of an address space (code, data, heap, stack): a list of kernel-heap objects a process. A page of an area that
 * has no PTE yet is zeros, and gets a frame on the first access (demand-zero paging).
 */
import { PTE_R, PTE_U, PTE_W, PTE_X } from "../base/layout.js";
import type { PhysicalAddress, ReadableMemory, VirtualAddress } from "../base/memory.js";
import type { PhysicalMemory } from "./physical.js";

export const AREA_BYTES = 32;
const START = 0;
const END = 4;
const FLAGS = 8;
const KIND = 12;
const NEXT = 16;

export const AREA_KIND_NAMES = ["none", "code", "data", "heap", "stack"] as const;
export type AreaKind = "code" | "data" | "heap" | "stack";

export interface Area {
  /** First address. */
  start: VirtualAddress;
  /** Address after the last. */
  end: VirtualAddress;
  /** PTE bits of its pages: R, W, X, U. */
  flags: number;
  kind: AreaKind;
  /** Whether a page without a PTE is given a zeroed frame; heap pages come by `map` only. */
  demandZero: boolean;
}

export const CODE_FLAGS: number = PTE_R | PTE_X | PTE_U;
export const DATA_FLAGS: number = PTE_R | PTE_W | PTE_U;

export function storeArea(
  memory: PhysicalMemory,
  at: PhysicalAddress,
  area: Omit<Area, "demandZero">,
  next: PhysicalAddress,
): void {
  memory.store32(at + START, area.start);
  memory.store32(at + END, area.end);
  memory.store32(at + FLAGS, area.flags);
  memory.store32(at + KIND, AREA_KIND_NAMES.indexOf(area.kind));
  memory.store32(at + NEXT, next);
}

/** The areas of a list, newest first; `at` is where each lies. */
export function* walkAreas(memory: ReadableMemory, head: PhysicalAddress): Generator<Area & { at: PhysicalAddress }> {
  for (let at = head >>> 0; at !== 0; at = memory.load32(at + NEXT) >>> 0) {
    const kind = AREA_KIND_NAMES[memory.load32(at + KIND)] as AreaKind;
    yield {
      at,
      start: memory.load32(at + START) >>> 0,
      end: memory.load32(at + END) >>> 0,
      flags: memory.load32(at + FLAGS),
      kind,
      demandZero: kind === "data" || kind === "stack",
    };
  }
}
