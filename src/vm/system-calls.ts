/** System calls as a process's program sees them, on the vCPU that runs it. */
import type { PhysicalAddress } from "../base/memory.js";
import { FRAME_BYTES } from "../base/layout.js";
import type { BootSystemCalls } from "./boot-programs.js";
import { printToConsole } from "./console.js";
import { ENOMEM } from "./errno.js";
import type { Kernel } from "./kernel.js";
import { PROCESS_NICE, PROCESS_PARENT, PROCESS_PID } from "./kernel-layout.js";
import { processAddress } from "./process.js";

/** What a process asked for that is done once its step is over, before the next safepoint. */
export type Afterwards =
  | { do: "sleep"; ms: number }
  | { do: "block" }
  | { do: "fork" }
  | { do: "exec"; text: string }
  | { do: "exit"; code: number };

const NICE_LEAST = -20;
const NICE_MOST = 19;

/**
 * The system calls of the process in a slot.
 *
 * @param afterwards - takes what is to be done after the step
 * @param loaded - part of the image that is loaded (resume), for boot processes
 */
export function createSystemCalls(
  kernel: Kernel,
  slot: number,
  afterwards: (what: Afterwards) => void,
  loaded: () => number | undefined,
): BootSystemCalls {
  const { memory, control } = kernel;
  const at: PhysicalAddress = processAddress(memory, slot);
  const space = kernel.space(slot);
  const locked = <T>(call: () => T): T => control.locked(call);
  const end = (address: number, pages: number) => (address >>> 0) + pages * FRAME_BYTES;
  /** The call's result, or that the process has to wait. */
  const orWait = <T>(result: T | undefined): T | undefined => {
    if (result === undefined) afterwards({ do: "block" });
    return result;
  };
  return {
    map: (address, order) => locked(() => space.mapBlock(address >>> 0, order)),
    unmap: (address, order) => locked(() => space.unmapBlock(address >>> 0, order)),
    shrinkStack: (address) => locked(() => space.shrinkStack(address >>> 0)),
    sleep: (ms) => afterwards({ do: "sleep", ms }),
    print: (line) => locked(() => printToConsole(memory, line)),
    loaded,

    getpid: () => memory.load32(at + PROCESS_PID),
    getppid: () => memory.load32(at + PROCESS_PARENT),
    mmap: ({ address, pages, flags, shared = false }) =>
      locked(() => {
        const request = { address: address === undefined ? undefined : address >>> 0, pages, flags, shared };
        if (!shared) return space.map({ ...request, object: 0 });
        const object = kernel.objects.create();
        if (object === undefined) return -ENOMEM;
        const result = space.map({ ...request, object });
        kernel.objects.release(object); // the area holds it now
        return result;
      }),
    munmap: (address, pages) => locked(() => space.unmap(address >>> 0, end(address, pages))),
    mprotect: (address, pages, flags) => locked(() => space.protect(address >>> 0, end(address, pages), flags)),
    madviseHuge: (address, pages) => locked(() => space.adviseHuge(address >>> 0, end(address, pages))),
    fork: () => afterwards({ do: "fork" }),
    exec: (text) => afterwards({ do: "exec", text }),
    exit: (code) => afterwards({ do: "exit", code: code & 0xff }),
    wait: (pid) => orWait(kernel.wait(slot, pid)),
    nice: (by) =>
      locked(() => {
        const nice = Math.max(NICE_LEAST, Math.min(NICE_MOST, memory.load32(at + PROCESS_NICE) + by));
        memory.store32(at + PROCESS_NICE, nice);
        return nice;
      }),
    clock: () => control.guestNow(),
    time: () => Date.now(),
  };
}
