/**
 * Skewed writers: each step stores one pair of words somewhere in the data area, to few pages often and to most
 * rarely, as key-value stores and caches do (YCSB's default is Zipf with alpha = 0.99).
 *
 * What must hold: each page has one slot of 8 bytes at a place of its own, and what is in it is always a pair
 * (step, product of step, page and seed), or (0, 0) as at the start. A step reads the old pair before it stores the new
 * one, so a torn, misplaced or half-restored slot is noticed by the next step that draws its page.
 *
 *     |     page 62     |     page 63     |     page 64     |
 *     |....[slot].......|..............[sl|ot]....[slot]....|
 *
 * One page in 64 has a slot that crosses into the next page, whose own slot is never in its first 8 bytes.
 */
import type { VirtualAddress } from "../../../../base/memory.js";
import { DATA_BASE, type ProgramContext, type Runner, SelfCheckError } from "../program.js";
import { type Contents, createContents } from "./contents.js";
import { content, dataPages, decimal, defineProgram, type Program, rate, seed } from "./options.js";
import { hash, keyOf, lowWord } from "./random.js";

/** Entries of the inverse distribution, by the top 12 bits of a draw; the other 20 interpolate. */
const ENTRY_BITS = 12;
const ENTRIES = 1 << ENTRY_BITS;
const FRACTION_BITS = 32 - ENTRY_BITS;
const FRACTION_MASK = (1 << FRACTION_BITS) - 1;
const FRACTION_UNIT = 2 ** -FRACTION_BITS;

/** One page in this many has a slot that crosses into the next page. */
const CROSSING_STRIDE = 64;
const CROSSING_OFFSET = 4092;

/** With a stride of about this at most, its product with a rank is below 2^32, where `%` is one cheap instruction. */
const MAX_STRIDE = 2048;

/** Writes to pages of Zipf's distribution; alpha = 0 is the uniform one. */
export class ScatteredWriter implements Runner {
  readonly dataPages: number;
  readonly stackPages = 0;
  readonly rate: number;
  readonly #name: string;
  readonly #key: number;
  readonly #contents: Contents;
  readonly #ranks: Float64Array;
  /** Rank r is page (r * stride + shift) mod pages: hot pages are not neighbours, and are others for another seed. */
  readonly #stride: number;
  readonly #shift: number;

  constructor(name: string, options: { pages: number; alpha: number; seed: number; rate: number; content: string }) {
    this.dataPages = options.pages;
    this.rate = options.rate;
    this.#name = name;
    this.#key = keyOf(options.seed);
    this.#contents = createContents(options.content, options.seed);
    this.#ranks = inverseDistribution(options.pages, options.alpha);
    this.#stride = coprimeNear(Math.min(Math.floor(options.pages * 0.618), MAX_STRIDE), options.pages);
    this.#shift = (this.#key >>> 0) % options.pages;
  }

  initialPage(page: number, out: Uint8Array): boolean {
    if (!this.#contents(page, out)) return false;
    const offset = slotOffset(page, this.dataPages, tagOf(page, this.#key));
    out.fill(0, offset, offset + 8);
    if (page > 0 && crosses(page - 1, this.dataPages)) out.fill(0, 0, 4);
    return true;
  }

  run(context: ProgramContext, fuel: number): number {
    const memory = context.memory;
    const key = this.#key;
    const ranks = this.#ranks;
    const stride = this.#stride;
    const shift = this.#shift;
    const pages = this.dataPages;
    let step = lowWord(context.steps);
    for (let done = 0; done < fuel; done++) {
      const draw = hash(key, step);
      const below = ranks[draw >>> FRACTION_BITS]!;
      const above = ranks[(draw >>> FRACTION_BITS) + 1]!;
      const rank = (below + (above - below) * ((draw & FRACTION_MASK) * FRACTION_UNIT)) | 0;
      const page = (((Math.imul(rank, stride) + shift) >>> 0) % pages) | 0;
      const tag = tagOf(page, key);
      const address = (DATA_BASE + (page << 12) + slotOffset(page, pages, tag)) | 0;
      const low = memory.load32(address) | 0;
      const high = memory.load32((address + 4) | 0) | 0;
      if (high !== pairHigh(low, tag) && (low | high) !== 0) {
        throw mismatch(this.#name, address, low, high, pairHigh(low, tag));
      }
      memory.store64(address, step, pairHigh(step, tag));
      step = (step + 1) | 0;
    }
    return fuel;
  }
}

export const zipf: Program = defineProgram({
  name: "zipf",
  summary: "writes to few pages often and to most rarely; checks each pair before it replaces it",
  options: {
    pages: dataPages(4096),
    alpha: decimal({ min: 0, max: 2, default: 0.99, help: "skew: 0 is uniform" }),
    seed,
    rate,
    content,
  },
  create: (options) => new ScatteredWriter("zipf", options),
});

function crosses(page: number, pages: number): boolean {
  return (page & (CROSSING_STRIDE - 1)) === CROSSING_STRIDE - 1 && page !== pages - 1;
}

/** A number of the page's own: no two pages of a process have the same. */
function tagOf(page: number, key: number): number {
  return Math.imul(page ^ key, 0x7feb352d);
}

/** Where a page's slot begins: 8, 24, ... 4,088, by the tag's upper byte, or 4,092 if it crosses. */
function slotOffset(page: number, pages: number, tag: number): number {
  if (crosses(page, pages)) return CROSSING_OFFSET;
  return 8 + ((tag >>> 24) << 4);
}

/** One-to-one in either argument: a pair of which half is old, or that belongs to another page, never passes. */
function pairHigh(low: number, tag: number): number {
  return Math.imul(low ^ tag, 0x846ca68b);
}

function mismatch(name: string, address: VirtualAddress, low: number, high: number, expected: number): SelfCheckError {
  const words = [address, low, high, expected].map((word) => `0x${(word >>> 0).toString(16)}`);
  return new SelfCheckError(`${name}: pair at ${words[0]} is (${words[1]}, ${words[2]}), expected (${words[1]}, ${words[3]})`);
}

/**
 * Ranks by probability: entry i is where the distribution reaches i / ENTRIES. The sum of k^-alpha is taken as the
 * integral from 1/2 up, which is within a few per cent of it at rank 0 and better at all others.
 */
function inverseDistribution(pages: number, alpha: number): Float64Array {
  const exponent = 1 - alpha;
  const start = power(0.5, exponent);
  const end = power(pages + 0.5, exponent);
  const table = new Float64Array(ENTRIES + 1);
  for (let i = 0; i < ENTRIES; i++) {
    const share = i / ENTRIES;
    const place =
      Math.abs(exponent) < 1e-6 ? 0.5 * power(2 * pages + 1, share) : power(start + share * (end - start), 1 / exponent);
    table[i] = Math.min(Math.max(place - 0.5, 0), pages - 0.5);
  }
  table[ENTRIES] = pages;
  return table;
}

/**
 * base^exponent. The last bit of Math.pow is the host's C library's; square roots and products are exactly rounded
 * everywhere, so a machine that moves to another host goes on writing where it would have written.
 */
function power(base: number, exponent: number): number {
  if (exponent < 0) return 1 / power(base, -exponent);
  let result = 1;
  let square = base;
  for (let whole = Math.floor(exponent); whole > 0; whole = Math.floor(whole / 2)) {
    if (whole % 2 === 1) result *= square;
    square *= square;
  }
  let root = base;
  for (let rest = exponent % 1; rest > 0; rest %= 1) {
    root = Math.sqrt(root);
    rest *= 2;
    if (rest >= 1) result *= root;
  }
  return result;
}

/** The first number from `start` up that shares no factor with `pages`. */
function coprimeNear(start: number, pages: number): number {
  const divisor = (a: number, b: number): number => (b === 0 ? a : divisor(b, a % b));
  let candidate = Math.max(start, 1);
  while (divisor(candidate, pages) !== 1) candidate++;
  return candidate;
}
