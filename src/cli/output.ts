/**
 * Where output goes: results to stdout, all else to stderr.
 *
 * What must hold: a reader that goes away (`hib ps | head -1`) is no error; the command ends without a word, and a
 * machine goes on without its console.
 */
import process from "node:process";
import { type View, viewOf } from "../stats/layout.js";
import { printableJson, printableLines } from "../stats/printable.js";

let deaf = false;

/** Called once, before anything is printed. */
export function prepareOutput(): void {
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") throw error;
    if (!deaf) process.exit();
  });
  process.stderr.on("error", () => undefined);
}

/** From now on the process does more than print: losing its reader does not end it. */
export function outliveReader(): void {
  deaf = true;
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
