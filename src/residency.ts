/**
 * The second half of a lazy resume: the machine runs, and the rest of its memory comes.
 *
 *     begun -- every frame is there --> resident
 *       +----- a frame cannot be brought in ---> failed: the machine has ended, and the image is as it was
 *       +----- power off ---> cut off
 *
 * What must hold: the blob stays open until no thread reads it any more: its descriptor's number may be another file's after that.
 * The image is marked as used while the machine runs, and is given back only once the machine has ended.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { hostNow } from "./base/control.js";
import { HibernaculumError, naming } from "./base/errors.js";
import {
  CLAIMED_BITMAP,
  LAZY_ENDED,
  LAZY_FILLING,
  LAZY_NONE,
  MACHINE_LAZY,
  MACHINE_LOAD_CURSOR,
  MACHINE_POWER_OFF,
  MISSING_BITMAP,
} from "./base/layout.js";
import type { Pfn } from "./base/memory.js";
import type { Image } from "./image/directory.js";
import type { Arriving, Machine } from "./machine.js";
import type { ResidentReport } from "./reports/resume-report.js";
import { FaultRecord } from "./restore/fault-record.js";
import { FrameFaults, giveUp } from "./restore/frame-faults.js";
import type { Filled, FillTask } from "./restore/frame-source.js";
import type { LoadTask } from "./restore/page-loader.js";

/** How long a vCPU is waited for that still copies what it has claimed, until it is looked at again. */
const SETTLE_MS = 1;

export interface ResidencyEvents {
  /** Awaited before loaders begin, for tests. */
  onRunning?: (() => Promise<void> | void) | undefined;
  onResident: (report: ResidentReport) => void;
  /** Is told why the machine has ended, once no thread of it runs. */
  onFailure: (error: unknown) => Promise<void>;
}

export class Residency implements Arriving {
  /** Settles once it is over. @throws why a frame could not be brought in */
  done: Promise<void> = Promise.resolve();
  readonly #machine: Machine;
  readonly #image: Image;
  readonly #task: FillTask;
  readonly #record = new FaultRecord();
  readonly #faults: FrameFaults;

  /** Hands the task to all who may meet a missing frame. None does yet. */
  constructor(machine: Machine, image: Image, task: LoadTask) {
    this.#machine = machine;
    this.#image = image;
    const { chunks, extents, order, start, filled } = task;
    const blobs = image.blobs.map(({ path, key, descriptor }) => ({ path, key, descriptor }));
    this.#task = { blobs, chunks, extents, order, start, filled, record: this.#record.shared };
    this.#faults = new FrameFaults(machine.memory, machine.core, this.#task);
    machine.tellVcpus(this.#task);
  }

  /** From now on frames are missing, and are brought in once they are met. Everything is stopped still. */
  open(): void {
    this.#machine.core.clearBitmap(CLAIMED_BITMAP);
    this.#machine.control.store(MACHINE_LAZY, LAZY_FILLING);
    this.#machine.arriving = this;
  }

  /**
   * The machine runs: loaders bring in the rest.
   *
   * @param began - when the resume did, host ms: all times are from there
   */
  begin(began: number, { onRunning, onResident, onFailure }: ResidencyEvents): void {
    this.#machine.control.store(MACHINE_LOAD_CURSOR, 0);
    this.done = this.#fill(onRunning).then(
      (filled) => void (filled === undefined || onResident(this.#report(filled, hostNow() - began))),
      async (error: unknown) => {
        await onFailure(error);
        throw error;
      },
    );
    this.done.catch(() => undefined); // whoever asks for it is told
  }

  /** Why the machine has ended, if it has. */
  get failure(): HibernaculumError | undefined {
    const failure = this.#record.failure;
    if (failure === undefined) return undefined;
    const { code, message } = naming(failure, this.#image.path) as HibernaculumError;
    return new HibernaculumError(
      code,
      `${message}; this was found while the machine ran, so it has ended; the image can be resumed again, but files of the host are as its processes left them`,
      { cause: failure },
    );
  }

  /** Brings in a frame that this thread needs. */
  bringIn(frame: Pfn): void {
    this.#faults.bringIn(frame);
  }

  /** Returns what each loader did; undefined if the machine was powered off before all was there. */
  async #fill(onRunning: ResidencyEvents["onRunning"]): Promise<readonly Filled[] | undefined> {
    const { control, core, pageThreads, pool, tracking } = this.#machine;
    try {
      await onRunning?.();
      const giveUpFor = (): void => control.store(MACHINE_LAZY, LAZY_ENDED);
      const results = await pool.runOn<FillTask, Filled>(pageThreads, "fill", () => this.#task, giveUpFor);
      await this.#until(() => core.countBits(MISSING_BITMAP) === 0);
      await this.#until(tracking.askForSafepoints()); // who met a frame that a loader was quicker with may be at the blob still
      if (control.load(MACHINE_POWER_OFF) !== 0) return undefined;
      control.store(MACHINE_LAZY, LAZY_NONE);
      this.#machine.arriving = undefined;
      return results;
    } catch (error) {
      if (control.load(MACHINE_POWER_OFF) !== 0) return undefined;
      giveUp(control, this.#record, error);
      this.#machine.fail(this.failure!);
      await this.#machine.endThreads();
      throw this.failure!;
    } finally {
      this.#image.close();
    }
  }

  /** @throws why it never will be: the load has failed, or the machine */
  async #until(done: () => boolean): Promise<void> {
    const { control } = this.#machine;
    while (control.load(MACHINE_POWER_OFF) === 0) {
      this.#machine.check();
      if (done()) return;
      await sleep(SETTLE_MS);
    }
  }

  #report(results: readonly Filled[], resident_ms: number): ResidentReport {
    const sum = (pick: (filled: Filled) => number): number => results.reduce((all, filled) => all + pick(filled), 0);
    return {
      resident_ms,
      loaded_frames: sum(({ frames }) => frames),
      read_bytes: sum(({ bytes }) => bytes),
      faults: this.#record.faults(),
    };
  }
}
