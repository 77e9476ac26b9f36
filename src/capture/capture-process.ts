/** The capture process as the machine's process sees it. It is there before the machine is stopped, and is gone with the save. */
import { type ChildProcess, fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import { deserializeError, HibernaculumError, type SerializedError } from "../base/errors.js";
import type { CaptureMessage, CapturePlan } from "./capture.js";

const ENTRY = fileURLToPath(new URL("../../workers/capture.js", import.meta.url));
/** Of the child: after its standard descriptors and the channel. */
const DESCRIPTOR = 4;

export type Written = Extract<CaptureMessage, { frames: number }>;
export type Done = Extract<CaptureMessage, { done: true }>;

export class CaptureProcess implements Disposable {
  readonly #child: ChildProcess;
  #onMessage: (message: CaptureMessage) => void = () => undefined;
  #fail: (error: unknown) => void = () => undefined;

  private constructor(descriptor: number) {
    // Columns of numbers cross the channel as they are.
    this.#child = fork(ENTRY, [], {
      stdio: ["ignore", "ignore", "inherit", "ipc", descriptor],
      serialization: "advanced",
      execArgv: ["--expose-gc", "--max-old-space-size=64", "--max-semi-space-size=4"],
    });
    this.#child.on("message", (message: CaptureMessage | { error: SerializedError }) => {
      if ("error" in message) this.#fail(deserializeError(message.error));
      else this.#onMessage(message);
    });
    this.#child.once("error", (cause) => this.#fail(died(cause.message, cause)));
    this.#child.once("exit", (code, signal) => this.#fail(died(`it ended with ${code ?? signal}`)));
  }

  /**
   * Starts it, and waits until it has loaded its code.
   *
   * @throws HIB_WORKER_DIED
   */
  static async start(plan: CapturePlan): Promise<CaptureProcess> {
    const capture = new CaptureProcess(plan.descriptor);
    try {
      await capture.#ask({ ...plan, descriptor: DESCRIPTOR }, (message, resolve) => "ready" in message && resolve(message));
      return capture;
    } catch (error) {
      capture[Symbol.dispose]();
      throw error;
    }
  }

  /**
   * Has it write the first `count` frames of the machine's list.
   *
   * @throws HIB_WORKER_DIED, HIB_NO_SPACE, HIB_IO
   */
  async write(count: number, onWritten: (written: Written) => void): Promise<Done> {
    return this.#ask<Done>({ count }, (message, resolve) => {
      if ("result" in message) onWritten(message);
      else if ("done" in message) resolve(message);
    });
  }

  /** Ends it, whatever it is at; it is not told that nobody wants its answer. */
  [Symbol.dispose](): void {
    this.#fail = () => undefined;
    this.#child.kill("SIGKILL");
  }

  #ask<T>(message: object, onMessage: (message: CaptureMessage, resolve: (value: T) => void) => unknown): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      this.#fail = reject;
      this.#onMessage = (answer) => void onMessage(answer, resolve as (value: unknown) => void);
      this.#child.send(message, (error) => error !== null && reject(died(error.message, error)));
    });
  }
}

function died(why: string, cause?: unknown): HibernaculumError {
  return new HibernaculumError("HIB_WORKER_DIED", `the capture process died: ${why}`, { cause });
}
