/**
 * Signals: who may be told what, what is pending, and what it does to a process.
 *
 *     post() --> pending --> take(), between two steps on the process's vCPU --> ignored
 *                   ^                                                        --> the process ends or stops
 *                   |  masked                                                --> a frame on its stack, a handler,
 *                   +--------                                                    sigreturn(): as if nothing had been
 *
 * What must hold:
 * - A signal is noted under the kernel lock, and a process that begins to rest looks for signals under the same hold of the lock under which it
 *   lies down (Turns.putBack). So none is slept through.
 * - All that a signal does to a process happens on the vCPU that runs it, between two steps; only SIGCONT and SIGKILL get a
 *   stopped one going, and it then takes its own step to wherever that leads.
 * - What a handler interrupts is in its frame: registers, mask, and what was left to sleep. A step that waited was not taken and
 *   is taken again. So a process inside a handler is memory, as any other.
 *
 * Numbers and meanings are POSIX's (signal.h), as Linux has them.
 */
import type { Control } from "../../base/control.js";
import type { PhysicalAddress, ReadableMemory, VirtualAddress } from "../../base/memory.js";
import { EINVAL } from "../memory/errno.js";
import * as K from "../memory/kernel-layout.js";
import type { PhysicalMemory } from "../memory/physical.js";
import { slotOf } from "./process.js";
import type { Scheduler } from "./scheduler.js";
import { STATUS_CONTINUED } from "./status.js";
import { A0, HANDLER, SIGNAL_FRAME, SP, STACK_TOP } from "../memory/user-layout.js";
import { loadUserFloat64, storeUserFloat64, type UserMemory } from "../memory/user-memory.js";
import { processAddress } from "../memory/kernel-layout.js";

export const SIGABRT = 6;
/** For an access to a mapped page that its file does not have. */
export const SIGBUS = 7;
export const SIGKILL = 9;
export const SIGUSR1 = 10;
export const SIGSEGV = 11;
export const SIGUSR2 = 12;
/** For writers to a pipe that nobody reads. */
export const SIGPIPE = 13;
export const SIGALRM = 14;
export const SIGTERM = 15;
export const SIGCHLD = 17;
export const SIGCONT = 18;
export const SIGSTOP = 19;
export const SIGTSTP = 20;
export const SIGTTIN = 21;
export const SIGTTOU = 22;
export const SIGURG = 23;
export const SIGWINCH = 28;
/** Signals are 1 to this. */
export const SIGNAL_MAX = 31;

export const DISPOSITION_DEFAULT = 0;
export const DISPOSITION_IGNORE = 0xffff;
export const HANDLER_MAX = 0xfffe;

/** A set of signals as a word. */
export function signalSet(...signals: readonly number[]): number {
  return signals.reduce((set, signal) => set | (1 << signal), 0);
}

/** What stops a process unless it says otherwise. */
const STOPPING = signalSet(SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU);
const IGNORED_BY_DEFAULT = signalSet(SIGCHLD, SIGCONT, SIGURG, SIGWINCH);
/** Cannot be caught, ignored or masked. */
const SOVEREIGN = signalSet(SIGKILL, SIGSTOP);
/** Signals that a mask can keep out; bit 0 is none. */
const MASKABLE = ~(SOVEREIGN | 1);

/** What a signal that was taken does. */
export type Delivery =
  | { do: "end"; signal: number }
  /** Still pending: taken when the process is put to rest, unless SIGCONT did it. */
  | { do: "stop" }
  | { do: "handle"; signal: number; handler: number };

/** What a handler interrupts, beside the registers. */
interface Interrupted {
  signal: number;
  mask: number;
  /** When it would have woken, 0 if it did not sleep. */
  wake: number;
}

export class Signals {
  readonly #memory: PhysicalMemory;
  readonly #control: Control;
  readonly #scheduler: Scheduler;

  constructor(memory: PhysicalMemory, control: Control, scheduler: Scheduler) {
    this.#memory = memory;
    this.#control = control;
    this.#scheduler = scheduler;
  }

  // ---- sending: caller holds the kernel lock ----

  /** Sends a signal to a process, whatever state it is in. */
  post(at: PhysicalAddress, signal: number): void {
    const bit = 1 << signal;
    const clear = (set: number) => this.#store(at + K.PROCESS_PENDING, this.#load(at + K.PROCESS_PENDING) & ~set);
    if ((bit & STOPPING) !== 0) clear(1 << SIGCONT);
    if (signal === SIGCONT) clear(STOPPING);
    const stopped = this.#load(at + K.PROCESS_STATE) === K.PROCESS_STOPPED;
    const goesOn = stopped && (signal === SIGCONT || signal === SIGKILL);
    if (goesOn) this.#scheduler.interrupt(at);
    if (goesOn && signal === SIGCONT) this.tellParent(at, STATUS_CONTINUED);
    if (this.#isIgnored(at, signal) && (this.#load(at + K.PROCESS_MASK) & bit) === 0) return;
    this.#store(at + K.PROCESS_PENDING, this.#load(at + K.PROCESS_PENDING) | bit);
    this.rouse(at);
  }

  /** Has wait tell a process's parent of it. What it has not been told yet, and is no longer so, it is not told any more. */
  tellParent(at: PhysicalAddress, status: number): void {
    this.#store(at + K.PROCESS_STATUS, status);
    const slot = slotOf(this.#memory, this.#load(at + K.PROCESS_PARENT));
    if (slot === undefined) return;
    const parent = processAddress(this.#memory, slot);
    this.post(parent, SIGCHLD);
    this.#scheduler.wake(parent); // it may wait for this child
  }

  /** Gets a process that rests going if there is a signal to deliver. */
  rouse(at: PhysicalAddress): void {
    const state = this.#load(at + K.PROCESS_STATE);
    const rests = state === K.PROCESS_SLEEPING || state === K.PROCESS_BLOCKED;
    if (rests && this.isDeliverable(at)) this.#scheduler.interrupt(at);
  }

  /** Sends SIGALRM to each process whose time has come. An interval that was missed is not made up for. */
  fireAlarms(): void {
    const now = this.#control.guestNow();
    for (let slot = 0; slot < this.#load(K.KERNEL_SLOTS_USED); slot++) {
      const at = processAddress(this.#memory, slot);
      const due = this.#memory.loadFloat64(at + K.PROCESS_ALARM);
      if (due === 0 || due > now) continue;
      const interval = this.#memory.loadFloat64(at + K.PROCESS_ALARM_INTERVAL);
      const next = interval === 0 ? 0 : due + interval * (Math.floor((now - due) / interval) + 1);
      this.#memory.storeFloat64(at + K.PROCESS_ALARM, next);
      this.post(at, SIGALRM);
    }
  }

  // ---- delivering: on the vCPU that runs the process ----

  isDeliverable(at: PhysicalAddress): boolean {
    return (this.#load(at + K.PROCESS_PENDING) & ~this.#load(at + K.PROCESS_MASK)) !== 0;
  }

  /** Takes the next signal that does something; undefined if there is none. */
  take(at: PhysicalAddress): Delivery | undefined {
    if (!this.isDeliverable(at)) return undefined; // without the lock: a sender of this moment might as well have come later
    return this.#control.locked(() => {
      while (true) {
        const pending = this.#load(at + K.PROCESS_PENDING);
        const due = pending & ~this.#load(at + K.PROCESS_MASK);
        if (due === 0) return undefined;
        const signal = (due & (1 << SIGKILL)) !== 0 ? SIGKILL : firstOf(due);
        const handler = this.disposition(at, signal);
        const stops = handler === DISPOSITION_DEFAULT && (STOPPING & (1 << signal)) !== 0;
        if (stops) return { do: "stop" };
        this.#store(at + K.PROCESS_PENDING, pending & ~(1 << signal));
        if (this.#isIgnored(at, signal)) continue;
        return handler === DISPOSITION_DEFAULT ? { do: "end", signal } : { do: "handle", signal, handler };
      }
    });
  }

  /** Takes the stop signals that are still pending. Returns one to stop by, unless SIGKILL came. Caller holds the kernel lock. */
  takeStop(at: PhysicalAddress): number | undefined {
    const pending = this.#load(at + K.PROCESS_PENDING);
    const stops = pending & STOPPING & ~this.#load(at + K.PROCESS_MASK);
    this.#store(at + K.PROCESS_PENDING, pending & ~stops);
    return stops === 0 || (pending & (1 << SIGKILL)) !== 0 ? undefined : firstOf(stops);
  }

  /** The handler of a signal if it can be called now: for one that cannot wait (SIGSEGV, SIGBUS). */
  catcher(at: PhysicalAddress, signal: number): number | undefined {
    const handler = this.disposition(at, signal);
    const masked = (this.#load(at + K.PROCESS_MASK) & (1 << signal)) !== 0;
    return masked || handler === DISPOSITION_DEFAULT || handler === DISPOSITION_IGNORE ? undefined : handler;
  }

  /**
   * Has a process begin a handler: pushes a frame onto its stack, which may fault (GuestFault: there is no room), and sets
   * its registers: x2, x31, x10 to x12. The signal is masked until sigreturn, and so is what sigaction said.
   *
   * @param value - left in x11: the address of an access that faulted
   */
  enter(
    at: PhysicalAddress,
    user: UserMemory,
    registers: Int32Array,
    call: { signal: number; handler: number; value?: number },
  ): void {
    const { signal, handler, value = 0 } = call;
    const suspended = this.#load(at + K.PROCESS_SUSPENDED_MASK);
    const mask = this.#load(at + K.PROCESS_MASK);
    const wake = this.#memory.loadFloat64(at + K.PROCESS_WAKE);
    pushFrame(user, registers, {
      signal,
      mask: suspended === 0 ? mask : suspended & MASKABLE,
      wake: wake === Infinity ? 0 : wake, // it waited for a handler
    });
    registers.fill(0, A0, A0 + 6);
    registers[A0] = signal;
    registers[A0 + 2] = value;
    registers[HANDLER] = handler;
    registers[HANDLER + 1] = 0;
    this.#store(at + K.PROCESS_SUSPENDED_MASK, 0);
    this.setMask(at, mask | (1 << signal) | this.#load(handlerMask(at, signal)));
    this.#memory.storeFloat64(at + K.PROCESS_WAKE, 0);
  }

  /**
   * sigreturn: registers and mask as they were.
   *
   * @returns until when the process goes on sleeping, 0 if it did not; undefined if there is no frame at its stack pointer
   */
  leave(at: PhysicalAddress, user: UserMemory, registers: Int32Array): number | undefined {
    const interrupted = popFrame(user, registers);
    if (interrupted === undefined) return undefined;
    this.setMask(at, interrupted.mask);
    return interrupted.wake;
  }

  // ---- what a process says of itself ----

  disposition(at: PhysicalAddress, signal: number): number {
    return readDisposition(this.#memory, at, signal);
  }

  /**
   * sigaction: what there was before, or an error. A signal that is now ignored is not pending any more. Under the lock.
   *
   * @param mask - signals that are masked in addition while a handler runs
   */
  setDisposition(at: PhysicalAddress, signal: number, disposition: number, mask = 0): number {
    const known = Number.isInteger(disposition) && disposition >= DISPOSITION_DEFAULT && disposition <= DISPOSITION_IGNORE;
    if (!isSignal(signal) || !known || (SOVEREIGN & (1 << signal)) !== 0) return -EINVAL;
    const before = this.disposition(at, signal);
    const word = at + K.PROCESS_DISPOSITIONS + (signal >>> 1) * 4;
    const shift = (signal & 1) * 16;
    this.#store(word, (this.#load(word) & ~(0xffff << shift)) | (disposition << shift));
    this.#store(handlerMask(at, signal), mask & MASKABLE);
    if (this.#isIgnored(at, signal)) this.#store(at + K.PROCESS_PENDING, this.#load(at + K.PROCESS_PENDING) & ~(1 << signal));
    return before;
  }

  /** The mask is the process's own: nobody else stores to it. Returns what it was. */
  setMask(at: PhysicalAddress, mask: number): number {
    const before = this.#load(at + K.PROCESS_MASK);
    this.#store(at + K.PROCESS_MASK, mask & MASKABLE);
    return before;
  }

  /** sigsuspend: another mask until a handler has run, which then finds this one again. */
  suspend(at: PhysicalAddress, mask: number): void {
    this.#store(at + K.PROCESS_SUSPENDED_MASK, this.setMask(at, mask) | 1);
  }

  /** alarm: returns how many ms were left of the one before, at least 1; 0 if there was none. Under the lock. */
  setAlarm(at: PhysicalAddress, ms: number, interval: number): number {
    const now = this.#control.guestNow();
    const due = this.#memory.loadFloat64(at + K.PROCESS_ALARM);
    this.#memory.storeFloat64(at + K.PROCESS_ALARM, ms > 0 ? now + ms : 0);
    this.#memory.storeFloat64(at + K.PROCESS_ALARM_INTERVAL, ms > 0 ? interval : 0);
    return due === 0 ? 0 : Math.max(1, due - now);
  }

  /** A process has come to its end: nothing is sent to it any more. Under the lock. */
  cancelAlarm(at: PhysicalAddress): void {
    this.#memory.storeFloat64(at + K.PROCESS_ALARM, 0);
  }

  /** exec: the old program's handlers are gone, and what it ignored stays ignored. Under the lock. */
  forgetHandlers(at: PhysicalAddress): void {
    for (let signal = 1; signal <= SIGNAL_MAX; signal++) {
      const handler = this.disposition(at, signal);
      if (handler !== DISPOSITION_DEFAULT && handler !== DISPOSITION_IGNORE) this.setDisposition(at, signal, DISPOSITION_DEFAULT);
    }
  }

  #isIgnored(at: PhysicalAddress, signal: number): boolean {
    const disposition = this.disposition(at, signal);
    if (disposition === DISPOSITION_IGNORE) return true;
    return disposition === DISPOSITION_DEFAULT && (IGNORED_BY_DEFAULT & (1 << signal)) !== 0;
  }

  #load(address: PhysicalAddress): number {
    return this.#memory.load32(address);
  }

  #store(address: PhysicalAddress, value: number): void {
    if (this.#memory.load32(address) !== value) this.#memory.store32(address, value);
  }
}

/** The least signal of a set that is not empty. */
function firstOf(set: number): number {
  return 31 - Math.clz32(set & -set);
}

function handlerMask(at: PhysicalAddress, signal: number): PhysicalAddress {
  return at + K.PROCESS_HANDLER_MASKS + signal * 4;
}

/** Whether a process can have this mask. */
export function isMask(set: number): boolean {
  return (set & ~MASKABLE) === 0;
}

export function isSignal(signal: number): boolean {
  return Number.isInteger(signal) && signal >= 1 && signal <= SIGNAL_MAX;
}

// ---- the frame, on the process's own stack: drawn at SIGNAL_FRAME (program.ts) ----

function pushFrame(user: UserMemory, registers: Int32Array, { signal, mask, wake }: Interrupted): void {
  // Programs that never used their stack have an empty one. Frames are aligned to 16 bytes, as the RISC-V ABI wants.
  const top = registers[SP] === 0 ? STACK_TOP : registers[SP]! >>> 0;
  const frame: VirtualAddress = ((top - SIGNAL_FRAME.bytes) & ~15) >>> 0;
  for (const [word, value] of registers.entries()) user.store32(frame + SIGNAL_FRAME.registers + word * 4, value);
  storeUserFloat64(user, frame + SIGNAL_FRAME.wake, wake);
  user.store32(frame + SIGNAL_FRAME.mask, mask);
  user.store32(frame + SIGNAL_FRAME.signal, signal);
  user.store32(frame + SIGNAL_FRAME.magic, SIGNAL_FRAME.magicWord);
  registers[SP] = frame | 0;
  registers[SP + 1] = 0;
}

function popFrame(user: UserMemory, registers: Int32Array): Interrupted | undefined {
  const frame = registers[SP]! >>> 0;
  if ((user.load32(frame + SIGNAL_FRAME.magic) | 0) !== SIGNAL_FRAME.magicWord) return undefined;
  const noted = loadUserFloat64(user, frame + SIGNAL_FRAME.wake);
  const wake = noted > 0 ? noted : 0; // whatever a program left there
  const mask = user.load32(frame + SIGNAL_FRAME.mask) | 0;
  const signal = user.load32(frame + SIGNAL_FRAME.signal) | 0;
  for (const word of registers.keys()) registers[word] = user.load32(frame + SIGNAL_FRAME.registers + word * 4);
  return { signal, mask, wake };
}

function readDisposition(memory: ReadableMemory, at: PhysicalAddress, signal: number): number {
  const word = memory.load32(at + K.PROCESS_DISPOSITIONS + (signal >>> 1) * 4);
  return (signal & 1) === 0 ? word & 0xffff : word >>> 16;
}

/** Handlers of a process by signal, those of its dispositions that are neither the default nor to ignore it. */
export function readHandlers(memory: ReadableMemory, slot: number): Record<number, number> {
  const handlers: Record<number, number> = {};
  for (let signal = 1; signal <= SIGNAL_MAX; signal++) {
    const handler = readDisposition(memory, processAddress(memory, slot), signal);
    if (handler !== DISPOSITION_DEFAULT && handler !== DISPOSITION_IGNORE) handlers[signal] = handler;
  }
  return handlers;
}
