/**
 * What all commands have in common: options, errors, exit codes.
 *
 * What must hold: an error is one line with a code, `hib: CODE: message`; a stack is shown only when asked for.
 */
import { existsSync } from "node:fs";
import process from "node:process";
import { Command, CommanderError, InvalidArgumentError, Option } from "commander";
import { type ErrorCode, fromSystemError, HibernaculumError, isSystemError } from "../base/errors.js";
import { printable } from "../stats/printable.js";
import { wrap } from "../stats/layout.js";
import { note, prepareOutput, stdoutView } from "./output.js";
import { parseSize, SIZE_HELP } from "./size.js";
import { PACKAGE_VERSION } from "../base/version.js";

export const EXIT_DONE = 0;
export const EXIT_FAILED = 1;
export const EXIT_USAGE = 2;
export const EXIT_MISMATCH = 3;
export const EXIT_INTERRUPTED = 130;

const EXIT_HELP = `
Exit codes: 0 done, 1 failed, 2 usage, 3 damage or mismatch, 130 interrupted.
Errors are one line on stderr: "hib: CODE: message".`;

/** Of the commands that resume (S3.6). */
export const ACCEPT_CHANGED_FILES = [
  "--accept-changed-files",
  "resume although files of the host, such as its disk, have changed; this may damage them",
] as const;

/** Of the commands that open what an image names. */
export const ALLOW = [
  "--allow <path>",
  "a file or directory of this host that the image may name; may be given again; what you saved with it is allowed",
  (path: string, earlier: string[] = []): string[] => {
    if (!existsSync(path)) note(`hib: --allow ${printable(path)}: there is no such file or directory`);
    return [...earlier, path];
  },
] as const;

let verbose = false;
/** Whose errors these are: `hib` or `hib-stats`. */
let programName = "hib";

/** A program whose usage errors and help come back as exceptions, to `main`. */
export function createProgram(name: string, description: string): Command {
  programName = name;
  return addCommon(new Command(name).description(description))
    .version(PACKAGE_VERSION, "-V, --version", "print the version")
    .exitOverride()
    .addHelpText("afterAll", EXIT_HELP)
    .configureOutput({
      outputError: (text) => note(`${name}: HIB_USAGE: ${oneLine(text.replace(/^error: /, ""))}`),
      // Nothing else goes this way but the help for a user who names no command, or one to `help` that there is not.
      writeErr: (text) => {
        if (text.startsWith("Usage:")) note(`${name}: HIB_USAGE: give one of the commands that ${name} --help lists`);
      },
    })
    .hook("preAction", (_, action) => {
      verbose = action.optsWithGlobals()["verbose"] === true;
    });
}

/** A command of a program. */
export function createCommand(program: Command, usage: string, description: string): Command {
  return addCommon(program.command(usage).description(description));
}

/** Text for the end of a command's help, as wide as the terminal: an empty line, then a paragraph each. */
export function closing(...paragraphs: readonly string[]): () => string {
  return () => `\n${paragraphs.flatMap((text) => wrap(text, stdoutView().columns)).join("\n")}`;
}

function addCommon(command: Command): Command {
  return command
    .option("--verbose", "show where an error came from")
    .helpOption("-h, --help", "show this help")
    .showSuggestionAfterError();
}

const exitWith = (error: unknown): void => process.exit(reportError(error));
let onUnexpected = exitWith;

/** An error that comes to no `catch` does not end the process at once: `handle` sees to its end. A second one does. */
export function endInOrder(handle: (error: unknown) => void): void {
  onUnexpected = handle;
}

/** Runs a program to its end and sets the exit code. */
export async function main(program: Command): Promise<void> {
  prepareOutput();
  process.on("uncaughtException", (error) => {
    const handle = onUnexpected;
    onUnexpected = exitWith;
    handle(error);
  });
  try {
    // Of a command that there is not, no options: commander would print the general help for --help.
    const [, , first = ""] = process.argv;
    const isKnown = first.startsWith("-") || ["", "help", ...program.commands.map((command) => command.name())].includes(first);
    await program.parseAsync(isKnown || program.commands.length === 0 ? process.argv : process.argv.slice(0, 3));
  } catch (error) {
    process.exitCode = reportError(error);
  }
}

/** Prints an error, and tells which exit code it is. */
export function reportError(error: unknown): number {
  if (error instanceof CommanderError) {
    // It has printed its text itself. Help that was asked for is no error.
    return error.exitCode === 0 ? EXIT_DONE : EXIT_USAGE;
  }
  const known = isSystemError(error) && "syscall" in (error as object) ? fromSystemError(error, "the host refused") : error;
  note(`${programName}: ${describeError(known)}`);
  if (verbose) note(stackOf(error));
  return exitCodeOf(known);
}

/** "CODE: message", one line. */
export function describeError(error: unknown): string {
  // A message of ours is one line: a line's end in it is of a path.
  const text = error instanceof Error ? error.message : String(error);
  const message = printable(error instanceof HibernaculumError ? text : oneLine(text));
  const code = error instanceof HibernaculumError ? error.code : "HIB_INTERNAL";
  const hint = code === "HIB_INTERNAL" && !verbose ? " (a bug; --verbose shows where)" : "";
  return `${code}: ${message}${hint}`;
}

function exitCodeOf(error: unknown): number {
  const code: ErrorCode | undefined = error instanceof HibernaculumError ? error.code : undefined;
  if (code === "HIB_USAGE") return EXIT_USAGE;
  if (code === "HIB_CANCELLED") return EXIT_INTERRUPTED;
  return code === "HIB_ORACLE" || code === "HIB_SELF_CHECK" ? EXIT_MISMATCH : EXIT_FAILED;
}

function stackOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const cause = error.cause === undefined ? "" : `\ncaused by ${stackOf(error.cause)}`;
  return `${error.stack ?? error.message}${cause}`;
}

function oneLine(text: string): string {
  return text.trim().replace(/\s*\n\s*/g, " ");
}

/**
 * Runs `body` with a signal that Ctrl-C (or SIGTERM, or a closed terminal) fires. A second Ctrl-C ends the process at
 * once, as it does where nobody listens. One that comes when `body` is over comes too late: what was done is done, and the
 * exit code says so.
 */
export async function interruptible<T>(body: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const abort = new AbortController();
  const onSignal = (): void => {
    stopListening();
    abort.abort();
  };
  const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
  const stopListening = (): void => {
    for (const signal of signals) process.off(signal, onSignal);
  };
  for (const signal of signals) process.on(signal, onSignal);
  try {
    const result = await body(abort.signal);
    for (const signal of signals) process.on(signal, tooLate);
    return result;
  } finally {
    stopListening();
  }
}

/** @throws HIB_CANCELLED; for commands that only read */
export function checkInterrupted(signal: AbortSignal | undefined): void {
  if (signal?.aborted === true) throw new HibernaculumError("HIB_CANCELLED", "interrupted; nothing was changed");
}

/** An error of a command that has no --accept-changed-files: only those that resume do. */
export function withFittingHint(error: unknown): unknown {
  if (!(error instanceof HibernaculumError) || error.code !== "HIB_FILES_CHANGED" || error.what === undefined) return error;
  return new HibernaculumError(error.code, `${error.what}; put the file back as it was, and try again`, { cause: error });
}

function tooLate(): void {
  // What is left is to say what was done.
}

/** `--ram`, of which `initial` is the default; without one it is what the image says. */
export function ramOption(help: string, initial?: string, check: (bytes: number) => void = () => undefined): Option {
  const option = new Option("--ram <size>", `${help}; ${SIZE_HELP}`).argParser((text) => {
    const bytes = parseSize(text);
    check(bytes);
    return bytes;
  });
  return initial === undefined ? option : option.default(parseSize(initial), initial);
}

/** Parser of an option that is a whole number. */
export function wholeNumber(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
    if (!(value >= min && value <= max)) throw new InvalidArgumentError(`Give a whole number from ${min} to ${max}.`);
    return value;
  };
}
