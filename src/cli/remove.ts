/** `hib rm`: removes images that no other one needs. */
import type { Command } from "commander";
import { removeImage } from "../image/remove.js";
import { formatBytes } from "../stats/format.js";
import { printable } from "../stats/printable.js";
import { createCommand } from "./command.js";
import { print, printJson } from "./output.js";

export function addRemove(program: Command): void {
  createCommand(program, "rm", "remove images; one that others were saved on top of, or that is being resumed, stays")
    .argument("<image...>", "which; children before their parents")
    .option("--json", "for programs")
    .action(async (paths: string[], { json }: { json?: boolean }) => {
      const removed = [];
      for (const path of paths) {
        const bytes = await removeImage(path);
        removed.push({ path, bytes });
        if (json !== true) print(`removed ${printable(path)}: ${formatBytes(bytes)}`);
      }
      if (json === true) printJson({ schema: 1, removed } as { schema: number });
    });
}
