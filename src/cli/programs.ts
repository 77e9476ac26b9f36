/** `hib programs`: the workloads there are. */
import { isDeepStrictEqual, stripVTControlCharacters } from "node:util";
import type { Command } from "commander";
import { type View, wrap } from "../stats/layout.js";
import { type OptionHelp, type ProgramHelp, programHelp } from "../vm/personality/step/programs/index.js";
import { createCommand } from "./command.js";
import { print, printJson, stdoutView } from "./output.js";

export function addPrograms(program: Command): void {
  createCommand(program, "programs", "list the workloads that machines can run")
    .option("--json", "for programs")
    .action(({ json }: { json?: boolean }) => {
      if (json === true) printJson({ schema: 1, programs: programHelp() } as { schema: number });
      else print(renderPrograms(stdoutView()));
    });
}

/** What each program does. */
export function renderSummaries(view: View): string {
  return programHelp()
    .map(({ name, summary }) => hanging(view, "  ", name.padEnd(SUMMARY_AT - 3), summary, SUMMARY_AT))
    .join("\n");
}

/** Names, and the options of each with their defaults. What many have is said once. */
export function renderPrograms(view: View): string {
  const programs = programHelp();
  const common = commonOptions(programs);
  const isCommon = (option: OptionHelp): boolean => common.some((other) => isDeepStrictEqual(option, other));
  const render = (option: OptionHelp): string =>
    hanging(view, "      ", `${option.name}=${option.default}`.padEnd(15), `${option.help} (${option.range})`, HELP_AT);
  const also = (options: readonly OptionHelp[], own: number): string[] =>
    options.length === 0 ? [] : [`      ${own === 0 ? "" : "and "}${options.map(({ name }) => name).join(", ")}`];
  return [
    ...programs.flatMap(({ name, summary, options }) => {
      const own = options.filter((option) => !isCommon(option));
      const title = hanging(view, "  ", view.colors.bold(name), summary, 4, ": ");
      return [title, ...own.map(render), ...also(options.filter(isCommon), own.length)];
    }),
    "",
    "Options of many programs:",
    ...common.map(render),
  ].join("\n");
}

/** Columns at which the text beside a name begins. */
const SUMMARY_AT = 16;
const HELP_AT = 22;
/** An option that so many programs have, in the same words, is a common one. */
const COMMON = 4;

function commonOptions(programs: readonly ProgramHelp[]): OptionHelp[] {
  const all = programs.flatMap(({ options }) => options);
  const times = (option: OptionHelp): number => all.filter((other) => isDeepStrictEqual(option, other)).length;
  const first = (option: OptionHelp): boolean => all.find((other) => isDeepStrictEqual(option, other)) === option;
  return all.filter((option) => first(option) && times(option) >= COMMON);
}

/** A label and a text beside it, whose later lines begin at a column. */
function hanging(view: View, indent: string, label: string, text: string, column: number, between = " "): string {
  const first = `${indent}${label}${between}`;
  const width = view.columns - column;
  const room = view.columns - stripVTControlCharacters(first).length;
  // What stands before the text takes the place of its first columns.
  const [head = "", ...rest] = wrap(`${"x".repeat(Math.max(0, width - room))}${text}`, width);
  return [first + head.slice(Math.max(0, width - room)), ...rest.map((line) => " ".repeat(column) + line)].join("\n");
}
