/**
 * The hot core as TypeScript sees it: the compiled module of `assembly/`, one instance a thread over the machine's
 * one shared memory. Frame numbers, addresses and list entries are unsigned 32-bit; a signed number is taken as such.
 */
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { HibernaculumError } from "../../base/errors.js";
import { type SharedMemory, wasm } from "../../base/wasm.js";

export interface Core {
  attach(thread: number): void;
  activate(slot: number, rootFrame: number): void;
  deactivate(): void;
  dropContext(slot: number): void;
  acknowledge(): number;
  invalidate(address: number): void;
  setTimelineBin(bin: number): void;
  /** Write-protect faults that this thread has taken. */
  faultsTaken(): number;

  /** Does what a store to this page would do, but for the store, and returns the physical address. */
  prepareStore(address: number): number;
  prepareLoad(address: number): number;
  load8(address: number): number;
  load32(address: number): number;
  store8(address: number, value: number): void;
  store32(address: number, value: number): void;
  store64(address: number, low: number, high: number): void;

  kernelStore8(address: number, value: number): void;
  kernelStore32(address: number, value: number): void;
  kernelStoreFloat64(address: number, value: number): void;
  kernelZero(frame: number, count: number): void;
  kernelCopy(to: number, from: number, count: number): void;
  /** `kind`: FAULT_KERNEL or FAULT_DEVICE. */
  beforeBulkStore(address: number, bytes: number, kind: number): void;

  // Blocks (buddy.ts). Callers hold the kernel lock.
  bindBlocks(arenas: number, arenaTable: number, frameTable: number): void;
  insertFree(frame: number, order: number): void;
  removeFree(frame: number, order: number): void;
  useBlock(frame: number, order: number, owner: number, kind: number): void;
  /** First frame, or -1. */
  allocateFree(order: number, owner: number, kind: number): number;
  freeBlock(frame: number): void;
  /** -1 if the frame lies in no used block. */
  headOf(frame: number): number;
  splitBlock(head: number): void;
  shareBlock(head: number): void;
  releaseBlock(head: number): void;
  setOwner(head: number, owner: number): void;
  setKind(head: number, kind: number): void;

  // Leaves (leaves.ts): pages are counted in 4 KiB, `most` leaves at a time; the first page that was not looked at is returned.
  mapRun(root: number, page: number, frame: number, count: number, flags: number): number;
  leafFlags(pte: number, frame: number, level: number, permissions: number, shared: number, pid: number): number;
  protectLeaves(root: number, page: number, last: number, permissions: number, shared: number, pid: number, most: number): number;
  shareLeaves(root: number, page: number, last: number, child: number, shared: number, most: number): number;
  takeOutLeaves(root: number, page: number, last: number, most: number): number;
  copyPages(root: number, page: number, to: number, count: number): void;
  /** Leaves that the last of these three loops has taken on. */
  readonly taken: { readonly value: number };
  invalidatePages(page: number, count: number): void;

  setBit(bitmap: number, frame: number): number;
  setBits(bitmap: number, frame: number, count: number): void;
  clearBits(bitmap: number, frame: number, count: number): void;
  clearBitmap(bitmap: number): void;
  copyBitmap(to: number, from: number): void;
  mergeBits(to: number, from: number): void;
  subtractBits(bitmap: number, other: number): void;
  takeMarks(bitmap: number, marks: number): void;
  countBits(bitmap: number): number;
  countResidual(): number;
  listMarked(frames: number): number;
  listPlanned(): number;
  listResidual(): number;

  isSameFilled(at: number): number;
  stage(first: number, count: number, mode: number, to: number, verdicts: number, fills: number): number;
  stagePreimage(to: number, verdict: number, fill: number): number;
  stageWanted(vcpu: number, to: number, verdict: number, fill: number): number;
  /** XXH64 as a signed bigint. */
  checksum(at: number, bytes: number): bigint;
  hashFrame(at: number): number;
  gather(): void;
  scatter(): void;
  touch(place: number): void;
  claimQueueEntry(): number;
  /** Returns once these frames are there (lazy resume). */
  bringIn(frame: number, count: number): void;
  isMissing(frame: number): number;
  /** 1 if a missing frame is the caller's to place, and then to settle. */
  claimMissing(frame: number): number;
  settle(frame: number): void;
  /** Nobody places these frames any more. */
  forgetMissing(frame: number, count: number): void;
  /** A place of guest memory that is lent and not used yet, or -1. Caller holds the kernel lock. */
  takeBackPlace(): number;
  /** One that is used: gives up what it is used for. */
  takeBackHeldPlace(): number;
}

export interface CoreHost {
  /** Resolves a page fault of the current process, or throws. */
  pageFault(address: number, access: number): void;
  /** Places a missing frame (lazy resume), or throws. */
  missing(frame: number): void;
  /** Host clock, ms. */
  now(): number;
}

let compiled: object | undefined;

function coreModule(): object {
  if (compiled === undefined) {
    const path = fileURLToPath(new URL("../../../core.wasm", import.meta.url));
    if (!existsSync(path)) {
      throw new HibernaculumError("HIB_DEPENDENCY", `${path} is missing; run "npm run build"`);
    }
    compiled = new wasm.Module(readFileSync(path));
  }
  return compiled;
}

const noProcess: CoreHost = {
  pageFault(address) {
    throw new HibernaculumError("HIB_INTERNAL", `page fault at 0x${(address >>> 0).toString(16)} outside a process`);
  },
  missing(frame) {
    throw new HibernaculumError("HIB_INTERNAL", `frame ${frame >>> 0} is missing, and this thread cannot bring it in`);
  },
  now: () => performance.now(),
};

/** A thread's instance of the core. */
export function instantiateCore(memory: SharedMemory, host: Partial<CoreHost> = {}): Core {
  const instance = new wasm.Instance(coreModule(), { env: { memory }, host: { ...noProcess, ...host } });
  return instance.exports as Core;
}
