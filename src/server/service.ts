/**
 * A machine as its clients see it: the handlers behind the control socket, and what is kept for them between requests
 * (when it began, what was saved last, how fast processes have run lately).
 *
 * What must hold: only one save, resume or check is under way at a time; `Machine.begin` sees to it.
 */
import process from "node:process";
import { setImmediate } from "node:timers/promises";
import { hostNow } from "../base/control.js";
import { HibernaculumError, serializeError } from "../base/errors.js";
import { FRAME_BYTES, TIMELINE_BIN_MS } from "../base/layout.js";
import { save } from "../hibernate.js";
import type { Machine } from "../machine.js";
import type { ResumeReport } from "../reports/resume-report.js";
import type { SaveReport } from "../reports/save-report.js";
import { longestGap, stepsPerBin } from "../vm/tasks/activity.js";
import { checkConsistency } from "../vm/views/consistency.js";
import { countBlocks } from "../vm/views/describe.js";
import { KERNEL_FREE_FRAMES, KERNEL_RESUMES } from "../vm/memory/kernel-layout.js";
import type { Process } from "../vm/tasks/process.js";
import { checkProcess, type ProcessCheck } from "../vm/personality/step/programs/check.js";
import { createReplay } from "../vm/personality/step/programs/replay.js";
import { type CheckResult, type Commands, type LiveReport, type MachineStatus, receiveKey } from "./protocol.js";
import type { Handlers, RequestContext } from "./server.js";

/** A replay goes on for so long, then others of this thread have their turn. */
const REPLAY_TURN_MS = 20;
const ACTIVITY_MS = 1000;
/** Samples are kept for this long, to tell the rate from the oldest. */
const SAMPLES_MS = 1500;

export class MachineService {
  readonly name: string;
  readonly machine: Machine;
  /** Everything is up: workloads are spawned, or the image is resumed. */
  ready = false;
  resumed: ResumeReport | null = null;
  readonly handlers: Handlers;
  readonly #onHibernated: (report: SaveReport) => void;
  readonly #began = hostNow();
  readonly #saves = new Map<AbortController, Promise<unknown>>();
  /** The machine has been told to end: what clients are told must not say that it goes on. */
  #ending = false;
  #saved: SaveReport | null = null;
  #samples: { time: number; steps: Map<number, number> }[] = [];

  constructor(name: string, machine: Machine, { onHibernated }: { onHibernated: (report: SaveReport) => void }) {
    this.name = name;
    this.machine = machine;
    this.#onHibernated = onHibernated;
    this.handlers = {
      status: async () => this.status(),
      report: async () => this.#report(),
      save: (options, context) => this.#save(options, context),
      check: (_, context) => this.#check(context),
    };
  }

  /** Cancels a save that is under way. False if there is none. */
  cancelSave(): boolean {
    for (const abort of this.#saves.keys()) abort.abort();
    return this.#saves.size > 0;
  }

  get saving(): boolean {
    return this.#saves.size > 0;
  }

  /** The machine will be powered off. Resolves once the saves that are under way have ended, however they do. */
  async prepareToEnd(): Promise<void> {
    this.#ending = true;
    await Promise.allSettled(this.#saves.values());
  }

  /** Notes how far each process is, for rates; to be called now and then. */
  sample(): Process[] {
    const processes = this.machine.processes();
    const time = hostNow();
    this.#samples = this.#samples.filter((sample) => time - sample.time < SAMPLES_MS);
    this.#samples.push({ time, steps: new Map(processes.map(({ pid, steps }) => [pid, steps])) });
    return processes;
  }

  status(): MachineStatus {
    const { machine } = this;
    const { memory } = machine.kernel;
    const now = hostNow();
    const oldest = this.#samples[0];
    const processes = machine.processes();
    const pages = new Map<number, number>();
    for (const { kind, owner, frames } of machine.control.locked(() => countBlocks(memory))) {
      if (kind === "user") pages.set(owner, (pages.get(owner) ?? 0) + frames);
    }
    const rate = ({ pid, steps }: Process): number | null => {
      const before = oldest?.steps.get(pid);
      return oldest === undefined || before === undefined || now - oldest.time < 100
        ? null
        : Math.max(0, ((steps - before) * 1000) / (now - oldest.time));
    };
    return {
      name: this.name,
      pid: process.pid,
      state: this.#state(),
      uptime_ms: now - this.#began,
      ram_bytes: memory.frames * FRAME_BYTES,
      free_bytes: memory.load32(KERNEL_FREE_FRAMES) * FRAME_BYTES,
      missing_bytes: machine.missingFrames * FRAME_BYTES,
      vcpus: machine.vcpus,
      page_threads: machine.pageThreads,
      resumes: memory.load32(KERNEL_RESUMES),
      processes: processes.map((entry) => ({
        pid: entry.pid,
        name: entry.text.split(":")[0]!,
        text: entry.text,
        state: entry.state,
        boot: entry.boot,
        steps: entry.steps,
        steps_per_s: rate(entry),
        pages: pages.get(entry.pid) ?? 0,
        failure: entry.failure,
        parent: entry.parent,
        group: entry.group,
        nice: entry.nice,
        ended: entry.state === "zombie" || entry.state === "failed" ? entry.status : null,
      })),
    };
  }

  #state(): MachineStatus["state"] {
    const { busy } = this.machine;
    if (busy === "save") return "saving";
    if (busy === "resume") return "resuming";
    if (busy === "check") return "checking";
    return this.ready ? "running" : "booting";
  }

  #report(): LiveReport {
    const { control, vcpus } = this.machine;
    const now = hostNow();
    return {
      status: this.status(),
      activity: {
        bin_ms: TIMELINE_BIN_MS,
        steps: stepsPerBin(control, vcpus, Math.max(this.#began, now - ACTIVITY_MS), now),
        longest_gap_ms: longestGap(control, vcpus),
      },
      save: this.#saved,
      resume: this.resumed,
    };
  }

  async #save(options: Commands["save"]["options"], { signal, progress }: RequestContext<"save">): Promise<SaveReport> {
    if (!this.ready) throw new HibernaculumError("HIB_BUSY", `machine ${this.name} is still booting; try again in a moment`);
    const abort = new AbortController();
    const { path, keys, ...how } = options;
    const saving = save(this.machine, path, {
      ...how,
      ...(keys === undefined ? {} : { keys: keys.map(receiveKey) }),
      name: this.name,
      signal: AbortSignal.any([signal, abort.signal]),
      onProgress: progress,
    });
    this.#saves.set(abort, saving);
    try {
      const report = await saving;
      this.#saved = report;
      if (!how.keepRunning) this.#onHibernated(report);
      return report;
    } catch (error) {
      if (!this.#ending) throw error;
      const { code, message } = serializeError(error);
      const why = code === "HIB_CANCELLED" ? "the save was cut off" : `the save failed: ${message}`;
      throw new HibernaculumError(code, `${why}; the machine was told to end and is powered off, and there is no image`, {
        cause: error,
      });
    } finally {
      this.#saves.delete(abort);
    }
  }

  /**
   * Compares every process with its recomputation. The replay runs up to the process while the machine goes on; the
   * machine is stopped only for the last steps and the comparison, one process after another.
   */
  async #check({ signal, progress }: RequestContext<"check">): Promise<CheckResult> {
    const { machine } = this;
    using _busy = machine.begin("check");
    const processes = machine.processes().filter(({ boot }) => !boot);
    const checks: ProcessCheck[] = [];
    for (const { slot, pid, text, steps } of processes) {
      progress({ done: checks.length, total: processes.length });
      await setImmediate(); // clients are answered meanwhile, however little there is to replay
      const replay = createReplay(text);
      while (typeof replay !== "string" && !signal.aborted && !replay.advanceTo(steps, performance.now() + REPLAY_TURN_MS))
        await setImmediate();
      if (signal.aborted) throw new HibernaculumError("HIB_CANCELLED", "the check was cancelled");
      const check = this.#stopped(() => {
        const found = machine.processes().find((entry) => entry.slot === slot && entry.pid === pid);
        return found === undefined ? undefined : checkProcess(machine.kernel.memory, found, replay);
      });
      if (check !== undefined) checks.push(check);
    }
    const { problems } = this.#stopped(() => checkConsistency(machine.kernel.memory));
    return { processes: checks, problems };
  }

  #stopped<T>(look: () => T): T {
    this.machine.quiesce.stop();
    try {
      return look();
    } finally {
      this.machine.quiesce.go();
    }
  }
}
