/** `hib save`: saves a running machine, from another terminal. */
import { dirname, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type Command, Option } from "commander";
import { HibernaculumError } from "../base/errors.js";
import { FRAME_BYTES } from "../base/layout.js";
import { APPROACH_NAMES, type ApproachName, DEFAULT_APPROACH } from "../reports/approaches.js";
import type { SaveProgress } from "../reports/save-progress.js";
import { holdsImage } from "../image/directory.js";
import { statIfThere } from "../image/files.js";
import { type SaveRequest, sendKey } from "../server/protocol.js";
import { renderSaveSummary } from "../stats/save-report.js";
import { printableAll } from "../stats/printable.js";
import { createCommand, interruptible, wholeNumber } from "./command.js";
import { connect } from "./connect.js";
import { KEY_FILE, type KeyOptions, keysToSave, PASSPHRASE_FILE } from "./keys.js";
import { print, printJson, stdoutView } from "./output.js";
import { createProgress, type ProgressStep } from "./progress.js";

interface SaveCommandOptions extends KeyOptions {
  keepRunning?: boolean;
  approach: ApproachName;
  compression: "lz4" | "none";
  pauseTarget?: number;
  maxPause?: number;
  throttle?: boolean;
  base?: string;
  saveClean?: boolean;
  digest?: boolean;
  encrypt?: boolean;
  json?: boolean;
}

export function addSave(program: Command): void {
  createCommand(program, "save", "save a running machine; it is powered off once its image is there")
    .argument("<name>", "the machine")
    .argument("[image]", "where to save it; must not exist (default: ./NAME-TIME.hib)")
    .option("--keep-running", "the machine goes on: a snapshot")
    .addOption(
      new Option("--approach <name>", "how memory gets into the image; hib compare tells them apart")
        .choices(APPROACH_NAMES)
        .default(DEFAULT_APPROACH),
    )
    .addOption(new Option("--compression <codec>", "of the image").choices(["lz4", "none"]).default("lz4"))
    .addOption(
      new Option(
        "--pause-target <ms>",
        "how much is copied in the stop: 1,000 frames for each ms; the rest is saved by copy-before-write, or from where it is (default: 0 with --keep-running, else 2)",
      ).argParser(wholeNumber(0, 60_000)),
    )
    .addOption(
      new Option("--max-pause <ms>", "of adaptive: how long the machine may be stopped (default: 10)").argParser(
        wholeNumber(1, 60_000),
      ),
    )
    .option("--throttle", "of adaptive: make processes that write slower if rounds do not pay")
    .option(
      "--base <image>",
      "save only what changed since that image, which the new one then needs: the last snapshot of this machine, or what it was resumed from",
    )
    .option("--save-clean", "also store unchanged pages of files of the host; otherwise the image refers to the file")
    .option(
      "--digest",
      "also a SHA-256 of each chunk and of the catalogue, for signing or comparing images; costs processor time",
    )
    .option("--encrypt", "encrypt the image, names and paths too; asks for a passphrase unless a key is given")
    .option(...KEY_FILE)
    .option(...PASSPHRASE_FILE)
    .option("--json", "print the report for programs")
    .addHelpText("after", "\nCtrl-C cancels: the machine goes on, and nothing is left behind.")
    .action(saveMachine);
}

async function saveMachine(name: string, image: string | undefined, options: SaveCommandOptions): Promise<void> {
  const keys = await keysToSave(options);
  const progress = createProgress();
  const client = await connect(name, "Ctrl-C cancels the save, a second one ends this command", () => progress.stop());
  try {
    const request: Omit<SaveRequest, "path"> = {
      keepRunning: options.keepRunning === true,
      approach: options.approach,
      compression: options.compression,
      ...(options.pauseTarget === undefined ? {} : { pauseTarget_ms: options.pauseTarget }),
      ...(options.maxPause === undefined ? {} : { maxPause_ms: options.maxPause }),
      ...(options.throttle === undefined ? {} : { throttle: options.throttle }),
      ...(options.base === undefined ? {} : { base: resolve(options.base) }),
      saveClean: options.saveClean === true,
      digest: options.digest === true ? "sha256" : "none",
      ...(keys === undefined ? {} : { keys: keys.map(sendKey) }),
    };
    const report = await interruptible((signal) =>
      atNewImage(image, name, (path) => {
        const onProgress = (step: SaveProgress): void => progress.update(saveStep(step));
        return client
          .request("save", { path: resolve(path), ...request }, { signal, onProgress })
          .catch(async (error: unknown) => Promise.reject(await sayWhatIsThere(error, path)));
      }),
    );
    progress.stop();
    if (options.json === true) printJson(report);
    else print(renderSaveSummary(printableAll(report), stdoutView()));
  } finally {
    progress.stop();
    client.close();
  }
}

/** A machine that gave no answer cannot say whether there is an image; the disk can. */
async function sayWhatIsThere(error: unknown, path: string): Promise<unknown> {
  if (!(error instanceof HibernaculumError) || !["HIB_NO_MACHINE", "HIB_NO_ANSWER"].includes(error.code)) return error;
  const found = await holdsImage(path).catch(() => undefined);
  if (found === undefined) return error;
  const what = found ? `its image is at ${path}; hib verify checks it` : `there is no image at ${path}`;
  return new HibernaculumError(error.code, `${error.message}; ${what}`, { cause: error });
}

const PHASE_LABELS: Readonly<Record<SaveProgress["phase"], string>> = {
  prepare: "preparing",
  stream: "streaming",
  residual: "writing the copies",
  publish: "publishing",
};

/** A save's progress, to be shown. */
export function saveStep({ phase, done, total }: SaveProgress): ProgressStep {
  return { label: PHASE_LABELS[phase], done, total, unitBytes: FRAME_BYTES };
}

/**
 * Makes an image where one is wanted: as given, else NAME-TIME.hib, local time to the millisecond: m1-20240131-235959-123.hib.
 * A name that nobody has asked for is no reason to fail: if it is taken by then, there is another one.
 *
 * @throws HIB_USAGE, HIB_IO, and what `make` throws
 */
export async function atNewImage<T>(given: string | undefined, name: string, make: (path: string) => Promise<T>): Promise<T> {
  if (given === "") throw new HibernaculumError("HIB_USAGE", "the path of the image is empty");
  if (given !== undefined) {
    const parent = dirname(given);
    if ((await statIfThere(resolve(parent))) === undefined)
      throw new HibernaculumError(
        "HIB_IO",
        `there is no directory ${parent} to put the image in; make it, or choose another path`,
      );
    return make(given);
  }
  for (let attempt = 1; ; attempt++) {
    try {
      return await make(defaultImage(name, new Date()));
    } catch (error) {
      const taken = error instanceof HibernaculumError && error.code === "HIB_IMAGE_EXISTS";
      if (!taken || attempt === DEFAULT_NAMES_MAX) throw error;
      await sleep(1 + Math.random() * attempt); // those who met once should not meet again
    }
  }
}

const DEFAULT_NAMES_MAX = 20;

export function defaultImage(name: string, time: Date): string {
  const local = new Date(time.getTime() - time.getTimezoneOffset() * 60_000).toISOString();
  return `${name}-${local.slice(0, 23).replaceAll(/[-:]/g, "").replace("T", "-").replace(".", "-")}.hib`;
}
