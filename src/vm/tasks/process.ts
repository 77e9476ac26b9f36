/**
 * The process table: an entry a slot, in guest memory. Readers work on live RAM and on an image.
 */
import { Contradiction } from "../../base/errors.js";
import { FRAME_BYTES, MAX_PROCESSES } from "../../base/layout.js";
import type { Pfn, PhysicalAddress, ReadableMemory } from "../../base/memory.js";
import { checkArguments, readable } from "../../base/options.js";
import {
  FLAG_BOOT,
  KERNEL_SLOTS_USED,
  processAddress,
  PROCESS_AREAS,
  PROCESS_FAILED,
  PROCESS_ZOMBIE,
  PROCESS_FAILURE,
  PROCESS_FAILURE_BYTES,
  PROCESS_FLAGS,
  PROCESS_FREE,
  PROCESS_GROUP,
  PROCESS_MASK,
  PROCESS_NICE,
  PROCESS_PARENT,
  PROCESS_PENDING,
  PROCESS_PID,
  PROCESS_RATE,
  PROCESS_REGISTERS,
  PROCESS_ROOT,
  PROCESS_STATE,
  PROCESS_STATE_NAMES,
  PROCESS_STATUS,
  PROCESS_STEPS,
  PROCESS_TEXT_BYTES,
  PROCESS_VCPU,
} from "../memory/kernel-layout.js";
import { findFrame } from "../memory/page-table.js";
import type { PhysicalMemory } from "../memory/physical.js";
import { CODE_BASE, REGISTER_WORDS } from "../memory/user-layout.js";

/** A process, as read from the table at one moment. */
export interface Process {
  slot: number;
  pid: number;
  state: (typeof PROCESS_STATE_NAMES)[number];
  root: Pfn;
  vcpu: number;
  areas: PhysicalAddress;
  /** Belongs to the boot (progress, housekeeping): a resume replaces it. */
  boot: boolean;
  steps: number;
  /** Steps a second it may run, 0 for as many as it can. */
  rate: number;
  /** Text of the program. */
  text: string;
  /** Why it failed, if it did. */
  failure: string;
  /** pid of its parent, 0 for none. */
  parent: number;
  /** What wait tells, or has told, of it: see status.ts. Of a zombie or one that failed: code << 8, or the signal that ended it. */
  status: number;
  group: number;
  nice: number;
  /** Sets of signals: sent and not delivered, and not to be delivered now. */
  pending: number;
  mask: number;
}

export function readProcess(memory: ReadableMemory, slot: number): Process | undefined {
  const at = processAddress(memory, slot);
  const state = memory.load32(at + PROCESS_STATE);
  if (state === PROCESS_FREE) return undefined;
  const flags = memory.load32(at + PROCESS_FLAGS);
  return {
    slot,
    pid: memory.load32(at + PROCESS_PID),
    state: PROCESS_STATE_NAMES[state] ?? "free",
    root: memory.load32(at + PROCESS_ROOT),
    vcpu: memory.load32(at + PROCESS_VCPU),
    areas: memory.load32(at + PROCESS_AREAS) >>> 0,
    boot: (flags & FLAG_BOOT) !== 0,
    steps: memory.loadFloat64(at + PROCESS_STEPS),
    rate: memory.loadFloat64(at + PROCESS_RATE),
    text: readText(memory, at),
    parent: memory.load32(at + PROCESS_PARENT),
    status: memory.load32(at + PROCESS_STATUS),
    group: memory.load32(at + PROCESS_GROUP),
    nice: memory.load32(at + PROCESS_NICE),
    pending: memory.load32(at + PROCESS_PENDING),
    mask: memory.load32(at + PROCESS_MASK),
    failure: readString(memory.read(at + PROCESS_FAILURE, PROCESS_FAILURE_BYTES)),
  };
}

/** All processes of a machine, in the order of their slots. */
export function listProcesses(memory: ReadableMemory): Process[] {
  checkArguments("listProcesses", { "the memory": [memory, readable] });
  const used = Math.min(memory.load32(KERNEL_SLOTS_USED), MAX_PROCESSES);
  const found = [];
  for (let slot = 0; slot < used; slot++) {
    const process = readProcess(memory, slot);
    if (process !== undefined) found.push(process);
  }
  return found;
}

/** The words of x0..x31. */
export function readRegisters(memory: ReadableMemory, slot: number): Int32Array {
  const at = processAddress(memory, slot) + PROCESS_REGISTERS;
  return Int32Array.from({ length: REGISTER_WORDS }, (_, word) => memory.load32(at + word * 4));
}

function readText(memory: ReadableMemory, at: PhysicalAddress): string {
  const root = memory.load32(at + PROCESS_ROOT);
  const frame = root === 0 ? undefined : findFrame(memory, root, CODE_BASE);
  if (frame === undefined) return "";
  const length = memory.load32(at + PROCESS_TEXT_BYTES);
  if (length < 0 || length > FRAME_BYTES) throw new Contradiction(`a program's text has ${length} bytes`);
  return new TextDecoder().decode(memory.read(frame * FRAME_BYTES, length));
}

function readString(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return new TextDecoder().decode(bytes.subarray(0, end < 0 ? bytes.length : end));
}

/** Slots of processes of which something holds, in order. */
export function findSlots(memory: ReadableMemory, which: (at: PhysicalAddress) => boolean): number[] {
  const used = memory.load32(KERNEL_SLOTS_USED);
  const found = [];
  for (let slot = 0; slot < used; slot++) {
    const at = processAddress(memory, slot);
    if (memory.load32(at + PROCESS_STATE) !== PROCESS_FREE && which(at)) found.push(slot);
  }
  return found;
}

/** Slot of a process that is alive, by its pid. */
export function slotOf(memory: ReadableMemory, pid: number): number | undefined {
  if (pid === 0) return undefined;
  return findSlots(memory, (at) => memory.load32(at + PROCESS_PID) === pid && isAlive(memory.load32(at + PROCESS_STATE)))[0];
}

/** pid of the process in a slot; undefined if it is free, or nothing is left but a status. */
export function livePid(memory: ReadableMemory, slot: number): number | undefined {
  if (slot >= memory.load32(KERNEL_SLOTS_USED)) return undefined;
  const at = processAddress(memory, slot);
  const state = memory.load32(at + PROCESS_STATE);
  return state === PROCESS_FREE || state === PROCESS_ZOMBIE ? undefined : memory.load32(at + PROCESS_PID);
}

/** Whether a process in this state can still be sent something. */
export function isAlive(state: number): boolean {
  return state !== PROCESS_FREE && state !== PROCESS_ZOMBIE && state !== PROCESS_FAILED;
}

/** Whether kill or wait by the process at `by` mean this one with a pid, a group (negative) or their own group (0). */
export function isMeant(memory: ReadableMemory, at: PhysicalAddress, pid: number, by: PhysicalAddress): boolean {
  if (pid > 0) return memory.load32(at + PROCESS_PID) === pid;
  return memory.load32(at + PROCESS_GROUP) === (pid === 0 ? memory.load32(by + PROCESS_GROUP) : -pid);
}

/** What a vCPU has of a process that it runs. */
export interface Running {
  readonly slot: number;
  /** x0 to x31, low and high halves. */
  readonly registers: Int32Array;
  /** Completed since the process began. */
  readonly steps: number;
}

/** Registers and step count go to the process table: kernel stores, tracked like any other. */
export function storeRunning(memory: PhysicalMemory, { slot, registers, steps }: Running): void {
  const at = processAddress(memory, slot);
  for (let word = 0; word < registers.length; word++) {
    const value = registers[word]!;
    if (memory.load32(at + PROCESS_REGISTERS + word * 4) !== value) memory.store32(at + PROCESS_REGISTERS + word * 4, value);
  }
  memory.storeFloat64(at + PROCESS_STEPS, steps);
}
