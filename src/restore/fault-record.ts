/** What the threads of a lazy resume tell of the frames that they met missing, in memory that they share. */
import { deserializeError, type HibernaculumError, serializeError } from "../base/errors.js";

/** Faults of which it is kept how long they took. */
const LATENCIES = 65_536;
const FAILURE_BYTES = 16_384;

const FAULTS = 0;
/** Not 0: somebody writes the failure; its length in bytes, once it is written. */
const FAILING = 1;
const FAILURE = 2;

export class FaultRecord {
  readonly shared: SharedArrayBuffer;
  readonly #words: Int32Array;
  readonly #latencies: Float32Array;
  readonly #failure: Uint8Array;

  constructor(shared: SharedArrayBuffer = new SharedArrayBuffer(16 + FAILURE_BYTES + 4 * LATENCIES)) {
    this.shared = shared;
    this.#words = new Int32Array(shared, 0, 4);
    this.#failure = new Uint8Array(shared, 16, FAILURE_BYTES);
    this.#latencies = new Float32Array(shared, 16 + FAILURE_BYTES, LATENCIES);
  }

  fault(ms: number): void {
    const fault = Atomics.add(this.#words, FAULTS, 1);
    if (fault < LATENCIES) this.#latencies[fault] = ms;
  }

  /** Why frames cannot be brought in any more. The first failure counts. */
  fail(error: unknown): void {
    if (Atomics.compareExchange(this.#words, FAILING, 0, 1) !== 0) return;
    const { code, message } = serializeError(error);
    const text = Buffer.from(JSON.stringify({ code, message: message.slice(0, FAILURE_BYTES / 8) }));
    this.#failure.set(text);
    Atomics.store(this.#words, FAILURE, text.length);
  }

  get failure(): HibernaculumError | undefined {
    const length = Atomics.load(this.#words, FAILURE);
    if (length === 0) return undefined;
    return deserializeError(JSON.parse(Buffer.from(this.#failure.slice(0, length)).toString()));
  }

  /** How many faults there were, and how long half of them, and 99 of 100, took at most. */
  faults(): { count: number; p50_ms: number; p99_ms: number } {
    const count = Atomics.load(this.#words, FAULTS);
    const sorted = this.#latencies.slice(0, Math.min(count, LATENCIES)).sort();
    const quantile = (q: number): number => sorted[Math.ceil(q * sorted.length) - 1] ?? 0;
    return { count, p50_ms: quantile(0.5), p99_ms: quantile(0.99) };
  }
}
