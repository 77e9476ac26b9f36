/**
 * Parent and child map one file. The parent fills its pages with the number of the round, cuts it, and lengthens it again; the child
 * loads from it and stores to it all the time, and takes SIGBUS where there is no page.
 *
 * A board of words in a mapping that both have says how far the parent is. So once a cut is over:
 *
 *     a page that was cut off is not there, or is 0, or has the number of a later round        the child looks
 *     what was stored to it before is gone when the file is as long again                      the parent looks
 *     a page that was not cut off is what it was, and there                                    both look
 */
import { FRAME_BYTES, PTE_R, PTE_W } from "../../../../base/layout.js";
import { O_CREAT, O_RDWR } from "../../../files/flags.js";
import { SIGBUS } from "../../../tasks/signals.js";
import { A0, SelfCheckError } from "../program.js";
import { defineProgram, integer, type Program, rate, seed, text } from "./options.js";
import { hash, keyOf } from "./random.js";
import { describeResult } from "./results.js";
import { count, type Outcome, STATE, StateProgram, type Step } from "./states.js";

/** What the next step does. */
const BEGIN = 0;
const FORK = 1;
const FORKED = 2;
const FILL = 3;
const CUT = 4;
const GROW = 5;
const CHECK = 6;
const WAIT = 7;
const LOOK = 8;

// Words of the registers.
const FD = 12;
const FILE = 14;
const BOARD = 16;
const ROUND = 18;
const PAGE = 26;

// Words of the board.
/** The round whose cut is over, and the one whose cut has begun. */
const IS_CUT = 0;
const IS_CUTTING = 4;
/** The parent has done all rounds. */
const IS_OVER = 8;
const FAULTS = 12;

// Words of a page: the parent's and the child's.
const OF_PARENT = 0;
const OF_CHILD = 2048;

const FAULT = 1;

class Cutter extends StateProgram {
  override readonly unpredictable = "what it does depends on other processes; it checks itself";
  override readonly rate: number;
  readonly needs: { directory: string };
  readonly #directory: string;
  readonly #pages: number;
  readonly #rounds: number;
  readonly #key: number;

  constructor(options: { dir: string; pages: number; rounds: number; seed: number; rate: number }) {
    super();
    this.rate = options.rate;
    this.needs = { directory: options.dir };
    this.#directory = options.dir.replace(/\/$/, "");
    this.#pages = options.pages;
    this.#rounds = options.rounds;
    this.#key = keyOf(options.seed);
  }

  protected override step(state: number, step: Step): Outcome {
    const { memory, registers: r, system } = step;
    switch (state) {
      case BEGIN:
        return this.#begin(step);
      case FORK:
        r[STATE] = FORKED;
        system.fork();
        return "asked";
      case FORKED:
        expect("fork", r[A0]!, (result) => result >= 0);
        if (r[A0] === 0) expect("sigaction", system.sigaction(SIGBUS, FAULT), (result) => result >= 0);
        r[STATE] = r[A0] === 0 ? LOOK : FILL;
        r[ROUND] = 1;
        r[PAGE] = 0;
        return "done";
      case FILL:
        memory.store32(this.#at(r, r[PAGE]!, OF_PARENT), r[ROUND]!);
        if (++r[PAGE]! === this.#pages) r[STATE] = CUT;
        return "done";
      case CUT: {
        memory.store32(r[BOARD]! + IS_CUTTING, r[ROUND]!);
        const cut = system.ftruncate(r[FD]!, this.#kept(r[ROUND]!) * FRAME_BYTES);
        if (cut === undefined) return "waits";
        expect("ftruncate", cut, (result) => result === 0);
        memory.store32(r[BOARD]! + IS_CUT, r[ROUND]!);
        r[STATE] = GROW;
        return "done";
      }
      case GROW:
        expect("ftruncate", system.ftruncate(r[FD]!, this.#pages * FRAME_BYTES) ?? -1, (result) => result === 0);
        r[PAGE] = 0;
        r[STATE] = CHECK;
        return "done";
      case CHECK:
        this.#check(step, r[PAGE]!);
        if (++r[PAGE]! < this.#pages) return "done";
        r[PAGE] = 0;
        r[STATE] = ++r[ROUND]! > this.#rounds ? WAIT : FILL;
        return "done";
      case WAIT:
        return this.#finish(step);
      default:
        return this.#look(step);
    }
  }

  #begin({ registers: r, system }: Step): Outcome {
    const path = `${this.#directory}/cutter-${system.getpid()}`;
    const fd = system.open(path, O_RDWR | O_CREAT);
    if (fd === undefined) return "waits";
    r[FD] = expect("open", fd, (result) => result >= 0);
    expect("ftruncate", system.ftruncate(fd, this.#pages * FRAME_BYTES) ?? -1, (result) => result === 0);
    const flags = PTE_R | PTE_W;
    r[FILE] = expect("mmap", system.mmapFile(fd, 0, { pages: this.#pages, flags, shared: true }), isAddress) | 0;
    r[BOARD] = expect("mmap", system.mmap({ pages: 1, flags, shared: true }), isAddress) | 0;
    r[STATE] = FORK;
    return "done";
  }

  /** The parent, once the file is as long again. */
  #check({ memory, registers: r }: Step, page: number): void {
    const round = r[ROUND]!;
    const kept = page < this.#kept(round);
    const [own, child] = [OF_PARENT, OF_CHILD].map((word) => memory.load32(this.#at(r, page, word)));
    if (own !== (kept ? round : 0)) throw new SelfCheckError(`cutter: page ${page} has ${own} after the cut of round ${round}`);
    if (!kept && child !== 0 && child! < round)
      throw new SelfCheckError(`cutter: page ${page} has ${child} of the child's after the cut of round ${round}`);
  }

  /** The child. The access may fail, and the step is taken again then. */
  #look({ memory, registers: r, steps, system }: Step): Outcome {
    if (memory.load32(r[BOARD]! + IS_OVER) === 1) {
      system.exit(0);
      return "asked";
    }
    const draw = hash(this.#key, steps + memory.load32(r[BOARD]! + FAULTS)) >>> 0;
    const page = draw % this.#pages;
    if (draw >>> 31 === 1) {
      // A cut that begins later waits for the end of this batch, and this store is before it.
      memory.store32(this.#at(r, page, OF_CHILD), memory.load32(r[BOARD]! + IS_CUTTING));
      return "done";
    }
    const cut = memory.load32(r[BOARD]! + IS_CUT);
    const found = memory.load32(this.#at(r, page, OF_PARENT));
    const wrong =
      page >= this.#kept(cut) ? found !== 0 && found <= cut : found < cut && memory.load32(r[BOARD]! + IS_CUTTING) === cut;
    if (wrong) throw new SelfCheckError(`cutter: page ${page} has ${found} when the cut of round ${cut} is over`);
    return "done";
  }

  protected override handle(_handler: number, { memory, registers: r, system }: Step): Outcome {
    count(memory, r[BOARD]! + FAULTS);
    system.sigreturn();
    return "asked";
  }

  /** The child's end is the game's. */
  #finish({ memory, registers: r, system }: Step): Outcome {
    memory.store32(r[BOARD]! + IS_OVER, 1);
    const ended = system.wait(-1);
    if (ended === undefined) return "waits";
    expect("the child", typeof ended === "number" ? ended : ended.status, (status) => status === 0);
    const [file, board] = [r[FILE]! >>> 0, r[BOARD]! >>> 0];
    expect("munmap", system.munmap(file, this.#pages) || system.munmap(board, 1), (result) => result === 0);
    expect("close", system.close(r[FD]!), (result) => result === 0);
    r[STATE] = BEGIN;
    return "done";
  }

  /** Pages that the cut of a round leaves; all, before the first. */
  #kept(round: number): number {
    return round === 0 ? this.#pages : (hash(this.#key, -round) >>> 0) % this.#pages;
  }

  #at(registers: Int32Array, page: number, word: number): number {
    return (registers[FILE]! + page * FRAME_BYTES + word) | 0;
  }
}

function isAddress(result: number): boolean {
  return result > 0;
}

function expect(what: string, found: number, right: (found: number) => boolean): number {
  if (!right(found)) throw new SelfCheckError(`cutter: ${what} gave ${describeResult(found)}`);
  return found;
}

export const cutter: Program = defineProgram({
  name: "cutter",
  summary: "cuts and lengthens a file that another process maps, loads and stores to meanwhile",
  options: {
    dir: text({ default: "/", help: "directory of its file; one that is mounted from the host, or in memory" }),
    pages: integer({ min: 1, max: 4096, default: 16, help: "size of the file" }),
    rounds: integer({ min: 1, max: 1_000_000_000, default: 2000, help: "until the child exits and another game begins" }),
    seed,
    rate,
  },
  create: (options) => new Cutter(options),
});
