/**
 * System calls on devices, as a vCPU makes them for the process that it runs.
 *
 * What must hold: memory of the process is read and written outside the kernel lock (an access may fault, and the fault
 * takes the lock), and a call that would have to wait returns before it has changed anything.
 */
import type { VirtualAddress } from "../../base/memory.js";
import { MACHINE_DEVICE_BELL } from "../../base/layout.js";
import { GuestFault } from "../memory/address-space.js";
import type { KernelParts } from "../tasks/parts.js";
import { KERNEL_GENERATION } from "../memory/kernel-layout.js";
import { UserCopy } from "../memory/user-copy.js";
import { type DiskOperation, type DiskStatus, SECTOR_BYTES, submitRequest, TAGS, takeResult } from "./block-requests.js";
import { POOL_LOW, takeRandom } from "./entropy.js";

/** System calls on devices. One that would have to wait says so and has changed nothing: the step then ends undone. */
export interface DeviceCalls {
  /**
   * Submits a request to the disk, of one sector of 4,096 bytes. Several may be in flight; they are not ordered. False if
   * there is no memory for it now.
   *
   * @param tag - the process's own number for it, 0 to 15; not one that is in flight
   * @param sector - of a read or write
   * @param address - what to write (copied now)
   */
  submitRequest(tag: number, operation: DiskOperation, sector: number, address: VirtualAddress): boolean;
  /** How the request of that tag ended; what it read is then at `address`. Undefined if it has not ended yet. */
  awaitRequest(tag: number, address: VirtualAddress): DiskStatus | undefined;
  /** A random 32-bit word, signed; undefined if the pool is empty now. */
  random(): number | undefined;
  /** Grows with each resume, and differs between two resumes of one image: whoever keeps random state compares it. */
  generation(): number;
  /** Milliseconds of the machine's own clock, which stands still while the machine is an image. */
  monotonicTime(): number;
  /** Milliseconds since 1970, as the host has it: jumps over the time that the machine was an image. */
  wallTime(): number;
}

/**
 * @param process - the one that makes the calls
 * @param notify - has the coordinator look at the devices
 */
export function createDeviceCalls(parts: KernelParts, process: { slot: number; pid: number }, notify: () => void): DeviceCalls {
  const { control, memory } = parts;
  const user = new UserCopy(memory);
  // One message at a time: the bell is cleared before the devices are looked at, so what came before it is seen.
  const ring = (): void => {
    if (control.add(MACHINE_DEVICE_BELL, 1) === 0) notify();
  };
  return {
    submitRequest(tag, operation, sector, address) {
      if (!(tag >= 0 && tag < TAGS)) throw new GuestFault(`request ${tag}: a tag is a number from 0 to ${TAGS - 1}`);
      const data = operation === "write" ? user.copyIn(address >>> 0, SECTOR_BYTES) : undefined;
      const answer = control.locked(() => submitRequest(parts, { ...process, tag }, { operation, sector, data }));
      if (answer === "no disk") throw new GuestFault("it uses a disk, and the machine has none: give it one with --disk");
      if (answer === "in flight") throw new GuestFault(`request ${tag} is in flight already`);
      if (answer === "submitted") ring();
      return answer === "submitted";
    },
    awaitRequest(tag, address) {
      user.prepare(address >>> 0, SECTOR_BYTES); // the result is taken away: where it goes must be known to be there
      const result = control.locked(() => takeResult(parts, { ...process, tag }));
      if (result === "unknown") throw new GuestFault(`wait for request ${tag}, which was not submitted`);
      if (result?.data !== undefined) user.copyOut(address >>> 0, result.data);
      return result?.status;
    },
    random() {
      const { word, left } = control.locked(() => takeRandom(memory));
      if (left < POOL_LOW) ring();
      return word;
    },
    generation: () => memory.loadFloat64(KERNEL_GENERATION),
    monotonicTime: () => control.guestNow(),
    wallTime: () => Date.now(),
  };
}
