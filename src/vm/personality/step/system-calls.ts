/** System calls as a process's program sees them, on the vCPU that runs it. */
import type { PhysicalAddress } from "../../../base/memory.js";
import { FRAME_BYTES, MACHINE_SAVE_PERCENT, PTE_W } from "../../../base/layout.js";
import type { BootSystemCalls } from "./boot-programs.js";
import { CALL_BYTES_MAX } from "../../files/files.js";
import { EINVAL, ENOMEM, EPIPE } from "../../memory/errno.js";
import type { Kernel } from "../../kernel.js";
import {
  PROCESS_MASK,
  PROCESS_NICE,
  PROCESS_PARENT,
  PROCESS_PENDING,
  PROCESS_PID,
  processAddress,
} from "../../memory/kernel-layout.js";
import { DISPOSITION_DEFAULT, DISPOSITION_IGNORE, HANDLER_MAX, SIGPIPE } from "../../tasks/signals.js";
import { Wait } from "../../tasks/wait.js";
import { UserCopy } from "../../memory/user-copy.js";
import type { DeviceCalls } from "../../devices/calls.js";
import { printToConsole } from "../../memory/console-ring.js";

/** What a process asked for that is done once its step is over, before the next safepoint. */
export type Afterwards =
  | { do: "sleep"; ms: number }
  | { do: "wait" }
  /** Nothing, but the batch is over: there may be a signal to deliver before the next step. */
  | { do: "signals" }
  | { do: "pause"; mask?: number }
  | { do: "sigreturn" }
  | { do: "fork" }
  | { do: "exec"; text: string }
  | { do: "exit"; code: number };

const NICE_LEAST = -20;
const NICE_MOST = 19;

/**
 * The system calls of the process in a slot.
 *
 * @param afterwards - takes what is to be done after the step
 * @param devices - the calls on devices, which want the vCPU that makes them
 * @param loaded - part of the image that is loaded (resume), for boot processes
 */
export function createSystemCalls(
  kernel: Kernel,
  slot: number,
  afterwards: (what: Afterwards) => void,
  devices: DeviceCalls,
  loaded: () => number | undefined,
): BootSystemCalls {
  const { memory, control, files, signals } = kernel;
  const user = new UserCopy(memory);
  const at: PhysicalAddress = processAddress(memory, slot);
  const space = kernel.space(slot);
  const locked = <T>(call: () => T): T => control.locked(call);
  const end = (address: number, pages: number) => (address >>> 0) + pages * FRAME_BYTES;
  /** The call's result; undefined if the process has to wait. */
  const orWait = <T>(call: () => T | Wait): T | undefined => {
    const result = kernel.turns.attempt(slot, call);
    if (!(result instanceof Wait)) return result;
    afterwards({ do: "wait" });
    return undefined;
  };
  return {
    map: (address, order) => locked(() => space.mapBlock(address >>> 0, order)),
    unmap: (address, order) => locked(() => space.unmapBlock(address >>> 0, order)),
    shrinkStack: (address) => locked(() => space.shrinkStack(address >>> 0)),
    sleep: (ms) => afterwards({ do: "sleep", ms: Math.max(0, ms) || 0 }),
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
    msync: (address, pages) => locked(() => space.synchronise(address >>> 0, end(address, pages))),
    munmap: (address, pages) => locked(() => space.unmap(address >>> 0, end(address, pages))),
    mprotect: (address, pages, flags) => locked(() => space.protect(address >>> 0, end(address, pages), flags)),
    madviseHuge: (address, pages) => locked(() => space.adviseHuge(address >>> 0, end(address, pages))),
    fork: () => afterwards({ do: "fork" }),
    exec: (text) => afterwards({ do: "exec", text }),
    exit: (code) => afterwards({ do: "exit", code: code & 0xff }),
    wait: (pid, options = 0) => orWait(() => kernel.lifecycle.wait(slot, pid, options)),

    getpgid: (pid) => kernel.groups.getpgid(slot, pid),
    setpgid: (pid, group) => kernel.groups.setpgid(slot, pid, group),
    sigaction: (signal, action, mask = 0) => {
      const disposition = action === "default" ? DISPOSITION_DEFAULT : action === "ignore" ? DISPOSITION_IGNORE : action;
      if (typeof action === "number" && (action < 1 || action > HANDLER_MAX)) return -EINVAL;
      return locked(() => signals.setDisposition(at, signal, disposition, mask));
    },
    sigprocmask: (how, set) => {
      const mask = memory.load32(at + PROCESS_MASK);
      const changed = { block: mask | set, unblock: mask & ~set, set }[how];
      afterwards({ do: "signals" });
      return signals.setMask(at, changed);
    },
    sigpending: () => memory.load32(at + PROCESS_PENDING),
    kill: (pid, signal) => {
      afterwards({ do: "signals" });
      return kernel.groups.kill(slot, pid, signal);
    },
    sigreturn: () => afterwards({ do: "sigreturn" }),
    pause: () => afterwards({ do: "pause" }),
    sigsuspend: (mask) => afterwards({ do: "pause", mask }),
    alarm: (ms, interval = 0) => {
      if (!(ms >= 0) || !(interval >= 0)) return -EINVAL;
      return locked(() => signals.setAlarm(at, ms, interval));
    },
    saving: () => {
      const percent = control.load(MACHINE_SAVE_PERCENT);
      return percent === 0 ? undefined : (percent - 1) / 100;
    },
    nice: (by) =>
      locked(() => {
        const nice = Math.max(NICE_LEAST, Math.min(NICE_MOST, memory.load32(at + PROCESS_NICE) + by));
        memory.store32(at + PROCESS_NICE, nice);
        return nice;
      }),
    open: (path, flags) => orWait(() => files.open(slot, path, flags)),
    close: (fd) => locked(() => files.descriptions.close(slot, fd)),
    read: (fd, address, bytes) => {
      const most = Math.min(bytes, CALL_BYTES_MAX);
      user.prepare(address >>> 0, most);
      const found = orWait(() => files.read(slot, fd, most));
      if (found === undefined || typeof found === "number") return found;
      user.copyOut(address >>> 0, found);
      return found.length;
    },
    write: (fd, address, bytes) => {
      const data = user.copyIn(address >>> 0, Math.min(bytes, CALL_BYTES_MAX));
      const written = orWait(() => files.write(slot, fd, data));
      if (written === -EPIPE) {
        locked(() => signals.post(at, SIGPIPE));
        afterwards({ do: "signals" });
      }
      return written;
    },
    lseek: (fd, offset, whence) => locked(() => files.seek(slot, fd, offset, whence)),
    ftruncate: (fd, size) => orWait(() => files.ftruncate(slot, fd, size)),
    fstat: (fd) => locked(() => files.fstat(slot, fd)),
    stat: (path) => locked(() => files.names.stat(path)),
    readdir: (path) => locked(() => files.names.list(path)),
    mkdir: (path) => locked(() => files.names.mkdir(path)),
    rmdir: (path) => locked(() => files.names.rmdir(path)),
    unlink: (path) => orWait(() => files.names.unlink(path)),
    rename: (from, to) => orWait(() => files.names.rename(from, to)),
    pipe: (flags = 0) => locked(() => files.pipe(slot, flags)),
    dup: (fd) => locked(() => files.descriptions.duplicate(slot, fd)),
    dup2: (fd, to) => locked(() => files.descriptions.duplicate(slot, fd, to)),
    setFdFlags: (fd, flags) => locked(() => files.descriptions.setFlags(slot, fd, flags)),
    console: () => locked(() => files.openConsole(slot)),
    mmapFile: (fd, offset, { shared = false, ...request }) =>
      locked(() => {
        const found = files.objectOf(slot, fd, shared && (request.flags & PTE_W) !== 0 ? "store" : "load");
        if (typeof found === "number") return found;
        return space.map({ ...request, shared, object: found.object, offset, readOnly: shared && !found.writable });
      }),
    ...devices,
  };
}
