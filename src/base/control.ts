/**
 * The control area as a thread sees it: machine words and vCPU words (layout.ts), and the futex protocol on them.
 *
 * The views end where RAM begins: nothing here can store to RAM.
 */
import {
  MACHINE_ACK_BELL,
  MACHINE_CLOCK_BASE,
  MACHINE_DOORBELL,
  MACHINE_KERNEL_LOCK,
  RAM_BASE,
  VCPU_AREA,
  VCPU_BYTES,
} from "./layout.js";
import type { Pfn } from "./memory.js";
import type { SharedMemory } from "./wasm.js";

/** Host clock in ms, the same on every thread. */
export function hostNow(): number {
  return performance.timeOrigin + performance.now();
}

/** A frame's bit in one of the bitmaps of the control area, 0 or 1. */
export function bit(words: Int32Array, bitmap: number, frame: Pfn): number {
  return (words[(bitmap >>> 2) + (frame >>> 5)]! >>> (frame & 31)) & 1;
}

export class Control {
  readonly words: Int32Array;
  readonly floats: Float64Array;

  constructor(memory: SharedMemory) {
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
      this.wait(MACHINE_ACK_BELL, seen, left);
    }
  }

  /** Runs `body` with the kernel lock held: a futex mutex (0 free, 1 held, 2 held and waited for). */
  locked<T>(body: () => T): T {
    this.#lock();
    try {
      return body();
    } finally {
      this.#unlock();
    }
  }

  /** Runs `body` without the kernel lock, which this thread holds: whatever it knew may have changed when it has it again. */
  unlocked<T>(body: () => T): T {
    this.#unlock();
    try {
      return body();
    } finally {
      this.#lock();
    }
  }

  #lock(): void {
    const at = MACHINE_KERNEL_LOCK >>> 2;
    if (Atomics.compareExchange(this.words, at, 0, 1) === 0) return;
    while (Atomics.exchange(this.words, at, 2) !== 0) Atomics.wait(this.words, at, 2);
  }

  #unlock(): void {
    const at = MACHINE_KERNEL_LOCK >>> 2;
    if (Atomics.exchange(this.words, at, 0) === 2) Atomics.notify(this.words, at, 1);
  }
}
