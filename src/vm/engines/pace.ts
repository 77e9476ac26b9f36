/** How fast a process may go on its vCPU: the fuel of its next batch, from how long batches take and from its rate. */
import type { Task } from "./engine.js";

/** What a batch aims at, ms: a stop request is seen after at most about this long. */
const BATCH_MS = 0.02;
const FUEL_FIRST = 256;
const FUEL_MIN = 16;
const FUEL_MAX = 1 << 14;
/** Backlog that a rate-limited process may catch up after it was held up, ms. */
const BACKLOG_MS = 50;

export class Pace {
  readonly task: Task;
  #fuel = FUEL_FIRST;
  /** Steps that had been completed at a time: the rate counts from there. */
  #clock: number;
  #steps: number;

  /** @param now - guest clock, ms */
  constructor(task: Task, now: number) {
    this.task = task;
    this.#clock = now;
    this.#steps = task.steps;
  }

  /** Steps that the next batch may have; below 1 if the process has to wait for its rate. */
  fuel(guestNow: () => number): number {
    return this.task.rate > 0 ? Math.min(this.#fuel, this.#allowance(guestNow())) : this.#fuel;
  }

  #allowance(now: number): number {
    const { rate, steps } = this.task;
    const due = () => this.#steps + ((now - this.#clock) * rate) / 1000;
    if (due() - steps > (rate * BACKLOG_MS) / 1000) {
      this.#clock = now - BACKLOG_MS;
      this.#steps = steps;
    }
    return Math.floor(due() - steps);
  }

  /** A batch has taken so many steps and so long. */
  learn(steps: number, ms: number): void {
    if (steps !== this.#fuel) return;
    const ideal = (steps * BATCH_MS) / Math.max(ms, 0.001);
    this.#fuel = Math.max(FUEL_MIN, Math.min(FUEL_MAX, Math.round((this.#fuel + ideal) / 2)));
  }
}
