/**
 * How long a machine's stop will take: what every stop takes, and what a frame's copy takes. Both are learned from the stops of the same
 * machine, the last one counting half.
 */
import type { Machine } from "../machine.js";
import { COPY_FRAMES_PER_MS } from "../save-options.js";

/** Before anything is known: a handshake, the devices and going on. */
const FIRST_MS = 2;
/** A copy of fewer frames says little about how long one takes. */
const COPY_LEAST = 500;

export class PausePredictions {
  #fixed_ms = FIRST_MS;
  #frame_ms = 1 / COPY_FRAMES_PER_MS;

  /** With a copy of so many frames, ms. */
  pause(frames: number): number {
    return this.#fixed_ms + frames * this.#frame_ms;
  }

  /** How many frames can be copied in a pause, at least some of which is left for them. */
  framesWithin(pause_ms: number): number {
    return Math.floor(Math.max(0, pause_ms - this.#fixed_ms) / this.#frame_ms);
  }

  learn(frames: number, { total_ms, copy_ms }: { total_ms: number; copy_ms: number }): void {
    if (frames >= COPY_LEAST) this.#frame_ms = (this.#frame_ms + copy_ms / frames) / 2;
    this.#fixed_ms = (this.#fixed_ms + total_ms - (frames > 0 ? copy_ms : 0)) / 2;
  }
}

const known = new WeakMap<Machine, PausePredictions>();

/** What is known of a machine's stops. */
export function predictionsOf(machine: Machine): PausePredictions {
  let predictions = known.get(machine);
  if (predictions === undefined) known.set(machine, (predictions = new PausePredictions()));
  return predictions;
}
