/**
 * The pool of page writers and page loaders: Piscina threads that are handed the machine's memory once, when they
 * start. A task runs as long as there is work to claim, so that a task's own cost does not matter.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { Piscina } from "piscina";
import { HibernaculumError } from "../base/errors.js";
import { deserializeError, type SerializedError } from "../base/errors.js";
import type { SharedMemory } from "../base/wasm.js";

/** Threads hold next to nothing on V8's heap; left to itself it would take 48 MiB of young generation in each. */
export const WORKER_LIMITS = { maxYoungGenerationSizeMb: 4 } as const;

/** What a thread of the pool answers: errors lose their code on the way if they are thrown. */
export type Answer<T> = { ok: true; value: T } | { ok: false; error: SerializedError };

const ROLES = { write: "page writer", load: "page loader", fill: "page loader", catalogue: "writer of the catalogue" } as const;

/** A thread that has not loaded its code after so long never will. */
const LOADED_MS = 5000;

export class PagePool {
  readonly #piscina: Piscina;
  /** Each of the first threads has loaded its code, or has ended. */
  readonly #loaded: Promise<unknown>;

  /**
   * @param threads - are started now
   * @param onError - is told of a thread that ended while it had nothing to do, or before it had loaded its code
   */
  constructor(memory: SharedMemory, threads: number, onError: (error: unknown) => void) {
    this.#piscina = new Piscina({
      filename: new URL("../../workers/page-pool.js", import.meta.url).href,
      workerData: { memory },
      minThreads: threads,
      maxThreads: threads,
      resourceLimits: WORKER_LIMITS,
      concurrentTasksPerWorker: 1,
      // Tasks are asynchronous and long; the synchronous mode would keep compressed buffers from being freed.
      atomics: "disabled",
    });
    this.#piscina.on("error", onError);
    this.#loaded = Promise.all(
      this.#piscina.threads.map(
        (thread) =>
          new Promise<void>((resolve) => {
            for (const event of ["message", "error", "exit"]) thread.once(event, () => resolve()); // its first: ready
          }),
      ),
    );
  }

  /**
   * Runs a task on `threads` of the threads and returns their results; all have ended when it returns or throws.
   *
   * @throws the first error; HIB_WORKER_DIED if a thread ended without an answer
   */
  async runOn<Task, Result>(
    threads: number,
    name: keyof typeof ROLES,
    task: (thread: number) => Task,
    onError: () => void,
  ): Promise<Result[]> {
    const outcomes = await Promise.allSettled(
      Array.from({ length: threads }, async (_, thread) => {
        try {
          const answer: Answer<Result> = await this.#piscina.run(task(thread), { name });
          if (!answer.ok) throw deserializeError(answer.error);
          return answer.value;
        } catch (error) {
          onError();
          if (error instanceof HibernaculumError) throw error;
          const text = error instanceof Error ? error.message : String(error);
          throw new HibernaculumError("HIB_WORKER_DIED", `a ${ROLES[name]} died: ${text}`, { cause: error });
        }
      }),
    );
    const failed = outcomes.find((outcome) => outcome.status === "rejected");
    if (failed !== undefined) throw failed.reason;
    return outcomes.map((outcome) => (outcome as PromiseFulfilledResult<Result>).value);
  }

  async destroy(): Promise<void> {
    // Node 20 aborts the whole process if a thread is terminated while it links its modules. The timer also keeps the process
    // until then: the threads, being idle, would not.
    const late = new AbortController();
    await Promise.race([this.#loaded, sleep(LOADED_MS, undefined, { signal: late.signal })]);
    late.abort();
    await this.#piscina.destroy();
  }
}
