/**
 * Files of the host, as the kernel sees them. Handles are not part of the machine: a thread opens a path when it first needs
 * it, and forgets it when the kernel's inode is gone. All calls block, for a system call is part of a step.
 *
 * What must hold: a host without descriptors is nothing that a process of the machine is told. No call needs more than one at a
 * time, and a thread always has one to give up: one in reserve, or a handle that it keeps. Should another thread be quicker to take
 * it, the call waits.
 */
import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  realpathSync,
  renameSync,
  rmdirSync,
  type BigIntStats,
  statSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { basename, dirname, join, sep } from "node:path";
import { readUpTo } from "../../base/host-file.js";
import * as E from "../memory/errno.js";
import type { HostIdentity, Inode } from "./inode.js";
import type { Mount } from "./path.js";

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

/** This thread's descriptor in reserve, and the handles that it has. */
let reserve: number | undefined;
const handlesOfThread = new Set<WeakRef<HostHandles>>();

function keepReserve(): void {
  if (reserve !== undefined) return;
  try {
    reserve = openSync("/dev/null", constants.O_RDONLY);
  } catch {
    // Then a handle that is open now is what can be given up.
  }
}

/** True if a descriptor of this thread's was closed; else waits a little for another's. */
function giveUpOne(): boolean {
  if (reserve !== undefined) {
    closeSync(reserve);
    reserve = undefined;
    return true;
  }
  for (const handles of handlesOfThread) if (handles.deref()?.closeOldest() === true) return true;
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, WAIT_MS);
  return false;
}

/** Where a name of a mount is on the host; if it is a symbolic link's, the link. Links above it must not lead out. */
export function hostName(mount: Mount, rest: readonly string[]): string {
  return nameBelow(mount, realpathSync(mount.host), rest);
}

function nameBelow(mount: Mount, root: string, rest: readonly string[]): string {
  if (rest.length === 0) return root;
  const path = join(root, ...rest);
  const parent = realpathSync(dirname(path));
  refuseOutside(mount, root, parent);
  if (!statSync(parent).isDirectory()) throw Object.assign(new Error(`${parent} is no directory`), { code: "ENOTDIR" });
  return join(parent, basename(path));
}

/** Path on the host of what a mount shows; symbolic links must not lead out of it. */
export function hostPath(mount: Mount, rest: readonly string[]): string {
  const root = realpathSync(mount.host);
  const leaf = nameBelow(mount, root, rest);
  let real = leaf;
  try {
    real = realpathSync(leaf);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
  }
  refuseOutside(mount, root, real);
  return real;
}

function refuseOutside(mount: Mount, root: string, path: string): void {
  if (path !== root && !path.startsWith(root.endsWith(sep) ? root : root + sep)) {
    throw Object.assign(new Error(`${path} is not in ${mount.host}`), { code: "EACCES" });
  }
}

export function identityOf(path: string, stats: BigIntStats): HostIdentity {
  return { path, device: stats.dev, number: stats.ino, size: Number(stats.size), modified: stats.mtimeNs };
}

export interface HostStat {
  type: "file" | "directory";
  size: number;
  modified: number;
}

export function statHost(path: string): HostStat {
  const stats = statSync(path);
  return {
    type: stats.isDirectory() ? "directory" : "file",
    size: stats.isDirectory() ? 0 : stats.size,
    modified: stats.mtimeMs,
  };
}

/** Makes an empty file. */
export function createHost(path: string): void {
  closeSync(openSync(path, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, 0o644));
}

export const listHost: (path: string) => string[] = (path) => readdirSync(path).sort();
export function makeDirectoryHost(path: string): number {
  mkdirSync(path);
  return 0;
}

export function removeDirectoryHost(path: string): number {
  rmdirSync(path);
  return 0;
}

export const unlinkHost: (path: string) => void = unlinkSync;
export const renameHost: (from: string, to: string) => void = renameSync;

/** Open handles of this thread, by what is behind them: a file may get another name. */
export class HostHandles {
  readonly #open = new Map<string, { descriptor: number; writable: boolean }>();

  constructor() {
    for (const other of handlesOfThread) if (other.deref() === undefined) handlesOfThread.delete(other);
    handlesOfThread.add(new WeakRef(this));
    keepReserve();
  }

  /**
   * Opens a file for a new inode.
   *
   * @returns what the host says it is
   */
  identify(path: string): HostIdentity {
    const stats = statSync(path, { bigint: true });
    if (stats.isDirectory()) throw Object.assign(new Error(`${path} is a directory`), { code: "EISDIR" });
    if (!stats.isFile()) throw Object.assign(new Error(`${path} is not a regular file`), { code: "EACCES" });
    return identityOf(path, stats);
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
