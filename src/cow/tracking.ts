/**
 * Arming and disarming write tracking (S1.2).
 *
 * What must hold: after `arm` returns, no vCPU has a write tag from before, so the first store to any frame goes
 * through the fault handler, which marks it. Only then may the first byte be read. After `disarm` returns no handler is at
 * work any more.
 */
import type { Control } from "../base/control.js";
import { HibernaculumError } from "../base/errors.js";
import {
  CLAIMED_BITMAP,
  DIRTY_BITMAP,
  KEEP_BITMAP,
  KEEP_FOR_RESTORE,
  KEEP_FOR_TAIL,
  KEEP_NONE,
  KEPT_BITMAP,
  MACHINE_ARMED,
  MACHINE_FRAMES,
  MACHINE_GENERATION,
  MACHINE_KEEP_PREIMAGES,
  MACHINE_SABOTAGE,
  MACHINE_STOP_SET,
  OPEN_BITMAP,
  SABOTAGE_NO_ACK,
  SAVEABLE_BITMAP,
  SAVED_BITMAP,
  STOP_BITMAP,
  VCPU_GENERATION,
  VCPU_STATE,
  VCPU_STATE_RUNNING,
} from "../base/layout.js";
import type { Core } from "../vm/memory/core.js";

const ANSWER_MS = 10_000;

/** An image, as one that is saved after it names it as its parent. */
export interface TrackedImage {
  id: string;
  catalogueHash: bigint;
  catalogueDigest: Uint8Array | null;
}

export class WriteTracking {
  readonly #control: Control;
  readonly #core: Core;
  readonly #vcpus: number;
  /** The image whose frames KEPT_BITMAP tells of. */
  #since: TrackedImage | undefined;

  constructor(control: Control, core: Core, vcpus: number) {
    this.#control = control;
    this.#core = core;
    this.#vcpus = vcpus;
  }

  /**
   * Write-protects every frame on every vCPU: clears the bitmap, publishes a new generation, and waits for each
   * vCPU to drop its write tags and acknowledge.
   *
   * @throws HIB_INTERNAL if a vCPU does not answer
   */
  arm(): void {
    this.forget();
    this.#arm(KEEP_NONE);
  }

  /**
   * As `arm`, for an image that has only what changed since another: from KEPT_BITMAP goes what has been stored to. Tracking has
   * been on since that image's consistency point.
   */
  armSince(): void {
    this.#core.takeMarks(KEPT_BITMAP, DIRTY_BITMAP); // what is marked from here on is in the residual set
    this.#arm(KEEP_NONE);
  }

  /** The image since which all stores are known; undefined if tracking is not on for that. */
  get since(): TrackedImage | undefined {
    return this.#since;
  }

  /** As `arm`, for a resume: the handler also keeps the old contents of frames that were found equal (S1.7). */
  armForRestore(): void {
    this.forget();
    this.#arm(KEEP_FOR_RESTORE);
  }

  /**
   * Arms anew while the machine runs, for another round of the stream: what bears a mark is listed and loses it, every vCPU drops its
   * write tags, and only then may the list be read. Returns its length.
   *
   * @throws HIB_INTERNAL if a vCPU does not answer
   */
  rearm(): number {
    const frames = this.#core.listMarked(this.#control.load(MACHINE_FRAMES));
    this.#shootDown();
    return frames;
  }

  #arm(keep: number): void {
    if (this.#since === undefined) this.#core.clearBitmap(DIRTY_BITMAP); // else its marks were taken
    for (const bitmap of [KEEP_BITMAP, CLAIMED_BITMAP, OPEN_BITMAP, SAVED_BITMAP]) this.#core.clearBitmap(bitmap);
    this.#control.store(MACHINE_STOP_SET, SAVEABLE_BITMAP);
    this.#control.store(MACHINE_KEEP_PREIMAGES, keep);
    this.#control.store(MACHINE_ARMED, 1);
    this.#shootDown();
  }

  /**
   * Arms anew while the machine is stopped: from now on the handler keeps the pre-image of each frame of the residual set
   * before its first store, unless it is saved by then. Marks stay as they are. Every vCPU drops its write tags before it
   * leaves the stop.
   */
  armTail(): void {
    this.#control.store(MACHINE_KEEP_PREIMAGES, KEEP_FOR_TAIL);
    this.#control.add(MACHINE_GENERATION, 1);
  }

  /**
   * Keeps what belongs to the image as of the stop. Everything is stopped; or it goes on, and the kernel lock has been held since the
   * stop.
   */
  freezeSaveable(): void {
    this.#core.copyBitmap(STOP_BITMAP, SAVEABLE_BITMAP);
    this.#control.store(MACHINE_STOP_SET, STOP_BITMAP);
  }

  /**
   * Loosens. When this returns, no handler is at work any more: none will put a late mark into the bitmap of the next arm,
   * or a pre-image into a place that has been given back.
   */
  disarm(): void {
    this.forget();
    if (this.#control.load(MACHINE_ARMED) === 0) return;
    this.#control.store(MACHINE_ARMED, 0);
    this.#control.store(MACHINE_KEEP_PREIMAGES, KEEP_NONE);
    this.#shootDown();
  }

  /**
   * Ends a tail whose frames are all saved, and leaves tracking on: what was stored to since the stop bears a mark then, and
   * KEPT_BITMAP has what was kept at the stop. When this returns, no handler is at work on a pre-image any more.
   */
  endTail(): void {
    if (!this.#inTail) return;
    this.#core.takeMarks(KEPT_BITMAP, DIRTY_BITMAP); // of before the stop: handlers of a tail set no marks
    this.#control.store(MACHINE_KEEP_PREIMAGES, KEEP_NONE);
    this.#shootDown();
    this.#core.mergeBits(DIRTY_BITMAP, CLAIMED_BITMAP);
  }

  /** After `endTail`: the image is there, and has the frames of STOP_BITMAP. What is stored to from its stop on is tracked. */
  trackSince(image: TrackedImage): void {
    this.#core.copyBitmap(KEPT_BITMAP, STOP_BITMAP);
    this.#since = image;
  }

  /** While everything is stopped and memory has just been put in place: all stores since are tracked. @param frames - of the image */
  trackRestored(image: TrackedImage, frames: Iterable<{ pfn: number; frames: number }>): void {
    this.forget();
    this.#arm(KEEP_NONE);
    for (const run of frames) this.#core.setBits(KEPT_BITMAP, run.pfn, run.frames);
    this.#since = image;
  }

  /** What the machine has in common with an image is not known any more. */
  forget(): void {
    this.#since = undefined;
    this.#core.clearBitmap(KEPT_BITMAP);
  }

  /** Loosens, unless all stores since an image are known: then tracking goes on. In a tail they are not. */
  end(): void {
    if (this.#since === undefined || this.#inTail) this.disarm();
  }

  get #inTail(): boolean {
    return this.#control.load(MACHINE_KEEP_PREIMAGES) !== KEEP_NONE;
  }

  /**
   * At a stop that no tail follows, because all that was to be copied or written is: KEPT_BITMAP has what was kept up to here, and if
   * the machine goes on its stores are tracked from here on. Without effect if a tail is armed: `endTail` does the same for that.
   */
  settle(goesOn: "goes on" | "stays"): void {
    if (this.#inTail) return;
    if (goesOn === "stays") return this.#core.subtractBits(KEPT_BITMAP, DIRTY_BITMAP);
    this.#core.takeMarks(KEPT_BITMAP, DIRTY_BITMAP);
    this.#control.store(MACHINE_ARMED, 1);
    this.#control.add(MACHINE_GENERATION, 1);
  }

  /** Publishes a new generation. What it returns tells whether every vCPU has passed a safepoint since, and acknowledged it there. */
  askForSafepoints(): () => boolean {
    const generation = this.#control.add(MACHINE_GENERATION, 1) + 1;
    this.#control.ringDoorbell();
    return () => {
      for (let vcpu = 0; vcpu < this.#vcpus; vcpu++) {
        // One that is stopped stands at a safepoint, and acknowledges before it goes on.
        if (this.#control.loadVcpu(vcpu, VCPU_STATE) !== VCPU_STATE_RUNNING) continue;
        if (this.#control.loadVcpu(vcpu, VCPU_GENERATION) !== generation) return false;
      }
      return true;
    };
  }

  /** Waits until every vCPU has. */
  #shootDown(): void {
    const acknowledged = this.askForSafepoints();
    if (this.#control.load(MACHINE_SABOTAGE) === SABOTAGE_NO_ACK) return;
    if (!this.#control.waitForVcpus(acknowledged, ANSWER_MS)) {
      this.#control.store(MACHINE_ARMED, 0);
      this.#control.store(MACHINE_KEEP_PREIMAGES, KEEP_NONE);
      throw new HibernaculumError("HIB_INTERNAL", `a vCPU did not acknowledge the TLB shootdown within ${ANSWER_MS / 1000} s`);
    }
  }
}
