/**
 * System calls on files, of the process in a slot. What is negative is an error number; a Wait, that the process has to wait.
 *
 * A file of the host is read through the page cache and written through to the host, so a page of the cache that nobody
 * mapped and stored to is what the host's file has there.
 */
import { lstatSync } from "node:fs";
import { sep } from "node:path";
import { FRAME_BYTES } from "../../base/layout.js";
import type { Pfn, PhysicalAddress } from "../../base/memory.js";
import * as E from "../memory/errno.js";
import { KIND_FILE, KIND_FILE_CLEAN } from "../memory/kernel-layout.js";
import type { KernelParts } from "../tasks/parts.js";
import { OBJECT_PAGES_MAX, objectInode, type Pager } from "../memory/memory-object.js";
import { Wait } from "../tasks/wait.js";
import { type Description, Descriptions, FD_CLOEXEC } from "./descriptions.js";
import { putIntoPipe, takeFromPipe } from "./pipe.js";
import {
  createHost,
  HostHandles,
  type HostStat,
  hostName,
  hostPath,
  listHost,
  makeDirectoryHost,
  removeDirectoryHost,
  renameHost,
  statHost,
  tryHost,
  unlinkHost,
} from "./host.js";
import {
  ACCESS_MODE,
  O_APPEND,
  O_CLOEXEC,
  O_CREAT,
  O_EXCL,
  O_NONBLOCK,
  O_RDONLY,
  O_RDWR,
  O_TRUNC,
  O_WRONLY,
  SEEK_CUR,
  SEEK_END,
  SEEK_SET,
} from "./flags.js";
import { type Inode, InodeTree, readInode, walkDirectory, walkHostInodes } from "./inode.js";
import { printToConsole } from "../memory/console-ring.js";
import { type Mount, Mounts, splitPath } from "./path.js";

export type Stat = HostStat;

/** One call reads or writes no more: it holds the kernel lock, and perhaps waits for the host's disk. Who copies for it copies no more. */
export const CALL_BYTES_MAX: number = 1 << 20;

export class Files implements Pager {
  readonly tree: InodeTree;
  readonly mounts: Mounts;
  readonly descriptions: Descriptions;
  readonly #parts: KernelParts;
  readonly #host = new HostHandles();

  constructor(parts: KernelParts) {
    this.#parts = parts;
    this.tree = new InodeTree(parts);
    this.mounts = new Mounts(parts);
    this.descriptions = new Descriptions(parts, (inode) => this.tree.release(inode));
  }

  // ---- names ----

  /** Opens a path; returns an fd. */
  open(slot: number, path: string, flags: number): number {
    const parts = splitPath(path);
    const inode = this.#openInode(parts, flags);
    if (inode < 0) return inode;
    return this.#install(slot, this.descriptions.create("inode", inode, flags), flags, () => this.tree.release(inode));
  }

  #install(slot: number, description: number, flags: number, giveUp: () => void): number {
    if (description < 0) {
      giveUp();
      return description;
    }
    const fd = this.descriptions.install(slot, description, fdFlags(flags));
    if (fd < 0) this.descriptions.release(description);
    return fd;
  }

  /** The inode of a path, held once more. */
  #openInode(parts: readonly string[], flags: number): number {
    const mounted = this.mounts.find(parts);
    const writes = (flags & ACCESS_MODE) !== O_RDONLY;
    if (mounted !== undefined) return this.#openHost(mounted.mount, mounted.rest, flags, writes);
    let at = this.tree.lookup(parts);
    if (at === -E.ENOENT && (flags & O_CREAT) !== 0) at = this.tree.make(parts, "file");
    else if (at >= 0 && (flags & O_CREAT) !== 0 && (flags & O_EXCL) !== 0) return -E.EEXIST;
    if (at < 0) return at;
    const inode = readInode(this.#parts.memory, at);
    if (inode.type === "directory") return -E.EISDIR;
    if (writes && (flags & O_TRUNC) !== 0) {
      const cut = this.tree.truncate(inode, 0);
      if (cut < 0) return cut;
    }
    this.tree.share(at);
    return at;
  }

  #openHost(mount: Mount, rest: readonly string[], flags: number, writes: boolean): number {
    this.#host.forgetOthers(walkHostInodes(this.#parts.memory));
    if (mount.readOnly && (writes || (flags & O_CREAT) !== 0)) return -E.EROFS;
    const opened = tryHost(() => {
      const path = hostPath(mount, rest);
      if ((flags & O_CREAT) !== 0) {
        const made = tryHost(() => createHost(path));
        if (typeof made === "number" && (made !== -E.EEXIST || (flags & O_EXCL) !== 0)) return made;
      }
      return this.tree.openHost(this.#host.identify(path), mount);
    });
    if (opened < 0 || !writes || (flags & O_TRUNC) === 0) return opened;
    const cut = this.#truncate(readInode(this.#parts.memory, opened), 0);
    if (cut < 0) this.tree.release(opened);
    return cut < 0 ? cut : opened;
  }

  stat(path: string): Stat | number {
    const parts = splitPath(path);
    const mounted = this.mounts.find(parts);
    if (mounted !== undefined) return tryHost(() => statHost(hostPath(mounted.mount, mounted.rest)));
    const at = this.tree.lookup(parts);
    return at < 0 ? at : statOf(readInode(this.#parts.memory, at));
  }

  /** Names in a directory, in order. */
  list(path: string): string[] | number {
    const parts = splitPath(path);
    const mounted = this.mounts.find(parts);
    if (mounted !== undefined) return tryHost(() => listHost(hostPath(mounted.mount, mounted.rest)));
    const at = this.tree.lookup(parts);
    if (at < 0) return at;
    if (readInode(this.#parts.memory, at).type !== "directory") return -E.ENOTDIR;
    return Array.from(walkDirectory(this.#parts.memory, at), ({ name }) => name).sort();
  }

  mkdir(path: string): number {
    return this.#change(path, (parts) => Math.min(0, this.tree.make(parts, "directory")), makeDirectoryHost);
  }

  rmdir(path: string): number {
    return this.#change(path, (parts) => this.tree.unlink(parts, "directory"), removeDirectoryHost);
  }

  /** Takes a file's name away. One of the host's that is open must stay: nobody could open it again after a resume. */
  unlink(path: string): number {
    return this.#change(
      path,
      (parts) => this.tree.unlink(parts, "file"),
      (host) => {
        this.#refuseOpen(host);
        unlinkHost(host);
      },
    );
  }

  /** @throws EBUSY if at this path of the host, or below it, there is a file that some process has open */
  #refuseOpen(path: string): void {
    const there = lstatSync(path, { bigint: true, throwIfNoEntry: false });
    for (const { host } of walkHostInodes(this.#parts.memory)) {
      const same = host!.device === there?.dev && host!.number === there.ino;
      if (!same && !host!.path.startsWith(path + sep)) continue;
      throw Object.assign(new Error(`${path} is open`), { code: "EBUSY" });
    }
  }

  #change(path: string, inMemory: (parts: string[]) => number, onHost: (path: string) => void): number {
    const parts = splitPath(path);
    const mounted = this.mounts.find(parts);
    if (mounted === undefined) return inMemory(parts);
    if (mounted.rest.length === 0) return -E.EBUSY;
    if (mounted.mount.readOnly) return -E.EROFS;
    return tryHost(() => {
      onHost(hostName(mounted.mount, mounted.rest));
      return 0;
    });
  }

  rename(from: string, to: string): number {
    const a = this.mounts.find(splitPath(from));
    const b = this.mounts.find(splitPath(to));
    if (a === undefined && b === undefined) return this.tree.rename(splitPath(from), splitPath(to));
    if (a === undefined || b === undefined || a.mount.path !== b.mount.path) return -E.EXDEV;
    if (a.rest.length === 0 || b.rest.length === 0) return -E.EBUSY;
    if (a.mount.readOnly) return -E.EROFS;
    return tryHost(() => {
      const paths = [hostName(a.mount, a.rest), hostName(b.mount, b.rest)] as const;
      for (const path of paths) this.#refuseOpen(path);
      renameHost(...paths);
      return 0;
    });
  }

  // ---- fds ----

  pipe(slot: number, flags: number): { reader: number; writer: number } | number {
    const ends = this.descriptions.createPipe(flags);
    if (ends === undefined) return -E.ENOMEM;
    const ofFd = fdFlags(flags);
    const reader = this.descriptions.install(slot, ends.reader, ofFd);
    const writer = reader < 0 ? reader : this.descriptions.install(slot, ends.writer, ofFd);
    if (writer >= 0) return { reader, writer };
    if (reader >= 0) this.descriptions.close(slot, reader);
    else this.descriptions.release(ends.reader);
    this.descriptions.release(ends.writer);
    return writer;
  }

  openConsole(slot: number): number {
    return this.#install(slot, this.descriptions.create("console", 0, O_WRONLY), O_WRONLY, () => undefined);
  }

  /** Bytes from where the fd stands, at most `most` (CALL_BYTES_MAX or fewer). */
  read(slot: number, fd: number, most: number): Uint8Array | number | Wait {
    const open = this.descriptions.find(slot, fd);
    if (open === undefined || (open.flags & ACCESS_MODE) === O_WRONLY || open.kind === "writer" || open.kind === "console")
      return -E.EBADF;
    if (open.kind === "reader") return unlessNonblocking(open, takeFromPipe(this.#parts, open.behind, most));
    const inode = readInode(this.#parts.memory, open.behind);
    const bytes = this.#readAt(inode, open.position, most);
    if (typeof bytes !== "number") this.descriptions.setPosition(open.at, open.position + bytes.length);
    return bytes;
  }

  /** Puts bytes (CALL_BYTES_MAX or fewer) where the fd stands, or at the end (O_APPEND); returns how many. */
  write(slot: number, fd: number, bytes: Uint8Array): number | Wait {
    const open = this.descriptions.find(slot, fd);
    if (open === undefined || open.kind === "reader") return -E.EBADF;
    if (open.kind === "writer") return unlessNonblocking(open, putIntoPipe(this.#parts, open.behind, bytes));
    if ((open.flags & ACCESS_MODE) === O_RDONLY) return -E.EBADF;
    if (open.kind === "console") {
      printToConsole(this.#parts.memory, new TextDecoder().decode(bytes).replace(/\n$/, ""));
      return bytes.length;
    }
    const inode = readInode(this.#parts.memory, open.behind);
    const position = (open.flags & O_APPEND) === 0 ? open.position : inode.size;
    const written = inode.type === "host" ? this.#writeHost(inode, position, bytes) : this.tree.write(inode, position, bytes);
    if (written >= 0) this.descriptions.setPosition(open.at, position + written);
    return written;
  }

  seek(slot: number, fd: number, offset: number, whence: number): number {
    const open = this.descriptions.find(slot, fd);
    if (open === undefined) return -E.EBADF;
    if (open.kind !== "inode") return -E.ESPIPE;
    const base = whence === SEEK_SET ? 0 : whence === SEEK_CUR ? open.position : readInode(this.#parts.memory, open.behind).size;
    const position = base + offset;
    if (!Number.isSafeInteger(position) || position < 0 || whence > SEEK_END) return -E.EINVAL;
    this.descriptions.setPosition(open.at, position);
    return position;
  }

  fstat(slot: number, fd: number): Stat | number {
    const open = this.descriptions.find(slot, fd);
    if (open === undefined) return -E.EBADF;
    return open.kind === "inode" ? statOf(readInode(this.#parts.memory, open.behind)) : -E.EINVAL;
  }

  ftruncate(slot: number, fd: number, size: number): number {
    const open = this.descriptions.find(slot, fd);
    if (open === undefined) return -E.EBADF;
    if (open.kind !== "inode" || (open.flags & ACCESS_MODE) === O_RDONLY || !Number.isSafeInteger(size) || size < 0)
      return -E.EINVAL;
    return this.#truncate(readInode(this.#parts.memory, open.behind), size);
  }

  /** The memory object of an open file, to be mapped for loads, or for stores that reach the file; and whether the fd may write. */
  objectOf(slot: number, fd: number, purpose: "load" | "store"): { object: PhysicalAddress; writable: boolean } | number {
    const open = this.descriptions.find(slot, fd);
    if (open === undefined) return -E.EBADF;
    if (open.kind !== "inode") return -E.EINVAL;
    const mode = open.flags & ACCESS_MODE;
    if (mode === O_WRONLY || (purpose === "store" && mode === O_RDONLY)) return -E.EACCES;
    return { object: readInode(this.#parts.memory, open.behind).object, writable: mode === O_RDWR };
  }

  // ---- contents ----

  #truncate(inode: Inode, size: number): number {
    if (size / FRAME_BYTES > OBJECT_PAGES_MAX) return -E.EFBIG;
    if (inode.type !== "host") return this.tree.truncate(inode, size);
    if (size < inode.size && this.#parts.objects.isMapped(inode.object)) return -E.EBUSY;
    const now = tryHost(() => this.#host.truncate(inode, size));
    if (typeof now === "number") return now;
    const cut = this.tree.truncate(inode, size);
    if (cut === 0) this.tree.note(inode.at, now);
    return cut;
  }

  #readAt(inode: Inode, position: number, most: number): Uint8Array | number {
    if (inode.type !== "host") return this.tree.read(inode, position, most);
    const length = Math.max(0, Math.min(most, inode.size - position));
    for (let page = Math.floor(position / FRAME_BYTES); page * FRAME_BYTES < position + length; page++) {
      const frame = this.#parts.objects.find(inode.object, page) ?? this.readHostPage(inode, page);
      if (frame === undefined) return -E.ENOMEM;
      if (frame < 0) return frame;
    }
    return this.tree.read(inode, position, length);
  }

  /** Reads a page of a file of the host into the page cache: a clean page. Undefined without memory, an error number. */
  readHostPage(inode: Inode, page: number): Pfn | number | undefined {
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
    if ((position + all.length) / FRAME_BYTES > OBJECT_PAGES_MAX) return -E.EFBIG;
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
    this.tree.note(inode.at, done.now);
    return bytes.length > 0 || all.length === 0 ? bytes.length : -done.error;
  }

  /** These files of the host are others than they were, by their contents or by the host's account: they are what they are now. */
  acceptHost(paths: ReadonlySet<string>): void {
    for (const { at, host } of Array.from(walkHostInodes(this.#parts.memory))) {
      if (!paths.has(host!.path)) continue;
      const now = tryHost(() => this.#host.identify(host!.path));
      if (typeof now !== "number") this.tree.note(at, now);
    }
  }

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
        this.tree.note(inode.at, done.now);
        if (done.written < length) failed = -done.error;
      }
    }
    return failed;
  }

  holdInode(inode: PhysicalAddress): void {
    this.tree.share(inode);
  }

  releaseInode(inode: PhysicalAddress): void {
    this.tree.release(inode);
  }

  /** A page of an object that has no frame yet: of a file of the host what is there, else zeros. */
  fillPage(object: PhysicalAddress, page: number): Pfn | number | undefined {
    const at = objectInode(this.#parts.memory, object);
    if (at === 0) return this.#parts.objects.fillWithZeros(object, page);
    const inode = readInode(this.#parts.memory, at);
    if (page * FRAME_BYTES >= inode.size) return -E.EFAULT; // beyond the end of the file
    return inode.type === "host" ? this.readHostPage(inode, page) : this.#parts.objects.fillWithZeros(object, page);
  }
}

/** The flags of an fd that is opened with these O_* bits. */
function fdFlags(flags: number): number {
  return (flags & O_CLOEXEC) === 0 ? 0 : FD_CLOEXEC;
}

/** Who asked not to wait is told that he would have to. */
function unlessNonblocking<T>(open: Description, result: T | Wait): T | Wait | number {
  return result instanceof Wait && (open.flags & O_NONBLOCK) !== 0 ? -E.EAGAIN : result;
}

function statOf(inode: Inode): Stat {
  return { type: inode.type === "directory" ? "directory" : "file", size: inode.size, modified: inode.modified };
}
