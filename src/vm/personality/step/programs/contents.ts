/**
 * Initial contents of data pages: what the memory of a machine that has been up for a while looks like to the
 * same-filled test and to the compressor.
 *
 * What must hold: a page's bytes follow from (kind, seed, page number) alone; no two pages of one kind and seed are
 * equal, but for zero pages and files; filling a page costs about as much as copying it.
 *
 * A page is one of 256 templates of its kind with the page number and the seed stamped into it. Templates go round by
 * page number, so the same one comes back after 1 MiB: out of reach of LZ4's 64 KiB window, which would otherwise see
 * repeats that are ours and not the content's.
 */
import { closeSync, readFileSync } from "node:fs";
import { HibernaculumError } from "../../../../base/errors.js";
import { openRegular } from "../../../../base/host-file.js";
import { FRAME_BYTES } from "../../../../base/layout.js";
import { hash, keyOf } from "./random.js";

/** Fills `out` (4,096 bytes) with a page's contents. False: the page stays absent and `out` is as it was. */
export type Contents = (page: number, out: Uint8Array) => boolean;

/** The contents that can be asked for. */
export const CONTENT_RANGE = "zero, text, integers, random, mixed or file:PATH";

/** Whether `kind` names contents. Does not look for the file: a resumed process never needs it again. */
export function isContentKind(kind: string): boolean {
  return Object.hasOwn(generators, kind) || kind === "zero" || kind === "mixed" || /^file:./s.test(kind);
}

/** The file that a process with this text begins with, if there is one. */
export function contentFile(text: string): string | undefined {
  return /[:,]content=file:([^,]+)/.exec(text)?.[1];
}

/**
 * The contents of one process.
 *
 * - `zero`: present zero pages.
 * - `text`: words in lines; LZ4 makes it 2 to 3 times smaller.
 * - `integers`: records of counters, small integers, pointers and padding.
 * - `random`: incompressible.
 * - `mixed`: 1/8 absent, 1/8 zero, 30% text, 25% integers, 20% random.
 * - `file:PATH`: the file's bytes, over and over. It is read when the first page is asked for, which throws
 *   HIB_USAGE if it cannot be read or is empty.
 */
export function createContents(kind: string, seed: number): Contents {
  if (kind.startsWith("file:")) return fileContents(kind.slice("file:".length));
  if (kind === "zero") return zeroPage;
  if (kind !== "mixed") return templateContents(kind as TemplateKind, seed);
  const key = keyOf(seed);
  const text = templateContents("text", seed);
  const integers = templateContents("integers", seed);
  const random = templateContents("random", seed);
  return (page, out) => {
    const percent = ((hash(key, page) >>> 0) * 100) / 2 ** 32;
    if (percent < 12.5) return false;
    if (percent < 25) return zeroPage(page, out);
    if (percent < 55) return text(page, out);
    if (percent < 80) return integers(page, out);
    return random(page, out);
  };
}

function zeroPage(_page: number, out: Uint8Array): boolean {
  out.fill(0);
  return true;
}

function fileContents(path: string): Contents {
  let bytes: Uint8Array | undefined;
  return (page, out) => {
    bytes ??= readWhole(path);
    let from = (page * FRAME_BYTES) % bytes.length;
    for (let filled = 0; filled < FRAME_BYTES; from = 0) {
      const piece = bytes.subarray(from, from + FRAME_BYTES - filled);
      out.set(piece, filled);
      filled += piece.length;
    }
    return true;
  };
}

function readWhole(path: string): Uint8Array {
  let bytes: Uint8Array;
  try {
    const descriptor = openRegular(path);
    try {
      bytes = readFileSync(descriptor);
    } finally {
      closeSync(descriptor);
    }
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new HibernaculumError("HIB_USAGE", `content=file:PATH needs a readable file: ${reason}`, { cause });
  }
  if (bytes.length === 0) {
    throw new HibernaculumError("HIB_USAGE", `content=file:PATH needs a file that is not empty, given ${path}`);
  }
  return bytes;
}

const TEMPLATES = 256;
/** Where the stamp is: 8 bytes. */
const STAMP = 1024;

type TemplateKind = "text" | "integers" | "random";

/** How each kind fills its templates. They depend on nothing, so the threads' copies are alike. */
const generators: Readonly<Record<TemplateKind, (words: Int32Array) => void>> = {
  text: fillText,
  integers: fillIntegers,
  random: fillRandom,
};

const templates = new Map<TemplateKind, Uint8Array[]>();

function templatesOf(kind: TemplateKind): Uint8Array[] {
  let pages = templates.get(kind);
  if (pages === undefined) {
    const words = new Int32Array((TEMPLATES * FRAME_BYTES) / 4);
    generators[kind](words);
    pages = Array.from({ length: TEMPLATES }, (_, i) => new Uint8Array(words.buffer, i * FRAME_BYTES, FRAME_BYTES));
    templates.set(kind, pages);
  }
  return pages;
}

function templateContents(kind: TemplateKind, seed: number): Contents {
  const turn = keyOf(seed) & (TEMPLATES - 1);
  let pages: Uint8Array[] | undefined;
  return (page, out) => {
    pages ??= templatesOf(kind);
    out.set(pages[(page + turn) & (TEMPLATES - 1)]!);
    for (let i = 0; i < 4; i++) {
      out[STAMP + i] = page >>> (8 * i);
      out[STAMP + 4 + i] = seed >>> (8 * i);
    }
    return true;
  };
}

const VOCABULARY: readonly string[] = (
  "the of to and a in is that it for was on are as with they at be this have from or had by but some what there " +
  "we can out other were all your when up use word how said each she which their time will way about many then " +
  "them would write like these her long make thing see him two has look more day could go come did number sound " +
  "most people over know water than call first who may down side been now find any new work part take get place " +
  "made live where after back little only round man year came show every good me give our under name very through " +
  "burrow winter marmot dormouse hibernaculum torpor bat cave autumn spring snow asleep warm breath heart slow"
).split(" ");

function fillText(words: Int32Array): void {
  const bytes = new Uint8Array(words.buffer);
  const key = keyOf(0x74657874);
  let index = 0;
  for (let at = 0, n = 0; at < bytes.length; n++) {
    const draw = hash(key, n);
    // Most words have the successor they always have: phrases come back, and that is what LZ4 finds in a text.
    // The others are drawn as the square of a uniform draw: few words make most of a text.
    const uniform = (draw >>> 8) / 2 ** 24;
    if ((draw & 7) < 5) index = (index * 7 + 3) % VOCABULARY.length;
    else index = Math.floor(uniform * uniform * VOCABULARY.length);
    const word = VOCABULARY[index]!;
    for (let i = 0; i < word.length && at < bytes.length; i++) bytes[at++] = word.charCodeAt(i);
    if (at < bytes.length) bytes[at++] = (draw & 0xf0) === 0 ? 0x0a : 0x20;
  }
}

/** Records of 32 bytes: a counter, a state, a pointer (two words), a length, a pointer to the neighbour, padding. */
function fillIntegers(words: Int32Array): void {
  const key = keyOf(0x696e7473);
  for (let record = 0; record < words.length / 8; record++) {
    const draw = hash(key, record);
    const at = record * 8;
    words[at] = record;
    words[at + 1] = draw & 7;
    words[at + 2] = (0x5a00_0000 + ((draw >>> 8) & 0xffff) * 16) | 0;
    words[at + 3] = 0x7f3a;
    words[at + 4] = (draw >>> 24) * 8;
    words[at + 5] = (0x5b00_0000 + record * 32) | 0;
    words[at + 6] = 0x7f3a;
    words[at + 7] = 0;
  }
}

function fillRandom(words: Int32Array): void {
  const key = keyOf(0x72616e64);
  for (let i = 0; i < words.length; i++) words[i] = hash(key, i);
}
