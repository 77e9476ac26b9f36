/**
 * Inodes: files in memory, directories, and files of the host that are open or mapped. All of them lie in the kernel heap; contents
 * are pages of the inode's memory object.
 *
 * What must hold: an inode is held by its names, by open descriptions, and by areas that map it; the last one frees it. A
 * file of the host is an inode only while it is open or mapped: its pages are never older than that.
 */
import { type PhysicalAddress, type ReadableMemory, walkList } from "../../base/memory.js";
import { ENOMEM, EROFS } from "../memory/errno.js";
import {
  allocateObject,
  createString,
  freeObject,
  freeString,
  type HeapObject,
  isTooLong,
  readString,
  stringObject,
} from "../memory/kernel-heap.js";
import { KERNEL_HOST_INODES } from "../memory/kernel-layout.js";
import type { KernelParts } from "../tasks/parts.js";
import type { Mount } from "./path.js";

export const INODE_BYTES = 128;
const REFERENCES = 0;
const TYPE = 4;
/** Its memory object (files). */
const OBJECT = 8;
/** First entry (directories). */
export const ENTRIES = 12;
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

/** Makes, changes and frees inodes. Callers hold the kernel lock. What is negative is an error number. */
export class Inodes {
  readonly #parts: KernelParts;

  constructor(parts: KernelParts) {
    this.#parts = parts;
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
    if (type === "host") this.#forgetHost(inode);
    freeObject(memory, inode, INODE_BYTES);
  }

  /** A file of the host is one in memory from now on: it has the pages that its object has, and zeros. */
  makeOwn(inode: PhysicalAddress): void {
    const { memory } = this.#parts;
    this.#forgetHost(inode);
    for (let word = HOST_DEVICE; word < INODE_BYTES; word += 4) memory.store32(inode + word, 0);
    memory.store32(inode + TYPE, TYPES.indexOf("file"));
  }

  #forgetHost(inode: PhysicalAddress): void {
    const { memory } = this.#parts;
    let link = KERNEL_HOST_INODES;
    while (memory.load32(link) >>> 0 !== inode) link = (memory.load32(link) >>> 0) + NEXT_HOST;
    memory.store32(link, memory.load32(inode + NEXT_HOST));
    freeString(memory, memory.load32(inode + HOST_PATH) >>> 0);
  }

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

  /**
   * Other paths for files of the host that are open. The memory for them is taken now, so that they can be put in place once the host
   * has moved the files, and nothing can fail any more.
   *
   * @param pathOf - the new path of a file; undefined if it keeps its own
   * @throws ENOMEM, ENAMETOOLONG
   */
  preparePaths(pathOf: (inode: Inode) => string | undefined): { take(): void; giveUp(): void } {
    const { memory, buddy } = this.#parts;
    const made: { at: PhysicalAddress; path: PhysicalAddress }[] = [];
    const giveUp = (): void => {
      for (const { path } of made) freeString(memory, path);
    };
    for (const inode of walkHostInodes(memory)) {
      const text = pathOf(inode);
      const path = text === undefined ? undefined : createString(memory, buddy, text);
      if (path !== undefined) made.push({ at: inode.at + HOST_PATH, path });
      else if (text !== undefined) {
        giveUp();
        throw Object.assign(new Error(`no room for the path ${text}`), { code: isTooLong(text) ? "ENAMETOOLONG" : "ENOMEM" });
      }
    }
    const take = (): void => {
      for (const { at, path } of made) {
        freeString(memory, memory.load32(at) >>> 0);
        memory.store32(at, path);
      }
    };
    return { take, giveUp };
  }
}

function load64(memory: ReadableMemory, at: PhysicalAddress): bigint {
  return (BigInt(memory.load32(at + 4) >>> 0) << 32n) | BigInt(memory.load32(at) >>> 0);
}

function store64(parts: KernelParts, at: PhysicalAddress, value: bigint): void {
  parts.memory.store32(at, Number(BigInt.asIntN(32, value)));
  parts.memory.store32(at + 4, Number(BigInt.asIntN(32, value >> 32n)));
}
