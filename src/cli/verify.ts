/**
 * `hib verify`: is an image whole, and is the machine in it consistent? Offline: nothing runs. Files of the host that the machine
 * had open are no part of the image. They are compared all the same, since a resume refuses the image if they have changed.
 */
import { resolve } from "node:path";
import process from "node:process";
import { setImmediate } from "node:timers/promises";
import type { Command } from "commander";
import { isWithin, openAllowed, realPath } from "../base/allowed-paths.js";
import { HibernaculumError, naming } from "../base/errors.js";
import { holdsImage, type Image, openImage } from "../image/directory.js";
import { type ComparedFiles, compareFiles } from "../image/host-files.js";
import { MACHINE_VERSION } from "../image/format.js";
import { savedVcpus } from "../image/meta.js";
import { type Verified, verifyChunks } from "../image/verify.js";
import { compareRows } from "../reports/machine-rows.js";
import { formatBytes, formatCount } from "../stats/format.js";
import { field, type View } from "../stats/layout.js";
import { checkConsistency, type Consistency } from "../vm/views/consistency.js";
import { listProcesses, type Process } from "../vm/tasks/process.js";
import { checkProcess, type ProcessCheck } from "../vm/personality/step/programs/check.js";
import { createReplay, type Replay, type ReplayLimits } from "../vm/personality/step/programs/replay.js";
import {
  ALLOW,
  checkInterrupted,
  closing,
  createCommand,
  EXIT_MISMATCH,
  interruptible,
  reportError,
  withFittingHint,
  wholeNumber,
} from "./command.js";
import { KEY_FILE, type KeyOptions, keysFrom, PASSPHRASE_FILE } from "./keys.js";
import { note, print, printJson, stdoutView } from "./output.js";
import { printable, printableAll } from "../stats/printable.js";
import { createProgress, type ProgressDisplay, showBytes } from "./progress.js";

/** Everything that `hib verify` looks at. */
export interface Verification {
  ok: boolean;
  chunks: Verified;
  /** Null: the machine is of another version, of which nothing is known here. */
  consistency: Consistency | null;
  /** What the catalogue says and the machine's memory does not, a line each. */
  catalogue: string[];
  /** With --replay: each process against its exact recomputation. */
  processes: ProcessCheck[] | null;
  files: FilesUnderImage;
}

/** Files of the host under the image, as they are now. Whatever they are, the image is what it was. */
export interface FilesUnderImage {
  compared: number;
  changed: { path: string; how: string }[];
  /** Paths that the image names and the user has not allowed. */
  not_compared: string[];
}

interface VerifyOptions {
  replay: boolean;
  /** Replays end after so long. */
  replayLimit_s?: number;
  progress: ProgressDisplay;
  signal?: AbortSignal;
}

const NO_VCPUS = "the catalogue says that the machine had no number of vCPUs that there can be";

/** A replay goes on for so long, then it is looked whether somebody has pressed Ctrl-C. */
const TURN_MS = 50;

interface VerifyCommandOptions extends KeyOptions {
  replay?: boolean;
  replayLimit: number;
  allow?: string[];
  json?: boolean;
}

export function addVerify(program: Command): void {
  createCommand(program, "verify", "check all of an image: every checksum, every count, allocator and page tables")
    .argument("<image>", "where the machine was saved")
    .option(
      "--replay",
      "also recompute the processes from their beginning, all that can be, and compare every register and every page but the code's",
    )
    .option("--replay-limit <seconds>", "stop recomputing after so long", wholeNumber(1, 10 ** 6), 300)
    .option(...ALLOW)
    .option(...KEY_FILE)
    .option(...PASSPHRASE_FILE)
    .option("--json", "for programs")
    .addHelpText(
      "after",
      closing(
        "Files of the host, such as a disk, are not in the image. Those that have changed are reported, which is no mismatch; hib resume refuses an image whose files have changed.",
      ),
    )
    .action(verify);
}

async function verify(
  path: string,
  { replay, replayLimit, allow = [], json, ...keyOptions }: VerifyCommandOptions,
): Promise<void> {
  const progress = createProgress();
  try {
    const result = await interruptible(async (signal) => {
      const image = await openImage(path, { allow, keys: await keysFrom(keyOptions) });
      try {
        return await verifyImage(image, { replay: replay === true, replayLimit_s: replayLimit, progress, signal });
      } finally {
        image.close();
      }
    });
    progress.stop();
    if (json === true) printJson({ schema: 1, image: resolve(path), ...result } as { schema: number });
    else print(renderVerification(printable(path), printableAll(result), stdoutView()));
    if (!result.ok) {
      note(`hib: HIB_INCONSISTENT: ${printable(path)} is not what it must be (above); do not resume it`);
      process.exitCode = EXIT_MISMATCH;
    }
  } catch (thrown) {
    progress.stop();
    const error = sayWhatAgrees(thrown);
    const code = reportError(withFittingHint(error));
    process.exitCode = (await isDamage(error, path)) ? EXIT_MISMATCH : code;
  }
}

/** Without a key not much can be checked, but that much is known by then. */
function sayWhatAgrees(error: unknown): unknown {
  if (!(error instanceof HibernaculumError) || error.code !== "HIB_KEY_NEEDED") return error;
  const message = `${error.message}; header, lengths and the catalogue's checksum agree, and the rest needs the key`;
  return new HibernaculumError(error.code, message, { cause: error });
}

/** Whether an error says that an image is damaged: also one that has all its files, and no header that tells what it is. */
async function isDamage(error: unknown, path: string): Promise<boolean> {
  if (!(error instanceof HibernaculumError)) return false;
  if (error.code === "HIB_NOT_AN_IMAGE") return holdsImage(path).catch(() => false);
  return ["HIB_CORRUPT", "HIB_TRUNCATED", "HIB_INCONSISTENT"].includes(error.code);
}

/**
 * Verifies an open image.
 *
 * @throws HIB_CORRUPT, HIB_TRUNCATED, HIB_IO: it cannot even be read; HIB_CANCELLED
 */
export async function verifyImage(image: Image, options: VerifyOptions): Promise<Verification> {
  const { replay, replayLimit_s = Infinity, progress, signal } = options;
  const showChecksums = showBytes(progress, "checksums");
  const onProgress = (done: number, total: number): void => {
    checkInterrupted(signal);
    showChecksums(done, total);
  };
  const chunks = await verifyChunks(image, onProgress).catch((error: unknown) => {
    throw naming(error, image.path);
  });
  const memory = image.memory();
  progress.update({ label: "consistency", done: 0, total: 1 });
  const consistency = image.header.machineVersion === MACHINE_VERSION ? checkConsistency(memory) : null;
  // A machine that contradicts itself has nothing that could be right.
  const sound = consistency?.problems.length === 0;
  const catalogue = savedVcpus(image.catalogue.meta) === undefined ? [NO_VCPUS] : [];
  if (sound) catalogue.push(...(await compareRows(image.catalogue, memory, image, signal)));
  let processes: ProcessCheck[] | null = null;
  if (replay && sound) {
    processes = [];
    const limits = { allowed: image.allowed, frames: memory.frames, until: performance.now() + replayLimit_s * 1000 };
    const all = listProcesses(memory).filter(({ boot }) => !boot);
    for (const process of all) {
      progress.update({ label: printable(`replaying ${process.text.split(":")[0]}`), done: processes.length, total: all.length });
      processes.push(checkProcess(memory, process, await replayOf(process, limits, signal), limits));
    }
  }
  progress.update({ label: "files of the host", done: 0, total: 1 });
  const files = await compareUnder(image, signal);
  const exact = processes?.every(({ differences }) => differences.length === 0) ?? true;
  const ok = (sound || consistency === null) && catalogue.length === 0 && exact;
  return { ok, chunks, consistency, catalogue, processes, files };
}

/** Recomputes a process in steps that can be interrupted; undefined for one of which nothing need be recomputed. */
async function replayOf(
  { text, state, failure, steps }: Process,
  limits: ReplayLimits,
  signal: AbortSignal | undefined,
): Promise<Replay | string | undefined> {
  if (state === "zombie" || failure !== "") return undefined;
  const replay = createReplay(text, limits);
  while (typeof replay !== "string" && !replay.advanceTo(steps, Math.min(limits.until, performance.now() + TURN_MS))) {
    await setImmediate();
    checkInterrupted(signal);
    if (performance.now() > limits.until) break;
  }
  return replay;
}

async function compareUnder(image: Image, signal: AbortSignal | undefined): Promise<FilesUnderImage> {
  const files: FilesUnderImage = { compared: 0, changed: [], not_compared: [] };
  const open = (path: string): number => openAllowed(path, image.allowed);
  for (const row of image.catalogue.files()) {
    const { path } = row;
    if (!isWithin(realPath(path), image.allowed)) {
      files.not_compared.push(path);
      continue;
    }
    const unreadable = (error: Error): ComparedFiles => ({
      changed: [{ path, how: `cannot be read: ${error.message}` }],
      moved: [],
    });
    const { changed } = await compareFiles([row], { open, signal }).catch(unreadable);
    checkInterrupted(signal);
    files.compared++;
    files.changed.push(...changed);
  }
  return files;
}

/** What was looked at, and what is wrong. */
export function renderVerification(path: string, result: Verification, view: View): string {
  const { chunks, consistency, catalogue, processes, files } = result;
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
    ...describeConsistency(consistency, view),
    ...[...(consistency?.problems ?? []), ...catalogue].map((problem) => `  ${bad} ${problem}`),
  ];
  if (processes !== null) {
    const recomputed = processes.filter(({ not_recomputed }) => not_recomputed === null);
    const exact = recomputed.filter(({ differences }) => differences.length === 0).length;
    lines.push(
      field(
        view,
        "recomputed",
        `processes: ${recomputed.length}, exact: ${exact}; cannot be recomputed: ${processes.length - recomputed.length}`,
      ),
    );
  }
  for (const { pid, name: program, steps, pages, differences, not_recomputed } of processes ?? []) {
    const name = program === "" ? "zombie" : program;
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
  lines.push(...describeFiles(files, view));
  return lines.join("\n");
}

function describeConsistency(consistency: Consistency | null, view: View): string[] {
  if (consistency === null)
    return [field(view, "machine", "not looked at: it is of another version than this program's; use the one that wrote it")];
  const { blocks, freeFrames, mappedPages, processes } = consistency;
  return [
    field(view, "allocator", `${formatCount(blocks)} blocks, ${formatCount(freeFrames)} frames free`),
    field(view, "page tables", `${formatCount(mappedPages)} pages, processes: ${processes}`),
  ];
}

function describeFiles({ compared, changed, not_compared: others }: FilesUnderImage, view: View): string[] {
  const lines: string[] = [];
  if (compared > 0)
    lines.push(field(view, "files of the host", `compared: ${compared}, changed since the save: ${changed.length}`));
  const notice = view.colors.yellow("changed");
  for (const { path, how } of changed) lines.push(field(view, notice, `${path} ${how}; hib resume refuses this`));
  for (const path of others) lines.push(field(view, "not compared", `${path}; --allow ${path} lets it be read`));
  return lines;
}
