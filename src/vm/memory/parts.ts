/** The parts that all of the kernel's memory management works with: a room takes these, and never the whole kernel. */
import type { BuddyAllocator } from "./buddy.js";
import type { Core } from "./core.js";
import type { MemoryObjects } from "./memory-object.js";
import type { PhysicalMemory } from "./physical.js";

export interface MemoryParts {
  readonly memory: PhysicalMemory;
  readonly buddy: BuddyAllocator;
  readonly objects: MemoryObjects;
  readonly core: Core;
}
