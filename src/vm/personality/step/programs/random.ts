/**
 * Counter-based randomness: what step n draws is a hash of (seed, n), so that a program keeps no generator state and
 * goes on after a resume as if nothing had happened.
 *
 * What must hold: 32-bit integer arithmetic only. It gives the same bits on every host, and stays in machine registers.
 */

/** Mixes 32 bits so that each depends on all: a bijection with 0 -> 0. Constants: Chris Wellons, "lowbias32" (2018). */
export function mix(value: number): number {
  let bits = Math.imul(value ^ (value >>> 16), 0x7feb352d);
  bits = Math.imul(bits ^ (bits >>> 15), 0x846ca68b);
  return bits ^ (bits >>> 16);
}

/** The key of a seed (0 to 2^32 - 1), to be computed once and given to `hash`. */
export function keyOf(seed: number): number {
  return mix((seed ^ 0x5bd1e995) | 0);
}

/**
 * The draw number `counter` of a key: a signed 32-bit integer. The key is also the multiplier, so that two keys' draws
 * are not the same sequence shifted. Draws repeat after 2^32.
 */
export function hash(key: number, counter: number): number {
  return mix((Math.imul(counter, key | 1) + key) | 0);
}

/** The low 32 bits of a step count, as a signed integer. */
export function lowWord(steps: number): number {
  return (steps % 4294967296) | 0;
}
