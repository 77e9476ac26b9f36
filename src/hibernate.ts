/**
 * A live save, as the seed tells it (S1, "When saving the image"). One call per step, in order:
 *
 *     prepare   drivers save their state, memory is reserved, the plan is made    S1.1, S1.9
 *     arm       every frame is write-protected on every vCPU                      S1.2
 *     stream    all of memory is written while processes keep running             S1.3
 *     stop      all vCPUs at a safepoint, devices quiesced, atomic copy           S1.4
 *     residual  the copies are written                                            S1.5
 *     publish   catalogue, header, rename: now there is an image
 *     ending    power off, or go on
 *
 * What must hold: until `publish` returns there is no image, and after it there is a whole one. A save that fails or is
 * cancelled anywhere leaves the machine running and nothing on the disk.
 */
import { randomUUID } from "node:crypto";
import { dirname, resolve } from "node:path";
import { bit, hostNow } from "./base/control.js";
import { fromSystemError, HibernaculumError, isSystemError } from "./base/errors.js";
import { failpoint } from "./base/failpoints.js";
import {
  CANCEL_ASKED,
  CANCEL_NO_MEMORY,
  CANCEL_NO_ROOM,
  FRAME_BYTES,
  MACHINE_BLOB_CURSOR,
  MACHINE_CANCEL,
  MACHINE_CHUNK_CURSOR,
  MACHINE_COPIES,
  MACHINE_PROGRESS,
  MACHINE_SAVE_PERCENT,
  MACHINE_STORED,
  SAVEABLE_BITMAP,
  STOP_BITMAP,
} from "./base/layout.js";
import { atomicCopy, listResidual } from "./cow/atomic-copy.js";
import type { QueueState } from "./cow/claims.js";
import { readFaultStatistics, resetFaultStatistics } from "./cow/fault-statistics.js";
import { checkOracle, createOracle } from "./cow/oracle.js";
import { planFrames } from "./cow/plan.js";
import { Reserve } from "./cow/reserve.js";
import type { CatalogueResult, CatalogueTask } from "./reports/image-catalogue.js";
import { loadChecksum } from "./image/checksum.js";
import { createPartial, type PartialImage, removeStalePartials } from "./image/directory.js";
import { HEADER_BYTES, MACHINE_VERSION } from "./image/format.js";
import { type FileRow, FilesOfSave } from "./image/host-files.js";
import { sealBlob } from "./image/seal.js";
import type { Machine } from "./machine.js";
import type { SaveFacts, SaveReport } from "./reports/save-report.js";
import { resetLongestGap } from "./vm/tasks/activity.js";
import { CleanPages } from "./vm/files/clean-pages.js";
import { type OpenFile, openFiles } from "./vm/files/open-files.js";
import { Locations } from "./writer/locations.js";
import { type WriteResult, type WriteTask, type WriteTotals, WRITER_BYTES } from "./writer/page-writer.js";

export type SavePhase = "prepare" | "stream" | "residual" | "publish";

export interface SaveProgress {
  phase: SavePhase;
  /** Frames done and to do in this phase. */
  done: number;
  total: number;
  /** Bytes in the blob so far. */
  stored_bytes: number;
  elapsed_ms: number;
}

export interface SaveOptions {
  /** Snapshot: the machine goes on after the stop. Otherwise it is powered off once the image is published. */
  keepRunning?: boolean;
  /** Default lz4. */
  compression?: "lz4" | "none";
  /** Cancels: the machine goes on, nothing is left behind. */
  signal?: AbortSignal;
  onProgress?: (progress: SaveProgress) => void;
  /** Also store pages of files that are as the host has them; else the image refers to the file (S0.3). */
  saveClean?: boolean;
  /**
   * Snapshot: how long the atomic copy may take, ms; default 2. What is not copied by then is protected again and saved
   * by a copy-before-write tail. Infinity: copy all that finds a place.
   */
  pauseTarget_ms?: number;
  /** Places that the reserve may have, for tests of one that is too small. */
  reserveFrames?: number;
  /** Test runs: check every unmarked frame at the stop. */
  oracle?: boolean;
}

const WATCH_MS = 20;
/** What part of a save is done when a phase begins and ends, for whoever draws it. */
const PART_OF_SAVE: Readonly<Record<SavePhase, readonly [from: number, to: number]>> = {
  prepare: [0, 0],
  stream: [0, 0.9],
  residual: [0.9, 0.98],
  publish: [0.98, 1],
};
const PAUSE_TARGET_MS = 2;
/** What one thread copies in a millisecond at the least. */
const COPY_FRAMES_PER_MS = 1000;

/**
 * Saves a running machine.
 *
 * @param path - where the image is to be; must not exist
 * @returns the report, which the image's catalogue has too
 * @throws HIB_BUSY, HIB_IMAGE_EXISTS, HIB_NO_SPACE, HIB_IO, HIB_WORKER_DIED, HIB_CANCELLED, HIB_ORACLE: the machine
 * runs on as if nothing had happened
 */
export async function save(machine: Machine, path: string, options: SaveOptions = {}): Promise<SaveReport> {
  machine.begin("save");
  try {
    await removeStalePartials(dirname(resolve(path))); // what a killed host left there
    const work = new Save(machine, await createPartial(path), options);
    let report: SaveReport;
    try {
      await work.prepare();
      work.arm();
      await work.stream();
      await work.stop();
      await work.writeResidual();
      report = await work.publish();
    } catch (error) {
      await work.abandon();
      throw isSystemError(error) ? fromSystemError(error, `saving ${path}`) : error;
    } finally {
      work.finish();
    }
    try {
      failpoint("save.published");
    } finally {
      if (options.keepRunning !== true) await machine.powerOff(); // there is an image: only one of the two may go on
    }
    return report;
  } finally {
    machine.busy = undefined;
  }
}

/** One save under way. Its methods are called in the order in which they stand. */
class Save {
  readonly #machine: Machine;
  readonly #image: PartialImage;
  readonly #options: SaveOptions;
  readonly #keepRunning: boolean;
  readonly #id = randomUUID();
  readonly #began = hostNow();
  readonly #writers: number;
  readonly #reserve: Reserve;
  readonly #locations: Locations;
  readonly #files = new FilesOfSave();
  readonly #cleanPages: CleanPages;
  /** Files of the host that somebody else had changed by the time of the stop. */
  #changedFiles: string[] = [];
  readonly #oracle: SharedArrayBuffer | undefined;
  readonly #totals: WriteTotals[] = [];
  #phase: SavePhase = "prepare";
  #phaseFrames = 0;
  #planned = 0;
  #estimate = 0;
  #stopped = false;
  #reserved = 0;
  /** The residual set, and how much of it was copied at the stop. */
  #copy = { frames: 0, copied: 0 };
  #tail: QueueState = { start: 0, end: 0, preimages: 0, refused: 0 };
  #oracleFrames: number | null = null;
  #pause: SaveReport["pause"] = {
    safepoint_ms: 0,
    devices_ms: 0,
    list_ms: 0,
    copy_ms: 0,
    overflow_ms: 0,
    resume_ms: 0,
    total_ms: 0,
  };
  /** Host times at which phases ended. */
  #at = { prepared: 0, armed: 0, planned: 0, streamed: 0, stopped: 0, residual: 0 };
  #time = 0;

  constructor(machine: Machine, image: PartialImage, options: SaveOptions) {
    this.#machine = machine;
    this.#image = image;
    this.#options = options;
    this.#keepRunning = options.keepRunning === true;
    this.#writers = machine.writers;
    this.#reserve = new Reserve(machine.kernel, machine.claims, this.#writers * WRITER_BYTES);
    this.#cleanPages = new CleanPages(machine.kernel);
    this.#locations = new Locations(machine.kernel.memory.frames);
    this.#oracle = options.oracle === true ? createOracle(machine.kernel.memory.frames) : undefined;
  }

  /** S1.1, S1.9: whatever takes time or memory and need not be atomic. */
  async prepare(): Promise<void> {
    const { control } = this.#machine;
    failpoint("save.prepare");
    this.#showProgress(0);
    await loadChecksum();
    for (const word of [MACHINE_CANCEL, MACHINE_CHUNK_CURSOR, MACHINE_STORED, MACHINE_PROGRESS]) control.store(word, 0);
    control.store(MACHINE_BLOB_CURSOR, HEADER_BYTES / FRAME_BYTES);
    this.#options.signal?.addEventListener("abort", this.#cancel);
    this.#machine.devices.saveState();
    await this.#files.prepare(this.#machine.devices.hostFiles, this.#options.signal);
    control.locked(() => this.#cleanPages.makeSaved(this.#whichPages));
    this.#estimate = this.#options.reserveFrames ?? this.#estimateReserve();
    this.#reserve.grow(this.#estimate);
    resetFaultStatistics(control);
    resetLongestGap(control, this.#machine.vcpus);
    this.#checkCancelled();
    this.#at.prepared = hostNow();
  }

  /** S1.2: write-protect every frame on every vCPU, and only then plan what to read. */
  arm(): void {
    this.#machine.tracking.arm();
    this.#at.armed = hostNow();
    failpoint("save.armed");
    const { claims, core, kernel } = this.#machine;
    this.#planned = planFrames(claims, core, kernel.memory);
    this.#at.planned = hostNow();
    this.#cleanPages.learn();
  }

  /** S1.3: write all of memory while processes keep running; the reserve grows with the marks meanwhile. */
  async stream(): Promise<void> {
    this.#enter("stream", this.#planned);
    const watch = setInterval(() => this.#watch(), WATCH_MS);
    try {
      await this.#write("live");
    } finally {
      clearInterval(watch);
    }
    this.#growReserve();
    this.#at.streamed = hostNow();
  }

  /** S1.4: stop everything, copy the residual set atomically, and let a snapshot's machine go on. */
  async stop(): Promise<void> {
    const { claims, control, core, devices, quiesce, tracking } = this.#machine;
    this.#machine.drainConsole(); // whoever listens takes his time; what comes after lies in the image
    const requested = hostNow();
    quiesce.stop();
    this.#stopped = true;
    this.#machine.check();
    const reached = hostNow();
    devices.quiesce();
    this.#changedFiles = this.#cleanPages.makeSaved(this.#whichPages);
    this.#cleanPages.freeze();
    this.#files.freeze(openFiles(this.#machine.kernel.memory).map(describeFile));
    this.#time = Date.now();
    const drained = hostNow();
    failpoint("save.stopped");
    const frames = listResidual(core);
    const copied = this.#layOutReserve(frames);
    this.#copy = { frames, copied };
    const listed = hostNow();
    atomicCopy(claims, core, quiesce, copied);
    if (this.#oracle !== undefined) this.#oracleFrames = checkOracle(control, core, this.#oracle);
    failpoint("save.copied");
    const gathered = hostNow();
    if (copied < frames && !this.#keepRunning) {
      // The reserve was too small (S1.9): these are written from where they are, before anything may change them.
      claims.placeInOwnFrames(copied, frames);
      await this.#writeList("placed", copied, frames);
    }
    const written = hostNow();
    if (this.#keepRunning) {
      control.store(MACHINE_COPIES, copied);
      if (copied < frames) tracking.armTail(copied);
      else tracking.disarm();
      quiesce.go();
      devices.resume("stop");
      this.#stopped = false;
    }
    this.#at.stopped = hostNow();
    this.#pause = {
      safepoint_ms: reached - requested,
      devices_ms: drained - reached,
      list_ms: listed - drained,
      copy_ms: gathered - listed,
      overflow_ms: written - gathered,
      resume_ms: this.#at.stopped - written,
      total_ms: this.#at.stopped - requested,
    };
  }

  /** S1.5: write the copies. Their locations supersede those of the stream. */
  async writeResidual(): Promise<void> {
    failpoint("save.residual");
    if (this.#keepRunning) await this.#writeTail();
    await this.#writeList("placed", 0, this.#copy.copied);
    this.#reserve.release();
    this.#at.residual = hostNow();
  }

  /** Catalogue, header, syncs, rename: the image is there, whole, or it is not. */
  async publish(): Promise<SaveReport> {
    this.#enter("publish", 0);
    const { control, pool } = this.#machine;
    const references = this.#cleanPages.references();
    const byReference = references.reduce((sum, { frames }) => sum + frames, 0);
    const { table, ...stored } = this.#locations.extents((frame) => bit(control.words, STOP_BITMAP, frame) === 1);
    failpoint("save.catalogue");
    if (!this.#keepRunning) {
      // Whoever resumes carries out again what is in flight: this host must not do it later than that.
      await this.#machine.devices.settle();
    }
    await this.#files.sync();
    const task: CatalogueTask = {
      path: this.#image.cataloguePath,
      blob: this.#image.blobPath,
      facts: this.#facts({ ...stored, byReference }, this.#locations.totals(table)),
      extents: table.columns,
      files: await this.#files.rows(),
      references,
    };
    const results = await pool.runOn<CatalogueTask, CatalogueResult>(
      1,
      "catalogue",
      () => task,
      () => undefined,
    );
    const { report, bytes, hash } = results[0]!;
    this.#checkCancelled();
    await sealBlob(this.#image.blobPath, {
      machineVersion: MACHINE_VERSION,
      id: this.#id,
      ramFrames: task.facts.frames,
      chunks: task.facts.chunks.length,
      blobBytes: control.load(MACHINE_BLOB_CURSOR) * FRAME_BYTES,
      catalogueBytes: bytes,
      catalogueHash: hash,
      frames: stored.frames + byReference,
      time: this.#time,
    });
    this.#checkCancelled();
    await this.#image.publish();
    const published = hostNow();
    const { phases_ms, throughput } = report;
    return {
      ...report,
      throughput: { ...throughput, gb_per_s: throughput.saved_bytes / (published - this.#began) / 1e6 },
      phases_ms: { ...phases_ms, publish: published - this.#began - phases_ms.total, total: published - this.#began },
    };
  }

  /** After a failure: the machine goes on, and nothing is left on the disk. */
  async abandon(): Promise<void> {
    this.#reserve.release(); // before anybody may want memory
    if (this.#stopped) {
      this.#machine.quiesce.go();
      this.#machine.devices.resume("stop");
    }
    this.#stopped = false;
    await this.#image.discard();
  }

  /** In any case: tracking is off, and the guest has its memory back. */
  finish(): void {
    this.#options.signal?.removeEventListener("abort", this.#cancel);
    this.#machine.control.store(MACHINE_SAVE_PERCENT, 0);
    this.#machine.tracking.disarm();
    this.#machine.devices.freeState();
    this.#files.finish();
    this.#reserve.release();
  }

  // ---- parts ----

  get #whichPages(): "all" | "changed" {
    return this.#options.saveClean === true ? "all" : "changed";
  }

  /** Has the page writers write what is listed and claimable, and notes where it went. */
  async #write(source: WriteTask["source"]): Promise<void> {
    const { control, pool } = this.#machine;
    const compress = (this.#options.compression ?? "lz4") === "lz4";
    const task = (writer: number): WriteTask => ({
      blob: this.#image.blobPath,
      writer,
      source,
      compress,
      oracle: source === "live" ? this.#oracle : undefined,
    });
    const results = await pool.runOn<WriteTask, WriteResult>(this.#writers, "write", task, () =>
      control.store(MACHINE_CANCEL, CANCEL_ASKED),
    );
    this.#checkCancelled();
    for (const result of results) this.#locations.add(result);
    this.#totals.push(...results.map(({ totals }) => totals));
  }

  async #writeList(source: WriteTask["source"], from: number, to: number): Promise<void> {
    if (from === to) return;
    this.#enter("residual", to - from);
    this.#machine.claims.open(from, to);
    await this.#write(source);
  }

  /** Everything is stopped: says which place each copy goes to, and which are left for pre-images. Returns how many copies there will be. */
  #layOutReserve(frames: number): number {
    this.#reserved = this.#reserve.frames;
    const limit = this.#options.reserveFrames ?? Infinity;
    const target = (this.#options.pauseTarget_ms ?? PAUSE_TARGET_MS) * COPY_FRAMES_PER_MS;
    // What the pause allows, and half the places; a save that ends in power-off copies all that finds a place.
    const half = Math.floor(Math.min(this.#reserved, limit) / 2);
    const most = this.#keepRunning && target !== Infinity ? Math.min(target, half) : frames;
    return this.#reserve.layOut({ copies: Math.min(most, frames), listed: frames, limit });
  }

  /** Saves the tail: frames as they are if nobody has stored to them since, else the pre-images that the handler kept. */
  async #writeTail(): Promise<void> {
    const { claims, tracking } = this.#machine;
    const { frames, copied } = this.#copy;
    if (copied === frames) return;
    const { start } = claims.queue;
    await this.#writeList("tail", copied, frames);
    tracking.disarm(); // and no handler is at work on a pre-image any more
    this.#tail = { ...claims.queue, start };
    await this.#writeList("placed", start, this.#tail.end);
  }

  #enter(phase: SavePhase, frames: number): void {
    this.#phase = phase;
    this.#phaseFrames = frames;
    this.#machine.control.store(MACHINE_PROGRESS, 0);
    this.#reportProgress();
  }

  #watch(): void {
    this.#growReserve();
    this.#reportProgress();
  }

  #reportProgress(): void {
    const { control } = this.#machine;
    const done = Math.min(control.load(MACHINE_PROGRESS), this.#phaseFrames);
    this.#showProgress(done / Math.max(1, this.#phaseFrames));
    this.#options.onProgress?.({
      phase: this.#phase,
      done,
      total: this.#phaseFrames,
      stored_bytes: control.load(MACHINE_STORED) * FRAME_BYTES,
      elapsed_ms: hostNow() - this.#began,
    });
  }

  /** Tells the guest's processes how far the save is (S3.7). */
  #showProgress(part: number): void {
    const [from, to] = PART_OF_SAVE[this.#phase];
    const percent = Math.floor(100 * (from + (to - from) * part));
    const { control } = this.#machine;
    control.store(MACHINE_SAVE_PERCENT, Math.max(control.load(MACHINE_SAVE_PERCENT), 1 + percent)); // phases are entered again
  }

  /** Before anything is known: one frame in 64 of what the machine has in use, and some for the kernel. */
  #estimateReserve(): number {
    return 256 + Math.ceil(this.#machine.core.countBits(SAVEABLE_BITMAP) / 64);
  }

  /** The reserve follows the number of frames that an atomic copy would take now, and some more. */
  #growReserve(): void {
    if (this.#options.reserveFrames !== undefined) return;
    this.#reserve.grow(Math.ceil(this.#machine.core.countResidual() * 1.125) + 256);
  }

  readonly #cancel = (): void => {
    this.#machine.control.store(MACHINE_CANCEL, CANCEL_ASKED);
  };

  #checkCancelled(): void {
    if (this.#machine.control.load(MACHINE_CANCEL) === CANCEL_NO_MEMORY) {
      throw new HibernaculumError(
        "HIB_NO_MEMORY",
        "the save was given up: a process needed the memory that was reserved for the copies; free some of the guest's memory",
      );
    }
    if (this.#machine.control.load(MACHINE_CANCEL) === CANCEL_NO_ROOM) {
      throw new HibernaculumError(
        "HIB_NO_MEMORY",
        "the save was given up: a store had to wait too long for room in the reserve; free some of the guest's memory",
      );
    }
    if (this.#options.signal?.aborted === true) {
      throw new HibernaculumError("HIB_CANCELLED", "the save was cancelled; the machine goes on and nothing was left behind");
    }
  }

  /** What the report is made from. */
  #facts(saved: SaveFacts["saved"], stored: SaveFacts["stored"]): SaveFacts {
    return {
      saved,
      stored,
      frames: this.#machine.kernel.memory.frames,
      vcpus: this.#machine.vcpus,
      writers: this.#writers,
      path: this.#image.path,
      id: this.#id,
      time: this.#time,
      keepRunning: this.#keepRunning,
      compression: this.#options.compression ?? "lz4",
      began: this.#began,
      at: this.#at,
      planned: this.#planned,
      chunks: this.#locations.chunks,
      totals: this.#totals,
      faults: readFaultStatistics(this.#machine.control, this.#machine.vcpus, this.#at.armed, this.#at.residual),
      copy: this.#copy,
      pause: this.#pause,
      reserve: { estimated: this.#estimate, reserved: this.#reserved },
      tail: this.#tail,
      oracleFrames: this.#oracleFrames,
      changedFiles: this.#changedFiles,
    };
  }
}

function describeFile({ path, mode, device, number, size, modified }: OpenFile): Omit<FileRow, "position" | "hash" | "except"> {
  return { path, mode, device, inode: number, size: BigInt(size), mtime: modified };
}
