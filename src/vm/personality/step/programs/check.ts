/**
 * Is a process's memory what its program must have made of it? Compares registers and every page with the exact
 * recomputation at the process's step count. Works on live memory that is stopped, and on an image.
 */
import { FRAME_BYTES, FRAME_SHIFT } from "../../../../base/layout.js";
import type { ReadableMemory } from "../../../../base/memory.js";
import { checkArguments, having, readable, type Rule } from "../../../../base/options.js";
import { walkLeaves } from "../../../memory/page-table.js";
import { type Process, readRegisters } from "../../../tasks/process.js";
import { CODE_BASE } from "../program.js";
import { createReplay, Replay, type ReplayLimits } from "./replay.js";

export interface ProcessCheck {
  pid: number;
  name: string;
  steps: number;
  pages: number;
  /** What differs, a line each, at most DIFFERENCES_MAX; empty if the process is exactly right. */
  differences: string[];
  /** Why it could not be compared: it depends on what is outside of it, has exited, or a file that it began with is gone. */
  not_recomputed: string | null;
}

const DIFFERENCES_MAX = 8;
/** Processes that have no memory, or not all of it. */
const AWAY: Partial<Record<Process["state"], string>> = {
  zombie: "it has exited, and only its status is left",
  ending: "it has ended, and its memory is being given back",
  embryo: "its parent is forking, and it has not begun",
};
const ZERO = new Uint8Array(FRAME_BYTES);

const processRule: Rule = having("what listProcesses has given", "pid", "text", "steps", "slot", "root");

/**
 * Compares a process with its replay.
 *
 * @param earlier - an earlier replay of the same process to go on from, or what createReplay gave; made new if not given
 * @param limits - of a new one
 */
export function checkProcess(
  memory: ReadableMemory,
  process: Process,
  earlier?: Replay | string,
  limits?: ReplayLimits,
): ProcessCheck {
  checkArguments("checkProcess", { "the memory": [memory, readable], "the process": [process, processRule] });
  const check: ProcessCheck = {
    pid: process.pid,
    name: process.text.split(":")[0]!,
    steps: process.steps,
    pages: 0,
    differences: [],
    not_recomputed: null,
  };
  const differs = (what: string): void => {
    if (check.differences.length < DIFFERENCES_MAX) check.differences.push(what);
  };
  const away = AWAY[process.state];
  if (away !== undefined) {
    check.not_recomputed = away;
    return check;
  }
  if (process.failure !== "") {
    // Its pages are those of the middle of a step: nothing to compare, and it should not have come to that.
    differs(`it failed: ${process.failure}`);
    return check;
  }
  const made = earlier ?? createReplay(process.text, limits);
  const replay = made instanceof Replay ? (made.unpredictable ?? made) : made;
  if (typeof replay === "string") {
    check.not_recomputed = replay;
    return check;
  }
  if (!replay.advanceTo(process.steps, limits?.until)) {
    check.not_recomputed = `there was time for ${replay.steps} of its ${process.steps} steps; --replay-limit gives more`;
    return check;
  }
  const registers = readRegisters(memory, process.slot);
  for (const [word, value] of registers.entries()) {
    if (value !== replay.registers[word])
      differs(`word ${word} of the registers is ${value}, expected ${replay.registers[word]}`);
  }
  const present = new Set<number>();
  for (const { address, frame } of walkLeaves(memory, process.root)) {
    if (address === CODE_BASE) continue;
    const vpn = address >>> FRAME_SHIFT;
    present.add(vpn);
    check.pages++;
    const bytes = memory.read(frame * FRAME_BYTES, FRAME_BYTES);
    const expected = replay.page(vpn) ?? ZERO;
    if (Buffer.compare(bytes, expected) !== 0) {
      const at = bytes.findIndex((byte, i) => byte !== expected[i]);
      differs(`page 0x${address.toString(16)} (frame ${frame}) differs at byte ${at}: ${bytes[at]}, expected ${expected[at]}`);
    }
  }
  for (const [vpn, bytes] of replay.pages()) {
    if (!present.has(vpn) && Buffer.compare(bytes, ZERO) !== 0) differs(`page 0x${(vpn * FRAME_BYTES).toString(16)} is missing`);
  }
  if (check.differences.length > 0 && process.text.includes("content=file:"))
    check.differences.push("(or the file that it began with has changed)");
  return check;
}
