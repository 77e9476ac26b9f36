/**
 * Maps, protects and unmaps: each step draws a slot of 4 MiB of addresses and does something to the mapping there, or makes one.
 * Before pages go their pattern is checked.
 *
 * What must hold: the record of a slot, four words of the data area, says what is there:
 *
 *     word 0   pages, 0 for an empty slot
 *     word 1   permissions (PTE bits)
 *     word 2   low word of the step that wrote the pages, from which their pattern follows
 *     word 3   a hash of the others, so that a damaged record is noticed
 *
 * A call that finds no memory has changed nothing, and neither has its step.
 */
import { FRAME_BYTES, PTE_R, PTE_W } from "../../../../base/layout.js";
import { DATA_BASE, SelfCheckError } from "../program.js";
import { defineProgram, integer, type Program, rate, seed } from "./options.js";
import { hash, keyOf, lowWord, mix } from "./random.js";
import { type Outcome, StateProgram, type Step } from "./states.js";

const SLOTS_BASE = 0x4000_0000;
const SLOT_BYTES = 4 * 2 ** 20;
const RECORD_BYTES = 16;
const PERMISSIONS = [0, PTE_R, PTE_R | PTE_W];

interface Slot {
  record: number;
  at: number;
  pages: number;
  flags: number;
  birth: number;
}

class Mapper extends StateProgram {
  override readonly unpredictable = "what it does depends on other processes and on memory; it checks itself";
  override readonly dataPages = 1;
  override readonly stackPages = 0;
  readonly #slots: number;
  readonly #maxPages: number;
  readonly #key: number;

  constructor(options: { slots: number; maxpages: number; seed: number; rate: number }) {
    super(options);
    this.#slots = options.slots;
    this.#maxPages = options.maxpages;
    this.#key = keyOf(options.seed);
  }

  protected override step(_state: number, step: Step): Outcome {
    this.#change(step, lowWord(step.steps));
    return "done";
  }

  #change(context: Step, step: number): void {
    const calls = context.system;
    const draw = hash(this.#key, step);
    const slot = this.#read(context, ((draw >>> 16) * this.#slots) >>> 16);
    const amount = hash(this.#key ^ 0x5bd1e995, step) >>> 1;
    if (slot.pages === 0) {
      const pages = 1 + (amount % this.#maxPages);
      if (done(calls.mmap({ address: slot.at, pages, flags: PTE_R | PTE_W }))) this.#fill(context, slot, pages, step);
      return;
    }
    switch (draw & 7) {
      case 0:
      case 1:
        this.#check(context, slot);
        if (done(calls.munmap(slot.at, slot.pages))) this.#note(context, slot, { pages: 0 });
        break;
      case 2: {
        const left = amount % slot.pages;
        this.#check(context, slot);
        if (done(calls.munmap(slot.at + left * FRAME_BYTES, slot.pages - left))) this.#note(context, slot, { pages: left });
        break;
      }
      case 3:
        if (slot.flags !== 0 && calls.madviseHuge(slot.at, slot.pages) < 0) throw new SelfCheckError("mapper: madvise failed");
        break;
      case 4: {
        // A page of its own for a while, and all as before.
        const page = slot.at + (amount % slot.pages) * FRAME_BYTES;
        if (done(calls.mprotect(page, 1, 0))) while (!done(calls.mprotect(page, 1, slot.flags)));
        break;
      }
      case 5:
        if ((slot.flags & PTE_W) !== 0) this.#fill(context, slot, slot.pages, step);
        break;
      default: {
        const flags = PERMISSIONS[amount % PERMISSIONS.length]!;
        this.#check(context, slot);
        if (done(calls.mprotect(slot.at, slot.pages, flags))) this.#note(context, slot, { flags });
      }
    }
  }

  #read({ memory }: Step, number: number): Slot {
    const record = DATA_BASE + number * RECORD_BYTES;
    const [pages, flags, birth, check] = [0, 4, 8, 12].map((at) => memory.load32(record + at) | 0);
    const empty = (pages! | flags! | birth! | check!) === 0;
    if (!empty && check !== this.#hash(record, pages!, flags!, birth!))
      throw new SelfCheckError(`mapper: the record of slot ${number} is damaged`);
    return { record, at: SLOTS_BASE + number * SLOT_BYTES, pages: pages!, flags: flags!, birth: birth! };
  }

  #note({ memory }: Step, slot: Slot, change: Partial<Slot>): void {
    const { record, pages, flags, birth } = { ...slot, ...change };
    memory.store64(record, pages, flags);
    memory.store64(record + 8, birth, this.#hash(record, pages, flags, birth));
  }

  #hash(record: number, pages: number, flags: number, birth: number): number {
    return mix(mix(birth ^ this.#key) ^ Math.imul(record, 0x9e3779b1) ^ ((pages << 8) | flags)) | 1;
  }

  #fill(context: Step, slot: Slot, pages: number, step: number): void {
    for (let page = 0; page < pages; page++) {
      const at = wordAt(slot, page);
      context.memory.store32(at, mix(at ^ step ^ this.#key));
    }
    this.#note(context, slot, { pages, flags: PTE_R | PTE_W, birth: step });
  }

  /** The pages hold what was written last; those that may not be read are looked at later. */
  #check({ memory }: Step, slot: Slot): void {
    if ((slot.flags & PTE_R) === 0) return;
    for (let page = 0; page < slot.pages; page++) {
      const at = wordAt(slot, page);
      const found = memory.load32(at) | 0;
      const expected = mix(at ^ slot.birth ^ this.#key);
      if (found !== expected)
        throw new SelfCheckError(`mapper: word at 0x${(at >>> 0).toString(16)} is ${found}, expected ${expected}`);
    }
  }
}

function wordAt(slot: Slot, page: number): number {
  return (slot.at + page * FRAME_BYTES + ((page * 36) & 0xffc)) | 0;
}

function done(result: number): boolean {
  return result >= 0;
}

export const mapper: Program = defineProgram({
  name: "mapper",
  summary: "maps, protects and unmaps memory at random; checks pages before they go",
  options: {
    slots: integer({ min: 1, max: 256, default: 16, help: "most mappings at a time" }),
    maxpages: integer({ min: 1, max: SLOT_BYTES / FRAME_BYTES, default: 64, help: "largest mapping, in pages of 4 KiB" }),
    seed,
    rate,
  },
  create: (options) => new Mapper(options),
});
