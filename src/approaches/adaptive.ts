/**
 * Rounds, as a live migration makes them: what was written while all of memory was streamed is protected again and streamed once more,
 * then what was written meanwhile, as long as the pause that a copy of it would take is predicted to be too long and rounds still make
 * it shorter. Then the stop: with a copy if that fits into the pause that is wanted; else with a tail, as `write-fault` has it. The image is
 * memory as of the end.
 *
 * Processes that write faster than pages are written never let a round pay. `throttle` makes just them slower, for the time of the save.
 */
import type { Save } from "./parts.js";
import { predictionsOf } from "./predicted-pause.js";

/** With `throttle`: how long processes that write sleep for each fault, us, when a round has not paid; and each time it does not, twice as long. */
const THROTTLE_FIRST_US = 50;
const THROTTLE_MAX_US = 3200;
/** A round that leaves more than this part of what there was before does not pay. */
const SHRINKS = 0.8;
const ROUNDS_MAX = 30;

export async function adaptive(save: Save): Promise<void> {
  const { keepRunning, maxPause_ms, throttle } = save.settings;
  const predictions = predictionsOf(save.machine);
  const rounds: { frames: number; predicted_pause_ms: number }[] = [];
  let throttle_us = 0;
  /** Makes processes that write slower, if that is allowed and they can be. */
  const slowWriters = (): boolean => {
    if (throttle !== true || throttle_us === THROTTLE_MAX_US) return false;
    throttle_us = throttle_us === 0 ? THROTTLE_FIRST_US : throttle_us * 2;
    save.throttle(throttle_us);
    return true;
  };
  /** Notes what is left; whether another round is worth while. */
  const isTooLong = (): boolean => {
    const frames = save.marked;
    const before = rounds.at(-1)?.frames ?? Infinity;
    const predicted_pause_ms = predictions.pause(frames);
    rounds.push({ frames, predicted_pause_ms });
    if (predicted_pause_ms <= maxPause_ms || rounds.length > ROUNDS_MAX) return false;
    return frames < before * SHRINKS || slowWriters();
  };

  await save.prepare((reserve) => reserve.growToEstimate());
  save.arm();
  save.plan();
  await save.stream();
  while (isTooLong()) await save.round();
  const copies = !keepRunning || rounds.at(-1)!.predicted_pause_ms <= maxPause_ms;
  save.stop();
  let copied = 0;
  if (copies) {
    copied = Math.min(save.list(), save.copyPlaces, predictions.framesWithin(maxPause_ms));
    save.copy(copied);
  }
  save.protect();
  save.go();
  const predicted_pause_ms = predictions.pause(copied);
  predictions.learn(copied, save.pause);
  save.noteAdaptive({ max_pause_ms: maxPause_ms, predicted_pause_ms, rounds, throttle_us, stop: copies ? "copy" : "tail" });
  await save.writeResidual();
}
