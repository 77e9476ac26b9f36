/** What a save can be told, and what it says when it is given up. */
import {
  abortSignal,
  callback,
  checkArguments,
  checkCall,
  flag,
  moreThanZero,
  oneOf,
  type Rule,
  text,
  zeroOrMore,
} from "./base/options.js";
import { HibernaculumError } from "./base/errors.js";
import { type Key, keyList } from "./base/key.js";
import { machineRule } from "./machine-options.js";
import type { CancelMessages } from "./cow/cancellation.js";
import { APPROACH_NAMES, type ApproachName, DEFAULT_APPROACH } from "./reports/approaches.js";
import type { SaveProgress } from "./reports/save-progress.js";

export interface SaveOptions {
  /** Snapshot: the machine goes on after the stop. Otherwise it is powered off once the image is published. */
  keepRunning?: boolean;
  /** How memory is got into the image: see src/approaches. Default write-fault. */
  approach?: ApproachName;
  /** Default lz4. */
  compression?: "lz4" | "none";
  /** Name of the machine, for its image. */
  name?: string;
  /** Also a SHA-256 of each chunk and of the catalogue, for signing images or comparing their chunks; default none. */
  digest?: "none" | "sha256";
  /**
   * Path of an image in the same directory: the new one has only what changed since, and needs it. It must be the last that was made
   * of this machine, by a snapshot; or the one that it was resumed from.
   */
  base?: string;
  /** Encrypts the image: each of these keys opens it. */
  keys?: readonly Key[];
  /** Cancels: the machine goes on, nothing is left behind. */
  signal?: AbortSignal;
  /**
   * Is told how far the save is, between its steps, and may ask the machine for anything. If it throws, or gives a promise that
   * rejects, the save ends with HIB_CANCELLED and that as its `cause`; once the image is being published, with a warning of the
   * process instead.
   */
  onProgress?: (progress: SaveProgress) => void;
  /** Also store pages of files that are as the host has them; else the image refers to the file (S0.3). */
  saveClean?: boolean;
  /**
   * Budget of the atomic copy, ms: each stands for 1,000 frames, and nothing is timed. Infinity: all that finds a place. Default:
   * 2 in a hibernation, where the rest is written from where it is; 0 in a snapshot, where the rest is protected again and saved
   * by a copy-before-write tail.
   */
  pauseTarget_ms?: number;
  /** Of `adaptive`: how long the machine may be stopped, ms. Default 10. */
  maxPause_ms?: number;
  /** Of `adaptive`: while rounds do not pay, processes that write are made slower. */
  throttle?: boolean;
  /** Places that the reserve may have, for tests of one that is too small. */
  reserveFrames?: number;
  /** Test runs: check every unmarked frame at the stop. */
  oracle?: boolean;
}

const RULES: Readonly<Record<keyof SaveOptions, Rule>> = {
  keepRunning: flag,
  approach: oneOf(...APPROACH_NAMES),
  compression: oneOf("lz4", "none"),
  name: text,
  base: text,
  digest: oneOf("none", "sha256"),
  keys: keyList,
  signal: abortSignal,
  onProgress: callback,
  saveClean: flag,
  pauseTarget_ms: zeroOrMore,
  maxPause_ms: moreThanZero,
  throttle: flag,
  reserveFrames: zeroOrMore,
  oracle: flag,
};

/** @throws HIB_USAGE */
export function checkSave(machine: unknown, path: string, options: SaveOptions): void {
  checkArguments("save", { "the machine": [machine, machineRule] });
  checkCall("save", path, options, RULES);
  const { approach = DEFAULT_APPROACH } = options;
  for (const [name, its] of Object.entries(OF_ONE_APPROACH))
    if (options[name as keyof SaveOptions] !== undefined && approach !== its)
      throw new HibernaculumError("HIB_USAGE", `save: ${name} is an option of the approach ${its}, and this is ${approach}`);
}

const OF_ONE_APPROACH: Partial<Record<keyof SaveOptions, ApproachName>> = {
  pauseTarget_ms: "write-fault",
  maxPause_ms: "adaptive",
  throttle: "adaptive",
};

/** Options with every default in place. */
export type SaveSettings = SaveOptions &
  Required<Pick<SaveOptions, "keepRunning" | "approach" | "compression" | "digest" | "pauseTarget_ms" | "maxPause_ms">>;

export function withDefaults(options: SaveOptions): SaveSettings {
  const { keepRunning = false, approach = DEFAULT_APPROACH, compression = "lz4", digest = "none" } = options;
  const { pauseTarget_ms = keepRunning ? 0 : 2, maxPause_ms = 10 } = options;
  return { ...options, keepRunning, approach, compression, digest, pauseTarget_ms, maxPause_ms };
}

/** Frames that a millisecond of `pauseTarget_ms` stands for: a core copies more. */
export const COPY_FRAMES_PER_MS = 1000;

export const CANCEL_MESSAGES: CancelMessages = {
  cancelled: "the save was cancelled; the machine goes on and nothing was left behind",
  noRoom: "the save was given up: a store had to wait too long for room in the reserve; free some of the guest's memory",
  noMemory:
    "the save was given up: a process needed the memory that was reserved for the copies; free some of the guest's memory",
};
