/** The memory that a process begins with, as its program wants it: code page, areas, initial contents. */
import type { Control } from "../../base/control.js";
import { HibernaculumError } from "../../base/errors.js";
import { FRAME_BYTES } from "../../base/layout.js";
import type { VirtualAddress } from "../../base/memory.js";
import type { AddressSpace } from "../memory/address-space.js";
import { type AreaKind, CODE_FLAGS, DATA_FLAGS } from "../memory/area.js";
import { tile } from "../memory/buddy.js";
import { PROCESS_RATE, PROCESS_ROOT, PROCESS_TEXT_BYTES, processAddress } from "../memory/kernel-layout.js";
import { CODE_BASE, DATA_BASE, HEAP_BASE, HEAP_END, STACK_TOP } from "../memory/user-layout.js";
import type { KernelParts } from "./parts.js";

/** Largest block used to fill a data area, so that areas are long physical runs but split fairly. */
const POPULATE_ORDER = 9;

/** What a program wants of a process that begins. */
export interface ProcessTemplate {
  /** Pages of the data area. */
  readonly dataPages: number;
  /** Most pages that the stack may grow to. */
  readonly stackPages: number;
  /** Most steps a second; 0 for as many as it can. */
  readonly rate: number;
  /**
   * Writes the initial contents of a data page into `out` (4,096 bytes). False: the page is to stay absent and is
   * read as zeros (demand-zero). A page that is present but zero returns true and a zero page. Without it all are absent.
   */
  initialPage?(page: number, out: Uint8Array): boolean;
}

/**
 * Builds the address space of a process that has none.
 *
 * @param text - of the program, kept in the code page
 * @throws HIB_NO_MEMORY
 */
export function buildMemory(
  { control, memory }: KernelParts,
  slot: number,
  space: AddressSpace,
  text: string,
  template: ProcessTemplate,
): void {
  const at = processAddress(memory, slot);
  const bytes = new TextEncoder().encode(text);
  control.locked(() => {
    memory.storeFloat64(at + PROCESS_RATE, template.rate);
    memory.store32(at + PROCESS_TEXT_BYTES, bytes.length);
    const root = space.allocateTable();
    if (root === undefined) throw noMemory(1);
    memory.store32(at + PROCESS_ROOT, root);
    if (!space.mapNew(CODE_BASE, 0, CODE_FLAGS, bytes)) throw noMemory(1);
    const add = (kind: AreaKind, start: VirtualAddress, end: VirtualAddress, flags: number, limit: VirtualAddress = 0): void => {
      const area = { start, end, flags, kind, limit, object: 0, offset: 0, shared: false, readOnly: false };
      if (start < end && !space.addArea(area)) throw noMemory(1);
    };
    add("code", CODE_BASE, CODE_BASE + FRAME_BYTES, CODE_FLAGS);
    add("data", DATA_BASE, DATA_BASE + template.dataPages * FRAME_BYTES, DATA_FLAGS);
    add("heap", HEAP_BASE, HEAP_END, DATA_FLAGS);
    const stackLimit = STACK_TOP - template.stackPages * FRAME_BYTES;
    add("stack", Math.max(stackLimit, STACK_TOP - FRAME_BYTES), STACK_TOP, DATA_FLAGS, stackLimit);
  });
  populate(control, space, template);
}

/** Fills the data area with its initial contents, in blocks as large as runs of present pages allow. */
function populate(control: Control, space: AddressSpace, template: ProcessTemplate): void {
  const contents = new Uint8Array(FRAME_BYTES << POPULATE_ORDER);
  let first = 0;
  let run = 0;
  for (let page = 0; page <= template.dataPages; page++) {
    const present =
      page < template.dataPages &&
      template.initialPage?.(page, contents.subarray(run * FRAME_BYTES, (run + 1) * FRAME_BYTES)) === true;
    if (present && run === 0) first = page;
    if (present) run++;
    if (run > 0 && (!present || run === 1 << POPULATE_ORDER)) {
      placeRun(control, space, DATA_BASE + first * FRAME_BYTES, contents.subarray(0, run * FRAME_BYTES));
      run = 0;
    }
  }
}

function placeRun(control: Control, space: AddressSpace, address: VirtualAddress, contents: Uint8Array): void {
  for (const { frame: page, order } of tile(0, contents.length / FRAME_BYTES)) {
    const bytes = contents.subarray(page * FRAME_BYTES, (page + (1 << order)) * FRAME_BYTES);
    const at = address + page * FRAME_BYTES;
    if (!control.locked(() => space.mapNew(at, order, DATA_FLAGS, bytes))) throw noMemory(1 << order);
  }
}

function noMemory(frames: number): HibernaculumError {
  return new HibernaculumError(
    "HIB_NO_MEMORY",
    `the machine has no free block of ${frames} frames; give it more --ram or fewer pages`,
  );
}
