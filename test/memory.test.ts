/**
 * Address spaces: fork with copy on write, shared mappings, mmap, munmap, mprotect, 2 MiB mappings, stacks, each in chosen cases.
 * All of it together, against a model, is in memory-model.test.ts. No threads: the test takes every step of the vCPUs itself.
 */
import ava, { type ExecutionContext } from "ava";
import { FRAME_BYTES, PTE_R, PTE_W } from "../src/base/layout.js";
import { GuestFault } from "../src/vm/address-space.js";
import { checkConsistency } from "../src/vm/consistency.js";
import { EINVAL } from "../src/vm/errno.js";
import { type Process } from "../src/vm/process.js";
import { HEAP_BASE, type KernelCalls } from "../src/vm/program.js";
import { createSystemCalls } from "../src/vm/system-calls.js";
import { HandMachine } from "./support.js";

/** One at a time: they are short. */
const test = ava.serial;

const PAGE = FRAME_BYTES;
const RW = PTE_R | PTE_W;

/** The calls of a process, on a vCPU that runs it. */
function callsOf(machine: HandMachine, process: Process, vcpu = 0): KernelCalls {
  machine.run(process, vcpu);
  return createSystemCalls(
    machine.vcpus[vcpu]!.kernel,
    process.slot,
    () => undefined,
    () => undefined,
  );
}

function consistent(t: ExecutionContext, { kernel }: HandMachine): void {
  t.deepEqual(checkConsistency(kernel.memory).problems, []);
}

test("mmap: an address above 2 GiB may be given as a signed number, as everywhere", (t) => {
  const machine = new HandMachine();
  const calls = callsOf(machine, machine.spawn(1));
  t.is(calls.mmap({ address: 0xc000_0000 | 0, pages: 1, flags: RW }), 0xc000_0000);
  t.is(calls.mmap({ address: 0xffff_f000 | 0, pages: 1, flags: RW }), -EINVAL);
});

// ---- the heap area ----

test("map: a heap page that mprotect has closed is taken; a range that munmap took is not the heap's any more", (t) => {
  const machine = new HandMachine();
  const calls = callsOf(machine, machine.spawn(1));
  const { core } = machine.vcpus[0]!;
  calls.map(HEAP_BASE, 0);
  core.store32(HEAP_BASE, 7);
  t.is(calls.mprotect(HEAP_BASE, 1, 0), 0);
  t.throws(() => calls.map(HEAP_BASE, 0), { instanceOf: GuestFault, message: /which is mapped/ });
  t.true(calls.map(HEAP_BASE + 4 * PAGE, 2), "the rest of the heap is as it was");
  calls.mprotect(HEAP_BASE + 8 * PAGE, 1, PTE_R);
  t.true(calls.map(HEAP_BASE + 8 * PAGE, 0));
  t.throws(() => core.store32(HEAP_BASE + 8 * PAGE, 1), { instanceOf: GuestFault });
  t.is(core.load32(HEAP_BASE + 8 * PAGE), 0);
  calls.munmap(HEAP_BASE + 16 * PAGE, 4);
  t.throws(() => calls.map(HEAP_BASE + 17 * PAGE, 0), { instanceOf: GuestFault, message: /outside the heap area/ });
  t.throws(() => calls.map(HEAP_BASE + 15 * PAGE, 1), { instanceOf: GuestFault, message: /outside the heap area/ });
  consistent(t, machine);
});
