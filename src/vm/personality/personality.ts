/** What a personality is: what a process's system calls mean, apart from the engine that executes its steps. */
import type { Leave } from "../tasks/wait.js";

export interface Personality<Task> {
  /**
   * Does what a process asked for in its last step, before the next safepoint: step and call are one.
   *
   * @returns how the process leaves its vCPU; undefined if it goes on
   */
  trap(task: Task): Leave | undefined;
}
