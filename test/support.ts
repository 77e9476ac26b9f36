/**
 * What the tests of a whole machine share: booting one that is gone when its test ends, draws from a printed seed, and
 * the check that every process of a machine, live or stored, is exactly what its program makes of it.
 */
import { randomInt } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import type { ExecutionContext } from "ava";
import { bit, Control } from "../src/base/control.js";
import { DIRTY_BITMAP, FRAME_BYTES, MAX_VCPUS, PTE_PPN_SHIFT } from "../src/base/layout.js";
import type { ReadableMemory } from "../src/base/memory.js";
import type { SharedMemory } from "../src/base/wasm.js";
import { WriteTracking } from "../src/cow/tracking.js";
import { save } from "../src/hibernate.js";
import { Machine, type MachineOptions } from "../src/machine.js";
import type { SaveOptions } from "../src/save-options.js";
import { checkConsistency } from "../src/vm/views/consistency.js";
import { type Core, instantiateCore } from "../src/vm/memory/core.js";
import { Kernel } from "../src/vm/kernel.js";
import { findLeaf, walkLeaves } from "../src/vm/memory/page-table.js";
import { createMemory, frameAddress } from "../src/vm/memory/physical.js";
import { listProcesses, type Process } from "../src/vm/tasks/process.js";
import { DATA_BASE } from "../src/vm/personality/step/program.js";
import { createDeviceCalls } from "../src/vm/devices/calls.js";
import type { KernelCalls } from "../src/vm/personality/step/program.js";
import { resume } from "../src/resume.js";
import { createSystemCalls } from "../src/vm/personality/step/system-calls.js";
import { checkProcess } from "../src/vm/personality/step/programs/check.js";
import { INCREMENTER_OFFSET, incrementerEdge } from "../src/vm/personality/step/programs/incrementer.js";
import { hash, keyOf } from "../src/vm/personality/step/programs/random.js";
import { Replay } from "../src/vm/personality/step/programs/replay.js";

export const MIB: number = 2 ** 20;

export const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits until something holds. A machine that never gets there fails the test; how long it takes does not matter. */
export async function until(condition: () => boolean, what: string): Promise<void> {
  for (const end = Date.now() + 60_000; !condition(); await sleep(2)) {
    if (Date.now() > end) throw new Error(`waited a minute, and still not: ${what}`);
  }
}

/** As `until`, in one turn of the event loop: for what others do while this thread gives them the time. Returns what it waited for. */
export function untilNow(look: () => number, what: string): number {
  const nobody = new Int32Array(new SharedArrayBuffer(4));
  for (const end = Date.now() + 60_000; Date.now() < end; Atomics.wait(nobody, 0, 0, 2)) {
    const found = look();
    if (found !== 0) return found;
  }
  throw new Error(`waited a minute, and still not: ${what}`);
}

/** Draws that follow from one seed: HIB_SEED, or a new one; it is printed. */
export class Draws {
  readonly #key: number;
  #next = 0;

  constructor(t: ExecutionContext) {
    const seed = Number(process.env["HIB_SEED"] ?? randomInt(2 ** 31));
    t.log(`HIB_SEED=${seed}`);
    this.#key = keyOf(seed);
  }

  /** A whole number from 0 to `limit` - 1. */
  below(limit: number): number {
    return Math.floor(((hash(this.#key, this.#next++) >>> 0) / 2 ** 32) * limit);
  }

  between(from: number, to: number): number {
    return from + this.below(to - from + 1);
  }

  of<T>(choices: readonly T[]): T {
    return choices[this.below(choices.length)]!;
  }
}

/** A directory that goes when the test ends. */
export function scratch(t: ExecutionContext): string {
  const path = mkdtempSync(join(tmpdir(), "hib-test-"));
  t.teardown(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

/** A machine that is off when the test ends. */
export async function bootMachine(t: ExecutionContext, options: Partial<MachineOptions> = {}): Promise<Machine> {
  const machine = await Machine.boot({ ramBytes: 64 * MIB, vcpus: 2, ...options });
  t.teardown(() => machine.powerOff());
  return machine;
}

/** For `bootMachine`: what consoles say of processes that failed and were reaped, so that nobody finds them in the process table. */
export function collectFailures(): { failures: string[]; onConsole(text: string): void } {
  const failures: string[] = [];
  const onConsole = (text: string) => void failures.push(...text.split("\n").filter((line) => line.includes(" failed: ")));
  return { failures, onConsole };
}

/** Runs `look` while every vCPU of a machine stands at a safepoint. */
export function whileStopped<T>(machine: Machine, look: () => T): T {
  machine.quiesce.stop();
  try {
    return look();
  } finally {
    machine.quiesce.go();
  }
}

/** Runs programs for a moment and hibernates them; returns the image's path. */
export async function hibernate(t: ExecutionContext, programs: readonly string[], options: SaveOptions = {}): Promise<string> {
  const machine = await bootMachine(t);
  for (const program of programs) machine.spawn(program);
  await until(() => machine.processes().every(({ steps }) => steps > 0), "every process has run");
  const path = join(scratch(t), "image");
  await save(machine, path, options);
  return path;
}

/** Saves a machine and returns the one that goes on: the same, or one that is booted for it and in which its image is resumed. */
export async function saveAndGoOn(
  machine: Machine,
  path: string,
  { keepRunning, boot }: { keepRunning: boolean; boot: () => Promise<Machine> },
): Promise<Machine> {
  await save(machine, path, { keepRunning, oracle: true });
  if (keepRunning) return machine;
  const next = await boot();
  await resume(next, path);
  return next;
}

/** Replays of processes by pid, to go on from when the same machine is checked again. */
export type Replays = Map<number, Replay>;

/** Everything that is wrong with a machine: its tables, and every process against its exact recomputation. */
export function findWrong(memory: ReadableMemory, replays: Replays = new Map()): string[] {
  const wrong = [...checkConsistency(memory).problems];
  const processes = listProcesses(memory);
  for (const process of processes) {
    if (process.boot || ["zombie", "ending", "embryo"].includes(process.state)) continue; // nothing of it is left, or not all is there
    let replay = replays.get(process.pid);
    if (replay === undefined) replays.set(process.pid, (replay = new Replay(process.text)));
    for (const line of checkProcess(memory, process, replay).differences) wrong.push(`${process.pid} ${process.text}: ${line}`);
    if (process.text.startsWith("incrementer") && !incrementerEdge(edgeBytes(memory, process)))
      wrong.push(`${process.pid}: no edge`);
  }
  for (const pid of replays.keys()) if (!processes.some((process) => process.pid === pid)) replays.delete(pid);
  return wrong;
}

function edgeBytes(memory: ReadableMemory, process: Process): Uint8Array {
  const leaves = [...walkLeaves(memory, process.root)].filter(({ address }) => address >= DATA_BASE);
  const page = (address: number) => (address - DATA_BASE) / FRAME_BYTES;
  const bytes = new Uint8Array(Math.max(0, ...leaves.map(({ address }) => page(address) + 1)));
  for (const { address, frame } of leaves) {
    bytes[page(address)] = memory.read(frame * FRAME_BYTES + INCREMENTER_OFFSET, 1)[0]!;
  }
  return bytes;
}

/** A control area whose vCPUs are played by the test: they acknowledge, one after another, once they are waited for. */
class HandControl extends Control {
  vcpus: readonly Core[] = [];
  /** What the condition said before any vCPU had acknowledged, and after each had. */
  readonly answers: boolean[] = [];

  override waitForVcpus(done: () => boolean): boolean {
    this.answers.splice(0, Infinity, done());
    for (const core of this.vcpus) {
      core.acknowledge();
      this.answers.push(done());
    }
    return done();
  }
}

/** A machine without threads: the test takes every step of its vCPUs itself, so that nothing is left to chance. */
export class HandMachine {
  readonly memory: SharedMemory;
  readonly control: HandControl;
  readonly kernel: Kernel;
  readonly vcpus: readonly { core: Core; kernel: Kernel }[];
  readonly tracking: WriteTracking;
  /** Called whenever a vCPU's core asks for the time. */
  onClock: () => void = () => undefined;
  readonly #slots: number[] = [];

  constructor({ ramBytes = 16 * MIB, vcpus = 1 }: { ramBytes?: number; vcpus?: number } = {}) {
    const memory = createMemory(ramBytes);
    this.memory = memory;
    this.control = new HandControl(memory);
    const coordinator = instantiateCore(memory);
    coordinator.attach(MAX_VCPUS);
    this.kernel = new Kernel(memory, coordinator);
    this.kernel.boot();
    this.vcpus = Array.from({ length: vcpus }, (_, number) => {
      const core = instantiateCore(memory, {
        pageFault: (address, access) =>
          this.control.locked(() => kernel.space(this.#slots[number]!).fault(address >>> 0, access)),
        now: () => {
          this.onClock();
          return 0;
        },
      });
      core.attach(number);
      const kernel = new Kernel(memory, core);
      return { core, kernel };
    });
    this.control.vcpus = this.vcpus.map(({ core }) => core);
    this.tracking = new WriteTracking(this.control, coordinator, vcpus);
  }

  /** Puts a process on a vCPU and gives that vCPU's core. */
  run(process: Process, vcpu = 0): Core {
    const { core } = this.vcpus[vcpu]!;
    for (const [other, slot] of this.#slots.entries())
      if (slot === process.slot && other !== vcpu) this.vcpus[other]!.core.deactivate();
    this.#slots[vcpu] = process.slot;
    core.activate(process.slot, process.root);
    return core;
  }

  /** Starts a process of `pages` data pages, full of `fill`; 0: absent, so zeros on demand. */
  spawn(pages: number, fill = 0): Process {
    return this.kernel.lifecycle.spawn("test", {
      dataPages: pages,
      stackPages: 1,
      rate: 0,
      initialPage: (_page, out) => fill !== 0 && out.fill(fill) === out,
    });
  }

  frameOf(process: Process, address: number): number {
    return this.kernel.memory.load32(findLeaf(this.kernel.memory, process.root, address)) >>> PTE_PPN_SHIFT;
  }

  isMarked(frame: number): boolean {
    return bit(this.control.words, DIRTY_BITMAP, frame) === 1;
  }

  /** A hash of every frame. */
  hashes(): number[] {
    return Array.from({ length: this.kernel.memory.frames }, (_, frame) => this.kernel.core.hashFrame(frameAddress(frame)));
  }

  /** Frames that changed since and bear no mark: what an image would have lost. */
  lostSince(hashes: readonly number[]): number[] {
    return [...this.hashes().entries()].flatMap(([frame, hash]) =>
      hash === hashes[frame] || this.isMarked(frame) ? [] : [frame],
    );
  }
}

/** Calls that wait only while a machine stops, or in pieces: not in a test that does one thing after another. */
type InOnePiece = "open" | "ftruncate" | "unlink" | "rename";
export type HandCalls = Omit<KernelCalls, InOnePiece> & {
  [Name in InOnePiece]: (...args: Parameters<KernelCalls[Name]>) => number;
};

/** The calls of a process, on a vCPU that a test has it run on. What it asks for after a step goes nowhere. */
export function callsOf(machine: HandMachine, process: Process, vcpu = 0): HandCalls {
  machine.run(process, vcpu);
  const { kernel } = machine.vcpus[vcpu]!;
  return createSystemCalls(
    kernel,
    process.slot,
    () => undefined,
    createDeviceCalls(kernel, process, () => undefined),
    () => undefined,
  ) as HandCalls;
}
