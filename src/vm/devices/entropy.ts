/**
 * The entropy device: a pool of random words in one DMA frame, filled by the host.
 *
 * What must hold: no word is given twice, by one machine or by two that come from one image. A word that was given is
 * wiped, and `quiesce` wipes the pool: no image holds a word that is still to be given, and whoever goes on after it, be it
 * the machine itself or one that was resumed, fills a pool of its own. So nothing is saved. Guests that keep random state of their own
 * compare the generation number: it grows with each resume, and its low half is random, so that two resumes of one image
 * have different ones.
 *
 *     word 0      how many words are left
 *     word 1...   the words, taken from the end
 */
import { randomBytes } from "node:crypto";
import { HibernaculumError } from "../../base/errors.js";
import { RAM_BYTES_MIN } from "../../base/limits.js";
import { FRAME_BYTES } from "../../base/layout.js";
import type { PhysicalAddress } from "../../base/memory.js";
import type { KernelParts } from "../tasks/parts.js";
import { KERNEL_ENTROPY, KERNEL_GENERATION, KERNEL_RESUMES, KIND_DMA } from "../memory/kernel-layout.js";
import { littleEndian, type PhysicalMemory } from "../memory/physical.js";
import { type Driver, StoreGate } from "./driver.js";

export const POOL_WORDS: number = FRAME_BYTES / 4 - 1;
/** Fewer words than this, and the host is asked for more. */
export const POOL_LOW: number = POOL_WORDS >> 1;

/** A random word, and how many are left; undefined if there is none. Caller holds the kernel lock. */
export function takeRandom(memory: PhysicalMemory): { word: number | undefined; left: number } {
  const pool = memory.load32(KERNEL_ENTROPY) * FRAME_BYTES;
  const left = pool === 0 ? 0 : memory.load32(pool);
  if (left === 0) return { word: undefined, left };
  const word = memory.load32(pool + left * 4);
  memory.store32(pool + left * 4, 0);
  memory.store32(pool, left - 1);
  return { word, left: left - 1 };
}

export class EntropyDevice implements Driver {
  readonly #parts: KernelParts;
  readonly #gate: StoreGate;

  constructor(parts: KernelParts) {
    this.#parts = parts;
    this.#gate = new StoreGate(parts.control);
  }

  /** Gives a machine that boots its pool. */
  boot(): void {
    const { buddy, control, memory } = this.#parts;
    control.locked(() => {
      const frame = buddy.allocate(0, 0, KIND_DMA);
      if (frame === undefined)
        throw new HibernaculumError("HIB_USAGE", `too little RAM for the devices; ask for ${RAM_BYTES_MIN / 2 ** 20}M or more`);
      memory.store32(KERNEL_ENTROPY, frame);
      this.#fill();
      this.#beginGeneration();
    });
  }

  /** Fills the pool if it is low. */
  service(): void {
    if (!this.#gate.isOpen) return;
    const { control, memory } = this.#parts;
    control.locked(() => {
      if (this.#pool !== 0 && memory.load32(this.#pool) < POOL_LOW) this.#fill();
    });
  }

  /** Address of the pool; 0 if the machine has none. Every machine that boots here has one: an image's need not. */
  get #pool(): PhysicalAddress {
    return this.#parts.memory.load32(KERNEL_ENTROPY) * FRAME_BYTES;
  }

  #fill(): void {
    this.#write(Buffer.concat([littleEndian(POOL_WORDS), randomBytes(POOL_WORDS * 4)]));
  }

  #write(bytes: Uint8Array): void {
    if (this.#pool !== 0) this.#parts.memory.write(this.#pool, bytes, "device");
  }

  #beginGeneration(): void {
    const { memory } = this.#parts;
    memory.storeFloat64(KERNEL_GENERATION, memory.load32(KERNEL_RESUMES) * 2 ** 32 + randomBytes(4).readUInt32LE());
  }

  saveState(): void {}

  quiesce(): void {
    this.#write(new Uint8Array(FRAME_BYTES));
    this.#gate.close();
  }

  resume(after: "stop" | "restore"): void {
    this.#gate.open();
    if (after === "stop") return;
    this.#fill();
    this.#beginGeneration();
  }

  freeState(): void {}
}
