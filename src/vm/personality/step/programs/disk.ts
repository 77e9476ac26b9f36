/**
 * Writes sectors of the machine's disk and reads them back, with several requests in flight. An operation is three steps:
 *
 *     step 3i       wait for operation i - depth, which has the same tag and so the same page
 *     step 3i + 1   check what it left in the page; fill that with what is to be written, or zeros to be read over
 *     step 3i + 2   submit operation i
 *
 * so that a step makes one system call, and one that must wait has changed nothing. A round is: write each sector, flush,
 * read each sector.
 *
 * What must hold: every word that is written or read follows from seed, round and sector. Operations on the same sector are at least
 * `sectors` apart, and no more than that are in flight.
 */
import { hex } from "../../../../base/hex.js";
import { FRAME_BYTES } from "../../../../base/layout.js";
import { DATA_BASE, type DiskOperation, SelfCheckError, type UserMemory } from "../program.js";
import { defineProgram, integer, type Program, rate, seed } from "./options.js";
import { keyOf, lowWord, mix } from "./random.js";
import { type Outcome, StateProgram, type Step } from "./states.js";

const PAGE_WORDS = FRAME_BYTES / 4;

interface Operation {
  what: DiskOperation;
  sector: number;
  /** What the sector's words follow from; undefined of a flush, whose page is zeros. */
  pattern: number | undefined;
}

class Disk extends StateProgram {
  override readonly dataPages: number;
  override readonly stackPages = 0;
  readonly needs: { sectors: number };
  readonly #first: number;
  readonly #sectors: number;
  readonly #depth: number;
  readonly #key: number;

  constructor(options: { first: number; sectors: number; depth: number; seed: number; rate: number }) {
    super(options);
    this.#first = options.first;
    this.#sectors = options.sectors;
    this.#depth = Math.min(options.depth, options.sectors);
    this.#key = keyOf(options.seed);
    this.dataPages = this.#depth;
    this.needs = { sectors: options.first + options.sectors };
  }

  protected override step(_state: number, { memory, system, steps }: Step): Outcome {
    const number = Math.floor(steps / 3);
    const tag = number % this.#depth;
    const page = DATA_BASE + tag * FRAME_BYTES;
    const next = this.#operation(number);
    const last = number < this.#depth ? undefined : this.#operation(number - this.#depth);
    if (steps % 3 === 2) return system.submitRequest(tag, next.what, next.sector, page) ? "done" : "waits";
    if (steps % 3 === 1) {
      if (last !== undefined) check(memory, page, last);
      fill(memory, page, next.what === "write" ? next.pattern : undefined);
      return "done";
    }
    if (last === undefined) return "done";
    const status = system.awaitRequest(tag, page);
    if (status === undefined) return "waits";
    if (status !== "ok") throw new SelfCheckError(`disk: ${last.what} of sector ${last.sector}: ${status}`);
    return "done";
  }

  #operation(number: number): Operation {
    const round = Math.floor(number / (2 * this.#sectors + 1));
    const at = number % (2 * this.#sectors + 1);
    if (at === this.#sectors) return { what: "flush", sector: 0, pattern: undefined };
    const write = at < this.#sectors;
    const sector = this.#first + (write ? at : at - this.#sectors - 1);
    const pattern = mix(this.#key ^ mix(lowWord(round) ^ Math.imul(sector + 1, 0x9e3779b1)));
    return { what: write ? "write" : "read", sector, pattern };
  }
}

function word(pattern: number | undefined, i: number): number {
  return pattern === undefined ? 0 : mix(pattern + i);
}

function fill(memory: UserMemory, page: number, pattern: number | undefined): void {
  for (let i = 0; i < PAGE_WORDS; i++) memory.store32((page + i * 4) | 0, word(pattern, i));
}

function check(memory: UserMemory, page: number, { what, sector, pattern }: Operation): void {
  for (let i = 0; i < PAGE_WORDS; i++) {
    const found = memory.load32((page + i * 4) | 0) | 0;
    if (found === word(pattern, i)) continue;
    throw new SelfCheckError(
      `disk: after the ${what} of sector ${sector} word ${i} is ${hex(found)}, expected ${hex(word(pattern, i))}`,
    );
  }
}

export const disk: Program = defineProgram({
  name: "disk",
  summary: "writes sectors of the disk (--disk) and reads them back, several at a time; checks every word",
  options: {
    first: integer({ min: 0, max: 2 ** 31, default: 0, help: "its first sector of 4 KiB; no other process may use its sectors" }),
    sectors: integer({ min: 1, max: 2 ** 24, default: 64, help: "how many sectors it uses" }),
    depth: integer({ min: 1, max: 16, default: 8, help: "most requests in flight" }),
    seed,
    rate,
  },
  create: (options) => new Disk(options),
});
