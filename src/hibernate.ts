/**
 * A live save, as the seed tells it (S1, "When saving the image"). One call per step, in order:
 *
 *     prepare   drivers save their state, memory is reserved, the plan is made    S1.1, S1.9
 *     arm       every frame is write-protected on every vCPU                      S1.2
 *     stream    all of memory is written while processes keep running             S1.3
 *     stop      all vCPUs at a safepoint, devices drained, atomic copy            S1.4
 *     residual  the copies are written                                            S1.5
 *     publish   catalogue, header, rename: now there is an image
 *     ending    power off, or go on
 *
 * What must hold: until `publish` returns there is no image, and after it there is a whole one. A save that fails or is
 * cancelled anywhere leaves the machine running and nothing on the disk.
 */
import { randomUUID } from "node:crypto";
import { resolve } from "node:path";
import { hostNow } from "./base/control.js";
import { fromSystemError, HibernaculumError, isSystemError } from "./base/errors.js";
import { failpoint } from "./base/failpoints.js";
import {
  CANCEL_ASKED, CANCEL_NO_ROOM, FRAME_BYTES, MACHINE_BLOB_CURSOR, MACHINE_CANCEL, MACHINE_CHUNK_CURSOR, MACHINE_PREIMAGES,
  MACHINE_PROGRESS, MACHINE_QUEUE_CURSOR, MACHINE_QUEUE_OVERFLOW, MACHINE_QUEUE_ROOM, MACHINE_STORED, MAX_FRAMES, QUEUE_SPARE,
  SAVEABLE_BITMAP, STOP_BITMAP,
} from "./base/layout.js";
import { type AtomicCopy, atomicCopy, claimable, listViews, placeInOwnFrames } from "./cow/atomic-copy.js";
import { type FaultStatistics, readFaultStatistics, resetFaultStatistics } from "./cow/fault-statistics.js";
import { checkOracle, createOracle } from "./cow/oracle.js";
import { planFrames } from "./cow/plan.js";
import { Reserve } from "./cow/reserve.js";
import { BlobReader, BlobWriter } from "./image/blob.js";
import { CatalogueWriter } from "./image/catalogue.js";
import { loadChecksum } from "./image/checksum.js";
import { createPartial, type PartialImage } from "./image/directory.js";
import { encodeHeader, type ExtentTable, HEADER_BYTES, type ImageHeader, MACHINE_VERSION } from "./image/format.js";
import { ImageMemory } from "./image/image-memory.js";
import type { Machine } from "./machine.js";
import { REPORT_SCHEMA, type SaveReport } from "./save-report.js";
import { longestGap, resetLongestGap, stepsPerBin } from "./vm/activity.js";
import { countBlocks, describeMappings } from "./vm/describe.js";
import { isSaved, KERNEL_CLOCK, KIND_NAMES, type KindName } from "./vm/kernel-layout.js";
import { listProcesses } from "./vm/process.js";
import { Locations } from "./writer/locations.js";
import { type WriteResult, type WriteTask, WRITER_BYTES } from "./writer/page-writer.js";

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
const PAUSE_TARGET_MS = 2;
/** What one thread copies in a millisecond at the least. */
const COPY_FRAMES_PER_MS = 1000;
const BEFORE_MS = 1000;

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
    const image = await createPartial(path);
    const work = new Save(machine, image, options);
    try {
      await work.prepare();
      work.arm();
      await work.stream();
      await work.stop();
      await work.writeResidual();
      const report = await work.publish();
      if (options.keepRunning !== true) await machine.powerOff();
      return report;
    } catch (error) {
      await work.abandon();
      throw isSystemError(error) ? fromSystemError(error, `saving ${path}`) : error;
    } finally {
      work.finish();
    }
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
  readonly #reserve: Reserve;
  readonly #locations: Locations;
  readonly #oracle: SharedArrayBuffer | undefined;
  readonly #results: WriteResult[] = [];
  #phase: SavePhase = "prepare";
  #phaseFrames = 0;
  #planned = 0;
  #estimate = 0;
  #stopped = false;
  #copy: AtomicCopy = { frames: 0, copied: 0, list_ms: 0, copy_ms: 0 };
  #tail = { preimages: 0, waits: 0 };
  #faults: FaultStatistics | undefined;
  #oracleFrames: number | null = null;
  #pause: SaveReport["pause"] = { safepoint_ms: 0, devices_ms: 0, list_ms: 0, copy_ms: 0, overflow_ms: 0, resume_ms: 0, total_ms: 0 };
  /** Host times at which phases ended. */
  #at = { prepared: 0, armed: 0, streamed: 0, stopped: 0, residual: 0 };
  #armMs = 0;
  #time = 0;

  constructor(machine: Machine, image: PartialImage, options: SaveOptions) {
    this.#machine = machine;
    this.#image = image;
    this.#options = options;
    this.#keepRunning = options.keepRunning === true;
    this.#reserve = new Reserve(machine.kernel, machine.pageThreads * WRITER_BYTES);
    this.#locations = new Locations(machine.kernel.memory.frames);
    this.#oracle = options.oracle === true ? createOracle(machine.kernel.memory.frames) : undefined;
  }

  /** S1.1, S1.9: whatever takes time or memory and need not be atomic. */
  async prepare(): Promise<void> {
    const { control } = this.#machine;
    failpoint("save.prepare");
    await loadChecksum();
    for (const word of [MACHINE_CANCEL, MACHINE_CHUNK_CURSOR, MACHINE_STORED, MACHINE_PROGRESS]) control.store(word, 0);
    control.store(MACHINE_BLOB_CURSOR, HEADER_BYTES / FRAME_BYTES);
    this.#options.signal?.addEventListener("abort", this.#cancel);
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
    this.#armMs = this.#at.armed - this.#at.prepared;
    failpoint("save.armed");
    const { control, core, kernel } = this.#machine;
    this.#planned = planFrames(control, core, kernel.memory);
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
    const { control, core, kernel, quiesce, tracking } = this.#machine;
    const requested = hostNow();
    quiesce.stop();
    this.#stopped = true;
    const reached = hostNow();
    this.#machine.drainConsole();
    kernel.memory.storeFloat64(KERNEL_CLOCK, control.guestNow());
    this.#time = Date.now();
    const drained = hostNow();
    failpoint("save.stopped");
    this.#copy = atomicCopy(control, core, quiesce, this.#reserve, this.#copyLimit());
    if (this.#oracle !== undefined) this.#oracleFrames = checkOracle(control, core, this.#oracle);
    this.#faults = readFaultStatistics(control, this.#machine.vcpus, this.#at.armed, requested);
    failpoint("save.copied");
    const copied = hostNow();
    if (this.#copy.copied < this.#copy.frames && !this.#keepRunning) {
      // The reserve was too small (S1.9): these are written from where they are, before anything may change them.
      placeInOwnFrames(control, this.#copy.copied, this.#copy.frames);
      await this.#writeList("placed", this.#copy.copied, this.#copy.frames);
    }
    const written = hostNow();
    if (this.#keepRunning) {
      if (this.#copy.copied < this.#copy.frames) this.#protectTail();
      else tracking.disarm();
      quiesce.go();
      this.#stopped = false;
    }
    this.#at.stopped = hostNow();
    this.#pause = {
      safepoint_ms: reached - requested,
      devices_ms: drained - reached,
      list_ms: this.#copy.list_ms,
      copy_ms: this.#copy.copy_ms,
      overflow_ms: written - copied,
      resume_ms: this.#at.stopped - written,
      total_ms: this.#at.stopped - requested,
    };
  }

  /** S1.5: write the copies. Their locations supersede those of the stream. */
  async writeResidual(): Promise<void> {
    failpoint("save.residual");
    if (this.#keepRunning) await this.#writeTail();
    await this.#writeList("placed", 0, this.#copy.copied);
    this.#at.residual = hostNow();
  }

  /** Catalogue, header, syncs, rename: the image is there, whole, or it is not. */
  async publish(): Promise<SaveReport> {
    this.#enter("publish", 0);
    const { control } = this.#machine;
    const bit = (frame: number) => (control.words[(STOP_BITMAP >>> 2) + (frame >>> 5)]! >>> (frame & 31)) & 1;
    const { table, frames, sameFilled } = this.#locations.extents((frame) => bit(frame) === 1);
    const blobBytes = control.load(MACHINE_BLOB_CURSOR) * FRAME_BYTES;
    failpoint("save.catalogue");
    const { catalogue, report } = await this.#writeCatalogue(table, frames, sameFilled);
    this.#checkCancelled();
    await this.#seal({
      machineVersion: MACHINE_VERSION,
      id: this.#id,
      ramFrames: this.#machine.kernel.memory.frames,
      chunks: this.#locations.chunks.length,
      blobBytes,
      catalogueBytes: catalogue.bytes,
      catalogueHash: catalogue.hash,
      frames,
      time: this.#time,
    });
    this.#checkCancelled();
    await this.#image.publish();
    failpoint("save.published");
    return report;
  }

  /** After a failure: the machine goes on, and nothing is left on the disk. */
  async abandon(): Promise<void> {
    if (this.#stopped) this.#machine.quiesce.go();
    this.#stopped = false;
    await this.#image.discard();
  }

  /** In any case: tracking is off, and the guest has its memory back. */
  finish(): void {
    this.#options.signal?.removeEventListener("abort", this.#cancel);
    this.#machine.tracking.disarm();
    this.#reserve.release();
  }

  // ---- parts ----

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
    const results = await pool.runOnAll<WriteTask, WriteResult>("write", task, () => control.store(MACHINE_CANCEL, CANCEL_ASKED));
    this.#checkCancelled();
    for (const result of results) this.#locations.add(result);
    this.#results.push(...results);
  }

  async #writeList(source: WriteTask["source"], from: number, to: number): Promise<void> {
    if (from === to) return;
    this.#enter("residual", to - from);
    claimable(this.#machine.control, from, to);
    await this.#write(source);
  }

  /**
   * The copy-before-write tail: what was not copied is protected again, and the handler keeps its pre-images. Their queue
   * follows the residual set in the lists; its places are those of the reserve that the copies left.
   */
  #protectTail(): void {
    const { control, tracking } = this.#machine;
    const { frames, copied } = this.#copy;
    const lists = listViews(control);
    const room = Math.min(this.#reserveLimit() - copied, MAX_FRAMES - frames - QUEUE_SPARE);
    const places = this.#reserve.list(lists.places.subarray(frames), room + QUEUE_SPARE, copied);
    control.store(MACHINE_QUEUE_CURSOR, frames);
    control.store(MACHINE_QUEUE_ROOM, frames + Math.max(0, places - QUEUE_SPARE));
    control.store(MACHINE_QUEUE_OVERFLOW, 0);
    control.store(MACHINE_PREIMAGES, 0);
    tracking.armTail(copied, frames);
  }

  /** Saves the tail: frames as they are if nobody has stored to them since, else the pre-images that the handler kept. */
  async #writeTail(): Promise<void> {
    const { control, tracking } = this.#machine;
    const { frames, copied } = this.#copy;
    if (copied === frames) return;
    await this.#writeList("tail", copied, frames);
    tracking.disarm(); // and no handler is at work on a pre-image any more
    await this.#writeList("placed", frames, control.load(MACHINE_QUEUE_CURSOR));
    this.#tail = { preimages: control.load(MACHINE_PREIMAGES), waits: control.load(MACHINE_QUEUE_OVERFLOW) };
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
    this.#options.onProgress?.({
      phase: this.#phase,
      done: Math.min(control.load(MACHINE_PROGRESS), this.#phaseFrames),
      total: this.#phaseFrames,
      stored_bytes: control.load(MACHINE_STORED) * FRAME_BYTES,
      elapsed_ms: hostNow() - this.#began,
    });
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

  #reserveLimit(): number {
    return Math.min(this.#reserve.frames, this.#options.reserveFrames ?? Infinity);
  }

  /** Frames that the atomic copy takes: all that find a place, or what the pause allows and half the places. */
  #copyLimit(): number {
    if (!this.#keepRunning) return this.#reserveLimit();
    const target = (this.#options.pauseTarget_ms ?? PAUSE_TARGET_MS) * COPY_FRAMES_PER_MS;
    return target === Infinity ? this.#reserveLimit() : Math.min(target, Math.floor(this.#reserveLimit() / 2));
  }

  readonly #cancel = (): void => {
    this.#machine.control.store(MACHINE_CANCEL, CANCEL_ASKED);
  };

  #checkCancelled(): void {
    if (this.#machine.control.load(MACHINE_CANCEL) === CANCEL_NO_ROOM) {
      throw new HibernaculumError("HIB_NO_MEMORY", "the save was given up: the reserve had no room for a store of the kernel; free some of the guest's memory");
    }
    if (this.#options.signal?.aborted === true) {
      throw new HibernaculumError("HIB_CANCELLED", "the save was cancelled; the machine goes on and nothing was left behind");
    }
  }

  /**
   * The catalogue's mappings and processes are read from the image itself, by the reader that a resume uses: live
   * memory has moved on if the machine keeps running.
   */
  async #writeCatalogue(table: ExtentTable, frames: number, sameFilled: number): Promise<{ catalogue: { bytes: number; hash: bigint }; report: SaveReport }> {
    const { chunks } = this.#locations;
    const blob = new BlobReader(this.#image.blobPath);
    try {
      const memory = new ImageMemory({ frames: this.#machine.kernel.memory.frames, chunks, extents: table, blob, cachedChunks: 8 });
      const report = this.#report(memory, table, frames, sameFilled);
      const writer = CatalogueWriter.create(this.#image.cataloguePath);
      const blobOffset = (pfn: number): number | null => {
        const extent = table.find(pfn);
        return extent < 0 ? null : (chunks[table.chunk[extent]!]?.offset ?? null);
      };
      writer.write({
        meta: { report, sameFilledFrames: sameFilled, vcpus: this.#machine.vcpus },
        chunks,
        extents: table,
        processes: listProcesses(memory).map((process) => ({
          pid: process.pid,
          slot: process.slot,
          name: process.text.split(":")[0]!,
          state: process.state,
          steps: process.steps,
          detail: process,
        })),
        mappings: (function* () {
          for (const { address, ...run } of describeMappings(memory)) yield { ...run, vaddr: address, blobOffset: blobOffset(run.pfn) };
        })(),
        blocks: countBlocks(memory),
      });
      return { catalogue: await writer.close(), report };
    } finally {
      blob.close();
    }
  }

  /** The header last of all: before it is on the disk the blob is no image. */
  async #seal(header: ImageHeader): Promise<void> {
    const blob = await BlobWriter.open(this.#image.blobPath, { direct: false });
    try {
      await blob.sync();
      failpoint("save.seal");
      await blob.write(encodeHeader(header), 0);
      await blob.sync();
    } finally {
      await blob.close();
    }
  }

  #report(memory: ImageMemory, table: ExtentTable, frames: number, sameFilled: number): SaveReport {
    const { control, vcpus, pageThreads } = this.#machine;
    const now = hostNow();
    const faults = this.#faults!;
    const processes = new Map(listProcesses(memory).map((process) => [process.slot, process]));
    const { storedBytes, staleBytes } = this.#locations.totals(table);
    const sum = (pick: (result: WriteResult) => number) => this.#results.reduce((all, result) => all + pick(result), 0);
    const streaming = this.#results.slice(0, pageThreads);
    const chunks = this.#locations.chunks;
    const plainBytes = chunks.reduce((all, chunk) => all + chunk.frames, 0) * FRAME_BYTES;
    const byKind: Record<string, number> = {};
    for (const { kind, frames: count } of countBlocks(memory)) {
      if (isSaved(KIND_NAMES.indexOf(kind as KindName))) byKind[kind] = (byKind[kind] ?? 0) + count;
    }
    const before = stepsPerBin(control, vcpus, this.#began - BEFORE_MS, this.#began);
    const during = stepsPerBin(control, vcpus, this.#at.armed, this.#at.streamed);
    const mean = (bins: number[]) => (bins.length === 0 ? 0 : bins.reduce((all, steps) => all + steps, 0) / bins.length);
    const bytes = this.#copy.copied * FRAME_BYTES;
    return {
      schema: REPORT_SCHEMA,
      image: {
        path: resolve(this.#image.path),
        id: this.#id,
        ending: this.#keepRunning ? "keep-running" : "hibernate",
        time: new Date(this.#time).toISOString(),
      },
      machine: { ram_frames: memory.frames, vcpus, page_threads: pageThreads },
      frames: {
        saved: frames,
        by_kind: byKind,
        planned: this.#planned,
        streamed: streaming.reduce((all, result) => all + result.chunkFrames.length + result.filledFrames.length, 0),
        skipped: streaming.reduce((all, result) => all + result.skipped, 0),
        same_filled: sameFilled,
      },
      faults: {
        ...faults,
        by_process: faults.by_slot.map(({ slot, ...counts }) => {
          const process = processes.get(slot);
          return { pid: process?.pid ?? 0, name: process?.text.split(":")[0] ?? "kernel", ...counts };
        }),
      },
      residual_frames: this.#copy.frames,
      atomic_copy: {
        frames: this.#copy.copied,
        bytes,
        list_ms: this.#copy.list_ms,
        copy_ms: this.#copy.copy_ms,
        gb_per_s: this.#copy.copy_ms === 0 ? 0 : bytes / this.#copy.copy_ms / 1e6,
      },
      pause: this.#pause,
      arm_ms: this.#armMs,
      reserve: {
        estimated_frames: this.#estimate,
        reserved_frames: this.#reserve.frames,
        used_frames: this.#copy.copied,
        overflow_frames: this.#keepRunning ? 0 : this.#copy.frames - this.#copy.copied,
      },
      tail: { frames: this.#keepRunning ? this.#copy.frames - this.#copy.copied : 0, ...this.#tail },
      blob: {
        compression: this.#options.compression ?? "lz4",
        chunks: chunks.length,
        raw_chunks: chunks.filter((chunk) => chunk.codec === 0).length,
        plain_bytes: plainBytes,
        stored_bytes: storedBytes,
        ratio: plainBytes === 0 ? 1 : storedBytes / plainBytes,
        stale_bytes: staleBytes,
      },
      throughput: { saved_bytes: frames * FRAME_BYTES, gb_per_s: (frames * FRAME_BYTES) / (now - this.#began) / 1e6 },
      phases_ms: {
        prepare: this.#at.prepared - this.#began,
        stream: this.#at.streamed - this.#at.prepared,
        stop: this.#at.stopped - this.#at.streamed,
        residual: this.#at.residual - this.#at.stopped,
        catalogue: now - this.#at.residual,
        total: now - this.#began,
      },
      writers: {
        stage_ms: sum((result) => result.stage_ms),
        compress_ms: sum((result) => result.compress_ms),
        hash_ms: sum((result) => result.hash_ms),
        write_wait_ms: sum((result) => result.write_wait_ms),
      },
      workload: {
        bin_ms: 10,
        before,
        during,
        after: this.#keepRunning ? stepsPerBin(control, vcpus, this.#at.stopped, now) : [],
        speed: mean(before) === 0 ? null : mean(during) / mean(before),
        longest_gap_ms: longestGap(control, vcpus),
      },
      oracle_frames: this.#oracleFrames,
    };
  }
}
