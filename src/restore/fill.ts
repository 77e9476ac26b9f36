/**
 * The rest of a lazy resume: one task of the pool. It brings in what is missing, a chunk at a time, while the machine runs. What was
 * stored last in the image comes first: that is what processes stored to while it was saved.
 */
import { setImmediate } from "node:timers/promises";
import { Control } from "../base/control.js";
import { failpoint } from "../base/failpoints.js";
import { LAZY_FILLING, MACHINE_LAZY, MACHINE_LOAD_CURSOR } from "../base/layout.js";
import type { SharedMemory } from "../base/wasm.js";
import { loadChecksum } from "../image/checksum.js";
import { newestFirst } from "../image/chunk-table.js";
import { COLLECT_CHUNKS } from "../image/codec.js";
import type { Core } from "../vm/memory/core.js";
import { FaultRecord } from "./fault-record.js";
import { giveUp } from "./frame-faults.js";
import { type Filled, type FillTask, FrameSource } from "./frame-source.js";

/**
 * Runs one task until no frame is left that nobody has claimed, or the load is given up.
 *
 * @param collect - has the runtime free what this thread holds outside its heap and does not use any more
 */
export async function fillPages(memory: SharedMemory, core: Core, task: FillTask, collect: () => void): Promise<Filled> {
  await loadChecksum();
  const control = new Control(memory);
  const source = new FrameSource(memory, core, task);
  try {
    await fill(control, source, task, collect);
  } catch (error) {
    giveUp(control, new FaultRecord(task.record), error);
    throw error;
  }
  return source.filled;
}

async function fill(control: Control, source: FrameSource, task: FillTask, collect: () => void): Promise<void> {
  const chunks = newestFirst(task.chunks);
  for (let done = 1; ; done++) {
    const index = control.add(MACHINE_LOAD_CURSOR, 1);
    if (index >= chunks.length + task.filled.length || control.load(MACHINE_LAZY) !== LAZY_FILLING) return;
    failpoint("lazy.fill");
    const chunk = chunks[index];
    if (chunk === undefined) source.bringInFill(task.filled[index - chunks.length]!);
    else source.bringInChunk(chunk);
    await setImmediate(); // what was decoded can be freed, and the thread be told to end
    if (done % COLLECT_CHUNKS === 0) collect();
  }
}
