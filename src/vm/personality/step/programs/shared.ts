/**
 * Parent and child over one shared mapping: a game of counters in turns, and at its end another one.
 *
 * A slot has two counters, in two pages: the parent's, which only it stores to, and the child's. The parent adds one to its own
 * if both are equal, the child if its own is less. So at any instant, also in an image:
 *
 *     child's <= parent's <= child's + 1        and        the sum of one's own is what one counted in a register
 *
 * Each store depends on a load of the other's counter, so this needs no order of memory beyond that.
 */
import { FRAME_BYTES, PTE_R, PTE_W } from "../../../../base/layout.js";
import { A0, SelfCheckError } from "../program.js";
import { defineProgram, integer, type Program, rate, seed } from "./options.js";
import { hash, keyOf, lowWord } from "./random.js";
import { type Outcome, StateProgram, type Step } from "./states.js";
import { describeResult } from "./results.js";

/** What the next step does. */
const MAP = 0;
const FORK = 1;
const FORKED = 2;
const PLAY = 3;
const WAIT = 4;

// Words of the registers: s2 to s5.
const STATE = 36;
const BASE = 38;
const CHILD = 40;
const COUNT = 42;

const RETRY_MS = 5;
const KILLED = 9;
/** One step in so many adds up all counters. */
const SUM_EVERY = 256;

class Shared extends StateProgram {
  override readonly unpredictable = "what it does depends on other processes and on memory; it checks itself";
  protected override readonly stateWord = STATE;
  override readonly dataPages = 0;
  override readonly stackPages = 0;
  readonly #slots: number;
  readonly #turns: number;
  readonly #key: number;

  constructor(options: { slots: number; turns: number; seed: number; rate: number }) {
    super(options);
    this.#slots = options.slots;
    this.#turns = options.turns;
    this.#key = keyOf(options.seed);
  }

  protected override step(state: number, step: Step): Outcome {
    const { registers, system } = step;
    switch (state) {
      case MAP: {
        const address = system.mmap({ pages: 2 * this.#slots, flags: PTE_R | PTE_W, shared: true });
        if (address < 0) return retry(step);
        registers[BASE] = address | 0;
        registers[STATE] = FORK;
        return "done";
      }
      case FORK:
        registers[STATE] = FORKED;
        system.fork();
        return "asked";
      case FORKED: {
        const result = registers[A0]!;
        registers[STATE] = result < 0 ? FORK : PLAY;
        if (result < 0) return retry(step);
        registers[CHILD] = result === 0 ? 1 : 0;
        registers[COUNT] = 0;
        return "done";
      }
      case PLAY: {
        const number = lowWord(step.steps);
        if (number % SUM_EVERY === 0) this.#checkSum(step, registers[CHILD]!, registers[COUNT]!);
        if (registers[COUNT]! < this.#turns) this.#play(step, hash(this.#key, number));
        else if (registers[CHILD] === 0) registers[STATE] = WAIT;
        else {
          this.#checkSum(step, 1, this.#turns);
          system.exit(this.#key & 0xff);
          return "asked";
        }
        return "done";
      }
      default:
        return this.#finish(step);
    }
  }

  #play({ memory, registers }: Step, draw: number): void {
    const slot = ((draw >>> 16) * this.#slots) >>> 16;
    const parent = this.#counter(registers, slot, 0);
    const child = this.#counter(registers, slot, 1);
    const isChild = registers[CHILD] === 1;
    // The other's is loaded once: what it may be is said of one's own, which nobody else changes.
    const [p, c] = [memory.load32(parent) >>> 0, memory.load32(child) >>> 0];
    if (p !== c && p !== c + 1) throw new SelfCheckError(`shared: slot ${slot} is at ${p} and ${c}`);
    if (isChild ? p === c : p !== c) return; // it is the other's turn
    memory.store32(isChild ? child : parent, isChild ? c + 1 : p + 1);
    registers[COUNT]!++;
  }

  /** The counters of one party add up to what it counted. */
  #checkSum({ memory, registers }: Step, party: number, expected: number): void {
    let sum = 0;
    for (let slot = 0; slot < this.#slots; slot++) sum += memory.load32(this.#counter(registers, slot, party)) >>> 0;
    if (sum !== expected) throw new SelfCheckError(`shared: party ${party} is at ${sum}, expected ${expected}`);
  }

  /** The child's end is the game's. */
  #finish(step: Step): Outcome {
    const { registers, system } = step;
    const ended = system.wait(-1);
    if (ended === undefined) return "waits";
    const status = typeof ended === "number" ? ended : ended.status;
    if (status !== KILLED) {
      if (status !== (this.#key & 0xff) << 8) throw new SelfCheckError(`shared: the child ended with ${status}`);
      for (const party of [0, 1]) this.#checkSum(step, party, this.#turns);
    }
    const result = system.munmap(registers[BASE]!, 2 * this.#slots);
    if (result < 0) throw new SelfCheckError(`shared: munmap gave ${describeResult(result)}`);
    registers[STATE] = MAP;
    return "done";
  }

  #counter(registers: Int32Array, slot: number, party: number): number {
    return (registers[BASE]! + (2 * slot + party) * FRAME_BYTES + ((slot * 20) & 0xffc)) | 0;
  }
}

function retry({ system }: Step): Outcome {
  system.sleep(RETRY_MS);
  return "asked";
}

export const shared: Program = defineProgram({
  name: "shared",
  summary: "parent and child count in turns in a mapping that both have",
  options: {
    slots: integer({ min: 1, max: 4096, default: 8, help: "pairs of counters, each on two pages" }),
    turns: integer({ min: 1, max: 1_000_000_000, default: 20_000, help: "until the child exits and another game begins" }),
    seed,
    rate,
  },
  create: (options) => new Shared(options),
});
