/** Paths of the machine, and the directories of the host that are mounted into them. Callers hold the kernel lock. */
import { type ReadableMemory, walkList } from "../../base/memory.js";
import { ENOMEM } from "../memory/errno.js";
import { allocateObject, createString, type HeapObject, readString, stringObject } from "../memory/kernel-heap.js";
import { KERNEL_MOUNTS } from "../memory/kernel-layout.js";
import type { KernelParts } from "../tasks/parts.js";
import { mountRoot } from "./mount-roots.js";

/** The parts of an absolute path, without `.` and `..`. */
export function splitPath(path: string): string[] {
  const parts: string[] = [];
  for (const part of path.split("/")) {
    if (part === "" || part === ".") continue;
    if (part === "..") parts.pop();
    else parts.push(part);
  }
  return parts;
}

export interface Mount {
  /** Where it is seen, with `/` at neither end but the start. */
  path: string;
  /** Directory of the host. */
  host: string;
  readOnly: boolean;
}

/** A mount, and where its directory is now, for the host's calls (mount-roots.ts). */
export type RootedMount = Mount & { root: string };

const MOUNT_BYTES = 16;

/** The mounts, each with the objects that it consists of. */
export function* walkMounts(memory: ReadableMemory): Generator<Mount & { objects: HeapObject[] }> {
  for (const at of walkList(memory, memory.load32(KERNEL_MOUNTS), { next: 0 })) {
    const [path, host] = [memory.load32(at + 4) >>> 0, memory.load32(at + 8) >>> 0];
    yield {
      path: readString(memory, path),
      host: readString(memory, host),
      readOnly: memory.load32(at + 12) !== 0,
      objects: [{ at, bytes: MOUNT_BYTES }, stringObject(memory, path), stringObject(memory, host)],
    };
  }
}

export class Mounts {
  readonly #parts: KernelParts;

  constructor(parts: KernelParts) {
    this.#parts = parts;
  }

  /** Mounts a directory of the host at a path. */
  add({ path, host, readOnly }: Mount): number {
    const { memory, buddy } = this.#parts;
    const mount = allocateObject(memory, buddy, MOUNT_BYTES);
    const strings = [createString(memory, buddy, `/${splitPath(path).join("/")}`), createString(memory, buddy, host)];
    if (mount === undefined || strings.includes(undefined)) return -ENOMEM;
    memory.store32(mount, memory.load32(KERNEL_MOUNTS));
    memory.store32(mount + 4, strings[0]!);
    memory.store32(mount + 8, strings[1]!);
    memory.store32(mount + 12, readOnly ? 1 : 0);
    memory.store32(KERNEL_MOUNTS, mount);
    return 0;
  }

  /** The mount that a path lies in, and the rest of the path; undefined if it is in memory. */
  find(parts: readonly string[]): { mount: RootedMount; rest: string[] } | undefined {
    const { control, memory } = this.#parts;
    let best: { mount: RootedMount; rest: string[] } | undefined;
    let longest = -1;
    let index = 0;
    for (const mount of walkMounts(memory)) {
      const at = splitPath(mount.path);
      if (at.length > longest && at.every((part, i) => parts[i] === part)) {
        best = { mount: { ...mount, root: mountRoot(control, index, mount.host) }, rest: parts.slice(at.length) };
        longest = at.length;
      }
      index++;
    }
    return best;
  }
}
