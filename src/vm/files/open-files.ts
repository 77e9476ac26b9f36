/** What a machine has open of the host's files, read from its memory: for the records of an image. */
import type { Pfn, ReadableMemory } from "../../base/memory.js";
import { walkAreas } from "../area.js";
import { FRAME_ENTRY_BYTES, FRAME_HEADER, KIND_FILE_CLEAN, kernelLayout } from "../kernel-layout.js";
import { walkObject } from "../memory-object.js";
import { listProcesses } from "../process.js";
import { PTE_W } from "../../base/layout.js";
import { walkFds } from "./descriptions.js";
import { ACCESS_MODE, O_RDONLY } from "./flags.js";
import { type HostIdentity, walkHostInodes } from "./inode.js";

/** A file of the host that processes have open or mapped. */
export interface OpenFile extends HostIdentity {
  /** Whether some process can write to it. */
  mode: "r" | "rw";
}

export function openFiles(memory: ReadableMemory): OpenFile[] {
  const written = new Set<number>();
  for (const { slot, areas } of listProcesses(memory)) {
    for (const { description } of walkFds(memory, slot))
      if (description.kind === "inode" && (description.flags & ACCESS_MODE) !== O_RDONLY) written.add(description.behind);
    for (const { object, shared, flags } of walkAreas(memory, areas)) if (shared && (flags & PTE_W) !== 0) written.add(object);
  }
  return Array.from(walkHostInodes(memory), ({ at, object, host }) => ({
    ...host!,
    mode: written.has(at) || written.has(object) ? "rw" : "r",
  }));
}

/** Clean pages of files: what the host's file has there. */
export function* walkCleanPages(memory: ReadableMemory): Generator<{ path: string; page: number; frame: Pfn }> {
  const { frameTable } = kernelLayout(memory.frames);
  for (const { object, host } of walkHostInodes(memory)) {
    for (const { page, frame } of walkObject(memory, object)) {
      if (memory.load32(frameTable + frame * FRAME_ENTRY_BYTES + FRAME_HEADER) >>> 16 === KIND_FILE_CLEAN)
        yield { path: host!.path, page, frame };
    }
  }
}
