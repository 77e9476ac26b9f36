/**
 * The parts of a resume, in the order in which resume.ts calls them. What must hold is said there.
 */
import { setImmediate } from "node:timers/promises";
import { hostNow } from "./base/control.js";
import { failpoint } from "./base/failpoints.js";
import { MACHINE_LOAD_CURSOR, MACHINE_LOAD_PERCENT, MACHINE_PROGRESS, MISSING_BITMAP, QUEUE_SPARE } from "./base/layout.js";
import type { StepTimes } from "./base/step-times.js";
import { atomicRestore } from "./cow/atomic-copy.js";
import type { Cancellation } from "./cow/cancellation.js";
import { Reserve } from "./cow/reserve.js";
import type { FoundImage } from "./find-image.js";
import type { Image } from "./image/directory.js";
import { asParent } from "./image/format.js";
import type { ImageMemory } from "./image/image-memory.js";
import type { ComparedFiles } from "./image/host-files.js";
import type { Machine } from "./machine.js";
import { makeResumeReport, type ResumeReport, type ResumeSteps, type ResumeTime } from "./reports/resume-report.js";
import { classify, declassify } from "./restore/classify.js";
import { ComingMemory, countRunnable, type Examined, examine } from "./restore/examine.js";
import { leaveOut, withoutLeftOut } from "./restore/first-frames.js";
import { type LateFrame, readLateFrames } from "./restore/late-frames.js";
import { type OwnMemory, ownMemory, requireReserved } from "./restore/own-memory.js";
import { type LoadResult, type LoadTask, loadTask } from "./restore/page-loader.js";
import { rebuild, tellRestored } from "./restore/rebuild.js";
import { ResumeMarks } from "./restore/resume-marks.js";
import { Residency } from "./residency.js";
import type { ResumeOptions, ResumeProgress } from "./resume-options.js";

const WATCH_MS = 20;

/** One resume under way. Its methods are called in the order in which they stand. */
export class Resume implements Disposable {
  readonly #machine: Machine;
  readonly #image: Image;
  readonly #files: ComparedFiles;
  readonly #options: ResumeOptions;
  readonly #steps: ResumeSteps;
  readonly #marks: ResumeMarks;
  readonly #times: StepTimes<ResumeTime>;
  readonly #cancellation: Cancellation;
  readonly #onProgress: (progress: ResumeProgress) => void;
  readonly #reserve: Reserve;
  #results: LoadResult[] = [];
  #stopped = false;
  #replaced = false;
  #patched = 0;
  #preimages = 0;
  #late: LateFrame[] = [];
  #examined: Examined | undefined;
  #fromImage: ImageMemory | undefined;
  /** Frames that a lazy resume loads once the machine runs. */
  #leftOut = 0;
  #own: OwnMemory | undefined;
  #residency: Residency | undefined;
  /** The machine runs, and has the image. */
  #handedOver = false;
  #report: ResumeReport | undefined;

  constructor(
    machine: Machine,
    found: FoundImage,
    options: ResumeOptions,
    { steps, times, cancellation }: { steps: ResumeSteps; times: StepTimes<ResumeTime>; cancellation: Cancellation },
  ) {
    this.#machine = machine;
    this.#image = found.image;
    this.#files = found.files;
    this.#options = options;
    this.#steps = steps;
    this.#marks = new ResumeMarks(found.image.path, options);
    this.#times = times;
    this.#cancellation = cancellation;
    this.#onProgress = cancellation.guard("onProgress", options.onProgress);
    this.#reserve = new Reserve(machine.kernel, machine.claims, { from: options.reservedBytes === undefined ? "guest" : "pool" });
  }

  /** S2.5: a resume that dies leaves a trace of having been tried; of two at once, the first goes on. */
  async attempt(): Promise<void> {
    this.#cancellation.check();
    this.#steps.passed("attempt", await this.#marks.attempt(() => this.#image.blob.isInPlace()));
  }

  /** S1.6: allocate what is free here and used there; reserve a place for every other frame of the image. */
  classify(): void {
    const { control, core, kernel } = this.#machine;
    if (this.#options.lazy === true) this.#leftOut = leaveOut(core, this.#memory(), this.#image.extents);
    else core.clearBitmap(MISSING_BITMAP);
    const { direct, conflicts } = classify(kernel, this.#image.extents, (conflicts) => {
      const wanted = Math.min(this.#options.queueFrames ?? Infinity, conflicts + 64) + QUEUE_SPARE;
      this.#own = ownMemory(this.#image, { places: wanted, loaders: this.#machine.pageThreads });
      if (this.#options.reservedBytes !== undefined) requireReserved(this.#own, this.#options.reservedBytes);
      this.#reserve.growLocked(wanted);
      this.#reserve.openQueue(this.#options.queueFrames === undefined ? Infinity : wanted);
    });
    failpoint("resume.allocate");
    for (const word of [MACHINE_LOAD_CURSOR, MACHINE_PROGRESS]) control.store(word, 0);
    this.#cancellation.check();
    const later = this.#leftOut === 0 ? "" : `, to come later: ${this.#leftOut}`;
    this.#steps.passed("frames", `free here: ${direct}, in use here: ${conflicts}${later}`);
    this.#times.ended("classified");
  }

  /** S1.7: write-protect everything that is there; the handler keeps old contents of what is found equal. */
  protect(): void {
    this.#machine.tracking.armForRestore();
  }

  /** S1.6, S1.7: read and verify all of the image; every frame finds its way. The boot processes run on. */
  async load(): Promise<void> {
    const { control, pageThreads, pool } = this.#machine;
    failpoint("resume.verify");
    const all = loadTask(this.#image, this.#acceptedFiles());
    const task = this.#leftOut === 0 ? all : withoutLeftOut(all, control);
    const watch = setInterval(() => this.#reportProgress(), WATCH_MS);
    try {
      this.#reportProgress();
      const loading = pool.runOn<LoadTask, LoadResult>(pageThreads, "load", () => task, this.#cancellation.cancel);
      if (this.#leftOut > 0) this.#residency = new Residency(this.#machine, this.#image, all);
      this.#results = await loading;
      this.#cancellation.check();
      this.#reportProgress();
    } finally {
      clearInterval(watch);
      control.store(MACHINE_LOAD_PERCENT, 0);
    }
    this.#times.ended("loaded");
    this.#steps.passed(
      "chunk checksums",
      `${task.wanted.length} chunks agree${this.#leftOut === 0 ? "" : `, of ${this.#image.chunks.length}`}`,
    );
    this.#cancellation.guard("onLoaded", this.#options.onLoaded)();
  }

  /** S2.2: stop, and see whether what is about to be put in place is a machine. */
  stop(): void {
    const { claims, devices, kernel, quiesce } = this.#machine;
    this.#machine.drainConsole();
    this.#times.ended("stopping");
    quiesce.stop();
    this.#stopped = true;
    devices.quiesce(); // the booting machine's, for good
    this.#times.ended("stopped");
    this.#machine.check(); // a vCPU that is dead could not take part in the restore
    this.#cancellation.check(); // from here on nothing asks for memory
    failpoint("resume.stopped");
    this.#late = this.#readLate();
    this.#examined = examine(new ComingMemory(kernel.control, claims, kernel.memory, this.#late, () => this.#memory()));
    this.#steps.passed("consistency", "allocator, page tables and processes agree");
    this.#times.ended("examined");
  }

  /** S2.9: the image is used before the first instruction runs. */
  async consume(): Promise<void> {
    const { claims } = this.#machine;
    const { refused } = claims.queue;
    const consumed = await this.#marks.claim();
    failpoint("resume.consume");
    // A whole turn of the event loop lets a signal in that came while this thread examined the machine.
    for (let phase = 0; phase < 2; phase++) await setImmediate();
    this.#cancellation.check();
    this.#steps.passed("consumed", consumed);
    await setImmediate(); // a promise of onStep may be rejected by then
    this.#cancellation.checkLast();
    // The coordinator had turns of its event loop meanwhile, and may have stored to what was equal.
    if (claims.queue.refused !== refused) this.#late = this.#readLate();
    this.#times.ended("consumed");
  }

  /** S1.8, S2.2: put the queued frames in place. There is no way back from here, and nothing that can fail. */
  patch(): void {
    const { claims, core, devices, kernel, quiesce, tracking } = this.#machine;
    this.#preimages = claims.queue.preimages;
    tracking.disarm();
    this.#replaced = true;
    atomicRestore(claims, core, quiesce);
    for (const { frame, bytes } of this.#late) kernel.memory.loadFrame(frame, bytes);
    tracking.trackRestored(asParent(this.#image.header), this.#image.extents.stored());
    this.#patched = this.#late.length;
    claims.visitQueued(() => this.#patched++);
    this.#residency?.open();
    failpoint("resume.patched");
    this.#times.ended("patched");
    const frames = { image: this.#image.header.frames, patched: this.#patched };
    tellRestored(kernel, this.#examined!, frames, (part, found) => this.#steps.passed(part, found));
    this.#machine.mounts.restore();
    rebuild(kernel, devices, this.#image.references, new Set([...this.#acceptedFiles(), ...this.#files.moved]));
    const { ready, sleeping, others } = countRunnable(kernel.memory);
    this.#steps.passed("runnable", `ready: ${ready}, asleep: ${sleeping}, others: ${others}`);
    this.#times.ended("rebuilt");
  }

  /** The vCPUs forget what they ran and ask the scheduler, which is the saved machine's now. */
  go(): void {
    this.#machine.quiesce.restart();
    this.#stopped = false;
    this.#times.ended("running");
    this.#handedOver = this.#residency !== undefined;
    this.#residency?.begin(this.#times.at("began"), {
      onRunning: this.#options.onRunning,
      onResident: (report) => (this.#report!.resident = report),
      onFailure: (error) => this.#marks.failed(error),
    });
    this.#steps.passed("scheduler", `goes on, vCPUs: ${this.#machine.vcpus}`);
  }

  /** After a failure: the boot goes on with all of its memory; or, if that is gone already, nothing goes on. */
  async abandon(error: unknown): Promise<void> {
    if (this.#replaced) await this.#machine.powerOff();
    else if (!this.#machine.isLost) this.#goOn();
    // An image that has been put in place is used, unless it turned out that it cannot be.
    if (!this.#replaced || this.#residency?.failure !== undefined) await this.#marks.failed(error);
  }

  #goOn(): void {
    const { devices, kernel, quiesce, tracking } = this.#machine;
    tracking.disarm();
    this.#reserve.release();
    declassify(kernel);
    if (this.#stopped) {
      quiesce.go();
      devices.resume("stop");
    }
    this.#stopped = false;
  }

  [Symbol.dispose](): void {
    if (!this.#machine.isLost) this.#machine.devices.freeState();
    if (!this.#handedOver) this.#image.close(); // else the rest of it is still to be brought in
  }

  report(): ResumeReport {
    this.#report = makeResumeReport(this.#image.path, this.#image.header, {
      results: this.#results,
      patched: this.#patched,
      overflow: this.#late.length,
      preimages: this.#preimages,
      later: this.#leftOut,
      own: this.#own!,
      at: this.#times.all(),
    });
    return this.#report;
  }

  // ---- parts ----

  #reportProgress(): void {
    const { control } = this.#machine;
    const total = this.#image.header.frames - this.#leftOut;
    const done = control.load(MACHINE_PROGRESS);
    control.store(MACHINE_LOAD_PERCENT, 1 + Math.floor((100 * done) / Math.max(1, total)));
    this.#onProgress({ done, total, elapsed_ms: hostNow() - this.#times.at("began") });
  }

  #readLate(): LateFrame[] {
    const { claims, control } = this.#machine;
    return readLateFrames(control, claims, () => this.#memory());
  }

  /** The image's memory, for what is not loaded now. */
  #memory(): ImageMemory {
    return (this.#fromImage ??= this.#image.memory({ cachedChunks: 8, acceptedFiles: this.#acceptedFiles() }));
  }

  /** Files that had changed when they were compared. One that changes later is refused. */
  #acceptedFiles(): Set<string> {
    return new Set(this.#files.changed.map(({ path }) => path));
  }
}
