/**
 * The parts that every approach to a save is made of. An approach (hibernate.ts, and the files beside this one) is the order in which it
 * calls them:
 *
 *     prepare            drivers save their state, files are read, memory is reserved     S1.1, S1.9
 *     arm                every frame is write-protected on every vCPU                      S1.2
 *     plan               which frames are streamed; planNothing: none is
 *     stream             the planned frames are written while processes run               S1.3
 *     round              what was marked by now is written once more
 *     stop               all vCPUs at a safepoint, devices quiesced                       S1.4
 *     list               what belongs to the image is noted, and the residual set listed
 *     copy               the first of the list are copied into the reserve, by all vCPUs
 *     protect            a snapshot: pre-images of the residual set are kept from now on  S3.3
 *     go                 a snapshot goes on; a hibernation stays where it is
 *     writeResidual      the rest from where it is, or its pre-images; then the copies    S1.5
 *     publish            catalogue, header, rename: now there is an image
 *
 * What must hold: until `publish` returns there is no image, and after it there is a whole one. A hibernation does nothing after
 * its consistency point: it would be lost.
 */
import { randomUUID } from "node:crypto";
import { guarded } from "../base/callback.js";
import { bit } from "../base/control.js";
import { failpoint } from "../base/failpoints.js";
import { KEPT_BITMAP, MACHINE_PROGRESS, MACHINE_THROTTLE, STOP_BITMAP } from "../base/layout.js";
import { StepTimes } from "../base/step-times.js";
import type { CaptureProcess } from "../capture/capture-process.js";
import { atomicCopy } from "../cow/atomic-copy.js";
import { Cancellation } from "../cow/cancellation.js";
import { resetFaultStatistics } from "../cow/fault-statistics.js";
import { checkKept, checkOracle, createOracle } from "../cow/oracle.js";
import { planFrames, planNothing } from "../cow/plan.js";
import { Reserve } from "../cow/reserve.js";
import { baseIsGone, openBase } from "./base-image.js";
import { loadChecksum } from "../image/checksum.js";
import type { NewEncryption } from "../image/encryption.js";
import type { Image, PartialImage } from "../image/directory.js";
import type { Machine } from "../machine.js";
import { publishImage } from "../publish.js";
import { SaveProgressTeller } from "../reports/save-progress.js";
import { type AdaptiveReport, emptyCounts, SAVE_STEPS, type SaveCounts, type SaveReport } from "../reports/save-report.js";
import { SaveFiles } from "../save-files.js";
import { CANCEL_MESSAGES, type SaveSettings } from "../save-options.js";
import { resetLongestGap, resetWaits } from "../vm/tasks/activity.js";
import { ImageWriter } from "../writer/image-writer.js";
import { type StageSource, WRITER_BYTES, type WriteTask } from "../writer/page-writer.js";

/** Has a save's parts done in the order that it stands for, from `prepare` to `writeResidual`. */
export type Approach = (save: Save) => Promise<void>;

/** One save under way. */
export class Save implements Disposable {
  readonly machine: Machine;
  readonly settings: SaveSettings;
  readonly #image: PartialImage;
  readonly #encryption: NewEncryption | undefined;
  readonly #id = randomUUID();
  readonly #times = new StepTimes(SAVE_STEPS);
  readonly #progress: SaveProgressTeller;
  readonly #cancellation: Cancellation;
  readonly #writer: ImageWriter;
  readonly #reserve: Reserve;
  readonly #files: SaveFiles;
  readonly #oracle: SharedArrayBuffer | undefined;
  readonly #counts: SaveCounts;
  /** The image that this one has only the changes since. */
  #base: Image | undefined;
  #stopped = false;
  /** It is known what belongs to the image. */
  #noted = false;
  /** The consistency point, ms since 1970. */
  #time = 0;

  constructor(machine: Machine, image: PartialImage, settings: SaveSettings, encryption?: NewEncryption) {
    const { control, kernel, claims, writers, pool } = machine;
    const { compression, digest } = settings;
    this.settings = settings;
    this.machine = machine;
    this.#image = image;
    this.#cancellation = new Cancellation(machine, settings.signal, CANCEL_MESSAGES);
    this.#progress = new SaveProgressTeller(control, this.#cancellation.guard("onProgress", settings.onProgress));
    this.#oracle = settings.oracle === true ? createOracle(kernel.memory.frames) : undefined;
    const toBlob = { blob: image.blobPath, frames: kernel.memory.frames, writers, compression, digest, oracle: this.#oracle };
    this.#encryption = encryption;
    this.#writer = new ImageWriter(pool, control, {
      ...toBlob,
      key: encryption?.keys.chunks,
      onError: this.#cancellation.cancel,
    });
    this.#reserve = new Reserve(kernel, claims, { poolOffset: writers * WRITER_BYTES, limit: settings.reserveFrames });
    this.#files = new SaveFiles(machine, settings.saveClean === true ? "all" : "changed");
    this.#counts = emptyCounts(writers);
  }

  /**
   * Whatever takes time or memory and need not be atomic.
   *
   * @param reserve - reserves memory for copies and pre-images, and says how many frames are to be enough
   */
  async prepare(reserve: (reserve: Reserve) => number): Promise<void> {
    const { control, devices, vcpus } = this.machine;
    failpoint("save.prepare");
    await loadChecksum();
    if (this.settings.base !== undefined)
      this.#base = await openBase(this.machine, this.#image.path, this.settings.base, this.settings.keys);
    devices.saveState();
    await this.#files.prepare(this.settings.signal);
    this.#counts.estimated = reserve(this.#reserve);
    resetFaultStatistics(control);
    resetLongestGap(control, vcpus);
    resetWaits(control, vcpus);
    this.#cancellation.check();
    this.#times.ended("prepared");
  }

  /** Write-protects every frame on every vCPU. Only then may it be planned what to read. */
  arm(): void {
    if (this.#base === undefined) this.machine.tracking.arm();
    else this.machine.tracking.armSince();
    this.#times.ended("armed");
    failpoint("save.armed");
  }

  /** Plans to stream all of memory. */
  plan(): void {
    const { claims, core, kernel } = this.machine;
    this.#counts.planned = planFrames(claims, core, kernel.memory, () => this.#files.plan());
    this.#times.ended("planned");
  }

  /** Plans to stream nothing, so that the residual set is all of memory. */
  planNothing(): void {
    const { core, kernel, tracking } = this.machine;
    if (this.#base === undefined) tracking.forget(); // who does not arm has not done so yet
    planNothing(core, kernel.memory);
    this.#times.ended("planned");
  }

  /** Once all is armed: learns what clean pages of files hold. What is not learned by then is read at the stop. */
  learnFiles(): void {
    this.#files.learn();
  }

  /** Writes the planned frames while processes keep running; the reserve grows with the marks meanwhile. */
  async stream(): Promise<void> {
    this.learnFiles();
    await this.#stream(this.#counts.planned);
  }

  /** Another round: what bears a mark by now is protected again and written anew. */
  async round(): Promise<void> {
    this.#files.forget();
    const frames = this.machine.tracking.rearm();
    this.machine.claims.open(0, frames);
    this.#counts.rounds++;
    await this.#stream(frames);
  }

  /** From now until the stop, processes sleep for so long after each of their write-protect faults. */
  throttle(us: number): void {
    this.machine.control.store(MACHINE_THROTTLE, us);
  }

  /** How many frames the residual set has now, while the machine runs. */
  get marked(): number {
    return this.machine.core.countResidual();
  }

  /** Stops everything: the consistency point. */
  stop(): void {
    const { claims, control, core, devices, quiesce } = this.machine;
    this.throttle(0);
    this.machine.drainConsole(); // a listener may take long; what is printed later is in the image
    quiesce.prepare();
    this.#times.ended("stopping");
    quiesce.stop();
    this.#stopped = true;
    this.machine.check();
    this.#times.ended("atSafepoint");
    devices.quiesce();
    this.#reserve.openQueue();
    this.#counts.reserved = claims.unclaimed;
    this.#time = Date.now();
    this.#times.ended("quiesced");
    failpoint("save.stopped");
    if (this.#oracle !== undefined) this.#counts.oracleFrames = checkOracle(control, core, this.#oracle) + this.#checkKept();
  }

  /** Lists the residual set while everything is stopped; returns its size. */
  list(): number {
    if (!this.#noted) this.#note();
    return (this.#counts.residual = this.machine.core.listResidual());
  }

  /** Places that there are for copies and pre-images. */
  get places(): number {
    return this.machine.claims.unclaimed;
  }

  /** Of those, how many copies may have: of a snapshot's, the other half is for pre-images. */
  get copyPlaces(): number {
    return this.settings.keepRunning ? Math.floor(this.places / 2) : this.places;
  }

  /** The atomic copy of the first frames of the list. */
  copy(frames: number): void {
    const { claims, core, quiesce } = this.machine;
    this.#times.ended("listed");
    this.#counts.copied = frames;
    atomicCopy(claims, core, quiesce, frames);
  }

  /** How long the stop has taken, and the copy in it, ms. For whoever has gone on. */
  get pause(): { total_ms: number; copy_ms: number } {
    const { copied, listed, stopped, stopping } = this.#times.all();
    return { total_ms: stopped - stopping, copy_ms: copied - listed };
  }

  /** For the report. */
  noteAdaptive(report: AdaptiveReport): void {
    this.#counts.adaptive = report;
  }

  /** What was not copied is protected again, if the machine is to go on: from then on its pre-images are kept. */
  protect(): void {
    if (this.settings.keepRunning) this.machine.tracking.armTail();
  }

  /** Processes run from here on. Who enters the kernel waits until all is noted as it was. A hibernation stays stopped. */
  go(): void {
    const { control, devices, quiesce, tracking } = this.machine;
    failpoint("save.copied");
    this.#times.ended("copied");
    tracking.settle(this.settings.keepRunning ? "goes on" : "stays");
    if (!this.settings.keepRunning) {
      if (!this.#noted) this.#note();
      return this.#times.ended("stopped");
    }
    control.locked(() => {
      quiesce.release();
      if (!this.#noted) this.#note();
    });
    this.#times.ended("stopped", quiesce.left());
    devices.resume("stop");
    this.#stopped = false;
  }

  /** Writes the residual set: what was not copied from where it is, or its pre-images; then the copies. They supersede the stream. */
  async writeResidual(): Promise<void> {
    const { claims, control, core, tracking } = this.machine;
    const { copied } = this.#counts;
    failpoint("save.residual");
    const residual = (this.#counts.residual ||= core.listResidual()); // unless it was listed for the atomic copy
    this.#progress.enter("residual", residual);
    await this.#writeList("tail", copied, residual);
    tracking.endTail(); // no handler is at work on a pre-image any more
    const queue = control.locked(() => claims.queue); // no allocator is about to take a place back
    this.#counts.tail = queue;
    this.#progress.extend(queue.preimages);
    await this.#writeList("queue", queue.start, queue.end);
    this.#reserve.release();
    this.#times.ended("residual");
  }

  /** What a writer of the blob is told, whoever it is. */
  get writeTask(): Pick<WriteTask, "blob" | "compress" | "digest"> {
    const { compression, digest } = this.settings;
    return { blob: this.#image.blobPath, compress: compression === "lz4", digest };
  }

  /** What chunks are encrypted with. */
  get key(): Buffer | undefined {
    return this.#encryption?.keys.chunks.export();
  }

  /** Has another process write all that is listed, from where it is. Everything is stopped still. */
  async capture(process: CaptureProcess): Promise<void> {
    failpoint("save.residual");
    this.#progress.enter("residual", this.#counts.residual);
    using _watch = this.#progress.watch();
    const done = await process.write(this.#counts.residual, ({ frames, result }) => {
      this.#writer.add(result);
      this.machine.control.add(MACHINE_PROGRESS, frames);
    });
    this.#writer.end(done);
    this.#counts.capture = { resident_bytes: done.resident_bytes };
    this.#cancellation.check();
    this.#times.ended("residual");
  }

  /** Catalogue, header, syncs, rename: the image is there, whole, or it is not. */
  async publish(): Promise<SaveReport> {
    this.#progress.enter("publish", 0);
    const references = this.#files.references();
    const { locations } = this.#writer;
    const { words } = this.machine.control;
    const { table, ...saved } = locations.extents(
      (frame) => bit(words, STOP_BITMAP, frame) === 1,
      (frame) => bit(words, KEPT_BITMAP, frame) === 1,
    );
    this.#counts.saved = { ...saved, byReference: references.reduce((sum, { frames }) => sum + frames, 0) };
    this.#counts.stored = locations.totals(table);
    failpoint("save.catalogue");
    if (this.#base?.blob.isInPlace() === false) throw baseIsGone(this.#base.path);
    // A resume repeats the requests in flight: this host must have ended them by then.
    if (!this.settings.keepRunning) await this.machine.devices.settle();
    const { keepRunning, approach, compression, name, digest } = this.settings;
    return publishImage(this.machine, this.#image, this.#cancellation, {
      facts: { id: this.#id, time: this.#time, keepRunning, approach, compression, at: this.#times.all(), counts: this.#counts },
      written: this.#writer,
      extents: table,
      base: this.#base,
      files: await this.#files.rows(),
      references,
      name,
      digest,
      encryption: this.#encryption,
    });
  }

  /** After a failure: the machine goes on, unless it is lost and cannot. */
  abandon(): void {
    if (this.machine.isLost) return;
    this.machine.tracking.end();
    this.#reserve.release(); // before anybody may want memory
    if (!this.#stopped) return;
    this.machine.quiesce.go();
    this.machine.devices.resume("stop");
  }

  /** In any case: the guest has its memory back, and tracking is on only for an image since which it knows all stores. */
  [Symbol.dispose](): void {
    this.#cancellation[Symbol.dispose]();
    this.#progress[Symbol.dispose]();
    this.#files[Symbol.dispose]();
    this.throttle(0);
    this.#base?.close();
    if (this.machine.isLost) return; // its threads do not answer
    this.machine.tracking.end();
    this.machine.devices.freeState();
    this.#reserve.release();
  }

  /** What belongs to the image, and what its files are. The kernel lock has been held since the stop, or everything is stopped still. */
  #note(): void {
    this.machine.tracking.freezeSaveable();
    this.#counts.changedFiles = this.#files.freeze();
    this.#noted = true;
    this.#times.ended("noted");
  }

  async #stream(frames: number): Promise<void> {
    this.#progress.enter("stream", frames);
    await this.#write("live", () => this.#reserve.growToResidual());
    this.#reserve.growToResidual();
    this.learnFiles();
    this.#times.ended("streamed");
  }

  #checkKept(): number {
    const { control, kernel } = this.machine;
    const base = this.#base?.memory();
    return base === undefined
      ? 0
      : checkKept(control, base.frames, (frame) => kernel.memory.equals(frame, base.readFrame(frame)));
  }

  async #writeList(source: StageSource, from: number, to: number): Promise<void> {
    this.machine.claims.open(from, to);
    if (from < to) await this.#write(source);
  }

  async #write(source: StageSource, meanwhile?: () => void): Promise<void> {
    using _watch = this.#progress.watch(guarded(meanwhile, this.#cancellation.fail));
    await this.#writer.write(source);
    this.#cancellation.check();
  }
}
