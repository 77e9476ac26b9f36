/**
 * A machine: its memory, its vCPU threads, its kernel, and the thread that coordinates them (this one).
 *
 *     Machine.boot() --> running <-- quiesce.stop(), go() --> stopped
 *                           |                                |
 *                           +---------- powerOff() ----------+--> off
 *
 * An embedder makes one with `Machine.boot`, spawns programs, and saves it with `save` (hibernate.ts).
 */
import { statSync } from "node:fs";
import { cpus } from "node:os";
import { resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import { guarded, warnOf } from "./base/callback.js";
import { type Control, hostNow, RESUME_AGAIN } from "./base/control.js";
import { fromSystemError, HibernaculumError, isSystemError } from "./base/errors.js";
import { checkFailpoints } from "./base/failpoints.js";
import {
  MACHINE_POWER_OFF,
  MACHINE_TIMELINE_BASE,
  MAX_VCPUS,
  MISSING_BITMAP,
  VCPU_BUSY,
  VCPU_STATE,
  VCPU_STATE_OFF,
} from "./base/layout.js";
import { PAGE_THREADS_MAX } from "./base/limits.js";
import { checkArguments, text as textRule } from "./base/options.js";
import { loadDatabase } from "./base/sqlite.js";
import type { Pfn } from "./base/memory.js";
import type { SharedMemory } from "./base/wasm.js";
import { Claims } from "./cow/claims.js";
import { Quiesce } from "./cow/quiesce.js";
import { WriteTracking } from "./cow/tracking.js";
import { type Core, instantiateCore } from "./vm/memory/core.js";
import { diskSectors } from "./vm/devices/block-requests.js";
import { Devices } from "./vm/devices/index.js";
import { Kernel } from "./vm/kernel.js";
import { createMemory } from "./vm/memory/physical.js";
import { listProcesses, type Process } from "./vm/tasks/process.js";
import type { Runner } from "./vm/personality/step/program.js";
import { createRunner } from "./vm/personality/step/programs/index.js";
import { createBootRunner } from "./vm/personality/step/boot-programs.js";
import { PagePool, WORKER_LIMITS } from "./writer/pool.js";
import { isTooLong } from "./vm/memory/kernel-heap.js";
import { MountRoots } from "./vm/files/mount-roots.js";
import { type Mount, splitPath, walkMounts } from "./vm/files/path.js";
import { checkMachine, type MachineOptions } from "./machine-options.js";

export type { MachineOptions } from "./machine-options.js";

/** What brings in the memory of a machine that was resumed lazily (residency.ts). */
export interface Arriving {
  /** Settles once all is there, or never will be. */
  readonly done: Promise<unknown>;
  /** Why the machine has ended, if a frame could not be brought in. */
  readonly failure: HibernaculumError | undefined;
  /** Brings in a frame that the coordinator needs. */
  bringIn(frame: Pfn): void;
}

/** How often the devices are looked at, and how busy the vCPUs are. */
const TICK_MS = 50;
const BUSY_TICKS = 20;
/** A vCPU that has not ended by itself after so long is terminated. */
const VCPU_END_MS = 2000;

export class Machine {
  readonly memory: SharedMemory;
  readonly vcpus: number;
  readonly core: Core;
  readonly kernel: Kernel;
  readonly devices: Devices;
  readonly control: Control;
  readonly mounts: MountRoots;
  readonly claims: Claims;
  readonly tracking: WriteTracking;
  readonly quiesce: Quiesce;
  readonly pageThreads: number;
  /** What is under way that only one may do at a time: a save, a resume or a check. */
  busy: "save" | "resume" | "check" | undefined;
  /** Set as long as memory may be missing. */
  arriving: Arriving | undefined;
  readonly #onConsole: (text: string) => void;
  #workers: Worker[] = [];
  #pool: PagePool | undefined;
  #timer: NodeJS.Timeout | undefined;
  readonly #writersFixed: boolean;
  /** Time that the vCPUs spent running processes, looked at every TICK_MS, for the last second. */
  readonly #busyTimes: { at: number; busy_ms: number }[] = [];
  #failure: unknown;
  #ending: Promise<void> | undefined;

  private constructor(options: MachineOptions) {
    this.pageThreads = options.pageThreads ?? Math.min(PAGE_THREADS_MAX, cpus().length);
    this.#writersFixed = options.pageThreads !== undefined;
    this.memory = createMemory(options.ramBytes);
    this.vcpus = options.vcpus;
    this.core = instantiateCore(this.memory, { missing: (frame) => this.arriving!.bringIn(frame >>> 0) });
    this.core.attach(MAX_VCPUS);
    this.kernel = new Kernel(this.memory, this.core);
    this.devices = new Devices(this.kernel, options.onDiskTransfer);
    this.control = this.kernel.control;
    this.control.floats[MACHINE_TIMELINE_BASE >>> 3] = hostNow();
    this.mounts = new MountRoots(this.control);
    this.claims = new Claims(this.control);
    this.tracking = new WriteTracking(this.control, this.core, this.vcpus);
    this.quiesce = new Quiesce(this.control, this.vcpus);
    this.#onConsole = guarded(options.onConsole, (thrown) => warnOf("onConsole", thrown));
  }

  /**
   * Boots a machine: kernel tables, devices, then vCPU threads, which idle until there is a process.
   *
   * @throws HIB_USAGE, HIB_RAM_TOO_LARGE, HIB_NO_MEMORY, HIB_IO if the disk or a mount cannot be opened or the host allows no more threads,
   * HIB_DISK_IN_USE, HIB_WORKER_DIED, HIB_DEPENDENCY
   */
  static async boot(options: MachineOptions): Promise<Machine> {
    checkMachine(options);
    const machine = new Machine(options);
    checkFailpoints();
    loadDatabase(); // for the images that it resumes; its page threads load their own
    machine.kernel.boot();
    try {
      for (const mount of options.mounts ?? []) machine.#mount(mount);
      machine.mounts.hold(Array.from(walkMounts(machine.kernel.memory), ({ host }) => host));
      machine.devices.boot(options.disk);
      machine.#pool = new PagePool(machine.memory, machine.pageThreads, (error) => machine.#losePageThread(error));
      await machine.#startVcpus();
    } catch (error) {
      await machine.powerOff(); // threads that began would keep the process
      throw isSystemError(error) ? fromSystemError(error, "booting the machine") : error;
    }
    machine.#timer = setInterval(() => machine.#tick(), TICK_MS);
    return machine;
  }

  #mount(mount: Mount): void {
    if (!statSync(mount.host, { throwIfNoEntry: false })?.isDirectory()) {
      throw new HibernaculumError("HIB_IO", `${mount.host} cannot be mounted: there is no such directory; check the path`);
    }
    const host = resolve(mount.host);
    if (isTooLong(host) || isTooLong(mount.path))
      throw new HibernaculumError("HIB_USAGE", `${host} cannot be mounted: its path, or that in the machine, is too long`);
    const result = this.control.locked(() => this.kernel.files.names.mounts.add({ ...mount, host }));
    if (result < 0) throw new HibernaculumError("HIB_NO_MEMORY", `no memory to mount ${host}; give the machine more RAM`);
  }

  /** Every vCPU waits for processes when it returns, or one cannot: a thread may die before it has loaded its code. */
  async #startVcpus(): Promise<void> {
    const entry = new URL("../workers/vcpu.js", import.meta.url);
    for (let number = 0; number < this.vcpus; number++) {
      this.control.storeVcpu(number, VCPU_STATE, VCPU_STATE_OFF);
      const worker = new Worker(entry, { workerData: { memory: this.memory, number }, resourceLimits: WORKER_LIMITS });
      worker.on("message", () => this.devices.service());
      worker.on("error", (error) => this.#lose(number, error.message, error));
      worker.on("exit", () => {
        if (this.control.load(MACHINE_POWER_OFF) === 0) this.#lose(number, "it ended without an error");
      });
      this.#workers.push(worker);
    }
    const running = () => this.#workers.every((_, number) => this.control.loadVcpu(number, VCPU_STATE) !== VCPU_STATE_OFF);
    while (!running()) {
      this.check();
      await sleep(1);
    }
    this.check();
  }

  /** A vCPU's thread has ended before the machine did. */
  #lose(vcpu: number, why: string, cause?: unknown): void {
    this.control.lose(vcpu);
    const starting = this.#timer === undefined;
    this.#failure ??= this.arriving?.failure;
    this.#failure ??=
      starting && isSystemError(cause)
        ? fromSystemError(cause, "starting the vCPUs")
        : new HibernaculumError("HIB_WORKER_DIED", `the thread of vCPU ${vcpu} died: ${why}; ${RESUME_AGAIN}`, { cause });
  }

  #losePageThread(error: unknown): void {
    this.#failure ??= isSystemError(error) ? fromSystemError(error, "starting the page threads") : error;
  }

  /**
   * Starts a process from a program's text, for example `zipf:pages=50000,rate=200000`.
   *
   * @throws HIB_USAGE, HIB_NO_MEMORY, HIB_BUSY while the machine stands still
   */
  spawn(text: string): Process {
    checkArguments("spawn", { "the program": [text, textRule] });
    if (this.isOff) throw new HibernaculumError("HIB_NO_MACHINE", "the machine is powered off");
    const boot = createBootRunner(text);
    const runner = boot ?? createRunner(text);
    if (runner.needs !== undefined) this.#checkNeeds(text, runner.needs);
    return this.kernel.lifecycle.spawn(text, runner, { boot: boot !== undefined });
  }

  #checkNeeds(text: string, { sectors = 0, directory = "/" }: NonNullable<Runner["needs"]>): void {
    const has = diskSectors(this.kernel.memory);
    if (sectors > has) {
      const disk = has === 0 ? "the machine has none: give it one with --disk" : `the machine's has ${has}`;
      throw new HibernaculumError("HIB_USAGE", `${text} uses ${sectors} sectors of the disk, and ${disk}`);
    }
    const { names } = this.kernel.files;
    const [stat, found] = this.control.locked(() => [names.stat(directory), names.mounts.find(splitPath(directory))]);
    if (found?.mount.readOnly === true)
      throw new HibernaculumError(
        "HIB_USAGE",
        `${text} writes to ${directory}, which is mounted read-only; mount it without :ro`,
      );
    if (typeof stat === "number" || stat.type !== "directory") {
      throw new HibernaculumError(
        "HIB_USAGE",
        `${text}: there is no directory ${directory} in the machine; --mount HOST:PATH makes one`,
      );
    }
  }

  /** All processes, as the process table has them now. */
  processes(): Process[] {
    return this.control.locked(() => listProcesses(this.kernel.memory));
  }

  /** Threads for pages. They start with the machine: a save that armed first and started them then would fault for longer. */
  get pool(): PagePool {
    if (this.#pool === undefined) throw new HibernaculumError("HIB_NO_MACHINE", "the machine is powered off");
    return this.#pool;
  }

  /** Powered off, for good: boot another one. */
  get isOff(): boolean {
    return this.#pool === undefined;
  }

  #tick(): void {
    try {
      this.drainConsole();
    } catch (error) {
      this.control.unlessLost(error);
    }
    this.devices.service();
    this.#busyTimes.push({ at: hostNow(), busy_ms: this.#busyTime() });
    if (this.#busyTimes.length > BUSY_TICKS) this.#busyTimes.shift();
  }

  #busyTime(): number {
    let sum = 0;
    for (let vcpu = 0; vcpu < this.vcpus; vcpu++) sum += this.control.loadVcpuFloat(vcpu, VCPU_BUSY);
    return sum;
  }

  /** How many page writers a save should have now: one a core that the vCPUs left free during the last second. */
  get writers(): number {
    const first = this.#busyTimes[0];
    if (this.#writersFixed || first === undefined) return this.pageThreads;
    const busy = (this.#busyTime() - first.busy_ms) / Math.max(1, hostNow() - first.at);
    return Math.max(1, Math.min(this.pageThreads, Math.round(cpus().length - busy)));
  }

  /** Hands what the machine has printed to `onConsole`. */
  drainConsole(): void {
    const text = this.devices.console.drain();
    if (text !== "") this.#onConsole(text);
  }

  /** @throws HIB_WORKER_DIED if a vCPU's thread died, or what a page thread died of that had nothing to do */
  check(): void {
    this.#failure ??= this.arriving?.failure;
    if (this.#failure !== undefined) throw this.#failure;
    this.control.checkLost();
  }

  /** It cannot go on, for this reason. */
  fail(error: HibernaculumError): void {
    this.#failure ??= error;
  }

  /**
   * Waits until all of its memory is there, after a lazy resume.
   *
   * @throws why it never will be, HIB_CANCELLED
   */
  async resident(signal?: AbortSignal): Promise<void> {
    if (this.arriving === undefined) return;
    const cancelled = new Promise<void>((resolve) => signal?.addEventListener("abort", () => resolve(), { once: true }));
    await Promise.race([this.arriving.done, cancelled]);
    if (signal?.aborted === true) throw new HibernaculumError("HIB_CANCELLED", `the ${this.busy} was cancelled`);
  }

  /** @throws HIB_CANCELLED if it has been told to end while something was done with it, which failed for whatever `cause` */
  refuseOff(cause?: unknown): void {
    if (this.control.load(MACHINE_POWER_OFF) === 0) return;
    throw new HibernaculumError("HIB_CANCELLED", `the machine was powered off while a ${this.busy} of it was under way`, {
      cause,
    });
  }

  /** Why something failed that was done with it: what it died of, if it did. */
  reasonFor(error: unknown): unknown {
    try {
      this.check();
      return error;
    } catch (lost) {
      return lost;
    }
  }

  /** One of its threads has died, and it cannot go on. */
  get isLost(): boolean {
    return this.#failure !== undefined || this.control.isLost;
  }

  /** Takes the exclusive right to save, resume or check, until it is disposed. @throws HIB_BUSY, HIB_NO_MACHINE */
  begin(what: "save" | "resume" | "check"): Disposable {
    this.check();
    if (this.isOff) throw new HibernaculumError("HIB_NO_MACHINE", "the machine is powered off; boot another");
    if (this.busy !== undefined) {
      throw new HibernaculumError("HIB_BUSY", `a ${this.busy} of this machine is under way; wait for it or cancel it`);
    }
    this.busy = what;
    return { [Symbol.dispose]: () => (this.busy = undefined) };
  }

  /** Frames of a lazy resume that are not there yet. */
  get missingFrames(): number {
    return this.arriving === undefined ? 0 : this.core.countBits(MISSING_BITMAP);
  }

  /** Has the vCPUs know what a missing frame is brought in from, from the next one on. */
  tellVcpus(task: object): void {
    for (const worker of this.#workers) worker.postMessage(task);
  }

  /** Stops the vCPUs for good and lets go of all threads. A lazy resume that was under way has noted by then how it ended. */
  async powerOff(): Promise<void> {
    await this.endThreads();
    await this.arriving?.done.catch(() => undefined);
  }

  /** As `powerOff`, for the lazy resume itself. */
  endThreads(): Promise<void> {
    return (this.#ending ??= this.#end());
  }

  async #end(): Promise<void> {
    clearInterval(this.#timer);
    this.control.store(MACHINE_POWER_OFF, 1);
    this.control.ringDoorbell();
    this.quiesce.restart(); // not a step more of what was running
    // Each vCPU ends by itself at its next safepoint. One that is terminated may hold the kernel lock: then nobody can
    // look at the machine's processes any more.
    const alive = this.#workers.filter(({ threadId }) => threadId !== -1);
    const ended = Promise.all(alive.map((worker) => new Promise((resolve) => worker.once("exit", resolve))));
    await Promise.race([ended, sleep(VCPU_END_MS, undefined, { ref: false })]);
    await Promise.all(this.#workers.map((worker) => worker.terminate()));
    this.#workers = [];
    await this.#pool?.destroy();
    this.#pool = undefined;
    await this.devices.close();
    this.mounts.close();
  }
}
