/**
 * Allocates and frees: each step draws a slot of the heap area; an empty one gets a block of 2^order frames, a full one
 * is checked and freed. The buddy allocator splits and joins, and frames change owner, while the machine is saved.
 *
 * What must hold: the slots' table in the one data page says what is mapped. A record is two words, (0, 0) if empty:
 *
 *     word 0   bits 0-3: order + 1; bits 4-31: of a hash of slot and word 1, so that a damaged record is noticed
 *     word 1   low word of the step that allocated the block, from which its pattern follows
 *
 * If there is no memory the step ends before it has stored anything.
 */
import { hex } from "../../../../base/hex.js";
import { FRAME_BYTES } from "../../../../base/layout.js";
import { DATA_BASE, HEAP_BASE, HEAP_PAGES_MAX, SelfCheckError, type UserMemory } from "../program.js";
import { defineProgram, integer, type Program, rate, seed } from "./options.js";
import { hash, keyOf, lowWord, mix } from "./random.js";
import { type Outcome, StateProgram, type Step } from "./states.js";

const MAX_ORDER = 8;
/** However large the blocks are, the slots fit the heap area. */
const MAX_SLOTS = HEAP_PAGES_MAX >> MAX_ORDER;
const ORDER_MASK = 15;

/** Bytes between the words of the pattern: four in each page, the last one at its end. */
const PATTERN_STRIDE = 1364;

class Heap extends StateProgram {
  override readonly stackPages = 0;
  readonly #slots: number;
  readonly #maxOrder: number;
  readonly #key: number;

  constructor(options: { slots: number; maxorder: number; seed: number; rate: number }) {
    super(options);
    this.#slots = options.slots;
    this.#maxOrder = options.maxorder;
    this.#key = keyOf(options.seed);
  }

  protected override step(_state: number, { memory, system, steps }: Step): Outcome {
    const key = this.#key;
    const step = lowWord(steps);
    const draw = hash(key, step);
    const slot = ((draw >>> 16) * this.#slots) >>> 16;
    const record = DATA_BASE + slot * 8;
    const block = HEAP_BASE + slot * (FRAME_BYTES << this.#maxOrder);
    const word = memory.load32(record) | 0;
    const birth = memory.load32(record + 4) | 0;

    if ((word | birth) === 0) {
      const order = ((draw & 0xffff) * (this.#maxOrder + 1)) >>> 16;
      if (!system.map(block, order)) return "waits";
      fill(memory, block, order, mix(step ^ key));
      memory.store64(record, recordWord(order, slot, step, key), step);
      return "done";
    }
    const order = (word & ORDER_MASK) - 1;
    if (order < 0 || order > this.#maxOrder || word !== recordWord(order, slot, birth, key)) {
      throw new SelfCheckError(`heap: record of slot ${slot} at ${hex(record)} is (${hex(word)}, ${hex(birth)})`);
    }
    check(memory, block, order, mix(birth ^ key));
    system.unmap(block, order);
    memory.store64(record, 0, 0);
    return "done";
  }
}

function recordWord(order: number, slot: number, birth: number, key: number): number {
  return (mix(birth ^ Math.imul(slot + 1, 0x9e3779b1) ^ key) & ~ORDER_MASK) | (order + 1);
}

function fill(memory: UserMemory, block: number, order: number, pattern: number): void {
  const end = block + (FRAME_BYTES << order);
  for (let page = block; page < end; page += FRAME_BYTES) {
    for (let at = page; at < page + FRAME_BYTES; at += PATTERN_STRIDE) memory.store32(at | 0, mix(at ^ pattern));
  }
}

function check(memory: UserMemory, block: number, order: number, pattern: number): void {
  const end = block + (FRAME_BYTES << order);
  for (let page = block; page < end; page += FRAME_BYTES) {
    for (let at = page; at < page + FRAME_BYTES; at += PATTERN_STRIDE) {
      const found = memory.load32(at | 0) | 0;
      if (found === mix(at ^ pattern)) continue;
      throw new SelfCheckError(`heap: word at ${hex(at)} is ${hex(found)}, expected ${hex(mix(at ^ pattern))}`);
    }
  }
}

export const heap: Program = defineProgram({
  name: "heap",
  summary: "allocates and frees blocks of memory; checks a block's pattern before it frees it",
  options: {
    slots: integer({ min: 1, max: MAX_SLOTS, default: 64, help: "most blocks at a time" }),
    maxorder: integer({ min: 0, max: MAX_ORDER, default: 4, help: "largest block: 2^maxorder pages" }),
    seed,
    rate,
  },
  create: (options) => new Heap(options),
});
