/** What a machine can be made of. */
import { HibernaculumError } from "./base/errors.js";
import { MAX_VCPUS } from "./base/layout.js";
import { PAGE_THREADS_MAX } from "./base/limits.js";
import { callback, checkOptions, flag, having, listOf, path, type Rule, wholeNumber } from "./base/options.js";
import type { DiskRequest } from "./vm/devices/block-requests.js";
import type { Mount } from "./vm/files/path.js";

export interface MachineOptions {
  /** Bytes of RAM, RAM_BYTES_MIN to RAM_BYTES_MAX: 4 MiB to 4,016 MiB; rounded up to whole frames of 4 KiB. */
  ramBytes: number;
  /** Number of vCPUs, 1 to 16; each is a thread. */
  vcpus: number;
  /**
   * Threads that load and write pages, 1 to 4. Default: one a core; then a save uses only as many as the vCPUs leave cores
   * free, and one at least.
   */
  pageThreads?: number;
  /** Directories of the host that processes see. */
  mounts?: readonly Mount[];
  /** Takes what the machine prints. What it throws is a warning of the process, and the machine goes on. */
  onConsole?: (text: string) => void;
  /** A file that is the machine's disk, of whole sectors of 4 KiB. Nobody else may write to it. */
  disk?: string;
  /** Tests: awaited between the host's part of a disk request and its DMA transfer; may throw a system error. */
  onDiskTransfer?: (request: DiskRequest) => Promise<void> | void;
}

const mountRule: Rule = {
  must: "{ host, path, readOnly }: a directory of the host, and where processes see it, a path that begins with /",
  holds(value) {
    if (typeof value !== "object" || value === null) return false;
    const { host, path: seen, readOnly, ...others } = value as Partial<Record<keyof Mount, unknown>>;
    if (!path.holds(host) || !path.holds(seen) || !(seen as string).startsWith("/")) return false;
    return (readOnly === undefined || flag.holds(readOnly)) && Object.keys(others).length === 0;
  },
};

const RULES: Readonly<Record<keyof MachineOptions, Rule>> = {
  ramBytes: wholeNumber(0),
  vcpus: wholeNumber(1, MAX_VCPUS),
  pageThreads: wholeNumber(1, PAGE_THREADS_MAX),
  mounts: listOf(mountRule),
  onConsole: callback,
  disk: path,
  onDiskTransfer: callback,
};

/** @throws HIB_USAGE; how much RAM there may be is for `createMemory` to say */
export function checkMachine(options: MachineOptions): void {
  checkOptions("Machine.boot", options, RULES);
  const { ramBytes, vcpus } = options;
  if (ramBytes === undefined || vcpus === undefined)
    throw new HibernaculumError("HIB_USAGE", "Machine.boot: give ramBytes and vcpus");
}

/** What `Machine.boot` has given; told by what it has, for those below whom the machine itself is above. */
export const machineRule: Rule = having("what Machine.boot has given", "begin", "powerOff", "kernel");
