/**
 * The machine's memory as the host's kernel shows it: `/proc/self/mem`, opened for reading only. A process that inherits the descriptor
 * sees what the machine stores, and the host refuses to let it write.
 */
import { randomBytes } from "node:crypto";
import { closeSync, openSync, readFileSync, readSync } from "node:fs";
import { HibernaculumError } from "../base/errors.js";
import type { Control } from "../base/control.js";
import { FRAME_BYTES, MACHINE_FRAMES, POOL_BASE, RAM_BASE } from "../base/layout.js";

/** A descriptor, and where in it the machine's memory begins. */
export interface HostMemory extends Disposable {
  descriptor: number;
  base: number;
}

const MARK_BYTES = 32;

/**
 * Opens this process's memory and finds the machine's in it. Nothing uses the pool meanwhile.
 *
 * @throws HIB_DEPENDENCY if the host does not show it
 */
export function openHostMemory(control: Control): HostMemory {
  const mark = randomBytes(MARK_BYTES);
  for (let at = 0; at < MARK_BYTES; at += 4) control.words[(POOL_BASE + at) >>> 2] = mark.readInt32LE(at);
  const bytes = RAM_BASE + control.load(MACHINE_FRAMES) * FRAME_BYTES;
  let descriptor: number;
  let maps: string;
  try {
    maps = readFileSync("/proc/self/maps", "latin1");
    descriptor = openSync("/proc/self/mem", "r");
  } catch (cause) {
    throw new HibernaculumError("HIB_DEPENDENCY", "the host does not show a process its memory (/proc/self/mem)", { cause });
  }
  for (const [, from, to] of maps.matchAll(/^([0-9a-f]+)-([0-9a-f]+) rw/gm)) {
    const base = Number.parseInt(from!, 16);
    if (Number.parseInt(to!, 16) - base < bytes) continue;
    const found = Buffer.alloc(MARK_BYTES);
    readSync(descriptor, found, 0, MARK_BYTES, base + POOL_BASE);
    if (found.equals(mark)) return { descriptor, base, [Symbol.dispose]: () => closeSync(descriptor) };
  }
  closeSync(descriptor);
  throw new HibernaculumError("HIB_DEPENDENCY", "the machine's memory is not among the host's mappings (/proc/self/maps)");
}
