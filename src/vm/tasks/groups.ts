/** Process groups, and the processes that a signal is meant for: system calls of the process in a slot. */
import type { PhysicalAddress } from "../../base/memory.js";
import { EINVAL, EPERM, ESRCH } from "../memory/errno.js";
import * as K from "../memory/kernel-layout.js";
import { processAddress } from "../memory/kernel-layout.js";
import { refuseWhileStopped } from "./lifecycle.js";
import type { KernelParts } from "./parts.js";
import { findSlots, isAlive, isMeant, slotOf } from "./process.js";
import { isSignal, type Signals } from "./signals.js";

export class Groups {
  readonly #parts: KernelParts;
  readonly #signals: Signals;

  constructor(parts: KernelParts, signals: Signals) {
    this.#parts = parts;
    this.#signals = signals;
  }

  /**
   * kill: sends a signal to a process, to a group (negative), to the own group (0), or to all others (-1). Signal 0 only looks
   * whether there is one.
   *
   * @param slot - of the process that sends it; undefined from outside the machine
   * @returns 0 or an error number, negated
   * @throws HIB_BUSY from outside while the machine stands still
   */
  kill(slot: number | undefined, pid: number, signal: number): number {
    if (slot === undefined) refuseWhileStopped(this.#parts.control);
    if (!Number.isInteger(pid) || (signal !== 0 && !isSignal(signal)) || (slot === undefined && pid === 0)) return -EINVAL;
    return this.#parts.control.locked(() => {
      const by = slot === undefined ? 0 : this.#at(slot);
      const targets = findSlots(this.#parts.memory, (at) => (pid === -1 ? at !== by : isMeant(this.#parts.memory, at, pid, by)));
      if (targets.length === 0) return -ESRCH;
      for (const target of targets) {
        const at = this.#at(target);
        if (signal !== 0 && isAlive(this.#parts.memory.load32(at + K.PROCESS_STATE))) this.#signals.post(at, signal);
      }
      return 0;
    });
  }

  getpgid(slot: number, pid: number): number {
    return this.#parts.control.locked(() => {
      const found = pid === 0 ? slot : slotOf(this.#parts.memory, pid);
      return found === undefined ? -ESRCH : this.#parts.memory.load32(this.#at(found) + K.PROCESS_GROUP);
    });
  }

  /** setpgid: puts a process or a child of it into a group that there is, or makes it the first of one. */
  setpgid(slot: number, pid: number, group: number): number {
    return this.#parts.control.locked(() => {
      const own = this.#parts.memory.load32(this.#at(slot) + K.PROCESS_PID);
      const found = pid === 0 ? slot : slotOf(this.#parts.memory, pid);
      if (found === undefined) return -ESRCH;
      const at = this.#at(found);
      if (found !== slot && this.#parts.memory.load32(at + K.PROCESS_PARENT) !== own) return -ESRCH;
      if (!Number.isInteger(group) || group < 0) return -EINVAL;
      const leader = this.#parts.memory.load32(at + K.PROCESS_PID);
      const wanted = group === 0 ? leader : group;
      const there =
        findSlots(this.#parts.memory, (other) => this.#parts.memory.load32(other + K.PROCESS_GROUP) === wanted).length > 0;
      if (wanted !== leader && !there) return -EPERM;
      this.#parts.memory.store32(at + K.PROCESS_GROUP, wanted);
      return 0;
    });
  }

  #at(slot: number): PhysicalAddress {
    return processAddress(this.#parts.memory, slot);
  }
}
