/**
 * The scheduler: which process runs next, and how one leaves its vCPU. The run queue is the process table.
 *
 * Of those that are ready the one with the least virtual run time runs: run time weighted by the nice value. A process that wakes gets
 * no credit for the time that it slept, so it runs soon but not for long. All that wait on a channel wake, and take their step
 * again in that order; one that finds nothing left is not charged for it, and comes before the others the next time.
 *
 * What must hold:
 * - A process notes its channel under the same hold of the kernel lock under which it found that it has to wait. So whoever
 *   changes the object, also under the lock, finds the channel noted or came first.
 * - The least virtual run time, of those that run or are ready, never falls, and nobody is further from it than WAKE_CREDIT_MS
 *   before it or AHEAD_MAX_MS after it. So none starves: not while others come and go, and not on fewer vCPUs than before.
 *
 * Callers hold the kernel lock, but for `untilWake`.
 */
import type { Control } from "../../base/control.js";
import type { PhysicalAddress } from "../../base/memory.js";
import * as K from "../memory/kernel-layout.js";
import type { PhysicalMemory } from "../memory/physical.js";
import { processAddress } from "../memory/kernel-layout.js";

/** Virtual run time is weighed 25 % less for each step of niceness down. */
const NICE_STEP = 1.25;
/** How far behind the others a process may be that wakes, ms. */
const WAKE_CREDIT_MS = 2;
/** How far after the others a process begins, virtual ms: a slice, else a process that starts one child after another would take all the time. */
const BEGIN_DEBIT_MS = 2;
/** How far ahead of the others a process may get, virtual ms: more than the nicest is charged for a slice. */
const AHEAD_MAX_MS = 200;

export class Scheduler {
  readonly #memory: PhysicalMemory;
  readonly #control: Control;

  constructor(memory: PhysicalMemory, control: Control) {
    this.#memory = memory;
    this.#control = control;
  }

  /** Takes the next process for a vCPU; -1 if none is ready. */
  pick(vcpu: number): number {
    const memory = this.#memory;
    const used = memory.load32(K.KERNEL_SLOTS_USED);
    const now = this.#control.guestNow();
    let best = -1;
    let first = Infinity;
    let least = Infinity;
    for (let slot = 0; slot < used; slot++) {
      const at = processAddress(memory, slot);
      if (isWaiting(memory.load32(at + K.PROCESS_STATE)) && this.#isDue(at, now)) this.makeReady(at);
      const state = memory.load32(at + K.PROCESS_STATE);
      const ready = state === K.PROCESS_READY || isDying(memory, at);
      if (!ready && state !== K.PROCESS_RUNNING) continue;
      const vruntime = memory.loadFloat64(at + K.PROCESS_VRUNTIME);
      least = Math.min(least, vruntime);
      if (ready && vruntime < first) [best, first] = [slot, vruntime];
    }
    if (least !== Infinity && least > this.#least) memory.storeFloat64(K.KERNEL_VRUNTIME, least);
    if (best < 0) return -1;
    const at = processAddress(memory, best);
    if (!isDying(memory, at)) memory.store32(at + K.PROCESS_STATE, K.PROCESS_RUNNING);
    memory.store32(at + K.PROCESS_VCPU, vcpu);
    return best;
  }

  get #least(): number {
    return this.#memory.loadFloat64(K.KERNEL_VRUNTIME);
  }

  /** Milliseconds until the next sleeper wakes or the next alarm is due, at most `most`. */
  untilWake(most: number): number {
    const memory = this.#memory;
    const used = memory.load32(K.KERNEL_SLOTS_USED);
    let first = this.#control.guestNow() + most;
    for (let slot = 0; slot < used; slot++) {
      const at = processAddress(memory, slot);
      const wake = memory.loadFloat64(at + K.PROCESS_WAKE);
      const alarm = memory.loadFloat64(at + K.PROCESS_ALARM);
      if (wake > 0 && isWaiting(memory.load32(at + K.PROCESS_STATE))) first = Math.min(first, wake);
      if (alarm > 0) first = Math.min(first, alarm);
    }
    return Math.max(0, first - this.#control.guestNow());
  }

  /** Adds what a process ran to its virtual run time. */
  charge(at: PhysicalAddress, ms: number): void {
    const memory = this.#memory;
    const weighed = ms * NICE_STEP ** memory.load32(at + K.PROCESS_NICE);
    const vruntime = Math.min(memory.loadFloat64(at + K.PROCESS_VRUNTIME) + weighed, this.#least + AHEAD_MAX_MS);
    memory.storeFloat64(at + K.PROCESS_VRUNTIME, vruntime);
  }

  /** Notes that a process has to wait for the object at `channel`, until a time of the guest clock at most (0: for good). */
  waitFor(at: PhysicalAddress, channel: PhysicalAddress, until = 0): void {
    this.#memory.store32(at + K.PROCESS_CHANNEL, channel);
    this.#memory.storeFloat64(at + K.PROCESS_WAKE, until);
  }

  /** Puts a process that noted what it waits for to rest, unless that has come already. */
  block(at: PhysicalAddress): void {
    if (this.#memory.load32(at + K.PROCESS_CHANNEL) === 0) this.makeReady(at);
    else this.#memory.store32(at + K.PROCESS_STATE, K.PROCESS_BLOCKED);
  }

  sleep(at: PhysicalAddress, until: number): void {
    this.#memory.storeFloat64(at + K.PROCESS_WAKE, until);
    this.#memory.store32(at + K.PROCESS_STATE, K.PROCESS_SLEEPING);
  }

  /** Wakes all that wait for the object at `channel`. */
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

  /** Makes a process that is new ready. */
  begin(at: PhysicalAddress): void {
    const vruntime = Math.max(this.#memory.loadFloat64(at + K.PROCESS_VRUNTIME), this.#least + BEGIN_DEBIT_MS);
    this.#memory.storeFloat64(at + K.PROCESS_VRUNTIME, vruntime);
    this.makeReady(at);
  }

  /** Makes a process that ran, or has waited long enough, ready. */
  makeReady(at: PhysicalAddress): void {
    this.#memory.storeFloat64(at + K.PROCESS_WAKE, 0);
    this.#enqueue(at);
  }

  /**
   * Makes a process ready that rests and has a signal. A wait is over, because its step is taken again; a sleep is not: it goes
   * on after the signal, until the same time.
   */
  interrupt(at: PhysicalAddress): void {
    if (this.#memory.load32(at + K.PROCESS_STATE) === K.PROCESS_BLOCKED) this.#memory.storeFloat64(at + K.PROCESS_WAKE, 0);
    this.#enqueue(at);
    this.#control.ringDoorbell();
  }

  #enqueue(at: PhysicalAddress): void {
    const memory = this.#memory;
    const least = this.#least - WAKE_CREDIT_MS;
    if (memory.loadFloat64(at + K.PROCESS_VRUNTIME) < least) memory.storeFloat64(at + K.PROCESS_VRUNTIME, least);
    memory.store32(at + K.PROCESS_CHANNEL, 0);
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

/** Whether what is left of a process is its memory, and no vCPU is at work on that. */
export function isDying(memory: PhysicalMemory, at: PhysicalAddress): boolean {
  return memory.load32(at + K.PROCESS_STATE) === K.PROCESS_ENDING && memory.load32(at + K.PROCESS_VCPU) < 0;
}
