/** The report of a resume. Data with definitions; units are in the names. And its steps, as they are told while it runs. */
import { FRAME_BYTES } from "../base/layout.js";
import type { ImageHeader } from "../image/format.js";
import type { OwnMemory } from "../restore/own-memory.js";
import type { LoadResult } from "../restore/page-loader.js";

/** In this order: what is checked (S2.1), then what is loaded, then what is restored (S2.2). */
export const RESUME_STEPS = [
  "image",
  "magic",
  "format version",
  "header checksum",
  "machine version",
  "complete",
  "catalogue checksum",
  "key",
  "counts",
  "RAM size",
  "not used before",
  "files of the host",
  "attempt",
  "frames",
  "chunk checksums",
  "consistency",
  "consumed",
  "kernel heap",
  "process structures",
  "memory",
  "file descriptors",
  "signal handlers",
  "registers",
  "runnable",
  "scheduler",
] as const;
export type ResumeStepName = (typeof RESUME_STEPS)[number];

/** A step that is done, and what was found in it; or the one that failed, and why. */
export type ResumeStep = { name: ResumeStepName; found: string } | { name: ResumeStepName; error: unknown };

/** Tells of steps as they pass. What fails is the step after the last that passed. */
export class ResumeSteps {
  readonly #onStep: (step: ResumeStep) => void;
  #next = 0;

  /** @param onStep - must not throw */
  constructor(onStep: (step: ResumeStep) => void = () => undefined) {
    this.#onStep = onStep;
  }

  passed(name: ResumeStepName, found: string): void {
    this.#next = RESUME_STEPS.indexOf(name) + 1;
    this.#onStep({ name, found });
  }

  failed(error: unknown): void {
    this.#onStep({ name: RESUME_STEPS[Math.min(this.#next, RESUME_STEPS.length - 1)]!, error });
  }
}

export interface ResumeReport {
  schema: 1;
  image: { path: string; id: string; time: string };
  frames: {
    /** In the image. */
    image: number;
    /** Free here, used there: loaded directly (S1.6). */
    direct: number;
    /** Used here, equal, and not written since: nothing to do (S1.7). */
    equal: number;
    /** Used here, found equal, written afterwards: the unmodified version is copied back (S1.7). */
    equal_written: number;
    /** Used here, different: patched by the atomic restore (S1.7). */
    different: number;
    /** Without data in the image. */
    same_filled: number;
    /** Of a lazy resume: not there yet when the machine went on. None of the others counts them. */
    later: number;
    /** Patched while everything was stopped. */
    patched: number;
    /** Of these, found no room in the reserve and were read once more. */
    overflow: number;
  };
  pause: { safepoint_ms: number; examine_ms: number; consume_ms: number; patch_ms: number; rebuild_ms: number; total_ms: number };
  /** What the resume needed for itself, bytes (S3.5). */
  own_bytes: OwnMemory;
  loaders: { threads: number; read_bytes: number; read_wait_ms: number; decode_ms: number; place_ms: number };
  phases_ms: { open: number; classify: number; load: number; stop: number; total: number };
  /** Of what was loaded before the machine went on. */
  gb_per_s: number;
  /** Of a lazy resume, once every frame is there; until then, and of any other, null. */
  resident: ResidentReport | null;
}

/** The rest of a lazy resume. */
export interface ResidentReport {
  /** From when the resume began until every frame was there. */
  resident_ms: number;
  /** Brought in by loaders; the others were met missing, or freed before. */
  loaded_frames: number;
  /** Read by loaders, decoded. */
  read_bytes: number;
  /** Frames that were met missing, and how long the thread that met one waited. */
  faults: { count: number; p50_ms: number; p99_ms: number };
}

/** What a resume notes the time of, in this order; `stopping` is when the stop was asked for. */
export const RESUME_TIMES = [
  "began",
  "opened",
  "classified",
  "loaded",
  "stopping",
  "stopped",
  "examined",
  "consumed",
  "patched",
  "rebuilt",
  "running",
] as const;
export type ResumeTime = (typeof RESUME_TIMES)[number];

/** What is measured of a resume, for `makeResumeReport`. */
export interface ResumeMeasured {
  results: readonly LoadResult[];
  patched: number;
  overflow: number;
  /** Pre-images that the fault handler kept. */
  preimages: number;
  /** Left out for later. */
  later: number;
  own: OwnMemory;
  at: Readonly<Record<ResumeTime, number>>;
}

export function makeResumeReport(path: string, header: ImageHeader, measured: ResumeMeasured): ResumeReport {
  const { results, patched, overflow, preimages, later, own, at } = measured;
  const sum = (pick: (result: LoadResult) => number) => results.reduce((all, result) => all + pick(result), 0);
  return {
    schema: 1,
    image: { path, id: header.id, time: new Date(header.time).toISOString() },
    frames: {
      image: header.frames,
      direct: sum((result) => result.direct),
      equal: sum((result) => result.equal) - preimages,
      equal_written: preimages + sum((result) => result.equal_marked),
      different: sum((result) => result.different),
      same_filled: sum((result) => result.same_filled),
      later,
      patched,
      overflow,
    },
    pause: {
      safepoint_ms: at.stopped - at.stopping,
      examine_ms: at.examined - at.stopped,
      consume_ms: at.consumed - at.examined,
      patch_ms: at.patched - at.consumed,
      rebuild_ms: at.rebuilt - at.patched,
      total_ms: at.rebuilt - at.stopping,
    },
    own_bytes: own,
    loaders: {
      threads: results.length,
      read_bytes: sum((result) => result.read_bytes),
      read_wait_ms: sum((result) => result.read_wait_ms),
      decode_ms: sum((result) => result.decode_ms),
      place_ms: sum((result) => result.place_ms),
    },
    phases_ms: {
      open: at.opened - at.began,
      classify: at.classified - at.opened,
      load: at.loaded - at.classified,
      stop: at.running - at.loaded,
      total: at.running - at.began,
    },
    gb_per_s: ((header.frames - later) * FRAME_BYTES) / (at.running - at.began) / 1e6,
    resident: null,
  };
}
