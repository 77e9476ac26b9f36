/**
 * A live save, as the seed tells it (S1, "When saving the image"). One call per step, in order:
 *
 *     prepare   drivers save their state, memory is reserved, the plan is made    S1.1, S1.9
 *     arm       every frame is write-protected on every vCPU                      S1.2
 *     stream    all of memory is written while processes keep running             S1.3
 *     stop      all vCPUs at a safepoint, devices quiesced; atomic copy, or all
 *               that was marked is protected again, and the machine goes on       S1.4
 *     residual  what was marked is written, or its pre-images; then the copies    S1.5
 *     publish   catalogue, header, rename: now there is an image
 *     ending    power off, or go on
 *
 * What must hold: until `publish` returns there is no image, and after it there is a whole one. A save that fails or is
 * cancelled anywhere leaves the machine running and nothing on the disk.
 */
import { randomUUID } from "node:crypto";
import { dirname, resolve } from "node:path";
import { guarded } from "./base/callback.js";
import { bit } from "./base/control.js";
import { fromSystemError, isSystemError } from "./base/errors.js";
import { failpoint } from "./base/failpoints.js";
import { STOP_BITMAP } from "./base/layout.js";
import { StepTimes } from "./base/step-times.js";
import { atomicCopy } from "./cow/atomic-copy.js";
import { Cancellation } from "./cow/cancellation.js";
import { resetFaultStatistics } from "./cow/fault-statistics.js";
import { checkOracle, createOracle } from "./cow/oracle.js";
import { planFrames } from "./cow/plan.js";
import { Reserve } from "./cow/reserve.js";
import { loadChecksum } from "./image/checksum.js";
import { createPartial, type PartialImage, removeStalePartials } from "./image/directory.js";
import type { Machine } from "./machine.js";
import { publishImage } from "./publish.js";
import { SaveProgressTeller } from "./reports/save-progress.js";
import { emptyCounts, SAVE_STEPS, type SaveCounts, type SaveReport } from "./reports/save-report.js";
import { SaveFiles } from "./save-files.js";
import {
  CANCEL_MESSAGES,
  checkSave,
  COPY_FRAMES_PER_MS,
  type SaveOptions,
  type SaveSettings,
  withDefaults,
} from "./save-options.js";
import { resetLongestGap } from "./vm/tasks/activity.js";
import { ImageWriter } from "./writer/image-writer.js";
import { type StageSource, WRITER_BYTES } from "./writer/page-writer.js";

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
  machine.refuseOff(); // it may have been told to end meanwhile
  using work = new Save(machine, image, withDefaults(options));
  try {
    await work.prepare();
    work.arm();
    await work.stream();
    await work.stop();
    await work.writeResidual();
    return await work.publish();
  } catch (error) {
    work.abandon();
    machine.refuseOff(error); // its threads are gone: whatever that looks like from here, somebody wanted it so
    const why = machine.reasonFor(error);
    throw isSystemError(why) ? fromSystemError(why, `saving ${image.path}`) : why;
  }
}

/** One save under way. Its methods are called in the order in which they stand. */
class Save implements Disposable {
  readonly #machine: Machine;
  readonly #image: PartialImage;
  readonly #options: SaveSettings;
  readonly #id = randomUUID();
  readonly #times = new StepTimes(SAVE_STEPS);
  readonly #progress: SaveProgressTeller;
  readonly #cancellation: Cancellation;
  readonly #writer: ImageWriter;
  readonly #reserve: Reserve;
  readonly #files: SaveFiles;
  readonly #oracle: SharedArrayBuffer | undefined;
  readonly #counts: SaveCounts;
  #stopped = false;
  /** It is known what belongs to the image. */
  #frozen = false;
  /** The consistency point, ms since 1970. */
  #time = 0;

  constructor(machine: Machine, image: PartialImage, options: SaveSettings) {
    const { control, kernel, claims, writers, pool } = machine;
    const { compression, digest } = options;
    this.#machine = machine;
    this.#image = image;
    this.#options = options;
    this.#cancellation = new Cancellation(machine, options.signal, CANCEL_MESSAGES);
    this.#progress = new SaveProgressTeller(control, this.#cancellation.guard("onProgress", options.onProgress));
    this.#oracle = options.oracle === true ? createOracle(kernel.memory.frames) : undefined;
    const toBlob = { blob: image.blobPath, frames: kernel.memory.frames, writers, compression, digest, oracle: this.#oracle };
    this.#writer = new ImageWriter(pool, control, { ...toBlob, onError: this.#cancellation.cancel });
    this.#reserve = new Reserve(kernel, claims, { poolOffset: writers * WRITER_BYTES, limit: options.reserveFrames });
    this.#files = new SaveFiles(machine, options.saveClean === true ? "all" : "changed");
    this.#counts = emptyCounts(writers);
  }

  /** S1.1, S1.9: whatever takes time or memory and need not be atomic. */
  async prepare(): Promise<void> {
    const { control, devices, vcpus } = this.#machine;
    failpoint("save.prepare");
    await loadChecksum();
    devices.saveState();
    await this.#files.prepare(this.#options.signal);
    this.#counts.estimated = this.#reserve.growToEstimate();
    resetFaultStatistics(control);
    resetLongestGap(control, vcpus);
    this.#cancellation.check();
    this.#times.ended("prepared");
  }

  /** S1.2: write-protect every frame on every vCPU, and only then plan what to read. */
  arm(): void {
    const { claims, core, kernel, tracking } = this.#machine;
    tracking.arm();
    this.#times.ended("armed");
    failpoint("save.armed");
    this.#counts.planned = planFrames(claims, core, kernel.memory, () => this.#files.plan());
    this.#times.ended("planned");
    this.#files.learn();
  }

  /** S1.3: write all of memory while processes keep running; the reserve grows with the marks meanwhile. */
  async stream(): Promise<void> {
    this.#progress.enter("stream", this.#counts.planned);
    await this.#write("live", () => this.#reserve.growToResidual());
    this.#reserve.growToResidual();
    this.#files.learn();
    this.#times.ended("streamed");
  }

  /** S1.4: stop everything, and copy what the pause allows. In a snapshot the rest is protected again, and the machine goes on. */
  async stop(): Promise<void> {
    const { claims, control, core, devices, quiesce } = this.#machine;
    this.#machine.drainConsole(); // a listener may take long; what is printed later is in the image
    this.#times.ended("stopping");
    quiesce.stop();
    this.#stopped = true;
    this.#machine.check();
    this.#times.ended("atSafepoint");
    devices.quiesce();
    this.#reserve.openQueue();
    this.#counts.reserved = claims.unclaimed;
    this.#time = Date.now();
    this.#times.ended("quiesced");
    failpoint("save.stopped");
    if (this.#oracle !== undefined) this.#counts.oracleFrames = checkOracle(control, core, this.#oracle);
    const { keepRunning, pauseTarget_ms } = this.#options;
    if (!keepRunning || pauseTarget_ms > 0) this.#copyResidual();
    else this.#times.ended("listed");
    failpoint("save.copied");
    this.#times.ended("copied");
    if (keepRunning) this.#go();
    else this.#times.ended("stopped");
  }

  /** S1.5: write the residual set: what was not copied from where it is, or its pre-images; then the copies. They supersede the stream. */
  async writeResidual(): Promise<void> {
    const { claims, control, core, tracking } = this.#machine;
    const { copied } = this.#counts;
    failpoint("save.residual");
    const residual = (this.#counts.residual ||= core.listResidual()); // unless it was listed for the atomic copy
    this.#progress.enter("residual", residual);
    await this.#writeList("tail", copied, residual);
    tracking.disarm(); // and no handler is at work on a pre-image any more
    const queue = control.locked(() => claims.queue); // no allocator is about to take a place back
    this.#counts.tail = queue;
    this.#progress.extend(queue.preimages);
    await this.#writeList("queue", queue.start, queue.end);
    this.#reserve.release();
    this.#times.ended("residual");
  }

  /** Catalogue, header, syncs, rename: the image is there, whole, or it is not. */
  async publish(): Promise<SaveReport> {
    this.#progress.enter("publish", 0);
    const references = this.#files.references();
    const { locations } = this.#writer;
    const { table, ...saved } = locations.extents((frame) => bit(this.#machine.control.words, STOP_BITMAP, frame) === 1);
    this.#counts.saved = { ...saved, byReference: references.reduce((sum, { frames }) => sum + frames, 0) };
    this.#counts.stored = locations.totals(table);
    failpoint("save.catalogue");
    // A resume repeats the requests in flight: this host must have ended them by then.
    if (!this.#options.keepRunning) await this.#machine.devices.settle();
    const { keepRunning, compression, name, digest } = this.#options;
    return publishImage(this.#machine, this.#image, this.#cancellation, {
      facts: { id: this.#id, time: this.#time, keepRunning, compression, at: this.#times.all(), counts: this.#counts },
      written: this.#writer,
      extents: table,
      files: await this.#files.rows(),
      references,
      name,
      digest,
    });
  }

  /** After a failure: the machine goes on, unless it is lost and cannot. */
  abandon(): void {
    if (this.#machine.isLost) return;
    this.#machine.tracking.disarm();
    this.#reserve.release(); // before anybody may want memory
    if (!this.#stopped) return;
    this.#machine.quiesce.go();
    this.#machine.devices.resume("stop");
  }

  /** In any case: tracking is off, and the guest has its memory back. */
  [Symbol.dispose](): void {
    this.#cancellation[Symbol.dispose]();
    this.#progress[Symbol.dispose]();
    this.#files[Symbol.dispose]();
    if (this.#machine.isLost) return; // its threads do not answer
    this.#machine.tracking.disarm();
    this.#machine.devices.freeState();
    this.#reserve.release();
  }

  // ---- parts ----

  /** What belongs to the image, and what its files are. The kernel lock has been held since the stop, or everything is stopped still. */
  #freeze(): void {
    this.#machine.tracking.freezeSaveable();
    this.#counts.changedFiles = this.#files.freeze();
    this.#frozen = true;
    this.#times.ended("frozen");
  }

  /** The atomic copy: what the pause allows, and finds a place. Of a snapshot's places half are for pre-images. */
  #copyResidual(): void {
    const { claims, core, quiesce } = this.#machine;
    const { keepRunning, pauseTarget_ms } = this.#options;
    this.#freeze();
    const residual = (this.#counts.residual = core.listResidual());
    const places = keepRunning ? Math.floor(claims.unclaimed / 2) : claims.unclaimed;
    this.#counts.copied = Math.floor(Math.min(residual, places, pauseTarget_ms * COPY_FRAMES_PER_MS));
    this.#times.ended("listed");
    atomicCopy(claims, core, quiesce, this.#counts.copied);
  }

  /** The tail is protected, and processes run from here on. Who enters the kernel waits until all is noted as it was. */
  #go(): void {
    const { control, devices, quiesce, tracking } = this.#machine;
    control.locked(() => {
      tracking.armTail();
      quiesce.release();
      if (!this.#frozen) this.#freeze();
    });
    this.#times.ended("stopped", quiesce.left());
    devices.resume("stop");
    this.#stopped = false;
  }

  async #writeList(source: StageSource, from: number, to: number): Promise<void> {
    this.#machine.claims.open(from, to);
    if (from < to) await this.#write(source);
  }

  async #write(source: StageSource, meanwhile?: () => void): Promise<void> {
    using _watch = this.#progress.watch(guarded(meanwhile, this.#cancellation.fail));
    await this.#writer.write(source);
    this.#cancellation.check();
  }
}
