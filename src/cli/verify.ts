/** `hib verify`: is an image whole, and is the machine in it consistent? Offline: nothing runs. */
import type { Command } from "commander";
import { HibernaculumError, naming } from "../base/errors.js";
import { type Image, openImage } from "../image/directory.js";
import { type Verified, verifyChunks } from "../image/verify.js";
import { formatBytes, formatCount } from "../stats/format.js";
import { field, type View } from "../stats/layout.js";
import { checkConsistency, type Consistency } from "../vm/views/consistency.js";
import { listProcesses } from "../vm/tasks/process.js";
import { checkProcess, type ProcessCheck } from "../vm/personality/step/programs/check.js";
import { ALLOW, createCommand, EXIT_MISMATCH, reportError, wholeNumber } from "./command.js";
import { note, print, printJson, stdoutView } from "./output.js";
import { printable, printableAll } from "../stats/printable.js";
import { createProgress, type ProgressDisplay, showBytes } from "./progress.js";

/** Everything that `hib verify` looks at. */
export interface Verification {
  ok: boolean;
  chunks: Verified;
  consistency: Consistency;
  /** With --replay: each process against its exact recomputation. */
  processes: ProcessCheck[] | null;
}

interface VerifyOptions {
  replay: boolean;
  /** Replays end after so long. */
  replayLimit_s?: number;
  progress: ProgressDisplay;
}

interface VerifyCommandOptions {
  replay?: boolean;
  replayLimit: number;
  allow?: string[];
  json?: boolean;
}

export function addVerify(program: Command): void {
  createCommand(program, "verify", "check all of an image: every checksum, every count, allocator and page tables")
    .argument("<image>", "where the machine was saved")
    .option("--replay", "also recompute the processes from their beginning, all that can be, and compare every page and register")
    .option("--replay-limit <seconds>", "stop recomputing after so long", wholeNumber(1, 10 ** 6), 300)
    .option(...ALLOW)
    .option("--json", "for programs")
    .action(verify);
}

async function verify(path: string, { replay, replayLimit, allow = [], json }: VerifyCommandOptions): Promise<void> {
  const progress = createProgress();
  try {
    const image = await openImage(path, { allow });
    try {
      const result = await verifyImage(image, { replay: replay === true, replayLimit_s: replayLimit, progress });
      progress.stop();
      if (json === true) printJson({ schema: 1, image: image.path, ...result } as { schema: number });
      else print(renderVerification(printable(path), printableAll(result), stdoutView()));
      if (!result.ok) {
        note(`hib: HIB_INCONSISTENT: ${printable(path)} is not what it must be (above); do not resume it`);
        process.exitCode = EXIT_MISMATCH;
      }
    } finally {
      image.close();
    }
  } catch (error) {
    progress.stop();
    const code = reportError(error);
    const damaged =
      error instanceof HibernaculumError && ["HIB_CORRUPT", "HIB_TRUNCATED", "HIB_INCONSISTENT"].includes(error.code);
    process.exitCode = damaged ? EXIT_MISMATCH : code;
  }
}

/**
 * Verifies an open image.
 *
 * @throws HIB_CORRUPT, HIB_TRUNCATED, HIB_IO: it cannot even be read
 */
export async function verifyImage(image: Image, options: VerifyOptions): Promise<Verification> {
  const { replay, replayLimit_s = Infinity, progress } = options;
  const chunks = await verifyChunks(image, showBytes(progress, "checksums")).catch((error: unknown) => {
    throw naming(error, image.path);
  });
  const memory = image.memory();
  progress.update({ label: "consistency", done: 0, total: 1 });
  const consistency = checkConsistency(memory);
  let processes: ProcessCheck[] | null = null;
  // A machine that contradicts itself has nothing that could be right.
  if (replay && consistency.problems.length === 0) {
    processes = [];
    const until = performance.now() + replayLimit_s * 1000;
    const all = listProcesses(memory).filter(({ boot }) => !boot);
    for (const process of all) {
      progress.update({ label: printable(`replaying ${process.text.split(":")[0]}`), done: processes.length, total: all.length });
      processes.push(checkProcess(memory, process, undefined, { allowed: image.allowed, frames: memory.frames, until }));
    }
  }
  const exact = processes?.every(({ differences }) => differences.length === 0) ?? true;
  return { ok: consistency.problems.length === 0 && exact, chunks, consistency, processes };
}

/** What was looked at, and what is wrong. */
export function renderVerification(path: string, result: Verification, view: View): string {
  const { chunks, consistency, processes } = result;
  const good = view.colors.green("ok");
  const bad = view.colors.red("WRONG");
  const lines = [
    `${view.colors.bold(path)}: ${result.ok ? good : bad}`,
    field(view, "checksums", `${formatCount(chunks.chunks)} chunks, ${formatBytes(chunks.storedBytes)}`),
    field(
      view,
      "frames",
      `${formatCount(chunks.frames)}, ${formatCount(chunks.sameFilledFrames)} of them same-filled, ${formatCount(chunks.referencedFrames)} in files of the host`,
    ),
    field(view, "allocator", `${formatCount(consistency.blocks)} blocks, ${formatCount(consistency.freeFrames)} frames free`),
    field(view, "page tables", `${formatCount(consistency.mappedPages)} pages of processes: ${consistency.processes}`),
    ...consistency.problems.map((problem) => `  ${bad} ${problem}`),
  ];
  if (processes !== null) {
    const recomputed = processes.filter(({ not_recomputed }) => not_recomputed === null);
    const exact = recomputed.filter(({ differences }) => differences.length === 0).length;
    lines.push(
      field(
        view,
        "recomputed",
        `${recomputed.length} processes, ${exact} of them exact; ${processes.length - recomputed.length} cannot be recomputed`,
      ),
    );
  }
  for (const { pid, name, steps, pages, differences, not_recomputed } of processes ?? []) {
    if (not_recomputed !== null) {
      lines.push(field(view, `process ${pid}`, `${name}: cannot be recomputed: ${not_recomputed}`));
      continue;
    }
    const verdict = differences.length === 0 ? "exact" : bad;
    lines.push(
      field(view, `process ${pid}`, `${name}: ${formatCount(pages)} pages after ${formatCount(steps)} steps: ${verdict}`),
    );
    lines.push(...differences.map((difference) => `    ${difference}`));
  }
  return lines.join("\n");
}
