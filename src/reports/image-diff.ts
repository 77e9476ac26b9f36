/**
 * What changed between two images of machines with as much RAM: frames, processes, and the pages of each process by
 * their addresses. A page is the same if its bytes are, in whichever frame it lies.
 */
import { HibernaculumError, naming } from "../base/errors.js";
import { FRAME_BYTES } from "../base/layout.js";
import { callback, checkArguments, checkOptions, type Rule } from "../base/options.js";
import type { Pfn, VirtualAddress } from "../base/memory.js";
import type { Image } from "../image/directory.js";
import { openedImage } from "../image/verify.js";
import { type FrameChecksums, frameChecksums } from "../image/frame-checksums.js";
import type { ImageMemory } from "../image/image-memory.js";
import { requireConsistent } from "../vm/views/consistency.js";
import { describeProcess, type ProcessDescription } from "../vm/views/describe.js";
import { walkLeaves } from "../vm/memory/page-table.js";
import { listProcesses } from "../vm/tasks/process.js";

/** How a page or a frame of B is to that of A. */
export type Change = "changed" | "new" | "gone";

/** Pages that follow each other, all of which changed in the same way. */
export interface ChangedRange {
  address: VirtualAddress;
  pages: number;
  change: Change;
}

/** A process that is in both images. */
export interface ProcessDiff {
  pid: number;
  text: string;
  state: { a: string; b: string };
  steps: { a: number; b: number };
  pages: { same: number } & Record<Change, number>;
  /** By address. */
  ranges: ChangedRange[];
  /** Those that differ, by name; 16 hexadecimal digits. */
  registers: Record<string, { a: string; b: string }>;
}

export interface ImageDiff {
  schema: 1;
  a: { path: string; id: string; time: string };
  b: { path: string; id: string; time: string };
  /** Nothing differs. */
  same: boolean;
  /** Those that are in no image are not counted. */
  frames: { same: number; changed: number; only_a: number; only_b: number };
  processes: {
    gone: { pid: number; text: string }[];
    new: { pid: number; text: string }[];
    both: ProcessDiff[];
  };
}

export interface DiffOptions {
  /** Bytes of both blobs that have been read, and all of them. */
  onProgress?: (done: number, total: number) => void;
}

const DIFF_RULES: Readonly<Record<keyof DiffOptions, Rule>> = { onProgress: callback };

/** Page tables are small and lie together. */
const CACHED_CHUNKS = 8;

/**
 * Compares two open images of this kernel's version.
 *
 * @throws HIB_USAGE, HIB_RAM_MISMATCH, HIB_CORRUPT, HIB_TRUNCATED, HIB_INCONSISTENT, HIB_IO
 */
export async function diffImages(a: Image, b: Image, options: DiffOptions = {}): Promise<ImageDiff> {
  checkArguments("diffImages", { "the first image": [a, openedImage], "the second image": [b, openedImage] });
  checkOptions("diffImages", options, DIFF_RULES);
  const { onProgress } = options;
  if (a.header.ramFrames !== b.header.ramFrames) {
    const bytes = (image: Image): string => `${image.path} has ${image.header.ramFrames * FRAME_BYTES} bytes of RAM`;
    throw new HibernaculumError("HIB_RAM_MISMATCH", `${bytes(a)} and ${bytes(b)}: give two images of one machine`);
  }
  const bytesOf = ({ chunks }: Image): number => chunks.reduce((sum, { stored }) => sum + stored, 0);
  const total = bytesOf(a) + bytesOf(b);
  const left = await side(a, (done) => onProgress?.(done, total));
  const right = await side(b, (done) => onProgress?.(bytesOf(a) + done, total));
  const frames = countFrames(left, right);
  const isIn = (list: ProcessDescription[], { pid, text }: ProcessDescription): boolean =>
    list.some((other) => other.pid === pid && other.text === text);
  const name = ({ pid, text }: ProcessDescription): { pid: number; text: string } => ({ pid, text });
  return {
    schema: 1,
    a: about(a),
    b: about(b),
    same: frames.changed + frames.only_a + frames.only_b === 0,
    frames,
    processes: {
      gone: left.processes.filter((process) => !isIn(right.processes, process)).map(name),
      new: right.processes.filter((process) => !isIn(left.processes, process)).map(name),
      both: left.processes
        .filter((process) => isIn(right.processes, process))
        .map((process) => diffProcess(left, process, right, right.processes.find(({ pid }) => pid === process.pid)!)),
    },
  };
}

function about({ path, header }: Image): ImageDiff["a"] {
  return { path, id: header.id, time: new Date(header.time).toISOString() };
}

/** One of the two images. */
interface Side {
  memory: ImageMemory;
  checksums: FrameChecksums;
  processes: ProcessDescription[];
}

async function side(image: Image, onProgress: (bytes: number) => void): Promise<Side> {
  try {
    const checksums = await frameChecksums(image, onProgress);
    const memory = image.memory({ cachedChunks: CACHED_CHUNKS });
    requireConsistent(memory);
    return { memory, checksums, processes: listProcesses(memory).map((process) => describeProcess(memory, process)) };
  } catch (error) {
    throw naming(error, image.path);
  }
}

function countFrames({ checksums: a }: Side, { checksums: b }: Side): ImageDiff["frames"] {
  const count = { same: 0, changed: 0, only_a: 0, only_b: 0 };
  for (let pfn = 0; pfn < a.present.length; pfn++) {
    if (a.present[pfn] === 1 && b.present[pfn] === 1) count[a.hash[pfn] === b.hash[pfn] ? "same" : "changed"]++;
    else if (a.present[pfn] === 1) count.only_a++;
    else if (b.present[pfn] === 1) count.only_b++;
  }
  return count;
}

function diffProcess(left: Side, a: ProcessDescription, right: Side, b: ProcessDescription): ProcessDiff {
  const pages = { same: 0, changed: 0, new: 0, gone: 0 };
  const ranges: ChangedRange[] = [];
  for (const { address, change } of comparePages(left, a.root, right, b.root)) {
    pages[change]++;
    if (change === "same") continue;
    const last = ranges.at(-1);
    if (last?.change === change && last.address + last.pages * FRAME_BYTES === address) last.pages++;
    else ranges.push({ address, pages: 1, change });
  }
  const registers = a.registers.flatMap((value, x) =>
    value === b.registers[x] ? [] : [[`x${x}`, { a: value, b: b.registers[x]! }]],
  );
  return {
    pid: a.pid,
    text: a.text,
    state: { a: a.state, b: b.state },
    steps: { a: a.steps, b: b.steps },
    pages,
    ranges,
    registers: Object.fromEntries(registers) as ProcessDiff["registers"],
  };
}

/** All pages of a process that are mapped in one of the two, by address: two sorted lists, merged. */
function* comparePages(
  left: Side,
  rootA: Pfn,
  right: Side,
  rootB: Pfn,
): Generator<{ address: VirtualAddress; change: Change | "same" }> {
  const a = pagesOf(left, rootA);
  const b = pagesOf(right, rootB);
  let inA = a.next().value;
  let inB = b.next().value;
  while (inA !== undefined || inB !== undefined) {
    const address = Math.min(inA?.address ?? Infinity, inB?.address ?? Infinity);
    if (inA?.address !== address) yield { address, change: "new" };
    else if (inB?.address !== address) yield { address, change: "gone" };
    else yield { address, change: inA.hash === inB.hash ? "same" : "changed" };
    if (inA?.address === address) inA = a.next().value;
    if (inB?.address === address) inB = b.next().value;
  }
}

function* pagesOf({ memory, checksums }: Side, root: Pfn): Generator<{ address: VirtualAddress; hash: bigint }, undefined> {
  for (const { address, frame, level } of walkLeaves(memory, root)) {
    for (let page = 0; page < 512 ** level; page++)
      yield { address: address + page * FRAME_BYTES, hash: checksums.hash[frame + page]! };
  }
}
