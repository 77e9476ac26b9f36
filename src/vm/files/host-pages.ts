/**
 * The page cache of the host's files: they are read through it and written through to the host, so a page that nobody mapped and
 * stored to is what the host's file has there.
 *
 * The host reads and writes without the kernel lock, so that other processes go on meanwhile. What must hold:
 * - Nobody else is at work on the file (FileLocks): it is not cut, and no page of it comes or goes. It may be renamed; then the
 *   host is asked once more.
 * - The inode is held by whoever is at work: by an fd, an area, or once more for the purpose.
 * - No call is at work at a safepoint. So a stop waits for what the host is doing, and what was written is on the host before
 *   the consistency point or not begun.
 * - Pages that were stored to by a process that maps them are written back under the kernel lock, also while a call writes: that one
 *   writes what is theirs of its bytes again.
 *
 * Callers hold the kernel lock. What is negative is an error number.
 */
import { FRAME_BYTES } from "../../base/layout.js";
import type { Pfn, PhysicalAddress } from "../../base/memory.js";
import { ENOMEM } from "../memory/errno.js";
import { KIND_FILE, KIND_FILE_CLEAN } from "../memory/kernel-layout.js";
import { objectInode, walkObject } from "../memory/memory-object.js";
import type { KernelParts } from "../tasks/parts.js";
import { FileLocks } from "./file-locks.js";
import { type HostHandles, tryHost } from "./host.js";
import { type HostIdentity, type Inode, type Inodes, readInode } from "./inode.js";
import { walkCleanPages } from "./open-files.js";

export class HostPages {
  readonly locks: FileLocks;
  readonly #parts: KernelParts;
  readonly #inodes: Inodes;
  readonly #handles: HostHandles;

  constructor(parts: KernelParts, inodes: Inodes, handles: HostHandles) {
    this.locks = new FileLocks(parts.control);
    this.#parts = parts;
    this.#inodes = inodes;
    this.#handles = handles;
  }

  // ---- a file is worked on ----

  /** Has the host do something with a file, without the kernel lock. */
  #onHost<T extends object>(inode: Inode, call: (inode: Inode) => T): T | number {
    for (let asked = inode; ; ) {
      const result = this.#parts.control.unlocked(() => tryHost(() => call(asked)));
      const now = readInode(this.#parts.memory, inode.at);
      if (typeof result !== "number" || now.host!.path === asked.host!.path) return result;
      asked = now;
    }
  }

  /** Sees to it that all pages of a range are in memory. */
  readAll(inode: Inode, position: number, length: number): number {
    const first = Math.floor(position / FRAME_BYTES);
    const end = length === 0 ? first : Math.ceil((position + length) / FRAME_BYTES);
    for (let page = first; page < end; ) {
      const missing = this.#missing(inode, page, end);
      if (missing === undefined) return 0;
      const read = this.#readRun(inode, missing.page, missing.pages);
      if (read < 0) return read;
      page = missing.page + missing.pages;
    }
    return 0;
  }

  /** The first pages of a range that are not in memory. */
  #missing({ object }: Inode, first: number, end: number): { page: number; pages: number } | undefined {
    const { objects } = this.#parts;
    let page = first;
    while (page < end && objects.find(object, page) !== undefined) page++;
    let pages = 0;
    while (page + pages < end && objects.find(object, page + pages) === undefined) pages++;
    return pages === 0 ? undefined : { page, pages };
  }

  /** Reads pages that are not in memory: clean ones. */
  #readRun(inode: Inode, first: number, pages: number): number {
    const bytes = this.#onHost(inode, (now) => this.#handles.read(now, first * FRAME_BYTES, pages * FRAME_BYTES));
    if (typeof bytes === "number") return bytes;
    for (let i = 0; i < pages; i++) {
      const added = this.#add(inode, first + i, bytes.subarray(i * FRAME_BYTES, (i + 1) * FRAME_BYTES));
      if (added === undefined) return -ENOMEM;
    }
    return 0;
  }

  /** A page that is not in memory. Undefined if there is no memory. */
  readPage(inode: Inode, page: number): Pfn | number | undefined {
    const bytes = this.#onHost(inode, (now) => this.#handles.read(now, page * FRAME_BYTES, FRAME_BYTES));
    return typeof bytes === "number" ? bytes : this.#add(inode, page, bytes);
  }

  #add(inode: Inode, page: number, bytes: Uint8Array): Pfn | undefined {
    const { memory, buddy, objects } = this.#parts;
    const frame = buddy.allocate(0, 0, KIND_FILE_CLEAN);
    if (frame === undefined) return undefined;
    memory.zero(frame, 1);
    memory.write(frame * FRAME_BYTES, bytes);
    if (objects.insert(inode.object, page, frame)) return frame;
    buddy.free(frame);
    return undefined;
  }

  /** Writes through to the host; what the host has of it then, the page cache has, too. Returns how many bytes. */
  write(inode: Inode, position: number, all: Uint8Array): number {
    const done = this.#onHost(inode, (now) => this.#handles.write(now, position, all));
    if (typeof done === "number") return done;
    const bytes = all.subarray(0, done.written);
    let last = this.#look(inode) ?? done.now;
    for (let page = Math.floor(position / FRAME_BYTES); page * FRAME_BYTES < position + bytes.length; page++) {
      const frame = this.#parts.objects.find(inode.object, page);
      if (frame === undefined) continue;
      const from = Math.max(0, page * FRAME_BYTES - position);
      const at = Math.max(0, position - page * FRAME_BYTES);
      const part = bytes.subarray(from, from + FRAME_BYTES - at);
      this.#parts.memory.write(frame * FRAME_BYTES + at, part);
      if (this.#parts.buddy.kindOf(frame) !== KIND_FILE) continue;
      const again = tryHost(() => this.#handles.write(inode, page * FRAME_BYTES + at, part));
      if (typeof again !== "number") last = again.now;
    }
    this.#inodes.note(inode.at, last);
    return bytes.length > 0 || all.length === 0 ? bytes.length : -done.error;
  }

  #look(inode: Inode): HostIdentity | undefined {
    const now = tryHost(() => this.#handles.look(inode));
    return typeof now === "number" ? undefined : now;
  }

  /** What the file is then. Under the kernel lock: its mappings must not change meanwhile. */
  truncate(inode: Inode, size: number): HostIdentity | number {
    return tryHost(() => this.#handles.truncate(inode, size));
  }

  // ---- a file loses its name ----

  /**
   * Reads pages of a file that are not in memory, at most so many, or lets somebody else do his work on it.
   *
   * @returns how many; undefined if all were there, and the kernel lock was held all the time
   */
  readSome(inode: Inode, most: number): number | undefined {
    const { memory, buddy } = this.#parts;
    const pages = Math.ceil(inode.size / FRAME_BYTES);
    if (this.locks.isHeld(inode.at)) {
      this.locks.await(inode.at);
      return 0;
    }
    const missing = this.#missing(inode, 0, pages);
    if (missing === undefined) return undefined;
    let present = 0;
    for (const _ of walkObject(memory, inode.object)) present++;
    if (pages - present > buddy.freeFrames / 2) return -ENOMEM;
    const count = Math.min(missing.pages, most);
    this.#inodes.share(inode.at); // whoever has it open may close it
    const read = this.locks.hold(inode.at, () => this.#readRun(inode, missing.page, count));
    this.#inodes.release(inode.at);
    return read < 0 ? read : count;
  }

  /** A file that has no name on the host any more, and whose pages are all in memory, is the machine's own. */
  keep(inode: Inode): void {
    for (const { frame } of Array.from(walkCleanPages(this.#parts.memory, inode.object)))
      this.#parts.objects.makeDirty(inode.object, frame);
    this.#inodes.makeOwn(inode.at);
  }

  // ---- for processes that map a file ----

  /** Writes pages that were stored to by processes that map them. Returns 0 or an error. */
  writeBack(object: PhysicalAddress, first: number, pages: number): number {
    const { memory, buddy, objects } = this.#parts;
    const at = objectInode(memory, object);
    const inode = at === 0 ? undefined : readInode(memory, at);
    if (inode?.type !== "host" || inode.readOnly) return 0;
    let failed = 0;
    for (let page = first; page < Math.min(first + pages, Math.ceil(inode.size / FRAME_BYTES)); page++) {
      const frame = objects.find(object, page);
      if (frame === undefined || buddy.kindOf(frame) !== KIND_FILE) continue;
      const length = Math.min(FRAME_BYTES, inode.size - page * FRAME_BYTES);
      const bytes = memory.read(frame * FRAME_BYTES, length);
      const done = tryHost(() => this.#handles.write(inode, page * FRAME_BYTES, bytes));
      if (typeof done === "number") failed = done;
      else {
        this.#inodes.note(inode.at, done.now);
        if (done.written < length) failed = -done.error;
      }
    }
    return failed;
  }
}
