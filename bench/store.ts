/**
 * One store, one fault: a store that hits the TLB, the first store to a frame while armed, and one after that. A store is made
 * in two ways: by code of the core, where no call leads to it, and by a call from TypeScript, as step programs do. Each has the
 * same store without an MMU as its limit.
 */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
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
import { type SharedMemory, wasm } from "../src/base/wasm.js";
import type { Core } from "../src/vm/memory/core.js";
import { mapPage } from "../src/vm/memory/page-table.js";
import { createMemory, PhysicalMemory } from "../src/vm/memory/physical.js";
import { DATA_BASE } from "../src/vm/personality/step/program.js";
import { type Figure, median } from "./measure.js";

/** The core, with loops of stores (assembly/loops.ts). */
interface Loops extends Core {
  rawStore32(address: number, value: number): void;
  rawStores(firstFrame: number, count: number): void;
  tlbStores(base: number, count: number): void;
}

const PAGES = 2048;
const FIRST_FRAME = 1024;
const STORES = 1 << 22;
const ROUNDS = 9;

export function storeFigures(): Figure[] {
  const memory = createMemory(64 * 2 ** 20);
  const control = new Control(memory);
  control.store(MACHINE_CONTEXT_CURSOR, 0);
  const core = instantiateLoops(memory);
  const physical = new PhysicalMemory(memory, core);
  let tables = 1;
  for (let page = 0; page < PAGES; page++) {
    mapPage(physical, 0, DATA_BASE + page * 4096, FIRST_FRAME + page, PTE_R | PTE_W | PTE_U, () => tables++);
  }
  core.attach(0);
  core.activate(0, 0);

  const words = new Int32Array(memory.buffer);
  const measured = {
    fault: [] as number[],
    inCore: [] as number[],
    rawInCore: [] as number[],
    lifted: [] as number[],
    called: [] as number[],
    rawCalled: [] as number[],
    typedArray: [] as number[],
  };
  for (let round = 0; round < ROUNDS; round++) {
    measured.rawInCore.push(nsPer(STORES, () => core.rawStores(FIRST_FRAME, STORES)));
    measured.inCore.push(nsPer(STORES, () => core.tlbStores(DATA_BASE, STORES)));
    measured.typedArray.push(nsPer(STORES, () => typedArrayStores(words)));
    measured.rawCalled.push(nsPer(STORES, () => rawStores(core)));
    measured.called.push(nsPer(STORES, () => tlbStores(core)));
    core.clearBitmap(DIRTY_BITMAP);
    control.store(MACHINE_ARMED, 1);
    control.add(MACHINE_GENERATION, 1);
    core.acknowledge();
    measured.fault.push(nsPer(PAGES, () => firstStores(core)));
    measured.lifted.push(nsPer(STORES, () => core.tlbStores(DATA_BASE, STORES)));
    control.store(MACHINE_ARMED, 0);
  }

  const of = (name: keyof typeof measured): number => median(measured[name]);
  const beside = (name: string, value: number, limit: { name: string; value: number }, target?: string): Figure => ({
    name,
    value,
    unit: "ns",
    limit,
    ratio: value / limit.value,
    ...(target === undefined ? {} : { target }),
  });
  const inCore = { name: "store, TLB hit, not armed", value: of("inCore") };
  return [
    beside("store, TLB hit", of("inCore"), { name: "raw store, both in the core", value: of("rawInCore") }, "<= 2 x"),
    beside("store, TLB hit, armed and lifted", of("lifted"), inCore, "about 1 x"),
    beside("store, TLB hit, by a call", of("called"), { name: "call for a raw store", value: of("rawCalled") }, "<= 2 x"),
    beside("call for a raw store", of("rawCalled"), { name: "raw store to a typed array", value: of("typedArray") }),
    { name: "write-protect fault", value: of("fault"), unit: "ns", target: "<= 250 ns" },
  ];
}

function instantiateLoops(memory: SharedMemory): Loops {
  const path = fileURLToPath(new URL("loops.wasm", import.meta.url));
  const noFault = (): never => {
    throw new Error("page fault");
  };
  const imports = { env: { memory }, host: { pageFault: noFault, missing: noFault, now: () => performance.now() } };
  return new wasm.Instance(new wasm.Module(readFileSync(path)), imports).exports as Loops;
}

function nsPer(count: number, work: () => void): number {
  const began = performance.now();
  work();
  return ((performance.now() - began) / count) * 1e6;
}

// The same addresses everywhere: the i-th store goes to this page, in an order that no side can foresee, and to word i of it.

const pageOf = (i: number): number => Math.imul(i, 0x9e3779b1) >>> 21;

function typedArrayStores(words: Int32Array): void {
  const base = (RAM_BASE >>> 2) + FIRST_FRAME * 1024;
  for (let i = 0; i < STORES; i++) words[(base + (pageOf(i) << 10) + (i & 0x3ff)) | 0] = i;
}

function rawStores(core: Loops): void {
  for (let i = 0; i < STORES; i++) core.rawStore32((((FIRST_FRAME + pageOf(i)) << 12) + ((i & 0x3ff) << 2)) | 0, i);
}

function tlbStores(core: Loops): void {
  for (let i = 0; i < STORES; i++) core.store32((DATA_BASE + (pageOf(i) << 12) + ((i & 0x3ff) << 2)) | 0, i);
}

/** One store a page: each takes the slow path once. */
function firstStores(core: Loops): void {
  for (let page = 0; page < PAGES; page++) core.store32((DATA_BASE + (page << 12)) | 0, page);
}
