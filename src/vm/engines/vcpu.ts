/**
 * A vCPU: the loop of one worker thread. It picks a process, runs it in batches of some 20 us, and passes a safepoint
 * after each: there the process's registers are in memory and no lock is held.
 *
 * What must hold at a safepoint: write tracking may only tighten here (acknowledge), and the machine may only be
 * stopped here. Between two safepoints nothing that this thread does is seen half done by an image. So a process that
 * leaves its vCPU is put back before the next safepoint: its step and what it asked for (to sleep, to wait, to exit) are one.
 */
import { type Control, hostNow } from "../../base/control.js";
import {
  COMMAND_GATHER,
  COMMAND_RESTART,
  COMMAND_RUN,
  COMMAND_SCATTER,
  FAULT_TIMELINE,
  MACHINE_ACK_BELL,
  MACHINE_COMMAND,
  MACHINE_COMMAND_BELL,
  MACHINE_DOORBELL,
  MACHINE_POWER_OFF,
  MACHINE_STOP,
  STEP_TIMELINE,
  TIMELINE_BINS,
  VCPU_BUSY,
  VCPU_COMMAND_DONE,
  VCPU_LONGEST_GAP,
  VCPU_SLOT,
  VCPU_STATE,
  VCPU_STATE_OFF,
  VCPU_STATE_RUNNING,
  VCPU_STATE_STOPPED,
} from "../../base/layout.js";
import type { SharedMemory } from "../../base/wasm.js";
import { binOf } from "../tasks/activity.js";
import { GuestFault } from "../memory/address-space.js";
import { createDeviceCalls } from "../devices/calls.js";
import { instantiateCore, type Core } from "../memory/core.js";
import { Kernel, type PutBack } from "../kernel.js";
import { PROCESS_REGISTERS, PROCESS_STEPS, PROCESS_WAKE, processAddress } from "../memory/kernel-layout.js";
import { readProcess, readRegisters } from "../tasks/process.js";
import { type ProgramContext, type Runner, SelfCheckError } from "../personality/step/program.js";
import { SIGABRT, type Signals, SIGSEGV } from "../tasks/signals.js";
import { type Afterwards, createSystemCalls } from "../personality/step/system-calls.js";

/** How long a process keeps its vCPU while others wait, ms. */
const SLICE_MS = 2;
/** What a batch aims at, ms: a stop request is seen after at most about this long. */
const BATCH_MS = 0.02;
const FUEL_MAX = 1 << 14;
/** Backlog that a rate-limited process may catch up after it was held up, ms. */
const BACKLOG_MS = 50;
/** Longest sleep of an idle vCPU, ms. */
const IDLE_MS = 50;

/** A process as this vCPU runs it: made from the process's text, thrown away when the slot has another process. */
interface Running {
  pid: number;
  /** Another vCPU may have carried out an exec. */
  text: string;
  runner: Runner;
  context: { -readonly [K in keyof ProgramContext]: ProgramContext[K] };
  rate: number;
  rateClock: number;
  rateSteps: number;
  fuel: number;
  afterwards: Afterwards | undefined;
}

export interface VcpuOptions {
  memory: SharedMemory;
  /** 0 to MAX_VCPUS - 1. */
  number: number;
  /** Makes the runner of a program's text. */
  createRunner(text: string): Runner;
  /** Part of the image that is loaded (resume), for boot processes. */
  loaded(): number | undefined;
  /** Has the coordinator look at the devices. */
  notifyDevices(): void;
}

export class Vcpu {
  readonly #options: VcpuOptions;
  readonly #number: number;
  readonly #core: Core;
  readonly #kernel: Kernel;
  readonly #control: Control;
  readonly #processes = new Map<number, Running>();
  #slot = -1;
  /** Address of the page fault that is looked at, or could not be resolved; else 0. */
  #faultAddress = 0;
  #bin = 0;
  #lastEnd = 0;

  constructor(options: VcpuOptions) {
    this.#options = options;
    this.#number = options.number;
    this.#core = instantiateCore(options.memory, {
      pageFault: (address, access) => {
        this.#faultAddress = address >>> 0;
        this.#control.locked(() => this.#kernel.space(this.#slot).fault(address >>> 0, access));
        this.#faultAddress = 0;
      },
      now: () => performance.now(),
    });
    this.#core.attach(options.number);
    this.#kernel = new Kernel(options.memory, this.#core);
    this.#control = this.#kernel.control;
  }

  /** Runs until the machine is powered off. Blocks the thread. */
  run(): void {
    this.#control.storeVcpu(this.#number, VCPU_STATE, VCPU_STATE_RUNNING);
    this.#control.storeVcpu(this.#number, VCPU_SLOT, -1);
    while (this.#control.load(MACHINE_POWER_OFF) === 0) {
      const doorbell = this.#control.load(MACHINE_DOORBELL);
      if (!this.#safepoint()) continue;
      this.#slot = this.#kernel.pick(this.#number);
      this.#control.storeVcpu(this.#number, VCPU_SLOT, this.#slot);
      if (this.#slot >= 0) {
        const began = hostNow();
        const next = this.#runSlice(this.#slot);
        this.#core.deactivate();
        if (next !== undefined) this.#kernel.putBack(this.#slot, { ...next, ran: hostNow() - began });
      } else {
        this.#control.wait(MACHINE_DOORBELL, doorbell, this.#kernel.scheduler.untilWake(IDLE_MS));
        this.#lastEnd = 0;
      }
    }
    this.#control.storeVcpu(this.#number, VCPU_STATE, VCPU_STATE_OFF);
    this.#control.ring(MACHINE_ACK_BELL);
  }

  /**
   * Runs a process until its slice ends, it sleeps or waits, or it fails, and returns how to put it back; undefined if
   * memory was replaced under it, so that there is nothing to put back.
   */
  #runSlice(slot: number): Omit<PutBack, "ran"> | undefined {
    let running: Running;
    try {
      running = this.#load(slot);
    } catch (error) {
      return { failure: error instanceof Error ? error.message : String(error) }; // no such program here
    }
    this.#core.activate(slot, readProcess(this.#kernel.memory, slot)!.root);
    const end = hostNow() + SLICE_MS;
    while (true) {
      const interrupted = this.#deliver(slot, running);
      if (interrupted !== undefined) return interrupted;
      let fuel = running.fuel;
      if (running.rate > 0) {
        const allowance = this.#allowance(running);
        if (allowance < 1) return this.#sleepFor(1);
        fuel = Math.min(fuel, allowance);
      }
      const began = hostNow();
      running.afterwards = undefined;
      let done = 0;
      try {
        done = running.runner.run(running.context, fuel);
      } catch (error) {
        if (!(error instanceof GuestFault || error instanceof SelfCheckError || error instanceof RangeError)) throw error;
        const failed = this.#catch(slot, running, error);
        if (failed !== undefined) return failed;
      }
      this.#writeBack(slot, running, done);
      const now = hostNow();
      this.#account(running, began, now, done);
      const left = this.#afterwards(slot, running);
      if (left !== undefined) return left;
      // It waits for memory or for a device: that step is taken again.
      if (done < fuel && running.afterwards === undefined) return this.#sleepFor(1);
      if (!this.#safepoint()) return undefined;
      if (now >= end || this.#control.load(MACHINE_POWER_OFF) !== 0) return {};
    }
  }

  /**
   * Delivers the signals of a process, between two steps. Returns how to put it back if it does not go on: it ends, stops, or
   * sleeps and was not to handle anything.
   */
  #deliver(slot: number, running: Running): Omit<PutBack, "ran"> | undefined {
    const { memory, signals } = this.#kernel;
    const at = processAddress(memory, slot);
    for (let signal = signals.take(at); signal !== undefined; signal = signals.take(at)) {
      if (signal.do === "end") return { status: signal.signal };
      if (signal.do === "stop") return { stop: true };
      const failed = this.#enter(slot, running, signal);
      if (failed !== undefined) return failed;
    }
    const wake = memory.loadFloat64(at + PROCESS_WAKE);
    return wake > 0 ? { wake } : undefined;
  }

  #enter(slot: number, running: Running, call: Parameters<Signals["enter"]>[3]): Omit<PutBack, "ran"> | undefined {
    const { memory, signals } = this.#kernel;
    try {
      signals.enter(processAddress(memory, slot), this.#core, running.context.registers, call);
    } catch (error) {
      if (!(error instanceof GuestFault)) throw error;
      return { failure: `no room on its stack to handle signal ${call.signal}: ${error.message}`, status: SIGSEGV };
    }
    this.#writeBack(slot, running, 0);
    return undefined;
  }

  /**
   * A step that could not be taken: the process handles SIGSEGV, with its registers as the step left them, or fails. What it did in this
   * batch before it is not counted.
   */
  #catch(slot: number, running: Running, error: Error): Omit<PutBack, "ran"> | undefined {
    const { memory, signals } = this.#kernel;
    const address = this.#faultAddress;
    this.#faultAddress = 0;
    const fault = error instanceof GuestFault;
    const handler = fault ? signals.catcher(processAddress(memory, slot), SIGSEGV) : undefined;
    if (handler === undefined) {
      this.#processes.delete(slot);
      return { failure: error.message, status: fault ? SIGSEGV : SIGABRT };
    }
    running.afterwards = { do: "signals" }; // whatever the step asked for, it has not been taken
    return this.#enter(slot, running, { signal: SIGSEGV, handler, value: address });
  }

  /** Does what a process asked for at the end of a step, before the safepoint: step and call are one. */
  #afterwards(slot: number, running: Running): Omit<PutBack, "ran"> | undefined {
    const { signals } = this.#kernel;
    const at = processAddress(this.#kernel.memory, slot);
    const asked = running.afterwards;
    switch (asked?.do) {
      case "sleep":
        return this.#sleepFor(asked.ms);
      case "block":
        return { blocked: true };
      case "exit":
        return { status: asked.code << 8 };
      case "fork":
        this.#kernel.fork(slot);
        return {};
      case "exec":
        try {
          this.#kernel.exec(slot, asked.text, this.#options.createRunner);
        } catch (error) {
          return { failure: `exec: ${error instanceof Error ? error.message : String(error)}` };
        }
        return {};
      case "pause":
        if (asked.mask !== undefined) signals.suspend(at, asked.mask);
        return { wake: Infinity };
      case "sigreturn": {
        const wake = this.#sigreturn(slot, running);
        if (wake === undefined) return { failure: "sigreturn without a frame at its stack pointer", status: SIGSEGV };
        return wake > 0 ? { wake } : undefined;
      }
      default:
        return undefined;
    }
  }

  #sigreturn(slot: number, running: Running): number | undefined {
    const { memory, signals } = this.#kernel;
    try {
      return signals.leave(processAddress(memory, slot), this.#core, running.context.registers);
    } catch (error) {
      if (!(error instanceof GuestFault)) throw error;
      return undefined;
    } finally {
      this.#writeBack(slot, running, 0);
    }
  }

  #sleepFor(ms: number): Omit<PutBack, "ran"> {
    return { wake: this.#control.guestNow() + ms };
  }

  /** Steps that a rate-limited process may run now. */
  #allowance(running: Running): number {
    const now = this.#control.guestNow();
    const due = () => running.rateSteps + ((now - running.rateClock) * running.rate) / 1000;
    if (due() - running.context.steps > (running.rate * BACKLOG_MS) / 1000) {
      running.rateClock = now - BACKLOG_MS;
      running.rateSteps = running.context.steps;
    }
    return Math.floor(due() - running.context.steps);
  }

  /** Registers and step count go to the process table: kernel stores, tracked like any other. */
  #writeBack(slot: number, running: Running, done: number): void {
    const { memory } = this.#kernel;
    const at = processAddress(memory, slot);
    const { registers } = running.context;
    for (let word = 0; word < registers.length; word++) {
      const value = registers[word]!;
      if (memory.load32(at + PROCESS_REGISTERS + word * 4) !== value) memory.store32(at + PROCESS_REGISTERS + word * 4, value);
    }
    running.context.steps += done;
    memory.storeFloat64(at + PROCESS_STEPS, running.context.steps);
  }

  /** The host object for a process, from its text; registers and steps from the process table. */
  #load(slot: number): Running {
    const { memory } = this.#kernel;
    const process = readProcess(memory, slot)!;
    let running = this.#processes.get(slot);
    if (running?.pid !== process.pid || running.text !== process.text) {
      running = this.#create(slot, process.pid, process.text);
      running.rate = process.rate;
      running.rateClock = this.#control.guestNow();
      running.rateSteps = process.steps;
      this.#processes.set(slot, running);
    }
    running.context.registers.set(readRegisters(memory, slot));
    running.context.steps = process.steps;
    return running;
  }

  #create(slot: number, pid: number, text: string): Running {
    const system = createSystemCalls(
      this.#kernel,
      slot,
      (what) => {
        // That signals are to be looked at is so after anything else that a step asks for.
        if (what.do !== "signals" || running.afterwards === undefined) running.afterwards = what;
      },
      createDeviceCalls(this.#kernel, this.#core, { slot, pid }, () => this.#options.notifyDevices()),
      () => this.#options.loaded(),
    );
    const running: Running = {
      pid,
      text,
      runner: this.#options.createRunner(text),
      context: { memory: this.#core, system, registers: new Int32Array(64), steps: 0 },
      rate: 0,
      rateClock: 0,
      rateSteps: 0,
      fuel: 256,
      afterwards: undefined,
    };
    return running;
  }

  /** Statistics of a batch, and the fuel of the next. */
  #account(running: Running, began: number, now: number, done: number): void {
    const { words } = this.#control;
    this.#advanceTimeline(now);
    const bin = (STEP_TIMELINE >>> 2) + this.#number * TIMELINE_BINS + (this.#bin % TIMELINE_BINS);
    words[bin] = words[bin]! + done;
    this.#control.storeVcpuFloat(this.#number, VCPU_BUSY, this.#control.loadVcpuFloat(this.#number, VCPU_BUSY) + now - began);
    if (this.#lastEnd !== 0) this.#recordGap(now - this.#lastEnd);
    this.#lastEnd = now;
    if (done === running.fuel) {
      const ideal = (done * BATCH_MS) / Math.max(now - began, 0.001);
      running.fuel = Math.max(16, Math.min(FUEL_MAX, Math.round((running.fuel + ideal) / 2)));
    }
  }

  #recordGap(gap: number): void {
    if (gap > this.#control.loadVcpuFloat(this.#number, VCPU_LONGEST_GAP)) {
      this.#control.storeVcpuFloat(this.#number, VCPU_LONGEST_GAP, gap);
    }
  }

  /** Moves to the timeline's bin of now, emptying those that are entered. */
  #advanceTimeline(now: number): void {
    const bin = binOf(this.#control, now);
    if (bin === this.#bin) return;
    const { words } = this.#control;
    for (let enter = Math.max(this.#bin + 1, bin - TIMELINE_BINS + 1); enter <= bin; enter++) {
      const at = this.#number * TIMELINE_BINS + (enter % TIMELINE_BINS);
      words[(STEP_TIMELINE >>> 2) + at] = 0;
      words[(FAULT_TIMELINE >>> 2) + at] = 0;
    }
    this.#bin = bin;
    this.#core.setTimelineBin(bin);
  }

  /**
   * Acknowledges a TLB shootdown and stops if told to. Returns false if memory was replaced meanwhile, so that
   * whatever the caller was running is gone.
   */
  #safepoint(): boolean {
    if (this.#core.acknowledge() !== 0) this.#control.ring(MACHINE_ACK_BELL);
    return this.#control.load(MACHINE_STOP) === 0 || this.#stopped();
  }

  #stopped(): boolean {
    const control = this.#control;
    const began = hostNow();
    this.#advanceTimeline(began);
    let bell = control.load(MACHINE_COMMAND_BELL);
    control.storeVcpu(this.#number, VCPU_STATE, VCPU_STATE_STOPPED);
    control.ring(MACHINE_ACK_BELL);
    if (control.load(MACHINE_STOP) === 0 && control.load(MACHINE_COMMAND_BELL) === bell) {
      // The stop was given up before this vCPU got here, and its bell has rung.
      control.storeVcpu(this.#number, VCPU_STATE, VCPU_STATE_RUNNING);
      return true;
    }
    while (true) {
      control.wait(MACHINE_COMMAND_BELL, bell, Infinity);
      const seen = control.load(MACHINE_COMMAND_BELL);
      if (seen === bell) continue;
      bell = seen;
      const command = control.load(MACHINE_COMMAND);
      if (command === COMMAND_GATHER) this.#core.gather();
      else if (command === COMMAND_SCATTER) this.#core.scatter();
      else if (command === COMMAND_RUN || command === COMMAND_RESTART) {
        this.#core.acknowledge(); // tracking may have tightened while all stood still
        control.storeVcpu(this.#number, VCPU_STATE, VCPU_STATE_RUNNING);
        control.ring(MACHINE_ACK_BELL);
        this.#recordGap(hostNow() - began); // felt also by who was not running at this moment
        if (command === COMMAND_RUN) return true;
        this.#processes.clear();
        this.#slot = -1;
        this.#lastEnd = 0;
        return false;
      }
      control.storeVcpu(this.#number, VCPU_COMMAND_DONE, bell);
      control.ring(MACHINE_ACK_BELL);
    }
  }
}
