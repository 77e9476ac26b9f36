/** `hib export`: an image as one stream, to a file or into a pipe. */
import { open, rm } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import process from "node:process";
import { pipeline } from "node:stream/promises";
import type { Command } from "commander";
import { fromSystemError, HibernaculumError } from "../base/errors.js";
import { BlobWriter } from "../image/blob.js";
import { syncDirectory } from "../image/files.js";
import { exportImage } from "../image/stream.js";
import { formatBytes } from "../stats/format.js";
import { printable } from "../stats/printable.js";
import { createCommand, interruptible } from "./command.js";
import { KEY_FILE, type KeyOptions, keysFrom, PASSPHRASE_FILE } from "./keys.js";
import { isClosed, outliveOutput, print } from "./output.js";
import { createProgress, showBytes } from "./progress.js";

export function addExport(program: Command): void {
  createCommand(program, "export", "write an image as one stream, for hib import: through a pipe, to another host, to a tape")
    .argument("<image>", "where the machine was saved")
    .argument("<file>", "what to write, which must not exist; - for standard output")
    .option("--again", "also an image that was resumed before; its copy is marked as used")
    .option(...KEY_FILE)
    .option(...PASSPHRASE_FILE)
    .action(exportTo);
}

async function exportTo(
  path: string,
  file: string,
  { again = false, ...keyOptions }: KeyOptions & { again?: boolean },
): Promise<void> {
  if (file === "-" && process.stdout.isTTY) {
    throw new HibernaculumError("HIB_USAGE", "an image is not for a terminal: redirect standard output, or give a file");
  }
  if (file === "-" && isClosed(1)) {
    throw new HibernaculumError(
      "HIB_IO",
      "standard output is closed, so there is nowhere to write the image; redirect it, or give a file",
    );
  }
  const keys = await keysFrom(keyOptions);
  const progress = createProgress();
  const stream = (signal?: AbortSignal): AsyncGenerator<Uint8Array> =>
    exportImage(path, { again, keys, signal, onProgress: showBytes(progress, "exporting") });
  try {
    if (file === "-") {
      outliveOutput(() => undefined); // the pipeline below tells
      // Nothing would be left behind, so nobody need listen for Ctrl-C: it must work while a slow reader is waited for.
      await pipeline(stream(), process.stdout);
    } else {
      const bytes = await interruptible((signal) => writeDurably(resolve(file), stream(signal)));
      progress.stop();
      print(`exported ${printable(path)} to ${printable(file)}: ${formatBytes(bytes)}`);
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EPIPE")
      throw new HibernaculumError("HIB_IO", "the reader of standard output went away: it has only part of the image");
    throw fromSystemError(error, `writing ${file === "-" ? "standard output" : file}`);
  } finally {
    progress.stop();
  }
}

/** Writes a new file, durably and whole, or leaves none. Returns its length. */
export async function writeDurably(path: string, stream: AsyncIterable<Uint8Array>): Promise<number> {
  await create(path);
  let length = 0;
  try {
    const writer = await BlobWriter.open(path, { direct: false });
    try {
      for await (const piece of stream) {
        await writer.write(piece, length);
        length += piece.length;
      }
      await writer.sync();
    } finally {
      await writer.close();
    }
    await syncDirectory(dirname(path)); // else a crash of the host may leave the bytes without their name
  } catch (error) {
    await rm(path, { force: true });
    throw error;
  }
  return length;
}

/** @throws HIB_IMAGE_EXISTS, HIB_IO */
async function create(path: string): Promise<void> {
  try {
    await (await open(path, "wx", 0o600)).close(); // it will hold all of a machine's memory
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    throw new HibernaculumError("HIB_IMAGE_EXISTS", `${path} exists already: remove it or choose another path`);
  }
}
