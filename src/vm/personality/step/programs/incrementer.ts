/**
 * One byte a page: step k adds one to a fixed byte of page k mod pages.
 *
 * What must hold: at every instant all those bytes are equal but for one edge: v + 1 before it, v after it. A lost,
 * stale or misplaced page breaks that, and one pass over an image shows it. From QEMU's migration test
 * (tests/qtest/migration).
 */
import { DATA_BASE, type ProgramContext, type Runner, SelfCheckError } from "../program.js";
import { type Contents, createContents } from "./contents.js";
import { content, dataPages, defineProgram, type Program, rate, seed } from "./options.js";

/** Where in each page the byte is. */
export const INCREMENTER_OFFSET = 2048;

/**
 * Whether the bytes, one a page in page order, can be those of one instant.
 *
 * @param bytes byte INCREMENTER_OFFSET of every page of the data area
 */
export function incrementerEdge(bytes: Uint8Array): boolean {
  const first = bytes[0];
  if (first === undefined) return true;
  let edge = 1;
  while (edge < bytes.length && bytes[edge] === first) edge++;
  const after = (first - 1) & 255;
  for (let page = edge; page < bytes.length; page++) if (bytes[page] !== after) return false;
  return true;
}

class Incrementer implements Runner {
  readonly dataPages: number;
  readonly stackPages = 0;
  readonly rate: number;
  readonly #contents: Contents;

  constructor(options: { pages: number; seed: number; rate: number; content: string }) {
    this.dataPages = options.pages;
    this.rate = options.rate;
    this.#contents = createContents(options.content, options.seed);
  }

  initialPage(page: number, out: Uint8Array): boolean {
    if (!this.#contents(page, out)) return false;
    out[INCREMENTER_OFFSET] = 0;
    return true;
  }

  run(context: ProgramContext, fuel: number): number {
    const memory = context.memory;
    const pages = this.dataPages;
    let page = (context.steps % pages) | 0;
    let expected = Math.floor(context.steps / pages) & 255;
    for (let done = 0; done < fuel; done++) {
      const address = (DATA_BASE + INCREMENTER_OFFSET + (page << 12)) | 0;
      const found = memory.load8(address);
      if (found !== expected) {
        const place = `0x${(address >>> 0).toString(16)}`;
        throw new SelfCheckError(`incrementer: byte at ${place} is ${found}, expected ${expected}`);
      }
      memory.store8(address, (expected + 1) & 255);
      page = (page + 1) | 0;
      if (page === pages) {
        page = 0;
        expected = (expected + 1) & 255;
      }
    }
    return fuel;
  }
}

export const incrementer: Program = defineProgram({
  name: "incrementer",
  summary: "adds one to a byte of each page in turn; all are equal but for one edge",
  options: { pages: dataPages(1024), seed, rate, content },
  create: (options) => new Incrementer(options),
});
