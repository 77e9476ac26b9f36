/**
 * The control area as a thread sees it: machine words and vCPU words (layout.ts), and the futex protocol on them.
 *
 * The views end where RAM begins: nothing here can store to RAM.
 */
import { HibernaculumError } from "./errors.js";
import { failpoint } from "./failpoints.js";
import { isThreadAlive } from "./host-process.js";
import {
  CANCEL_ASKED,
  LOCK_BROKEN,
  LOCK_WAITED,
  MACHINE_ACK_BELL,
  MACHINE_CANCEL,
  MACHINE_CLOCK_BASE,
  MACHINE_DOORBELL,
  MACHINE_KERNEL_LOCK,
  MACHINE_LOST,
  MAX_VCPUS,
  RAM_BASE,
  VCPU_AREA,
  VCPU_BYTES,
  VCPU_STATE,
  VCPU_STATE_OFF,
  VCPU_THREAD,
} from "./layout.js";
import type { Pfn } from "./memory.js";
import type { SharedMemory } from "./wasm.js";

/** Host clock in ms, the same on every thread. */
export function hostNow(): number {
  return performance.timeOrigin + performance.now();
}

/** What to do about a machine that cannot go on. */
export const RESUME_AGAIN = "the machine cannot go on: power it off, and boot it again or resume its last image";

/** A frame's bit in one of the bitmaps of the control area, 0 or 1. */
export function bit(words: Int32Array, bitmap: number, frame: Pfn): number {
  return (words[(bitmap >>> 2) + (frame >>> 5)]! >>> (frame & 31)) & 1;
}

/** How many of `count` frames from `first` on have their bits set in a bitmap, and not in another. */
export function countBits(words: Int32Array, bitmap: number, first: Pfn, count: number, except?: number): number {
  let sum = 0;
  for (let frame = first; frame < first + count; ) {
    const word = frame >>> 5;
    const from = frame & 31;
    const bits = Math.min(32 - from, first + count - frame);
    let set = words[(bitmap >>> 2) + word]!;
    if (except !== undefined) set &= ~words[(except >>> 2) + word]!;
    set = (set >>> from) & (bits === 32 ? -1 : (1 << bits) - 1);
    sum += set === -1 ? 32 : popcount(set);
    frame += bits;
  }
  return sum;
}

function popcount(word: number): number {
  let sum = 0;
  for (let left = word; left !== 0; left &= left - 1) sum++;
  return sum;
}

/** A thread that has waited for so long looks whether those that it waits for are alive, ms. */
const LOOK_MS = 500;

export class Control {
  readonly words: Int32Array;
  readonly floats: Float64Array;
  /** What this thread writes into the kernel lock. */
  readonly #holder: number;

  /** @param thread - number of the vCPU whose thread this is; MAX_VCPUS for the coordinator */
  constructor(memory: SharedMemory, thread: number = MAX_VCPUS) {
    this.#holder = thread + 1;
    this.words = new Int32Array(memory.buffer, 0, RAM_BASE / 4);
    this.floats = new Float64Array(memory.buffer, 0, RAM_BASE / 8);
  }

  load(offset: number): number {
    return Atomics.load(this.words, offset >>> 2);
  }

  store(offset: number, value: number): void {
    Atomics.store(this.words, offset >>> 2, value);
  }

  /** Adds and returns the value before. */
  add(offset: number, value: number): number {
    return Atomics.add(this.words, offset >>> 2, value);
  }

  /** Raises a futex word and wakes everybody who waits on it. */
  ring(offset: number): void {
    Atomics.add(this.words, offset >>> 2, 1);
    Atomics.notify(this.words, offset >>> 2);
  }

  /** Wakes everybody who waits on a futex word. */
  wake(offset: number): void {
    Atomics.notify(this.words, offset >>> 2);
  }

  /** Waits until a futex word is no longer `seen`, or for `ms`. */
  wait(offset: number, seen: number, ms: number): void {
    Atomics.wait(this.words, offset >>> 2, seen, ms);
  }

  loadVcpu(vcpu: number, offset: number): number {
    return this.load(VCPU_AREA + vcpu * VCPU_BYTES + offset);
  }

  storeVcpu(vcpu: number, offset: number, value: number): void {
    this.store(VCPU_AREA + vcpu * VCPU_BYTES + offset, value);
  }

  loadVcpuFloat(vcpu: number, offset: number): number {
    return this.floats[(VCPU_AREA + vcpu * VCPU_BYTES + offset) >>> 3]!;
  }

  storeVcpuFloat(vcpu: number, offset: number, value: number): void {
    this.floats[(VCPU_AREA + vcpu * VCPU_BYTES + offset) >>> 3] = value;
  }

  /** Milliseconds of the guest's monotonic clock. */
  guestNow(): number {
    return hostNow() - this.floats[MACHINE_CLOCK_BASE >>> 3]!;
  }

  setGuestClock(ms: number): void {
    this.floats[MACHINE_CLOCK_BASE >>> 3] = hostNow() - ms;
  }

  /** Makes idle vCPUs look again. */
  ringDoorbell(): void {
    this.ring(MACHINE_DOORBELL);
  }

  /**
   * Waits, without spinning, until `done` holds; it is asked again whenever a vCPU rings. Blocks the thread: for waits
   * of less than a few milliseconds. Returns false after `ms`.
   */
  waitForVcpus(done: () => boolean, ms: number): boolean {
    const deadline = hostNow() + ms;
    while (true) {
      const seen = this.load(MACHINE_ACK_BELL);
      if (done()) return true;
      const left = deadline - hostNow();
      if (left <= 0) return false;
      this.waitForOther(MACHINE_ACK_BELL, seen, left);
    }
  }

  /** Waits until another vCPU changes a futex word from `seen`; returns after `ms`, now and then, and if that vCPU has died. */
  waitForOther(offset: number, seen: number, ms: number = LOOK_MS): void {
    this.wait(offset, seen, Math.min(ms, LOOK_MS));
    if (this.load(offset) === seen) this.#lookForDead();
  }

  /**
   * Runs `body` with the kernel lock held, a futex mutex.
   *
   * @throws HIB_WORKER_DIED if a vCPU's thread died
   */
  locked<T>(body: () => T): T {
    this.#lock();
    try {
      this.checkLost(); // what the lock guards may be half changed
      if (this.#holder <= MAX_VCPUS) failpoint("vcpu.locked");
      return body();
    } finally {
      this.#unlock();
    }
  }

  /**
   * Runs `body` without the kernel lock, which this thread holds: whatever it knew may have changed when it has it again.
   *
   * @throws HIB_WORKER_DIED if a vCPU's thread died
   */
  unlocked<T>(body: () => T): T {
    this.#unlock();
    try {
      return body();
    } finally {
      this.#lock();
      this.checkLost();
    }
  }

  #lock(): void {
    if (Atomics.compareExchange(this.words, MACHINE_KERNEL_LOCK >>> 2, 0, this.#holder) !== 0) this.#waitForLock();
  }

  /** A thread that could not take the lock again has none to give back, and a broken one stays so. */
  #unlock(): void {
    const at = MACHINE_KERNEL_LOCK >>> 2;
    if (Atomics.compareExchange(this.words, at, this.#holder, 0) === this.#holder) return;
    const waited = this.#holder | LOCK_WAITED;
    if (Atomics.compareExchange(this.words, at, waited, 0) === waited) Atomics.notify(this.words, at, 1);
  }

  /** Takes the lock; others may wait for it still, so it is marked as waited for. */
  #waitForLock(): void {
    const { words } = this;
    const at = MACHINE_KERNEL_LOCK >>> 2;
    while (true) {
      const seen = Atomics.load(words, at);
      if (seen === LOCK_BROKEN) this.checkLost();
      if (seen === 0) {
        if (Atomics.compareExchange(words, at, 0, this.#holder | LOCK_WAITED) === 0) return;
        continue;
      }
      const waited = seen | LOCK_WAITED;
      if (Atomics.compareExchange(words, at, seen, waited) !== seen) continue;
      if (Atomics.wait(words, at, waited, LOOK_MS) === "timed-out") this.#lookForDead();
    }
  }

  // ---- threads that died ----

  /** A thread that ends without a word (out of memory, say) is not told of while this one waits: the host knows. */
  #lookForDead(): void {
    for (let vcpu = 0; vcpu < MAX_VCPUS; vcpu++) {
      const off = this.loadVcpu(vcpu, VCPU_STATE) === VCPU_STATE_OFF;
      if (!off && !isThreadAlive(this.loadVcpu(vcpu, VCPU_THREAD))) this.lose(vcpu);
    }
  }

  /**
   * A vCPU's thread has died, whatever it was at. What is under way is given up, and no other thread waits any longer for it, or for the
   * lock that it held.
   */
  lose(vcpu: number): void {
    Atomics.compareExchange(this.words, MACHINE_LOST >>> 2, 0, vcpu + 1);
    this.store(MACHINE_CANCEL, CANCEL_ASKED);
    this.storeVcpu(vcpu, VCPU_STATE, VCPU_STATE_OFF);
    this.ring(MACHINE_ACK_BELL);
    const at = MACHINE_KERNEL_LOCK >>> 2;
    for (const held of [vcpu + 1, (vcpu + 1) | LOCK_WAITED]) Atomics.compareExchange(this.words, at, held, LOCK_BROKEN);
    Atomics.notify(this.words, at);
  }

  get isLost(): boolean {
    return this.load(MACHINE_LOST) !== 0;
  }

  /** For work that nobody awaits: that a machine is lost is reported to the next caller. @throws any other error */
  readonly unlessLost = (error: unknown): void => {
    if (!this.isLost) throw error;
  };

  /** @throws HIB_WORKER_DIED if a vCPU's thread died */
  checkLost(): void {
    const lost = this.load(MACHINE_LOST);
    if (lost !== 0) throw new HibernaculumError("HIB_WORKER_DIED", `the thread of vCPU ${lost - 1} died; ${RESUME_AGAIN}`);
  }
}
