/** What a vCPU wants of whatever executes the steps of a process. */
import type { Running } from "../tasks/process.js";

/** A process on its vCPU. The object is the same for as long as the process is the same program's. */
export interface Task extends Running {
  /** Most steps a second; 0 for as many as it can. */
  readonly rate: number;
}

/** Why a batch ended: its fuel is used, or a stop is wanted; the process asked the kernel for something; its next step cannot be taken now; it failed. */
export type Cause = "fuel" | "call" | "stuck" | { failed: Error };

export interface Engine<T extends Task> {
  /** Takes up a process: registers and step count are those of the process table. Throws if no such program is known here. */
  load(slot: number): T;
  /** Takes up to `fuel` steps and says how many. Of a batch that failed none is counted. */
  run(task: T, fuel: number): { steps: number; cause: Cause };
  /** Forgets a process that has failed. */
  drop(task: T): void;
  /** Forgets all: memory was replaced. */
  clear(): void;
}
