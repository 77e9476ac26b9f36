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
  MACHINE_ACK_BELL,
  MACHINE_COLLECT,
  MACHINE_COMMAND,
  MACHINE_COMMAND_BELL,
  MACHINE_DOORBELL,
  MACHINE_POWER_OFF,
  MACHINE_STOP,
  MACHINE_THROTTLE,
  VCPU_COLLECTED,
  VCPU_COMMAND_DONE,
  VCPU_LEFT,
  VCPU_SLOT,
  VCPU_STATE,
  VCPU_STATE_OFF,
  VCPU_STATE_RUNNING,
  VCPU_STATE_STOPPED,
  VCPU_THREAD,
  VCPU_TRIM,
} from "../../base/layout.js";
import { collectGarbage } from "../../base/garbage.js";
import { thisThread } from "../../base/host-process.js";
import type { Pfn } from "../../base/memory.js";
import type { SharedMemory } from "../../base/wasm.js";
import { GuestFault } from "../memory/address-space.js";
import { type Core, instantiateCore } from "../memory/core.js";
import { Kernel } from "../kernel.js";
import { PROCESS_WAKE, processAddress } from "../memory/kernel-layout.js";
import type { Personality } from "../personality/personality.js";
import { readProcess, storeRunning } from "../tasks/process.js";
import { SIGABRT, SIGBUS, type Signals, SIGSEGV } from "../tasks/signals.js";
import type { Leave } from "../tasks/wait.js";
import type { Engine, Task } from "./engine.js";
import { Pace } from "./pace.js";
import { Recorder } from "./recorder.js";

/** How long a process keeps its vCPU while others wait, ms. */
const SLICE_MS = 2;
/** How long a process rests whose next step cannot be taken now, ms. */
const STUCK_MS = 1;
/** One that a save makes slower sleeps for so long after a batch, at most. */
const THROTTLE_MAX_MS = 20;
/** Longest sleep of an idle vCPU, ms. */
const IDLE_MS = 50;

export interface VcpuOptions {
  memory: SharedMemory;
  /** 0 to MAX_VCPUS - 1. */
  number: number;
  /** Places a missing frame, after a lazy resume. */
  bringIn?: (frame: Pfn, core: Core) => void;
}

export class Vcpu<T extends Task> {
  readonly #number: number;
  readonly #core: Core;
  readonly #kernel: Kernel;
  readonly #control: Control;
  readonly #engine: Engine<T>;
  readonly #personality: Personality<T>;
  readonly #recorder: Recorder;
  /** By slot. */
  readonly #paces = new Map<number, Pace>();
  #slot = -1;
  /** MACHINE_COLLECT as of the last collection. */
  #collected = 0;
  /** Address of the page fault that is looked at, or could not be resolved; else 0. */
  #faultAddress = 0;

  /** @param compose - what runs the processes of this vCPU's kernel, and what their calls mean */
  constructor(
    { memory, number, bringIn }: VcpuOptions,
    compose: (kernel: Kernel) => { engine: Engine<T>; personality: Personality<T> },
  ) {
    this.#number = number;
    this.#core = instantiateCore(memory, {
      pageFault: (address, access) => {
        this.#faultAddress = address >>> 0;
        this.#control.locked(() => this.#kernel.space(this.#slot).fault(address >>> 0, access));
        this.#faultAddress = 0;
      },
      ...(bringIn === undefined ? {} : { missing: (frame: Pfn) => bringIn(frame >>> 0, this.#core) }),
      now: () => performance.now(),
    });
    this.#core.attach(number);
    this.#kernel = new Kernel(memory, this.#core, number);
    this.#control = this.#kernel.control;
    this.#recorder = new Recorder(this.#control, this.#core, number);
    const { engine, personality } = compose(this.#kernel);
    this.#engine = engine;
    this.#personality = personality;
  }

  /** Runs until the machine is powered off. Blocks the thread. */
  run(): void {
    this.#control.storeVcpu(this.#number, VCPU_THREAD, thisThread());
    this.#control.storeVcpu(this.#number, VCPU_SLOT, -1);
    this.#control.storeVcpu(this.#number, VCPU_STATE, VCPU_STATE_RUNNING);
    try {
      this.#runProcesses();
    } catch (error) {
      this.#control.lose(this.#number); // nobody is to wait for it until its thread has ended
      throw error;
    }
    this.#control.storeVcpu(this.#number, VCPU_STATE, VCPU_STATE_OFF);
    this.#control.ring(MACHINE_ACK_BELL);
  }

  #runProcesses(): void {
    while (this.#control.load(MACHINE_POWER_OFF) === 0) {
      const doorbell = this.#control.load(MACHINE_DOORBELL);
      if (!this.#safepoint()) continue;
      this.#slot = this.#kernel.turns.pick(this.#number);
      this.#control.storeVcpu(this.#number, VCPU_SLOT, this.#slot);
      if (this.#slot >= 0) {
        const began = hostNow();
        const leave = this.#runSlice(this.#slot);
        this.#core.deactivate();
        if (leave !== undefined) this.#kernel.turns.putBack(this.#slot, hostNow() - began, leave);
        this.#slot = -1;
      } else {
        this.#control.wait(MACHINE_DOORBELL, doorbell, this.#kernel.scheduler.untilWake(IDLE_MS));
        this.#recorder.idle();
      }
    }
  }

  /**
   * Runs a process until its slice ends, it sleeps or waits, or it fails, and returns how to put it back; undefined if
   * memory was replaced under it, so that there is nothing to put back.
   */
  #runSlice(slot: number): Leave | undefined {
    if (this.#kernel.lifecycle.goOn(slot)) return { do: "ready" };
    let task: T;
    try {
      task = this.#engine.load(slot);
    } catch (error) {
      return { do: "fail", reason: error instanceof Error ? error.message : String(error), status: SIGABRT }; // no such program here
    }
    const pace = this.#paceOf(task);
    this.#core.activate(slot, readProcess(this.#kernel.memory, slot)!.root);
    const end = hostNow() + SLICE_MS;
    while (true) {
      const interrupted = this.#deliver(task);
      if (interrupted !== undefined) return interrupted;
      const fuel = pace.fuel(() => this.#control.guestNow());
      if (fuel < 1) return this.#rest();
      const began = hostNow();
      const faults = this.#core.faultsTaken();
      const { steps, cause } = this.#engine.run(task, fuel);
      if (typeof cause === "object") {
        const failed = this.#catch(task, cause.failed);
        if (failed !== undefined) return failed;
      }
      const now = hostNow();
      this.#recorder.batch(began, now, steps);
      pace.learn(steps, now - began);
      if (cause === "call") {
        const left = this.#personality.trap(task);
        if (left !== undefined) return left;
      }
      if (cause === "stuck") return this.#rest();
      const throttle_us = this.#control.load(MACHINE_THROTTLE);
      if (throttle_us !== 0 && this.#core.faultsTaken() !== faults)
        return this.#sleep(Math.min(THROTTLE_MAX_MS, ((this.#core.faultsTaken() - faults) * throttle_us) / 1000));
      if (!this.#safepoint()) return undefined;
      if (now >= end || this.#control.load(MACHINE_POWER_OFF) !== 0) return { do: "ready" };
    }
  }

  #paceOf(task: T): Pace {
    let pace = this.#paces.get(task.slot);
    if (pace?.task !== task) {
      pace = new Pace(task, this.#control.guestNow());
      this.#paces.set(task.slot, pace);
    }
    return pace;
  }

  #rest(): Leave {
    return this.#sleep(STUCK_MS);
  }

  #sleep(ms: number): Leave {
    return { do: "sleep", until: this.#control.guestNow() + ms };
  }

  /**
   * Delivers the signals of a process, between two steps. Returns how to put it back if it does not go on: it ends, stops, or
   * sleeps and was not to handle anything.
   */
  #deliver(task: T): Leave | undefined {
    const { memory, signals } = this.#kernel;
    const at = processAddress(memory, task.slot);
    for (let signal = signals.take(at); signal !== undefined; signal = signals.take(at)) {
      if (signal.do === "end") return { do: "exit", status: signal.signal };
      if (signal.do === "stop") return { do: "stop" };
      const failed = this.#enter(task, signal);
      if (failed !== undefined) return failed;
    }
    const until = memory.loadFloat64(at + PROCESS_WAKE);
    return until > 0 ? { do: "sleep", until } : undefined;
  }

  #enter(task: T, call: Parameters<Signals["enter"]>[3]): Leave | undefined {
    const { memory, signals } = this.#kernel;
    try {
      signals.enter(processAddress(memory, task.slot), this.#core, task.registers, call);
    } catch (error) {
      if (!(error instanceof GuestFault)) throw error;
      return { do: "fail", reason: `no room on its stack to handle signal ${call.signal}: ${error.message}`, status: SIGSEGV };
    }
    storeRunning(memory, task);
    return undefined;
  }

  /**
   * A step that could not be taken: the process handles SIGSEGV or SIGBUS, with its registers as the step left them, or fails. What it did in this
   * batch before it is not counted.
   */
  #catch(task: T, error: Error): Leave | undefined {
    const { memory, signals } = this.#kernel;
    const address = this.#faultAddress;
    this.#faultAddress = 0;
    const signal = error instanceof GuestFault ? (error.kind === "no page" ? SIGBUS : SIGSEGV) : undefined;
    const handler = signal === undefined ? undefined : signals.catcher(processAddress(memory, task.slot), signal);
    if (signal === undefined || handler === undefined) {
      this.#engine.drop(task);
      return { do: "fail", reason: error.message, status: signal ?? SIGABRT };
    }
    return this.#enter(task, { signal, handler, value: address });
  }

  /**
   * Acknowledges a TLB shootdown and stops if told to. Returns false if memory was replaced meanwhile, so that
   * whatever the caller was running is gone.
   */
  #safepoint(): boolean {
    if (this.#control.loadVcpu(this.#number, VCPU_TRIM) !== 0) this.#kernel.turns.settle(this.#slot);
    if (this.#core.acknowledge() !== 0) this.#control.ring(MACHINE_ACK_BELL);
    if (this.#control.load(MACHINE_COLLECT) !== this.#collected) this.#collect();
    return this.#control.load(MACHINE_STOP) === 0 || this.#stopped();
  }

  /** A stop is near: what it would have to wait for is done before. */
  #collect(): void {
    this.#collected = this.#control.load(MACHINE_COLLECT);
    collectGarbage();
    this.#control.storeVcpu(this.#number, VCPU_COLLECTED, this.#collected);
    this.#control.ring(MACHINE_ACK_BELL);
  }

  #stopped(): boolean {
    const control = this.#control;
    const began = hostNow();
    this.#recorder.advance(began);
    let bell = control.load(MACHINE_COMMAND_BELL);
    let restart = false;
    this.#announceStop();
    control.ring(MACHINE_ACK_BELL);
    // If the stop was given up before this vCPU got here, its bell has rung.
    if (control.load(MACHINE_STOP) === 0 && control.load(MACHINE_COMMAND_BELL) === bell && this.#leaveStop()) return true;
    while (true) {
      control.wait(MACHINE_COMMAND_BELL, bell, Infinity);
      const seen = control.load(MACHINE_COMMAND_BELL);
      if (seen === bell) continue;
      bell = seen;
      const command = control.load(MACHINE_COMMAND);
      if (command === COMMAND_GATHER) this.#core.gather();
      else if (command === COMMAND_SCATTER) this.#core.scatter();
      else if (command === COMMAND_RUN || command === COMMAND_RESTART) {
        restart ||= command === COMMAND_RESTART;
        if (!this.#leaveStop()) continue;
        this.#recorder.gap(hostNow() - began); // processes that were not running at this moment felt it, too
        if (!restart) return true;
        this.#engine.clear();
        this.#paces.clear();
        this.#slot = -1;
        this.#recorder.idle();
        return false;
      }
      control.storeVcpu(this.#number, VCPU_COMMAND_DONE, bell);
      control.ring(MACHINE_ACK_BELL);
    }
  }

  /**
   * Says that it runs, and only then looks whether it may: a thread that tells it to stop, or tightens tracking, after a stop that was
   * given up, may have seen it stopped still and not wait for it. Returns false if it is to stay, for the next ring of the bell.
   */
  #leaveStop(): boolean {
    const control = this.#control;
    control.storeVcpuFloat(this.#number, VCPU_LEFT, hostNow());
    control.storeVcpu(this.#number, VCPU_STATE, VCPU_STATE_RUNNING);
    this.#core.acknowledge();
    const leaves = control.load(MACHINE_STOP) === 0;
    if (!leaves) this.#announceStop();
    control.ring(MACHINE_ACK_BELL);
    return leaves;
  }

  /** Whoever cuts a file tells only vCPUs that run, under the lock: what this one was told before, it has done when it is stopped. */
  #announceStop(): void {
    this.#kernel.turns.settle(this.#slot, () => this.#control.storeVcpu(this.#number, VCPU_STATE, VCPU_STATE_STOPPED));
  }
}
