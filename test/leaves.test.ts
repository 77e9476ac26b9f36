/**
 * The core's loops over leaves (assembly/leaves.ts) against what they are to do, leaf by leaf and frame by frame, on random address
 * spaces, in parts of random sizes. HIB_SEED repeats a run; HIB_MEMORY_RUNS makes it longer.
 */
import process from "node:process";
import test from "ava";
import { FRAME_BYTES, PTE_COW, PTE_PARKED, PTE_R, PTE_U, PTE_V, PTE_W, PTE_X } from "../src/base/layout.js";
import type { Pfn } from "../src/base/memory.js";
import { GuestFault } from "../src/vm/memory/address-space.js";
import { PROCESS_ROOT, processAddress } from "../src/vm/memory/kernel-layout.js";
import { HUGE_BYTES, HUGE_PAGES, walkLeaves } from "../src/vm/memory/page-table.js";
import { A0, DATA_BASE } from "../src/vm/personality/step/program.js";
import { listProcesses, readProcess, readRegisters } from "../src/vm/tasks/process.js";
import { checkConsistency } from "../src/vm/views/consistency.js";
import { callsOf, Draws, HandMachine, MIB } from "./support.js";

const RW = PTE_R | PTE_W;
const MAPPED = 0x4000_0000;
const PERMISSIONS = PTE_R | PTE_W | PTE_X;

interface Leaf {
  frame: Pfn;
  flags: number;
  level: number;
}

/** A machine whose process has private, shared, copied, parked and 2 MiB leaves, in blocks of many sizes. */
function draw(draws: Draws) {
  const machine = new HandMachine({ ramBytes: 48 * MIB });
  const dataPages = draws.between(1, 700);
  const parent = machine.spawn(dataPages, 5);
  const calls = callsOf(machine, parent);
  const core = machine.run(parent);
  const touch = (address: number, pages: number, often: number): void => {
    for (let page = 0; page < pages; page++) {
      if (draws.below(often) > 0) continue;
      if (draws.below(3) === 0) core.load8((address + page * FRAME_BYTES) | 0);
      else core.store8((address + page * FRAME_BYTES) | 0, page);
    }
  };
  for (let i = 0, at = MAPPED; i < 4; i++, at += 3 * HUGE_BYTES) {
    const pages = draws.between(1, 600);
    calls.mmap({ address: at, pages, flags: RW, shared: draws.below(3) === 0 });
    touch(at, pages, draws.between(1, 3));
    if (draws.below(2) === 0) calls.madviseHuge(at, pages);
    if (draws.below(4) === 0) calls.mprotect(at, pages, draws.of([0, PTE_R]));
  }
  const { lifecycle } = machine.vcpus[0]!.kernel;
  if (draws.below(2) === 0) {
    lifecycle.fork(parent.slot);
    while (lifecycle.goOn(parent.slot));
    machine.run(parent);
    touch(DATA_BASE, Math.min(50, dataPages), 2);
  }
  return { machine, parent, calls };
}

function leavesOf({ kernel: { memory } }: HandMachine, slot: number): Map<number, Leaf> {
  const root = memory.load32(processAddress(memory, slot) + PROCESS_ROOT);
  return new Map([...walkLeaves(memory, root)].map(({ address, frame, flags, level }) => [address, { frame, flags, level }]));
}

/** How many hold the block of each frame that is mapped. */
function held({ kernel: { buddy } }: HandMachine, leaves: Iterable<Leaf>): Map<Pfn, number> {
  return new Map([...leaves].map(({ frame }) => [frame, buddy.references(buddy.headOf(frame))]));
}

test("fork, mprotect and munmap do to each leaf, and to its frame, what they are to do", (t) => {
  const draws = new Draws(t);
  const met = new Set<string>();
  for (let run = 0; run < Number(process.env["HIB_MEMORY_RUNS"] ?? 8); run++) {
    const { machine, parent, calls } = draw(draws);
    const { memory } = machine.kernel;
    const kernel = machine.vcpus[0]!.kernel;
    kernel.lifecycle.leavesAPart = draws.of([1, 7, 100, 511, 512, 513, 5000]);
    const areaOf = (address: number) =>
      [...kernel.space(parent.slot).areas()].find(({ start, end }) => address >= start && address < end)!;

    const end = (slot: number): void => {
      kernel.turns.putBack(slot, 0, { do: "exit", status: 0 });
      for (let part = 0; readProcess(memory, slot)?.state === "ending"; part++) {
        if (part % 32 < 2) t.deepEqual(checkConsistency(memory).problems, []);
        kernel.turns.putBack(slot, 0, { do: "ready" });
        met.add("end in parts");
      }
    };

    let before = leavesOf(machine, parent.slot);
    let refs = held(machine, before.values());
    kernel.lifecycle.fork(parent.slot);
    while (kernel.lifecycle.goOn(parent.slot));
    const child = readRegisters(memory, parent.slot)[A0];
    const { slot } = listProcesses(memory).find(({ pid }) => pid === child)!;
    const expected = new Map(
      [...before].map(([address, { frame, flags, level }]) => {
        const copied = !areaOf(address).shared && (flags & PTE_W) !== 0;
        met.add(copied ? "copied on write" : "given as it is").add(`level ${level}`);
        if ((flags & PTE_PARKED) !== 0) met.add("parked");
        return [address, { frame, flags: copied ? (flags & ~PTE_W) | PTE_COW : flags, level }];
      }),
    );
    t.deepEqual(leavesOf(machine, parent.slot), expected);
    t.deepEqual(leavesOf(machine, slot), expected);
    for (const [frame, references] of held(machine, before.values()))
      if (references !== refs.get(frame)! + 1) t.fail(`frame ${frame}`);

    // Some of the parent's pages are its own again.
    const core = machine.run(parent);
    const stored = [...expected]
      .filter(([, { flags }]) => (flags & PTE_COW) !== 0 && draws.below(3) === 0)
      .map(([address]) => address)
      .slice(0, 200);
    for (const address of stored) core.store8(address | 0, 1);
    const copied = leavesOf(machine, parent.slot);
    t.true(
      stored.every((address) => (copied.get(address)!.flags & (PTE_COW | PTE_W)) === PTE_W),
      "no tag from before the fork is left",
    );
    if (draws.below(2) === 0) end(slot);
    for (let i = 0; i < 8; i++) {
      const area = draws.of([...kernel.space(parent.slot).areas()].filter(({ kind }) => kind === "data" || kind === "mapping"));
      const start = area.start + draws.below((area.end - area.start) / FRAME_BYTES) * FRAME_BYTES;
      const pages = draws.between(1, (area.end - start) / FRAME_BYTES);
      const end = start + pages * FRAME_BYTES;
      const isIn = (address: number) => address >= start && address < end;
      const tagged = [...leavesOf(machine, parent.slot)].find(
        ([address, { flags }]) => isIn(address) && (flags & PTE_W) !== 0,
      )?.[0];
      if (tagged !== undefined) core.store8(tagged | 0, 1);
      before = leavesOf(machine, parent.slot);
      refs = held(machine, before.values());
      const whole = [...before].every(
        ([address, { level }]) =>
          level === 0 || address >= end || address + HUGE_BYTES <= start || (address >= start && address + HUGE_BYTES <= end),
      );
      if (!whole) continue; // it would split a 2 MiB leaf: memory.test.ts
      const outside = [...before].filter(([address]) => !isIn(address));
      const inside = [...before].filter(([address]) => isIn(address));
      if (draws.below(3) > 0) {
        const flags = draws.of([0, PTE_R, RW]);
        t.is(calls.mprotect(start | 0, pages, flags), 0);
        const now = leavesOf(machine, parent.slot);
        for (const [address, leaf] of inside) {
          const kept = leaf.flags & ~(PERMISSIONS | PTE_COW | PTE_PARKED | PTE_V);
          const alone = refs.get(leaf.frame) === 1;
          const may = area.shared || alone || (flags & PTE_W) === 0 ? flags : (flags & ~PTE_W) | PTE_COW;
          const wanted = kept | PTE_U | (flags === 0 ? PTE_PARKED : may | PTE_V);
          t.deepEqual(now.get(address), { ...leaf, flags: wanted }, `mprotect ${flags} of 0x${address.toString(16)}`);
        }
        t.deepEqual(new Map([...now].filter(([address]) => !isIn(address))), new Map(outside));
        t.is(now.size, before.size);
        if (tagged !== undefined && (flags & PTE_W) === 0)
          t.throws(() => core.store8(tagged | 0, 1), { instanceOf: GuestFault }, "no tag from before mprotect is left");
        met.add(`mprotect ${flags}`);
      } else {
        const { freeFrames } = kernel.buddy;
        t.is(calls.munmap(start | 0, pages), 0);
        const now = leavesOf(machine, parent.slot);
        t.deepEqual(now, new Map(outside));
        const gone = inside.filter(([, { frame }]) => refs.get(frame) === 1);
        const frames = gone.reduce((sum, [, { level }]) => sum + (level === 0 ? 1 : HUGE_PAGES), 0);
        t.true(kernel.buddy.freeFrames >= freeFrames + frames, "what nobody else holds is free"); // and tables
        for (const [, { frame }] of inside) {
          const references = refs.get(frame)!;
          if (references > 1 && kernel.buddy.references(kernel.buddy.headOf(frame)) !== references - 1) t.fail(`frame ${frame}`);
        }
        met.add("munmap");
      }
    }
    t.deepEqual(checkConsistency(memory).problems, []);
    end(parent.slot);
    // Blocks that no fork has split: some pages go, then all that is left.
    kernel.lifecycle.leavesAPart = draws.between(50, 300);
    const whole = machine.spawn(600, 3);
    const [first, pages] = [draws.of([0, draws.below(300)]), draws.between(1, 300)];
    t.is(callsOf(machine, whole).munmap((DATA_BASE + first * FRAME_BYTES) | 0, pages), 0);
    t.deepEqual(checkConsistency(memory).problems, []);
    end(whole.slot);
    t.deepEqual(checkConsistency(memory).problems, []);
  }
  t.log([...met]);
});
