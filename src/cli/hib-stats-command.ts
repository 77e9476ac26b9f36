/** `hib-stats`: the fault and atomic-copy report of an image, or of a running machine. */
import { existsSync } from "node:fs";
import type { Keys } from "../base/key.js";
import { damaged } from "../base/errors.js";
import { holdsImage, openImage } from "../image/directory.js";
import { isSaveReport } from "../reports/report-shape.js";
import { isName, probe, socketPath } from "../server/runtime-directory.js";
import { renderLiveReport } from "../stats/live-report.js";
import { renderSaveReport } from "../stats/save-report.js";
import { printableAll } from "../stats/printable.js";
import { createProgram, main } from "./command.js";
import { connect } from "./connect.js";
import { KEY_FILE, type KeyOptions, keysFrom, PASSPHRASE_FILE } from "./keys.js";
import { print, printJson, stdoutView } from "./output.js";

const program = createProgram(
  "hib-stats",
  "The report of a save: faults, atomic copy, pause, throughput, and what the workload felt.",
)
  .argument("<image|machine>", "an image's path, or the name of a machine that runs")
  .option(...KEY_FILE)
  .option(...PASSPHRASE_FILE)
  .option("--json", "for programs")
  .action(async (what: string, { json, ...keyOptions }: KeyOptions & { json?: boolean }) => {
    // A machine's name has no slash. A name that is also a path here is taken for the path, unless that is no image and it runs.
    const isPath = what.includes("/") || (existsSync(what) && ((await holdsImage(what)) || !(await isRunning(what))));
    if (isPath) await showImage(what, await keysFrom(keyOptions), json === true);
    else await showMachine(what, json === true);
  });
await main(program);

async function isRunning(name: string): Promise<boolean> {
  return isName(name) && (await probe(socketPath(name))) === "alive";
}

async function showImage(path: string, keys: Keys, json: boolean): Promise<void> {
  const image = await openImage(path, { keys });
  try {
    // Nobody but people needs it, so it is looked at when it is shown.
    const { report } = image.catalogue.meta;
    if (!isSaveReport(report)) throw damaged("HIB_CORRUPT", `${path}: the report of its save is malformed`);
    if (json) printJson(report);
    else print(renderSaveReport(printableAll({ ...report, image: { ...report.image, path } }), stdoutView()).trimEnd());
  } finally {
    image.close();
  }
}

async function showMachine(name: string, json: boolean): Promise<void> {
  const client = await connect(name);
  try {
    const report = await client.request("report", {});
    if (json) printJson({ schema: 1, ...report } as { schema: number });
    else print(renderLiveReport(printableAll(report), stdoutView()).trimEnd());
  } finally {
    client.close();
  }
}
