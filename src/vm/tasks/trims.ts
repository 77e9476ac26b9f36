/**
 * When a file is cut, the leaves of its pages go from every address space before the call returns.
 *
 * A process that no vCPU runs, or this one, loses its leaves at once. On another vCPU the MMU walks the tables without a lock, and
 * its TLB is nobody else's: that vCPU is told (VCPU_TRIM), takes the leaves out itself before its next batch, and the call
 * waits for it, some 20 us, without the lock. Until then such a leaf keeps its frame, which is no page of the file any more.
 *
 * What must hold:
 * - The leaves to be taken out are those of pages beyond the end of their file. So no file gets longer before all of them are gone
 *   (`await`), and fork copies none of them.
 * - A vCPU takes them out before it says that it is stopped, under one hold of the lock, and none is told that has said so: no
 *   image has such a leaf.
 *
 * Callers hold the kernel lock.
 */
import { MACHINE_ACK_BELL, MAX_VCPUS, VCPU_STATE, VCPU_STATE_RUNNING, VCPU_TRIM } from "../../base/layout.js";
import type { PhysicalAddress } from "../../base/memory.js";
import { AddressSpace } from "../memory/address-space.js";
import { walkAreas } from "../memory/area.js";
import { PROCESS_AREAS, PROCESS_VCPU, processAddress } from "../memory/kernel-layout.js";
import type { Pager } from "../memory/memory-object.js";
import type { KernelParts } from "./parts.js";
import { findSlots } from "./process.js";

/** How long a wait lasts before it is looked whether the other vCPU is still there, ms. */
const LOOK_MS = 1000;

export class Trims {
  readonly #parts: KernelParts;
  readonly #pager: Pager;

  constructor(parts: KernelParts, pager: Pager) {
    this.#parts = parts;
    this.#pager = pager;
  }

  /** Whether an object can be cut now: no vCPU that runs a process which maps it is stopped. */
  canCut(object: PhysicalAddress, caller: number): boolean {
    return this.#mappers(object).every((slot) => {
      const vcpu = this.#vcpuOf(slot);
      return slot === caller || vcpu < 0 || this.#runs(vcpu);
    });
  }

  /** An object was cut, for the process in slot `caller`, on whose vCPU this is. */
  cut(object: PhysicalAddress, caller: number): void {
    const { control, core } = this.#parts;
    for (const slot of this.#mappers(object)) {
      const vcpu = this.#vcpuOf(slot);
      if (slot !== caller && vcpu >= 0) control.storeVcpu(vcpu, VCPU_TRIM, 1);
      else {
        this.#trim(slot);
        if (vcpu < 0) core.dropContext(slot);
      }
    }
    control.ring(MACHINE_ACK_BELL); // whoever waits for others is told, too
  }

  /** Takes out what the vCPU that runs the process in a slot was told to take out. */
  take(slot: number): void {
    const { control } = this.#parts;
    const vcpu = this.#vcpuOf(slot);
    if (vcpu < 0 || control.loadVcpu(vcpu, VCPU_TRIM) === 0) return;
    this.#trim(slot);
    control.storeVcpu(vcpu, VCPU_TRIM, 0);
    control.ring(MACHINE_ACK_BELL);
  }

  /** Lets go of the lock until every other vCPU has taken out what it was told to. */
  await(caller: number): void {
    const { control } = this.#parts;
    const own = this.#vcpuOf(caller);
    const told = (vcpu: number): boolean => control.loadVcpu(vcpu, VCPU_TRIM) !== 0 && this.#runs(vcpu);
    const others = (): boolean => {
      for (let vcpu = 0; vcpu < MAX_VCPUS; vcpu++) if (vcpu !== own && told(vcpu)) return true;
      return false;
    };
    while (others()) {
      // The other may wait for this one.
      control.unlocked(() => control.waitForVcpus(() => !others() || (own >= 0 && told(own)), LOOK_MS));
      this.take(caller);
    }
  }

  #trim(slot: number): void {
    new AddressSpace(this.#parts, this.#pager, slot).trim();
  }

  /** Processes that map an object. */
  #mappers(object: PhysicalAddress): number[] {
    const { memory } = this.#parts;
    return findSlots(memory, (at) => {
      for (const area of walkAreas(memory, memory.load32(at + PROCESS_AREAS))) if (area.object === object) return true;
      return false;
    });
  }

  #vcpuOf(slot: number): number {
    return this.#parts.memory.load32(processAddress(this.#parts.memory, slot) + PROCESS_VCPU);
  }

  #runs(vcpu: number): boolean {
    return this.#parts.control.loadVcpu(vcpu, VCPU_STATE) === VCPU_STATE_RUNNING;
  }
}
