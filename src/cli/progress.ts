/**
 * Progress of something long, on stderr: a bar on a terminal, elsewhere a plain line, at most one a second.
 */
import process from "node:process";
import { Presets, SingleBar } from "cli-progress";
import { formatMs } from "../stats/format.js";

export interface ProgressStep {
  /** What is being done; a new one begins a new bar, and its rate is measured anew. */
  label: string;
  done: number;
  total: number;
  /** Bytes that one of `total` stands for; the rate is shown when given. */
  unitBytes?: number;
}

export interface ProgressDisplay {
  update(step: ProgressStep): void;
  /** Leaves nothing on the terminal. */
  stop(): void;
}

/** Shows how many bytes of something are done. */
export function showBytes(progress: ProgressDisplay, label: string): (done: number, total: number) => void {
  return (done, total) => progress.update({ label, done, total, unitBytes: 1 });
}

const LINE_MS = 1000;
/** Rates over less than this are noise. */
const RATE_MS = 200;

export function createProgress(): ProgressDisplay {
  return process.stderr.isTTY ? new Bar() : new Lines();
}

/** Speed and time left since a label began. */
class Meter {
  #label = "";
  #began = 0;
  #doneAtBeginning = 0;

  /** True if this step is the first of a label. */
  begins({ label, done }: ProgressStep): boolean {
    if (label === this.#label) return false;
    this.#label = label;
    this.#began = performance.now();
    this.#doneAtBeginning = done;
    return true;
  }

  describe({ done, total, unitBytes }: ProgressStep): string {
    const elapsed = performance.now() - this.#began;
    const progress = done - this.#doneAtBeginning;
    if (elapsed < RATE_MS || progress <= 0) return "";
    const rate = unitBytes === undefined ? "" : `${((progress * unitBytes) / elapsed / 1e6).toFixed(2)} GB/s, `;
    return `${rate}${formatMs(((total - done) / progress) * elapsed)} left`;
  }
}

class Bar implements ProgressDisplay {
  readonly #meter = new Meter();
  #bar: SingleBar | undefined;

  update(step: ProgressStep): void {
    const payload = { label: step.label, detail: "" };
    if (this.#meter.begins(step)) {
      this.stop();
      const columns = process.stderr.columns ?? 80;
      this.#bar = new SingleBar(
        {
          format: "{label} {bar} {percentage} % {detail}",
          barsize: Math.max(5, Math.min(40, columns - step.label.length - 36)),
          stream: process.stderr,
          clearOnComplete: true,
          // Switched off, wrapping would stay off in the terminal of a command that is killed. What is too long is cut.
          linewrap: true,
          // Signals are handled where what they cancel is known.
          gracefulExit: false,
        },
        Presets.shades_classic,
      );
      this.#bar.start(step.total, step.done, payload);
      return;
    }
    this.#bar?.update(step.done, { ...payload, detail: this.#meter.describe(step) });
  }

  stop(): void {
    this.#bar?.stop();
    this.#bar = undefined;
  }
}

class Lines implements ProgressDisplay {
  readonly #meter = new Meter();
  #last = performance.now();

  update(step: ProgressStep): void {
    this.#meter.begins(step);
    const now = performance.now();
    if (now - this.#last < LINE_MS) return;
    this.#last = now;
    const percent = step.total === 0 ? 100 : Math.floor((100 * step.done) / step.total);
    const detail = this.#meter.describe(step);
    process.stderr.write(`${step.label}: ${percent} %${detail === "" ? "" : `, ${detail}`}\n`);
  }

  stop(): void {}
}
