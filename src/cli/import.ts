/** `hib import`: makes an image of what `hib export` wrote. */
import { closeSync, constants, createReadStream, fstatSync, openSync } from "node:fs";
import { Socket } from "node:net";
import process from "node:process";
import { addAbortSignal, type Readable } from "node:stream";
import type { Command } from "commander";
import { fromSystemError, HibernaculumError } from "../base/errors.js";
import { holdsImage } from "../image/directory.js";
import { importImage } from "../image/stream.js";
import { formatBytes } from "../stats/format.js";
import { printable } from "../stats/printable.js";
import { createCommand, interruptible } from "./command.js";
import { KEY_FILE, type KeyOptions, keysFrom, PASSPHRASE_FILE } from "./keys.js";
import { isClosed, print, printJson } from "./output.js";
import { createProgress, showBytes } from "./progress.js";
import { atNewImage, defaultImage } from "./save.js";

export function addImport(program: Command): void {
  createCommand(program, "import", "make an image of a stream that hib export wrote; every byte is checked")
    .argument("<file>", "what to read; - for standard input")
    .argument("[image]", "where to put it; must not exist (default: ./imported-PID-TIME.hib)")
    .option(...KEY_FILE)
    .option(...PASSPHRASE_FILE)
    .option("--json", "for programs")
    .addHelpText("after", "\nA stream that is damaged or not whole leaves nothing behind.")
    .action(importFrom);
}

async function importFrom(
  file: string,
  given: string | undefined,
  { json, ...keyOptions }: KeyOptions & { json?: boolean },
): Promise<void> {
  if (file === "-" && process.stdin.isTTY) {
    throw new HibernaculumError("HIB_USAGE", "standard input is a terminal: pipe a stream of hib export into it, or give a file");
  }
  if (file === "-" && isClosed(0)) {
    throw new HibernaculumError("HIB_IO", "standard input is closed; pipe a stream of hib export into it, or give a file");
  }
  const keys = await keysFrom(keyOptions);
  const progress = createProgress();
  try {
    // Another name could only be tried by reading all of it again, so none that two imports could both take.
    const imported = `imported-${process.pid}`;
    const target = given ?? (file === "-" ? defaultImage(imported, new Date()) : undefined);
    const { image, header, bytes, used } = await interruptible((signal) =>
      atNewImage(target, imported, async (path) => {
        const source = file === "-" ? process.stdin : await openSource(file);
        source.on("error", () => undefined); // the reader gets the error; until there is one, it must not end the process
        const name = file === "-" ? "standard input" : file;
        const options = { name, keys, signal, onProgress: showBytes(progress, "importing") };
        return { image: path, ...(await importImage(addAbortSignal(signal, source), path, options)) };
      }),
    );
    progress.stop();
    if (json === true)
      printJson({ schema: 1, path: image, id: header.id, frames: header.frames, bytes, used } as { schema: number });
    else print(`imported ${printable(image)}: ${formatBytes(bytes)}${used ? "; it was used before, and is marked so" : ""}`);
  } finally {
    progress.stop();
  }
}

/**
 * A file or a pipe to read from. The opening of a pipe would block a thread until there is a writer, and the process could not
 * end before: so it is opened without waiting, and the event loop waits for what comes.
 *
 * @throws HIB_IO, HIB_USAGE for a directory
 */
async function openSource(file: string): Promise<Readable> {
  let descriptor: number;
  try {
    descriptor = openSync(file, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    throw fromSystemError(error, `reading ${file}`);
  }
  const stat = fstatSync(descriptor);
  if (stat.isFIFO()) return new Socket({ fd: descriptor, readable: true, writable: false });
  if (!stat.isDirectory()) return createReadStream(file, { fd: descriptor });
  closeSync(descriptor);
  const what = (await holdsImage(file)) ? "an image already, as it is" : "a directory, and no stream of hib export";
  throw new HibernaculumError("HIB_USAGE", `${file} is ${what}; give a file that hib export wrote`);
}
