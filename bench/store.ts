/** One store, one fault: a store that hits the TLB, the first store to a frame while armed, and one after that. */
import {
  DIRTY_BITMAP,
  MACHINE_ARMED,
  MACHINE_GENERATION,
  MACHINE_CONTEXT_CURSOR,
  PTE_R,
  PTE_U,
  PTE_W,
  RAM_BASE,
} from "../src/base/layout.js";
import { Control } from "../src/base/control.js";
import { instantiateCore, type Core } from "../src/vm/memory/core.js";
import { mapPage } from "../src/vm/memory/page-table.js";
import { createMemory, PhysicalMemory } from "../src/vm/memory/physical.js";
import { DATA_BASE } from "../src/vm/personality/step/program.js";
import { type Figure, median } from "./measure.js";

const PAGES = 2048;
const FIRST_FRAME = 1024;
const STORES = 1 << 22;
const ROUNDS = 9;

export function storeFigures(): Figure[] {
  const memory = createMemory(64 * 2 ** 20);
  const control = new Control(memory);
  control.store(MACHINE_CONTEXT_CURSOR, 0);
  const core = instantiateCore(memory);
  const physical = new PhysicalMemory(memory, core);
  let tables = 1;
  for (let page = 0; page < PAGES; page++) {
    mapPage(physical, 0, DATA_BASE + page * 4096, FIRST_FRAME + page, PTE_R | PTE_W | PTE_U, () => tables++);
  }
  core.attach(0);
  core.activate(0, 0);

  // The same addresses for all, in an order that neither side can foresee, as a step program draws them.
  const pages = Int32Array.from({ length: 1 << 16 }, (_, i) => Math.imul(i, 0x9e3779b1) >>> 21);
  const words = new Int32Array(memory.buffer);
  const raw: number[] = [];
  const hit: number[] = [];
  const lifted: number[] = [];
  const fault: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    raw.push(nsPer(STORES, () => rawStores(words, pages)));
    hit.push(nsPer(STORES, () => tlbStores(core, pages)));
    core.clearBitmap(DIRTY_BITMAP);
    control.store(MACHINE_ARMED, 1);
    control.add(MACHINE_GENERATION, 1);
    core.acknowledge();
    fault.push(nsPer(PAGES, () => firstStores(core)));
    lifted.push(nsPer(STORES, () => tlbStores(core, pages)));
    control.store(MACHINE_ARMED, 0);
  }
  const limit = { name: "raw typed-array store", value: median(raw) };
  return [
    { name: "store, TLB hit", value: median(hit), unit: "ns", limit, ratio: median(hit) / limit.value, target: "<= 2 x" },
    {
      name: "store, TLB hit, armed and lifted",
      value: median(lifted),
      unit: "ns",
      limit: { name: "store, TLB hit, not armed", value: median(hit) },
      ratio: median(lifted) / median(hit),
      target: "about 1 x",
    },
    { name: "write-protect fault", value: median(fault), unit: "ns", target: "<= 250 ns" },
  ];
}

function nsPer(count: number, work: () => void): number {
  const began = performance.now();
  work();
  return ((performance.now() - began) / count) * 1e6;
}

function rawStores(words: Int32Array, pages: Int32Array): void {
  const base = (RAM_BASE >>> 2) + FIRST_FRAME * 1024;
  for (let i = 0; i < STORES; i++) words[(base + (pages[i & 0xffff]! << 10) + (i & 0x3ff)) | 0] = i;
}

function tlbStores(core: Core, pages: Int32Array): void {
  for (let i = 0; i < STORES; i++) core.store32((DATA_BASE + (pages[i & 0xffff]! << 12) + ((i & 0x3ff) << 2)) | 0, i);
}

/** One store a page: each takes the slow path once. */
function firstStores(core: Core): void {
  for (let page = 0; page < PAGES; page++) core.store32((DATA_BASE + (page << 12)) | 0, page);
}
