/**
 * The in-memory file system's names: directories and what is in them, in the kernel heap.
 *
 * What must hold: a directory has one name, so that it is in no directory that is in it.
 */
import { Contradiction } from "../../base/errors.js";
import { type PhysicalAddress, type ReadableMemory, walkList } from "../../base/memory.js";
import { EBUSY, EEXIST, EINVAL, EISDIR, ENAMETOOLONG, ENOENT, ENOMEM, ENOTDIR, ENOTEMPTY } from "../memory/errno.js";
import { allocateObject, freeObject, type HeapObject } from "../memory/kernel-heap.js";
import { KERNEL_ROOT } from "../memory/kernel-layout.js";
import type { KernelParts } from "../tasks/parts.js";
import { ENTRIES, type Inodes, readInode } from "./inode.js";

const ENTRY_HEAD = 12;
const NAME_BYTES_MAX = 255;
/** Directories in directories: code that walks the tree goes as deep. */
const DEPTH_MAX = 64;

/** Names and inodes of a directory, newest first. */
export function* walkDirectory(
  memory: ReadableMemory,
  directory: PhysicalAddress,
): Generator<{ name: string; inode: PhysicalAddress } & HeapObject> {
  for (const at of walkList(memory, memory.load32(directory + ENTRIES), { next: 0 })) {
    const length = memory.load32(at + 8);
    if (length < 1 || length > NAME_BYTES_MAX) throw new Contradiction(`a name in a directory has ${length} bytes`);
    const name = new TextDecoder().decode(memory.read(at + ENTRY_HEAD, length));
    yield { name, inode: memory.load32(at + 4) >>> 0, at, bytes: ENTRY_HEAD + length };
  }
}

/** The tree of names. Callers hold the kernel lock. What is negative is an error number. */
export class DirectoryTree {
  readonly #parts: KernelParts;
  readonly #inodes: Inodes;

  constructor(parts: KernelParts, inodes: Inodes) {
    this.#parts = parts;
    this.#inodes = inodes;
  }

  /** Builds the empty tree of a machine that boots. */
  initialise(): void {
    this.#parts.memory.store32(KERNEL_ROOT, this.#inodes.create("directory"));
  }

  get root(): PhysicalAddress {
    return this.#parts.memory.load32(KERNEL_ROOT) >>> 0;
  }

  /** The inode at a path. */
  lookup(parts: readonly string[]): number {
    let at = this.root;
    for (const part of parts) {
      if (readInode(this.#parts.memory, at).type !== "directory") return -ENOTDIR;
      const found = this.#find(at, part);
      if (found === undefined) return -ENOENT;
      at = found.inode;
    }
    return at;
  }

  #find(directory: PhysicalAddress, name: string): { inode: PhysicalAddress; at: PhysicalAddress } | undefined {
    for (const entry of walkDirectory(this.#parts.memory, directory)) if (entry.name === name) return entry;
    return undefined;
  }

  #directoryOf(parts: readonly string[]): number {
    if (parts.length === 0) return -EEXIST; // the root
    if (parts.length > DEPTH_MAX) return -ENAMETOOLONG;
    const directory = this.lookup(parts.slice(0, -1));
    if (directory < 0) return directory;
    return readInode(this.#parts.memory, directory).type === "directory" ? directory : -ENOTDIR;
  }

  /** Makes a file or a directory with a name; the name holds it. */
  make(parts: readonly string[], type: "file" | "directory"): number {
    const directory = this.#directoryOf(parts);
    if (directory < 0) return directory;
    const name = parts.at(-1)!;
    if (this.#find(directory, name) !== undefined) return -EEXIST;
    const inode = this.#inodes.create(type);
    if (inode < 0) return inode;
    const entered = this.#enter(directory, name, inode);
    if (entered < 0) this.#inodes.release(inode);
    return entered < 0 ? entered : inode;
  }

  /** Gives an inode a name in a directory, which takes over a reference. */
  #enter(directory: PhysicalAddress, name: string, inode: PhysicalAddress): number {
    const { memory, buddy } = this.#parts;
    const bytes = new TextEncoder().encode(name);
    if (bytes.length > NAME_BYTES_MAX) return -ENAMETOOLONG;
    const entry = allocateObject(memory, buddy, ENTRY_HEAD + bytes.length);
    if (entry === undefined) return -ENOMEM;
    memory.store32(entry, memory.load32(directory + ENTRIES));
    memory.store32(entry + 4, inode);
    memory.store32(entry + 8, bytes.length);
    memory.write(entry + ENTRY_HEAD, bytes);
    memory.store32(directory + ENTRIES, entry);
    return 0;
  }

  #leave(directory: PhysicalAddress, entry: PhysicalAddress): void {
    const { memory } = this.#parts;
    let link = directory + ENTRIES;
    while (memory.load32(link) >>> 0 !== entry) link = memory.load32(link) >>> 0;
    const bytes = ENTRY_HEAD + memory.load32(entry + 8);
    memory.store32(link, memory.load32(entry));
    freeObject(memory, entry, bytes);
  }

  /** Takes a name away; of a directory only if it is empty. */
  unlink(parts: readonly string[], type: "file" | "directory"): number {
    const directory = this.#directoryOf(parts);
    if (directory < 0) return parts.length === 0 ? -EBUSY : directory;
    const found = this.#find(directory, parts.at(-1)!);
    if (found === undefined) return -ENOENT;
    const inode = readInode(this.#parts.memory, found.inode);
    if (inode.type !== type) return type === "file" ? -EISDIR : -ENOTDIR;
    if (type === "directory" && !walkDirectory(this.#parts.memory, found.inode).next().done) return -ENOTEMPTY;
    this.#leave(directory, found.at);
    this.#inodes.release(found.inode);
    return 0;
  }

  /** Gives what is at one path another, replacing a file there, or an empty directory by a directory. */
  rename(from: readonly string[], to: readonly string[]): number {
    const directory = this.#directoryOf(from);
    const target = this.#directoryOf(to);
    if (from.length === 0 || to.length === 0) return -EBUSY;
    if (directory < 0 || target < 0) return directory < 0 ? directory : target;
    const moved = this.#find(directory, from.at(-1)!);
    if (moved === undefined) return -ENOENT;
    if (isBelow(to, from)) return -EINVAL; // into itself
    if (isBelow(from, to)) return -ENOTEMPTY;
    if (to.length + this.#depthBelow(moved.inode) > DEPTH_MAX) return -ENAMETOOLONG;
    const there = this.#find(target, to.at(-1)!);
    if (there?.inode === moved.inode) return 0;
    if (there !== undefined) {
      const refused = this.#cannotReplace(moved.inode, there.inode);
      if (refused < 0) return refused;
    }
    const entered = this.#enter(target, to.at(-1)!, moved.inode);
    if (entered < 0) return entered;
    // Two entries of one name may stand in the target now; the newer is the first. Take away the older, then the old name.
    if (there !== undefined) {
      this.#leave(target, there.at);
      this.#inodes.release(there.inode);
    }
    this.#leave(directory, moved.at);
    return 0;
  }

  #cannotReplace(inode: PhysicalAddress, there: PhysicalAddress): number {
    const { memory } = this.#parts;
    const [type, replaced] = [readInode(memory, inode).type, readInode(memory, there).type];
    if (replaced !== "directory") return type === "directory" ? -ENOTDIR : 0;
    if (type !== "directory") return -EISDIR;
    return walkDirectory(memory, there).next().done === true ? 0 : -ENOTEMPTY;
  }

  /** Names in a row below an inode. */
  #depthBelow(inode: PhysicalAddress): number {
    const { memory } = this.#parts;
    if (readInode(memory, inode).type !== "directory") return 0;
    let depth = 0;
    for (const entry of walkDirectory(memory, inode)) depth = Math.max(depth, 1 + this.#depthBelow(entry.inode));
    return depth;
  }
}

function isBelow(path: readonly string[], directory: readonly string[]): boolean {
  return path.length > directory.length && directory.every((part, i) => part === path[i]);
}
