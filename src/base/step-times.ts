/** When the steps of a save or a resume ended: host times, ms. The story notes them; the report makes durations of them. */
import { hostNow } from "./control.js";
import { HibernaculumError } from "./errors.js";

export class StepTimes<Step extends string> {
  readonly #steps: readonly Step[];
  readonly #at = new Map<Step, number>();

  /** @param steps - all of them, in their order; the first is the beginning, which is now */
  constructor(steps: readonly [Step, ...Step[]]) {
    this.#steps = steps;
    this.ended(steps[0]);
  }

  ended(step: Step, at: number = hostNow()): void {
    this.#at.set(step, at);
  }

  at(step: Step): number {
    const time = this.#at.get(step);
    if (time === undefined) throw new HibernaculumError("HIB_INTERNAL", `the time of "${step}" was not noted`);
    return time;
  }

  /** The times of all steps, as plain data. One that was not taken ended when the one before it did. */
  all(): Record<Step, number> {
    let before = this.at(this.#steps[0]!);
    return Object.fromEntries(this.#steps.map((step) => [step, (before = this.#at.get(step) ?? before)])) as Record<Step, number>;
  }
}
