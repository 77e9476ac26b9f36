/**
 * What processes have open: fd tables and file descriptions. A description has the position and the flags, and is shared by
 * dup and fork.
 *
 * What must hold: a description is held by the fds that name it; the last one gives back what is behind it. Callers hold the
 * kernel lock. What is negative is an error number.
 */
import { FRAME_BYTES } from "../../base/layout.js";
import type { PhysicalAddress, ReadableMemory } from "../../base/memory.js";
import { EBADF, EMFILE, ENOMEM } from "../memory/errno.js";
import { allocateObject, freeObject } from "../memory/kernel-heap.js";
import { KIND_KERNEL_HEAP, PROCESS_FDS, processAddress } from "../memory/kernel-layout.js";
import type { FdTables } from "../tasks/lifecycle.js";
import type { KernelParts } from "../tasks/parts.js";
import { createPipe, releaseEnd } from "./pipe.js";

export const FDS_MAX = 256;
const FD_BYTES = 8;
/** Flag of an fd: closed by exec. */
export const FD_CLOEXEC = 1;

export const DESCRIPTION_BYTES = 32;
const REFERENCES = 0;
const KIND = 4;
/** Inode or pipe. */
const BEHIND = 8;
const FLAGS = 12;
const POSITION = 16;

export type DescriptionKind = "inode" | "reader" | "writer" | "console";
const KINDS: readonly DescriptionKind[] = ["inode", "reader", "writer", "console"];

/** An open file, as read at one moment. */
export interface Description {
  at: PhysicalAddress;
  kind: DescriptionKind;
  /** Address of the inode or pipe. */
  behind: PhysicalAddress;
  /** As given to open (O_*). */
  flags: number;
  position: number;
  references: number;
}

export interface Fd {
  fd: number;
  cloexec: boolean;
  description: Description;
}

export function readDescription(memory: ReadableMemory, at: PhysicalAddress): Description {
  return {
    at,
    kind: KINDS[memory.load32(at + KIND)]!,
    behind: memory.load32(at + BEHIND) >>> 0,
    flags: memory.load32(at + FLAGS),
    position: memory.loadFloat64(at + POSITION),
    references: memory.load32(at + REFERENCES),
  };
}

/** Open fds of a process, in order. */
export function* walkFds(memory: ReadableMemory, slot: number): Generator<Fd> {
  const table = memory.load32(processAddress(memory, slot) + PROCESS_FDS);
  if (table === 0) return;
  for (let fd = 0; fd < FDS_MAX; fd++) {
    const at = (table - 1) * FRAME_BYTES + fd * FD_BYTES;
    const description = memory.load32(at) >>> 0;
    if (description === 0) continue;
    yield { fd, cloexec: (memory.load32(at + 4) & FD_CLOEXEC) !== 0, description: readDescription(memory, description) };
  }
}

export class Descriptions implements FdTables {
  readonly #parts: KernelParts;
  readonly #releaseInode: (inode: PhysicalAddress) => void;

  constructor(parts: KernelParts, releaseInode: (inode: PhysicalAddress) => void) {
    this.#parts = parts;
    this.#releaseInode = releaseInode;
  }

  // ---- fds ----

  #entry(slot: number, fd: number): PhysicalAddress | undefined {
    const table = this.#parts.memory.load32(processAddress(this.#parts.memory, slot) + PROCESS_FDS);
    if (table === 0 || !Number.isInteger(fd) || fd < 0 || fd >= FDS_MAX) return undefined;
    return (table - 1) * FRAME_BYTES + fd * FD_BYTES;
  }

  /** What an fd names; undefined if it is not open. */
  find(slot: number, fd: number): Description | undefined {
    const entry = this.#entry(slot, fd);
    const at = entry === undefined ? 0 : this.#parts.memory.load32(entry) >>> 0;
    return at === 0 ? undefined : readDescription(this.#parts.memory, at);
  }

  /** Gives a description, with one reference of the caller's, the least free fd from `least` on, with these flags (FD_CLOEXEC). */
  install(slot: number, description: PhysicalAddress, flags = 0, least = 0): number {
    if (!this.#makeTable(slot)) return -ENOMEM;
    for (let fd = least; fd < FDS_MAX; fd++) {
      if (this.find(slot, fd) !== undefined) continue;
      this.#store(slot, fd, description, flags);
      return fd;
    }
    return -EMFILE;
  }

  #makeTable(slot: number): boolean {
    const { memory, buddy } = this.#parts;
    const word = processAddress(memory, slot) + PROCESS_FDS;
    if (memory.load32(word) !== 0) return true;
    const frame = buddy.allocate(0, 0, KIND_KERNEL_HEAP);
    if (frame === undefined) return false;
    memory.zero(frame, 1);
    memory.store32(word, frame + 1);
    return true;
  }

  #store(slot: number, fd: number, description: PhysicalAddress, flags: number): void {
    const entry = this.#entry(slot, fd)!;
    this.#parts.memory.store32(entry, description);
    this.#parts.memory.store32(entry + 4, flags);
  }

  close(slot: number, fd: number): number {
    const description = this.find(slot, fd);
    if (description === undefined) return -EBADF;
    this.#store(slot, fd, 0, 0);
    this.release(description.at);
    return 0;
  }

  /** dup2 and dup (`to` undefined): another fd for the same description. */
  duplicate(slot: number, fd: number, to?: number): number {
    const description = this.find(slot, fd);
    if (description === undefined) return -EBADF;
    if (to === fd) return fd;
    if (to !== undefined && (!Number.isInteger(to) || to < 0 || to >= FDS_MAX)) return -EBADF;
    if (to !== undefined) this.close(slot, to);
    const installed = this.install(slot, description.at, 0, to ?? 0);
    if (installed >= 0) this.#share(description.at);
    return installed;
  }

  /** fcntl(F_SETFD): FD_CLOEXEC or 0. */
  setFlags(slot: number, fd: number, flags: number): number {
    const description = this.find(slot, fd);
    if (description === undefined) return -EBADF;
    this.#store(slot, fd, description.at, flags & FD_CLOEXEC);
    return 0;
  }

  /** fork: the child has the same descriptions. False if there is no memory. */
  copyTable(from: number, to: number): boolean {
    for (const { fd, cloexec, description } of walkFds(this.#parts.memory, from)) {
      if (!this.#makeTable(to)) return false;
      this.#store(to, fd, description.at, cloexec ? FD_CLOEXEC : 0);
      this.#share(description.at);
    }
    return true;
  }

  /** exec closes some (`cloexec`), the end all, and the table with them. */
  closeAll(slot: number, which: "all" | "cloexec"): void {
    const { memory, buddy } = this.#parts;
    for (const { fd, cloexec } of Array.from(walkFds(memory, slot))) if (cloexec || which === "all") this.close(slot, fd);
    const word = processAddress(memory, slot) + PROCESS_FDS;
    if (which === "cloexec" || memory.load32(word) === 0) return;
    buddy.free(memory.load32(word) - 1);
    memory.store32(word, 0);
  }

  // ---- descriptions ----

  /** A new description, held once, of what is behind it (a reference that it takes over). */
  create(kind: DescriptionKind, behind: PhysicalAddress, flags: number): number {
    const { memory, buddy } = this.#parts;
    const at = allocateObject(memory, buddy, DESCRIPTION_BYTES);
    if (at === undefined) return -ENOMEM;
    memory.store32(at + REFERENCES, 1);
    memory.store32(at + KIND, KINDS.indexOf(kind));
    memory.store32(at + BEHIND, behind);
    memory.store32(at + FLAGS, flags);
    memory.storeFloat64(at + POSITION, 0);
    return at;
  }

  #share(at: PhysicalAddress): void {
    this.#parts.memory.store32(at + REFERENCES, this.#parts.memory.load32(at + REFERENCES) + 1);
  }

  release(at: PhysicalAddress): void {
    const { memory } = this.#parts;
    const { kind, behind, references } = readDescription(memory, at);
    if (references > 1) {
      memory.store32(at + REFERENCES, references - 1);
      return;
    }
    if (kind === "inode") this.#releaseInode(behind);
    if (kind === "reader" || kind === "writer") releaseEnd(this.#parts, behind, kind);
    freeObject(memory, at, DESCRIPTION_BYTES);
  }

  setPosition(at: PhysicalAddress, position: number): void {
    this.#parts.memory.storeFloat64(at + POSITION, position);
  }

  /** A new pipe, and a description of each of its ends; undefined if there is no memory. */
  createPipe(flags: number): { reader: PhysicalAddress; writer: PhysicalAddress } | undefined {
    const pipe = createPipe(this.#parts);
    if (pipe === undefined) return undefined;
    const reader = this.create("reader", pipe, flags);
    const writer = this.create("writer", pipe, flags);
    if (reader >= 0 && writer >= 0) return { reader, writer };
    for (const [end, at] of [["reader", reader] as const, ["writer", writer] as const]) {
      if (at >= 0) this.release(at);
      else releaseEnd(this.#parts, pipe, end);
    }
    return undefined;
  }
}
