/**
 * Files of the host, as the kernel sees them. Handles are not part of the machine: a thread opens a path when it first needs
 * it, and forgets it when the kernel's inode is gone. All calls block, for a system call is part of a step.
 *
 * What must hold: a host without descriptors is nothing that a process of the machine is told. No call needs more than three at a
 * time, and a thread always has three to give up: in reserve, or handles that it keeps. Should another thread be quicker to take
 * one, the call waits.
 */
import { closeSync, constants, fstatSync, ftruncateSync, openSync, type BigIntStats, writeSync } from "node:fs";
import { readUpTo } from "../../base/host-file.js";
import * as E from "../memory/errno.js";
import type { HostName, Opened } from "./host-paths.js";
import type { HostIdentity, Inode } from "./inode.js";

const BY_CODE: Readonly<Record<string, number>> = {
  EACCES: E.EACCES,
  EBUSY: E.EBUSY,
  EEXIST: E.EEXIST,
  EINVAL: E.EINVAL,
  EISDIR: E.EISDIR,
  ENAMETOOLONG: E.ENAMETOOLONG,
  ENOENT: E.ENOENT,
  ENOMEM: E.ENOMEM,
  ENOSPC: E.ENOSPC,
  EDQUOT: E.ENOSPC,
  EFBIG: E.EFBIG,
  ENOTDIR: E.ENOTDIR,
  ENOTEMPTY: E.ENOTEMPTY,
  EPERM: E.EPERM,
  EROFS: E.EROFS,
};

/** Runs a call of the host's file system; its errors become numbers, EIO if the guest has no name for one. */
export function tryHost<T>(call: () => T): T | number {
  for (let waits = 0; ; ) {
    try {
      const result = call();
      keepReserve();
      return result;
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === undefined) throw error;
      const scarce = code === "EMFILE" || code === "ENFILE";
      if (scarce && (giveUpOne() || waits++ < WAITS_MAX)) continue;
      keepReserve();
      return -(BY_CODE[code] ?? E.EIO);
    }
  }
}

/** How often a call waits for a descriptor, WAIT_MS each: the kernel may be locked meanwhile. */
const WAITS_MAX = 1000;
const WAIT_MS = 2;

/** Descriptors that a call needs at a time. */
const NEEDED = 3;

/** This thread's descriptors in reserve, and the handles that it has. */
const reserve: number[] = [];
const handlesOfThread = new Set<WeakRef<HostHandles>>();

function keepReserve(): void {
  try {
    while (reserve.length < NEEDED) reserve.push(openSync("/dev/null", constants.O_RDONLY));
  } catch {
    // Then a handle that is open now is what can be given up.
  }
}

/** True if a descriptor of this thread's was closed; else waits a little for another's. */
function giveUpOne(): boolean {
  const spare = reserve.pop();
  if (spare !== undefined) {
    closeSync(spare);
    return true;
  }
  for (const handles of handlesOfThread) if (handles.deref()?.closeOldest() === true) return true;
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, WAIT_MS);
  return false;
}

function identityOf(path: string, stats: BigIntStats): HostIdentity {
  return { path, device: stats.dev, number: stats.ino, size: Number(stats.size), modified: stats.mtimeNs };
}

export interface HostStat {
  type: "file" | "directory";
  size: number;
  modified: number;
}

export function statOfHost({ stats }: Pick<Opened, "stats">): HostStat {
  const directory = stats.isDirectory();
  return {
    type: directory ? "directory" : "file",
    size: directory ? 0 : Number(stats.size),
    modified: Number(stats.mtimeNs) / 1e6,
  };
}

/** What is opened for a new inode. */
export function identify({ path, stats }: Pick<Opened, "path" | "stats">): HostIdentity {
  if (stats.isDirectory()) throw Object.assign(new Error(`${path} is a directory`), { code: "EISDIR" });
  if (!stats.isFile()) throw Object.assign(new Error(`${path} is not a regular file`), { code: "EACCES" });
  return identityOf(path, stats);
}

/** Makes an empty file. */
export function createHost({ at }: HostName): void {
  closeSync(openSync(at, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, 0o644));
}

/** Open handles of this thread, by what is behind them: a file may get another name. */
export class HostHandles {
  readonly #open = new Map<string, { descriptor: number; writable: boolean }>();

  constructor() {
    for (const other of handlesOfThread) if (other.deref() === undefined) handlesOfThread.delete(other);
    handlesOfThread.add(new WeakRef(this));
    keepReserve();
  }

  read(inode: Inode, position: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    return bytes.subarray(0, readUpTo(this.#descriptor(inode, false), bytes, position));
  }

  /** Writes all of it, or what it can; returns how much, why not more, and what the file is then. */
  write(inode: Inode, position: number, bytes: Uint8Array): { written: number; error: number; now: HostIdentity } {
    const descriptor = this.#descriptor(inode, true);
    let written = 0;
    let error = 0;
    while (written < bytes.length && error === 0) {
      const count = tryHost(() => writeSync(descriptor, bytes, written, bytes.length - written, position + written));
      if (count < 0) error = -count;
      else written += count;
    }
    return { written, error, now: identityOf(inode.host!.path, fstatSync(descriptor, { bigint: true })) };
  }

  /** What the host says that an open file is now. */
  look(inode: Inode): HostIdentity {
    return identityOf(inode.host!.path, fstatSync(this.#descriptor(inode, true), { bigint: true }));
  }

  truncate(inode: Inode, size: number): HostIdentity {
    const descriptor = this.#descriptor(inode, true);
    ftruncateSync(descriptor, size);
    return identityOf(inode.host!.path, fstatSync(descriptor, { bigint: true }));
  }

  /** A file that was removed or replaced since it was opened is not the inode's any more. */
  #descriptor({ host }: Inode, writable: boolean): number {
    const { path, device, number } = host!;
    const key = keyOf(host!);
    const there = this.#open.get(key);
    if (there !== undefined && (there.writable || !writable)) return there.descriptor;
    if (there !== undefined) this.#close(key, there.descriptor);
    const descriptor = openSync(path, (writable ? constants.O_RDWR : constants.O_RDONLY) | constants.O_NONBLOCK);
    const stats = fstatSync(descriptor, { bigint: true });
    if (stats.dev !== device || stats.ino !== number) {
      closeSync(descriptor);
      throw Object.assign(new Error(`${path} was replaced since it was opened`), { code: "EIO" });
    }
    if (this.#open.size >= HANDLES_MAX) this.closeOldest();
    this.#open.set(key, { descriptor, writable });
    return descriptor;
  }

  #close(key: string, descriptor: number): void {
    this.#open.delete(key);
    closeSync(descriptor);
  }

  /** False if there is none. */
  closeOldest(): boolean {
    const oldest = this.#open.entries().next();
    if (oldest.done === true) return false;
    const [key, { descriptor }] = oldest.value;
    this.#close(key, descriptor);
    return true;
  }

  /** Closes what no inode is open of any more. */
  forgetOthers(inodes: Iterable<Inode>): void {
    const open = new Set(Array.from(inodes, ({ host }) => keyOf(host!)));
    for (const [key, { descriptor }] of this.#open) if (!open.has(key)) this.#close(key, descriptor);
  }
}

function keyOf({ device, number }: HostIdentity): string {
  return `${device}:${number}`;
}

/** Handles that a thread keeps open. */
const HANDLES_MAX = 64;
