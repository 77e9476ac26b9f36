/**
 * The processes of the booting kernel: a progress display and a housekeeping daemon. They keep running and writing
 * while an image is loaded under them, and are gone once the atomic restore has replaced their machine.
 */
import { FRAME_BYTES } from "../../../base/layout.js";
import { DATA_BASE, type KernelCalls, type ProgramContext, type Runner } from "./program.js";

/** What the kernel tells boot processes beyond the ordinary system calls. */
export interface BootSystemCalls extends KernelCalls {
  /** Part of the image that is loaded, 0 to 1; undefined when nothing is being loaded. */
  loaded(): number | undefined;
}

/** Prints how far the load is, at most four times a second, and keeps its history in memory. */
class Progress implements Runner {
  readonly dataPages = 1;
  readonly stackPages = 4;
  readonly rate = 0;

  run(context: ProgramContext, fuel: number): number {
    const { memory, system } = context;
    const percent = Math.floor(((system as BootSystemCalls).loaded() ?? 0) * 100);
    if (fuel > 0) {
      memory.store32(DATA_BASE + (context.steps % 1024) * 4, percent);
      if ((system as BootSystemCalls).loaded() !== undefined) system.print(`resume: ${percent} % loaded`);
      system.sleep(250);
    }
    return 1;
  }
}

/** Rewrites counters over its pages, a few at a time, for ever. */
class Housekeeping implements Runner {
  readonly dataPages: number;
  readonly stackPages = 4;
  readonly rate = 0;

  constructor(pages: number) {
    this.dataPages = pages;
  }

  initialPage(_page: number, out: Uint8Array): boolean {
    out.fill(0x5a);
    return true;
  }

  run(context: ProgramContext, fuel: number): number {
    const steps = Math.min(fuel, 64);
    for (let i = 0; i < steps; i++) {
      const step = context.steps + i;
      const page = step % this.dataPages;
      context.memory.store32(DATA_BASE + page * FRAME_BYTES + ((step * 4) % FRAME_BYTES), step);
    }
    context.system.sleep(1);
    return steps;
  }
}

/** Makes the runner of a boot program: `boot-progress`, or `boot-housekeeping:PAGES`. */
export function createBootRunner(text: string): Runner | undefined {
  const [name, argument] = text.split(":");
  if (name === "boot-progress") return new Progress();
  if (name === "boot-housekeeping") return new Housekeeping(Number(argument ?? 64));
  return undefined;
}
