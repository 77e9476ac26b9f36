/**
 * XXH64 (seed 0) of whole frames where they lie. The library that everything else uses (src/image/checksum.ts) copies its
 * input into memory of its own first, which costs half as much again as the hash; both give the same.
 *
 * Source: the specification, doc/xxhash_spec.md of the xxHash project.
 */
import { FRAME_BYTES } from "../src/base/layout";

const PRIME_1: u64 = 0x9e3779b185ebca87;
const PRIME_2: u64 = 0xc2b2ae3d27d4eb4f;
const PRIME_3: u64 = 0x165667b19e3779f9;
const PRIME_4: u64 = 0x85ebca77c2b2ae63;

// @ts-ignore: decorator
@inline
function round(accumulator: u64, word: u64): u64 {
  return rotl<u64>(accumulator + word * PRIME_2, 31) * PRIME_1;
}

// @ts-ignore: decorator
@inline
function merge(hash: u64, accumulator: u64): u64 {
  return (hash ^ round(0, accumulator)) * PRIME_1 + PRIME_4;
}

/** The checksum of `bytes` from a byte address: a multiple of 32 bytes, and at least 32. */
export function checksum(at: usize, bytes: u32): u64 {
  let a: u64 = PRIME_1 + PRIME_2;
  let b: u64 = PRIME_2;
  let c: u64 = 0;
  let d: u64 = 0 - PRIME_1;
  // Counted, not compared with an end: that of the memory's last frame is 2^32, which is 0 here.
  for (let left = bytes; left != 0; left -= 32, at += 32) {
    a = round(a, load<u64>(at));
    b = round(b, load<u64>(at, 8));
    c = round(c, load<u64>(at, 16));
    d = round(d, load<u64>(at, 24));
  }
  let hash = rotl<u64>(a, 1) + rotl<u64>(b, 7) + rotl<u64>(c, 12) + rotl<u64>(d, 18);
  hash = merge(merge(merge(merge(hash, a), b), c), d) + bytes;
  hash = (hash ^ (hash >> 33)) * PRIME_2;
  hash = (hash ^ (hash >> 29)) * PRIME_3;
  return hash ^ (hash >> 32);
}

/** A frame's checksum as a float64 holds it, its upper 53 bits: for the oracle's tables. */
export function hashFrame(at: usize): f64 {
  return <f64>(checksum(at, FRAME_BYTES) >> 11);
}
