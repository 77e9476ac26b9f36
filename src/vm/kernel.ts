/**
 * The kernel: TypeScript code over data that lies in guest memory. Here it is composed and booted; what it does is in the rooms.
 *
 * What must hold: a Kernel object has no state of its own. Any thread may make one over the same memory; the kernel
 * lock (control area) is held while the allocator, page tables or the process table change, and never at a safepoint.
 */
import { Control } from "../base/control.js";
import { MACHINE_FRAMES, MAX_VCPUS } from "../base/layout.js";
import type { SharedMemory } from "../base/wasm.js";
import { Files } from "./files/files.js";
import { AddressSpace } from "./memory/address-space.js";
import { BuddyAllocator } from "./memory/buddy.js";
import type { Core } from "./memory/core.js";
import * as K from "./memory/kernel-layout.js";
import { MemoryObjects } from "./memory/memory-object.js";
import { PhysicalMemory } from "./memory/physical.js";
import { Groups } from "./tasks/groups.js";
import { Lifecycle } from "./tasks/lifecycle.js";
import type { KernelParts } from "./tasks/parts.js";
import { Scheduler } from "./tasks/scheduler.js";
import { Signals } from "./tasks/signals.js";
import { Turns } from "./tasks/turns.js";

export class Kernel implements KernelParts {
  readonly memory: PhysicalMemory;
  readonly control: Control;
  readonly buddy: BuddyAllocator;
  readonly objects: MemoryObjects;
  readonly core: Core;
  readonly scheduler: Scheduler;
  readonly files: Files;
  readonly signals: Signals;
  readonly lifecycle: Lifecycle;
  readonly groups: Groups;
  readonly turns: Turns;

  /** @param thread - number of the vCPU whose thread this is; MAX_VCPUS for the coordinator */
  constructor(memory: SharedMemory, core: Core, thread: number = MAX_VCPUS) {
    this.core = core;
    this.control = new Control(memory, thread);
    this.memory = new PhysicalMemory(memory, core);
    this.buddy = new BuddyAllocator(this.memory);
    this.objects = new MemoryObjects(this.memory, this.buddy);
    this.scheduler = new Scheduler(this.memory, this.control);
    this.files = new Files(this);
    this.signals = new Signals(this.memory, this.control, this.scheduler);
    this.lifecycle = new Lifecycle(this, this.signals, this.files.descriptions, this.files.contents);
    this.buddy.reclaim = () => this.lifecycle.reclaim();
    this.groups = new Groups(this, this.signals);
    this.turns = new Turns(this, { signals: this.signals, lifecycle: this.lifecycle, trims: this.files.contents.trims });
  }

  /** The address space of a process. */
  space(slot: number): AddressSpace {
    return new AddressSpace(this, this.files.contents, slot);
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
}
