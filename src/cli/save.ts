/** `hib save`: saves a running machine, from another terminal. */
import { resolve } from "node:path";
import { type Command, Option } from "commander";
import { HibernaculumError } from "../base/errors.js";
import { FRAME_BYTES } from "../base/layout.js";
import type { SaveProgress } from "../reports/save-progress.js";
import { Client } from "../server/client.js";
import { renderSaveSummary } from "../stats/save-report.js";
import { createCommand, interruptible, wholeNumber } from "./command.js";
import { print, printJson, stdoutView } from "./output.js";
import { createProgress, type ProgressStep } from "./progress.js";

interface SaveCommandOptions {
  keepRunning?: boolean;
  compression: "lz4" | "none";
  pauseTarget: number;
  saveClean?: boolean;
  digest?: boolean;
  json?: boolean;
}

export function addSave(program: Command): void {
  createCommand(program, "save", "save a running machine; it is powered off once its image is there")
    .argument("<name>", "the machine")
    .argument("[image]", "where to save it; must not exist (default: ./NAME-TIME.hib)")
    .option("--keep-running", "the machine goes on: a snapshot")
    .addOption(new Option("--compression <codec>", "of the image").choices(["lz4", "none"]).default("lz4"))
    .addOption(
      new Option("--pause-target <ms>", "snapshot: how long the atomic copy may take; the rest is saved by copy-before-write")
        .argParser(wholeNumber(0, 60_000))
        .default(2),
    )
    .option(
      "--save-clean",
      "store pages of files of the host that are as the file has them, too; else the image refers to the file",
    )
    .option(
      "--digest",
      "also a SHA-256 of each chunk and of the catalogue, for who signs or compares images; takes processor time",
    )
    .option("--json", "print the report for programs")
    .addHelpText("after", "\nCtrl-C cancels: the machine goes on, and nothing is left behind.")
    .action(saveMachine);
}

async function saveMachine(name: string, image: string | undefined, options: SaveCommandOptions): Promise<void> {
  const path = resolve(newImage(image, name));
  const client = await Client.connect(name);
  const progress = createProgress();
  try {
    const report = await interruptible((signal) =>
      client.request(
        "save",
        {
          path,
          keepRunning: options.keepRunning === true,
          compression: options.compression,
          pauseTarget_ms: options.pauseTarget,
          saveClean: options.saveClean === true,
          digest: options.digest === true ? "sha256" : "none",
        },
        { signal, onProgress: (step) => progress.update(saveStep(step)) },
      ),
    );
    progress.stop();
    if (options.json === true) printJson(report);
    else print(renderSaveSummary(report, stdoutView()));
  } finally {
    progress.stop();
    client.close();
  }
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

/** Where a new image is to be: as given, else NAME-TIME.hib, local time to the second: m1-20240131-235959.hib. @throws HIB_USAGE */
export function newImage(given: string | undefined, name: string): string {
  if (given === "") throw new HibernaculumError("HIB_USAGE", "the path of the image is empty");
  if (given !== undefined) return given;
  const now = new Date(Date.now() - new Date().getTimezoneOffset() * 60_000);
  return `${name}-${now.toISOString().slice(0, 19).replaceAll(/[-:]/g, "").replace("T", "-")}.hib`;
}
