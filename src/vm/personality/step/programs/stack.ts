/**
 * A deep recursion: pushes frames of 64 to 512 bytes down to a depth drawn for each phase, pops them all, gives the
 * pages back, and starts the next phase. Memory appears and disappears at the edge of a mapping while it is saved.
 *
 * What must hold: every word of a frame is a function of its address and the phase, and is checked when it is popped.
 * Frame sizes and depths follow from (seed, phase, frame number), so the registers are all the state:
 *
 *     x2   stack pointer; 0 at the start, for an empty stack
 *     x10  phase
 *     x11  frames on the stack
 *     x12  1 while the stack shrinks
 */
import { SelfCheckError, STACK_PAGES_MAX, STACK_TOP, type UserMemory } from "../program.js";
import { defineProgram, integer, type Program, rate, seed } from "./options.js";
import { hash, keyOf, mix } from "./random.js";
import { type Outcome, StateProgram, type Step } from "./states.js";

/** Places in the register file (low halves). */
const SP = 2 * 2;
const PHASE = 2 * 10;
const DEPTH = 2 * 11;
const SHRINKING = 2 * 12;

/** An empty stack's pointer is half a word below the top, so that at each page's end one 8-byte store crosses it. */
const EMPTY = (STACK_TOP - 4) | 0;

class Stack extends StateProgram {
  override readonly dataPages = 0;
  override readonly stackPages: number;
  readonly #key: number;

  constructor(options: { pages: number; seed: number; rate: number }) {
    super(options);
    this.stackPages = options.pages;
    this.#key = keyOf(options.seed);
  }

  protected override step(_state: number, { memory, system, registers }: Step): Outcome {
    const phase = registers[PHASE]!;
    const key = hash(this.#key, phase);
    const sp = (registers[SP] as number) === 0 ? EMPTY : (registers[SP] as number);
    const depth = registers[DEPTH]!;

    if (registers[SHRINKING] === 0) {
      const next = (sp - frameBytes(key, depth)) | 0;
      if (EMPTY - next <= this.#deepest(key)) {
        push(memory, next, sp, key);
        registers[SP] = next;
        registers[DEPTH] = depth + 1;
        return "done";
      }
    }

    const next = (sp + frameBytes(key, depth - 1)) | 0;
    check(memory, sp, next, key);
    registers[SP] = next;
    registers[DEPTH] = depth - 1;
    registers[SHRINKING] = 1;
    if (depth > 1) return "done";
    registers[SHRINKING] = 0;
    registers[PHASE] = phase + 1;
    system.shrinkStack(next >>> 0);
    return "done";
  }

  /** Most bytes on the stack in a phase: from a quarter of the pages, which always has room for a frame, to all. */
  #deepest(key: number): number {
    const room = this.stackPages * 4096 - 4;
    return Math.floor(room * (0.25 + (0.75 * (mix(key) >>> 0)) / 2 ** 32));
  }
}

/** Size of a frame: a multiple of 8 from 64 to 512. */
function frameBytes(key: number, frame: number): number {
  return 64 + (((hash(key, frame) >>> 16) * 57) >>> 16) * 8;
}

function push(memory: UserMemory, from: number, to: number, key: number): void {
  for (let address = from; address !== to; address = (address + 8) | 0) {
    memory.store64(address, mix(address ^ key), mix((address + 4) ^ key));
  }
}

function check(memory: UserMemory, from: number, to: number, key: number): void {
  for (let address = from; address !== to; address = (address + 4) | 0) {
    const found = memory.load32(address) | 0;
    if (found === mix(address ^ key)) continue;
    const words = [address, found, mix(address ^ key)].map((word) => `0x${(word >>> 0).toString(16)}`);
    throw new SelfCheckError(`stack: word at ${words[0]} is ${words[1]}, ${words[2]} was pushed`);
  }
}

export const stack: Program = defineProgram({
  name: "stack",
  summary: "grows its stack deeply and shrinks it again; checks every word it pops",
  options: {
    pages: integer({ min: 1, max: STACK_PAGES_MAX, default: 256, help: "deepest stack, in pages of 4 KiB" }),
    seed,
    rate,
  },
  create: (options) => new Stack(options),
});
