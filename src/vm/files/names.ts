/**
 * Names: what is at a path, in memory or below a mount, and the calls that make, move and remove names.
 *
 * Callers hold the kernel lock. What is negative is an error number; a Wait, that the process has to wait.
 */
import { type BigIntStats, lstatSync, mkdirSync, readdirSync, renameSync, rmdirSync, unlinkSync } from "node:fs";
import { sep } from "node:path";
import { EBUSY, EEXIST, EISDIR, ENOENT, ENOTDIR, EROFS, EXDEV } from "../memory/errno.js";
import type { KernelParts } from "../tasks/parts.js";
import { AGAIN, Wait } from "../tasks/wait.js";
import type { Contents } from "./contents.js";
import { ACCESS_MODE, O_CREAT, O_EXCL, O_RDONLY, O_TRUNC } from "./flags.js";
import { createHost, type HostHandles, type HostStat, identify, statOfHost, tryHost } from "./host.js";
import { type HostName, withHostName, withOpened } from "./host-paths.js";
import { type Inode, type Inodes, readInode, walkHostInodes } from "./inode.js";
import { Mounts, type RootedMount, splitPath } from "./path.js";
import { type DirectoryTree, walkDirectory } from "./tree.js";

export type Stat = HostStat;

/** Pages that one call reads of a file that loses its name. */
const CALL_PAGES = 256;

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

  /** The inode of a path, held once more, for the process in a slot. */
  open(slot: number, path: string, flags: number): number | Wait {
    const parts = splitPath(path);
    const mounted = this.mounts.find(parts);
    const opened = mounted === undefined ? this.#openInMemory(parts, flags) : this.#openHost(mounted, flags);
    if (opened < 0 || (flags & ACCESS_MODE) === O_RDONLY || (flags & O_TRUNC) === 0) return opened;
    const cut = this.#contents.exclusively(opened, slot, (inode) => this.#contents.truncate(inode, 0, slot));
    if (cut !== 0) this.#inodes.release(opened);
    return cut === 0 ? opened : cut;
  }

  #openInMemory(parts: readonly string[], flags: number): number {
    let at = this.#tree.lookup(parts);
    if (at === -ENOENT && (flags & O_CREAT) !== 0) at = this.#tree.make(parts, "file");
    else if (at >= 0 && (flags & O_CREAT) !== 0 && (flags & O_EXCL) !== 0) return -EEXIST;
    if (at < 0) return at;
    if (readInode(this.#parts.memory, at).type === "directory") return -EISDIR;
    this.#inodes.share(at);
    return at;
  }

  #openHost({ mount, rest }: { mount: RootedMount; rest: readonly string[] }, flags: number): number {
    this.#host.forgetOthers(walkHostInodes(this.#parts.memory));
    if (mount.readOnly && ((flags & ACCESS_MODE) !== O_RDONLY || (flags & O_CREAT) !== 0)) return -EROFS;
    if ((flags & O_CREAT) !== 0 && rest.length > 0) {
      const made = tryHost(() => withHostName(mount, rest, createHost));
      if (made !== undefined && (made !== -EEXIST || (flags & O_EXCL) !== 0)) return made;
    }
    const identity = tryHost(() => withOpened(mount, rest, identify));
    return typeof identity === "number" ? identity : this.#inodes.openHost(identity, mount);
  }

  stat(path: string): Stat | number {
    const parts = splitPath(path);
    const mounted = this.mounts.find(parts);
    if (mounted !== undefined) return this.#unlocked(() => withOpened(mounted.mount, mounted.rest, statOfHost));
    const at = this.#tree.lookup(parts);
    return at < 0 ? at : statOf(readInode(this.#parts.memory, at));
  }

  /** Names in a directory, in order. */
  list(path: string): string[] | number {
    const parts = splitPath(path);
    const mounted = this.mounts.find(parts);
    if (mounted !== undefined)
      return this.#unlocked(() => withOpened(mounted.mount, mounted.rest, ({ at }) => readdirSync(at).sort()));
    const at = this.#tree.lookup(parts);
    if (at < 0) return at;
    if (readInode(this.#parts.memory, at).type !== "directory") return -ENOTDIR;
    return Array.from(walkDirectory(this.#parts.memory, at), ({ name }) => name).sort();
  }

  /** Only looks at the host, and so without the kernel lock. */
  #unlocked<T>(look: () => T): T | number {
    return this.#parts.control.unlocked(() => tryHost(look));
  }

  mkdir(path: string): number {
    return this.#change(
      path,
      (parts) => Math.min(0, this.#tree.make(parts, "directory")),
      ({ at }) => {
        mkdirSync(at);
        return 0;
      },
    );
  }

  rmdir(path: string): number {
    return this.#change(
      path,
      (parts) => this.#tree.unlink(parts, "directory"),
      ({ at }) => {
        rmdirSync(at);
        return 0;
      },
    );
  }

  /** Takes a file's name away; see `#losesName` for one of the host's that is open. */
  unlink(path: string): number | Wait {
    return this.#change(
      path,
      (parts) => this.#tree.unlink(parts, "file"),
      (name) => {
        const loser = this.#losesName(name);
        if (loser instanceof Wait) return loser;
        unlinkSync(name.at);
        if (loser !== undefined) this.#contents.host.keep(loser);
        return 0;
      },
    );
  }

  /**
   * The open file of the host that has no name any more once this one is gone. After a resume nobody could open it again, so its
   * contents are brought into memory first, and then it is the machine's own: a Wait if there is more to be read.
   *
   * @throws EBUSY if there is no memory for it, or if other names of it go on leading to its contents on the host
   */
  #losesName({ at, path }: HostName): Inode | Wait | undefined {
    for (let left = CALL_PAGES; left > 0; ) {
      const there = look(at);
      const inode = there === undefined ? undefined : this.#openedAs(there);
      if (inode === undefined || (there!.nlink > 1n && inode.host!.path !== path)) return undefined;
      const read = there!.nlink > 1n ? -EBUSY : this.#contents.host.readSome(inode, left);
      if (read === undefined) return inode;
      if (read < 0) throw Object.assign(new Error(`${path} is open`), { code: "EBUSY" });
      left -= read; // and all may be otherwise now
    }
    return AGAIN;
  }

  #openedAs({ dev, ino }: Pick<BigIntStats, "dev" | "ino">): Inode | undefined {
    for (const inode of walkHostInodes(this.#parts.memory))
      if (inode.host!.device === dev && inode.host!.number === ino) return inode;
    return undefined;
  }

  #change<T extends number | Wait>(
    path: string,
    inMemory: (parts: string[]) => number,
    onHost: (name: HostName) => T,
  ): T | number {
    const parts = splitPath(path);
    const mounted = this.mounts.find(parts);
    if (mounted === undefined) return inMemory(parts);
    if (mounted.rest.length === 0) return -EBUSY;
    if (mounted.mount.readOnly) return -EROFS;
    return tryHost(() => withHostName(mounted.mount, mounted.rest, onHost));
  }

  rename(from: string, to: string): number | Wait {
    const a = this.mounts.find(splitPath(from));
    const b = this.mounts.find(splitPath(to));
    if (a === undefined && b === undefined) return this.#tree.rename(splitPath(from), splitPath(to));
    if (a === undefined || b === undefined || a.mount.path !== b.mount.path) return -EXDEV;
    if (a.rest.length === 0 || b.rest.length === 0) return -EBUSY;
    if (a.mount.readOnly) return -EROFS;
    return tryHost(() =>
      withHostName(a.mount, a.rest, (old) => withHostName(b.mount, b.rest, (name) => this.#renameHost(old, name))),
    );
  }

  /** What is open of what is moved has another path from then on; what is replaced loses its name. */
  #renameHost(from: HostName, to: HostName): number | Wait {
    const loser = areOne(from, to) ? undefined : this.#losesName(to);
    if (loser instanceof Wait) return loser;
    const moved = look(from.at);
    if (moved === undefined || areOne(from, to)) {
      renameSync(from.at, to.at); // which changes nothing
      return 0;
    }
    const others = this.#inodes.preparePaths((inode) => pathAfter(inode, moved, from.path, to.path));
    try {
      renameSync(from.at, to.at);
    } catch (error) {
      others.giveUp();
      throw error;
    }
    others.take();
    if (loser !== undefined) this.#contents.host.keep(loser);
    return 0;
  }
}

/** What has a name; a link itself. */
function look(at: string): BigIntStats | undefined {
  return lstatSync(at, { bigint: true, throwIfNoEntry: false });
}

/** Whether two names are of one file, or the first of none: then a rename has nothing to do. */
function areOne(from: HostName, to: HostName): boolean {
  const [a, b] = [look(from.at), look(to.at)];
  return a === undefined || (a.dev === b?.dev && a.ino === b.ino);
}

/** The path of an open file once `from` is `to`; undefined if it has nothing to do with that. */
function pathAfter({ host }: Inode, moved: BigIntStats, from: string, to: string): string | undefined {
  const { path, device, number } = host!;
  if (moved.isDirectory()) return path.startsWith(from + sep) ? to + path.slice(from.length) : undefined;
  const same = device === moved.dev && number === moved.ino;
  return same && (path === from || moved.nlink === 1n) ? to : undefined;
}

export function statOf(inode: Inode): Stat {
  return { type: inode.type === "directory" ? "directory" : "file", size: inode.size, modified: inode.modified };
}
