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
  MACHINE_ARMED,
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

export class WriteTracking {
  readonly #control: Control;
  readonly #core: Core;
  readonly #vcpus: number;

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
    this.#arm(KEEP_NONE);
  }

  /** As `arm`, for a resume: the handler also keeps the old contents of frames that were found equal (S1.7). */
  armForRestore(): void {
    this.#arm(KEEP_FOR_RESTORE);
  }

  #arm(keep: number): void {
    for (const bitmap of [DIRTY_BITMAP, KEEP_BITMAP, CLAIMED_BITMAP, OPEN_BITMAP, SAVED_BITMAP]) this.#core.clearBitmap(bitmap);
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
    if (this.#control.load(MACHINE_ARMED) === 0) return;
    this.#control.store(MACHINE_ARMED, 0);
    this.#control.store(MACHINE_KEEP_PREIMAGES, KEEP_NONE);
    this.#shootDown();
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
