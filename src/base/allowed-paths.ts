/**
 * Paths of the host that an image names, and which of them may be opened (design/decisions/008-paths-an-image-names.md).
 *
 * What must hold: of a path that an image brought along, nothing is opened but what lies, all links followed, in a place that the
 * user has agreed to. The place of what was opened is looked at, not that of its name.
 */
import { closeSync, readlinkSync, realpathSync } from "node:fs";
import { basename, dirname, join, resolve, sep } from "node:path";
import { HibernaculumError } from "./errors.js";
import { openRegular } from "./host-file.js";
import { giveTurn } from "./turns.js";

/** A path of the host that an image names, and what its machine has there. */
export interface NamedPath {
  what: "disk" | "mount" | "file";
  path: string;
}

/** Where a path leads; as far as there is something, for one that leads nowhere. */
export function realPath(path: string): string {
  const absolute = resolve(path);
  try {
    return realpathSync.native(absolute);
  } catch {
    const parent = dirname(absolute);
    return parent === absolute ? absolute : join(realPath(parent), basename(absolute));
  }
}

/** Whether a real path is one of these, or in one of them. */
export function isWithin(real: string, places: readonly string[]): boolean {
  return places.some((place) => real === place || real.startsWith(place.endsWith(sep) ? place : place + sep));
}

/**
 * Those of the paths that lie elsewhere, each once; the first of very many.
 *
 * @throws HIB_CANCELLED
 */
export async function outside(paths: Iterable<NamedPath>, places: readonly string[], signal?: AbortSignal): Promise<NamedPath[]> {
  const found = new Map<string, NamedPath>();
  let looked = 0;
  for (const named of paths) {
    if (!found.has(named.path) && !isWithin(realPath(named.path), places)) found.set(named.path, named);
    if (found.size === OUTSIDE_MAX) break;
    if (++looked % PATHS_A_TURN === 0) await giveTurn(signal, "looking at the paths that an image names");
  }
  return [...found.values()];
}

const OUTSIDE_MAX = 100;
/** Paths that are followed on the host between two turns of others. */
const PATHS_A_TURN = 256;
/** How many paths an error lists. */
const LISTED = 20;

/** The error for paths that the user has not agreed to. */
export function notAllowed(image: string, paths: readonly NamedPath[]): HibernaculumError {
  const list = paths.slice(0, LISTED).map(({ what, path }) => `${what} ${path}`);
  if (paths.length > LISTED) list.push("and more, which hib inspect lists");
  return new HibernaculumError(
    "HIB_NOT_ALLOWED",
    `${image} refers to files of this host that you have not allowed: ${list.join(", ")}; to let its machine use them, give each, or a directory above it, with --allow PATH`,
  );
}

/**
 * Opens a file that an image names. What lies elsewhere is not opened, nor is a pipe or a device.
 *
 * @param places - real paths
 * @throws HIB_NOT_ALLOWED, and what the host says
 */
export function openAllowed(path: string, places: readonly string[], mode: "r" | "rw" = "r"): number {
  const refuse = (): never => {
    throw notAllowed("the image", [{ what: "file", path }]);
  };
  if (!isWithin(realPath(path), places)) refuse();
  const descriptor = openRegular(path, mode);
  if (openedPlaceIsWithin(descriptor, path, places)) return descriptor;
  closeSync(descriptor); // a link was changed meanwhile
  return refuse();
}

/** Whether what was opened by a path lies in one of these places. */
export function openedPlaceIsWithin(descriptor: number, path: string, places: readonly string[]): boolean {
  return isWithin(placeOf(descriptor, path), places);
}

function placeOf(descriptor: number, path: string): string {
  try {
    return readlinkSync(`/proc/self/fd/${descriptor}`);
  } catch {
    return realPath(path); // a host without /proc
  }
}
