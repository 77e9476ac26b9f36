/** What a resume can be told, and what it says when it is given up. */
import { type Keys, keysToOpen } from "./base/key.js";
import {
  abortSignal,
  callback,
  checkArguments,
  checkCall,
  flag,
  path as pathRule,
  paths,
  type Rule,
  zeroOrMore,
} from "./base/options.js";
import { machineRule } from "./machine-options.js";
import type { CancelMessages } from "./cow/cancellation.js";
import type { ResumeStep } from "./reports/resume-report.js";

export interface ResumeProgress {
  /** Frames of the image that are loaded, and all of them. */
  done: number;
  total: number;
  elapsed_ms: number;
}

export interface ResumeOptions {
  /**
   * Resume an image that was resumed before (two machines with one history corrupt what they share), or one that lies where
   * nothing can be noted: then nobody can tell how often it was resumed, or that a resume of it died.
   */
  again?: boolean;
  /**
   * Resume although files of the host that the machine has open are not what they were. Those that are keep their checks: what
   * the image takes from them must agree.
   */
  acceptChangedFiles?: boolean;
  /** The file that is the machine's disk now, if it is not where it was. */
  disk?: string;
  /**
   * Paths of the host that the image may name, or directories that they are in. Always allowed are `disk`, what the booted machine
   * has as disk and mounts, and what the image's machine had when this user saved it.
   */
  allow?: readonly string[];
  /** What opens it, if it is encrypted. */
  keys?: Keys;
  /** Leave the image as it is: neither an attempt is recorded nor the image consumed (tests, benchmarks). */
  keepImage?: boolean;
  /**
   * Let the machine go as soon as the kernel's own frames are there; what its processes have comes when it is used, or in the background.
   * `machine.resident()` says when all is there. Damage that is found then ends the machine.
   */
  lazy?: boolean;
  /**
   * All that the resume needs for itself lies in so many bytes, outside of the machine's memory, and is at hand before anything is loaded; it
   * is refused (HIB_NO_MEMORY) below what it needs.
   */
  reservedBytes?: number;
  signal?: AbortSignal;
  /**
   * Is told how far the load is. If this or `onStep` throws, or gives a promise that rejects, the resume ends with HIB_CANCELLED and that
   * as its `cause`; once the image is marked as used and the machine is about to be replaced, with a warning of the process instead.
   */
  onProgress?: (progress: ResumeProgress) => void;
  /** Is told of each step as it passes or fails, with what was found; in part while the machine stands still. */
  onStep?: (step: ResumeStep) => void;
  /** Most places in the queue of the atomic restore, for tests of one that is too small. */
  queueFrames?: number;
  /** Called once everything is loaded and before the machine stops, for tests. */
  onLoaded?: () => void;
  /** Called once a lazy resume has let the machine go, and awaited before loaders begin, for tests. */
  onRunning?: () => Promise<void> | void;
}

const RULES: Readonly<Record<keyof ResumeOptions, Rule>> = {
  again: flag,
  acceptChangedFiles: flag,
  disk: pathRule,
  allow: paths,
  keys: keysToOpen,
  keepImage: flag,
  lazy: flag,
  reservedBytes: zeroOrMore,
  signal: abortSignal,
  onProgress: callback,
  onStep: callback,
  queueFrames: zeroOrMore,
  onLoaded: callback,
  onRunning: callback,
};

/** @throws HIB_USAGE */
export function checkResume(machine: unknown, path: string, options: ResumeOptions): void {
  checkArguments("resume", { "the machine": [machine, machineRule] });
  checkCall("resume", path, options, RULES);
}

/** A boot never resumes an image again or lazily, and takes no disk from elsewhere, nor does it leave one as it is. */
export type BootOptions = Omit<ResumeOptions, NotAtBoot>;
type NotAtBoot = "again" | "disk" | "keepImage" | "lazy" | "onRunning" | "reservedBytes";

/** @throws HIB_USAGE */
export function checkBoot(machine: unknown, path: string, options: BootOptions): void {
  checkArguments("bootOrResume", { "the machine": [machine, machineRule] });
  const { again: _1, disk: _2, keepImage: _3, lazy: _4, onRunning: _5, reservedBytes: _6, ...rules } = RULES;
  checkCall("bootOrResume", path, options, rules satisfies Record<keyof BootOptions, Rule>);
}

export const CANCEL_MESSAGES: CancelMessages = {
  cancelled: "the resume was cancelled; the image can still be resumed",
  noRoom: "the resume was given up: a store found no room; boot with more RAM",
  noMemory:
    "the resume was given up: a boot process needed the memory that was reserved; boot with fewer or smaller boot processes",
};
