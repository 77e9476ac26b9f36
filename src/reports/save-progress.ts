/**
 * How far a save is: told to the embedder's `onProgress`, and to the guest's processes that show it (S3.7).
 *
 * What must hold: `onProgress` is called in turns of the event loop of its own, never within a step of the save. It may ask the
 * machine for something under the kernel lock, and between the go of a snapshot and the start of its tail's writers a vCPU may hold
 * that lock while it waits for just those writers.
 */
import { type Control, hostNow } from "../base/control.js";
import { FRAME_BYTES, MACHINE_PROGRESS, MACHINE_SAVE_PERCENT, MACHINE_STORED } from "../base/layout.js";

export type SavePhase = "prepare" | "stream" | "residual" | "publish";

export interface SaveProgress {
  phase: SavePhase;
  /** Frames done and to do in this phase. */
  done: number;
  total: number;
  /** Bytes in the blob so far. */
  stored_bytes: number;
  elapsed_ms: number;
}

/** What part of a save is done when a phase ends. */
const DONE_AFTER: Readonly<Record<SavePhase, number>> = { prepare: 0, stream: 0.9, residual: 0.98, publish: 1 };

const WATCH_MS = 20;

export class SaveProgressTeller implements Disposable {
  readonly #control: Control;
  readonly #began = hostNow();
  readonly #tell: (progress: SaveProgress) => void;
  #phase: SavePhase = "prepare";
  /** What part was done when the phase began: what does not stream has all of it before it. */
  #from = 0;
  #total = 0;
  #untold: SaveProgress[] = [];
  #telling: NodeJS.Immediate | undefined;

  /** @param tell - must not throw */
  constructor(control: Control, tell: (progress: SaveProgress) => void) {
    this.#control = control;
    this.#tell = tell;
    control.store(MACHINE_STORED, 0);
    control.store(MACHINE_PROGRESS, 0);
    this.#show(0);
  }

  /** A phase begins, of so many frames. */
  enter(phase: SavePhase, frames: number): void {
    if (phase !== this.#phase) this.#from = DONE_AFTER[this.#phase];
    this.#phase = phase;
    this.#total = frames;
    this.#control.store(MACHINE_PROGRESS, 0);
    this.tell();
  }

  /** There is more to do in this phase than was known. */
  extend(frames: number): void {
    this.#total += frames;
  }

  tell(): void {
    const done = Math.min(this.#control.load(MACHINE_PROGRESS), this.#total);
    this.#show(done / Math.max(1, this.#total));
    this.#untold.push({
      phase: this.#phase,
      done,
      total: this.#total,
      stored_bytes: this.#control.load(MACHINE_STORED) * FRAME_BYTES,
      elapsed_ms: hostNow() - this.#began,
    });
    this.#telling ??= setImmediate(() => {
      this.#telling = undefined;
      for (const progress of this.#untold.splice(0)) this.#tell(progress);
    });
  }

  /** Tells now and then until it is disposed; `meanwhile` is called before, and must not throw. */
  watch(meanwhile: () => void = () => undefined): Disposable {
    const timer = setInterval(() => {
      meanwhile();
      this.tell();
    }, WATCH_MS);
    return { [Symbol.dispose]: () => clearInterval(timer) };
  }

  #show(part: number): void {
    const percent = 1 + Math.floor(100 * (this.#from + (DONE_AFTER[this.#phase] - this.#from) * part));
    this.#control.store(MACHINE_SAVE_PERCENT, Math.max(this.#control.load(MACHINE_SAVE_PERCENT), percent));
  }

  [Symbol.dispose](): void {
    clearImmediate(this.#telling);
    this.#control.store(MACHINE_SAVE_PERCENT, 0);
  }
}
