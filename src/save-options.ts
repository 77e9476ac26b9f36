/** What a save can be told, and what it says when it is given up. */
import { abortSignal, callback, checkArguments, checkCall, flag, oneOf, type Rule, text, zeroOrMore } from "./base/options.js";
import { machineRule } from "./machine-options.js";
import type { CancelMessages } from "./cow/cancellation.js";
import type { SaveProgress } from "./reports/save-progress.js";

export interface SaveOptions {
  /** Snapshot: the machine goes on after the stop. Otherwise it is powered off once the image is published. */
  keepRunning?: boolean;
  /** Default lz4. */
  compression?: "lz4" | "none";
  /** Name of the machine, for its image. */
  name?: string;
  /** Also a SHA-256 of each chunk and of the catalogue, for signing images or comparing their chunks; default none. */
  digest?: "none" | "sha256";
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
  /** Places that the reserve may have, for tests of one that is too small. */
  reserveFrames?: number;
  /** Test runs: check every unmarked frame at the stop. */
  oracle?: boolean;
}

const RULES: Readonly<Record<keyof SaveOptions, Rule>> = {
  keepRunning: flag,
  compression: oneOf("lz4", "none"),
  name: text,
  digest: oneOf("none", "sha256"),
  signal: abortSignal,
  onProgress: callback,
  saveClean: flag,
  pauseTarget_ms: zeroOrMore,
  reserveFrames: zeroOrMore,
  oracle: flag,
};

/** @throws HIB_USAGE */
export function checkSave(machine: unknown, path: string, options: SaveOptions): void {
  checkArguments("save", { "the machine": [machine, machineRule] });
  checkCall("save", path, options, RULES);
}

/** Options with every default in place. */
export type SaveSettings = SaveOptions & Required<Pick<SaveOptions, "keepRunning" | "compression" | "digest" | "pauseTarget_ms">>;

export function withDefaults(options: SaveOptions): SaveSettings {
  const { keepRunning = false, compression = "lz4", digest = "none", pauseTarget_ms = keepRunning ? 0 : 2 } = options;
  return { ...options, keepRunning, compression, digest, pauseTarget_ms };
}

/** Frames that a millisecond of `pauseTarget_ms` stands for: a core copies more. */
export const COPY_FRAMES_PER_MS = 1000;

export const CANCEL_MESSAGES: CancelMessages = {
  cancelled: "the save was cancelled; the machine goes on and nothing was left behind",
  noRoom: "the save was given up: a store had to wait too long for room in the reserve; free some of the guest's memory",
  noMemory:
    "the save was given up: a process needed the memory that was reserved for the copies; free some of the guest's memory",
};
