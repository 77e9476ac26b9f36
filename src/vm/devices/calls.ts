/**
 * System calls on devices, as a vCPU makes them for the process that it runs.
 *
 * What must hold: memory of the process is read and written outside the kernel lock (an access may fault, and the fault
 * takes the lock), and a call that would have to wait returns before it has changed anything.
 */
import { MACHINE_DEVICE_BELL } from "../../base/layout.js";
import type { Core } from "../memory/core.js";
import { GuestFault } from "../memory/address-space.js";
import type { Kernel } from "../kernel.js";
import { KERNEL_GENERATION } from "../memory/kernel-layout.js";
import type { DeviceCalls } from "../personality/step/program.js";
import { UserCopy } from "../memory/user-copy.js";
import { SECTOR_BYTES, submitRequest, TAGS, takeResult } from "./block-requests.js";
import { POOL_LOW, takeRandom } from "./entropy.js";

/**
 * @param process - who makes the calls
 * @param notify - has the coordinator look at the devices
 */
export function createDeviceCalls(
  kernel: Kernel,
  core: Core,
  process: { slot: number; pid: number },
  notify: () => void,
): DeviceCalls {
  const { control, memory } = kernel;
  const user = new UserCopy(core);
  // One message at a time: the bell is cleared before the devices are looked at, so what came before it is seen.
  const ring = (): void => {
    if (control.add(MACHINE_DEVICE_BELL, 1) === 0) notify();
  };
  return {
    submitRequest(tag, operation, sector, address) {
      if (!(tag >= 0 && tag < TAGS)) throw new GuestFault(`request ${tag}: a tag is a number from 0 to ${TAGS - 1}`);
      const words = { length: SECTOR_BYTES / 4 };
      const data = operation === "write" ? Int32Array.from(words, (_, i) => core.load32((address + i * 4) | 0)) : undefined;
      const answer = control.locked(() => submitRequest(kernel, { ...process, tag }, { operation, sector, data }));
      if (answer === "no disk") throw new GuestFault("it uses a disk, and the machine has none: give it one with --disk");
      if (answer === "in flight") throw new GuestFault(`request ${tag} is in flight already`);
      if (answer === "submitted") ring();
      return answer === "submitted";
    },
    awaitRequest(tag, address) {
      user.prepare(address >>> 0, SECTOR_BYTES); // the result is taken away: where it goes must be known to be there
      const result = control.locked(() => takeResult(kernel, { ...process, tag }));
      if (result === "unknown") throw new GuestFault(`wait for request ${tag}, which was not submitted`);
      for (const [i, word] of result?.data?.entries() ?? []) core.store32((address + i * 4) | 0, word);
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
