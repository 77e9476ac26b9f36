/** Is the process table such that the scheduler, signals and programs can go on from it? See views/consistency.ts. */
import { MAX_PROCESSES } from "../../base/layout.js";
import type { ReadableMemory } from "../../base/memory.js";
import * as K from "../memory/kernel-layout.js";
import { listProcesses, type Process, readRegisters } from "./process.js";

/**
 * Numbers that others are made from, and the most that they can be. Words that are compared with others and never followed are
 * left alone: channels, groups, statuses, times to wake, other registers, handlers.
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

function checkProcess(memory: ReadableMemory, { pid, slot, state, root, nice }: Process, problem: (text: string) => void): void {
  const at = K.processAddress(memory, slot);
  // Who has come to its end, or is not built yet, has no page tables; whoever runs without would run on the kernel's page.
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
}
