/**
 * The kernel: TypeScript code over data that lies in guest memory.
 *
 * What must hold: a Kernel object has no state of its own. Any thread may make one over the same memory; the kernel
 * lock (control area) is held while the allocator, page tables or the process table change, and never at a safepoint.
 */
import { HibernaculumError } from "../base/errors.js";
import { Control } from "../base/control.js";
import { FRAME_BYTES, MACHINE_FRAMES, MACHINE_STOP, MAX_PROCESSES } from "../base/layout.js";
import type { PhysicalAddress, VirtualAddress } from "../base/memory.js";
import type { SharedMemory } from "../base/wasm.js";
import { AddressSpace } from "./memory/address-space.js";
import { type AreaKind, CODE_FLAGS, DATA_FLAGS } from "./memory/area.js";
import { BuddyAllocator, tile } from "./memory/buddy.js";
import type { Core } from "./memory/core.js";
import { Files } from "./files/files.js";
import { E2BIG, EAGAIN, ECHILD, EINVAL, ENOENT, ENOMEM, EPERM, ESRCH } from "./memory/errno.js";
import * as K from "./memory/kernel-layout.js";
import { MemoryObjects } from "./memory/memory-object.js";
import { PhysicalMemory } from "./memory/physical.js";
import { type Process, readProcess } from "./tasks/process.js";
import type { Runner } from "./personality/step/program.js";
import { Scheduler } from "./tasks/scheduler.js";
import { DISPOSITION_IGNORE, isAlive, isSignal, SIGABRT, SIGCHLD, SIGKILL, Signals } from "./tasks/signals.js";
import { A0, CODE_BASE, DATA_BASE, HEAP_BASE, HEAP_END, STACK_TOP } from "./memory/user-layout.js";
import { processAddress } from "./memory/kernel-layout.js";

/** Largest block used to fill a data area, so that areas are long physical runs but split fairly. */
const POPULATE_ORDER = 9;

/** How a process leaves its vCPU: ready if nothing is given. */
export interface PutBack {
  /** Time that it ran, ms. */
  ran: number;
  /** Sleeps until this time of the guest clock, ms. */
  wake?: number;
  /** Waits for what it noted with `waitFor`. */
  blocked?: boolean;
  /** Stops, if its stop signal still stands. */
  stop?: boolean;
  /** Has failed, for this reason. */
  failure?: string;
  /** Has exited, with this status; of one that failed, what its parent is told. */
  status?: number;
}

export class Kernel {
  readonly memory: PhysicalMemory;
  readonly control: Control;
  readonly buddy: BuddyAllocator;
  readonly objects: MemoryObjects;
  readonly files: Files;
  readonly scheduler: Scheduler;
  readonly signals: Signals;
  readonly core: Core;

  constructor(memory: SharedMemory, core: Core) {
    this.core = core;
    this.control = new Control(memory);
    this.memory = new PhysicalMemory(memory, core);
    this.buddy = new BuddyAllocator(this.memory);
    this.objects = new MemoryObjects(this.memory, this.buddy);
    this.scheduler = new Scheduler(this.memory, this.control);
    this.files = new Files(this);
    this.signals = new Signals(this.memory, this.control, this.scheduler);
  }

  /** Builds the tables of a machine that boots. Its memory is all zeros. */
  boot(): void {
    const layout = K.kernelLayout(this.control.load(MACHINE_FRAMES));
    this.control.setGuestClock(0);
    this.control.locked(() => {
      const word = (at: number, value: number) => this.memory.store32(at, value);
      word(K.KERNEL_MAGIC_WORD, K.KERNEL_MAGIC);
      word(K.KERNEL_VERSION_WORD, K.KERNEL_VERSION);
      word(K.KERNEL_FRAMES, layout.frames);
      word(K.KERNEL_ARENAS, layout.arenas);
      word(K.KERNEL_NEXT_PID, 1);
      this.buddy.initialise();
      const console = this.buddy.allocate(0, 0, K.KIND_DMA)!;
      this.memory.zero(console, 1);
      word(K.KERNEL_CONSOLE, console);
      this.files.tree.initialise();
    });
  }

  // ---- processes ----

  /** The address space of a process. */
  space(slot: number): AddressSpace {
    return new AddressSpace(this, this.files, slot);
  }

  /**
   * Starts a process.
   *
   * @param text - the program's text, kept in the code page
   * @param runner - made from that text; its data area is filled here
   * @throws HIB_NO_MEMORY, HIB_USAGE when the process table is full, HIB_BUSY while the machine stands still
   */
  spawn(text: string, runner: Runner, options: { boot?: boolean } = {}): Process {
    this.#refuseWhileStopped();
    const slot = this.control.locked(() => {
      if (Buffer.byteLength(text) > FRAME_BYTES)
        throw new HibernaculumError("HIB_USAGE", `a program's text is at most ${FRAME_BYTES} bytes`);
      const free = this.#takeSlot();
      if (free === undefined) throw new HibernaculumError("HIB_USAGE", `the process table is full (${MAX_PROCESSES})`);
      const at = this.#at(free);
      this.memory.store32(at + K.PROCESS_PID, this.#nextPid());
      this.memory.store32(at + K.PROCESS_GROUP, this.memory.load32(at + K.PROCESS_PID));
      this.memory.store32(at + K.PROCESS_FLAGS, options.boot === true ? K.FLAG_BOOT : 0);
      return free;
    });
    try {
      this.#build(slot, text, runner);
    } catch (error) {
      this.control.locked(() => this.#destroy(slot));
      throw error;
    }
    this.control.locked(() => this.scheduler.begin(this.#at(slot)));
    this.control.ringDoorbell();
    return readProcess(this.memory, slot)!;
  }

  /** A free slot of the process table, taken for an embryo; undefined if there is none. */
  #takeSlot(): number | undefined {
    const used = this.memory.load32(K.KERNEL_SLOTS_USED);
    let slot = 0;
    while (slot < used && this.memory.load32(this.#at(slot) + K.PROCESS_STATE) !== K.PROCESS_FREE) slot++;
    if (slot === MAX_PROCESSES) return undefined;
    if (slot === used) this.memory.store32(K.KERNEL_SLOTS_USED, used + 1);
    for (let word = 0; word < K.PROCESS_BYTES; word += 4) this.memory.store32(this.#at(slot) + word, 0);
    this.memory.store32(this.#at(slot) + K.PROCESS_STATE, K.PROCESS_EMBRYO);
    this.memory.store32(this.#at(slot) + K.PROCESS_VCPU, -1);
    this.core.dropContext(slot);
    return slot;
  }

  #nextPid(): number {
    const pid = this.memory.load32(K.KERNEL_NEXT_PID);
    this.memory.store32(K.KERNEL_NEXT_PID, pid + 1);
    return pid;
  }

  /** Builds the address space of a process that has none: code page, areas, initial contents. */
  #build(slot: number, text: string, runner: Runner): void {
    const at = this.#at(slot);
    const bytes = new TextEncoder().encode(text);
    const space = this.space(slot);
    this.control.locked(() => {
      this.memory.storeFloat64(at + K.PROCESS_RATE, runner.rate);
      this.memory.store32(at + K.PROCESS_TEXT_BYTES, bytes.length);
      const root = space.allocateTable();
      if (root === undefined) throw noMemory(1);
      this.memory.store32(at + K.PROCESS_ROOT, root);
      if (!space.mapNew(CODE_BASE, 0, CODE_FLAGS, bytes)) throw noMemory(1);
      const add = (
        kind: AreaKind,
        start: VirtualAddress,
        end: VirtualAddress,
        flags: number,
        limit: VirtualAddress = 0,
      ): void => {
        const area = { start, end, flags, kind, limit, object: 0, offset: 0, shared: false, readOnly: false };
        if (start < end && !space.addArea(area)) throw noMemory(1);
      };
      add("code", CODE_BASE, CODE_BASE + FRAME_BYTES, CODE_FLAGS);
      add("data", DATA_BASE, DATA_BASE + runner.dataPages * FRAME_BYTES, DATA_FLAGS);
      add("heap", HEAP_BASE, HEAP_END, DATA_FLAGS);
      const stackLimit = STACK_TOP - runner.stackPages * FRAME_BYTES;
      add("stack", Math.max(stackLimit, STACK_TOP - FRAME_BYTES), STACK_TOP, DATA_FLAGS, stackLimit);
    });
    this.#populate(space, runner);
  }

  /** Fills the data area with its initial contents, in blocks as large as runs of present pages allow. */
  #populate(space: AddressSpace, runner: Runner): void {
    const contents = new Uint8Array(FRAME_BYTES << POPULATE_ORDER);
    let first = 0;
    let run = 0;
    for (let page = 0; page <= runner.dataPages; page++) {
      const present =
        page < runner.dataPages &&
        runner.initialPage?.(page, contents.subarray(run * FRAME_BYTES, (run + 1) * FRAME_BYTES)) === true;
      if (present && run === 0) first = page;
      if (present) run++;
      if (run > 0 && (!present || run === 1 << POPULATE_ORDER)) {
        this.#placeRun(space, DATA_BASE + first * FRAME_BYTES, contents.subarray(0, run * FRAME_BYTES));
        run = 0;
      }
    }
  }

  #placeRun(space: AddressSpace, address: VirtualAddress, contents: Uint8Array): void {
    for (const { frame: page, order } of tile(0, contents.length / FRAME_BYTES)) {
      const bytes = contents.subarray(page * FRAME_BYTES, (page + (1 << order)) * FRAME_BYTES);
      const at = address + page * FRAME_BYTES;
      if (!this.control.locked(() => space.mapNew(at, order, DATA_FLAGS, bytes))) throw noMemory(1 << order);
    }
  }

  /** Ends a process; a running one goes at its vCPU's next safepoint. @throws HIB_BUSY while the machine stands still */
  end(slot: number): void {
    this.#refuseWhileStopped();
    this.control.locked(() => {
      const state = this.memory.load32(this.#at(slot) + K.PROCESS_STATE);
      if (state === K.PROCESS_RUNNING) this.memory.store32(this.#at(slot) + K.PROCESS_STATE, K.PROCESS_ENDING);
      else if (state === K.PROCESS_ZOMBIE) this.#destroy(slot);
      else if (state !== K.PROCESS_FREE && state !== K.PROCESS_ENDING) this.#exit(slot, SIGKILL);
    });
  }

  /** Whoever stopped the machine reads its memory as that of one instant. */
  #refuseWhileStopped(): void {
    if (this.control.load(MACHINE_STOP) === 1) {
      throw new HibernaculumError("HIB_BUSY", "the machine stands still for its image; start and end processes once it goes on");
    }
  }

  /** Nothing is left of a process. */
  #destroy(slot: number): void {
    this.#letGo(slot);
    this.memory.store32(this.#at(slot) + K.PROCESS_STATE, K.PROCESS_FREE);
  }

  #letGo(slot: number): void {
    this.files.descriptions.closeAll(slot, "all");
    this.space(slot).release();
    this.signals.cancelAlarm(this.#at(slot));
  }

  /**
   * A process has come to its end: its status waits for its parent, if there is one that does not ignore it. Caller holds the
   * kernel lock.
   */
  #exit(slot: number, status: number): void {
    const at = this.#at(slot);
    this.#orphan(at);
    const parent = this.#slotOf(this.memory.load32(at + K.PROCESS_PARENT));
    if (parent === undefined || this.signals.disposition(this.#at(parent), SIGCHLD) === DISPOSITION_IGNORE) this.#destroy(slot);
    else {
      this.#letGo(slot);
      this.memory.store32(at + K.PROCESS_STATE, K.PROCESS_ZOMBIE);
    }
    this.#tellParent(at, status);
  }

  /** A process has failed: its memory stays for whoever looks. Caller holds the kernel lock. */
  #fail(slot: number, reason: string, status: number): void {
    const at = this.#at(slot);
    this.#orphan(at);
    this.signals.cancelAlarm(at);
    this.files.descriptions.closeAll(slot, "all"); // who waits at the other end of a pipe need not wait for it
    const text = new TextEncoder().encode(reason).subarray(0, K.PROCESS_FAILURE_BYTES - 1);
    this.memory.write(at + K.PROCESS_FAILURE, text);
    this.memory.store32(at + K.PROCESS_STATE, K.PROCESS_FAILED);
    this.#tellParent(at, status);
  }

  /** The children of a process have no parent any more: nobody will ask how they ended. */
  #orphan(at: PhysicalAddress): void {
    for (const child of this.#childrenOf(this.memory.load32(at + K.PROCESS_PID))) {
      this.memory.store32(this.#at(child) + K.PROCESS_PARENT, 0);
      if (this.memory.load32(this.#at(child) + K.PROCESS_STATE) === K.PROCESS_ZOMBIE) this.#destroy(child);
    }
  }

  #tellParent(at: PhysicalAddress, status: number): void {
    this.memory.store32(at + K.PROCESS_STATUS, status);
    const parent = this.#slotOf(this.memory.load32(at + K.PROCESS_PARENT));
    if (parent === undefined) return;
    this.signals.post(this.#at(parent), SIGCHLD);
    this.scheduler.wake(this.#at(parent)); // it may wait for this child
  }

  #childrenOf(pid: number): number[] {
    return this.#slots((at) => this.memory.load32(at + K.PROCESS_PARENT) === pid);
  }

  /** Slot of a process that is alive, by its pid. */
  #slotOf(pid: number): number | undefined {
    if (pid === 0) return undefined;
    return this.#slots(
      (at) => this.memory.load32(at + K.PROCESS_PID) === pid && isAlive(this.memory.load32(at + K.PROCESS_STATE)),
    )[0];
  }

  #slots(which: (at: PhysicalAddress) => boolean): number[] {
    const used = this.memory.load32(K.KERNEL_SLOTS_USED);
    const found = [];
    for (let slot = 0; slot < used; slot++) {
      const at = this.#at(slot);
      if (this.memory.load32(at + K.PROCESS_STATE) !== K.PROCESS_FREE && which(at)) found.push(slot);
    }
    return found;
  }

  // ---- system calls of processes: what is negative is an error number ----

  /**
   * fork: a child that is a copy of the process, at the same step. A0 of the parent becomes the child's pid, A0 of the
   * child 0. Runs on the vCPU of the process between two steps, with its registers in the process table.
   */
  fork(slot: number): void {
    this.control.locked(() => {
      const result = (value: number) => this.memory.store32(this.#at(slot) + K.PROCESS_REGISTERS + A0 * 4, value);
      const child = this.#takeSlot();
      if (child === undefined) return result(-EAGAIN);
      const from = this.#at(slot);
      const to = this.#at(child);
      for (const at of COPIED_BY_FORK) this.memory.store32(to + at, this.memory.load32(from + at));
      for (let word = 0; word < 64; word++) {
        const at = K.PROCESS_REGISTERS + word * 4;
        this.memory.store32(to + at, word === A0 || word === A0 + 1 ? 0 : this.memory.load32(from + at));
      }
      const pid = this.#nextPid();
      this.memory.store32(to + K.PROCESS_PID, pid);
      this.memory.store32(to + K.PROCESS_PARENT, this.memory.load32(from + K.PROCESS_PID));
      const space = this.space(child);
      const root = space.allocateTable();
      this.memory.store32(to + K.PROCESS_ROOT, root ?? 0);
      const copied = root !== undefined && this.files.descriptions.copyTable(slot, child) && this.space(slot).copyTo(space);
      this.core.dropContext(slot); // its write tags are for leaves that have no W any more
      if (!copied) {
        this.#destroy(child);
        return result(-ENOMEM);
      }
      result(pid);
      this.memory.store32(from + K.PROCESS_REGISTERS + (A0 + 1) * 4, 0);
      this.scheduler.begin(to);
      this.control.ringDoorbell();
    });
  }

  /**
   * exec: another program in the same process, from its first step. The old one is gone before it is known that there is memory
   * for the new one; without, the process fails. A text that is no program's leaves the old one with an error in A0.
   *
   * @param create - makes the runner of a text, or throws HIB_USAGE
   * @returns whether there is another program now
   * @throws HIB_NO_MEMORY
   */
  exec(slot: number, text: string, create: (text: string) => Runner): boolean {
    const at = this.#at(slot);
    const refuse = (error: number): boolean => {
      this.memory.store32(at + K.PROCESS_REGISTERS + A0 * 4, -error);
      return false;
    };
    if (Buffer.byteLength(text) > FRAME_BYTES) return refuse(E2BIG);
    let runner: Runner;
    try {
      runner = create(text);
    } catch (error) {
      if (error instanceof HibernaculumError && error.code === "HIB_USAGE") return refuse(ENOENT);
      throw error;
    }
    this.control.locked(() => {
      this.files.descriptions.closeAll(slot, "cloexec");
      this.space(slot).release();
      this.signals.forgetHandlers(at);
      this.memory.storeFloat64(at + K.PROCESS_STEPS, 0);
      for (let word = 0; word < 64; word++) this.memory.store32(at + K.PROCESS_REGISTERS + word * 4, 0);
    });
    this.#build(slot, text, runner);
    return true;
  }

  /**
   * wait: the pid and status of a child that has exited, which is gone then; undefined if the process has to wait for one.
   *
   * @param pid - of the child; -1 for any, 0 for one of this process's group, -group for one of another
   */
  wait(slot: number, pid: number): { pid: number; status: number } | number | undefined {
    return this.control.locked(() => {
      const at = this.#at(slot);
      const children = this.#childrenOf(this.memory.load32(at + K.PROCESS_PID)).filter(
        (child) => pid === -1 || this.#isMeant(this.#at(child), pid, at),
      );
      if (children.length === 0) return -ECHILD;
      const over = children.find((child) => !isAlive(this.memory.load32(this.#at(child) + K.PROCESS_STATE)));
      if (over === undefined) {
        this.scheduler.waitFor(at, at);
        return undefined;
      }
      const { pid: found, status, state } = readProcess(this.memory, over)!;
      if (state === "zombie") this.#destroy(over);
      else this.memory.store32(this.#at(over) + K.PROCESS_PARENT, 0); // it failed, and stays for whoever looks
      return { pid: found, status };
    });
  }

  /** Whether kill or wait by the process at `by` mean this one with a pid, a group (negative) or their own group (0). */
  #isMeant(at: PhysicalAddress, pid: number, by: PhysicalAddress): boolean {
    if (pid > 0) return this.memory.load32(at + K.PROCESS_PID) === pid;
    return this.memory.load32(at + K.PROCESS_GROUP) === (pid === 0 ? this.memory.load32(by + K.PROCESS_GROUP) : -pid);
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
    if (slot === undefined) this.#refuseWhileStopped();
    if (!Number.isInteger(pid) || (signal !== 0 && !isSignal(signal)) || (slot === undefined && pid === 0)) return -EINVAL;
    return this.control.locked(() => {
      const by = slot === undefined ? 0 : this.#at(slot);
      const targets = this.#slots((at) => (pid === -1 ? at !== by : this.#isMeant(at, pid, by)));
      if (targets.length === 0) return -ESRCH;
      for (const target of targets) {
        const at = this.#at(target);
        if (signal !== 0 && isAlive(this.memory.load32(at + K.PROCESS_STATE))) this.signals.post(at, signal);
      }
      return 0;
    });
  }

  getpgid(slot: number, pid: number): number {
    return this.control.locked(() => {
      const found = pid === 0 ? slot : this.#slotOf(pid);
      return found === undefined ? -ESRCH : this.memory.load32(this.#at(found) + K.PROCESS_GROUP);
    });
  }

  /** setpgid: puts a process or a child of it into a group that there is, or makes it the first of one. */
  setpgid(slot: number, pid: number, group: number): number {
    return this.control.locked(() => {
      const own = this.memory.load32(this.#at(slot) + K.PROCESS_PID);
      const found = pid === 0 ? slot : this.#slotOf(pid);
      if (found === undefined) return -ESRCH;
      const at = this.#at(found);
      if (found !== slot && this.memory.load32(at + K.PROCESS_PARENT) !== own) return -ESRCH;
      if (!Number.isInteger(group) || group < 0) return -EINVAL;
      const leader = this.memory.load32(at + K.PROCESS_PID);
      const wanted = group === 0 ? leader : group;
      const there = this.#slots((other) => this.memory.load32(other + K.PROCESS_GROUP) === wanted).length > 0;
      if (wanted !== leader && !there) return -EPERM;
      this.memory.store32(at + K.PROCESS_GROUP, wanted);
      return 0;
    });
  }

  // ---- on and off a vCPU ----

  /** Puts the next process on a vCPU, and sends what alarms are due. -1 if none is ready. */
  pick(vcpu: number): number {
    return this.control.locked(() => {
      this.signals.fireAlarms();
      return this.scheduler.pick(vcpu);
    });
  }

  /** Takes a process off its vCPU. One that has been sent a signal meanwhile does not rest. */
  putBack(slot: number, next: PutBack): void {
    this.control.locked(() => {
      const at = this.#at(slot);
      this.memory.store32(at + K.PROCESS_VCPU, -1);
      this.scheduler.charge(at, next.ran);
      if (this.memory.load32(at + K.PROCESS_STATE) === K.PROCESS_ENDING) return this.#exit(slot, SIGKILL);
      if (next.failure !== undefined) return this.#fail(slot, next.failure, next.status ?? SIGABRT);
      if (next.status !== undefined) return this.#exit(slot, next.status);
      if (next.stop === true) this.#stop(at);
      else if (next.blocked === true) this.scheduler.block(at);
      else if (next.wake !== undefined) this.scheduler.sleep(at, next.wake);
      else this.scheduler.makeReady(at);
      this.signals.rouse(at);
    });
  }

  /** Stops a process, unless it was told to continue since it took the signal. What it has left to sleep stays noted. */
  #stop(at: PhysicalAddress): void {
    const stops = this.signals.takeStop(at);
    this.memory.store32(at + K.PROCESS_STATE, stops ? K.PROCESS_STOPPED : K.PROCESS_READY);
  }

  /** After a restore: what ran on a vCPU of the saved machine is ready to run on one of this; what was to end ends. */
  releaseRunning(): void {
    for (let slot = 0; slot < this.memory.load32(K.KERNEL_SLOTS_USED); slot++) {
      const at = this.#at(slot);
      const state = this.memory.load32(at + K.PROCESS_STATE);
      if (state === K.PROCESS_ENDING) this.#exit(slot, SIGKILL);
      if (state === K.PROCESS_RUNNING) this.memory.store32(at + K.PROCESS_STATE, K.PROCESS_READY);
      this.memory.store32(at + K.PROCESS_VCPU, -1);
      this.core.dropContext(slot);
    }
  }

  #at(slot: number): number {
    return processAddress(this.memory, slot);
  }
}

/** Words of the process table that a child has from its parent; float64s in two halves. */
const COPIED_BY_FORK: readonly number[] = [
  K.PROCESS_FLAGS,
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
];

function noMemory(frames: number): HibernaculumError {
  return new HibernaculumError(
    "HIB_NO_MEMORY",
    `the machine has no free block of ${frames} frames; give it more --ram or fewer pages`,
  );
}
