/**
 * The block device: a disk whose sectors are a file of the host.
 *
 * The host reads and writes private buffers, on the coordinator's event loop; the transfer to guest memory is one tracked
 * device store, made in a turn of that loop. So at the stop, which the coordinator makes, a transfer is done or has not
 * begun, and from `quiesce` on finished requests wait:
 *
 *     submitted -> in flight -> finished -> done           quiesced: finished requests stay so, and submitted in the table
 *                                 |
 *                                 +-> dropped              after a restore: the table is another machine's
 *
 * What is saved: the table and the data frames are guest memory. Only the host's side knows which file the disk is, so
 * `saveState` puts its path into a frame. After a restore the file of that path is opened and what the table has as submitted
 * is carried out. If it cannot be opened, every request ends with an I/O error: the machine lives on without its disk.
 *
 * What must hold: one request a sector is in flight. So what a sector holds is known once its write has ended. And a file is one
 * machine's disk at a time: whoever has it open has its lock.
 */
import { closeSync, fdatasync, fstatSync, realpathSync, write } from "node:fs";
import { resolve } from "node:path";
import { promisify } from "node:util";
import { openAllowed } from "../../base/allowed-paths.js";
import { HibernaculumError } from "../../base/errors.js";
import { FileLock } from "../../base/file-lock.js";
import { type HostFile, openRegular, readUpToAsync, type WriteObserver } from "../../base/host-file.js";
import { FRAME_BYTES, MACHINE_SABOTAGE, SABOTAGE_NO_QUIESCE } from "../../base/layout.js";
import type { ReadableMemory } from "../../base/memory.js";
import type { KernelParts } from "../tasks/parts.js";
import { KERNEL_BLOCK_STATE, KIND_DMA } from "../memory/kernel-layout.js";
import {
  completeRequest,
  createTable,
  type DiskRequest,
  diskSectors,
  type DiskStatus,
  freeOrphans,
  SECTOR_BYTES,
  submittedRequests,
  TABLE_ORDER,
} from "./block-requests.js";
import { type Driver, StoreGate } from "./driver.js";
import { littleEndian } from "../memory/physical.js";

const writeAt = promisify(write);
const sync = promisify(fdatasync);

/** Requests that are completed before the gate is asked again: two frames each. */
const BATCH = 8;

/** What saveState's frame holds: length of the path, the path. */
const PATH_BYTES = 0;
const PATH = 4;
const PATH_BYTES_MAX: number = FRAME_BYTES - PATH;

/** A file that is open as a disk, and locked. */
interface OpenDisk {
  path: string;
  descriptor: number;
  lock: FileLock;
}

/** The host's file behind a disk. */
class DiskFile implements HostFile {
  readonly path: string;
  readonly descriptor: number;
  readonly mode = "rw";
  readonly position: number;
  observer: WriteObserver | undefined;
  readonly lock: FileLock;
  readonly #parts: KernelParts;

  constructor(parts: KernelParts, { path, descriptor, lock }: OpenDisk, sectors?: number) {
    this.#parts = parts;
    this.path = path;
    this.descriptor = descriptor;
    this.lock = lock;
    // A saved machine may say that its disk has more sectors than the file: sums are kept of those that there are.
    const inFile = Math.floor(fstatSync(descriptor).size / SECTOR_BYTES);
    this.position = Math.min(sectors ?? inFile, inFile) * SECTOR_BYTES;
  }

  pendingBlocks(): number[] {
    return submittedRequests(this.#parts.memory)
      .filter(({ operation }) => operation === "write")
      .map(({ sector }) => sector);
  }
}

interface Finished {
  request: DiskRequest;
  status: DiskStatus;
  data: Uint8Array | undefined;
}

export class BlockDevice implements Driver {
  readonly #parts: KernelParts;
  readonly #gate: StoreGate;
  readonly #onTransfer: ((request: DiskRequest) => Promise<void> | void) | undefined;
  #file: DiskFile | undefined;
  /** The disk of a machine that is about to be restored. */
  #coming: OpenDisk | undefined;
  /** Requests that this host process is at work on, by entry: from their begin until they are done in the table. */
  readonly #inFlight = new Map<number, DiskRequest>();
  #finished: Finished[] = [];
  /** What the host's file system is doing. */
  readonly #operations = new Set<Promise<DiskStatus>>();
  /** Which machine's requests are in flight: another after each restore. */
  #machine = 0;
  /** The host is still at work for the machine that was here before; the file may be the same. */
  #awaitsOthers = false;

  /** @param onTransfer - tests: awaited between the host's part of a request and its completion; may throw a system error */
  constructor(parts: KernelParts, onTransfer?: (request: DiskRequest) => Promise<void> | void) {
    this.#parts = parts;
    this.#gate = new StoreGate(parts.control);
    this.#onTransfer = onTransfer;
  }

  /** The host's file; undefined if there is no disk, or if its file could not be opened. */
  get file(): HostFile | undefined {
    return this.#file;
  }

  /**
   * Gives a machine that boots its disk.
   *
   * @throws HIB_IO, HIB_USAGE if it is no file that can be a disk, HIB_DISK_IN_USE
   */
  boot(path: string): void {
    const file = openDisk(this.#parts, resolve(path));
    this.#file = file;
    const { buddy, control, memory } = this.#parts;
    control.locked(() => {
      const table = buddy.allocate(TABLE_ORDER, 0, KIND_DMA);
      if (table === undefined) throw new HibernaculumError("HIB_USAGE", "too little RAM for a disk; ask for 16M");
      createTable(memory, table, file.position / SECTOR_BYTES);
    });
  }

  /**
   * Opens and locks the disk of a machine that is to be restored here: later there is nobody to refuse to.
   *
   * @param allowed - places that it may be in
   * @throws HIB_IO, HIB_DISK_IN_USE, HIB_NOT_ALLOWED
   */
  prepareRestore(path: string, allowed: readonly string[]): void {
    this.forgetRestore();
    const file = resolve(path);
    this.#coming = openLocked(file, openAllowed(file, allowed, "rw"), this.#file?.lock);
  }

  /** It is not restored after all. */
  forgetRestore(): void {
    if (this.#coming !== undefined) closeDisk(this.#coming, this.#file?.lock);
    this.#coming = undefined;
  }

  /** Completes what is finished and begins what is submitted. */
  service(): void {
    if (!this.#gate.isOpen || this.#awaitsOthers) return;
    const { control, memory } = this.#parts;
    while (this.#finished.length > 0 && this.#gate.isOpen) control.locked(() => this.#complete(this.#finished.splice(0, BATCH)));
    const submitted = control.locked(() => {
      freeOrphans(this.#parts);
      return submittedRequests(memory);
    });
    for (const request of submitted) if (!this.#isBusy(request)) this.#begin(request);
  }

  #complete(finished: readonly Finished[]): void {
    for (const { request, ...result } of finished) {
      completeRequest(this.#parts.memory, request, result);
      this.#inFlight.delete(request.entry);
    }
  }

  #isBusy({ entry, operation, sector }: DiskRequest): boolean {
    if (this.#inFlight.has(entry)) return true;
    return (
      operation !== "flush" &&
      [...this.#inFlight.values()].some((other) => other.operation !== "flush" && other.sector === sector)
    );
  }

  #begin(request: DiskRequest): void {
    this.#inFlight.set(request.entry, request);
    const machine = this.#machine;
    // A write's data are copied before anything is awaited: the frame is the device's, and later another machine's.
    const data = request.operation === "flush" ? undefined : this.#parts.memory.read(request.frame * FRAME_BYTES, SECTOR_BYTES);
    const operation = this.#carryOut(request, data);
    this.#operations.add(operation);
    const end = async (status: DiskStatus): Promise<void> => {
      this.#operations.delete(operation);
      const late = await this.#delay(request);
      if (machine !== this.#machine && this.#parts.control.load(MACHINE_SABOTAGE) !== SABOTAGE_NO_QUIESCE) return;
      const ended = late ?? status;
      this.#finished.push({ request, status: ended, data: ended === "ok" && request.operation === "read" ? data : undefined });
      this.service();
    };
    void operation.then(end).catch(this.#parts.control.unlessLost);
  }

  async #delay(request: DiskRequest): Promise<DiskStatus | undefined> {
    try {
      await this.#onTransfer?.(request);
      return undefined;
    } catch (error) {
      return statusOf(error);
    }
  }

  /** The host's part of a request. Never throws: whatever is wrong with the file is the guest's to see. */
  async #carryOut({ operation, sector }: DiskRequest, data: Uint8Array | undefined): Promise<DiskStatus> {
    const file = this.#file;
    if (file === undefined) return "I/O error";
    if (operation !== "flush" && sector >= diskSectors(this.#parts.memory)) return "out of range";
    const at = sector * SECTOR_BYTES;
    try {
      if (operation === "flush") await sync(file.descriptor);
      else if (operation === "read") await readSector(file.descriptor, data!, at);
      else {
        file.observer?.writing(sector);
        await writeSector(file.descriptor, data!, at);
        file.observer?.written(sector, data);
      }
      return "ok";
    } catch (error) {
      if (operation === "write") file.observer?.written(sector, undefined);
      return statusOf(error);
    }
  }

  /** Waits until the host does nothing more to the file for requests that have begun. */
  async settle(): Promise<void> {
    while (this.#operations.size > 0) await Promise.all(this.#operations);
  }

  /** Lets go of the file; the machine is off. */
  async close(): Promise<void> {
    this.#gate.close();
    this.forgetRestore();
    await this.#replaceFile(undefined);
  }

  /** Forgets what is in flight and takes another file; resolves once the host does nothing to the old one any more. */
  async #replaceFile(file: DiskFile | undefined): Promise<void> {
    const old = this.#file;
    this.#file = file;
    this.#machine++;
    this.#inFlight.clear();
    this.#finished = [];
    await this.settle();
    if (old !== undefined) closeDisk(old, this.#file?.lock);
  }

  saveState(): void {
    if (this.#file === undefined) return;
    const path = Buffer.from(this.#file.path);
    const { buddy, control, memory } = this.#parts;
    control.locked(() => {
      const frame = buddy.allocate(0, 0, KIND_DMA);
      if (frame === undefined) {
        throw new HibernaculumError(
          "HIB_NO_MEMORY",
          "the machine has no free frame for the state of its disk; free some of its memory",
        );
      }
      memory.write(frame * FRAME_BYTES, Buffer.concat([littleEndian(path.length), path]), "device");
      memory.store32(KERNEL_BLOCK_STATE, frame);
    });
  }

  quiesce(): void {
    this.#gate.close();
  }

  resume(after: "stop" | "restore"): void {
    this.#gate.open();
    if (after === "stop") return;
    this.#awaitsOthers = true;
    const begin = (): void => {
      this.#awaitsOthers = false;
      this.service();
    };
    void this.#replaceFile(this.#openSaved()).then(begin).catch(this.#parts.control.unlessLost);
  }

  /** The file that the saved machine's disk is; undefined if it had none or it cannot be opened, which the guest will see. */
  #openSaved(): DiskFile | undefined {
    const { memory } = this.#parts;
    const coming = this.#coming;
    if (coming === undefined || savedDisk(memory) === undefined) return undefined;
    this.#coming = undefined;
    return new DiskFile(this.#parts, coming, diskSectors(memory));
  }

  freeState(): void {
    const { buddy, control, memory } = this.#parts;
    control.locked(() => {
      const frame = memory.load32(KERNEL_BLOCK_STATE);
      if (frame === 0) return;
      buddy.free(frame);
      memory.store32(KERNEL_BLOCK_STATE, 0);
    });
  }
}

/** Length of the path in what a disk saved; undefined if it does not fit. */
export function savedPathBytes(memory: ReadableMemory): number | undefined {
  const bytes = memory.load32(memory.load32(KERNEL_BLOCK_STATE) * FRAME_BYTES + PATH_BYTES);
  return bytes >= 1 && bytes <= PATH_BYTES_MAX ? bytes : undefined;
}

/** Path of the disk that a stored machine had, if it had one. */
export function savedDisk(memory: ReadableMemory): string | undefined {
  const frame = memory.load32(KERNEL_BLOCK_STATE);
  if (frame <= 0 || frame >= memory.frames) return undefined;
  const at = frame * FRAME_BYTES;
  const bytes = memory.load32(at + PATH_BYTES);
  return Buffer.from(memory.read(at + PATH, Math.max(0, Math.min(bytes, PATH_BYTES_MAX)))).toString();
}

/** @param held - the lock that this machine has on its disk, which may be the same file */
function openLocked(path: string, descriptor: number, held?: FileLock): OpenDisk {
  try {
    const lock = held !== undefined && held.path === realpathSync(path) ? held : FileLock.take(path);
    if (lock !== undefined) return { path, descriptor, lock };
    throw new HibernaculumError(
      "HIB_DISK_IN_USE",
      `${path} is in use as the disk of another machine; power that machine off, or give another file`,
    );
  } catch (error) {
    closeSync(descriptor);
    if (error instanceof HibernaculumError) throw error;
    const why = (error as Error).message;
    throw new HibernaculumError(
      "HIB_IO",
      `the disk ${path} cannot be locked: ${why}; its directory must be one where a lock file can be made`,
      { cause: error },
    );
  }
}

function closeDisk({ descriptor, lock }: OpenDisk, kept: FileLock | undefined): void {
  closeSync(descriptor);
  if (lock !== kept) lock.release();
}

function openDisk(parts: KernelParts, path: string): DiskFile {
  const hint = "give a file whose size is a multiple of 4 KiB (truncate -s 64M makes one)";
  let file: DiskFile;
  try {
    file = new DiskFile(parts, openLocked(path, openRegular(path, "rw")));
  } catch (error) {
    if (error instanceof HibernaculumError) throw error;
    throw new HibernaculumError("HIB_IO", `the disk: ${(error as Error).message}; ${hint}`, { cause: error });
  }
  const stat = fstatSync(file.descriptor);
  const usable =
    stat.isFile() && stat.size >= SECTOR_BYTES && stat.size % SECTOR_BYTES === 0 && file.position / SECTOR_BYTES < 2 ** 32;
  if (usable && Buffer.byteLength(path) <= PATH_BYTES_MAX) return file;
  closeDisk(file, undefined);
  throw new HibernaculumError("HIB_USAGE", `${path} cannot be a disk: ${hint}`);
}

async function readSector(descriptor: number, buffer: Uint8Array, at: number): Promise<void> {
  if ((await readUpToAsync(descriptor, buffer, at)) < buffer.length)
    throw Object.assign(new Error("the file has become shorter"), { code: "EIO" });
}

async function writeSector(descriptor: number, buffer: Uint8Array, at: number): Promise<void> {
  for (let done = 0; done < buffer.length; ) {
    const { bytesWritten } = await writeAt(descriptor, buffer, done, buffer.length - done, at + done);
    done += bytesWritten;
  }
}

function statusOf(error: unknown): DiskStatus {
  const { code } = error as NodeJS.ErrnoException;
  return code === "ENOSPC" || code === "EDQUOT" || code === "EFBIG" ? "no space" : "I/O error";
}
