/** System calls on files, of the process in a slot. What is negative is an error number; a Wait, that the process has to wait. */
import { statSync } from "node:fs";
import type { PhysicalAddress } from "../../base/memory.js";
import { printToConsole } from "../memory/console-ring.js";
import * as E from "../memory/errno.js";
import type { KernelParts } from "../tasks/parts.js";
import { Wait } from "../tasks/wait.js";
import { Contents } from "./contents.js";
import { type Description, Descriptions, FD_CLOEXEC, readDescription } from "./descriptions.js";
import {
  ACCESS_MODE,
  O_APPEND,
  O_CLOEXEC,
  O_NONBLOCK,
  O_RDONLY,
  O_RDWR,
  O_WRONLY,
  SEEK_CUR,
  SEEK_END,
  SEEK_SET,
} from "./flags.js";
import { HostHandles, identify, tryHost } from "./host.js";
import { HostPages } from "./host-pages.js";
import { Inodes, readInode, walkHostInodes } from "./inode.js";
import { Names, type Stat, statOf } from "./names.js";
import { putIntoPipe, takeFromPipe } from "./pipe.js";
import { DirectoryTree } from "./tree.js";

/** One call reads or writes no more: it holds the kernel lock, and perhaps waits for the host's disk. Code that copies for it copies no more. */
export const CALL_BYTES_MAX: number = 1 << 20;

export class Files {
  readonly tree: DirectoryTree;
  readonly names: Names;
  readonly contents: Contents;
  readonly descriptions: Descriptions;
  readonly #parts: KernelParts;
  readonly #inodes: Inodes;
  readonly #host = new HostHandles();

  constructor(parts: KernelParts) {
    this.#parts = parts;
    this.#inodes = new Inodes(parts);
    this.tree = new DirectoryTree(parts, this.#inodes);
    this.contents = new Contents(parts, this.#inodes, new HostPages(parts, this.#inodes, this.#host));
    this.names = new Names(parts, { inodes: this.#inodes, tree: this.tree, contents: this.contents, host: this.#host });
    this.descriptions = new Descriptions(parts, (inode) => this.#inodes.release(inode));
  }

  // ---- fds ----

  /** Opens a path; returns an fd. */
  open(slot: number, path: string, flags: number): number | Wait {
    const inode = this.names.open(slot, path, flags);
    this.contents.trims.await(slot);
    if (inode instanceof Wait || inode < 0) return inode;
    return this.#install(slot, this.descriptions.create("inode", inode, flags), flags, () => this.#inodes.release(inode));
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
    return this.contents.exclusively(open.behind, slot, (inode) => {
      const { position } = readDescription(this.#parts.memory, open.at); // who shares it may have moved it
      const bytes = this.contents.read(inode, position, most);
      if (typeof bytes !== "number") this.descriptions.setPosition(open.at, position + bytes.length);
      return bytes;
    });
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
    return this.contents.exclusively(open.behind, slot, (inode) => {
      const position = (open.flags & O_APPEND) === 0 ? readDescription(this.#parts.memory, open.at).position : inode.size;
      const written = this.contents.write(inode, position, bytes);
      if (written >= 0) this.descriptions.setPosition(open.at, position + written);
      return written;
    });
  }

  seek(slot: number, fd: number, offset: number, whence: number): number {
    const open = this.descriptions.find(slot, fd);
    if (open === undefined) return -E.EBADF;
    if (open.kind !== "inode") return -E.ESPIPE;
    return this.contents.exclusively(open.behind, slot, ({ size }) => {
      const from = readDescription(this.#parts.memory, open.at).position;
      const position = offset + (whence === SEEK_SET ? 0 : whence === SEEK_CUR ? from : size);
      if (!Number.isSafeInteger(position) || position < 0 || whence > SEEK_END) return -E.EINVAL;
      this.descriptions.setPosition(open.at, position);
      return position;
    });
  }

  fstat(slot: number, fd: number): Stat | number {
    const open = this.descriptions.find(slot, fd);
    if (open === undefined) return -E.EBADF;
    return open.kind === "inode" ? statOf(readInode(this.#parts.memory, open.behind)) : -E.EINVAL;
  }

  ftruncate(slot: number, fd: number, size: number): number | Wait {
    const open = this.descriptions.find(slot, fd);
    if (open === undefined) return -E.EBADF;
    if (open.kind !== "inode" || (open.flags & ACCESS_MODE) === O_RDONLY || !Number.isSafeInteger(size) || size < 0)
      return -E.EINVAL;
    const cut = this.contents.exclusively(open.behind, slot, (inode) => this.contents.truncate(inode, size, slot));
    this.contents.trims.await(slot);
    return cut;
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

  /** These files of the host are others than they were, by their contents or by the host's account: they are what they are now. */
  acceptHost(paths: ReadonlySet<string>): void {
    for (const { at, host } of Array.from(walkHostInodes(this.#parts.memory))) {
      if (!paths.has(host!.path)) continue;
      const now = tryHost(() => identify({ path: host!.path, stats: statSync(host!.path, { bigint: true }) }));
      if (typeof now !== "number") this.#inodes.note(at, now);
    }
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
