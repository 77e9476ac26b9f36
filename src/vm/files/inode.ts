/**
 * Inodes, directories and mounts: the in-memory file system and what of the host's is mounted into it. All of it lies in the
 * kernel heap; contents are pages of the inode's memory object.
 *
 * What must hold: an inode is held by its names, by open descriptions, and by areas that map it; the last one frees it. A
 * file of the host is an inode only while it is open or mapped: its pages are never older than that.
 */
import { FRAME_BYTES } from "../../base/layout.js";
import { Contradiction } from "../../base/errors.js";
import { type PhysicalAddress, type ReadableMemory, walkList } from "../../base/memory.js";
import {
  EEXIST,
  EFBIG,
  EINVAL,
  EISDIR,
  ENAMETOOLONG,
  ENOENT,
  ENOMEM,
  ENOSPC,
  ENOTDIR,
  ENOTEMPTY,
  EROFS,
  EBUSY,
} from "../memory/errno.js";
import {
  allocateObject,
  createString,
  freeObject,
  freeString,
  type HeapObject,
  readString,
  stringObject,
} from "../memory/kernel-heap.js";
import { KERNEL_HOST_INODES, KERNEL_ROOT } from "../memory/kernel-layout.js";
import type { KernelParts } from "../tasks/parts.js";
import type { Mount } from "./path.js";
import { OBJECT_PAGES_MAX } from "../memory/memory-object.js";

export const INODE_BYTES = 128;
const REFERENCES = 0;
const TYPE = 4;
/** Its memory object (files). */
const OBJECT = 8;
/** First entry (directories). */
const ENTRIES = 12;
const SIZE = 16;
const MODIFIED = 24;
/** Of a file of the host: device and inode number, 64 bits each. */
const HOST_DEVICE = 32;
const HOST_NUMBER = 40;
/** Path on the host (a string object), and the next inode of the host's. */
const HOST_PATH = 48;
const NEXT_HOST = 52;
const READ_ONLY = 56;
/** Of a file of the host: its last change, ns since 1970, as this machine last made or saw it. */
const HOST_MODIFIED = 64;

export type InodeType = "file" | "directory" | "host";
const TYPES: readonly InodeType[] = ["file", "directory", "host"];

const ENTRY_HEAD = 12;
const NAME_BYTES_MAX = 255;
/** Directories in directories: who walks the tree goes as deep. */
const DEPTH_MAX = 64;

/** An inode, as read at one moment. */
export interface Inode {
  at: PhysicalAddress;
  type: InodeType;
  references: number;
  object: PhysicalAddress;
  size: number;
  /** ms since 1970. */
  modified: number;
  readOnly: boolean;
  /** Of the host's: what the host says it is. */
  host: HostIdentity | undefined;
}

export function readInode(memory: ReadableMemory, at: PhysicalAddress): Inode {
  const type = TYPES[memory.load32(at + TYPE)]!;
  return {
    at,
    type,
    references: memory.load32(at + REFERENCES),
    object: memory.load32(at + OBJECT) >>> 0,
    size: memory.loadFloat64(at + SIZE),
    modified: memory.loadFloat64(at + MODIFIED),
    readOnly: memory.load32(at + READ_ONLY) !== 0,
    host:
      type === "host"
        ? {
            path: readString(memory, memory.load32(at + HOST_PATH) >>> 0),
            device: load64(memory, at + HOST_DEVICE),
            number: load64(memory, at + HOST_NUMBER),
            size: memory.loadFloat64(at + SIZE),
            modified: load64(memory, at + HOST_MODIFIED),
          }
        : undefined,
  };
}

/** Files of the host that are open or mapped. */
export function* walkHostInodes(memory: ReadableMemory): Generator<Inode> {
  for (const at of walkList(memory, memory.load32(KERNEL_HOST_INODES), { next: NEXT_HOST })) yield readInode(memory, at);
}

/** What an inode consists of, but for its memory object and its entries. */
export function inodeParts(memory: ReadableMemory, at: PhysicalAddress): HeapObject[] {
  const path = memory.load32(at + HOST_PATH) >>> 0;
  return [{ at, bytes: INODE_BYTES }, ...(path === 0 ? [] : [stringObject(memory, path)])];
}

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

/** What a file of the host is, as this machine last made or saw it. */
export interface HostIdentity {
  /** Absolute. */
  path: string;
  device: bigint;
  /** Of its inode. */
  number: bigint;
  size: number;
  /** ns since 1970. */
  modified: bigint;
}

/** The tree of inodes. Callers hold the kernel lock. What is negative is an error number. */
export class InodeTree {
  readonly #parts: KernelParts;

  constructor(parts: KernelParts) {
    this.#parts = parts;
  }

  /** Builds the empty tree of a machine that boots. */
  initialise(): void {
    this.#parts.memory.store32(KERNEL_ROOT, this.create("directory"));
  }

  /** A new inode, held once. */
  create(type: InodeType): number {
    const { memory, buddy, objects } = this.#parts;
    const at = allocateObject(memory, buddy, INODE_BYTES);
    if (at === undefined) return -ENOMEM;
    for (let word = 0; word < INODE_BYTES; word += 4) memory.store32(at + word, 0);
    memory.store32(at + REFERENCES, 1);
    memory.store32(at + TYPE, TYPES.indexOf(type));
    memory.storeFloat64(at + MODIFIED, Date.now());
    if (type === "directory") return at;
    const object = objects.create(at);
    if (object === undefined) {
      freeObject(memory, at, INODE_BYTES);
      return -ENOMEM;
    }
    memory.store32(at + OBJECT, object);
    return at;
  }

  share(inode: PhysicalAddress): void {
    const { memory } = this.#parts;
    memory.store32(inode + REFERENCES, memory.load32(inode + REFERENCES) + 1);
  }

  /** One fewer holds it; the last one gives back its contents. */
  release(inode: PhysicalAddress): void {
    const { memory, objects } = this.#parts;
    const references = memory.load32(inode + REFERENCES) - 1;
    memory.store32(inode + REFERENCES, references);
    if (references > 0) return;
    const { object, type } = readInode(memory, inode);
    if (object !== 0) objects.destroy(object);
    if (type === "host") {
      this.#unlinkHost(inode);
      freeString(memory, memory.load32(inode + HOST_PATH) >>> 0);
    }
    freeObject(memory, inode, INODE_BYTES);
  }

  #unlinkHost(inode: PhysicalAddress): void {
    const { memory } = this.#parts;
    let link = KERNEL_HOST_INODES;
    while (memory.load32(link) >>> 0 !== inode) link = (memory.load32(link) >>> 0) + NEXT_HOST;
    memory.store32(link, memory.load32(inode + NEXT_HOST));
  }

  // ---- the in-memory tree ----

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
    const inode = this.create(type);
    if (inode < 0) return inode;
    const entered = this.#enter(directory, name, inode);
    if (entered < 0) this.release(inode);
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
    this.release(found.inode);
    return 0;
  }

  /** Gives what is at one path another, replacing a file there. */
  rename(from: readonly string[], to: readonly string[]): number {
    const directory = this.#directoryOf(from);
    const target = this.#directoryOf(to);
    if (directory < 0 || target < 0) return from.length === 0 || to.length === 0 ? -EBUSY : Math.min(directory, target);
    const moved = this.#find(directory, from.at(-1)!);
    if (moved === undefined) return -ENOENT;
    if (to.length > from.length && from.every((part, i) => part === to[i])) return -EINVAL; // into itself
    if (to.length + this.#depthBelow(moved.inode) > DEPTH_MAX) return -ENAMETOOLONG;
    const there = this.#find(target, to.at(-1)!);
    if (there?.inode === moved.inode) return 0;
    if (there !== undefined) {
      const replaced = readInode(this.#parts.memory, there.inode).type;
      if (replaced !== "file") return -EISDIR;
      if (readInode(this.#parts.memory, moved.inode).type === "directory") return -ENOTDIR;
    }
    const entered = this.#enter(target, to.at(-1)!, moved.inode);
    if (entered < 0) return entered;
    // Two entries of one name may stand in the target now; the newer is the first. Take away the older, then the old name.
    if (there !== undefined) {
      this.#leave(target, there.at);
      this.release(there.inode);
    }
    this.#leave(directory, moved.at);
    return 0;
  }

  /** Names in a row below an inode. */
  #depthBelow(inode: PhysicalAddress): number {
    const { memory } = this.#parts;
    if (readInode(memory, inode).type !== "directory") return 0;
    let depth = 0;
    for (const entry of walkDirectory(memory, inode)) depth = Math.max(depth, 1 + this.#depthBelow(entry.inode));
    return depth;
  }

  // ---- contents of files in memory ----

  setSize(inode: PhysicalAddress, size: number, modified: number = Date.now()): void {
    this.#parts.memory.storeFloat64(inode + SIZE, size);
    this.#parts.memory.storeFloat64(inode + MODIFIED, modified);
  }

  /** A file of the host is this now: by this machine's doing, or because the user says that it may be. */
  note(inode: PhysicalAddress, { device, number, size, modified }: Omit<HostIdentity, "path">): void {
    this.setSize(inode, size, Number(modified / 1_000_000n));
    store64(this.#parts, inode + HOST_DEVICE, device);
    store64(this.#parts, inode + HOST_NUMBER, number);
    store64(this.#parts, inode + HOST_MODIFIED, modified);
  }

  /** Bytes of a file in memory from a position, at most `length`. */
  read(inode: Inode, position: number, length: number): Uint8Array {
    const bytes = new Uint8Array(Math.max(0, Math.min(length, inode.size - position)));
    this.#visitPages(position, bytes.length, (page, at, done, count) => {
      const frame = this.#parts.objects.find(inode.object, page);
      if (frame !== undefined) bytes.set(this.#parts.memory.read(frame * FRAME_BYTES + at, count), done);
      return true;
    });
    return bytes;
  }

  /** Stores bytes into a file in memory; returns how many, fewer if there is no more memory. */
  write(inode: Inode, position: number, bytes: Uint8Array): number {
    if ((position + bytes.length) / FRAME_BYTES > OBJECT_PAGES_MAX) return -EFBIG;
    let written = 0;
    this.#visitPages(position, bytes.length, (page, at, done, count) => {
      const frame = this.#parts.objects.find(inode.object, page) ?? this.#parts.objects.fillWithZeros(inode.object, page);
      if (frame === undefined) return false;
      this.#parts.memory.write(frame * FRAME_BYTES + at, bytes.subarray(done, done + count));
      written += count;
      return true;
    });
    if (written === 0 && bytes.length > 0) return -ENOSPC;
    this.setSize(inode.at, Math.max(inode.size, position + written));
    return written;
  }

  #visitPages(position: number, length: number, visit: (page: number, at: number, done: number, count: number) => boolean): void {
    for (let done = 0; done < length; ) {
      const at = (position + done) % FRAME_BYTES;
      const count = Math.min(FRAME_BYTES - at, length - done);
      if (!visit(Math.floor((position + done) / FRAME_BYTES), at, done, count)) return;
      done += count;
    }
  }

  /** Cuts a file in memory, or lengthens it with zeros. One that is mapped is not cut: its pages are in use. */
  truncate(inode: Inode, size: number): number {
    const { memory, objects } = this.#parts;
    if (size / FRAME_BYTES > OBJECT_PAGES_MAX) return -EFBIG;
    if (size < inode.size) {
      if (objects.isMapped(inode.object)) return -EBUSY;
      objects.truncate(inode.object, Math.ceil(size / FRAME_BYTES));
      const last = objects.find(inode.object, Math.floor(size / FRAME_BYTES));
      const tail = size % FRAME_BYTES;
      if (tail > 0 && last !== undefined) memory.write(last * FRAME_BYTES + tail, new Uint8Array(FRAME_BYTES - tail));
    }
    this.setSize(inode.at, size);
    return 0;
  }

  // ---- files of the host ----

  /** The inode of a file of the host, held once more; made if it is not open. */
  openHost(identity: HostIdentity, { readOnly }: Pick<Mount, "readOnly">): number {
    const { memory, buddy, objects } = this.#parts;
    for (const inode of walkHostInodes(memory)) {
      if (inode.host?.device !== identity.device || inode.host.number !== identity.number) continue;
      if (inode.readOnly && !readOnly) return -EROFS; // one mount says so, and it was first
      this.share(inode.at);
      return inode.at;
    }
    const inode = this.create("host");
    if (inode < 0) return inode;
    const path = createString(memory, buddy, identity.path);
    if (path === undefined) {
      objects.destroy(readInode(memory, inode).object);
      freeObject(memory, inode, INODE_BYTES);
      return -ENOMEM;
    }
    memory.store32(inode + HOST_PATH, path);
    memory.store32(inode + READ_ONLY, readOnly ? 1 : 0);
    memory.store32(inode + NEXT_HOST, memory.load32(KERNEL_HOST_INODES));
    memory.store32(KERNEL_HOST_INODES, inode);
    this.note(inode, identity);
    return inode;
  }
}

function load64(memory: ReadableMemory, at: PhysicalAddress): bigint {
  return (BigInt(memory.load32(at + 4) >>> 0) << 32n) | BigInt(memory.load32(at) >>> 0);
}

function store64(parts: KernelParts, at: PhysicalAddress, value: bigint): void {
  parts.memory.store32(at, Number(BigInt.asIntN(32, value)));
  parts.memory.store32(at + 4, Number(BigInt.asIntN(32, value >> 32n)));
}
