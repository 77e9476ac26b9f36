/**
 * Whether a save or a resume is to go on. Page threads and handlers look at the word MACHINE_CANCEL; the story asks here, and
 * gets the error that says why not.
 *
 *     begun -- abort, a callback that throws, no memory --> cancelled: the next check throws
 *       +----- close() ---> past the point of no return: nothing cancels any more
 */
import { describeThrown, guarded, warnOf } from "../base/callback.js";
import type { Control } from "../base/control.js";
import { HibernaculumError } from "../base/errors.js";
import { CANCEL_ASKED, CANCEL_NO_MEMORY, CANCEL_NO_ROOM, MACHINE_CANCEL } from "../base/layout.js";

/** What is said: on a cancel, if a store found no room for its pre-image, and if the guest needed the memory. */
export interface CancelMessages {
  cancelled: string;
  noRoom: string;
  noMemory: string;
}

/** What is asked of the machine: `check` throws if it cannot go on. */
interface CheckedMachine {
  readonly control: Control;
  check(): void;
}

export class Cancellation implements Disposable {
  readonly #machine: CheckedMachine;
  readonly #signal: AbortSignal | undefined;
  readonly #messages: CancelMessages;
  /** What is to be given up for, besides what the word and the signal say. */
  #failure: unknown;
  #closed = false;

  constructor(machine: CheckedMachine, signal: AbortSignal | undefined, messages: CancelMessages) {
    this.#machine = machine;
    this.#signal = signal;
    this.#messages = messages;
    machine.control.store(MACHINE_CANCEL, 0);
    signal?.addEventListener("abort", this.cancel);
  }

  /** Has page threads stop at their next claim. */
  readonly cancel = (): void => this.#machine.control.store(MACHINE_CANCEL, CANCEL_ASKED);

  /** Gives up for a reason: the next check throws it. */
  readonly fail = (error: unknown): void => {
    this.#failure ??= error;
    this.cancel();
  };

  /** @throws HIB_CANCELLED, HIB_NO_MEMORY, HIB_WORKER_DIED, what `fail` was told */
  check(): void {
    const { cancelled, noRoom, noMemory } = this.#messages;
    this.#machine.check();
    if (this.#failure !== undefined) throw this.#failure;
    const why = this.#machine.control.load(MACHINE_CANCEL);
    if (why === CANCEL_NO_MEMORY) throw new HibernaculumError("HIB_NO_MEMORY", noMemory);
    if (why === CANCEL_NO_ROOM) throw new HibernaculumError("HIB_NO_MEMORY", noRoom);
    if (this.#signal?.aborted === true) throw new HibernaculumError("HIB_CANCELLED", cancelled);
  }

  /** The last check: from here on there is no way back. */
  checkLast(): void {
    this.check();
    this.close();
  }

  /** It is decided how this ends. */
  close(): void {
    this.#closed = true;
  }

  /** A callback of the embedder's, which then never throws: what it throws cancels, or once that is too late is a warning. */
  guard<Args extends unknown[]>(name: string, callback: ((...args: Args) => unknown) | undefined): (...args: Args) => void {
    return guarded(callback, (thrown) => {
      if (this.#closed) return warnOf(name, thrown);
      const message = `${name} ${describeThrown(thrown)}: ${this.#messages.cancelled}`;
      this.fail(new HibernaculumError("HIB_CANCELLED", message, { cause: thrown }));
    });
  }

  [Symbol.dispose](): void {
    this.close();
    this.#signal?.removeEventListener("abort", this.cancel);
  }
}
