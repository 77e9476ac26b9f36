/**
 * Random system calls, whose outcome is defined all the same: a root forks workers, each does random things (maps, protects,
 * unmaps, writes files, handles signals, forks leaves over pipes and shared memory, sleeps) and checks them, and exits with a digest of what it saw. The
 * root folds the digests of a generation into one word and keeps it. So the words of generation after generation follow
 * from the seed, whoever ran when, and however often the machine was saved in between.
 *
 * What must hold: nothing that depends on time, order or pids goes into a digest. What fails for lack of memory is tried again.
 *
 *     data page 0   generations completed, then the digest of each (the last 512)
 *     data page 1   root: pids of the workers; worker: its mappings (address, pages, key)
 *     data page 2   buffer
 */
import { PTE_R, PTE_W } from "../../../../base/layout.js";
import { EAGAIN, ENOMEM } from "../../../memory/errno.js";
import { O_CREAT, O_EXCL, O_RDWR, SEEK_SET } from "../../../files/flags.js";
import { A0, DATA_BASE, type KernelCalls, SelfCheckError, type UserMemory } from "../program.js";
import { SIGUSR1 } from "../../../tasks/signals.js";
import { defineProgram, integer, type Program, rate, seed } from "./options.js";
import { hash, keyOf, mix } from "./random.js";
import { describeResult } from "./results.js";
import { type Outcome, STATE, StateProgram, type Step } from "./states.js";

// Words of the registers.
const ROLE = STATE;
const PHASE = 12;
const OPERATION = 14;
const KEY = 16;
const DIGEST = 18;
const CHILD = 24;
const INDEX = 26;
const SHARED = 28;
const FDS = 30;

const ROOT = 0;
const WORKER = 1;
const LEAF = 2;

const TABLE = DATA_BASE;
export const CHAOS_DIGESTS = 512;
const RECORDS = DATA_BASE + 4096;
const HANDLED = RECORDS + 4092;
const BUFFER = DATA_BASE + 8192;
const MAPPINGS = 6;
const RW = PTE_R | PTE_W;

/** A call found no memory: the step is undone, and taken again. */
class NotNow extends Error {}

class Chaos extends StateProgram {
  override readonly dataPages = 3;
  override readonly stackPages = 4;
  override readonly unpredictable = "it uses all that the kernel has; what it sees goes into digests, which it compares";
  readonly #workers: number;
  readonly #operations: number;
  readonly #key: number;

  constructor(options: { workers: number; operations: number; seed: number; rate: number }) {
    super(options);
    this.#workers = options.workers;
    this.#operations = options.operations;
    this.#key = keyOf(options.seed);
  }

  protected override step(role: number, step: Step): Outcome {
    try {
      return role === ROOT ? this.#root(step) : role === WORKER ? this.#worker(step) : this.#leaf(step);
    } catch (error) {
      if (!(error instanceof NotNow)) throw error;
      step.system.sleep(2);
      return "waits";
    }
  }

  protected override handle(_handler: number, { memory, registers, system }: Step): Outcome {
    memory.store32(HANDLED, memory.load32(HANDLED) + registers[A0]!);
    system.sigreturn();
    return "asked";
  }

  // ---- the root: phases 0 fork a worker, 1 after the fork, 2 wait for one ----

  #root({ memory, registers: r, system }: Step): Outcome {
    const generation = memory.load32(TABLE) | 0;
    if (r[PHASE] === 0) {
      r[PHASE] = 1;
      system.fork();
      return "asked";
    }
    if (r[PHASE] === 1) {
      const child = r[A0]!;
      if (child === -EAGAIN || child === -ENOMEM) {
        r[PHASE] = 0;
        system.sleep(5);
        return "asked";
      }
      if (child === 0) {
        r[KEY] = hash(this.#key, generation * 64 + r[INDEX]!);
        r[ROLE] = WORKER;
        r[PHASE] = 0;
        r[OPERATION] = 0;
        r[DIGEST] = 0;
        for (let i = 0; i < MAPPINGS; i++) memory.store32(RECORDS + i * 16, 0);
        return "done";
      }
      memory.store32(RECORDS + r[INDEX]! * 4, child);
      r[INDEX]!++;
      r[PHASE] = 0;
      if (r[INDEX] === this.#workers) {
        r[INDEX] = 0;
        r[PHASE] = 2;
        r[DIGEST] = generation;
      }
      return "done";
    }
    const end = system.wait(memory.load32(RECORDS + r[INDEX]! * 4) | 0);
    if (end === undefined) return "waits";
    if (typeof end === "number") throw new SelfCheckError(`chaos: wait gave ${describeResult(end)}`);
    r[DIGEST] = mix(r[DIGEST]! ^ Math.imul(end.status + 1, 0x9e3779b1) ^ r[INDEX]!);
    if (++r[INDEX]! < this.#workers) return "done";
    memory.store32(TABLE + 4 + (generation % CHAOS_DIGESTS) * 4, r[DIGEST]);
    memory.store32(TABLE, generation + 1);
    r[INDEX] = 0;
    r[PHASE] = 0;
    return "done";
  }

  // ---- a worker: phase 0 an operation, 1 after a fork, 2 waits for its leaf ----

  #worker(step: Step): Outcome {
    const { memory, registers: r, system } = step;
    if (r[PHASE] === 1) return this.#forked(step);
    if (r[PHASE] === 2) return this.#collect(step);
    if (r[PHASE] === 3) return this.#handled(step);
    if (r[OPERATION] === this.#operations) {
      for (let i = 0; i < MAPPINGS; i++) this.#checkMapping(memory, r, RECORDS + i * 16);
      system.exit(r[DIGEST]!);
      return "asked";
    }
    const draw = hash(r[KEY]!, r[OPERATION]!) >>> 0;
    const record = RECORDS + ((draw >>> 8) % MAPPINGS) * 16;
    let outcome: Outcome = "done";
    switch (draw % 9) {
      case 0:
      case 1:
        this.#map(memory, system, record, draw);
        break;
      case 2:
        this.#unmap(memory, r, system, record, draw);
        break;
      case 3:
        this.#protect(memory, system, record);
        break;
      case 4:
        this.#file(memory, r, system, draw);
        break;
      case 5:
        system.sleep(draw % 3);
        outcome = "asked";
        break;
      case 6:
        // A handler runs before the next step.
        memory.store32(HANDLED, 0);
        system.sigaction(SIGUSR1, 1);
        system.kill(system.getpid(), SIGUSR1);
        r[PHASE] = 3;
        return "asked";
      default:
        // A leaf writes into a pipe and into shared memory.
        this.#openPipe(r, system);
        r[PHASE] = 1;
        system.fork();
        return "asked";
    }
    this.#fold(r, draw);
    r[OPERATION]!++;
    return outcome;
  }

  #handled({ memory, registers: r }: Step): Outcome {
    const handled = memory.load32(HANDLED);
    if (handled !== SIGUSR1) throw new SelfCheckError(`chaos: a signal was handled as ${handled}`);
    this.#fold(r, handled);
    r[OPERATION]!++;
    r[PHASE] = 0;
    return "done";
  }

  #fold(r: Int32Array, value: number): void {
    r[DIGEST] = mix(Math.imul(r[DIGEST]!, 31) ^ value);
  }

  #map(memory: UserMemory, system: KernelCalls, record: number, draw: number): void {
    if (memory.load32(record) !== 0) return;
    const huge = draw % 64 < 4;
    const pages = huge ? 1024 : 1 + ((draw >>> 12) % 12);
    const address = enough(system.mmap({ pages, flags: RW }));
    if (huge) system.madviseHuge(address, pages);
    for (let page = 0; page < pages; page += huge ? 61 : 1)
      memory.store32((address + page * 4096 + (page % 1000) * 4) | 0, hash(draw, page));
    memory.store32(record + 4, pages);
    memory.store32(record + 8, draw | 0);
    memory.store32(record + 12, huge ? 61 : 1);
    memory.store32(record, address | 0);
  }

  #checkMapping(memory: UserMemory, r: Int32Array, record: number): void {
    const address = memory.load32(record) >>> 0;
    if (address === 0) return;
    const pages = memory.load32(record + 4) | 0;
    const key = memory.load32(record + 8) >>> 0;
    const stride = memory.load32(record + 12) | 0;
    for (let page = 0; page < pages; page += stride) {
      const found = memory.load32((address + page * 4096 + (page % 1000) * 4) | 0) | 0;
      if (found !== hash(key, page))
        throw new SelfCheckError(`chaos: page ${page} of ${pages} at 0x${address.toString(16)} holds ${found}`);
    }
    this.#fold(r, key ^ pages);
  }

  #unmap(memory: UserMemory, r: Int32Array, system: KernelCalls, record: number, draw: number): void {
    const address = memory.load32(record) >>> 0;
    if (address === 0) return;
    this.#checkMapping(memory, r, record);
    const pages = memory.load32(record + 4) | 0;
    // The upper part, or all of it.
    const keep = draw % 3 === 0 ? 0 : (draw >>> 20) % pages;
    enough(system.munmap(address + keep * 4096, pages - keep));
    memory.store32(record + 4, keep);
    if (keep === 0) memory.store32(record, 0);
  }

  #protect(memory: UserMemory, system: KernelCalls, record: number): void {
    const address = memory.load32(record) >>> 0;
    if (address === 0) return;
    const pages = memory.load32(record + 4) | 0;
    const half = Math.ceil(pages / 2);
    enough(system.mprotect(address, half, 0));
    enough(system.mprotect(address, pages, PTE_R));
    enough(system.mprotect(address, pages, RW));
  }

  #file(memory: UserMemory, r: Int32Array, system: KernelCalls, draw: number): void {
    const path = `/chaos-${system.getpid()}`;
    const fd = enough(system.open(path, O_RDWR | O_CREAT | O_EXCL) ?? -1);
    const bytes = 1 + ((draw >>> 6) % 3000);
    for (let at = 0; at < bytes; at += 4) memory.store32(BUFFER + at, hash(draw, at));
    let sum = 0;
    try {
      for (let part = 0; part < 3; part++) {
        const written = system.write(fd, BUFFER, bytes) ?? -1;
        if (written !== bytes)
          throw written < 0 ? new NotNow() : new SelfCheckError(`chaos: ${written} of ${bytes} bytes written`);
      }
      system.lseek(fd, bytes, SEEK_SET);
      for (let at = 0; at < bytes; at += 4) memory.store32(BUFFER + at, 0);
      const read = system.read(fd, BUFFER, bytes) ?? -1;
      if (read !== bytes) throw new SelfCheckError(`chaos: ${read} of ${bytes} bytes read`);
      for (let at = 0; at + 4 <= bytes; at += 4) sum = mix(sum ^ memory.load32(BUFFER + at));
    } finally {
      system.close(fd);
      system.unlink(path);
    }
    this.#fold(r, sum);
  }

  // ---- leaves ----

  #openPipe(r: Int32Array, system: KernelCalls): void {
    const ends = system.pipe();
    if (typeof ends === "number") throw new NotNow();
    const shared = system.mmap({ pages: 2, flags: RW, shared: true });
    if (shared < 0) {
      system.close(ends.reader);
      system.close(ends.writer);
      throw new NotNow();
    }
    r[FDS] = ends.reader;
    r[FDS + 1] = ends.writer;
    r[SHARED] = shared | 0;
  }

  #forked({ registers: r, system }: Step): Outcome {
    const child = r[A0]!;
    if (child === 0) {
      system.close(r[FDS]!);
      r[ROLE] = LEAF;
      r[PHASE] = 0;
      return "done";
    }
    system.close(r[FDS + 1]!);
    r[CHILD] = child;
    r[PHASE] = 2;
    if (child > 0) return "done";
    // No child: all is undone, and tried again later.
    system.close(r[FDS]!);
    system.munmap(r[SHARED]! >>> 0, 2);
    r[PHASE] = 0;
    system.sleep(5);
    return "asked";
  }

  #leaf({ memory, registers: r, system }: Step): Outcome {
    const key = hash(r[KEY]!, r[OPERATION]! + 1000);
    const bytes = 4 + ((key >>> 4) % 1000) * 4;
    if (r[PHASE] === 0) {
      // Private memory that it has from its parent is its own to spoil.
      for (let i = 0; i < MAPPINGS; i++) {
        const address = memory.load32(RECORDS + i * 16) >>> 0;
        if (address !== 0 && (memory.load32(RECORDS + i * 16 + 4) | 0) > 0) memory.store32(address | 0, 0x5901);
      }
      memory.store32((r[SHARED]! + (key & 0xffc)) | 0, key);
      memory.store32((r[SHARED]! + 4096 + (key & 0xffc)) | 0, ~key);
      for (let at = 0; at < bytes; at += 4) memory.store32(BUFFER + at, hash(key, at));
      r[PHASE] = 1;
      return "done";
    }
    const written = system.write(r[FDS + 1]!, BUFFER, bytes);
    if (written === undefined) return "waits";
    if (written !== bytes) throw new SelfCheckError(`chaos: ${written} of ${bytes} bytes into the pipe`);
    system.exit(key);
    return "asked";
  }

  #collect({ memory, registers: r, system }: Step): Outcome {
    const key = hash(r[KEY]!, r[OPERATION]! + 1000);
    const bytes = 4 + ((key >>> 4) % 1000) * 4;
    if (r[FDS]! >= 0) {
      const read = system.read(r[FDS]!, BUFFER, 4096);
      if (read === undefined) return "waits";
      if (read !== bytes) throw new SelfCheckError(`chaos: ${read} of ${bytes} bytes out of the pipe`);
      let sum = 0;
      for (let at = 0; at < bytes; at += 4) {
        const found = memory.load32(BUFFER + at) | 0;
        if (found !== hash(key, at)) throw new SelfCheckError(`chaos: byte ${at} of the pipe is of ${found}`);
        sum = mix(sum ^ found);
      }
      this.#fold(r, sum);
      system.close(r[FDS]!);
      r[FDS] = -1;
      return "done";
    }
    const end = system.wait(r[CHILD]!);
    if (end === undefined) return "waits";
    const shared = [
      memory.load32((r[SHARED]! + (key & 0xffc)) | 0) | 0,
      memory.load32((r[SHARED]! + 4096 + (key & 0xffc)) | 0) | 0,
    ];
    if (typeof end === "number" || end.status !== (key & 0xff) << 8 || shared[0] !== key || shared[1] !== ~key)
      throw new SelfCheckError(`chaos: leaf ${r[CHILD]} ended with ${JSON.stringify(end)} and left ${shared.join(", ")}`);
    enough(system.munmap(r[SHARED]! >>> 0, 2));
    this.#fold(r, end.status);
    r[OPERATION]!++;
    r[PHASE] = 0;
    return "done";
  }
}

/** The result of a call that may find no memory. */
function enough(result: number): number {
  if (result === -ENOMEM) throw new NotNow();
  if (result < 0) throw new SelfCheckError(`chaos: a call gave ${describeResult(result)}`);
  return result;
}

export const chaos: Program = defineProgram({
  name: "chaos",
  summary: "forks workers that do random things with all that the kernel has; what they see follows from the seed, and is kept",
  options: {
    workers: integer({ min: 1, max: 64, default: 4, help: "processes of a generation" }),
    operations: integer({ min: 1, max: 10_000, default: 30, help: "of each process, before it exits" }),
    seed,
    rate,
  },
  create: (options) => new Chaos(options),
});
