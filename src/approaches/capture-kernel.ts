/**
 * A capture kernel, as kexec has one (S4.3), or the "suspend module" (S3.4): when everything stands still, a process of its own writes
 * all of memory from where it is. The image is memory as of the start.
 *
 * That process was there before, with a small memory of its own. It has the machine's memory as a descriptor that is open for reading
 * only: it cannot alter what it saves. Nothing is copied in the machine, and nothing runs until all is written; so a snapshot's pause is
 * as long as the save.
 */
import { CaptureProcess } from "../capture/capture-process.js";
import { openHostMemory } from "../capture/host-memory.js";
import type { Save } from "./parts.js";

export async function captureKernel(save: Save): Promise<void> {
  await save.prepare(() => 0);
  using memory = openHostMemory(save.machine.control);
  using writer = await CaptureProcess.start({
    descriptor: memory.descriptor,
    base: memory.base,
    task: save.writeTask,
    key: save.key,
  });
  save.planNothing();
  save.stop();
  save.list();
  await save.capture(writer);
  save.go();
}
