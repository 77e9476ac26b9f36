/** The core with loops of stores in it, for the benchmark: what a store costs where no call leads to it, and what a call costs. */
import { storeAny } from "./mmu";
import { RAM_BASE } from "../src/base/layout";

export * from "./index";

/** A page of 2,048, in an order that the CPU cannot foresee. */
// @ts-ignore: decorator
@inline
function page(i: u32): u32 {
  return (i * 0x9e3779b1) >>> 21;
}

/** A store without an MMU: what is left is the call. */
export function rawStore32(address: u32, value: u32): void {
  store<u32>(RAM_BASE + address, value);
}

export function rawStores(firstFrame: u32, count: u32): void {
  for (let i: u32 = 0; i < count; i++) store<u32>(RAM_BASE + ((firstFrame + page(i)) << 12) + ((i & 0x3ff) << 2), i);
}

export function tlbStores(base: u32, count: u32): void {
  for (let i: u32 = 0; i < count; i++) storeAny<u32>(base + (page(i) << 12) + ((i & 0x3ff) << 2), i);
}
