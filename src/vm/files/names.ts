/**
 * Names: what is at a path, in memory or below a mount, and the calls that make, move and remove names.
 *
 * Callers hold the kernel lock. What is negative is an error number.
 */
import { lstatSync } from "node:fs";
import { sep } from "node:path";
import { EBUSY, EEXIST, EISDIR, ENOENT, ENOTDIR, EROFS, EXDEV } from "../memory/errno.js";
import type { KernelParts } from "../tasks/parts.js";
import type { Contents } from "./contents.js";
import { ACCESS_MODE, O_CREAT, O_EXCL, O_RDONLY, O_TRUNC } from "./flags.js";
import {
  createHost,
  type HostHandles,
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
import { type Inode, type Inodes, readInode, walkHostInodes } from "./inode.js";
import { type Mount, Mounts, splitPath } from "./path.js";
import { type DirectoryTree, walkDirectory } from "./tree.js";

export type Stat = HostStat;

export class Names {
  readonly mounts: Mounts;
  readonly #parts: KernelParts;
  readonly #inodes: Inodes;
  readonly #tree: DirectoryTree;
  readonly #contents: Contents;
  readonly #host: HostHandles;

  constructor(
    parts: KernelParts,
    { inodes, tree, contents, host }: { inodes: Inodes; tree: DirectoryTree; contents: Contents; host: HostHandles },
  ) {
    this.#parts = parts;
    this.mounts = new Mounts(parts);
    this.#inodes = inodes;
    this.#tree = tree;
    this.#contents = contents;
    this.#host = host;
  }

  /** The inode of a path, held once more. */
  open(path: string, flags: number): number {
    const parts = splitPath(path);
    const mounted = this.mounts.find(parts);
    const writes = (flags & ACCESS_MODE) !== O_RDONLY;
    if (mounted !== undefined) return this.#openHost(mounted.mount, mounted.rest, flags, writes);
    let at = this.#tree.lookup(parts);
    if (at === -ENOENT && (flags & O_CREAT) !== 0) at = this.#tree.make(parts, "file");
    else if (at >= 0 && (flags & O_CREAT) !== 0 && (flags & O_EXCL) !== 0) return -EEXIST;
    if (at < 0) return at;
    const inode = readInode(this.#parts.memory, at);
    if (inode.type === "directory") return -EISDIR;
    if (writes && (flags & O_TRUNC) !== 0) {
      const cut = this.#contents.truncate(inode, 0);
      if (cut < 0) return cut;
    }
    this.#inodes.share(at);
    return at;
  }

  #openHost(mount: Mount, rest: readonly string[], flags: number, writes: boolean): number {
    this.#host.forgetOthers(walkHostInodes(this.#parts.memory));
    if (mount.readOnly && (writes || (flags & O_CREAT) !== 0)) return -EROFS;
    const opened = tryHost(() => {
      const path = hostPath(mount, rest);
      if ((flags & O_CREAT) !== 0) {
        const made = tryHost(() => createHost(path));
        if (typeof made === "number" && (made !== -EEXIST || (flags & O_EXCL) !== 0)) return made;
      }
      return this.#inodes.openHost(this.#host.identify(path), mount);
    });
    if (opened < 0 || !writes || (flags & O_TRUNC) === 0) return opened;
    const cut = this.#contents.truncate(readInode(this.#parts.memory, opened), 0);
    if (cut < 0) this.#inodes.release(opened);
    return cut < 0 ? cut : opened;
  }

  stat(path: string): Stat | number {
    const parts = splitPath(path);
    const mounted = this.mounts.find(parts);
    if (mounted !== undefined) return tryHost(() => statHost(hostPath(mounted.mount, mounted.rest)));
    const at = this.#tree.lookup(parts);
    return at < 0 ? at : statOf(readInode(this.#parts.memory, at));
  }

  /** Names in a directory, in order. */
  list(path: string): string[] | number {
    const parts = splitPath(path);
    const mounted = this.mounts.find(parts);
    if (mounted !== undefined) return tryHost(() => listHost(hostPath(mounted.mount, mounted.rest)));
    const at = this.#tree.lookup(parts);
    if (at < 0) return at;
    if (readInode(this.#parts.memory, at).type !== "directory") return -ENOTDIR;
    return Array.from(walkDirectory(this.#parts.memory, at), ({ name }) => name).sort();
  }

  mkdir(path: string): number {
    return this.#change(path, (parts) => Math.min(0, this.#tree.make(parts, "directory")), makeDirectoryHost);
  }

  rmdir(path: string): number {
    return this.#change(path, (parts) => this.#tree.unlink(parts, "directory"), removeDirectoryHost);
  }

  /** Takes a file's name away. One of the host's that is open must stay: nobody could open it again after a resume. */
  unlink(path: string): number {
    return this.#change(
      path,
      (parts) => this.#tree.unlink(parts, "file"),
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
    if (mounted.rest.length === 0) return -EBUSY;
    if (mounted.mount.readOnly) return -EROFS;
    return tryHost(() => {
      onHost(hostName(mounted.mount, mounted.rest));
      return 0;
    });
  }

  rename(from: string, to: string): number {
    const a = this.mounts.find(splitPath(from));
    const b = this.mounts.find(splitPath(to));
    if (a === undefined && b === undefined) return this.#tree.rename(splitPath(from), splitPath(to));
    if (a === undefined || b === undefined || a.mount.path !== b.mount.path) return -EXDEV;
    if (a.rest.length === 0 || b.rest.length === 0) return -EBUSY;
    if (a.mount.readOnly) return -EROFS;
    return tryHost(() => {
      const paths = [hostName(a.mount, a.rest), hostName(b.mount, b.rest)] as const;
      for (const path of paths) this.#refuseOpen(path);
      renameHost(...paths);
      return 0;
    });
  }
}

export function statOf(inode: Inode): Stat {
  return { type: inode.type === "directory" ? "directory" : "file", size: inode.size, modified: inode.modified };
}
