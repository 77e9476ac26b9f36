/**
 * Arming and disarming write tracking (S1.2).
 *
 * What must hold: after `arm` returns, no vCPU has a write tag from before, so the first store to any frame goes
 * through the fault handler, which marks it. Only then may the first byte be read. Disarming loosens and needs no
 * handshake.
 */
import type { Control } from "../base/control.js";
import { HibernaculumError } from "../base/errors.js";
import {
  DIRTY_BITMAP, EQUAL_BITMAP, MACHINE_ARMED, MACHINE_GENERATION, MACHINE_KEEP_PREIMAGES, MACHINE_SABOTAGE,
  OPEN_BITMAP, SABOTAGE_NO_ACK, VCPU_GENERATION, VCPU_STATE, VCPU_STATE_OFF,
} from "../base/layout.js";
import type { Core } from "../vm/core.js";

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
   * @param keepPreimages - resume: the handler also keeps the old contents of frames that were found equal (S1.7)
   */
  arm(keepPreimages = false): void {
    this.#core.clearBitmap(DIRTY_BITMAP);
    if (keepPreimages) {
      this.#core.clearBitmap(EQUAL_BITMAP);
      this.#core.clearBitmap(OPEN_BITMAP);
    }
    this.#control.store(MACHINE_KEEP_PREIMAGES, keepPreimages ? 1 : 0);
    this.#control.store(MACHINE_ARMED, 1);
    const generation = this.#control.add(MACHINE_GENERATION, 1) + 1;
    this.#control.ringDoorbell();
    if (this.#control.load(MACHINE_SABOTAGE) === SABOTAGE_NO_ACK) return;
    const acknowledged = () => {
      for (let vcpu = 0; vcpu < this.#vcpus; vcpu++) {
        if (this.#control.loadVcpu(vcpu, VCPU_STATE) === VCPU_STATE_OFF) continue;
        if (this.#control.loadVcpu(vcpu, VCPU_GENERATION) !== generation) return false;
      }
      return true;
    };
    if (!this.#control.waitForVcpus(acknowledged, ANSWER_MS)) {
      this.disarm();
      throw new HibernaculumError("HIB_INTERNAL", `a vCPU did not acknowledge the TLB shootdown within ${ANSWER_MS / 1000} s`);
    }
  }

  disarm(): void {
    this.#control.store(MACHINE_ARMED, 0);
    this.#control.store(MACHINE_KEEP_PREIMAGES, 0);
  }

  /** Frames marked since armed. */
  marked(): number {
    return this.#core.countBits(DIRTY_BITMAP);
  }
}
