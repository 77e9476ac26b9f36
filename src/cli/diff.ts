/** `hib diff`: what changed between two images. */
import type { Command } from "commander";
import type { Keys } from "../base/key.js";
import { ADDRESS_DIGITS, hex } from "../base/hex.js";
import { FRAME_BYTES } from "../base/layout.js";
import { type Image, openImage } from "../image/directory.js";
import { MACHINE_VERSION } from "../image/format.js";
import { diffImages, type ImageDiff, type ProcessDiff } from "../reports/image-diff.js";
import { formatCount } from "../stats/format.js";
import { field, section, table, type View } from "../stats/layout.js";
import { printableAll } from "../stats/printable.js";
import { ALLOW, checkInterrupted, createCommand, interruptible, withFittingHint } from "./command.js";
import { KEY_FILE, type KeyOptions, keysFrom, PASSPHRASE_FILE } from "./keys.js";
import { print, printJson, stdoutView } from "./output.js";
import { createProgress, type ProgressDisplay, showBytes } from "./progress.js";

/** Ranges of a process that people are shown; programs get all. */
const RANGES_SHOWN = 20;

export function addDiff(program: Command): void {
  createCommand(program, "diff", "show what changed between two images: frames, processes, their pages and registers")
    .argument("<a>", "an image")
    .argument("<b>", "another image of the same machine, usually a later one")
    .option(...ALLOW)
    .option(...KEY_FILE)
    .option(...PASSPHRASE_FILE)
    .option("--json", "for programs; lists every range of pages")
    .action(diff);
}

interface DiffCommandOptions extends KeyOptions {
  allow?: string[];
  json?: boolean;
}

async function diff(pathA: string, pathB: string, { allow = [], json, ...keyOptions }: DiffCommandOptions): Promise<void> {
  const progress = createProgress();
  try {
    const opening = { allow, keys: await keysFrom(keyOptions) };
    const result = await interruptible((signal) => compare([pathA, pathB], opening, progress, signal));
    progress.stop();
    if (json === true) printJson(result);
    else print(renderDiff(printableAll(result), stdoutView()).trimEnd());
  } catch (error) {
    throw withFittingHint(error);
  } finally {
    progress.stop();
  }
}

async function compare(
  paths: readonly [string, string],
  opening: { allow: readonly string[]; keys: Keys },
  progress: ProgressDisplay,
  signal: AbortSignal,
): Promise<ImageDiff> {
  const images: Image[] = [];
  const show = showBytes(progress, "comparing");
  const onProgress = (done: number, total: number): void => {
    checkInterrupted(signal);
    show(done, total);
  };
  try {
    for (const path of paths) images.push(await openImage(path, { machineVersion: MACHINE_VERSION, ...opening }));
    return await diffImages(images[0]!, images[1]!, { onProgress });
  } finally {
    for (const image of images) image.close();
  }
}

/** A summary for people. */
export function renderDiff({ a, b, same, frames, processes }: ImageDiff, view: View): string {
  return [
    section(view, "Images", [
      field(view, "A", `${a.path}, ${a.time}`),
      field(view, "B", `${b.path}, ${b.time}`),
      ...(same ? [field(view, "difference", view.colors.green("none"))] : []),
    ]),
    section(view, "Frames", [
      field(view, "same", formatCount(frames.same)),
      field(view, "changed", formatCount(frames.changed)),
      field(view, "only in A", formatCount(frames.only_a)),
      field(view, "only in B", formatCount(frames.only_b)),
    ]),
    section(view, "Processes", [
      table(
        view,
        ["pid", "process", "steps", "pages", "changed", "new", "gone", "registers"],
        processes.both.map(({ pid, text, steps, pages, registers }) => [
          String(pid),
          text.split(":")[0]!,
          steps.b === steps.a ? "0" : `${steps.b > steps.a ? "+" : "-"}${formatCount(Math.abs(steps.b - steps.a))}`,
          formatCount(pages.same + pages.changed + pages.new),
          formatCount(pages.changed),
          formatCount(pages.new),
          formatCount(pages.gone),
          formatCount(Object.keys(registers).length),
        ]),
      ),
      ...(processes.both.length === 0 && processes.gone.length + processes.new.length > 0
        ? ["  no process is in both: they may be of two machines"]
        : []),
      ...processes.gone.map(({ pid, text }) => `  process ${pid} is gone: ${text}`),
      ...processes.new.map(({ pid, text }) => `  process ${pid} is new: ${text}`),
    ]),
    ...processes.both.filter(differs).map((process) => renderProcess(process, view)),
  ].join("\n");
}

function differs({ ranges, registers, state }: ProcessDiff): boolean {
  return ranges.length > 0 || Object.keys(registers).length > 0 || state.a !== state.b;
}

function renderProcess({ pid, text, state, ranges, registers }: ProcessDiff, view: View): string {
  const lines = [field(view, "program", text)];
  if (state.a !== state.b) lines.push(field(view, "state", `${state.a}, then ${state.b}`));
  for (const [name, { a, b }] of Object.entries(registers)) lines.push(field(view, name, `0x${a}, then 0x${b}`));
  for (const { address, pages, change } of ranges.slice(0, RANGES_SHOWN)) {
    const end = hex(address + pages * FRAME_BYTES - 1, ADDRESS_DIGITS);
    lines.push(
      field(view, change, `${hex(address, ADDRESS_DIGITS)} to ${end}: ${formatCount(pages)} ${pages === 1 ? "page" : "pages"}`),
    );
  }
  if (ranges.length > RANGES_SHOWN)
    lines.push(field(view, "", `and ${formatCount(ranges.length - RANGES_SHOWN)} ranges more (--json has all)`));
  return section(view, `Process ${pid}`, lines);
}
