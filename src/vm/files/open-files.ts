/** What a machine has open of the host's files, read from its memory: for the records of an image. */
import { Contradiction } from "../../base/errors.js";
import type { Pfn, PhysicalAddress, ReadableMemory } from "../../base/memory.js";
import { walkAreas } from "../memory/area.js";
import { FRAME_ENTRY_BYTES, FRAME_HEADER, KERNEL_ROOT, KIND_FILE_CLEAN, kernelLayout } from "../memory/kernel-layout.js";
import { walkObject } from "../memory/memory-object.js";
import { listProcesses } from "../tasks/process.js";
import { PTE_W } from "../../base/layout.js";
import { type DescriptionKind, walkFds } from "./descriptions.js";
import { ACCESS_MODE, O_RDONLY } from "./flags.js";
import { type HostIdentity, readInode, walkHostInodes } from "./inode.js";
import { readPipe } from "./pipe.js";
import { walkDirectory } from "./tree.js";

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

/** An fd of a process, with what is behind it. */
export interface FdDescription {
  fd: number;
  kind: DescriptionKind;
  /** Of a file: its path on the host, or in the machine; null for one that has no name any more. */
  path: string | null;
  /** Whether `path` is one on the host. */
  host: boolean | null;
  /** Of a file: the memory object that has its pages, 0 if none has; and its bytes. */
  object: PhysicalAddress | null;
  size: number | null;
  /** How it was opened: O_* bits. */
  flags: number;
  cloexec: boolean;
  position: number;
  /** fds that share the position, this one counted. */
  shared_by: number;
  /** What the ends of a pipe have in common. */
  pipe: number | null;
  /** Of a pipe: the frame that is its ring, where in that its first byte is, and how many there are. */
  frame: Pfn | null;
  start: number | null;
  filled: number | null;
}

const NO_PIPE = { pipe: null, frame: null, start: null, filled: null };

export function describeFds(memory: ReadableMemory, slot: number): FdDescription[] {
  return Array.from(walkFds(memory, slot), ({ fd, cloexec, description: { kind, behind, flags, position, references } }) => {
    const about = { fd, kind, flags, cloexec, position, shared_by: references };
    if (kind === "inode") {
      const { object, size } = readInode(memory, behind);
      return { ...about, ...nameOf(memory, behind), object, size, ...NO_PIPE };
    }
    const nameless = { ...about, path: null, host: null, object: null, size: null };
    if (kind === "console") return { ...nameless, ...NO_PIPE };
    const { frame, start, filled } = readPipe(memory, behind);
    return { ...nameless, pipe: behind, frame, start, filled };
  });
}

/** Path of an inode; one of them, if it has several. */
function nameOf(memory: ReadableMemory, wanted: PhysicalAddress): Pick<FdDescription, "path" | "host"> {
  const { host } = readInode(memory, wanted);
  if (host !== undefined) return { path: host.path, host: true };
  const directories = [{ at: memory.load32(KERNEL_ROOT) >>> 0, path: "" }];
  const seen = new Set<PhysicalAddress>();
  for (let next = directories.pop(); next !== undefined; next = directories.pop()) {
    const { at, path } = next;
    if (seen.has(at)) throw new Contradiction(`the directory ${path} is in itself, or has two names`);
    seen.add(at);
    for (const { name, inode } of walkDirectory(memory, at)) {
      if (inode === wanted) return { path: `${path}/${name}`, host: false };
      if (readInode(memory, inode).type === "directory") directories.push({ at: inode, path: `${path}/${name}` });
    }
  }
  return { path: null, host: null };
}

/** Clean pages of a file, from page `from` on: what the host's file has there. */
export function* walkCleanPages(
  memory: ReadableMemory,
  object: PhysicalAddress,
  from = 0,
): Generator<{ page: number; frame: Pfn }> {
  const { frameTable } = kernelLayout(memory.frames);
  for (const found of walkObject(memory, object, from)) {
    if (memory.load32(frameTable + found.frame * FRAME_ENTRY_BYTES + FRAME_HEADER) >>> 16 === KIND_FILE_CLEAN) yield found;
  }
}
