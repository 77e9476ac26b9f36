/**
 * Draws random words, reads clocks and the machine's generation, and compares them with what it had before.
 *
 * What must hold: no 128-bit draw is one of the last KEPT again (the pool of an image must not be used twice); the
 * generation and the monotonic clock never go back. The record of it all, in the one data page, bears a check word:
 *
 *     word 0         check word over all that follows
 *     word 1, 2      generation, low and high half
 *     word 3, 4      monotonic time, whole ms, low and high half
 *     word 5...      the last KEPT draws, four words each: step n's are at n mod KEPT
 */
import { DATA_BASE, SelfCheckError, type UserMemory } from "../program.js";
import { defineProgram, type Program, rate } from "./options.js";
import { lowWord, mix } from "./random.js";
import { type Outcome, StateProgram, type Step } from "./states.js";

const KEPT = 32;
const DRAW_WORDS = 4;
const GENERATION = 1;
const TIME = 3;
const DRAWS = 5;
const WORDS = DRAWS + KEPT * DRAW_WORDS;

class Entropy extends StateProgram {
  override readonly dataPages = 1;
  override readonly stackPages = 0;
  override readonly unpredictable = "its memory holds random words and times; it checks them itself";

  protected override step(_state: number, step: Step): Outcome {
    return draw(step);
  }
}

function draw({ memory, system, steps }: Step): Outcome {
  const drawn: number[] = [];
  while (drawn.length < DRAW_WORDS) {
    const word = system.random();
    if (word === undefined) return "waits";
    drawn.push(word | 0);
  }
  const record = Array.from({ length: WORDS }, (_, i) => memory.load32(DATA_BASE + i * 4) | 0);
  if (steps > 0 && record[0] !== checkWord(record))
    throw new SelfCheckError("entropy: its record does not agree with its check word");
  for (let kept = 0; kept < Math.min(KEPT, steps); kept++) {
    if (drawn.every((word, i) => word === record[DRAWS + kept * DRAW_WORDS + i]))
      throw new SelfCheckError("entropy: the same 128 random bits came twice");
  }
  advance(memory, record, GENERATION, system.generation(), "generation");
  advance(memory, record, TIME, Math.floor(system.monotonicTime()), "monotonic clock");
  for (const [i, word] of drawn.entries()) store(memory, record, DRAWS + (steps % KEPT) * DRAW_WORDS + i, word);
  store(memory, record, 0, checkWord(record));
  return "done";
}

/** Records a number that may only grow. */
function advance(memory: UserMemory, record: number[], at: number, now: number, what: string): void {
  const before = (record[at + 1]! >>> 0) * 2 ** 32 + (record[at]! >>> 0);
  if (now < before) throw new SelfCheckError(`entropy: the ${what} went back from ${before} to ${now}`);
  store(memory, record, at, lowWord(now));
  store(memory, record, at + 1, Math.floor(now / 2 ** 32));
}

function store(memory: UserMemory, record: number[], at: number, word: number): void {
  record[at] = word;
  memory.store32(DATA_BASE + at * 4, word);
}

function checkWord(record: readonly number[]): number {
  let check = 0;
  for (let i = 1; i < record.length; i++) check = mix((check + i) ^ record[i]!);
  return check;
}

export const entropy: Program = defineProgram({
  name: "entropy",
  summary: "draws random words and reads the clocks; none may come twice, no clock may go back",
  options: { rate },
  create: (options) => new Entropy(options),
});
