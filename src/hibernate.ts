/**
 * A live save, as the seed tells it (S1, "When saving the image"): the approach `write-fault`. One call per step, in order:
 *
 *     prepare   drivers save their state, memory is reserved                      S1.1, S1.9
 *     arm       every frame is write-protected on every vCPU, then it is planned
 *               what to read                                                      S1.2
 *     stream    all of memory is written while processes keep running             S1.3
 *     stop      all vCPUs at a safepoint, devices quiesced; atomic copy, or all
 *               that was marked is protected again, and the machine goes on       S1.4
 *     residual  what was marked is written, or its pre-images; then the copies    S1.5
 *     publish   catalogue, header, rename: now there is an image
 *     ending    power off, or go on
 *
 * The other approaches (src/approaches) take the same parts in another order.
 *
 * What must hold: until `publish` returns there is no image, and after it there is a whole one. A save that fails or is
 * cancelled anywhere leaves the machine running and nothing on the disk.
 */
import { dirname, resolve } from "node:path";
import { OTHER_APPROACHES } from "./approaches/index.js";
import { type Approach, Save } from "./approaches/parts.js";
import { fromSystemError, isSystemError } from "./base/errors.js";
import { failpoint } from "./base/failpoints.js";
import { NewEncryption } from "./image/encryption.js";
import { createPartial, type PartialImage, removeStalePartials } from "./image/directory.js";
import type { Machine } from "./machine.js";
import type { ApproachName } from "./reports/approaches.js";
import type { SaveReport } from "./reports/save-report.js";
import { checkSave, COPY_FRAMES_PER_MS, type SaveOptions, withDefaults } from "./save-options.js";

/**
 * Saves a running machine.
 *
 * @param path - where the image is to be; must not exist
 * @returns the report, which the image's catalogue has too
 * @throws HIB_USAGE, HIB_BUSY, HIB_IMAGE_EXISTS, HIB_NO_SPACE, HIB_NO_MEMORY, HIB_IO, HIB_WORKER_DIED, HIB_CANCELLED, HIB_ORACLE,
 * HIB_NO_MACHINE: the machine runs on as if nothing had happened, but for one whose vCPU died
 */
export async function save(machine: Machine, path: string, options: SaveOptions = {}): Promise<SaveReport> {
  checkSave(machine, path, options);
  using _busy = machine.begin("save");
  await machine.resident(options.signal);
  await removeStalePartials(dirname(resolve(path))); // what a killed host left there
  const image = await createPartial(path);
  let report: SaveReport;
  try {
    report = await saveTo(machine, image, options);
  } finally {
    await image.discard(); // unless it is published
  }
  try {
    failpoint("save.published");
  } finally {
    if (options.keepRunning !== true) await machine.powerOff(); // there is an image: only one of the two may go on
  }
  return report;
}

async function saveTo(machine: Machine, image: PartialImage, options: SaveOptions): Promise<SaveReport> {
  const encryption = await NewEncryption.begin(options.keys);
  machine.refuseOff(); // it may have been told to end meanwhile
  const settings = withDefaults(options);
  using work = new Save(machine, image, settings, encryption);
  try {
    await APPROACHES[settings.approach](work);
    return await work.publish();
  } catch (error) {
    work.abandon();
    machine.refuseOff(error); // its threads are gone: whatever that looks like from here, somebody wanted it so
    const why = machine.reasonFor(error);
    throw isSystemError(why) ? fromSystemError(why, `saving ${image.path}`) : why;
  }
}

const APPROACHES: Readonly<Record<ApproachName, Approach>> = { "write-fault": writeFault, ...OTHER_APPROACHES };

/** The seed's. The image is memory as of the end. */
async function writeFault(save: Save): Promise<void> {
  await save.prepare((reserve) => reserve.growToEstimate());
  save.arm();
  save.plan();
  await save.stream();
  save.stop();
  const { keepRunning, pauseTarget_ms } = save.settings;
  if (!keepRunning || pauseTarget_ms > 0) {
    const residual = save.list();
    save.copy(Math.floor(Math.min(residual, save.copyPlaces, pauseTarget_ms * COPY_FRAMES_PER_MS)));
  }
  save.protect();
  save.go();
  await save.writeResidual();
}
