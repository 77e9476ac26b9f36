/**
 * A resume, as the seed tells it (S1, "When loading the image"), into a machine that has booted and goes on running its
 * boot processes meanwhile. One call per step, in order:
 *
 *     find      header, version, completeness, checksums, RAM size, not used before;     S2.1, S2.9
 *               the host's files are as they were                                       S3.6
 *     attempt   it is on the disk that this was tried, before it is tried                S2.5
 *     classify  free here and used there: allocated, to be loaded directly               S1.6
 *     protect   everything that is there is write-protected                              S1.7
 *     load      all of the image is read and verified; each frame goes directly to its
 *               place, or is equal, or is queued                                         S1.6, S1.7
 *     patch     stop, quiesce devices, consume the image, atomic restore, devices begin  S1.8, S2.2
 *     go        the saved machine goes on
 *
 * What must hold: nothing that the booting machine holds is changed before all of the image has been read and has
 * agreed with its checksums. Until then a failure costs nothing: the boot goes on.
 */
import { hostname } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { bit, hostNow } from "./base/control.js";
import { fromSystemError, HibernaculumError, isSystemError, naming } from "./base/errors.js";
import { failpoint } from "./base/failpoints.js";
import {
  CANCEL_ASKED,
  DIRECT_BITMAP,
  DIRTY_BITMAP,
  FRAME_BYTES,
  IMAGE_BITMAP,
  KEEP_BITMAP,
  MACHINE_CANCEL,
  MACHINE_CURSOR,
  MACHINE_LOAD_PERCENT,
  MACHINE_PROGRESS,
  QUEUE_SPARE,
} from "./base/layout.js";
import { atomicRestore, listViews } from "./cow/atomic-copy.js";
import { openQueue, readQueue } from "./cow/queue.js";
import { freeOldReserves, Reserve } from "./cow/reserve.js";
import { claimUse, type Image, isUsed, openImage, recordAttempt } from "./image/directory.js";
import { BLOB_NAME, MACHINE_VERSION } from "./image/format.js";
import { findChangedFiles } from "./image/host-files.js";
import type { Machine } from "./machine.js";
import { classify, declassify } from "./restore/classify.js";
import type { LoadResult, LoadTask } from "./restore/page-loader.js";
import type { ResumeReport } from "./resume-report.js";
import { KERNEL_RESUMES } from "./vm/kernel-layout.js";

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
  /** Most places in the queue of the atomic restore, for tests of one that is too small. */
  queueFrames?: number;
  /** Called once everything is loaded and before the machine stops, for tests. */
  onLoaded?: () => void;
}

const WATCH_MS = 20;

/**
 * Resumes an image in a machine that has booted. When it returns, the saved machine runs in it.
 *
 * @param path - the image
 * @throws HIB_BUSY, HIB_NOT_AN_IMAGE, HIB_FORMAT_VERSION, HIB_MACHINE_VERSION, HIB_TRUNCATED, HIB_CORRUPT,
 * HIB_RAM_MISMATCH, HIB_IMAGE_USED, HIB_FILES_CHANGED, HIB_IO, HIB_WORKER_DIED, HIB_CANCELLED: the booted machine runs on
 */
export async function resume(machine: Machine, path: string, options: ResumeOptions = {}): Promise<ResumeReport> {
  machine.begin("resume");
  try {
    const began = hostNow();
    const image = await find(machine, path, options).catch((error: unknown) => {
      throw naming(error, path);
    });
    const work = new Resume(machine, image, options, began);
    try {
      await work.attempt();
      work.classify();
      work.protect();
      await work.load();
      await work.patch();
      work.go();
      failpoint("resume.running");
      return work.report();
    } catch (error) {
      await work.abandon();
      throw isSystemError(error) ? fromSystemError(error, `resuming ${path}`) : naming(error, path);
    } finally {
      work.finish();
      image.close();
    }
  } finally {
    machine.busy = undefined;
  }
}

/** S2.1, S2.9: an image that is whole, of this kernel and this much RAM, and not used. */
async function find(machine: Machine, path: string, options: ResumeOptions): Promise<Image> {
  const image = await openImage(path, { machineVersion: MACHINE_VERSION });
  try {
    const { frames } = machine.kernel.memory;
    if (image.header.ramFrames !== frames) {
      throw new HibernaculumError(
        "HIB_RAM_MISMATCH",
        `${path} is of a machine with ${image.header.ramFrames * FRAME_BYTES} bytes of RAM, and this one has ${frames * FRAME_BYTES}; boot with --ram ${image.header.ramFrames * FRAME_BYTES}`,
      );
    }
    if (options.again !== true && options.keepImage !== true && (await isUsed(path))) {
      throw new HibernaculumError(
        "HIB_IMAGE_USED",
        `${path} was resumed before; two machines with one history corrupt what they share (--again resumes it all the same)`,
      );
    }
    if (options.acceptChangedFiles !== true) await refuseChangedFiles(image);
    return image;
  } catch (error) {
    image.close();
    throw error;
  }
}

/** S3.6: whoever goes on with other files than it had damages them. */
async function refuseChangedFiles({ catalogue, path }: Image): Promise<void> {
  const changed = await findChangedFiles(catalogue.files());
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
  readonly #began: number;
  readonly #reserve: Reserve;
  #results: LoadResult[] = [];
  #stopped = false;
  #replaced = false;
  #patched = 0;
  #overflow = 0;
  #preimages = 0;
  #pause: ResumeReport["pause"] = { safepoint_ms: 0, consume_ms: 0, patch_ms: 0, rebuild_ms: 0, total_ms: 0 };
  #at = { opened: 0, classified: 0, loaded: 0, running: 0 };
  readonly #cancel = (): void => {
    this.#machine.control.store(MACHINE_CANCEL, CANCEL_ASKED);
  };

  constructor(machine: Machine, image: Image, options: ResumeOptions, began: number) {
    this.#machine = machine;
    this.#image = image;
    this.#options = options;
    this.#began = began;
    this.#reserve = new Reserve(machine.kernel, 0);
  }

  /** S2.5: a resume that dies leaves a trace of having been tried. */
  async attempt(): Promise<void> {
    this.#at.opened = hostNow();
    this.#checkCancelled();
    if (this.#options.keepImage !== true) await recordAttempt(this.#image.path);
    failpoint("resume.attempt");
    this.#options.signal?.addEventListener("abort", this.#cancel);
  }

  /** S1.6: allocate what is free here and used there; reserve a place for every other frame of the image. */
  classify(): void {
    const { control, kernel } = this.#machine;
    let wanted = 0;
    classify(kernel, this.#image.extents, (conflicts) => {
      wanted = Math.min(this.#options.queueFrames ?? Infinity, conflicts + 64);
      this.#reserve.growLocked(wanted + QUEUE_SPARE);
    });
    failpoint("resume.allocate");
    openQueue(control, 0, this.#reserve.list(listViews(control).places, wanted + QUEUE_SPARE));
    for (const word of [MACHINE_CANCEL, MACHINE_CURSOR, MACHINE_PROGRESS]) control.store(word, 0);
    this.#checkCancelled();
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
    this.#options.onLoaded?.();
  }

  /** S1.8, S2.2: stop, consume the image, put the queued frames in place. */
  async patch(): Promise<void> {
    const { control, core, devices, kernel, quiesce, tracking } = this.#machine;
    const requested = hostNow();
    this.#machine.drainConsole();
    quiesce.stop();
    this.#stopped = true;
    devices.quiesce(); // the booting machine's, for good
    const reached = hostNow();
    this.#machine.check(); // a vCPU that is dead could not take part in the restore
    failpoint("resume.stopped");
    let late = this.#readOverflow();
    const refused = readQueue(control).refused;
    if (this.#options.keepImage !== true) await this.#consume();
    failpoint("resume.consume");
    // The coordinator had turns of its event loop meanwhile, and may have stored to what was equal.
    if (readQueue(control).refused !== refused) late = this.#readOverflow();
    const consumed = hostNow();
    // From here on there is no way back, and nothing that can fail: everything is in memory and verified.
    const { end: queued, preimages } = readQueue(control);
    this.#preimages = preimages;
    tracking.disarm();
    this.#replaced = true;
    atomicRestore(control, core, quiesce, queued);
    for (const { frame, bytes } of late) kernel.memory.loadFrame(frame, bytes);
    this.#patched = queued + late.length;
    this.#overflow = late.length;
    failpoint("resume.patched");
    const patched = hostNow();
    this.#rebuild();
    this.#pause = {
      safepoint_ms: reached - requested,
      consume_ms: consumed - reached,
      patch_ms: patched - consumed,
      rebuild_ms: hostNow() - patched,
      total_ms: 0,
    };
    this.#pause.total_ms = hostNow() - requested;
  }

  /** The vCPUs forget what they ran and ask the scheduler, which is the saved machine's now. */
  go(): void {
    this.#machine.quiesce.go(true);
    this.#stopped = false;
    this.#at.running = hostNow();
  }

  /** After a failure: the boot goes on with all of its memory; or, if that is gone already, nothing goes on. */
  async abandon(): Promise<void> {
    if (this.#replaced) return this.#machine.powerOff();
    const { devices, kernel, quiesce, tracking } = this.#machine;
    tracking.disarm();
    if (this.#stopped) {
      quiesce.go();
      devices.resume("stop");
    }
    this.#stopped = false;
    this.#reserve.release();
    declassify(kernel);
  }

  finish(): void {
    this.#options.signal?.removeEventListener("abort", this.#cancel);
    this.#machine.devices.freeState();
  }

  // ---- parts ----

  #checkCancelled(): void {
    if (this.#options.signal?.aborted === true) {
      throw new HibernaculumError("HIB_CANCELLED", "the resume was cancelled; the boot goes on and the image is as it was");
    }
  }

  #loadTask(): LoadTask {
    const { chunks, extents, path } = this.#image;
    return {
      blob: join(path, BLOB_NAME),
      chunks: [...chunks],
      extents: extents.columns,
      ...extents.byChunk(chunks.length),
      filled: extents.sameFilled(),
    };
  }

  #reportProgress(): void {
    const { control } = this.#machine;
    const total = this.#image.header.frames;
    const done = control.load(MACHINE_PROGRESS);
    control.store(MACHINE_LOAD_PERCENT, 1 + Math.floor((100 * done) / Math.max(1, total)));
    this.#options.onProgress?.({ done, total, elapsed_ms: hostNow() - this.#began });
  }

  /** Frames that must be patched and found no place in the queue: read once more, now that nothing moves. */
  #readOverflow(): { frame: number; bytes: Uint8Array }[] {
    const { control } = this.#machine;
    const { end, refused } = readQueue(control);
    if (refused === 0) return [];
    const { words } = control;
    const queued = new Set(listViews(control).frames.subarray(0, end));
    const memory = this.#image.memory();
    const late = [];
    for (let frame = 0; frame < this.#image.header.ramFrames; frame++) {
      if (bit(words, IMAGE_BITMAP, frame) === 0 || bit(words, DIRECT_BITMAP, frame) === 1 || queued.has(frame)) continue;
      if (bit(words, KEEP_BITMAP, frame) === 1 && bit(words, DIRTY_BITMAP, frame) === 0) continue;
      late.push({ frame, bytes: memory.readFrame(frame).slice() });
    }
    return late;
  }

  async #consume(): Promise<void> {
    try {
      await claimUse(this.#image.path, `${hostname()} pid ${process.pid}`);
    } catch (error) {
      const again = error instanceof HibernaculumError && error.code === "HIB_IMAGE_USED" && this.#options.again === true;
      if (!again) throw error;
    }
  }

  /** What is derived from memory and not in it: contexts, bitmap, devices; and what was the snapshotter's (S1.1, S2.3). */
  #rebuild(): void {
    const { devices, kernel } = this.#machine;
    kernel.buddy.rebuildSaveable();
    kernel.releaseRunning();
    freeOldReserves(kernel);
    kernel.memory.store32(KERNEL_RESUMES, kernel.memory.load32(KERNEL_RESUMES) + 1);
    devices.resume("restore");
  }

  report(): ResumeReport {
    const { header, path } = this.#image;
    const sum = (pick: (result: LoadResult) => number) => this.#results.reduce((all, result) => all + pick(result), 0);
    const marked = sum((result) => result.equal_marked);
    return {
      schema: 1,
      image: { path, id: header.id, time: new Date(header.time).toISOString() },
      frames: {
        image: header.frames,
        direct: sum((result) => result.direct),
        equal: sum((result) => result.equal) - this.#preimages,
        equal_written: this.#preimages + marked,
        different: sum((result) => result.different),
        same_filled: sum((result) => result.same_filled),
        patched: this.#patched,
        overflow: this.#overflow,
      },
      pause: this.#pause,
      loaders: {
        threads: this.#results.length,
        read_bytes: sum((result) => result.read_bytes),
        read_wait_ms: sum((result) => result.read_wait_ms),
        decode_ms: sum((result) => result.decode_ms),
        place_ms: sum((result) => result.place_ms),
      },
      phases_ms: {
        open: this.#at.opened - this.#began,
        classify: this.#at.classified - this.#at.opened,
        load: this.#at.loaded - this.#at.classified,
        stop: this.#at.running - this.#at.loaded,
        total: this.#at.running - this.#began,
      },
      gb_per_s: (header.frames * FRAME_BYTES) / (this.#at.running - this.#began) / 1e6,
    };
  }
}
