/** What is derived from memory and not in it, made anew after a restore; and what came back, counted (S2.2). */
import type { Reference } from "../base/host-file.js";
import { keepStored } from "../vm/files/clean-pages.js";
import type { Devices } from "../vm/devices/index.js";
import type { Kernel } from "../vm/kernel.js";
import { KERNEL_RESUMES } from "../vm/memory/kernel-layout.js";
import { freeOldReserves } from "../cow/reserve.js";
import { countRestored, type Examined } from "./examine.js";

/** What a resume tells of a part of the machine that came back. */
export type Tell = (
  part: "kernel heap" | "process structures" | "memory" | "file descriptors" | "signal handlers" | "registers",
  found: string,
) => void;

/**
 * What came back is what was examined: counted anew, in the machine's own memory.
 *
 * @throws HIB_INCONSISTENT
 */
export function tellRestored(kernel: Kernel, examined: Examined, frames: { image: number; patched: number }, tell: Tell): void {
  const { blocks, areas, mappedPages, fds, pipeBytes, handlers, pending } = examined;
  const { freeByArena, freeFrames, processes } = countRestored(kernel.memory, examined);
  tell("kernel heap", `arenas: ${freeByArena.length}, blocks: ${blocks}, frames free: ${freeFrames}`);
  tell("process structures", `processes: ${processes}, areas: ${areas}`);
  tell("memory", `frames: ${frames.image}, patched: ${frames.patched}, pages mapped: ${mappedPages}`);
  tell("file descriptors", `open: ${fds}, bytes in pipes: ${pipeBytes}`);
  tell("signal handlers", `handlers: ${handlers}, processes with pending signals: ${pending}`);
  tell("registers", `of processes: ${processes}, x0 is 0 in each`);
}

/**
 * Contexts, bitmap, devices; and what was the snapshotter's is free (S1.1, S2.3).
 *
 * @param references - what came from files of the host
 * @param files - paths of files of the host that are others than they were
 */
export function rebuild(kernel: Kernel, devices: Devices, references: Iterable<Reference>, files: ReadonlySet<string>): void {
  keepStored(kernel, references);
  kernel.buddy.rebuildSaveable();
  kernel.turns.releaseRunning();
  freeOldReserves(kernel);
  kernel.files.acceptHost(files);
  kernel.memory.store32(KERNEL_RESUMES, kernel.memory.load32(KERNEL_RESUMES) + 1);
  devices.resume("restore");
}
