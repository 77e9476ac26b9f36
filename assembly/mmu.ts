/**
 * The MMU: Sv39 translation through a per-vCPU software TLB with separate read and write tags.
 *
 * What must hold: a tag is valid only if the frame is there (missing.ts). A write tag is valid only if also the PTE allows writing, D
 * is set, and the frame is open to stores (not write-protected by tracking). Everything else takes the slow path: walk, permission, A/D, mark, refill.
 * A tag is context << 27 | VPN. Contexts are numbers used once: to drop all tags of an address space, or only its
 * write tags (TLB shootdown), its context number is replaced. A tag of 0 never matches: context 0 is not used.
 */
import {
  ACCESS_READ, ACCESS_WRITE, CONTEXT_AREA, CONTEXT_BYTES, CONTEXT_GENERATION, CONTEXT_READ, CONTEXT_VCPU,
  CONTEXT_WRITE, FAULT_LATENCY, FAULT_PAGE_TABLE, FAULT_USER, FRAME_SHIFT, LATENCY_BINS, LATENCY_SAMPLE,
  MACHINE_ARMED, MACHINE_CONTEXT_CURSOR, MACHINE_GENERATION, MACHINE_SABOTAGE, MAX_VCPUS, PTE_A, PTE_D, PTE_PPN_SHIFT, PTE_R,
  PTE_U, PTE_V, PTE_W, PTE_X, SABOTAGE_NO_CROSSING, SABOTAGE_NO_SHOOTDOWN, SABOTAGE_STORE_FIRST, TLB_AREA,
  TLB_BYTES, TLB_ENTRIES, TLB_ENTRY_SHIFT, TLB_OFFSET, TLB_READ_TAG, TLB_WRITE_TAG, VCPU_AREA, VCPU_BYTES,
  VCPU_GENERATION,
} from "../src/base/layout";
import { bringIn } from "./missing";
import { addressOf, frameAt, frameOf } from "./ram";
import { beforeStore, bindThread, currentSlot, faults, now, self, setCurrentSlot } from "./tracking";

/** The kernel's page-fault handler: returns once the access can be tried again, or throws. */
// @ts-ignore: decorator
@external("host", "pageFault")
declare function pageFault(address: u32, access: u32): void;

let tlb: usize = 0;
let root: usize = 0;
/** Whether a process runs on this thread: its context is then this thread's to change. */
let active: bool = false;
let readContext: u64 = 0;
let writeContext: u64 = 0;
/** Set by walk(): the byte address of the frame that the leaf maps the address to. */
let walkedFrame: usize = 0;

const VPN_BITS: u64 = 27;

/** Binds this instance to a thread: a vCPU number, or MAX_VCPUS for the coordinator, which has no TLB. */
export function attach(number: u32): void {
  bindThread(number);
  tlb = TLB_AREA + number * TLB_BYTES;
}

function freshContext(): u64 {
  return (atomic.add<u64>(MACHINE_CONTEXT_CURSOR, 1) + 1) << VPN_BITS;
}

/** Makes a process's address space the current one. Its old tags stay valid only if it last ran on this vCPU. */
export function activate(slot: u32, rootFrame: u32): void {
  setCurrentSlot(slot);
  active = true;
  root = frameAt(rootFrame);
  const context: usize = CONTEXT_AREA + slot * CONTEXT_BYTES;
  const generation = atomic.load<u32>(MACHINE_GENERATION);
  const mine = load<u32>(context, CONTEXT_VCPU) == self + 1;
  if (!mine) store<u64>(context, freshContext(), CONTEXT_READ);
  const expired = load<u32>(context, CONTEXT_GENERATION) != generation && load<u32>(MACHINE_SABOTAGE) != SABOTAGE_NO_SHOOTDOWN;
  if (!mine || expired) {
    store<u64>(context, freshContext(), CONTEXT_WRITE);
  }
  store<u32>(context, self + 1, CONTEXT_VCPU);
  store<u32>(context, generation, CONTEXT_GENERATION);
  readContext = load<u64>(context, CONTEXT_READ);
  writeContext = load<u64>(context, CONTEXT_WRITE);
}

/** No process runs on this thread any more; call before it is put back, where another vCPU may take it. */
export function deactivate(): void {
  active = false;
}

/** Forgets every tag of a slot's address space, on all vCPUs; for a slot that no vCPU runs. */
export function dropContext(slot: u32): void {
  store<u32>(CONTEXT_AREA + slot * CONTEXT_BYTES, 0, CONTEXT_VCPU);
}

/**
 * The vCPU's side of a TLB shootdown, at a safepoint: drops its write tags if the generation moved, and acknowledges.
 * Returns true if there was something to acknowledge.
 */
export function acknowledge(): bool {
  const generation = atomic.load<u32>(MACHINE_GENERATION);
  const word: usize = VCPU_AREA + self * VCPU_BYTES + VCPU_GENERATION;
  if (load<u32>(word) == generation) return false;
  if (load<u32>(MACHINE_SABOTAGE) != SABOTAGE_NO_SHOOTDOWN) {
    writeContext = freshContext();
    const context: usize = CONTEXT_AREA + currentSlot * CONTEXT_BYTES;
    if (active) {
      store<u64>(context, writeContext, CONTEXT_WRITE);
      store<u32>(context, generation, CONTEXT_GENERATION);
    }
  }
  atomic.store<u32>(word, generation);
  return true;
}

/** Drops one page's tags of the current address space. */
export function invalidate(address: u32): void {
  if (self == MAX_VCPUS) return;
  const entry = entryOf(address);
  store<u64>(entry, 0, TLB_READ_TAG);
  store<u64>(entry, 0, TLB_WRITE_TAG);
}

// @ts-ignore: decorator
@inline
function entryOf(address: u32): usize {
  return tlb + ((address >>> (FRAME_SHIFT - TLB_ENTRY_SHIFT)) & ((TLB_ENTRIES - 1) << TLB_ENTRY_SHIFT));
}

/** Finds the leaf for an address: the PTE's byte address, or 0 if there is none or it does not allow the access. */
function walk(address: u32, access: u32): usize {
  let table = root;
  for (let level = 2; level >= 0; level--) {
    const shift = FRAME_SHIFT + 9 * level;
    const entry = table + <usize>(((<u64>address >>> shift) & 511) << 3);
    const pte = load<u64>(entry);
    if ((pte & PTE_V) == 0) return 0;
    const next = frameAt(<u32>(pte >>> PTE_PPN_SHIFT));
    if ((pte & (PTE_R | PTE_W | PTE_X)) != 0) {
      if ((pte & PTE_U) == 0) return 0;
      if ((pte & (access == ACCESS_WRITE ? PTE_W : PTE_R)) == 0) return 0;
      const within = address & ((1 << shift) - 1) & ~0xfff;
      walkedFrame = next + within;
      return entry;
    }
    table = next;
  }
  return 0;
}

/** Sets A (and D) in a leaf. A page table is memory too: its frame is marked before the bits change. */
// @ts-ignore: decorator
@inline
function setAccessed(entry: usize, bits: u64): void {
  if ((load<u64>(entry) & bits) == bits) return;
  beforeStore(frameOf(entry), FAULT_PAGE_TABLE);
  atomic.or<u64>(entry, bits);
}

/** Translates for reading, filling the read tag. Returns the frame's byte address. */
function fillRead(address: u32): usize {
  let pte = walk(address, ACCESS_READ);
  while (pte == 0) {
    pageFault(address, ACCESS_READ);
    pte = walk(address, ACCESS_READ);
  }
  setAccessed(pte, PTE_A);
  const entry = entryOf(address);
  const frame = walkedFrame;
  bringIn(frameOf(frame), 1);
  const vpn = <u64>(address >>> FRAME_SHIFT);
  store<u64>(entry, readContext | vpn, TLB_READ_TAG);
  if (load<u64>(entry, TLB_WRITE_TAG) != (writeContext | vpn)) store<u64>(entry, 0, TLB_WRITE_TAG);
  store<u32>(entry, frame - (address & ~0xfff), TLB_OFFSET);
  return frame;
}

/** Translates for writing: walk, permission, A/D, mark, and only then the write tag. Returns the frame's byte address. */
function fillWrite(address: u32): usize {
  const timed = load<u32>(MACHINE_ARMED) != 0 && faults % LATENCY_SAMPLE == 0;
  const began = timed ? now() : 0;
  const before = faults;
  let pte = walk(address, ACCESS_WRITE);
  while (pte == 0) {
    pageFault(address, ACCESS_WRITE);
    pte = walk(address, ACCESS_WRITE);
  }
  setAccessed(pte, PTE_A | PTE_D);
  const entry = entryOf(address);
  const frame = walkedFrame;
  bringIn(frameOf(frame), 1);
  const vpn = <u64>(address >>> FRAME_SHIFT);
  beforeStore(frameOf(frame), FAULT_USER); // Mark ...
  if (load<u64>(entry, TLB_READ_TAG) != (readContext | vpn)) store<u64>(entry, 0, TLB_READ_TAG);
  store<u64>(entry, writeContext | vpn, TLB_WRITE_TAG); // ... then unprotect ...
  store<u32>(entry, frame - (address & ~0xfff), TLB_OFFSET);
  if (timed && faults != before) recordLatency(now() - began);
  return frame; // ... then the caller lets the store go.
}

/** Latency histogram: quarter octaves from 16 ns. */
function recordLatency(ms: f64): void {
  const ns = <u32>(ms * 1e6);
  let bin: i32 = 0;
  if (ns >= 16) {
    const octave = 31 - <i32>clz(ns);
    bin = (octave - 4) * 4 + <i32>((ns >>> (octave - 2)) & 3);
    if (bin >= LATENCY_BINS) bin = LATENCY_BINS - 1;
  }
  const word: usize = FAULT_LATENCY + (self * LATENCY_BINS + bin) * 4;
  store<u32>(word, load<u32>(word) + 1);
}

/**
 * The slow path of a store of `bytes` bytes: both pages of a crossing store are translated before the first byte changes. It has
 * several callers so that the optimizer does not inline it: the fast path would pay for its registers.
 */
function storeSlow(address: u32, value: u64, bytes: u32): void {
  const offset = address & 0xfff;
  if (load<u32>(MACHINE_SABOTAGE) == SABOTAGE_STORE_FIRST && walk(address, ACCESS_WRITE) != 0) {
    store<u8>(walkedFrame + offset, <u8>value);
  }
  const frame = fillWrite(address);
  const split: u32 = 4096 - offset;
  if (bytes <= split) {
    // In one piece: another vCPU may look.
    if (bytes == 8) store<u64>(frame + offset, value);
    else if (bytes == 4) store<u32>(frame + offset, <u32>value);
    else store<u8>(frame + offset, <u8>value);
    return;
  }
  const crossing = address + split;
  let next: usize;
  if (load<u32>(MACHINE_SABOTAGE) == SABOTAGE_NO_CROSSING && walk(crossing, ACCESS_WRITE) != 0) next = walkedFrame;
  else next = fillWrite(crossing);
  for (let i: u32 = 0; i < bytes; i++, value >>= 8) {
    store<u8>(i < split ? frame + offset + i : next + (i - split), <u8>value);
  }
}

function loadSlow(address: u32, bytes: u32): u64 {
  const offset = address & 0xfff;
  const frame = fillRead(address);
  const split: u32 = 4096 - offset;
  if (bytes <= split) return bytes == 8 ? load<u64>(frame + offset) : bytes == 4 ? load<u32>(frame + offset) : load<u8>(frame + offset);
  const next = fillRead(address + split);
  let value: u64 = 0;
  for (let i: u32 = 0; i < bytes; i++) {
    const byte = load<u8>(i < split ? frame + offset + i : next + (i - split));
    value |= <u64>byte << (i << 3);
  }
  return value;
}

// The fast paths. A tag names the page of the access's last byte, so an access that crosses pages misses.

// @ts-ignore: decorator
@inline
export function storeAny<T>(address: u32, value: T): void {
  const entry = entryOf(address);
  if (load<u64>(entry, TLB_WRITE_TAG) == (writeContext | <u64>((address + sizeof<T>() - 1) >>> FRAME_SHIFT))) {
    store<T>(<usize>load<u32>(entry, TLB_OFFSET) + address, value);
  } else storeSlow(address, <u64>value, sizeof<T>());
}

// @ts-ignore: decorator
@inline
export function loadAny<T>(address: u32): T {
  const entry = entryOf(address);
  if (load<u64>(entry, TLB_READ_TAG) == (readContext | <u64>((address + sizeof<T>() - 1) >>> FRAME_SHIFT))) {
    return load<T>(<usize>load<u32>(entry, TLB_OFFSET) + address);
  }
  return <T>loadSlow(address, sizeof<T>());
}

/** Does what a store to this page would do, but for the store. Returns the physical address. */
export function prepareStore(address: u32): u32 { return addressOf(fillWrite(address) + (address & 0xfff)); }
/** The same for a load. */
export function prepareLoad(address: u32): u32 { return addressOf(fillRead(address) + (address & 0xfff)); }
export function load8(address: u32): u32 { return <u32>loadAny<u8>(address); }
export function load32(address: u32): u32 { return loadAny<u32>(address); }
export function store8(address: u32, value: u32): void { storeAny<u8>(address, <u8>value); }
export function store32(address: u32, value: u32): void { storeAny<u32>(address, value); }
/** One 8-byte store; the value comes in two words because a BigInt would cost more than the store. */
export function store64(address: u32, low: u32, high: u32): void {
  storeAny<u64>(address, (<u64>high << 32) | <u64>low);
}
