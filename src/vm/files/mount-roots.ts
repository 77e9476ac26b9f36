/**
 * The mounted directories of the host, held open: a mount is that directory from the boot or the resume on, whatever is renamed
 * above it, or put in its place. The descriptors are the host process's, so all its threads use them; their numbers are words of the
 * control area, in the order of the mounts.
 */
import { closeSync, constants, openSync } from "node:fs";
import process from "node:process";
import { notAllowed, openedPlaceIsWithin } from "../../base/allowed-paths.js";
import type { Control } from "../../base/control.js";
import { MACHINE_MOUNT_ROOTS, MOUNT_ROOTS } from "../../base/layout.js";

/** Linux' O_PATH: nothing of a file is opened but its place, and nobody waits for the other end of a pipe. */
export const O_PATH: number = process.platform === "linux" ? 0o10000000 : constants.O_NONBLOCK;

/** A word: the directory is not open, and the mount's path says where it is; or there was none. Else its descriptor + 1. */
const BY_PATH = 0;
const MISSING = -1;

/** Where a mount's directory is, for the host's calls. */
export function mountRoot(control: Control, index: number, host: string): string {
  const word = index < MOUNT_ROOTS ? control.load(MACHINE_MOUNT_ROOTS + index * 4) : BY_PATH;
  return word === BY_PATH ? host : `/proc/self/fd/${word - 1}`;
}

/** The coordinator's side. */
export class MountRoots {
  readonly #control: Control;
  #open: number[] = [];
  #prepared: number[] | undefined;

  constructor(control: Control) {
    this.#control = control;
  }

  /** Holds the directories of a machine that boots. What cannot be opened is not there. */
  hold(paths: readonly string[]): void {
    this.#prepared = paths.slice(0, MOUNT_ROOTS).map((path) => openDirectory(path));
    this.restore();
  }

  /**
   * Opens those of a machine that is resumed.
   *
   * @param places - real paths, in which they must be
   * @throws HIB_NOT_ALLOWED
   */
  prepareRestore(paths: readonly string[], places: readonly string[]): void {
    this.forgetRestore();
    this.#prepared = [];
    for (const path of paths.slice(0, MOUNT_ROOTS)) {
      const descriptor = openDirectory(path);
      this.#prepared.push(descriptor);
      if (descriptor >= 0 && !openedPlaceIsWithin(descriptor, path, places))
        throw notAllowed("the image", [{ what: "mount", path }]);
    }
  }

  /** What was prepared are the machine's mounts from now on. */
  restore(): void {
    const roots = this.#prepared ?? [];
    this.#prepared = undefined;
    const before = this.#open;
    this.#open = roots;
    for (let i = 0; i < MOUNT_ROOTS; i++) {
      const root = roots[i];
      this.#control.store(MACHINE_MOUNT_ROOTS + i * 4, root === undefined ? BY_PATH : root < 0 ? MISSING : root + 1);
    }
    closeAll(before);
  }

  forgetRestore(): void {
    closeAll(this.#prepared ?? []);
    this.#prepared = undefined;
  }

  close(): void {
    this.forgetRestore();
    closeAll(this.#open);
    this.#open = [];
  }
}

/** -1 if there is no such directory. */
function openDirectory(path: string): number {
  try {
    return openSync(path, O_PATH | constants.O_DIRECTORY);
  } catch {
    return -1;
  }
}

function closeAll(descriptors: readonly number[]): void {
  for (const descriptor of descriptors) if (descriptor >= 0) closeSync(descriptor);
}
