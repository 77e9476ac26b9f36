/**
 * A resume, as the seed tells it (S1, "When loading the image"), into a machine that has booted and goes on running its
 * boot processes meanwhile. One call per step, in order:
 *
 *     find      every check of S2.1, in its order; the host's files are as they were     S2.1, S2.9, S3.6
 *     attempt   it is on the disk that this was tried, before it is tried                S2.5
 *     classify  free here and used there: allocated, to be loaded directly               S1.6
 *     protect   everything that is there is write-protected                              S1.7
 *     load      all of the image is read and verified; each frame goes directly to its
 *               place, or is equal, or is queued                                         S1.6, S1.7
 *     stop      devices quiesce; examine the machine that is about to be put in place    S2.2
 *     consume   it is on the disk that the image is used                                 S2.9
 *     patch     atomic restore; what came back is counted, devices begin                 S1.8, S2.2
 *     go        the saved machine goes on
 *
 * What must hold: nothing that the booting machine holds is changed before all of the image has been read, has agreed with
 * its checksums and makes a machine that is consistent. Until then a failure costs nothing: the boot goes on, and the
 * attempt's outcome is noted. What a boot does about it is in boot.ts.
 */
import { hostname } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { hostNow } from "./base/control.js";
import { fromSystemError, HibernaculumError, isSystemError, naming, serializeError } from "./base/errors.js";
import { failpoint } from "./base/failpoints.js";
import {
  CANCEL_ASKED,
  CANCEL_NO_MEMORY,
  FRAME_BYTES,
  MACHINE_CANCEL,
  MACHINE_LOAD_CURSOR,
  MACHINE_LOAD_PERCENT,
  MACHINE_PROGRESS,
  QUEUE_SPARE,
} from "./base/layout.js";
import { atomicRestore } from "./cow/atomic-copy.js";
import { freeOldReserves, Reserve } from "./cow/reserve.js";
import { type Image, openImage } from "./image/directory.js";
import { BLOB_NAME, MACHINE_VERSION } from "./image/format.js";
import { type FileRow, findChangedFiles } from "./image/host-files.js";
import { claimUse, readHistory, recordAttempt, recordOutcome, refuseHeld, releaseUse, usedBefore } from "./image/markers.js";
import type { Machine } from "./machine.js";
import { classify, declassify } from "./restore/classify.js";
import { ComingMemory, countRestored, countRunnable, type Examined, examine } from "./restore/examine.js";
import { type LateFrame, readLateFrames } from "./restore/late-frames.js";
import type { LoadResult, LoadTask } from "./restore/page-loader.js";
import { makeResumeReport, type ResumeReport, type ResumeStep, ResumeSteps } from "./reports/resume-report.js";
import { KERNEL_RESUMES } from "./vm/memory/kernel-layout.js";

export interface ResumeProgress {
  /** Frames of the image that are loaded, and all of them. */
  done: number;
  total: number;
  elapsed_ms: number;
}

export interface ResumeOptions {
  /** Resume an image that was resumed before (two machines with one history corrupt what they share). */
  again?: boolean;
  /** Resume although files of the host that the machine has open are not what they were. */
  acceptChangedFiles?: boolean;
  /** Leave the image as it is: neither an attempt is recorded nor the image consumed (tests, benchmarks). */
  keepImage?: boolean;
  signal?: AbortSignal;
  onProgress?: (progress: ResumeProgress) => void;
  /** Is told of each step as it passes or fails, with what was found. */
  onStep?: (step: ResumeStep) => void;
  /** Most places in the queue of the atomic restore, for tests of one that is too small. */
  queueFrames?: number;
  /** Called once everything is loaded and before the machine stops, for tests. */
  onLoaded?: () => void;
}

const WATCH_MS = 20;

/**
 * Resumes an image in a machine that has booted. When it returns, the saved machine runs in it.
 *
 * @param path - the image. One that cannot be resumed stays where it is: setting it aside is for a boot (boot.ts), which
 * would find it again
 * @throws HIB_BUSY (also if another process is at the image), HIB_NOT_AN_IMAGE, HIB_FORMAT_VERSION, HIB_MACHINE_VERSION,
 * HIB_TRUNCATED, HIB_CORRUPT, HIB_RAM_MISMATCH, HIB_IMAGE_USED, HIB_FILES_CHANGED, HIB_INCONSISTENT, HIB_IO,
 * HIB_WORKER_DIED, HIB_CANCELLED: the booted machine runs on
 */
export async function resume(machine: Machine, path: string, options: ResumeOptions = {}): Promise<ResumeReport> {
  machine.begin("resume");
  const steps = new ResumeSteps(options.onStep);
  const began = hostNow();
  let work: Resume | undefined;
  try {
    const image = await find(machine, path, options, steps);
    work = new Resume(machine, image, options, steps, began);
    await work.attempt();
    work.classify();
    work.protect();
    await work.load();
    work.stop();
    await work.consume();
    work.patch();
    work.go();
    failpoint("resume.running");
    return work.report();
  } catch (error) {
    const failure = isSystemError(error) ? fromSystemError(error, `resuming ${path}`) : naming(error, path);
    steps.failed(failure);
    await work?.abandon(failure);
    throw failure;
  } finally {
    work?.finish();
    machine.busy = undefined;
  }
}

/** S2.1, S2.9: an image that is whole, of this kernel and this much RAM, and not used. */
async function find(machine: Machine, path: string, options: ResumeOptions, steps: ResumeSteps): Promise<Image> {
  const { again = false, keepImage = false, acceptChangedFiles = false } = options;
  const image = await openImage(path, {
    machineVersion: MACHINE_VERSION,
    onCheck: (check, found) => steps.passed(check, found),
  });
  try {
    const { frames } = machine.kernel.memory;
    const { ramFrames } = image.header;
    if (ramFrames !== frames) {
      throw new HibernaculumError(
        "HIB_RAM_MISMATCH",
        `${path} is of a machine with ${ramFrames * FRAME_BYTES} bytes of RAM, and this one has ${frames * FRAME_BYTES}; boot with --ram ${(ramFrames * FRAME_BYTES) / 2 ** 20}M`,
      );
    }
    steps.passed("RAM size", `${frames * FRAME_BYTES} bytes`);
    const { used } = await readHistory(path);
    if (used !== null && !again && !keepImage) throw usedBefore(path, used);
    steps.passed("not used before", used === null ? "by nobody" : "it was, and that is to be ignored");
    const files = image.catalogue.files();
    if (acceptChangedFiles) steps.passed("files of the host", `${files.length}, not looked at`);
    else {
      await refuseChangedFiles(path, files);
      steps.passed("files of the host", `${files.length}, as they were`);
    }
    return image;
  } catch (error) {
    image.close();
    throw error;
  }
}

/** S3.6: whoever goes on with other files than it had damages them. */
async function refuseChangedFiles(path: string, files: readonly FileRow[]): Promise<void> {
  const changed = await findChangedFiles(files);
  if (changed.length === 0) return;
  throw new HibernaculumError(
    "HIB_FILES_CHANGED",
    `${path}: files that the machine has open are not as they were when it was saved: ${changed
      .map((file) => `${file.path} ${file.how}`)
      .join("; ")}; put them back, or go on with what they are by --accept-changed-files`,
  );
}

/** One resume under way. Its methods are called in the order in which they stand. */
class Resume {
  readonly #machine: Machine;
  readonly #image: Image;
  readonly #options: ResumeOptions;
  readonly #steps: ResumeSteps;
  /** The attempt's number, once it is on the disk. */
  #attempt: number | undefined;
  readonly #reserve: Reserve;
  #results: LoadResult[] = [];
  #stopped = false;
  #claimed = false;
  #replaced = false;
  #patched = 0;
  #preimages = 0;
  #pause: ResumeReport["pause"] | undefined;
  #at: { began: number; opened: number; classified: number; loaded: number; running: number };
  #stopAsked = 0;
  #stopReached = 0;
  #examinedAt = 0;
  #consumed = 0;
  #late: LateFrame[] = [];
  #examined: Examined | undefined;
  readonly #cancel = (): void => {
    this.#machine.control.store(MACHINE_CANCEL, CANCEL_ASKED);
  };

  constructor(machine: Machine, image: Image, options: ResumeOptions, steps: ResumeSteps, began: number) {
    this.#machine = machine;
    this.#image = image;
    this.#options = options;
    this.#steps = steps;
    this.#at = { began, opened: hostNow(), classified: 0, loaded: 0, running: 0 };
    this.#reserve = new Reserve(machine.kernel, machine.claims, 0);
  }

  /** S2.5: a resume that dies leaves a trace of having been tried; of two at once, who came first goes on. */
  async attempt(): Promise<void> {
    const { again = false, keepImage = false, signal } = this.#options;
    this.#checkCancelled();
    if (!keepImage) this.#attempt = await recordAttempt(this.#image.path);
    failpoint("resume.attempt");
    if (this.#attempt !== undefined && !again) await refuseHeld(this.#image.path, this.#attempt);
    this.#steps.passed("attempt", this.#attempt === undefined ? "not recorded" : `${this.#attempt}, recorded`);
    signal?.addEventListener("abort", this.#cancel);
  }

  /** S1.6: allocate what is free here and used there; reserve a place for every other frame of the image. */
  classify(): void {
    const { control, kernel } = this.#machine;
    const { direct, conflicts } = classify(kernel, this.#image.extents, (conflicts) => {
      const wanted = Math.min(this.#options.queueFrames ?? Infinity, conflicts + 64) + QUEUE_SPARE;
      this.#reserve.growLocked(wanted);
      this.#reserve.openQueue(wanted);
    });
    failpoint("resume.allocate");
    for (const word of [MACHINE_CANCEL, MACHINE_LOAD_CURSOR, MACHINE_PROGRESS]) control.store(word, 0);
    this.#checkCancelled();
    this.#steps.passed("frames", `free here: ${direct}, in use here: ${conflicts}`);
    this.#at.classified = hostNow();
  }

  /** S1.7: write-protect everything that is there; the handler keeps old contents of what is found equal. */
  protect(): void {
    this.#machine.tracking.arm(true);
  }

  /** S1.6, S1.7: read and verify all of the image; every frame finds its way. The boot processes run on. */
  async load(): Promise<void> {
    const { control, pageThreads, pool } = this.#machine;
    failpoint("resume.verify");
    const task = this.#loadTask();
    const watch = setInterval(() => this.#reportProgress(), WATCH_MS);
    try {
      this.#reportProgress();
      this.#results = await pool.runOn<LoadTask, LoadResult>(
        pageThreads,
        "load",
        () => task,
        () => control.store(MACHINE_CANCEL, CANCEL_ASKED),
      );
      this.#checkCancelled();
      this.#reportProgress();
    } finally {
      clearInterval(watch);
      control.store(MACHINE_LOAD_PERCENT, 0);
    }
    this.#at.loaded = hostNow();
    this.#steps.passed("chunk checksums", `${this.#image.chunks.length} chunks agree`);
    this.#options.onLoaded?.();
  }

  /** S2.2: stop, and see whether what is about to be put in place is a machine. */
  stop(): void {
    const { claims, devices, kernel, quiesce } = this.#machine;
    this.#stopAsked = hostNow();
    this.#machine.drainConsole();
    quiesce.stop();
    this.#stopped = true;
    devices.quiesce(); // the booting machine's, for good
    this.#stopReached = hostNow();
    this.#machine.check(); // a vCPU that is dead could not take part in the restore
    this.#checkCancelled(); // from here on nothing asks for memory
    failpoint("resume.stopped");
    this.#late = this.#readLate();
    this.#examined = examine(new ComingMemory(claims, kernel.memory, this.#late));
    this.#steps.passed("consistency", "allocator, page tables and processes agree");
    this.#examinedAt = hostNow();
  }

  /** S2.9: the image is used before the first instruction runs. */
  async consume(): Promise<void> {
    const { claims } = this.#machine;
    const { refused } = claims.queue;
    if (this.#options.keepImage !== true) await this.#claim();
    failpoint("resume.consume");
    // The coordinator had turns of its event loop meanwhile, and may have stored to what was equal.
    if (claims.queue.refused !== refused) this.#late = this.#readLate();
    this.#steps.passed("consumed", this.#options.keepImage === true ? "not asked for" : "marked as used");
    this.#consumed = hostNow();
  }

  /**
   * S1.8, S2.2: put the queued frames in place. There is no way back from here, and nothing that can fail: everything is
   * in memory, verified and consistent.
   */
  patch(): void {
    const { claims, core, kernel, quiesce, tracking } = this.#machine;
    this.#preimages = claims.queue.preimages;
    tracking.disarm();
    this.#replaced = true;
    atomicRestore(claims, core, quiesce);
    for (const { frame, bytes } of this.#late) kernel.memory.loadFrame(frame, bytes);
    this.#patched = [...claims.queued()].length + this.#late.length;
    failpoint("resume.patched");
    const patched = hostNow();
    this.#countRestored();
    this.#rebuild();
    const { ready, sleeping, others } = countRunnable(kernel.memory);
    this.#steps.passed("runnable", `ready: ${ready}, asleep: ${sleeping}, others: ${others}`);
    const now = hostNow();
    this.#pause = {
      safepoint_ms: this.#stopReached - this.#stopAsked,
      examine_ms: this.#examinedAt - this.#stopReached,
      consume_ms: this.#consumed - this.#examinedAt,
      patch_ms: patched - this.#consumed,
      rebuild_ms: now - patched,
      total_ms: now - this.#stopAsked,
    };
  }

  /** The vCPUs forget what they ran and ask the scheduler, which is the saved machine's now. */
  go(): void {
    this.#machine.quiesce.go(true);
    this.#stopped = false;
    this.#at.running = hostNow();
    this.#steps.passed("scheduler", `goes on, vCPUs: ${this.#machine.vcpus}`);
  }

  /** After a failure: the boot goes on with all of its memory; or, if that is gone already, nothing goes on. */
  async abandon(error: unknown): Promise<void> {
    if (this.#replaced) return this.#machine.powerOff();
    const { devices, kernel, quiesce, tracking } = this.#machine;
    tracking.disarm();
    this.#reserve.release();
    declassify(kernel);
    if (this.#stopped) {
      quiesce.go();
      devices.resume("stop");
    }
    this.#stopped = false;
    if (this.#claimed) await releaseUse(this.#image.path);
    if (this.#attempt !== undefined) {
      const { code, message } = serializeError(error);
      await recordOutcome(this.#image.path, this.#attempt, code, message);
    }
  }

  finish(): void {
    this.#options.signal?.removeEventListener("abort", this.#cancel);
    this.#machine.devices.freeState();
    this.#image.close();
  }

  report(): ResumeReport {
    return makeResumeReport(this.#image.path, this.#image.header, {
      results: this.#results,
      patched: this.#patched,
      overflow: this.#late.length,
      preimages: this.#preimages,
      pause: this.#pause!,
      at: this.#at,
    });
  }

  // ---- parts ----

  #checkCancelled(): void {
    if (this.#machine.control.load(MACHINE_CANCEL) === CANCEL_NO_MEMORY) {
      throw new HibernaculumError(
        "HIB_NO_MEMORY",
        "the resume was given up: a boot process needed the memory that was reserved; boot with fewer or smaller boot processes",
      );
    }
    if (this.#options.signal?.aborted === true) {
      throw new HibernaculumError("HIB_CANCELLED", "the resume was cancelled, and the image can be resumed still");
    }
  }

  #loadTask(): LoadTask {
    const { chunks, extents, path, references } = this.#image;
    return {
      blob: join(path, BLOB_NAME),
      chunks: [...chunks],
      extents: extents.columns,
      ...extents.byChunk(chunks.length),
      filled: extents.sameFilled(),
      references,
      acceptChangedFiles: this.#options.acceptChangedFiles === true,
    };
  }

  #reportProgress(): void {
    const { control } = this.#machine;
    const total = this.#image.header.frames;
    const done = control.load(MACHINE_PROGRESS);
    control.store(MACHINE_LOAD_PERCENT, 1 + Math.floor((100 * done) / Math.max(1, total)));
    this.#options.onProgress?.({ done, total, elapsed_ms: hostNow() - this.#at.began });
  }

  #readLate(): LateFrame[] {
    const { claims, control } = this.#machine;
    const acceptChangedFiles = this.#options.acceptChangedFiles === true;
    const complete = claims.queue.refused === 0;
    return complete ? [] : readLateFrames(control, claims, this.#image.memory({ acceptChangedFiles }));
  }

  async #claim(): Promise<void> {
    try {
      await claimUse(this.#image.path, `${hostname()} pid ${process.pid}`, this.#attempt);
      this.#claimed = true;
    } catch (error) {
      const used = error instanceof HibernaculumError && error.code === "HIB_IMAGE_USED";
      if (!used || this.#options.again !== true) throw error;
      if (this.#attempt !== undefined) await recordOutcome(this.#image.path, this.#attempt, "resumed", "once more");
    }
  }

  /** What came back is what was examined: counted anew, in the machine's own memory. */
  #countRestored(): void {
    const { blocks, areas, mappedPages, fds, pipeBytes, handlers, pending } = this.#examined!;
    const { freeByArena, freeFrames, processes } = countRestored(this.#machine.kernel.memory, this.#examined!);
    this.#steps.passed("kernel heap", `arenas: ${freeByArena.length}, blocks: ${blocks}, frames free: ${freeFrames}`);
    this.#steps.passed("process structures", `processes: ${processes}, areas: ${areas}`);
    this.#steps.passed("memory", `frames: ${this.#image.header.frames}, patched: ${this.#patched}, pages mapped: ${mappedPages}`);
    this.#steps.passed("file descriptors", `open: ${fds}, bytes in pipes: ${pipeBytes}`);
    this.#steps.passed("signal handlers", `handlers: ${handlers}, processes with pending signals: ${pending}`);
    this.#steps.passed("registers", `of processes: ${processes}, x0 is 0 in each`);
  }

  /** What is derived from memory and not in it: contexts, bitmap, devices; and what was the snapshotter's (S1.1, S2.3). */
  #rebuild(): void {
    const { devices, kernel } = this.#machine;
    kernel.buddy.rebuildSaveable();
    kernel.turns.releaseRunning();
    freeOldReserves(kernel);
    if (this.#options.acceptChangedFiles === true) kernel.files.acceptHost();
    kernel.memory.store32(KERNEL_RESUMES, kernel.memory.load32(KERNEL_RESUMES) + 1);
    devices.resume("restore");
  }
}
