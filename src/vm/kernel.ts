/**
 * The kernel: TypeScript code over data that lies in guest memory.
 *
 * What must hold: a Kernel object has no state of its own. Any thread may make one over the same memory; the kernel
 * lock (control area) is held while the allocator, page tables or the process table change, and never at a safepoint.
 */
import { HibernaculumError } from "../base/errors.js";
import { Control } from "../base/control.js";
import { ACCESS_WRITE, FRAME_BYTES, MACHINE_FRAMES, MACHINE_STOP, MAX_PROCESSES, PTE_R, PTE_U, PTE_W } from "../base/layout.js";
import type { Pfn, VirtualAddress } from "../base/memory.js";
import type { SharedMemory } from "../base/wasm.js";
import { type Area, AREA_BYTES, type AreaKind, CODE_FLAGS, DATA_FLAGS, storeArea, walkAreas } from "./area.js";
import { BuddyAllocator, tile } from "./buddy.js";
import type { Core } from "./core.js";
import { allocateObject, freeObject } from "./kernel-heap.js";
import * as K from "./kernel-layout.js";
import { findLeaf, mapPage, unmapPage, walkLeaves, walkTables } from "./page-table.js";
import { PhysicalMemory } from "./physical.js";
import { type Process, processAddress, readProcess } from "./process.js";
import { CODE_BASE, DATA_BASE, HEAP_BASE, HEAP_END, type Runner, STACK_TOP } from "./program.js";

/** Largest block used to fill a data area, so that areas are long physical runs but split fairly. */
const POPULATE_ORDER = 9;

/** A process's access that cannot be resolved: the process ends with this reason. */
export class GuestFault extends Error {
  override readonly name = "GuestFault";
}

/** How a process leaves its vCPU: ready if neither is given. */
export interface PutBack {
  /** Sleeps until this time of the guest clock, ms. */
  wake?: number;
  /** Has failed, for this reason. */
  failure?: string;
}

export class Kernel {
  readonly memory: PhysicalMemory;
  readonly control: Control;
  readonly buddy: BuddyAllocator;
  readonly core: Core;

  constructor(memory: SharedMemory, core: Core) {
    this.core = core;
    this.control = new Control(memory);
    this.memory = new PhysicalMemory(memory, core);
    this.buddy = new BuddyAllocator(this.memory);
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
    });
  }

  // ---- processes ----

  /**
   * Starts a process.
   *
   * @param text - the program's text, kept in the code page
   * @param runner - made from that text; its data area is filled here
   * @throws HIB_NO_MEMORY, HIB_USAGE when the process table is full, HIB_BUSY while the machine stands still
   */
  spawn(text: string, runner: Runner, options: { boot?: boolean } = {}): Process {
    this.#refuseWhileStopped();
    const slot = this.control.locked(() => this.#takeSlot(text));
    try {
      this.control.locked(() => this.#embryo(slot, text, runner, options.boot === true));
      this.#populate(slot, runner);
    } catch (error) {
      this.control.locked(() => this.#destroy(slot));
      throw error;
    }
    this.control.locked(() => this.memory.store32(this.#at(slot) + K.PROCESS_STATE, K.PROCESS_READY));
    this.control.ringDoorbell();
    return readProcess(this.memory, slot)!;
  }

  /** A free slot of the process table, taken. */
  #takeSlot(text: string): number {
    if (Buffer.byteLength(text) > FRAME_BYTES) throw new HibernaculumError("HIB_USAGE", "a program's text is at most 4096 bytes");
    const used = this.memory.load32(K.KERNEL_SLOTS_USED);
    let slot = 0;
    while (slot < used && this.memory.load32(this.#at(slot) + K.PROCESS_STATE) !== K.PROCESS_FREE) slot++;
    if (slot === MAX_PROCESSES) throw new HibernaculumError("HIB_USAGE", `the process table is full (${MAX_PROCESSES})`);
    if (slot === used) this.memory.store32(K.KERNEL_SLOTS_USED, used + 1);
    for (let word = 0; word < K.PROCESS_BYTES; word += 4) this.memory.store32(this.#at(slot) + word, 0);
    this.memory.store32(this.#at(slot) + K.PROCESS_STATE, K.PROCESS_EMBRYO);
    return slot;
  }

  #embryo(slot: number, text: string, runner: Runner, boot: boolean): void {
    const memory = this.memory;
    const bytes = new TextEncoder().encode(text);
    const at = this.#at(slot);
    const pid = memory.load32(K.KERNEL_NEXT_PID);
    memory.store32(K.KERNEL_NEXT_PID, pid + 1);
    memory.store32(at + K.PROCESS_PID, pid);
    memory.store32(at + K.PROCESS_VCPU, -1);
    memory.store32(at + K.PROCESS_FLAGS, boot ? K.FLAG_BOOT : 0);
    memory.storeFloat64(at + K.PROCESS_RATE, runner.rate);
    memory.store32(at + K.PROCESS_TEXT_BYTES, bytes.length);
    this.core.dropContext(slot);
    const root = this.#allocateZeroed(pid, K.KIND_PAGE_TABLE);
    if (root === undefined) throw noMemory(1);
    memory.store32(at + K.PROCESS_ROOT, root);
    if (!this.#mapNew(pid, root, CODE_BASE, 0, CODE_FLAGS, bytes)) throw noMemory(1);
    this.#addArea(at, CODE_BASE, CODE_BASE + FRAME_BYTES, CODE_FLAGS, "code");
    this.#addArea(at, DATA_BASE, DATA_BASE + runner.dataPages * FRAME_BYTES, DATA_FLAGS, "data");
    this.#addArea(at, HEAP_BASE, HEAP_END, DATA_FLAGS, "heap");
    this.#addArea(at, STACK_TOP - runner.stackPages * FRAME_BYTES, STACK_TOP, DATA_FLAGS, "stack");
  }

  #addArea(at: number, start: number, end: number, flags: number, kind: AreaKind): void {
    if (start === end) return;
    const object = allocateObject(this.memory, this.buddy, AREA_BYTES);
    if (object === undefined) throw noMemory(1);
    storeArea(this.memory, object, { start, end, flags, kind }, this.memory.load32(at + K.PROCESS_AREAS));
    this.memory.store32(at + K.PROCESS_AREAS, object);
  }

  /** Fills the data area with its initial contents, in blocks as large as runs of present pages allow. */
  #populate(slot: number, runner: Runner): void {
    const at = this.#at(slot);
    const pid = this.memory.load32(at + K.PROCESS_PID);
    const root = this.memory.load32(at + K.PROCESS_ROOT);
    const contents = new Uint8Array(FRAME_BYTES << POPULATE_ORDER);
    let first = 0;
    let run = 0;
    for (let page = 0; page <= runner.dataPages; page++) {
      const present =
        page < runner.dataPages && runner.initialPage(page, contents.subarray(run * FRAME_BYTES, (run + 1) * FRAME_BYTES));
      if (present && run === 0) first = page;
      if (present) run++;
      if (run > 0 && (!present || run === 1 << POPULATE_ORDER)) {
        this.#placeRun(pid, root, DATA_BASE + first * FRAME_BYTES, contents.subarray(0, run * FRAME_BYTES));
        run = 0;
      }
    }
  }

  #placeRun(pid: number, root: Pfn, address: VirtualAddress, contents: Uint8Array): void {
    for (const { frame: page, order } of tile(0, contents.length / FRAME_BYTES)) {
      const bytes = contents.subarray(page * FRAME_BYTES, (page + (1 << order)) * FRAME_BYTES);
      const at = address + page * FRAME_BYTES;
      if (!this.control.locked(() => this.#mapNew(pid, root, at, order, DATA_FLAGS, bytes))) throw noMemory(1 << order);
    }
  }

  /** Ends a process; a running one goes at its vCPU's next safepoint. @throws HIB_BUSY while the machine stands still */
  end(slot: number): void {
    this.#refuseWhileStopped();
    this.control.locked(() => {
      const state = this.memory.load32(this.#at(slot) + K.PROCESS_STATE);
      if (state === K.PROCESS_RUNNING) this.memory.store32(this.#at(slot) + K.PROCESS_STATE, K.PROCESS_ENDING);
      else if (state !== K.PROCESS_FREE && state !== K.PROCESS_ENDING) this.#destroy(slot);
    });
  }

  /** Whoever stopped the machine reads its memory as that of one instant. */
  #refuseWhileStopped(): void {
    if (this.control.load(MACHINE_STOP) === 1) {
      throw new HibernaculumError("HIB_BUSY", "the machine stands still for its image; start and end processes once it goes on");
    }
  }

  #destroy(slot: number): void {
    const at = this.#at(slot);
    const root = this.memory.load32(at + K.PROCESS_ROOT);
    if (root !== 0) {
      const heads = [...walkLeaves(this.memory, root)].filter(({ frame }) => this.#isUsedHead(frame));
      const tables = [...walkTables(this.memory, root)];
      for (const { frame } of heads) this.buddy.free(frame);
      for (const table of tables) this.buddy.free(table);
    }
    for (const area of Array.from(walkAreas(this.memory, this.memory.load32(at + K.PROCESS_AREAS)))) {
      freeObject(this.memory, area.at, AREA_BYTES);
    }
    this.memory.store32(at + K.PROCESS_STATE, K.PROCESS_FREE);
    this.core.dropContext(slot);
  }

  #isUsedHead(frame: Pfn): boolean {
    const layout = K.kernelLayout(this.memory.frames);
    return (this.memory.load32(layout.frameTable + frame * K.FRAME_ENTRY_BYTES) & 0xff) === K.BLOCK_USED;
  }

  // ---- scheduling ----

  /** Picks the next process for a vCPU, round robin; -1 if none is ready. */
  pick(vcpu: number): number {
    return this.control.locked(() => {
      const used = this.memory.load32(K.KERNEL_SLOTS_USED);
      const start = this.memory.load32(K.KERNEL_NEXT_SLOT);
      const now = this.control.guestNow();
      for (let i = 0; i < used; i++) {
        const slot = (start + i) % used;
        const at = this.#at(slot);
        const state = this.memory.load32(at + K.PROCESS_STATE);
        if (state === K.PROCESS_READY || (state === K.PROCESS_SLEEPING && this.memory.loadFloat64(at + K.PROCESS_WAKE) <= now)) {
          this.memory.store32(at + K.PROCESS_STATE, K.PROCESS_RUNNING);
          this.memory.store32(at + K.PROCESS_VCPU, vcpu);
          this.memory.store32(K.KERNEL_NEXT_SLOT, slot + 1);
          return slot;
        }
      }
      return -1;
    });
  }

  /** Milliseconds until the next sleeper wakes, at most `most`. */
  untilWake(most: number): number {
    const used = this.memory.load32(K.KERNEL_SLOTS_USED);
    let first = this.control.guestNow() + most;
    for (let slot = 0; slot < used; slot++) {
      const at = this.#at(slot);
      if (this.memory.load32(at + K.PROCESS_STATE) === K.PROCESS_SLEEPING) {
        first = Math.min(first, this.memory.loadFloat64(at + K.PROCESS_WAKE));
      }
    }
    return Math.max(0, first - this.control.guestNow());
  }

  /** Takes a process off its vCPU: ready, sleeping until `wake`, or failed with a reason. */
  putBack(slot: number, next: PutBack): void {
    this.control.locked(() => {
      const at = this.#at(slot);
      this.memory.store32(at + K.PROCESS_VCPU, -1);
      if (this.memory.load32(at + K.PROCESS_STATE) === K.PROCESS_ENDING) {
        this.#destroy(slot);
      } else if (next.failure !== undefined) {
        const text = new TextEncoder().encode(next.failure).subarray(0, K.PROCESS_FAILURE_BYTES - 1);
        this.memory.write(at + K.PROCESS_FAILURE, text);
        this.memory.store32(at + K.PROCESS_STATE, K.PROCESS_FAILED);
      } else if (next.wake !== undefined) {
        this.memory.storeFloat64(at + K.PROCESS_WAKE, next.wake);
        this.memory.store32(at + K.PROCESS_STATE, K.PROCESS_SLEEPING);
      } else this.memory.store32(at + K.PROCESS_STATE, K.PROCESS_READY);
    });
  }

  /** After a restore: what ran on a vCPU of the saved machine is ready to run on one of this; what was to end ends. */
  releaseRunning(): void {
    for (let slot = 0; slot < this.memory.load32(K.KERNEL_SLOTS_USED); slot++) {
      const at = this.#at(slot);
      const state = this.memory.load32(at + K.PROCESS_STATE);
      if (state === K.PROCESS_ENDING) this.#destroy(slot);
      if (state === K.PROCESS_RUNNING) this.memory.store32(at + K.PROCESS_STATE, K.PROCESS_READY);
      this.memory.store32(at + K.PROCESS_VCPU, -1);
      this.core.dropContext(slot);
    }
  }

  // ---- memory of processes ----

  /** Resolves a page fault of the process in `slot`, or throws GuestFault. */
  pageFault(slot: number, address: VirtualAddress, access: number): void {
    this.control.locked(() => {
      const at = this.#at(slot);
      const area = this.#areaOf(at, address);
      const root = this.memory.load32(at + K.PROCESS_ROOT);
      const doing = access === ACCESS_WRITE ? "write to" : "read of";
      const where = `0x${address.toString(16)}`;
      if (area === undefined) throw new GuestFault(`${doing} ${where}, which no area holds`);
      if ((area.flags & (access === ACCESS_WRITE ? PTE_W : PTE_R)) === 0)
        throw new GuestFault(`${doing} ${where}: the ${area.kind} area does not allow it`);
      if (!area.demandZero || findLeaf(this.memory, root, address) !== 0)
        throw new GuestFault(`${doing} ${where}, which is not mapped`);
      const pid = this.memory.load32(at + K.PROCESS_PID);
      const page = Math.floor(address / FRAME_BYTES) * FRAME_BYTES;
      if (!this.#mapNew(pid, root, page, 0, area.flags)) throw new GuestFault(`out of memory at ${doing} ${where}`);
    });
  }

  /** Maps a zeroed block of 2^order frames in the heap area. False, and nothing changed, if there is no memory. */
  mapBlock(slot: number, address: VirtualAddress, order: number): boolean {
    return this.control.locked(() => {
      const at = this.#at(slot);
      const end = address + (FRAME_BYTES << order);
      if (address % FRAME_BYTES !== 0 || address < HEAP_BASE || end > HEAP_END) {
        throw new GuestFault(`map of 0x${address.toString(16)}, order ${order}, outside the heap area`);
      }
      const pid = this.memory.load32(at + K.PROCESS_PID);
      const root = this.memory.load32(at + K.PROCESS_ROOT);
      for (let page = address; page < end; page += FRAME_BYTES) {
        if (findLeaf(this.memory, root, page) !== 0) throw new GuestFault(`map of 0x${page.toString(16)}, which is mapped`);
      }
      return this.#mapNew(pid, root, address, order, PTE_R | PTE_W | PTE_U);
    });
  }

  /** Unmaps and frees a block that mapBlock gave. Runs on the vCPU of the process, whose TLB is the only one to know it. */
  unmapBlock(slot: number, address: VirtualAddress, order: number): void {
    this.control.locked(() => {
      const root = this.memory.load32(this.#at(slot) + K.PROCESS_ROOT);
      const leaf = findLeaf(this.memory, root, address);
      const frame = this.memory.load32(leaf) >>> 10;
      if (leaf === 0 || !this.#isUsedHead(frame) || this.buddy.orderOf(frame) !== order) {
        throw new GuestFault(`unmap of 0x${address.toString(16)}, order ${order}, which is no such block`);
      }
      for (let i = 0; i < 1 << order; i++) this.#unmap(root, address + i * FRAME_BYTES);
      this.buddy.free(frame);
    });
  }

  /** Frees the stack pages wholly below `address`. */
  shrinkStack(slot: number, address: VirtualAddress): void {
    this.control.locked(() => {
      const root = this.memory.load32(this.#at(slot) + K.PROCESS_ROOT);
      let page = Math.floor(address / FRAME_BYTES) * FRAME_BYTES - FRAME_BYTES;
      while (findLeaf(this.memory, root, page) !== 0) {
        this.buddy.free(this.#unmap(root, page)!);
        page -= FRAME_BYTES;
      }
    });
  }

  #unmap(root: Pfn, address: VirtualAddress): Pfn | undefined {
    const frame = unmapPage(this.memory, root, address);
    this.core.invalidate(address);
    return frame;
  }

  /**
   * Allocates a block of 2^order frames, fills it with `contents` and zeros, and maps it: all of it, or nothing is changed
   * but for page tables. Caller holds the kernel lock.
   */
  #mapNew(pid: number, root: Pfn, address: VirtualAddress, order: number, flags: number, contents?: Uint8Array): boolean {
    const frame = this.buddy.allocate(order, pid, K.KIND_USER);
    if (frame === undefined) return false;
    if (contents === undefined || contents.length < FRAME_BYTES << order) this.memory.zero(frame, 1 << order);
    if (contents !== undefined) this.memory.write(frame * FRAME_BYTES, contents);
    const table = () => this.#allocateZeroed(pid, K.KIND_PAGE_TABLE);
    for (let i = 0; i < 1 << order; i++) {
      if (mapPage(this.memory, root, address + i * FRAME_BYTES, frame + i, flags, table)) continue;
      for (let done = 0; done < i; done++) this.#unmap(root, address + done * FRAME_BYTES);
      this.buddy.free(frame);
      return false;
    }
    return true;
  }

  #allocateZeroed(pid: number, kind: number): Pfn | undefined {
    const frame = this.buddy.allocate(0, pid, kind);
    if (frame !== undefined) this.memory.zero(frame, 1);
    return frame;
  }

  #areaOf(at: number, address: VirtualAddress): Area | undefined {
    for (const area of walkAreas(this.memory, this.memory.load32(at + K.PROCESS_AREAS))) {
      if (address >= area.start && address < area.end) return area;
    }
    return undefined;
  }

  #at(slot: number): number {
    return processAddress(this.memory, slot);
  }
}

function noMemory(frames: number): HibernaculumError {
  return new HibernaculumError(
    "HIB_NO_MEMORY",
    `the machine has no free block of ${frames} frames; give it more --ram or fewer pages`,
  );
}
