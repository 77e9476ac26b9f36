/** What a catalogue's `meta` says, which may be any JSON. */
import { MAX_VCPUS } from "../base/layout.js";
import type { Meta } from "./catalogue-rows.js";

/** How many vCPUs the machine had; 1 if that is not told. Undefined: no machine can have had as many. */
export function savedVcpus({ vcpus = 1 }: Meta): number | undefined {
  return Number.isInteger(vcpus) && (vcpus as number) >= 1 && (vcpus as number) <= MAX_VCPUS ? (vcpus as number) : undefined;
}
