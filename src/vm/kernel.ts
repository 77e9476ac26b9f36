/**
 * The kernel: TypeScript code over data that lies in guest memory.
 *
 * What must hold: a Kernel object has no state of its own. Any thread may make one over the same memory; the kernel
 * lock (control area) is held while the allocator, page tables or the process table change, and never at a safepoint.
 */
import { HibernaculumError } from "../base/errors.js";
import { Control } from "../base/control.js";
import { FRAME_BYTES, MACHINE_FRAMES, MACHINE_STOP, MAX_PROCESSES } from "../base/layout.js";
import type { Pfn, PhysicalAddress, VirtualAddress } from "../base/memory.js";
import type { SharedMemory } from "../base/wasm.js";
import { AddressSpace } from "./address-space.js";
import { type AreaKind, CODE_FLAGS, DATA_FLAGS } from "./area.js";
import { BuddyAllocator, tile } from "./buddy.js";
import type { Core } from "./core.js";
import { Files } from "./files/files.js";
import { EAGAIN, ECHILD, ENOMEM } from "./errno.js";
import * as K from "./kernel-layout.js";
import { MemoryObjects } from "./memory-object.js";
import { PhysicalMemory } from "./physical.js";
import { type Process, processAddress, readProcess } from "./process.js";
import { A0, CODE_BASE, DATA_BASE, HEAP_BASE, HEAP_END, type Runner, STACK_TOP } from "./program.js";
import { Scheduler } from "./scheduler.js";

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
  /** Has failed, for this reason. */
  failure?: string;
  /** Has exited, with this status. */
  status?: number;
}

/** Status of a process that was ended from outside, as wait reports it: the number of SIGKILL. */
const ENDED_STATUS = 9;

export class Kernel {
  readonly memory: PhysicalMemory;
  readonly control: Control;
  readonly buddy: BuddyAllocator;
  readonly objects: MemoryObjects;
  readonly files: Files;
  readonly scheduler: Scheduler;
  readonly core: Core;

  constructor(memory: SharedMemory, core: Core) {
    this.core = core;
    this.control = new Control(memory);
    this.memory = new PhysicalMemory(memory, core);
    this.buddy = new BuddyAllocator(this.memory);
    this.objects = new MemoryObjects(this.memory, this.buddy);
    this.scheduler = new Scheduler(this.memory, this.control);
    this.files = new Files(this);
  }

  /** Builds the tables of a machine that boots. Its memory is all zeros. */
  boot(): void {
    const layout = K.kernelLayout(this.control.load(MACHINE_FRAMES));
    if (layout.staticFrames + 64 > layout.frames) {
      throw new HibernaculumError("HIB_USAGE", "too little RAM for a kernel and a process; ask for 8M or more");
    }
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
    return new AddressSpace(this, slot);
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
      refuseLongText(text);
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
    this.control.locked(() => this.scheduler.makeReady(this.#at(slot)));
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
        const area = { start, end, flags, kind, limit, object: 0, offset: 0, shared: false };
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
        page < runner.dataPages && runner.initialPage(page, contents.subarray(run * FRAME_BYTES, (run + 1) * FRAME_BYTES));
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
      else if (state !== K.PROCESS_FREE && state !== K.PROCESS_ENDING) this.#exit(slot, ENDED_STATUS);
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
  }

  /** A process has come to its end: its status waits for its parent, if that is there. Caller holds the kernel lock. */
  #exit(slot: number, status: number): void {
    const at = this.#at(slot);
    const pid = this.memory.load32(at + K.PROCESS_PID);
    for (const child of this.#childrenOf(pid)) {
      this.memory.store32(this.#at(child) + K.PROCESS_PARENT, 0);
      if (this.memory.load32(this.#at(child) + K.PROCESS_STATE) === K.PROCESS_ZOMBIE) this.#destroy(child);
    }
    const parent = this.#slotOf(this.memory.load32(at + K.PROCESS_PARENT));
    if (parent === undefined) {
      this.#destroy(slot);
      return;
    }
    this.#letGo(slot);
    this.memory.store32(at + K.PROCESS_STATUS, status);
    this.memory.store32(at + K.PROCESS_STATE, K.PROCESS_ZOMBIE);
    this.scheduler.wake(this.#at(parent));
  }

  #childrenOf(pid: number): number[] {
    return this.#slots((at) => this.memory.load32(at + K.PROCESS_PARENT) === pid);
  }

  /** Slot of a process that is alive, by its pid. */
  #slotOf(pid: number): number | undefined {
    return this.#slots(
      (at) => this.memory.load32(at + K.PROCESS_PID) === pid && this.memory.load32(at + K.PROCESS_STATE) !== K.PROCESS_ZOMBIE,
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
      this.scheduler.makeReady(to);
      this.control.ringDoorbell();
    });
  }

  /**
   * exec: another program in the same process, from its first step. The old one is gone before it is known that there is memory
   * for the new one; without, the process fails.
   */
  exec(slot: number, text: string, runner: Runner): void {
    refuseLongText(text);
    const at = this.#at(slot);
    this.control.locked(() => {
      this.files.descriptions.closeAll(slot, "cloexec");
      this.space(slot).release();
      this.memory.storeFloat64(at + K.PROCESS_STEPS, 0);
      for (let word = 0; word < 64; word++) this.memory.store32(at + K.PROCESS_REGISTERS + word * 4, 0);
    });
    this.#build(slot, text, runner);
  }

  /**
   * wait: the pid and status of a child that has exited, which is gone then; undefined if the process has to wait for one.
   *
   * @param pid - of the child, or -1 for any
   */
  wait(slot: number, pid: number): { pid: number; status: number } | number | undefined {
    return this.control.locked(() => {
      const at = this.#at(slot);
      const children = this.#childrenOf(this.memory.load32(at + K.PROCESS_PID)).filter(
        (child) => pid === -1 || this.memory.load32(this.#at(child) + K.PROCESS_PID) === pid,
      );
      if (children.length === 0) return -ECHILD;
      const zombie = children.find((child) => this.memory.load32(this.#at(child) + K.PROCESS_STATE) === K.PROCESS_ZOMBIE);
      if (zombie === undefined) {
        this.scheduler.waitFor(at, at);
        return undefined;
      }
      const { pid: found, status } = readProcess(this.memory, zombie)!;
      this.#destroy(zombie);
      return { pid: found, status };
    });
  }

  /** A page of a memory object that has no frame yet: zeros. Caller holds the kernel lock. Undefined if there is no memory. */
  fillObjectPage(object: PhysicalAddress, page: number): Pfn | undefined {
    const frame = this.buddy.allocate(0, 0, K.KIND_FILE);
    if (frame === undefined) return undefined;
    this.memory.zero(frame, 1);
    if (this.objects.insert(object, page, frame)) return frame;
    this.buddy.free(frame);
    return undefined;
  }

  // ---- on and off a vCPU ----

  /** Takes a process off its vCPU. */
  putBack(slot: number, next: PutBack): void {
    this.control.locked(() => {
      const at = this.#at(slot);
      this.memory.store32(at + K.PROCESS_VCPU, -1);
      this.scheduler.charge(at, next.ran);
      if (this.memory.load32(at + K.PROCESS_STATE) === K.PROCESS_ENDING) this.#exit(slot, ENDED_STATUS);
      else if (next.status !== undefined) this.#exit(slot, next.status);
      else if (next.failure !== undefined) {
        const text = new TextEncoder().encode(next.failure).subarray(0, K.PROCESS_FAILURE_BYTES - 1);
        this.memory.write(at + K.PROCESS_FAILURE, text);
        this.memory.store32(at + K.PROCESS_STATE, K.PROCESS_FAILED);
      } else if (next.blocked === true) this.scheduler.block(at);
      else if (next.wake !== undefined) this.scheduler.sleep(at, next.wake);
      else this.memory.store32(at + K.PROCESS_STATE, K.PROCESS_READY);
    });
  }

  /** After a restore: what ran on a vCPU of the saved machine is ready to run on one of this; what was to end ends. */
  releaseRunning(): void {
    for (let slot = 0; slot < this.memory.load32(K.KERNEL_SLOTS_USED); slot++) {
      const at = this.#at(slot);
      const state = this.memory.load32(at + K.PROCESS_STATE);
      if (state === K.PROCESS_ENDING) this.#exit(slot, ENDED_STATUS);
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
];

/** A program's text has one page. */
function refuseLongText(text: string): void {
  if (Buffer.byteLength(text) > FRAME_BYTES) throw new HibernaculumError("HIB_USAGE", "a program's text is at most 4096 bytes");
}

function noMemory(frames: number): HibernaculumError {
  return new HibernaculumError(
    "HIB_NO_MEMORY",
    `the machine has no free block of ${frames} frames; give it more --ram or fewer pages`,
  );
}
