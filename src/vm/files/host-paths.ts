/**
 * What lies below a mount, as the host has it.
 *
 * What must hold: a call works on what lies in the mounted directory, whoever renames directories or changes links on the host
 * meanwhile. So it first opens what a path leads to, then looks where that is, and then works on what it has opened, not on a path. A
 * link may lead anywhere within the mount. The last name of a call that makes or removes one is not followed, if it is a link.
 *
 * All throw what the host says, and EACCES for what is not in the mount.
 */
import { type BigIntStats, closeSync, constants, fstatSync, openSync, readlinkSync, realpathSync } from "node:fs";
import { join, sep } from "node:path";
import { O_PATH } from "./mount-roots.js";
import type { RootedMount } from "./path.js";

/** A name below a mount, in a directory that is open. */
export interface HostName {
  /** By the directory's descriptor: for the host's calls. */
  at: string;
  /** Where that is now. */
  path: string;
}

/** What a path below a mount leads to. */
export interface Opened {
  /** By its descriptor: for the host's calls. */
  at: string;
  /** Where it is now. */
  path: string;
  stats: BigIntStats;
}

/** Works with a name below a mount, which need not be there; the directory in which it is must be. */
export function withHostName<T>(mount: RootedMount, rest: readonly string[], work: (name: HostName) => T): T {
  const name = rest.at(-1)!;
  return withDescriptor(join(mount.root, ...rest.slice(0, -1)), O_PATH | constants.O_DIRECTORY, (at, descriptor) =>
    work({ at: `${at}/${name}`, path: join(placeWithin(mount, descriptor), name) }),
  );
}

/** Works with what a path below a mount leads to. */
export function withOpened<T>(mount: RootedMount, rest: readonly string[], work: (opened: Opened) => T): T {
  return withDescriptor(join(mount.root, ...rest), O_PATH, (at, descriptor) => {
    const stats = fstatSync(descriptor, { bigint: true });
    if (stats.nlink === 0n) throw Object.assign(new Error("it was removed meanwhile"), { code: "ENOENT" });
    return work({ at, path: placeWithin(mount, descriptor), stats });
  });
}

function withDescriptor<T>(path: string, flags: number, work: (at: string, descriptor: number) => T): T {
  const descriptor = openSync(path, flags);
  try {
    return work(`/proc/self/fd/${descriptor}`, descriptor);
  } finally {
    closeSync(descriptor);
  }
}

/** Where an open file is. */
function placeWithin({ host, root: mounted }: RootedMount, descriptor: number): string {
  const root = realpathSync(mounted);
  const place = readlinkSync(`/proc/self/fd/${descriptor}`);
  if (place === root || place.startsWith(root.endsWith(sep) ? root : root + sep)) return place;
  throw Object.assign(new Error(`${place} is not in ${host}`), { code: "EACCES" });
}
