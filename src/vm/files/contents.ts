/**
 * What files hold: pages of their memory objects; those of a file of the host are its page cache (host-pages.ts).
 *
 * Callers hold the kernel lock. What is negative is an error number.
 */
import { FRAME_BYTES } from "../../base/layout.js";
import type { Pfn, PhysicalAddress } from "../../base/memory.js";
import { EFAULT, EFBIG, ENOSPC } from "../memory/errno.js";
import { OBJECT_PAGES_MAX, objectInode, type Pager } from "../memory/memory-object.js";
import type { KernelParts } from "../tasks/parts.js";
import { Trims } from "../tasks/trims.js";
import { AGAIN, type Wait } from "../tasks/wait.js";
import type { HostPages } from "./host-pages.js";
import { type Inode, type Inodes, readInode } from "./inode.js";

export class Contents implements Pager {
  readonly #parts: KernelParts;
  readonly #inodes: Inodes;
  readonly host: HostPages;
  readonly trims: Trims;

  constructor(parts: KernelParts, inodes: Inodes, host: HostPages) {
    this.#parts = parts;
    this.#inodes = inodes;
    this.host = host;
    this.trims = new Trims(parts, this);
  }

  /**
   * Works on a file for the process in a slot. Nobody else does so meanwhile, although the work may let go of the kernel lock if the
   * file is the host's; and nobody has pages of it that it has no more, so it may get longer.
   */
  exclusively<T>(at: PhysicalAddress, slot: number, work: (inode: Inode) => T): T {
    for (;;) {
      this.trims.await(slot);
      const inode = readInode(this.#parts.memory, at);
      if (inode.type !== "host") return work(inode);
      if (!this.host.locks.isHeld(at)) return this.host.locks.hold(at, () => work(inode));
      this.host.locks.await(at);
    }
  }

  // ---- a file is worked on ----

  /** Bytes from a position, at most so many; fewer at the end. */
  read(inode: Inode, position: number, most: number): Uint8Array | number {
    const length = Math.max(0, Math.min(most, inode.size - position));
    const read = inode.type === "host" ? this.host.readAll(inode, position, length) : 0;
    return read < 0 ? read : this.#copy(inode, position, length);
  }

  /** Puts bytes at a position; returns how many, fewer if there is no more room. */
  write(inode: Inode, position: number, bytes: Uint8Array): number {
    if ((position + bytes.length) / FRAME_BYTES > OBJECT_PAGES_MAX) return -EFBIG;
    if (position > inode.size) this.#clearTail(inode);
    return inode.type === "host" ? this.host.write(inode, position, bytes) : this.#store(inode, position, bytes);
  }

  /**
   * Cuts a file, or lengthens it with zeros. A process that maps it loses the pages that it has no more: see trims.ts.
   *
   * @param slot - of the process that does it
   */
  truncate(inode: Inode, size: number, slot: number): number | Wait {
    if (size / FRAME_BYTES > OBJECT_PAGES_MAX) return -EFBIG;
    const mapped = size < inode.size && this.#parts.objects.isMapped(inode.object);
    if (mapped && !this.trims.canCut(inode.object, slot)) return AGAIN;
    const now = inode.type === "host" ? this.host.truncate(inode, size) : undefined;
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

  /** A process that maps the last page may have stored to it beyond the end: a file that gets longer has zeros there. */
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

  // ---- for processes that map a file ----

  writeBack(object: PhysicalAddress, first: number, pages: number): number {
    return this.host.writeBack(object, first, pages);
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
    if (inode.type !== "host") return this.#parts.objects.fillWithZeros(object, page);
    if (!this.host.locks.isHeld(at)) return this.host.locks.hold(at, () => this.host.readPage(inode, page));
    this.host.locks.await(at);
    return this.#parts.objects.find(object, page) ?? this.fillPage(object, page);
  }
}
