/** Are the devices' frames what the drivers take them for? See views/consistency.ts. */
import { FRAME_BYTES } from "../../base/layout.js";
import type { ReadableMemory } from "../../base/memory.js";
import { isRing } from "../memory/console-ring.js";
import type { Inventory } from "../memory/inventory.js";
import { KERNEL_BLOCK, KERNEL_BLOCK_STATE, KERNEL_CONSOLE, KERNEL_ENTROPY, KIND_DMA } from "../memory/kernel-layout.js";
import { savedDisk, savedPathBytes } from "./block.js";
import { readRequests, TABLE_ORDER } from "./block-requests.js";
import { POOL_WORDS } from "./entropy.js";

export function checkDevices(memory: ReadableMemory, inventory: Inventory, problem: (text: string) => void): void {
  const enter = (word: number, order: number, what: string): boolean =>
    inventory.block(memory.load32(word), order, KIND_DMA, what);
  if (enter(KERNEL_CONSOLE, 0, "the console's ring") && !isRing(memory)) problem("the ends of the console's ring lie outside it");
  // A kernel under test may have no devices.
  if (memory.load32(KERNEL_ENTROPY) !== 0 && enter(KERNEL_ENTROPY, 0, "the entropy pool")) {
    const left = memory.load32(memory.load32(KERNEL_ENTROPY) * FRAME_BYTES);
    if (left < 0 || left > POOL_WORDS) problem(`the entropy pool says that it has ${left} words`);
  }
  if (memory.load32(KERNEL_BLOCK_STATE) !== 0 && enter(KERNEL_BLOCK_STATE, 0, "the disk's state")) {
    if (savedPathBytes(memory) === undefined) problem("the disk's state has a path that does not fit into it");
    else if (!/^\/[^\0]*$/s.test(savedDisk(memory)!)) problem("a disk has no absolute path");
  }
  if (memory.load32(KERNEL_BLOCK) === 0 || !enter(KERNEL_BLOCK, TABLE_ORDER, "the table of requests to the disk")) return;
  for (const { entry, frame, sound } of readRequests(memory)) {
    const what = `request ${entry} to the disk`;
    if (!sound) problem(`${what} is none that can be made`);
    inventory.block(frame, 0, KIND_DMA, `the data of ${what}`);
  }
}
