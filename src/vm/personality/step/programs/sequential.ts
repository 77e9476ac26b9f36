/**
 * A sweep: step k stores 8 bytes at word k mod (pages * 512), pass after pass, as a copying collector or a backup does.
 *
 * What must hold: before the store, the word holds exactly what the previous pass stored there. A frame that is one
 * pass too old is noticed, although each of its words is well formed.
 */
import { DATA_BASE, type ProgramContext, type Runner, SelfCheckError } from "../program.js";
import { type Contents, createContents } from "./contents.js";
import { content, dataPages, defineProgram, type Program, rate, seed } from "./options.js";
import { keyOf, lowWord, mix } from "./random.js";

const WORDS_PER_PAGE = 512;

class Sequential implements Runner {
  readonly dataPages: number;
  readonly stackPages = 0;
  readonly rate: number;
  readonly initialPage: Contents;
  readonly #key: number;

  constructor(options: { pages: number; seed: number; rate: number; content: string }) {
    this.dataPages = options.pages;
    this.rate = options.rate;
    this.initialPage = createContents(options.content, options.seed);
    this.#key = keyOf(options.seed);
  }

  run(context: ProgramContext, fuel: number): number {
    const memory = context.memory;
    const key = this.#key;
    const period = this.dataPages * WORDS_PER_PAGE;
    let step = lowWord(context.steps);
    let word = (context.steps % period) | 0;
    /** Steps of this call that belong to the first pass: what they find is the initial contents. */
    const unchecked = Math.min(Math.max(period - context.steps, 0), fuel);
    for (let done = 0; done < fuel; done++) {
      const address = (DATA_BASE + (word << 3)) | 0;
      if (done >= unchecked) {
        const low = memory.load32(address) | 0;
        const high = memory.load32((address + 4) | 0) | 0;
        const previous = (step - period) | 0;
        if (low !== previous || high !== mix(previous ^ key)) throw mismatch(address, low, high, previous, key);
      }
      memory.store64(address, step, mix(step ^ key));
      step = (step + 1) | 0;
      word = (word + 1) | 0;
      if (word === period) word = 0;
    }
    return fuel;
  }
}

function mismatch(address: number, low: number, high: number, previous: number, key: number): SelfCheckError {
  const words = [address, low, high, previous, mix(previous ^ key)].map((word) => `0x${(word >>> 0).toString(16)}`);
  return new SelfCheckError(`sequential: pair at ${words[0]} is (${words[1]}, ${words[2]}), expected (${words[3]}, ${words[4]})`);
}

export const sequential: Program = defineProgram({
  name: "sequential",
  summary: "sweeps over the data area word by word; checks for what the previous pass stored",
  options: { pages: dataPages(4096), seed, rate, content },
  create: (options) => new Sequential(options),
});
