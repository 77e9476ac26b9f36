/** Is the process table such that the scheduler, signals and programs can go on from it? See views/consistency.ts. */
import { MAX_PROCESSES } from "../../base/layout.js";
import type { ReadableMemory } from "../../base/memory.js";
import * as K from "../memory/kernel-layout.js";
import { isAlive, listProcesses, type Process, readRegisters } from "./process.js";
import { isMask, isSignal, SIGNAL_MAX } from "./signals.js";
import { exitCode, STATUS_CONTINUED, stopSignal } from "./status.js";

/**
 * Numbers that others are made from, and the most that they can be. Words that are compared with others and never followed are
 * left alone: channels, groups, times to wake, other registers, handlers.
 */
const NUMBERS: readonly (readonly [at: number, what: string, most: number])[] = [
  [K.PROCESS_STEPS, "steps", Number.MAX_SAFE_INTEGER],
  [K.PROCESS_RATE, "rate", Number.MAX_VALUE],
  [K.PROCESS_ALARM, "alarm", Infinity],
  [K.PROCESS_ALARM_INTERVAL, "interval of its alarm", Infinity],
];

/**
 * Checks the process table, and what the kernel page says of processes and clocks.
 *
 * @returns the processes whose memory can be looked at
 */
export function checkProcessTable(memory: ReadableMemory, problem: (text: string) => void): Process[] {
  for (const [at, what] of [
    [K.KERNEL_CLOCK, "clock"],
    [K.KERNEL_VRUNTIME, "least virtual run time"],
  ] as const) {
    const value = memory.loadFloat64(at);
    if (!(value >= 0 && value < Infinity)) problem(`the kernel's ${what} is ${value}`);
  }
  const used = memory.load32(K.KERNEL_SLOTS_USED);
  if (!(used >= 0 && used <= MAX_PROCESSES)) {
    problem(`the process table says that it has ${used} entries, and there is room for ${MAX_PROCESSES}`);
    return [];
  }
  for (let slot = 0; slot < used; slot++) {
    const state = memory.load32(K.processAddress(memory, slot) + K.PROCESS_STATE);
    if (K.PROCESS_STATE_NAMES[state] !== undefined) continue;
    problem(`the process in slot ${slot} is in state ${state}, which there is not`);
    return [];
  }
  const next = memory.load32(K.KERNEL_NEXT_PID);
  const processes = listProcesses(memory);
  const pids = new Map(processes.map((process) => [process.pid, process]));
  checkForks(memory, processes, problem);
  for (const process of processes) {
    const { pid, parent } = process;
    if (pids.get(pid) !== process) problem(`two processes have pid ${pid}`);
    if (pid < 1 || pid >= next) problem(`a process has pid ${pid}, and the next one is to have ${next}`);
    if (parent !== 0 && (parent === pid || !pids.has(parent)))
      problem(`the parent of process ${pid} is ${parent}, which is none`);
    checkProcess(memory, process, problem);
  }
  if (next < 1) problem(`the next process is to have pid ${next}`);
  return processes;
}

/** A fork that is under way has an embryo of its own, which is this process's child; and an embryo comes from a fork. */
function checkForks(memory: ReadableMemory, processes: readonly Process[], problem: (text: string) => void): void {
  const embryos = new Map(processes.filter(({ state }) => state === "embryo").map((process) => [process.slot, process]));
  for (const { pid, slot } of processes) {
    const at = K.processAddress(memory, slot);
    const child = memory.load32(at + K.PROCESS_FORK) - 1;
    const page = memory.load32(at + K.PROCESS_FORK_PAGE);
    if (child === -1) continue;
    const embryo = embryos.get(child);
    embryos.delete(child);
    if (embryo?.parent !== pid || embryo.root === 0 || !(page >= 0 && page < 2 ** 20))
      problem(`process ${pid} forks, and its child is none, or it is at page ${page}`);
  }
  for (const { pid } of embryos.values()) problem(`process ${pid} is an embryo, and nobody forks`);
}

function checkProcess(memory: ReadableMemory, process: Process, problem: (text: string) => void): void {
  const { pid, slot, state, root, nice } = process;
  const at = K.processAddress(memory, slot);
  // A process that has ended, or is not built yet, has no page tables; one that ran without them would run on the kernel's page.
  const without = state === "zombie" || state === "embryo";
  if (root === 0 && !without) problem(`process ${pid} is ${state} and has no page tables`);
  const [low, high] = readRegisters(memory, slot);
  if (low !== 0 || high !== 0) problem(`x0 of process ${pid} is not zero`);
  if (nice < -20 || nice > 19) problem(`process ${pid} has nice value ${nice}`);
  for (const [offset, what, most] of NUMBERS) {
    const value = memory.loadFloat64(at + offset);
    if (!(value >= 0 && value <= most)) problem(`the ${what} of process ${pid} is ${value}`);
  }
  if (!Number.isFinite(memory.loadFloat64(at + K.PROCESS_VRUNTIME)))
    problem(`the virtual run time of process ${pid} is no number`);
  checkSignals(memory, process, problem);
}

/** What wait would tell of it, and the masks: none may keep out SIGKILL. */
function checkSignals(memory: ReadableMemory, { pid, slot, parent, status }: Process, problem: (text: string) => void): void {
  const at = K.processAddress(memory, slot);
  const alive = isAlive(memory.load32(at + K.PROCESS_STATE));
  const known = alive
    ? status === 0 || status === STATUS_CONTINUED || isSignal(stopSignal(status) ?? 0)
    : exitCode(status) !== undefined || isSignal(status);
  if (!known) problem(`the status of process ${pid} is ${status}`);
  const flags = memory.load32(at + K.PROCESS_FLAGS);
  if ((flags & ~(K.FLAG_BOOT | K.FLAG_ORPHAN)) !== 0) problem(`process ${pid} has flags ${flags}`);
  if ((flags & K.FLAG_ORPHAN) !== 0 && parent !== 0) problem(`process ${pid} has lost its parent, and has parent ${parent}`);
  const suspended = memory.load32(at + K.PROCESS_SUSPENDED_MASK);
  if (suspended !== 0 && !((suspended & 1) === 1 && isMask(suspended & ~1)))
    problem(`the mask that process ${pid} goes back to is ${suspended}`);
  if (!isMask(memory.load32(at + K.PROCESS_MASK))) problem(`the mask of process ${pid} is ${memory.load32(at + K.PROCESS_MASK)}`);
  for (let signal = 0; signal <= SIGNAL_MAX; signal++) {
    const mask = memory.load32(at + K.PROCESS_HANDLER_MASKS + signal * 4);
    if (!isMask(mask)) problem(`the mask of process ${pid} for its handler of signal ${signal} is ${mask}`);
  }
}
