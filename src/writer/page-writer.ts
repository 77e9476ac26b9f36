/**
 * A page writer: one task of the pool, in a thread of its own. It claims frames from the list, copies them into staging
 * memory, compresses and hashes them there, a chunk at a time, and writes several chunks at once; that write overlaps
 * with the work on the next chunks.
 *
 * What must hold:
 * - Compression, checksum and write see only the private copy: RAM may change at any time, and an LZ4 match into bytes
 *   that changed after they were emitted decodes wrongly without an error.
 * - A frame that is marked already is not read: its bytes would be superseded anyway.
 */
import type { KeyObject } from "node:crypto";
import { Control, hostNow } from "../base/control.js";
import { failpoint } from "../base/failpoints.js";
import {
  CANCEL_ASKED,
  FRAME_BYTES,
  LIST_FRAMES,
  MACHINE_BLOB_CURSOR,
  MACHINE_CANCEL,
  MACHINE_CHUNK_CURSOR,
  MACHINE_CURSOR,
  MACHINE_LIST_LENGTH,
  MACHINE_PROGRESS,
  MACHINE_QUEUE_OVERFLOW,
  MACHINE_STORED,
  MAX_VCPUS,
  POOL_BASE,
  QUEUE_FRAMES,
  VERDICT_SAME_FILLED,
  STAGE_LIVE,
  STAGE_QUEUED,
  STAGE_TAIL,
  VERDICT_STAGED,
} from "../base/layout.js";
import type { SharedMemory } from "../base/wasm.js";
import { BlobWriter } from "../image/blob.js";
import { checksum, loadChecksum } from "../image/checksum.js";
import { COLLECT_CHUNKS, compressChunk, digestOf, hashPieces, sealChunk } from "../image/codec.js";
import { type Chunk, CHUNK_BYTES, CHUNK_FRAMES, CODEC_LZ4, CODEC_RAW, padded } from "../image/format.js";
import type { Core } from "../vm/memory/core.js";

/** List entries claimed at once; fewer when a chunk has room for fewer, and none when it has hardly any. */
const CLAIM = 64;
const CLAIM_LEAST = 16;
/** Outputs: chunks as they are stored, written at once when there is no room for one more. One is filled, one is written. */
const OUTPUTS = 2;
const OUTPUT_BYTES = 2 * CHUNK_BYTES;
/** After them: a chunk's frames to be compressed, what `stage` says of each claimed frame, and a frame of the oracle's. */
const PLAIN_AT = OUTPUTS * OUTPUT_BYTES;
const VERDICTS_AT = PLAIN_AT + CHUNK_BYTES;
const ORACLE_AT = VERDICTS_AT + FRAME_BYTES;

/** Staging memory of a page writer, from the start of the pool. */
export const WRITER_BYTES: number = ORACLE_AT + FRAME_BYTES;

export type StageSource = "live" | "tail" | "queue";
const STAGE_MODES: Record<StageSource, number> = { live: STAGE_LIVE, tail: STAGE_TAIL, queue: STAGE_QUEUED };

export interface WriteTask {
  blob: string;
  /** Which staging memory is this task's: 0 to PAGE_THREADS_MAX - 1. */
  writer: number;
  /** Where listed frames' bytes are, and what a mark means: see `stage` in assembly/frames.ts. */
  source: StageSource;
  compress: boolean;
  /** Of each chunk, beside its checksum. */
  digest: "none" | "sha256";
  /** Encrypts chunks. */
  key?: KeyObject | undefined;
  /** Test runs: hashes of all frames staged, by frame (53 bits), for the oracle. */
  oracle?: SharedArrayBuffer | undefined;
}

/** What a task wrote. Chunk columns have an entry a chunk; `chunkFrames` has the frames of all chunks one after another. */
export interface WriteResult {
  id: Int32Array;
  offset: Float64Array;
  payload: Int32Array;
  frames: Int32Array;
  codec: Uint8Array;
  hash: BigUint64Array;
  /** As `pieces` and `digest` of a chunk. */
  pieces: Uint8Array[];
  digest: (Uint8Array | null)[];
  chunkFrames: Int32Array;
  /** Same-filled frames, and the word that fills each. */
  filledFrames: Int32Array;
  fills: BigUint64Array;
  totals: WriteTotals;
}

/** What a report needs of a task. */
export interface WriteTotals {
  /** Frames written, same-filled ones included, and frames that were not read because they bore a mark. */
  written: number;
  skipped: number;
  /** Time in each stage, ms; writes overlap with them. */
  stage_ms: number;
  compress_ms: number;
  /** Checksums, or encryption. */
  hash_ms: number;
  /** Time spent waiting until staging memory was written and could be used again. */
  write_wait_ms: number;
}

/** After a store had to wait for room, so many chunks are not compressed. */
const HURRIED_CHUNKS = 16;

type StoredChunk = Omit<Chunk, "stored">;

/** A vector of numbers that grows. */
class Column {
  data = new Int32Array(4096);
  length = 0;

  push(value: number): void {
    if (this.length === this.data.length) {
      const larger = new Int32Array(this.length * 2);
      larger.set(this.data);
      this.data = larger;
    }
    this.data[this.length++] = value;
  }
}

/**
 * Runs one task to the end of the list.
 *
 * @param collect - has the runtime free what this thread holds outside its heap and does not use any more
 */
export async function writePages(memory: SharedMemory, core: Core, task: WriteTask, collect: () => void): Promise<WriteResult> {
  await loadChecksum();
  const blob = await BlobWriter.open(task.blob);
  const writer = new PageWriter(memory, core, task, blob, collect);
  try {
    return await writer.run();
  } catch (error) {
    // A store that waits for room must not wait for this thread any more, whatever the coordinator is doing.
    new Control(memory).store(MACHINE_CANCEL, CANCEL_ASKED);
    throw error;
  } finally {
    await writer.settle();
    await blob.close();
  }
}

class PageWriter {
  readonly #control: Control;
  readonly #bytes: Uint8Array;
  readonly #core: Core;
  readonly #task: WriteTask;
  readonly #blob: BlobWriter;
  readonly #collect: () => void;
  readonly #base: number;
  readonly #oracle: Float64Array | undefined;
  readonly #writes: (Promise<void> | undefined)[] = [];
  readonly #chunks: StoredChunk[] = [];
  readonly #chunkFrames = new Column();
  readonly #filledFrames = new Column();
  readonly #fills: bigint[] = [];
  readonly #time = { stage_ms: 0, compress_ms: 0, hash_ms: 0, write_wait_ms: 0 };
  #skipped = 0;
  /** Claims of the queue that had been refused when a chunk was begun, and how many chunks more are not compressed. */
  #refused = 0;
  #hurried = 0;

  constructor(memory: SharedMemory, core: Core, task: WriteTask, blob: BlobWriter, collect: () => void) {
    this.#control = new Control(memory);
    this.#bytes = new Uint8Array(memory.buffer, 0, this.#control.words.byteLength); // ends where RAM begins
    this.#core = core;
    this.#task = task;
    this.#blob = blob;
    this.#collect = collect;
    this.#base = POOL_BASE + task.writer * WRITER_BYTES;
    this.#oracle = task.oracle === undefined ? undefined : new Float64Array(task.oracle);
  }

  async run(): Promise<WriteResult> {
    let chunks = 0;
    let more = true;
    for (let output = 0; more; output = (output + 1) % OUTPUTS) {
      await this.#free(output);
      const batch: StoredChunk[] = [];
      const from = this.#base + output * OUTPUT_BYTES;
      let to = from;
      while (more && to + CHUNK_BYTES <= from + OUTPUT_BYTES) {
        const began = this.#chunkFrames.length;
        const compress = this.#compressNext();
        const plain = compress ? this.#base + PLAIN_AT : to;
        more = this.#fill(plain);
        const frames = this.#chunkFrames.length - began;
        if (frames > 0) {
          const chunk = this.#encode(plain, to, frames);
          batch.push(chunk);
          to += padded(chunk.payload);
        }
        if ((compress || this.#task.key !== undefined) && ++chunks % COLLECT_CHUNKS === 0) {
          this.#collect();
          await new Promise(setImmediate); // finalizers run on a turn of the event loop
        }
      }
      if (batch.length === 0) continue;
      this.#chunks.push(...batch); // in the order of #chunkFrames, whichever is on the disk first
      const write = this.#write(batch, from, to);
      this.#writes[output] = write;
      write.catch(() => undefined); // looked at when the output is used again
    }
    for (let i = 0; i < OUTPUTS; i++) await this.#free(i);
    return this.#result();
  }

  /** Waits for writes in flight without looking at their outcome. */
  async settle(): Promise<void> {
    await Promise.allSettled(this.#writes);
  }

  async #free(output: number): Promise<void> {
    const began = hostNow();
    await this.#writes[output];
    this.#writes[output] = undefined;
    this.#time.write_wait_ms += hostNow() - began;
  }

  /** A store that waits for room waits for this task: then storing is faster than compressing, until none has waited for a while. */
  #compressNext(): boolean {
    if (this.#task.source !== "tail") return this.#task.compress;
    const refused = this.#control.load(MACHINE_QUEUE_OVERFLOW);
    this.#hurried = refused !== this.#refused ? HURRIED_CHUNKS : Math.max(0, this.#hurried - 1);
    this.#refused = refused;
    return this.#task.compress && this.#hurried === 0;
  }

  /** Stages claims at an address until a chunk is full or the list ends; false at the end. */
  #fill(to: number): boolean {
    const began = hostNow();
    const verdicts = this.#base + VERDICTS_AT;
    const fills = verdicts + CLAIM;
    const { words } = this.#control;
    const frames = (this.#task.source === "queue" ? QUEUE_FRAMES : LIST_FRAMES) >>> 2;
    const length = this.#control.load(MACHINE_LIST_LENGTH);
    let staged = 0;
    let more = true;
    failpoint("save.stream");
    while (staged < CHUNK_FRAMES - CLAIM_LEAST) {
      staged += this.#fillWanted(to + staged * FRAME_BYTES, verdicts, fills);
      staged += this.#fillPreimages(to + staged * FRAME_BYTES, CHUNK_FRAMES - CLAIM_LEAST - staged, verdicts, fills);
      if (staged >= CHUNK_FRAMES - CLAIM_LEAST) break;
      const claim = Math.min(CLAIM, CHUNK_FRAMES - staged);
      const first = this.#control.add(MACHINE_CURSOR, claim);
      if (first >= length || this.#control.load(MACHINE_CANCEL) !== 0) {
        more = false;
        break;
      }
      const count = Math.min(claim, length - first);
      const at = to + staged * FRAME_BYTES;
      const n = this.#core.stage(first, count, STAGE_MODES[this.#task.source], at, verdicts, fills);
      for (let i = 0; i < count; i++) this.#record(words[frames + first + i]!, verdicts + i, fills + i * 8);
      if (this.#oracle !== undefined) this.#hashFrames(this.#chunkFrames.length - n, n, at);
      staged += n;
      this.#control.add(MACHINE_PROGRESS, count);
    }
    this.#time.stage_ms += hostNow() - began;
    return more;
  }

  /** Stages what stores wait for; returns how many frames that were. */
  #fillWanted(to: number, verdicts: number, fills: number): number {
    if (this.#task.source !== "tail" || this.#control.load(MACHINE_QUEUE_OVERFLOW) === 0) return 0;
    let staged = 0;
    for (let vcpu = 0; vcpu < MAX_VCPUS; vcpu++) {
      const frame = this.#core.stageWanted(vcpu, to + staged * FRAME_BYTES, verdicts, fills);
      if (frame >= 0 && this.#record(frame, verdicts, fills)) staged++;
    }
    return staged;
  }

  /** Stages pre-images whose places are used again, at most as many as are claimed of the list; returns how many frames that were. */
  #fillPreimages(to: number, room: number, verdicts: number, fills: number): number {
    if (this.#task.source !== "tail") return 0;
    let staged = 0;
    for (let i = 0; i < CLAIM && staged < room; i++) {
      const frame = this.#core.stagePreimage(to + staged * FRAME_BYTES, verdicts, fills);
      if (frame < 0) break;
      if (this.#record(frame, verdicts, fills)) staged++;
    }
    return staged;
  }

  /** Notes what became of a frame; true if its bytes were staged. */
  #record(frame: number, verdictAt: number, fillAt: number): boolean {
    const verdict = this.#bytes[verdictAt];
    if (verdict === VERDICT_STAGED) {
      this.#chunkFrames.push(frame);
      return true;
    }
    if (verdict === VERDICT_SAME_FILLED) {
      const { words } = this.#control;
      this.#filledFrames.push(frame);
      const low = words[fillAt >>> 2]! >>> 0;
      const high = words[(fillAt >>> 2) + 1]! >>> 0;
      this.#fills.push(low === 0 && high === 0 ? 0n : (BigInt(high) << 32n) | BigInt(low));
      if (this.#oracle !== undefined) this.#oracle[frame] = sameFilledHash(this.#core, this.#base + ORACLE_AT, low, high, words);
    } else this.#skipped++;
    return false;
  }

  #hashFrames(from: number, count: number, at: number): void {
    for (let i = 0; i < count; i++) {
      this.#oracle![this.#chunkFrames.data[from + i]!] = this.#core.hashFrame(at + i * FRAME_BYTES);
    }
  }

  /** Puts staged frames where they are to be written, compressed if that pays. */
  #encode(plainAt: number, to: number, frames: number): StoredChunk {
    const plain = this.#bytes.subarray(plainAt, plainAt + frames * FRAME_BYTES);
    const chunk: StoredChunk = {
      id: 0,
      offset: 0,
      payload: plain.length,
      frames,
      codec: CODEC_RAW,
      hash: 0n,
      pieces: new Uint8Array(),
      digest: null,
    };
    if (plainAt !== to) {
      const began = hostNow();
      const packed = compressChunk(plain);
      this.#time.compress_ms += hostNow() - began;
      this.#bytes.set(packed ?? plain, to);
      if (packed !== undefined) {
        chunk.codec = CODEC_LZ4;
        chunk.payload = packed.length;
        this.#bytes.fill(0, to + packed.length, to + padded(packed.length));
      }
    }
    return chunk;
  }

  /** Encrypts a chunk where it lies, now that it has its id, or takes its checksums. */
  #seal(chunk: StoredChunk, at: number): void {
    const began = hostNow();
    const stored = this.#bytes.subarray(at, at + padded(chunk.payload));
    const { digest, key } = this.#task;
    chunk.pieces =
      key === undefined
        ? hashPieces(stored.length, (from, length) => BigInt.asUintN(64, this.#core.checksum(at + from, length)))
        : sealChunk(key, chunk.id, stored);
    chunk.hash = checksum(chunk.pieces);
    if (digest === "sha256") chunk.digest = digestOf(stored);
    this.#time.hash_ms += hostNow() - began;
  }

  /** Writes chunks that lie one after another, and fills in where they went. */
  async #write(chunks: StoredChunk[], from: number, to: number): Promise<void> {
    const blocks = (to - from) / FRAME_BYTES;
    const start = this.#control.add(MACHINE_BLOB_CURSOR, blocks) * FRAME_BYTES;
    const firstId = this.#control.add(MACHINE_CHUNK_CURSOR, chunks.length);
    let offset = start;
    chunks.forEach((chunk, i) => {
      chunk.id = firstId + i;
      chunk.offset = offset;
      this.#seal(chunk, from + offset - start);
      offset += padded(chunk.payload);
    });
    await this.#blob.write(this.#bytes.subarray(from, to), start);
    this.#control.add(MACHINE_STORED, blocks);
  }

  #result(): WriteResult {
    const chunks = this.#chunks;
    return {
      id: Int32Array.from(chunks, (chunk) => chunk.id),
      offset: Float64Array.from(chunks, (chunk) => chunk.offset),
      payload: Int32Array.from(chunks, (chunk) => chunk.payload),
      frames: Int32Array.from(chunks, (chunk) => chunk.frames),
      codec: Uint8Array.from(chunks, (chunk) => chunk.codec),
      hash: BigUint64Array.from(chunks, (chunk) => chunk.hash),
      pieces: chunks.map((chunk) => chunk.pieces),
      digest: chunks.map((chunk) => chunk.digest),
      chunkFrames: this.#chunkFrames.data.slice(0, this.#chunkFrames.length),
      filledFrames: this.#filledFrames.data.slice(0, this.#filledFrames.length),
      fills: BigUint64Array.from(this.#fills),
      totals: { written: this.#chunkFrames.length + this.#filledFrames.length, skipped: this.#skipped, ...this.#time },
    };
  }
}

/** The oracle's hash of a same-filled frame, taken from the word that was recorded and not from RAM. */
function sameFilledHash(core: Core, at: number, low: number, high: number, words: Int32Array): number {
  for (let i = 0; i < FRAME_BYTES / 4; i += 2) {
    words[(at >>> 2) + i] = low;
    words[(at >>> 2) + i + 1] = high;
  }
  return core.hashFrame(at);
}
