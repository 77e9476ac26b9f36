/**
 * The life of a process: how it begins (spawn, fork), becomes another program (exec), ends (exit, failure, from outside), and
 * how its parent hears of it (wait).
 *
 * What must hold: a process that has ended holds nothing but its slot, and that until its parent has asked how it ended. One that
 * failed keeps its memory for as long, for whoever looks. The kernel reaps a process that has lost its parent; one that never had any and fails
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
import { copyEntry } from "./child.js";
import type { KernelParts } from "./parts.js";
import { findSlots, isAlive, isMeant, type Process, readProcess, slotOf } from "./process.js";
import { isDying } from "./scheduler.js";
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

/** Some 50 us. */
const LEAVES_A_PART = 1024;

export class Lifecycle {
  /** Leaves that a fork or an end takes on in one piece. */
  leavesAPart: number = LEAVES_A_PART;
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
      if (state === K.PROCESS_RUNNING) this.#toEnd(slot, SIGKILL);
      else if (state === K.PROCESS_EMBRYO)
        this.#signals.post(this.#at(slot), SIGKILL); // a fork is under way
      else if (state === K.PROCESS_ZOMBIE || state === K.PROCESS_FAILED) this.#destroy(slot);
      else if (state !== K.PROCESS_FREE && state !== K.PROCESS_ENDING) this.exit(slot, SIGKILL);
    });
  }

  /** It ends at its vCPU's next safepoint, or goes on ending when a vCPU picks it. */
  #toEnd(slot: number, status: number): void {
    this.#parts.memory.store32(this.#at(slot) + K.PROCESS_STATE, K.PROCESS_ENDING);
    this.#parts.memory.store32(this.#at(slot) + K.PROCESS_LAST_STATUS, status);
  }

  /** A process that has come to its end goes, and nobody can look at it any more: why it failed is on the console. */
  #reap(slot: number): void {
    const { pid, text, state, failure } = readProcess(this.#parts.memory, slot)!;
    if (state !== "failed") return this.#destroy(slot);
    printToConsole(this.#parts.memory, `process ${pid} (${text}) failed: ${failure}`);
    this.#vanish(slot);
  }

  /** Nobody hears of a process's end, and nothing of it is left once its memory is given back. */
  #vanish(slot: number): void {
    this.#parts.memory.store32(this.#at(slot) + K.PROCESS_PARENT, 0);
    this.endInParts(slot, SIGKILL);
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
    const child = this.#takeFork(at);
    if (child !== undefined) this.#destroy(child);
    this.#orphan(at);
    const parent = this.#parentOf(at);
    this.#letGo(slot);
    const waited = parent !== undefined && !this.#ignoresChildren(parent);
    this.#parts.memory.store32(at + K.PROCESS_STATE, waited ? K.PROCESS_ZOMBIE : K.PROCESS_FREE);
    this.#signals.tellParent(at, status);
  }

  /**
   * As `exit`, so much of it as a stop may wait for. A process with more memory than that is ending: it has done its last step, and
   * goes on to end whenever a vCPU picks it. Caller holds the kernel lock.
   */
  endInParts(slot: number, status: number): void {
    const child = this.#takeFork(this.#at(slot));
    if (child !== undefined) this.#vanish(child);
    if (this.#space(slot).shrink(this.leavesAPart)) this.exit(slot, status);
    else this.#toEnd(slot, status);
  }

  /** For an allocator that finds nothing: takes out what is left of processes that are ending. Caller holds the kernel lock. */
  reclaim(): boolean {
    const { buddy, memory } = this.#parts;
    const before = buddy.freeFrames;
    for (const slot of findSlots(memory, (at) => isDying(memory, at))) this.#space(slot).shrink(Infinity);
    return buddy.freeFrames > before;
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
    this.#signals.tellParent(at, status);
    if (orphan || (parent !== undefined && this.#ignoresChildren(parent))) this.#reap(slot);
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
   * child 0. Runs on the vCPU of the process between two steps, with its registers in the process table. If the process has much
   * memory the fork is not over when this returns: its next turns are parts of it (`goOn`), and the child is an embryo meanwhile.
   */
  fork(slot: number): void {
    this.#parts.control.locked(() => {
      const child = this.#takeSlot();
      if (child === undefined) return this.#forked(slot, -EAGAIN);
      const from = this.#at(slot);
      const to = this.#at(child);
      copyEntry(this.#parts.memory, from, to);
      this.#parts.memory.store32(to + K.PROCESS_PID, this.#nextPid());
      const space = this.#space(child);
      const root = space.allocateTable();
      this.#parts.memory.store32(to + K.PROCESS_ROOT, root ?? 0);
      if (root === undefined || !this.#fds.copyTable(slot, child) || !this.#space(slot).copyAreasTo(space)) {
        this.#destroy(child);
        return this.#forked(slot, -ENOMEM);
      }
      this.#parts.memory.store32(from + K.PROCESS_FORK, child + 1);
      this.#parts.memory.store32(from + K.PROCESS_FORK_PAGE, 0);
      this.#forkOn(slot);
    });
  }

  /** A part of a fork that is under way. */
  #forkOn(slot: number): void {
    const { control, core, memory, scheduler } = this.#parts;
    const at = this.#at(slot);
    const child = memory.load32(at + K.PROCESS_FORK) - 1;
    const from = memory.load32(at + K.PROCESS_FORK_PAGE) * FRAME_BYTES;
    const next = this.#space(slot).shareWith(this.#space(child), from, this.leavesAPart);
    core.dropContext(slot); // its write tags are for leaves that have no W any more
    if (next !== undefined && next < 2 ** 32) return memory.store32(at + K.PROCESS_FORK_PAGE, next / FRAME_BYTES);
    this.#takeFork(at);
    if (next === undefined) {
      this.#vanish(child);
      return this.#forked(slot, -ENOMEM);
    }
    this.#forked(slot, memory.load32(this.#at(child) + K.PROCESS_PID));
    scheduler.begin(this.#at(child));
    control.ringDoorbell();
  }

  #forked(slot: number, result: number): void {
    const a0 = this.#at(slot) + K.PROCESS_REGISTERS + A0 * 4;
    this.#parts.memory.store32(a0, result);
    if (result > 0) this.#parts.memory.store32(a0 + 4, 0);
  }

  /** A fork is not under way any more; the slot of its child, undefined if there was none. */
  #takeFork(at: PhysicalAddress): number | undefined {
    const child = this.#parts.memory.load32(at + K.PROCESS_FORK);
    if (child === 0) return undefined;
    this.#parts.memory.store32(at + K.PROCESS_FORK, 0);
    return child - 1;
  }

  /**
   * What a process's turn begins with. True if that is all of it: it was a part of a fork, or the process is ending, and the next part
   * of that is done when it is put back.
   */
  goOn(slot: number): boolean {
    const { control, memory } = this.#parts;
    const at = this.#at(slot);
    if (memory.load32(at + K.PROCESS_STATE) === K.PROCESS_ENDING) return true;
    if (memory.load32(at + K.PROCESS_FORK) === 0) return false;
    control.locked(() => this.#forkOn(slot));
    return true;
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
