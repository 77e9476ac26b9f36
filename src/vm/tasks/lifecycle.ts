/**
 * The life of a process: how it begins (spawn, fork), becomes another program (exec), ends (exit, failure, from outside), and
 * how its parent hears of it (wait).
 *
 * What must hold: a process that has ended holds nothing but its slot, and that until its parent has asked how it ended. One that
 * failed keeps its memory for as long, for whoever looks. The kernel reaps who has lost his parent; who never had one and fails
 * stays until he is ended from outside.
 */
import type { Control } from "../../base/control.js";
import { HibernaculumError } from "../../base/errors.js";
import { FRAME_BYTES, MACHINE_STOP, MAX_PROCESSES } from "../../base/layout.js";
import type { PhysicalAddress } from "../../base/memory.js";
import { AddressSpace } from "../memory/address-space.js";
import { printToConsole } from "../memory/console-ring.js";
import { E2BIG, EAGAIN, ECHILD, EINVAL, ENOENT, ENOMEM } from "../memory/errno.js";
import * as K from "../memory/kernel-layout.js";
import { processAddress } from "../memory/kernel-layout.js";
import type { Pager } from "../memory/memory-object.js";
import { A0, REGISTER_WORDS } from "../memory/user-layout.js";
import { passFaultsOn } from "./activity.js";
import type { KernelParts } from "./parts.js";
import { findSlots, isAlive, isMeant, type Process, readProcess, slotOf } from "./process.js";
import { DISPOSITION_IGNORE, SIGCHLD, SIGKILL, type Signals } from "./signals.js";
import { STATUS_CONTINUED, WCONTINUED, WNOHANG, WUNTRACED } from "./status.js";
import { buildMemory, type ProcessTemplate } from "./template.js";
import { Wait } from "./wait.js";

/** The open files of processes, as far as a process's life goes. Callers hold the kernel lock. */
export interface FdTables {
  /** exec closes some (`cloexec`), the end all, and the table with them. */
  closeAll(slot: number, which: "all" | "cloexec"): void;
  /** The child has the same descriptions. False if there is no memory. */
  copyTable(from: number, to: number): boolean;
}

export class Lifecycle {
  readonly #parts: KernelParts;
  readonly #signals: Signals;
  readonly #fds: FdTables;
  readonly #pager: Pager;

  constructor(parts: KernelParts, signals: Signals, fds: FdTables, pager: Pager) {
    this.#parts = parts;
    this.#signals = signals;
    this.#fds = fds;
    this.#pager = pager;
  }

  /**
   * Starts a process.
   *
   * @param text - the program's text, kept in the code page
   * @param template - its data area is filled here
   * @throws HIB_NO_MEMORY, HIB_USAGE when the process table is full, HIB_BUSY while the machine stands still
   */
  spawn(text: string, template: ProcessTemplate, { boot = false }: { boot?: boolean } = {}): Process {
    refuseWhileStopped(this.#parts.control);
    const slot = this.#parts.control.locked(() => {
      if (Buffer.byteLength(text) > FRAME_BYTES)
        throw new HibernaculumError("HIB_USAGE", `a program's text is at most ${FRAME_BYTES} bytes`);
      const free = this.#takeSlot();
      if (free === undefined) throw new HibernaculumError("HIB_USAGE", `the process table is full (${MAX_PROCESSES})`);
      const at = this.#at(free);
      this.#parts.memory.store32(at + K.PROCESS_PID, this.#nextPid());
      this.#parts.memory.store32(at + K.PROCESS_GROUP, this.#parts.memory.load32(at + K.PROCESS_PID));
      this.#parts.memory.store32(at + K.PROCESS_FLAGS, boot ? K.FLAG_BOOT : 0);
      return free;
    });
    try {
      buildMemory(this.#parts, slot, this.#space(slot), text, template);
    } catch (error) {
      this.#parts.control.locked(() => this.#destroy(slot));
      throw error;
    }
    const process = this.#parts.control.locked(() => {
      this.#parts.scheduler.begin(this.#at(slot));
      return readProcess(this.#parts.memory, slot)!; // once the lock is free, it may run, and end
    });
    this.#parts.control.ringDoorbell();
    return process;
  }

  /** A free slot of the process table, taken for an embryo; undefined if there is none. */
  #takeSlot(): number | undefined {
    const used = this.#parts.memory.load32(K.KERNEL_SLOTS_USED);
    let slot = 0;
    while (slot < used && this.#parts.memory.load32(this.#at(slot) + K.PROCESS_STATE) !== K.PROCESS_FREE) slot++;
    if (slot === MAX_PROCESSES) return undefined;
    if (slot === used) this.#parts.memory.store32(K.KERNEL_SLOTS_USED, used + 1);
    for (let word = 0; word < K.PROCESS_BYTES; word += 4) this.#parts.memory.store32(this.#at(slot) + word, 0);
    this.#parts.memory.store32(this.#at(slot) + K.PROCESS_STATE, K.PROCESS_EMBRYO);
    this.#parts.memory.store32(this.#at(slot) + K.PROCESS_VCPU, -1);
    this.#parts.core.dropContext(slot);
    passFaultsOn(this.#parts.control, slot);
    return slot;
  }

  #nextPid(): number {
    const pid = this.#parts.memory.load32(K.KERNEL_NEXT_PID);
    this.#parts.memory.store32(K.KERNEL_NEXT_PID, pid + 1);
    return pid;
  }

  /** Ends a process; a running one goes at its vCPU's next safepoint. @throws HIB_BUSY while the machine stands still */
  end(slot: number): void {
    refuseWhileStopped(this.#parts.control);
    this.#parts.control.locked(() => {
      const state = this.#parts.memory.load32(this.#at(slot) + K.PROCESS_STATE);
      if (state === K.PROCESS_RUNNING) this.#parts.memory.store32(this.#at(slot) + K.PROCESS_STATE, K.PROCESS_ENDING);
      else if (state === K.PROCESS_ZOMBIE || state === K.PROCESS_FAILED) this.#destroy(slot);
      else if (state !== K.PROCESS_FREE && state !== K.PROCESS_ENDING) this.exit(slot, SIGKILL);
    });
  }

  /** A process that has come to its end goes, and nobody can look at it any more: why it failed is on the console. */
  #reap(slot: number): void {
    const process = readProcess(this.#parts.memory, slot)!;
    const { pid, text, state, failure } = process;
    if (state === "failed") printToConsole(this.#parts.memory, `process ${pid} (${text}) failed: ${failure}`);
    this.#destroy(slot);
  }

  /** Nothing is left of a process. */
  #destroy(slot: number): void {
    this.#letGo(slot);
    this.#parts.memory.store32(this.#at(slot) + K.PROCESS_STATE, K.PROCESS_FREE);
  }

  #letGo(slot: number): void {
    this.#fds.closeAll(slot, "all");
    this.#space(slot).release();
    this.#signals.cancelAlarm(this.#at(slot));
  }

  /**
   * A process has come to its end: its status waits for its parent, if there is one that does not ignore it. Caller holds the
   * kernel lock.
   */
  exit(slot: number, status: number): void {
    const at = this.#at(slot);
    this.#orphan(at);
    const parent = this.#parentOf(at);
    this.#letGo(slot);
    const waited = parent !== undefined && !this.#ignoresChildren(parent);
    this.#parts.memory.store32(at + K.PROCESS_STATE, waited ? K.PROCESS_ZOMBIE : K.PROCESS_FREE);
    this.#signals.tellParent(at, status);
  }

  #parentOf(at: PhysicalAddress): PhysicalAddress | undefined {
    const slot = slotOf(this.#parts.memory, this.#parts.memory.load32(at + K.PROCESS_PARENT));
    return slot === undefined ? undefined : this.#at(slot);
  }

  #ignoresChildren(parent: PhysicalAddress): boolean {
    return this.#signals.disposition(parent, SIGCHLD) === DISPOSITION_IGNORE;
  }

  /** A process has failed: its memory stays until it is reaped. Caller holds the kernel lock. */
  fail(slot: number, reason: string, status: number): void {
    const at = this.#at(slot);
    this.#orphan(at);
    this.#signals.cancelAlarm(at);
    this.#fds.closeAll(slot, "all"); // a process at the other end of a pipe must not wait for it
    const text = new TextEncoder().encode(reason).subarray(0, K.PROCESS_FAILURE_BYTES - 1);
    this.#parts.memory.write(at + K.PROCESS_FAILURE, text);
    this.#parts.memory.store32(at + K.PROCESS_STATE, K.PROCESS_FAILED);
    const parent = this.#parentOf(at);
    const orphan = (this.#parts.memory.load32(at + K.PROCESS_FLAGS) & K.FLAG_ORPHAN) !== 0;
    if (orphan || (parent !== undefined && this.#ignoresChildren(parent))) this.#reap(slot);
    this.#signals.tellParent(at, status);
  }

  /** The children of a process have no parent any more: nobody will ask how they ended. */
  #orphan(at: PhysicalAddress): void {
    for (const child of this.#childrenOf(this.#parts.memory.load32(at + K.PROCESS_PID))) {
      const of = this.#at(child);
      this.#parts.memory.store32(of + K.PROCESS_PARENT, 0);
      this.#parts.memory.store32(of + K.PROCESS_FLAGS, this.#parts.memory.load32(of + K.PROCESS_FLAGS) | K.FLAG_ORPHAN);
      if (!isAlive(this.#parts.memory.load32(of + K.PROCESS_STATE))) this.#reap(child);
    }
  }

  // ---- system calls of processes: what is negative is an error number ----

  /**
   * fork: a child that is a copy of the process, at the same step. A0 of the parent becomes the child's pid, A0 of the
   * child 0. Runs on the vCPU of the process between two steps, with its registers in the process table.
   */
  fork(slot: number): void {
    this.#parts.control.locked(() => {
      const result = (value: number) => this.#parts.memory.store32(this.#at(slot) + K.PROCESS_REGISTERS + A0 * 4, value);
      const child = this.#takeSlot();
      if (child === undefined) return result(-EAGAIN);
      const from = this.#at(slot);
      const to = this.#at(child);
      for (const at of COPIED_BY_FORK) this.#parts.memory.store32(to + at, this.#parts.memory.load32(from + at));
      for (let word = 0; word < REGISTER_WORDS; word++) {
        const at = K.PROCESS_REGISTERS + word * 4;
        this.#parts.memory.store32(to + at, word === A0 || word === A0 + 1 ? 0 : this.#parts.memory.load32(from + at));
      }
      const pid = this.#nextPid();
      this.#parts.memory.store32(to + K.PROCESS_PID, pid);
      this.#parts.memory.store32(to + K.PROCESS_PARENT, this.#parts.memory.load32(from + K.PROCESS_PID));
      this.#parts.memory.store32(to + K.PROCESS_FLAGS, this.#parts.memory.load32(from + K.PROCESS_FLAGS) & ~K.FLAG_ORPHAN);
      const space = this.#space(child);
      const root = space.allocateTable();
      this.#parts.memory.store32(to + K.PROCESS_ROOT, root ?? 0);
      const copied = root !== undefined && this.#fds.copyTable(slot, child) && this.#space(slot).copyTo(space);
      this.#parts.core.dropContext(slot); // its write tags are for leaves that have no W any more
      if (!copied) {
        this.#destroy(child);
        return result(-ENOMEM);
      }
      result(pid);
      this.#parts.memory.store32(from + K.PROCESS_REGISTERS + (A0 + 1) * 4, 0);
      this.#parts.scheduler.begin(to);
      this.#parts.control.ringDoorbell();
    });
  }

  /**
   * exec: another program in the same process, from its first step. The old one is gone before it is known that there is memory
   * for the new one; without, the process fails. A text that is no program's leaves the old one with an error in A0.
   *
   * @param create - makes the template of a text, or throws HIB_USAGE
   * @returns whether there is another program now
   * @throws HIB_NO_MEMORY
   */
  exec(slot: number, text: string, create: (text: string) => ProcessTemplate): boolean {
    const at = this.#at(slot);
    const refuse = (error: number): boolean => {
      this.#parts.memory.store32(at + K.PROCESS_REGISTERS + A0 * 4, -error);
      return false;
    };
    if (Buffer.byteLength(text) > FRAME_BYTES) return refuse(E2BIG);
    let template: ProcessTemplate;
    try {
      template = create(text);
    } catch (error) {
      if (error instanceof HibernaculumError && error.code === "HIB_USAGE") return refuse(ENOENT);
      throw error;
    }
    this.#parts.control.locked(() => {
      this.#fds.closeAll(slot, "cloexec");
      this.#space(slot).release();
      this.#signals.forgetHandlers(at);
      this.#parts.memory.storeFloat64(at + K.PROCESS_STEPS, 0);
      for (let word = 0; word < REGISTER_WORDS; word++) this.#parts.memory.store32(at + K.PROCESS_REGISTERS + word * 4, 0);
    });
    buildMemory(this.#parts, slot, this.#space(slot), text, template);
    return true;
  }

  /**
   * wait: the pid and status of a child that has exited or failed, which is gone then, or that has stopped or goes on; a Wait if
   * there is none yet. Caller holds the kernel lock.
   *
   * @param pid - of the child; -1 for any, 0 for one of this process's group, -group for one of another
   * @param options - WNOHANG, WUNTRACED, WCONTINUED
   */
  wait(slot: number, pid: number, options: number): { pid: number; status: number } | number | Wait {
    if ((options & ~(WNOHANG | WUNTRACED | WCONTINUED)) !== 0) return -EINVAL;
    const at = this.#at(slot);
    const children = this.#childrenOf(this.#parts.memory.load32(at + K.PROCESS_PID)).filter(
      (child) => pid === -1 || isMeant(this.#parts.memory, this.#at(child), pid, at),
    );
    if (children.length === 0) return -ECHILD;
    const found = children.find((child) => this.#isToTell(this.#at(child), options));
    if (found === undefined) return (options & WNOHANG) === 0 ? new Wait(at) : 0;
    const told = {
      pid: this.#parts.memory.load32(this.#at(found) + K.PROCESS_PID),
      status: this.#parts.memory.load32(this.#at(found) + K.PROCESS_STATUS),
    };
    if (isAlive(this.#parts.memory.load32(this.#at(found) + K.PROCESS_STATE)))
      this.#parts.memory.store32(this.#at(found) + K.PROCESS_STATUS, 0);
    else this.#reap(found);
    return told;
  }

  /** Whether wait with these options has something to tell of a child. */
  #isToTell(child: PhysicalAddress, options: number): boolean {
    if (!isAlive(this.#parts.memory.load32(child + K.PROCESS_STATE))) return true;
    const status = this.#parts.memory.load32(child + K.PROCESS_STATUS);
    if (status === STATUS_CONTINUED) return (options & WCONTINUED) !== 0;
    return status !== 0 && (options & WUNTRACED) !== 0;
  }

  #childrenOf(pid: number): number[] {
    return findSlots(this.#parts.memory, (at) => this.#parts.memory.load32(at + K.PROCESS_PARENT) === pid);
  }

  #space(slot: number): AddressSpace {
    return new AddressSpace(this.#parts, this.#pager, slot);
  }

  #at(slot: number): PhysicalAddress {
    return processAddress(this.#parts.memory, slot);
  }
}

/** A stopped machine is read as the memory of one instant. @throws HIB_BUSY while it stands still */
export function refuseWhileStopped(control: Control): void {
  if (control.load(MACHINE_STOP) === 1) {
    throw new HibernaculumError("HIB_BUSY", "the machine is stopped for its image; start and end processes once it runs again");
  }
}

/** Words of the process table that a child has from its parent; float64s in two halves. */
const COPIED_BY_FORK: readonly number[] = [
  K.PROCESS_STEPS,
  K.PROCESS_STEPS + 4,
  K.PROCESS_RATE,
  K.PROCESS_RATE + 4,
  K.PROCESS_TEXT_BYTES,
  K.PROCESS_GROUP,
  K.PROCESS_NICE,
  K.PROCESS_VRUNTIME,
  K.PROCESS_VRUNTIME + 4,
  K.PROCESS_MASK,
  ...Array.from({ length: K.PROCESS_DISPOSITIONS_BYTES / 4 }, (_, word) => K.PROCESS_DISPOSITIONS + word * 4),
  ...Array.from({ length: K.PROCESS_HANDLER_MASKS_BYTES / 4 }, (_, word) => K.PROCESS_HANDLER_MASKS + word * 4),
];
