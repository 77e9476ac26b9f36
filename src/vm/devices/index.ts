/** The devices of a machine, as whoever coordinates it sees them: all drivers together (driver.ts says when what is called). */
import type { HostFile } from "../../base/host-file.js";
import { MACHINE_DEVICE_BELL } from "../../base/layout.js";
import type { KernelParts } from "../tasks/parts.js";
import { BlockDevice } from "./block.js";
import type { DiskRequest } from "./block-requests.js";
import { ConsoleDevice } from "./console.js";
import type { Driver } from "./driver.js";
import { EntropyDevice } from "./entropy.js";
import { TimerDevice } from "./timer.js";

export class Devices implements Driver {
  readonly console: ConsoleDevice;
  readonly block: BlockDevice;
  readonly entropy: EntropyDevice;
  readonly timer: TimerDevice;
  readonly #parts: KernelParts;
  readonly #drivers: readonly Driver[];

  constructor(parts: KernelParts, onDiskTransfer?: (request: DiskRequest) => Promise<void> | void) {
    this.#parts = parts;
    this.console = new ConsoleDevice(parts);
    this.block = new BlockDevice(parts, onDiskTransfer);
    this.entropy = new EntropyDevice(parts);
    this.timer = new TimerDevice(parts);
    this.#drivers = [this.console, this.block, this.entropy, this.timer];
  }

  /** @throws HIB_USAGE, HIB_IO */
  boot(disk: string | undefined): void {
    this.entropy.boot();
    if (disk !== undefined) this.block.boot(disk);
  }

  /** Does what the guest has asked for since. */
  service(): void {
    const { control } = this.#parts;
    control.store(MACHINE_DEVICE_BELL, 0);
    try {
      this.block.service();
      this.entropy.service();
    } catch (error) {
      control.unlessLost(error);
    }
  }

  /** Files of the host that the machine has open. */
  get hostFiles(): readonly HostFile[] {
    return this.block.file === undefined ? [] : [this.block.file];
  }

  /** Waits until the host's files are as the machine's requests that have begun leave them. */
  async settle(): Promise<void> {
    await this.block.settle();
  }

  /** The machine is off. */
  async close(): Promise<void> {
    await this.block.close();
  }

  saveState(): void {
    for (const driver of this.#drivers) driver.saveState();
  }

  quiesce(): void {
    for (const driver of this.#drivers) driver.quiesce();
  }

  resume(after: "stop" | "restore"): void {
    for (const driver of this.#drivers) driver.resume(after);
    // Not now: a vCPU may hold the kernel lock and wait for a page writer that this thread has yet to start.
    setImmediate(() => this.service());
  }

  freeState(): void {
    for (const driver of this.#drivers) driver.freeState();
  }
}
