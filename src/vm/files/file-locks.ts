/**
 * Which files of the host a call is at work on that lets go of the kernel lock while the host reads or writes. No other call is at work
 * on them: neither on what they hold, nor on the positions of those that have them open. (The tables of a process that has a file mapped
 * are its own.)
 *
 * The words lie in the control area, by the inode's address, several files to one: they are free at every safepoint, and no image
 * has them. A thread has one of them at most, and none while it waits for another vCPU.
 *
 * Callers hold the kernel lock.
 */
import type { Control } from "../../base/control.js";
import { FILE_LOCKS, MACHINE_FILE_LOCKS } from "../../base/layout.js";
import type { PhysicalAddress } from "../../base/memory.js";

export class FileLocks {
  readonly #control: Control;

  constructor(control: Control) {
    this.#control = control;
  }

  isHeld(inode: PhysicalAddress): boolean {
    return this.#control.load(wordOf(inode)) !== 0;
  }

  /** Lets go of the kernel lock until somebody else has done his work, or for a while. */
  await(inode: PhysicalAddress): void {
    this.#control.unlocked(() => this.#control.waitForOther(wordOf(inode), 1));
  }

  /** Works on a file that nobody else is at work on. */
  hold<T>(inode: PhysicalAddress, work: () => T): T {
    this.#control.store(wordOf(inode), 1);
    try {
      return work();
    } finally {
      this.#control.store(wordOf(inode), 0);
      this.#control.wake(wordOf(inode));
    }
  }
}

/** Inodes are objects of 128 bytes. */
function wordOf(inode: PhysicalAddress): number {
  return MACHINE_FILE_LOCKS + ((inode >>> 7) % FILE_LOCKS) * 4;
}
