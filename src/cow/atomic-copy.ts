/**
 * The atomic copy (S1.4): with every vCPU stopped, the residual set is copied into the reserve, by all vCPUs at once.
 *
 * The residual set is every frame that belongs to the image at this instant and whose streamed bytes may not be its
 * bytes: marked since armed, or allocated since the plan was made.
 */
import { COMMAND_GATHER, COMMAND_SCATTER } from "../base/layout.js";
import type { Core } from "../vm/memory/core.js";
import type { Claims } from "./claims.js";
import type { Quiesce } from "./quiesce.js";

/** The atomic copy of the first `count` frames of the list to places of the queue, by all vCPUs at once. */
export function atomicCopy(claims: Claims, core: Core, quiesce: Quiesce, count: number): void {
  claims.queueCopies(count);
  if (count > 0) quiesce.command(COMMAND_GATHER, () => core.gather());
}

/** The atomic restore: what is queued, from its places to its frames, by all vCPUs at once. Everything is stopped. */
export function atomicRestore(claims: Claims, core: Core, quiesce: Quiesce): void {
  const { start, end } = claims.queue;
  claims.open(start, end);
  quiesce.command(COMMAND_SCATTER, () => core.scatter());
}
