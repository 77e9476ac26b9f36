/**
 * Whether a save or a resume is to go on. Page threads and handlers look at the word MACHINE_CANCEL; the story asks here, and
 * gets the error that says why not.
 */
import type { Control } from "../base/control.js";
import { HibernaculumError } from "../base/errors.js";
import { CANCEL_ASKED, CANCEL_NO_MEMORY, CANCEL_NO_ROOM, MACHINE_CANCEL } from "../base/layout.js";

/** What is said: on a cancel, if a store found no room for its pre-image, and if the guest needed the memory. */
export interface CancelMessages {
  cancelled: string;
  noRoom: string;
  noMemory: string;
}

export class Cancellation implements Disposable {
  readonly #control: Control;
  readonly #signal: AbortSignal | undefined;
  readonly #messages: CancelMessages;

  constructor(control: Control, signal: AbortSignal | undefined, messages: CancelMessages) {
    this.#control = control;
    this.#signal = signal;
    this.#messages = messages;
    control.store(MACHINE_CANCEL, 0);
    signal?.addEventListener("abort", this.cancel);
  }

  /** Has page threads stop at their next claim. */
  readonly cancel = (): void => this.#control.store(MACHINE_CANCEL, CANCEL_ASKED);

  /** @throws HIB_CANCELLED, HIB_NO_MEMORY */
  check(): void {
    const { cancelled, noRoom, noMemory } = this.#messages;
    const why = this.#control.load(MACHINE_CANCEL);
    if (why === CANCEL_NO_MEMORY) throw new HibernaculumError("HIB_NO_MEMORY", noMemory);
    if (why === CANCEL_NO_ROOM) throw new HibernaculumError("HIB_NO_MEMORY", noRoom);
    if (this.#signal?.aborted === true) throw new HibernaculumError("HIB_CANCELLED", cancelled);
  }

  [Symbol.dispose](): void {
    this.#signal?.removeEventListener("abort", this.cancel);
  }
}
