/** The memory of a process as the process would see it, read from outside: of a stored machine, or of one that is stopped. */
import { FRAME_BYTES } from "../../base/layout.js";
import type { Pfn, ReadableMemory, VirtualAddress } from "../../base/memory.js";
import { type Area, isDemandZero, walkAreas } from "../memory/area.js";
import { findObjectPage } from "../memory/memory-object.js";
import { findFrame } from "../memory/page-table.js";
import type { Process } from "../tasks/process.js";

/** A stretch of addresses of which the same holds. */
export type MemoryPart =
  | { address: VirtualAddress; length: number; state: "mapped"; pfn: Pfn; bytes: Uint8Array }
  /** `demand-zero`: the first access would give it a frame, of zeros but for a page of a file of the host. `unmapped`: an access would end the process. */
  | { address: VirtualAddress; length: number; state: "demand-zero" | "unmapped" };

/** What lies from `address` to `address + length` - 1, page by page; pages without a frame are joined. */
export function readProcessMemory(
  memory: ReadableMemory,
  { root, areas: head }: Process,
  address: VirtualAddress,
  length: number,
): MemoryPart[] {
  const areas = [...walkAreas(memory, head)];
  const parts: MemoryPart[] = [];
  for (let at = address; at < address + length; ) {
    const offset = at % FRAME_BYTES;
    const bytes = Math.min(FRAME_BYTES - offset, address + length - at);
    // A stack grows down to its limit.
    const area = areas.find(({ start, end, limit }) => at >= (limit === 0 ? start : limit) && at < end);
    // A zombie has no page tables any more.
    const pfn = (root === 0 ? undefined : findFrame(memory, root, at)) ?? objectFrame(memory, area, at);
    const last = parts.at(-1);
    if (pfn !== undefined) {
      parts.push({ address: at, length: bytes, state: "mapped", pfn, bytes: memory.read(pfn * FRAME_BYTES + offset, bytes) });
    } else {
      const state = area !== undefined && (area.object !== 0 || isDemandZero(area)) ? "demand-zero" : "unmapped";
      if (last?.state === state) last.length += bytes;
      else parts.push({ address: at, length: bytes, state });
    }
    at += bytes;
  }
  return parts;
}

/** The frame of a page that the process has not touched yet, and its memory object has. */
function objectFrame(memory: ReadableMemory, area: Area | undefined, address: VirtualAddress): Pfn | undefined {
  if (area === undefined || area.object === 0) return undefined;
  return findObjectPage(memory, area.object, area.offset + Math.floor((address - area.start) / FRAME_BYTES));
}
