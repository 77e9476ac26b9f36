/**
 * Where output goes: results to stdout, all else to stderr.
 *
 * What must hold: a reader that goes away (`hib ps | head -1`) is no error; the command ends without a word. A machine outlives
 * its console, whatever becomes of that: a full disk, a closed pipe, a closed terminal.
 */
import { closeSync, constants, readFileSync, readlinkSync } from "node:fs";
import process from "node:process";
import { isatty } from "node:tty";
import { fromSystemError } from "../base/errors.js";
import { type View, viewOf } from "../stats/layout.js";
import { printableJson, printableLines } from "../stats/printable.js";

const STANDARD_DESCRIPTORS = [0, 1, 2] as const;

let onLost = (error: NodeJS.ErrnoException): void => {
  if (error.code === "EPIPE") process.exit();
  throw fromSystemError(error, "writing standard output");
};

/** Called once, before anything is printed. */
export function prepareOutput(): void {
  process.stdout.on("error", (error: NodeJS.ErrnoException) => onLost(error));
  process.stderr.on("error", () => undefined);
  const terminals = STANDARD_DESCRIPTORS.filter(isatty);
  process.on("exit", () => {
    // Node resets the modes of its terminals at exit, and aborts if one has hung up. It passes over one that is closed.
    for (const descriptor of terminals) if (!isatty(descriptor)) closeSync(descriptor);
  });
}

/**
 * From now on the process does more than print: output that cannot be written does not end it. The next line is tried again.
 *
 * @param tell is called for the first that is lost
 */
export function outliveOutput(tell: (error: NodeJS.ErrnoException) => void): void {
  onLost = (error) => {
    onLost = () => undefined;
    tell(error);
  };
}

/** A line, or several, of the command's result. */
export function print(text: string): void {
  const colors = stdoutView().colors.isColorSupported ? "colors" : "no colors";
  process.stdout.write(`${printableLines(text, colors)}\n`);
}

/** The command's result for programs. */
export function printJson(value: { schema: number }): void {
  process.stdout.write(`${printableJson(value, process.stdout.isTTY ? 2 : undefined)}\n`);
}

/** What is not the result: progress, notes, errors. */
export function note(text: string): void {
  process.stderr.write(`${printableLines(text)}\n`);
}

export function stdoutView(): View {
  return viewOf(process.stdout);
}

/**
 * Whether a standard descriptor was closed when the process began. Node puts /dev/null in its place, for reading and writing; who
 * redirects to /dev/null has it for writing only, and means it.
 */
export function isClosed(descriptor: (typeof STANDARD_DESCRIPTORS)[number]): boolean {
  try {
    const flags = /^flags:\s*([0-7]+)$/m.exec(readFileSync(`/proc/self/fdinfo/${descriptor}`, "utf8"))?.[1] ?? "0";
    return readlinkSync(`/proc/self/fd/${descriptor}`) === "/dev/null" && (Number.parseInt(flags, 8) & 3) === constants.O_RDWR;
  } catch {
    return false; // no /proc here
  }
}
