/**
 * The machine's memory as the host's kernel shows it: `/proc/self/mem`, opened for reading only. A process that inherits the descriptor
 * sees what the machine stores, and the host refuses to let it write.
 */
import { randomBytes } from "node:crypto";
import { closeSync, openSync, readFileSync, readSync } from "node:fs";
import { HibernaculumError } from "../base/errors.js";
import { POOL_BASE } from "../base/layout.js";
import type { SharedMemory } from "../base/wasm.js";

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
export function openHostMemory({ buffer }: SharedMemory): HostMemory {
  const mark = randomBytes(MARK_BYTES);
  new Uint8Array(buffer, POOL_BASE, MARK_BYTES).set(mark);
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
    if (Number.parseInt(to!, 16) - base < buffer.byteLength) continue;
    const found = Buffer.alloc(MARK_BYTES);
    readSync(descriptor, found, 0, MARK_BYTES, base + POOL_BASE);
    if (found.equals(mark)) return { descriptor, base, [Symbol.dispose]: () => closeSync(descriptor) };
  }
  closeSync(descriptor);
  throw new HibernaculumError("HIB_DEPENDENCY", "the machine's memory is not among the host's mappings (/proc/self/maps)");
}
