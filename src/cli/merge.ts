/** `hib merge`: makes a whole image of one that needs others. */
import type { Command } from "commander";
import { mergeImage } from "../image/merge.js";
import { formatBytes } from "../stats/format.js";
import { printable } from "../stats/printable.js";
import { createCommand, interruptible } from "./command.js";
import { KEY_FILE, type KeyOptions, keysFrom, PASSPHRASE_FILE } from "./keys.js";
import { print, printJson } from "./output.js";
import { createProgress, showBytes } from "./progress.js";

export function addMerge(program: Command): void {
  createCommand(program, "merge", "make a whole image of an incremental one and those that it needs; every chunk is checked")
    .argument("<image>", "made with hib save --base")
    .argument("<merged>", "where to put the whole one; must not exist")
    .option(...KEY_FILE)
    .option(...PASSPHRASE_FILE)
    .option("--json", "for programs")
    .addHelpText(
      "after",
      "\nThe images that it is made of stay as they are: resume one of the two, and hib rm what is not needed.",
    )
    .action(merge);
}

async function merge(path: string, target: string, { json, ...keyOptions }: KeyOptions & { json?: boolean }): Promise<void> {
  const keys = await keysFrom(keyOptions);
  const progress = createProgress();
  try {
    const onProgress = showBytes(progress, "merging");
    const { header, images, bytes } = await interruptible((signal) => mergeImage(path, target, { keys, signal, onProgress }));
    progress.stop();
    if (json === true)
      printJson({ schema: 1, path: target, id: header.id, frames: header.frames, images, bytes } as { schema: number });
    else print(`merged ${images} images into ${printable(target)}: ${formatBytes(bytes)}`);
  } finally {
    progress.stop();
  }
}
