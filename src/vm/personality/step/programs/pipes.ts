/**
 * A parent writes a stream into a pipe, a child reads it and says through a second pipe how far it is; when the stream ends the
 * child exits with what it counted, and all begins anew with another child. Both ends wait for each other all the time.
 *
 * What must hold: byte p of a stream follows from p and the seed, so a byte that is lost, doubled or changed is noticed.
 */
import { A0, DATA_BASE, SelfCheckError } from "../program.js";
import { defineProgram, integer, type Program, rate, seed } from "./options.js";
import { hash, keyOf } from "./random.js";
import { type Outcome, STATE, StateProgram, type Step } from "./states.js";

// Words of the registers.
const POSITION = 12;
const ACKNOWLEDGED = 14;
const CHILD = 16;
/** fds: the stream's reader and writer, the answers' reader and writer. */
const FDS = 24;

const BEGIN = 0;
const FORKED = 1;
const PARENT = 2;
const CHILD_READS = 3;
const CHILD_ANSWERS = 4;
const LAST = 5;

const BUFFER = DATA_BASE;
const BUFFER_PAGES = 3;
const BYTES_MAX = (BUFFER_PAGES - 1) * 4096;
/** The parent waits for an answer when the child is so far behind. */
const WINDOW = 65536;

class Pipes extends StateProgram {
  override readonly dataPages = BUFFER_PAGES;
  override readonly stackPages = 0;
  override readonly unpredictable = "its memory depends on who runs when; it checks every byte itself";
  readonly #length: number;
  readonly #key: number;

  constructor(options: { kilobytes: number; seed: number; rate: number }) {
    super(options);
    this.#length = options.kilobytes * 1024;
    this.#key = keyOf(options.seed);
  }

  protected override step(state: number, step: Step): Outcome {
    const { memory, registers: r, system } = step;
    switch (state) {
      case BEGIN: {
        const stream = system.pipe();
        const answers = system.pipe();
        if (typeof stream === "number" || typeof answers === "number")
          throw new SelfCheckError(`pipes: no pipe: ${String(stream)}`);
        r.set([stream.reader, stream.writer, answers.reader, answers.writer], FDS);
        r[POSITION] = 0;
        r[ACKNOWLEDGED] = 0;
        r[STATE] = FORKED;
        system.fork();
        return "asked";
      }
      case FORKED: {
        const child = r[A0]!;
        if (child < 0) throw new SelfCheckError(`pipes: no child: ${child}`);
        const [reader, writer, answerReader, answerWriter] = r.subarray(FDS, FDS + 4);
        for (const fd of child === 0 ? [writer!, answerReader!] : [reader!, answerWriter!]) {
          if (system.close(fd) !== 0) throw new SelfCheckError(`pipes: fd ${fd} is not open`);
        }
        r[CHILD] = child;
        r[STATE] = child === 0 ? CHILD_READS : PARENT;
        return "done";
      }
      case PARENT:
        return this.#write(step);
      case CHILD_READS:
        return this.#read(step);
      case CHILD_ANSWERS: {
        memory.store32(BUFFER, r[POSITION]!);
        const written = system.write(r[FDS + 3]!, BUFFER, 4);
        if (written === undefined) return "waits";
        if (written !== 4) throw new SelfCheckError(`pipes: an answer of ${written} bytes`);
        r[STATE] = CHILD_READS;
        return "done";
      }
      default:
        throw new SelfCheckError(`pipes: no state ${state}`);
    }
  }

  #write(step: Step): Outcome {
    const { memory, registers: r, system } = step;
    const position = r[POSITION]!;
    if (position === this.#length) return this.#finish(step);
    if (position - r[ACKNOWLEDGED]! >= WINDOW) {
      const read = system.read(r[FDS + 2]!, BUFFER + BYTES_MAX, 4);
      if (read === undefined) return "waits";
      const answer = memory.load32(BUFFER + BYTES_MAX) | 0;
      if (read !== 4 || answer <= r[ACKNOWLEDGED]! || answer > position)
        throw new SelfCheckError(`pipes: answer ${answer} (${read} bytes) at ${position}, after ${r[ACKNOWLEDGED]}`);
      r[ACKNOWLEDGED] = answer;
      return "done";
    }
    const count = Math.min(this.#length - position, 1 + ((hash(this.#key, position) >>> 0) % BYTES_MAX));
    for (let i = 0; i < count; i++) memory.store8(BUFFER + i, this.#byte(position + i));
    const written = system.write(r[FDS + 1]!, BUFFER, count);
    if (written === undefined) return "waits";
    if (written < 1 || written > count) throw new SelfCheckError(`pipes: ${written} of ${count} bytes written`);
    r[POSITION] = position + written;
    return "done";
  }

  /** The stream is over: the writer is closed, and the child's end awaited. */
  #finish({ registers: r, system }: Step): Outcome {
    if (r[FDS + 1]! >= 0) {
      system.close(r[FDS + 1]!);
      r[FDS + 1] = -1;
      return "done";
    }
    const end = system.wait(r[CHILD]!);
    if (end === undefined) return "waits";
    if (typeof end === "number" || end.pid !== r[CHILD] || end.status !== (this.#length & 0x7f) << 8)
      throw new SelfCheckError(`pipes: child ${r[CHILD]} ended with ${JSON.stringify(end)}`);
    system.close(r[FDS + 2]!);
    r[STATE] = BEGIN;
    return "done";
  }

  #read({ memory, registers: r, system }: Step): Outcome {
    const position = r[POSITION]!;
    const read = system.read(r[FDS]!, BUFFER, 1 + ((hash(this.#key ^ 1, position) >>> 0) % BYTES_MAX));
    if (read === undefined) return "waits";
    if (read === 0) {
      if (position !== this.#length) throw new SelfCheckError(`pipes: the stream ends at ${position} of ${this.#length}`);
      r[STATE] = LAST;
      system.exit(this.#length & 0x7f);
      return "asked";
    }
    for (let i = 0; i < read; i++) {
      const found = memory.load8(BUFFER + i);
      if (found !== this.#byte(position + i)) throw new SelfCheckError(`pipes: byte ${position + i} is ${found}`);
    }
    r[POSITION] = position + read;
    // An answer for every half window.
    if (Math.floor(position / (WINDOW / 2)) !== Math.floor((position + read) / (WINDOW / 2))) r[STATE] = CHILD_ANSWERS;
    return "done";
  }

  #byte(position: number): number {
    return (hash(this.#key, position >>> 2) >>> (8 * (position & 3))) & 0xff;
  }
}

export const pipes: Program = defineProgram({
  name: "pipes",
  summary: "a parent and a child with pipes both ways: each waits for the other; checks every byte and the child's end",
  options: {
    kilobytes: integer({ min: 1, max: 1 << 20, default: 256, help: "length of a stream; then another child begins" }),
    seed,
    rate,
  },
  create: (options) => new Pipes(options),
});
