/**
 * Physical memory: the one choke point for the host's stores to RAM.
 *
 * What must hold: no other module gets a writable view of RAM (`test/choke-point.test.ts` searches for one). Every
 * store here goes through the core's tracked stores or announces itself with `beforeBulkStore`. The exceptions are
 * named for what they are: `loadFrame` (direct load, into frames that nobody else touches) and the core's `scatter`.
 * Words are read one by one of the kernel's own frames only, which are always there; a user's frame may be missing (assembly/missing.ts).
 */
import { HibernaculumError } from "../../base/errors.js";
import {
  FAULT_DEVICE,
  FAULT_KERNEL,
  FRAME_BYTES,
  FRAME_SHIFT,
  MACHINE_FRAMES,
  MACHINE_LAZY,
  POOL_BASE,
  RAM_BASE,
} from "../../base/layout.js";
import { RAM_BYTES_MAX, RAM_BYTES_MIN } from "../../base/limits.js";
import type { Pfn, PhysicalAddress, ReadableMemory } from "../../base/memory.js";
import { type SharedMemory, wasm } from "../../base/wasm.js";
import type { Core } from "./core.js";

const WASM_PAGE = 65536;

/**
 * Reserves the shared memory of a machine. The host gives frames only as they are touched.
 *
 * @param ramBytes - RAM in bytes, RAM_BYTES_MIN to RAM_BYTES_MAX, rounded up to whole frames
 * @throws HIB_RAM_TOO_LARGE when that is more than this runtime can hold, HIB_USAGE when it is too little
 */
export function createMemory(ramBytes: number): SharedMemory {
  const frames = Math.ceil(ramBytes / FRAME_BYTES);
  if (ramBytes > RAM_BYTES_MAX) {
    throw new HibernaculumError(
      "HIB_RAM_TOO_LARGE",
      `${ramBytes} bytes of RAM are more than one WebAssembly memory holds; ask for at most ${RAM_BYTES_MAX} bytes (${RAM_BYTES_MAX / 2 ** 20} MiB)`,
    );
  }
  if (ramBytes < RAM_BYTES_MIN) {
    throw new HibernaculumError(
      "HIB_USAGE",
      `${ramBytes} bytes of RAM are too few; ask for at least ${RAM_BYTES_MIN / 2 ** 20} MiB`,
    );
  }
  const pages = Math.ceil((RAM_BASE + frames * FRAME_BYTES) / WASM_PAGE);
  try {
    const memory = new wasm.Memory({ initial: pages, maximum: pages, shared: true });
    new Int32Array(memory.buffer)[MACHINE_FRAMES >>> 2] = frames;
    return memory;
  } catch (error) {
    throw new HibernaculumError("HIB_RAM_TOO_LARGE", `the host cannot reserve ${ramBytes} bytes of RAM; ask for less`, {
      cause: error,
    });
  }
}

export class PhysicalMemory implements ReadableMemory {
  readonly frames: number;
  readonly core: Core;
  // Word views over everything; RAM begins at RAM_WORD. Indexes stay below 2^30, where V8 is fast.
  readonly #words: Int32Array;
  readonly #floats: Float64Array;
  readonly #bytes: Uint8Array;

  constructor(memory: SharedMemory, core: Core) {
    this.#words = new Int32Array(memory.buffer);
    this.#floats = new Float64Array(memory.buffer);
    this.#bytes = new Uint8Array(memory.buffer);
    this.core = core;
    this.frames = this.#words[MACHINE_FRAMES >>> 2]!;
  }

  load32(address: PhysicalAddress): number {
    return this.#words[(address >>> 2) + (RAM_BASE >>> 2)]!;
  }

  loadFloat64(address: PhysicalAddress): number {
    return this.#floats[(address >>> 3) + (RAM_BASE >>> 3)]!;
  }

  read(address: PhysicalAddress, length: number): Uint8Array {
    this.#bringIn(address, length);
    return this.#bytes.slice(RAM_BASE + address, RAM_BASE + address + length);
  }

  /** Tracked store of a 32-bit word (address a multiple of 4). */
  store32(address: PhysicalAddress, value: number): void {
    this.core.kernelStore32(address, value);
  }

  /** Tracked store of a float64 (address a multiple of 8). */
  storeFloat64(address: PhysicalAddress, value: number): void {
    this.core.kernelStoreFloat64(address, value);
  }

  /** Tracked bulk store by the kernel, or by a device (DMA). */
  write(address: PhysicalAddress, bytes: Uint8Array, by: "kernel" | "device" = "kernel"): void {
    if (bytes.length === 0) return;
    this.#bringIn(address, bytes.length);
    this.core.beforeBulkStore(address, bytes.length, by === "device" ? FAULT_DEVICE : FAULT_KERNEL);
    this.#bytes.set(bytes, RAM_BASE + address);
  }

  /** Tracked zeroing of whole frames. */
  zero(frame: Pfn, count: number): void {
    this.core.kernelZero(frame, count);
  }

  /** Tracked copy of whole frames by the kernel. */
  copy(to: Pfn, from: Pfn, count: number = 1): void {
    this.core.kernelCopy(to, from, count);
  }

  /** What the kernel reads and stores in pieces may be a user's page that a lazy resume has not brought in yet. */
  #bringIn(address: PhysicalAddress, length: number): void {
    if (this.#words[MACHINE_LAZY >>> 2] === 0 || length === 0) return;
    const first = address >>> FRAME_SHIFT;
    this.core.bringIn(first, ((address + length - 1) >>> FRAME_SHIFT) - first + 1);
  }

  /** Direct load (S1.6): stores `bytes` (whole frames) to frames that were allocated for it; not tracked. */
  loadFrame(frame: Pfn, bytes: Uint8Array): void {
    this.#bytes.set(bytes, RAM_BASE + frame * FRAME_BYTES);
  }

  /** Stores a frame's bytes to a place of the reserve, which is no part of the machine's contents; not tracked. */
  loadPlace(place: number, bytes: Uint8Array): void {
    this.#bytes.set(bytes, place * FRAME_BYTES);
  }

  /** The 32-bit word at an offset of a place. */
  loadPlace32(place: number, offset: number): number {
    return this.#words[place * (FRAME_BYTES / 4) + (offset >>> 2)]!;
  }

  /** A copy of bytes of a place, from an offset. */
  readPlace(place: number, offset: number, length: number): Uint8Array {
    return this.#bytes.slice(place * FRAME_BYTES + offset, place * FRAME_BYTES + offset + length);
  }

  /** Whether a frame is filled with one 8-byte word, given as two halves. */
  isFilledWith(frame: Pfn, low: number, high: number): boolean {
    const at = RAM_BASE + frame * FRAME_BYTES;
    return this.core.isSameFilled(at) !== 0 && this.#words[at >>> 2] === low && this.#words[(at >>> 2) + 1] === high;
  }

  /** Whether a frame holds exactly these 4,096 bytes. */
  equals(frame: Pfn, bytes: Uint8Array): boolean {
    const at = RAM_BASE + frame * FRAME_BYTES;
    return Buffer.compare(this.#bytes.subarray(at, at + FRAME_BYTES), bytes) === 0;
  }
}

/** Byte address of a frame in the shared memory. */
export function frameAddress(frame: Pfn): number {
  return RAM_BASE + frame * FRAME_BYTES;
}

/** A frame of RAM as a place: frames of the shared memory counted from its start. */
export function placeOfFrame(frame: Pfn): number {
  return (RAM_BASE >>> FRAME_SHIFT) + frame;
}

/** The first place of the fixed pool. */
export const POOL_PLACE: number = POOL_BASE >>> FRAME_SHIFT;

/** Words as a device stores them. */
export function littleEndian(...words: number[]): Uint8Array {
  const bytes = Buffer.alloc(words.length * 4);
  for (const [i, word] of words.entries()) bytes.writeUInt32LE(word >>> 0, i * 4);
  return bytes;
}
