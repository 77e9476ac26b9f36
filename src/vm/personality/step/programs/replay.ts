/**
 * Exact recomputation: the memory and registers that a step program has after N steps, from its text alone. A process
 * of a live, saved or resumed machine is right if it equals its replay, byte for byte.
 *
 * What must hold: nothing here shares code with the machine's MMU, allocator or kernel. Absent pages read as zeros; a
 * page is present once it has initial contents, has been stored to, or was mapped.
 */
import { isWithin, realPath } from "../../../../base/allowed-paths.js";
import { assert, HibernaculumError } from "../../../../base/errors.js";
import { FRAME_BYTES, FRAME_SHIFT } from "../../../../base/layout.js";
import type { VirtualAddress } from "../../../../base/memory.js";
import {
  DATA_BASE,
  type DiskOperation,
  type DiskStatus,
  type ProgramContext,
  type Runner,
  STACK_PAGES_MAX,
  STACK_TOP,
  type SystemCalls,
  type UserMemory,
} from "../program.js";
import { contentFile } from "./contents.js";
import { createRunner } from "./index.js";
import { mix } from "./random.js";

/** Memory comes in slabs of 4 MiB, of which the host fills in only what is touched. */
const SLAB_SHIFT = 22;
const SLAB_BYTES = 1 << SLAB_SHIFT;
const SLAB_MASK = SLAB_BYTES - 1;

/** A process's memory without translation, protection or tracking. */
export class FlatMemory implements UserMemory {
  readonly #slabs: (DataView<ArrayBuffer> | undefined)[] = Array.from({ length: 2 ** (32 - SLAB_SHIFT) });
  /** 1 for each page that is present. What is not present is all zero in its slab. */
  readonly #present: Uint8Array = new Uint8Array(2 ** (32 - FRAME_SHIFT));

  load8(address: VirtualAddress): number {
    return this.#slabs[address >>> SLAB_SHIFT]?.getUint8(address & SLAB_MASK) ?? 0;
  }

  load32(address: VirtualAddress): number {
    const offset = address & SLAB_MASK;
    if (offset > SLAB_BYTES - 4) return this.#loadAcross(address);
    return this.#slabs[address >>> SLAB_SHIFT]?.getInt32(offset, true) ?? 0;
  }

  store8(address: VirtualAddress, value: number): void {
    this.#slabOf(address).setUint8(address & SLAB_MASK, value);
    this.#present[address >>> FRAME_SHIFT] = 1;
  }

  store32(address: VirtualAddress, value: number): void {
    const offset = address & SLAB_MASK;
    if (offset > SLAB_BYTES - 4) {
      this.#storeAcross(address, value);
      return;
    }
    this.#slabOf(address).setInt32(offset, value, true);
    this.#present[address >>> FRAME_SHIFT] = 1;
    this.#present[(address + 3) >>> FRAME_SHIFT] = 1;
  }

  store64(address: VirtualAddress, low: number, high: number): void {
    this.store32(address, low);
    this.store32(address + 4, high);
  }

  /** A present page's bytes: a view that later stores change. */
  page(vpn: number): Uint8Array | undefined {
    return this.#present[vpn] === 1 ? this.#bytesOf(vpn) : undefined;
  }

  /** The present pages in order of address. */
  *pages(): Generator<[vpn: number, bytes: Uint8Array]> {
    for (let vpn = this.#present.indexOf(1); vpn >= 0; vpn = this.#present.indexOf(1, vpn + 1)) {
      yield [vpn, this.#bytesOf(vpn)];
    }
  }

  /** Makes a page present, zero if it was absent, and returns its bytes. */
  add(vpn: number): Uint8Array {
    this.#present[vpn] = 1;
    return this.#bytesOf(vpn);
  }

  /** Makes pages absent. */
  drop(first: number, pages: number): void {
    for (let vpn = first; vpn < first + pages; vpn++) {
      if (this.#present[vpn] !== 1) continue;
      this.#bytesOf(vpn).fill(0);
      this.#present[vpn] = 0;
    }
  }

  #bytesOf(vpn: number): Uint8Array {
    const address = (vpn << FRAME_SHIFT) >>> 0;
    return new Uint8Array(this.#slabOf(address).buffer, address & SLAB_MASK, FRAME_BYTES);
  }

  #slabOf(address: VirtualAddress): DataView<ArrayBuffer> {
    const slab = this.#slabs[address >>> SLAB_SHIFT];
    if (slab !== undefined) return slab;
    const fresh = new DataView(new ArrayBuffer(SLAB_BYTES));
    this.#slabs[address >>> SLAB_SHIFT] = fresh;
    return fresh;
  }

  #loadAcross(address: VirtualAddress): number {
    let word = 0;
    for (let i = 0; i < 4; i++) word |= this.load8(address + i) << (8 * i);
    return word;
  }

  #storeAcross(address: VirtualAddress, word: number): void {
    for (let i = 0; i < 4; i++) this.store8(address + i, word >>> (8 * i));
  }
}

/**
 * System calls on a FlatMemory: memory never runs out unless told, time does not pass, nothing is printed. The disk is the
 * process's own, and what is random is not: a program whose memory depends on more cannot be recomputed, and says so.
 */
export class FlatSystem implements SystemCalls {
  /** While true, `map` refuses. */
  outOfMemory = false;
  readonly #memory: FlatMemory;
  /** Orders of the mapped blocks, by address. */
  readonly #blocks = new Map<VirtualAddress, number>();
  /** Sectors that were written. */
  readonly #disk = new Map<number, Int32Array>();
  /** Requests that were not waited for, by tag: what a read has read. */
  readonly #requests = new Map<number, Int32Array | undefined>();
  #drawn = 0;

  constructor(memory: FlatMemory) {
    this.#memory = memory;
  }

  map(address: VirtualAddress, order: number): boolean {
    if (this.outOfMemory) return false;
    assert(!this.#blocks.has(address), "a block is mapped once");
    this.#blocks.set(address, order);
    const first = address >>> FRAME_SHIFT;
    for (let vpn = first; vpn < first + 2 ** order; vpn++) this.#memory.add(vpn);
    return true;
  }

  unmap(address: VirtualAddress, order: number): void {
    assert(this.#blocks.get(address) === order, "a block is unmapped as it was mapped");
    this.#blocks.delete(address);
    this.#memory.drop(address >>> FRAME_SHIFT, 2 ** order);
  }

  shrinkStack(address: VirtualAddress): void {
    const lowest = (STACK_TOP >>> FRAME_SHIFT) - STACK_PAGES_MAX;
    this.#memory.drop(lowest, (address >>> FRAME_SHIFT) - lowest);
  }

  sleep(): void {}

  print(): void {}

  /** Carries it out at once. */
  submitRequest(tag: number, operation: DiskOperation, sector: number, address: VirtualAddress): boolean {
    assert(!this.#requests.has(tag), "a tag is in flight once");
    const words = { length: FRAME_BYTES / 4 };
    if (operation === "write")
      this.#disk.set(
        sector,
        Int32Array.from(words, (_, i) => this.#memory.load32(address + i * 4)),
      );
    this.#requests.set(tag, operation === "read" ? (this.#disk.get(sector) ?? new Int32Array(words.length)) : undefined);
    return true;
  }

  awaitRequest(tag: number, address: VirtualAddress): DiskStatus {
    assert(this.#requests.has(tag), "a request is submitted before it is waited for");
    for (const [i, word] of this.#requests.get(tag)?.entries() ?? []) this.#memory.store32(address + i * 4, word);
    this.#requests.delete(tag);
    return "ok";
  }

  random(): number {
    return mix((this.#drawn += 0x9e3779b9));
  }

  generation(): number {
    return 0;
  }

  monotonicTime(): number {
    return 0;
  }

  wallTime(): number {
    return 0;
  }
}

/** Most steps of one call of `run`: fuel is a 32-bit integer, a step count is not. */
const BATCH_STEPS_MAX = 1 << 16;
const BATCH_STEPS_MIN = 16;
/** A call of `run` takes about so long: it is looked at the time between two, and the steps of some programs take a millisecond. */
const BATCH_MS = 5;

/**
 * A process recomputed.
 *
 * @example
 * const replay = new Replay("zipf:pages=1000");
 * replay.advanceTo(1_000_000);
 * replay.page(DATA_BASE >>> 12);
 */
export class Replay {
  /** 64 words, as in ProgramContext. */
  readonly registers: Int32Array = new Int32Array(64);
  readonly memory: FlatMemory = new FlatMemory();
  readonly system: FlatSystem = new FlatSystem(this.memory);
  readonly #runner: Runner;
  #steps = 0;
  #batch = BATCH_STEPS_MIN;

  /** Why the process's memory does not follow from its text; undefined if it does. */
  get unpredictable(): string | undefined {
    return this.#runner.unpredictable;
  }

  /**
   * The process before its first step.
   * @param text the process's program, as for `createRunner`
   * @throws HibernaculumError HIB_USAGE
   */
  constructor(text: string) {
    this.#runner = createRunner(text);
    const scratch = new Uint8Array(FRAME_BYTES);
    for (let page = 0; page < this.#runner.dataPages; page++) {
      if (this.#runner.initialPage?.(page, scratch) === true) this.memory.add((DATA_BASE >>> FRAME_SHIFT) + page).set(scratch);
    }
  }

  /** Steps completed. */
  get steps(): number {
    return this.#steps;
  }

  /**
   * Runs until `steps` steps are completed, which must not be fewer than were.
   *
   * @param until - gives up by then, as `performance.now` has it
   * @returns whether it came there
   * @throws SelfCheckError if the memory has been changed from outside
   */
  advanceTo(steps: number, until: number = Infinity): boolean {
    assert(steps >= this.#steps, `a replay only goes forward: at ${this.#steps}, asked for ${steps}`);
    while (this.#steps < steps) {
      const began = performance.now();
      if (began > until) return false;
      const context: ProgramContext = {
        memory: this.memory,
        system: this.system,
        registers: this.registers,
        steps: this.#steps,
      };
      const done = this.#runner.run(context, Math.min(steps - this.#steps, this.#batch));
      assert(done > 0, "a replay never waits");
      this.#steps += done;
      const next = performance.now() - began < BATCH_MS ? this.#batch * 2 : this.#batch / 2;
      this.#batch = Math.min(BATCH_STEPS_MAX, Math.max(BATCH_STEPS_MIN, next));
    }
    return true;
  }

  /** A present page's bytes, or undefined if it is absent, which reads as zeros. A view that later steps change. */
  page(vpn: number): Uint8Array | undefined {
    return this.memory.page(vpn);
  }

  /** The present pages in order of address. */
  pages(): Iterable<[vpn: number, bytes: Uint8Array]> {
    return this.memory.pages();
  }
}

/** What a replay of a machine that may be somebody else's is limited to. */
export interface ReplayLimits {
  /** Real paths of places that it may read from. */
  allowed: readonly string[];
  /** Frames that the machine has: no process has more pages. */
  frames: number;
  /** When to give up, as `performance.now` has it. */
  until: number;
}

/** A replay of a program that runs in a machine; or why it cannot be recomputed, one line. */
export function createReplay(text: string, limits?: ReplayLimits): Replay | string {
  try {
    const file = contentFile(text);
    if (limits !== undefined && file !== undefined && !isWithin(realPath(file), limits.allowed))
      return `it began with ${file}, which may be read only by --allow`;
    if (limits !== undefined && createRunner(text).dataPages > limits.frames)
      return "it has more pages than the machine has frames";
    const replay = new Replay(text);
    return replay.unpredictable ?? replay;
  } catch (error) {
    // The kernel took this program once: it can be run, and not be replayed.
    if (error instanceof HibernaculumError && error.code === "HIB_USAGE") return error.message;
    throw error;
  }
}
