/** The leaves of a process against its areas, its frames and what others map: a part of consistency.ts. */
import { FRAME_BYTES, PTE_COW, PTE_D, PTE_PARKED, PTE_R, PTE_U, PTE_V, PTE_W, PTE_X } from "../../base/layout.js";
import type { Pfn, ReadableMemory } from "../../base/memory.js";
import type { StoredArea } from "../memory/area.js";
import type { Blocks } from "../memory/inventory.js";
import * as K from "../memory/kernel-layout.js";
import type { Process } from "../tasks/process.js";

/** What is held by leaves and memory objects, counted by frame. */
export interface Holders {
  leaves: Uint32Array;
  /** Of blocks of more than one frame, by the first: 1 + the level of the leaves. */
  levels: Uint8Array;
  objects: Uint32Array;
}

/** Checks the leaves of a process against its areas, and counts who maps what. */
export class MappingCheck {
  /** Pages mapped. */
  pages = 0;
  readonly #frames: number;
  readonly #pid: number;
  readonly #areas: readonly StoredArea[];
  readonly #blocks: Blocks;
  readonly #holders: Holders;
  readonly #report: (text: string) => void;
  /** The first of the areas that may hold the next leaf: both come in the order of their addresses. */
  #area = 0;
  #before = { address: 0, frame: 0 };
  /** Of the leaf that is looked at. */
  #address = 0;

  constructor(
    { frames }: ReadableMemory,
    { pid }: Process,
    areas: readonly StoredArea[],
    blocks: Blocks,
    holders: Holders,
    problem: (text: string) => void,
  ) {
    this.#frames = frames;
    this.#pid = pid;
    this.#areas = areas;
    this.#blocks = blocks;
    this.#holders = holders;
    this.#report = problem;
  }

  leaf(address: number, frame: Pfn, flags: number, level: number): void {
    const { kind: kinds, owner: owners, head, order } = this.#blocks;
    const { leaves, levels } = this.#holders;
    this.#address = address;
    const frames = level === 0 ? 1 : 512;
    if (frame + frames > this.#frames) return this.#problem(`maps frame ${frame}, which is beyond RAM`);
    this.pages += frames;
    for (let i = 0; i < frames; i++) leaves[frame + i]!++;
    const kind = kinds[frame]!;
    const owner = owners[frame]!;
    if (!K.isUserKind(kind) || (owner !== 0 && owner !== this.#pid))
      this.#problem(`maps frame ${frame} of another kind or owner`);
    if (level === 1 && (head[frame] !== frame || order[frame] !== 9)) this.#problem("maps 2 MiB that are no block");
    // Whatever takes a block's pages away relies on it: they lie one after another.
    const before = this.#before;
    if (level === 0 && head[frame] !== frame && (before.frame !== frame - 1 || before.address !== address - FRAME_BYTES))
      this.#problem(`maps frame ${frame} in the middle of a block, and the page before it another`);
    before.address = address;
    before.frame = frame;
    // One that is shared is split into frames before, unless all have it as 2 MiB.
    if (order[frame] !== 0) {
      if (levels[frame] === level + 1 ? level === 0 : levels[frame] !== 0)
        this.#problem(`maps frame ${frame} of a block that is not shared as a whole`);
      levels[frame] = level + 1;
    }
    if (address % (FRAME_BYTES * frames) !== 0) this.#problem("is not aligned");
    while (this.#area < this.#areas.length && address >= this.#areas[this.#area]!.end) this.#area++;
    const area = this.#areas[this.#area];
    if (area === undefined || address < area.start || address + frames * FRAME_BYTES > area.end) this.#problem("lies in no area");
    else this.#checkFlags(area, flags, owner, kind);
  }

  /** What must hold of a leaf: see address-space.ts. */
  #checkFlags(area: StoredArea, flags: number, owner: number, kind: number): void {
    const permissions = PTE_R | PTE_W | PTE_X;
    const wanted = area.flags & permissions;
    const parked = (flags & PTE_PARKED) !== 0;
    const has = (flags & permissions) | ((flags & PTE_COW) !== 0 ? PTE_W : 0);
    if ((flags & PTE_U) === 0) this.#problem("is not the user's");
    if (parked !== (wanted === 0) || parked === ((flags & PTE_V) !== 0))
      this.#problem("is parked and should not be, or the reverse");
    const clean = K.isUnwritten(kind);
    if (has !== wanted && !(area.shared && has === (wanted & ~PTE_W)))
      this.#problem(`has permissions ${flags.toString(2)}, its area ${area.flags.toString(2)}`);
    if ((flags & PTE_W) !== 0 && !area.shared && owner === 0) this.#problem("can be stored to and is not its process's alone");
    if ((flags & PTE_D) !== 0 && clean) this.#problem("was stored to and counts as clean");
  }

  #problem(what: string): void {
    this.#report(`page 0x${this.#address.toString(16)} of process ${this.#pid} ${what}`);
  }
}
