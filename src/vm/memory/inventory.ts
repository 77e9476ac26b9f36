/**
 * What each frame of the kernel's own is, for the check of a machine's consistency: everything that the kernel follows a
 * pointer to is entered first, and once. So a frame or an object is one thing only, a list that comes by an object twice is
 * found out, and a walk ends when all that there is has been entered.
 */
import { hex } from "../../base/hex.js";
import { FRAME_BYTES } from "../../base/layout.js";
import type { Pfn, PhysicalAddress } from "../../base/memory.js";
import { KERNEL_HEAP_SMALLEST, KIND_KERNEL_HEAP, KIND_NAMES } from "./kernel-layout.js";

/** The used blocks, by frame; kind 0 for free frames. */
export interface Blocks {
  kind: Uint8Array;
  order: Uint8Array;
  /** First frame of the block. */
  head: Uint32Array;
  /** pid, 0 for the kernel. */
  owner: Int32Array;
}

/** Objects begin at multiples of the smallest one's size. */
const UNIT_BYTES: number = KERNEL_HEAP_SMALLEST;
const UNIT_WORDS: number = FRAME_BYTES / UNIT_BYTES / 32;

export class Inventory {
  readonly blocks: Blocks;
  readonly #problem: (text: string) => void;
  /** Size of the objects in a frame, in units; 128 for a frame that is used as a whole; 0 while nothing of it is entered. */
  readonly #sizes: Uint8Array;
  /** A bit an object, by the unit that it begins at. */
  readonly #entered: Uint32Array;

  constructor(blocks: Blocks, problem: (text: string) => void) {
    this.blocks = blocks;
    this.#problem = problem;
    this.#sizes = new Uint8Array(blocks.kind.length);
    this.#entered = new Uint32Array(blocks.kind.length * UNIT_WORDS);
  }

  /**
   * Enters an object of the kernel heap.
   *
   * @param bytes - that were asked for
   * @returns whether it can be one, and is nothing else; if not, it was told
   */
  object(at: PhysicalAddress, bytes: number, what: string): boolean {
    return this.#enter(at, Math.max(UNIT_BYTES, 2 ** Math.ceil(Math.log2(bytes))), KIND_KERNEL_HEAP, what);
  }

  /** Enters a block of 2^order frames of a kind, by its first frame. */
  block(frame: Pfn, order: number, kind: number, what: string): boolean {
    if (this.blocks.head[frame] === frame && this.blocks.order[frame] === order)
      return this.#enter(frame * FRAME_BYTES, FRAME_BYTES, kind, what);
    this.#problem(`${what}: frame ${frame} begins no block of ${1 << order} frames`);
    return false;
  }

  #enter(at: PhysicalAddress, size: number, kind: number, what: string): boolean {
    const frame = Math.floor(at / FRAME_BYTES);
    if (this.blocks.kind[frame] !== kind || at % size !== 0) {
      this.#problem(`${what}: ${hex(at)} is no place for it in a frame of kind ${KIND_NAMES[kind]}`);
      return false;
    }
    const units = size / UNIT_BYTES;
    const unit = (at % FRAME_BYTES) / UNIT_BYTES;
    const word = frame * UNIT_WORDS + (unit >>> 5);
    const bit = 1 << (unit & 31);
    const alone = (this.#sizes[frame] === 0 || this.#sizes[frame] === units) && (this.#entered[word]! & bit) === 0;
    if (!alone) this.#problem(`${what}: ${hex(at)} is something else, too, or it twice`);
    this.#sizes[frame] = units;
    this.#entered[word]! |= bit;
    return alone;
  }
}
