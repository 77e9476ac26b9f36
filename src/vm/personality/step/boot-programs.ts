/**
 * The processes of the booting kernel: a progress display and a housekeeping daemon. They keep running and writing
 * while an image is loaded under them, and are gone once the atomic restore has replaced their machine.
 */
import { FRAME_BYTES } from "../../../base/layout.js";
import { DATA_BASE, type KernelCalls, type Runner } from "./program.js";
import { type Outcome, StateProgram, type Step } from "./programs/states.js";

/** What the kernel tells boot processes beyond the ordinary system calls. */
export interface BootSystemCalls extends KernelCalls {
  /** Part of the image that is loaded, 0 to 1; undefined when nothing is being loaded. */
  loaded(): number | undefined;
}

/** Prints how far the load is, at most four times a second, and keeps its history in memory. */
class Progress extends StateProgram {
  override readonly stackPages = 4;

  protected override step(_state: number, { memory, system, steps }: Step): Outcome {
    const loaded = (system as BootSystemCalls).loaded();
    const percent = Math.floor((loaded ?? 0) * 100);
    memory.store32(DATA_BASE + (steps % 1024) * 4, percent);
    if (loaded !== undefined) system.print(`resume: ${percent} % loaded`);
    system.sleep(250);
    return "asked";
  }
}

const BETWEEN_SLEEPS = 64;

/** Rewrites counters over its pages, a few at a time, for ever. */
class Housekeeping extends StateProgram {
  override readonly dataPages: number;
  override readonly stackPages = 4;

  constructor(pages: number) {
    super();
    this.dataPages = pages;
  }

  initialPage(_page: number, out: Uint8Array): boolean {
    out.fill(0x5a);
    return true;
  }

  protected override step(_state: number, { memory, system, steps }: Step): Outcome {
    const page = steps % this.dataPages;
    memory.store32(DATA_BASE + page * FRAME_BYTES + ((steps * 4) % FRAME_BYTES), steps);
    if (steps % BETWEEN_SLEEPS !== BETWEEN_SLEEPS - 1) return "done";
    system.sleep(1);
    return "asked";
  }
}

/** Makes the runner of a boot program: `boot-progress`, or `boot-housekeeping:PAGES`. */
export function createBootRunner(text: string): Runner | undefined {
  const [name, argument] = text.split(":");
  if (name === "boot-progress") return new Progress();
  if (name === "boot-housekeeping") return new Housekeeping(Number(argument ?? 64));
  return undefined;
}
