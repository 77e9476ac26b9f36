/** `hib programs`: the workloads there are. */
import type { Command } from "commander";
import type { View } from "../stats/layout.js";
import { programHelp } from "../vm/personality/step/programs/index.js";
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

/** Names, and the options of each with their defaults. */
export function renderPrograms({ colors }: View): string {
  return programHelp()
    .map(({ name, summary, options }) =>
      [
        `  ${colors.bold(name)}: ${summary}`,
        ...options.map((option) => `      ${`${option.name}=${option.default}`.padEnd(15)} ${option.help} (${option.range})`),
      ].join("\n"),
    )
    .join("\n");
}
