/**
 * Copies between the kernel and the memory of the process that runs on this vCPU, through its MMU: permissions, faults and
 * tracking are those of the process's own accesses. A fault takes the kernel lock: do not hold it here.
 */
import { FRAME_BYTES } from "../../base/layout.js";
import type { VirtualAddress } from "../../base/memory.js";
import type { Core } from "./core.js";

export class UserCopy {
  readonly #core: Core;

  constructor(core: Core) {
    this.#core = core;
  }

  copyIn(address: VirtualAddress, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    let done = 0;
    for (; done + 4 <= length; done += 4) {
      const word = this.#core.load32((address + done) | 0);
      for (let i = 0; i < 4; i++) bytes[done + i] = word >>> (8 * i);
    }
    for (; done < length; done++) bytes[done] = this.#core.load8((address + done) | 0);
    return bytes;
  }

  copyOut(address: VirtualAddress, bytes: Uint8Array): void {
    let done = 0;
    for (; done + 4 <= bytes.length; done += 4) {
      const word = bytes[done]! | (bytes[done + 1]! << 8) | (bytes[done + 2]! << 16) | (bytes[done + 3]! << 24);
      this.#core.store32((address + done) | 0, word);
    }
    for (; done < bytes.length; done++) this.#core.store8((address + done) | 0, bytes[done]!);
  }

  /** Makes sure that bytes can be stored there: a call that takes something away must not find out later. */
  prepare(address: VirtualAddress, length: number): void {
    for (let at = address; at < address + length; at = at - (at % FRAME_BYTES) + FRAME_BYTES) {
      this.#core.prepareStore(at | 0);
    }
  }
}
