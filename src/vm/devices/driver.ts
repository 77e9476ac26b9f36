/**
 * The contract of device drivers (S1.1): four steps, each apart from the others.
 *
 *     save     saveState ... quiesce ... resume("stop")     ... freeState      the machine goes on
 *     image    saveState ... quiesce |
 *                                    | resume("restore") ... freeState         in another process of the host
 *     boot                   quiesce |                                         its own devices; what is in flight is dropped
 *
 * Most of what a device is lies in guest memory anyway (its ring, its pool) and needs no copy. `saveState` is for the
 * rest: what only the host's side knows.
 */
import type { Control } from "../../base/control.js";
import {
  KEEP_FOR_TAIL,
  MACHINE_KEEP_PREIMAGES,
  MACHINE_QUEUE_CURSOR,
  MACHINE_QUEUE_END,
  MACHINE_SABOTAGE,
  MACHINE_STOP,
  QUEUE_SPARE,
  SABOTAGE_NO_QUIESCE,
} from "../../base/layout.js";

export interface Driver {
  /**
   * Puts what the host's side knows into guest memory, which it allocates first: before anything of an image is written.
   *
   * @throws HIB_NO_MEMORY
   */
  saveState(): void;
  /** At the stop: when this returns the device stores nothing more to guest memory. */
  quiesce(): void;
  /**
   * Goes on: after the stop, with what was in flight; or after a restore, from what lies in guest memory, which is another
   * machine's now. What was in flight for the machine that was there before never reaches it.
   */
  resume(after: "stop" | "restore"): void;
  /** Gives the memory of `saveState` back, wherever the machine is by now. May be called again. */
  freeState(): void;
}

/**
 * Whether a device may store: not from `close` to `open`, and not while anybody has stopped the machine. Nor while a
 * snapshot's tail has too little room for pre-images: the coordinator, which makes these stores, would have to give up the
 * save. They can wait until the tail is written.
 */
export class StoreGate {
  readonly #control: Control;
  #closed = false;

  constructor(control: Control) {
    this.#control = control;
  }

  get isOpen(): boolean {
    if (this.#control.load(MACHINE_SABOTAGE) === SABOTAGE_NO_QUIESCE) return true;
    return !this.#closed && this.#control.load(MACHINE_STOP) === 0 && this.#hasRoom();
  }

  #hasRoom(): boolean {
    if (this.#control.load(MACHINE_KEEP_PREIMAGES) !== KEEP_FOR_TAIL) return true;
    return this.#control.load(MACHINE_QUEUE_END) - this.#control.load(MACHINE_QUEUE_CURSOR) >= QUEUE_SPARE / 2;
  }

  close(): void {
    this.#closed = true;
  }

  open(): void {
    this.#closed = false;
  }
}
