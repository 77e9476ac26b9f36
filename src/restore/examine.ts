/**
 * The machine of an image, examined in memory before it is put in place (S2.2): everything is loaded and stopped, and what
 * the atomic restore will copy lies in the queue's places. Whatever is inconsistent is found while it costs nothing,
 * for the image is not consumed yet and the boot can go on.
 */
import { bit, type Control, countBits } from "../base/control.js";
import { Contradiction } from "../base/errors.js";
import { FRAME_BYTES, FRAME_SHIFT, IMAGE_BITMAP, MISSING_BITMAP } from "../base/layout.js";
import type { Claims } from "../cow/claims.js";
import { type Pfn, type PhysicalAddress, type ReadableMemory, requireInRam } from "../base/memory.js";
import { walkAreas } from "../vm/memory/area.js";
import { requireConsistent } from "../vm/views/consistency.js";
import { walkFds } from "../vm/files/descriptions.js";
import { ARENA_BYTES, ARENA_FREE_FRAMES, KERNEL_FREE_FRAMES, kernelLayout } from "../vm/memory/kernel-layout.js";
import type { PhysicalMemory } from "../vm/memory/physical.js";
import { listProcesses } from "../vm/tasks/process.js";
import { readHandlers } from "../vm/tasks/signals.js";
import type { LateFrame } from "./late-frames.js";
import { readPipe } from "../vm/files/pipe.js";

/** What was found in a machine that is consistent. */
export interface Examined {
  arenas: number;
  blocks: number;
  freeFrames: number;
  processes: number;
  areas: number;
  mappedPages: number;
  fds: number;
  pipeBytes: number;
  /** Signals with a handler, of all processes; and processes that have signals pending. */
  handlers: number;
  pending: number;
}

/**
 * Memory as the atomic restore of what is queued and `late` frames will make it. Nothing may move meanwhile. Outside of RAM
 * there is nothing to be read (HIB_INCONSISTENT).
 */
export class ComingMemory implements ReadableMemory {
  readonly frames: number;
  readonly #memory: PhysicalMemory;
  readonly #words: Control["words"];
  /** The place that a frame comes from; its own frame (0) if it is there already, LATE if it is, or is to be, in `#late`. */
  readonly #sources: Int32Array;
  readonly #late = new Map<Pfn, DataView>();
  readonly #image: () => ReadableMemory;

  /** @param image - has what comes later (MISSING_BITMAP) */
  constructor(
    { words }: Control,
    claims: Claims,
    memory: PhysicalMemory,
    late: readonly LateFrame[],
    image: () => ReadableMemory,
  ) {
    this.#image = image;
    this.frames = memory.frames;
    this.#words = words;
    this.#memory = memory;
    this.#sources = new Int32Array(memory.frames);
    claims.visitQueued((frame, place) => {
      this.#sources[frame] = place;
    });
    for (let frame = 0; frame < memory.frames; frame += 32) {
      const missing = countBits(words, MISSING_BITMAP, frame, Math.min(32, memory.frames - frame));
      for (let i = frame; missing > 0 && i < frame + 32; i++) if (bit(words, MISSING_BITMAP, i) === 1) this.#sources[i] = LATE;
    }
    for (const { frame, bytes } of late) {
      this.#sources[frame] = LATE;
      this.#late.set(frame, new DataView(bytes.buffer, bytes.byteOffset, FRAME_BYTES));
    }
  }

  has(frame: Pfn): boolean {
    return bit(this.#words, IMAGE_BITMAP, frame) === 1;
  }

  load32(address: PhysicalAddress): number {
    requireInRam(this.frames, address, 4, 4);
    const source = this.#sources[address >>> FRAME_SHIFT];
    if (source === 0 || source === undefined) return this.#memory.load32(address);
    const offset = address % FRAME_BYTES;
    return source === LATE ? this.#lateView(address).getInt32(offset, true) : this.#memory.loadPlace32(source, offset);
  }

  loadFloat64(address: PhysicalAddress): number {
    requireInRam(this.frames, address, 8, 8);
    return new DataView(this.read(address, 8).buffer).getFloat64(0, true);
  }

  read(address: PhysicalAddress, length: number): Uint8Array {
    requireInRam(this.frames, address, length);
    const bytes = new Uint8Array(length);
    for (let done = 0; done < length; ) {
      const at = address + done;
      const offset = at % FRAME_BYTES;
      const part = Math.min(length - done, FRAME_BYTES - offset);
      bytes.set(this.#readWithin(at, offset, part), done);
      done += part;
    }
    return bytes;
  }

  #readWithin(address: PhysicalAddress, offset: number, length: number): Uint8Array {
    const source = this.#sources[address >>> FRAME_SHIFT];
    if (source === 0 || source === undefined) return this.#memory.read(address, length);
    if (source !== LATE) return this.#memory.readPlace(source, offset, length);
    const { buffer, byteOffset } = this.#lateView(address);
    return new Uint8Array(buffer, byteOffset + offset, length);
  }

  #lateView(address: PhysicalAddress): DataView {
    const frame = address >>> FRAME_SHIFT;
    let view = this.#late.get(frame);
    if (view === undefined) {
      view = new DataView(this.#image().read(frame * FRAME_BYTES, FRAME_BYTES).buffer);
      this.#late.set(frame, view);
    }
    return view;
  }
}

const LATE = -1;

/** @throws HIB_INCONSISTENT */
export function examine(memory: ReadableMemory): Examined {
  const { blocks, freeFrames, mappedPages } = requireConsistent(memory);
  const processes = listProcesses(memory);
  const fds = processes.flatMap(({ slot }) => [...walkFds(memory, slot)]);
  const pipes = new Set(
    fds.flatMap(({ description: { kind, behind } }) => (kind === "reader" || kind === "writer" ? [behind] : [])),
  );
  return {
    fds: fds.length,
    pipeBytes: [...pipes].reduce((sum, pipe) => sum + readPipe(memory, pipe).filled, 0),
    handlers: processes.reduce((sum, { slot }) => sum + Object.keys(readHandlers(memory, slot)).length, 0),
    pending: processes.filter(({ pending }) => pending !== 0).length,
    arenas: kernelLayout(memory.frames).arenas,
    blocks,
    freeFrames,
    processes: processes.length,
    areas: processes.reduce((sum, { areas }) => sum + [...walkAreas(memory, areas)].length, 0),
    mappedPages,
  };
}

/**
 * Counts what the atomic restore has put in place, which must be what was examined.
 *
 * @throws HIB_INCONSISTENT
 */
export function countRestored(
  memory: ReadableMemory,
  examined: Examined,
): { freeByArena: number[]; freeFrames: number; processes: number } {
  const { arenas, arenaTable } = kernelLayout(memory.frames);
  const freeByArena = Array.from({ length: arenas }, (_, arena) =>
    memory.load32(arenaTable + arena * ARENA_BYTES + ARENA_FREE_FRAMES),
  );
  const freeFrames = freeByArena.reduce((sum, frames) => sum + frames, 0);
  const processes = listProcesses(memory).length;
  if (freeFrames !== examined.freeFrames || memory.load32(KERNEL_FREE_FRAMES) !== freeFrames)
    throw new Contradiction(`${freeFrames} frames are free once it is in place, and ${examined.freeFrames} were before`);
  if (processes !== examined.processes)
    throw new Contradiction(`it has ${processes} processes once it is in place, and ${examined.processes} before`);
  return { freeByArena, freeFrames, processes };
}

/**
 * Counts processes by what they will do, before any of them runs.
 *
 * @throws HIB_INCONSISTENT if one is on a vCPU, or on its way out
 */
export function countRunnable(memory: ReadableMemory): { ready: number; sleeping: number; others: number } {
  const states = listProcesses(memory).map(({ state }) => state);
  const count = (...which: typeof states) => states.filter((state) => which.includes(state)).length;
  if (count("running", "ending") > 0) throw new Contradiction(`${count("running", "ending")} processes run while nothing does`);
  const [ready, sleeping] = [count("ready"), count("sleeping")];
  return { ready, sleeping, others: states.length - ready - sleeping };
}
