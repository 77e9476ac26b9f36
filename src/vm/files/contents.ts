/**
 * What files hold: pages of their memory objects. A file of the host is read through them, as through a page cache, and written
 * through to the host, so a page that nobody mapped and stored to is what the host's file has there.
 *
 * Callers hold the kernel lock. What is negative is an error number.
 */
import { FRAME_BYTES } from "../../base/layout.js";
import type { Pfn, PhysicalAddress } from "../../base/memory.js";
import { EFAULT, EFBIG, ENOMEM, ENOSPC } from "../memory/errno.js";
import { KIND_FILE, KIND_FILE_CLEAN } from "../memory/kernel-layout.js";
import { OBJECT_PAGES_MAX, objectInode, type Pager, walkObject } from "../memory/memory-object.js";
import type { KernelParts } from "../tasks/parts.js";
import { Trims } from "../tasks/trims.js";
import { AGAIN, type Wait } from "../tasks/wait.js";
import { type HostHandles, tryHost } from "./host.js";
import { type Inode, type Inodes, readInode } from "./inode.js";
import { walkCleanPages } from "./open-files.js";

/** Pages that one call reads of a file that loses its name. */
const READ_ALL_PAGES = 256;

export class Contents implements Pager {
  readonly #parts: KernelParts;
  readonly #inodes: Inodes;
  readonly #host: HostHandles;
  readonly trims: Trims;

  constructor(parts: KernelParts, inodes: Inodes, host: HostHandles) {
    this.#parts = parts;
    this.#inodes = inodes;
    this.#host = host;
    this.trims = new Trims(parts, this);
  }

  // ---- of any file ----

  /** Bytes from a position, at most so many; fewer at the end. */
  read(inode: Inode, position: number, most: number): Uint8Array | number {
    const length = Math.max(0, Math.min(most, inode.size - position));
    const read = inode.type === "host" ? this.#readPages(inode, position, length) : 0;
    return read < 0 ? read : this.#copy(inode, position, length);
  }

  /** Puts bytes at a position; returns how many, fewer if there is no more room. */
  write(inode: Inode, position: number, bytes: Uint8Array): number {
    if ((position + bytes.length) / FRAME_BYTES > OBJECT_PAGES_MAX) return -EFBIG;
    if (position > inode.size) this.#clearTail(inode);
    return inode.type === "host" ? this.#writeHost(inode, position, bytes) : this.#store(inode, position, bytes);
  }

  /**
   * Cuts a file, or lengthens it with zeros, for the process in a slot. Who maps it loses the pages that it has no more: see
   * trims.ts.
   */
  truncate(inode: Inode, size: number, slot: number): number | Wait {
    if (size / FRAME_BYTES > OBJECT_PAGES_MAX) return -EFBIG;
    const mapped = size < inode.size && this.#parts.objects.isMapped(inode.object);
    if (mapped && !this.trims.canCut(inode.object, slot)) return AGAIN;
    const now = inode.type === "host" ? tryHost(() => this.#host.truncate(inode, size)) : undefined;
    if (typeof now === "number") return now;
    if (size < inode.size) this.#cut(inode, size);
    else this.#clearTail(inode);
    this.#inodes.setSize(inode.at, size);
    if (now !== undefined) this.#inodes.note(inode.at, now);
    if (mapped) this.trims.cut(inode.object, slot);
    return 0;
  }

  #cut(inode: Inode, size: number): void {
    this.#parts.objects.truncate(inode.object, Math.ceil(size / FRAME_BYTES));
    this.#clearTail({ ...inode, size });
  }

  /** Who maps the last page may have stored to it beyond the end: a file that gets longer has zeros there. */
  #clearTail({ object, size }: Inode): void {
    const last = this.#parts.objects.find(object, Math.floor(size / FRAME_BYTES));
    const tail = size % FRAME_BYTES;
    if (tail > 0 && last !== undefined) this.#parts.memory.write(last * FRAME_BYTES + tail, new Uint8Array(FRAME_BYTES - tail));
  }

  /** Bytes of pages that are in memory; those that are not are zeros. */
  #copy(inode: Inode, position: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.#visitPages(position, bytes.length, (page, at, done, count) => {
      const frame = this.#parts.objects.find(inode.object, page);
      if (frame !== undefined) bytes.set(this.#parts.memory.read(frame * FRAME_BYTES + at, count), done);
      return true;
    });
    return bytes;
  }

  /** Stores bytes into a file in memory; returns how many, fewer if there is no more memory. */
  #store(inode: Inode, position: number, bytes: Uint8Array): number {
    let written = 0;
    this.#visitPages(position, bytes.length, (page, at, done, count) => {
      const frame = this.#parts.objects.find(inode.object, page) ?? this.#parts.objects.fillWithZeros(inode.object, page);
      if (frame === undefined) return false;
      this.#parts.memory.write(frame * FRAME_BYTES + at, bytes.subarray(done, done + count));
      written += count;
      return true;
    });
    if (written === 0 && bytes.length > 0) return -ENOSPC;
    this.#inodes.setSize(inode.at, Math.max(inode.size, position + written));
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

  // ---- of a file of the host ----

  /** Sees to it that all pages of a range are in memory. */
  #readPages(inode: Inode, position: number, length: number): number {
    for (let page = Math.floor(position / FRAME_BYTES); page * FRAME_BYTES < position + length; page++) {
      const frame = this.#parts.objects.find(inode.object, page) ?? this.#readPage(inode, page);
      if (frame === undefined) return -ENOMEM;
      if (frame < 0) return frame;
    }
    return 0;
  }

  /** Reads a page of a file of the host into the page cache: a clean page. Undefined without memory, an error number. */
  #readPage(inode: Inode, page: number): Pfn | number | undefined {
    const { memory, buddy, objects } = this.#parts;
    const bytes = tryHost(() => this.#host.read(inode, page * FRAME_BYTES, FRAME_BYTES));
    if (typeof bytes === "number") return bytes;
    const frame = buddy.allocate(0, 0, KIND_FILE_CLEAN);
    if (frame === undefined) return undefined;
    memory.zero(frame, 1);
    memory.write(frame * FRAME_BYTES, bytes);
    if (objects.insert(inode.object, page, frame)) return frame;
    buddy.free(frame);
    return undefined;
  }

  /** Writes through to the host; what the host has of it then, the page cache has, too. */
  #writeHost(inode: Inode, position: number, all: Uint8Array): number {
    const done = tryHost(() => this.#host.write(inode, position, all));
    if (typeof done === "number") return done;
    const bytes = all.subarray(0, done.written);
    for (let page = Math.floor(position / FRAME_BYTES); page * FRAME_BYTES < position + bytes.length; page++) {
      const frame = this.#parts.objects.find(inode.object, page);
      if (frame === undefined) continue;
      const from = Math.max(0, page * FRAME_BYTES - position);
      const at = Math.max(0, position - page * FRAME_BYTES);
      this.#parts.memory.write(frame * FRAME_BYTES + at, bytes.subarray(from, from + FRAME_BYTES - at));
    }
    this.#inodes.note(inode.at, done.now);
    return bytes.length > 0 || all.length === 0 ? bytes.length : -done.error;
  }

  /**
   * Brings all of a file into memory, some pages a call: a Wait until they are all there. What is read stays, so the call that
   * is made again goes on.
   */
  readAll(inode: Inode): number | Wait {
    const { buddy, objects } = this.#parts;
    const pages = Math.ceil(inode.size / FRAME_BYTES);
    let present = 0;
    for (const _ of walkObject(this.#parts.memory, inode.object)) present++;
    if (pages - present > buddy.freeFrames / 2) return -ENOMEM;
    let read = 0;
    for (let page = 0; page < pages; page++) {
      if (objects.find(inode.object, page) !== undefined) continue;
      if (read++ === READ_ALL_PAGES) return AGAIN;
      const frame = this.#readPage(inode, page);
      if (frame === undefined) return -ENOMEM;
      if (frame < 0) return frame;
    }
    return 0;
  }

  /** A file of the host that has no name there any more, and whose pages are all in memory, is the machine's own. */
  keep(inode: Inode): void {
    for (const { frame } of Array.from(walkCleanPages(this.#parts.memory, inode.object)))
      this.#parts.objects.makeDirty(inode.object, frame);
    this.#inodes.makeOwn(inode.at);
  }

  // ---- for who maps a file ----

  /** Writes pages of a file of the host that were stored to by who maps them. Returns 0 or an error. */
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
      const done = tryHost(() => this.#host.write(inode, page * FRAME_BYTES, bytes));
      if (typeof done === "number") failed = done;
      else {
        this.#inodes.note(inode.at, done.now);
        if (done.written < length) failed = -done.error;
      }
    }
    return failed;
  }

  pagesOf(object: PhysicalAddress): number {
    const at = objectInode(this.#parts.memory, object);
    return at === 0 ? OBJECT_PAGES_MAX : Math.ceil(readInode(this.#parts.memory, at).size / FRAME_BYTES);
  }

  holdInode(inode: PhysicalAddress): void {
    this.#inodes.share(inode);
  }

  releaseInode(inode: PhysicalAddress): void {
    this.#inodes.release(inode);
  }

  /** A page of an object that has no frame yet: of a file of the host what is there, else zeros. */
  fillPage(object: PhysicalAddress, page: number): Pfn | number | undefined {
    const at = objectInode(this.#parts.memory, object);
    if (at === 0) return this.#parts.objects.fillWithZeros(object, page);
    const inode = readInode(this.#parts.memory, at);
    if (page * FRAME_BYTES >= inode.size) return -EFAULT; // beyond the end of the file
    return inode.type === "host" ? this.#readPage(inode, page) : this.#parts.objects.fillWithZeros(object, page);
  }
}
