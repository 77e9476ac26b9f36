/** The parts of a kernel that what stands above memory works with. */
import type { Control } from "../../base/control.js";
import type { MemoryParts } from "../memory/parts.js";
import type { Scheduler } from "./scheduler.js";

export interface KernelParts extends MemoryParts {
  readonly control: Control;
  readonly scheduler: Scheduler;
}
