/**
 * The scheduler: which process runs next, and how one leaves its vCPU. The run queue is the process table.
 *
 * Of those that are ready the one with the least virtual run time runs: run time weighted by the nice value. Who wakes gets
 * no credit for the time that it slept, so it runs soon but not for long.
 *
 * What must hold: a process notes its channel under the same hold of the kernel lock under which it found that it has to
 * wait. So whoever changes the object, also under the lock, finds the channel noted or came first.
 */
import type { Control } from "../base/control.js";
import type { PhysicalAddress } from "../base/memory.js";
import * as K from "./kernel-layout.js";
import type { PhysicalMemory } from "./physical.js";
import { processAddress } from "./process.js";

/** Virtual run time is weighed 25 % less for each step of niceness down. */
const NICE_STEP = 1.25;
/** How far behind the others a process may be that wakes, ms. */
const WAKE_CREDIT_MS = 2;

export class Scheduler {
  readonly #memory: PhysicalMemory;
  readonly #control: Control;

  constructor(memory: PhysicalMemory, control: Control) {
    this.#memory = memory;
    this.#control = control;
  }

  /** Takes the next process for a vCPU; -1 if none is ready. */
  pick(vcpu: number): number {
    return this.#control.locked(() => {
      const memory = this.#memory;
      const used = memory.load32(K.KERNEL_SLOTS_USED);
      const now = this.#control.guestNow();
      let best = -1;
      let least = Infinity;
      for (let slot = 0; slot < used; slot++) {
        const at = processAddress(memory, slot);
        const state = memory.load32(at + K.PROCESS_STATE);
        if (state !== K.PROCESS_READY && !(isWaiting(state) && this.#isDue(at, now))) continue;
        const vruntime = memory.loadFloat64(at + K.PROCESS_VRUNTIME);
        if (vruntime < least) [best, least] = [slot, vruntime];
      }
      if (best < 0) return -1;
      const at = processAddress(memory, best);
      if (memory.load32(at + K.PROCESS_STATE) !== K.PROCESS_READY) this.makeReady(at);
      memory.storeFloat64(K.KERNEL_VRUNTIME, memory.loadFloat64(at + K.PROCESS_VRUNTIME));
      memory.store32(at + K.PROCESS_STATE, K.PROCESS_RUNNING);
      memory.store32(at + K.PROCESS_VCPU, vcpu);
      return best;
    });
  }

  /** Milliseconds until the next sleeper wakes, at most `most`. */
  untilWake(most: number): number {
    const memory = this.#memory;
    const used = memory.load32(K.KERNEL_SLOTS_USED);
    let first = this.#control.guestNow() + most;
    for (let slot = 0; slot < used; slot++) {
      const at = processAddress(memory, slot);
      const wake = memory.loadFloat64(at + K.PROCESS_WAKE);
      if (wake > 0 && isWaiting(memory.load32(at + K.PROCESS_STATE))) first = Math.min(first, wake);
    }
    return Math.max(0, first - this.#control.guestNow());
  }

  /** Adds what a process ran to its virtual run time. Caller holds the kernel lock; so it is below. */
  charge(at: PhysicalAddress, ms: number): void {
    const memory = this.#memory;
    const weighed = ms * NICE_STEP ** memory.load32(at + K.PROCESS_NICE);
    memory.storeFloat64(at + K.PROCESS_VRUNTIME, memory.loadFloat64(at + K.PROCESS_VRUNTIME) + weighed);
  }

  /** Notes that a process has to wait for the object at `channel`, until a time of the guest clock at most (0: for ever). */
  waitFor(at: PhysicalAddress, channel: PhysicalAddress, until = 0): void {
    this.#memory.store32(at + K.PROCESS_CHANNEL, channel);
    this.#memory.storeFloat64(at + K.PROCESS_WAKE, until);
  }

  /** Puts a process that noted what it waits for to rest, unless that has come already. */
  block(at: PhysicalAddress): void {
    const come = this.#memory.load32(at + K.PROCESS_CHANNEL) === 0;
    this.#memory.store32(at + K.PROCESS_STATE, come ? K.PROCESS_READY : K.PROCESS_BLOCKED);
  }

  sleep(at: PhysicalAddress, until: number): void {
    this.#memory.storeFloat64(at + K.PROCESS_WAKE, until);
    this.#memory.store32(at + K.PROCESS_STATE, K.PROCESS_SLEEPING);
  }

  /** Wakes whoever waits for the object at `channel`. */
  wake(channel: PhysicalAddress): void {
    const memory = this.#memory;
    const used = memory.load32(K.KERNEL_SLOTS_USED);
    let woken = false;
    for (let slot = 0; slot < used; slot++) {
      const at = processAddress(memory, slot);
      if (memory.load32(at + K.PROCESS_CHANNEL) >>> 0 !== channel >>> 0) continue;
      const state = memory.load32(at + K.PROCESS_STATE);
      if (state === K.PROCESS_BLOCKED) this.makeReady(at);
      else if (state === K.PROCESS_RUNNING) memory.store32(at + K.PROCESS_CHANNEL, 0);
      woken = true;
    }
    if (woken) this.#control.ringDoorbell();
  }

  /** Makes a process that is new, or was waiting, ready. */
  makeReady(at: PhysicalAddress): void {
    const memory = this.#memory;
    const least = memory.loadFloat64(K.KERNEL_VRUNTIME) - WAKE_CREDIT_MS;
    if (memory.loadFloat64(at + K.PROCESS_VRUNTIME) < least) memory.storeFloat64(at + K.PROCESS_VRUNTIME, least);
    memory.store32(at + K.PROCESS_CHANNEL, 0);
    memory.storeFloat64(at + K.PROCESS_WAKE, 0);
    memory.store32(at + K.PROCESS_STATE, K.PROCESS_READY);
  }

  #isDue(at: PhysicalAddress, now: number): boolean {
    const wake = this.#memory.loadFloat64(at + K.PROCESS_WAKE);
    return wake > 0 && wake <= now;
  }
}

function isWaiting(state: number): boolean {
  return state === K.PROCESS_SLEEPING || state === K.PROCESS_BLOCKED;
}
