/**
 * Several processes do with their memory whatever they can, on several vCPUs, with little memory and much, tracked and not; the
 * machine must agree byte for byte with a plain model (memory-model.ts), stay consistent, mark what it changes, and keep nothing.
 *
 * HIB_SEED repeats the drawn actions; HIB_MEMORY_RUNS makes them more.
 */
import { randomInt } from "node:crypto";
import process from "node:process";
import test from "ava";
import fc from "fast-check";
import { FRAME_BYTES, PTE_R, PTE_W, PTE_X } from "../src/base/layout.js";
import { type Action, ACTIONS, MemoryModel } from "./memory-model.js";

const PAGE = FRAME_BYTES;
const RW = PTE_R | PTE_W;

const kinds = Object.entries(ACTIONS).flatMap(([what, often]) => Array<string>(often).fill(what)) as Action["what"][];

const action = fc.record<Action>({
  what: fc.constantFrom(...kinds),
  process: fc.oneof(fc.nat(1), fc.nat(7)),
  vcpu: fc.nat(11),
  region: fc.nat(7),
  page: fc.nat(2000),
  far: fc.boolean(),
  pages: fc.nat(1100),
  large: fc.nat(5).map((draw) => draw === 0),
  flags: fc.constantFrom(0, PTE_R, RW, RW, PTE_R | PTE_X, PTE_W, PTE_X),
  offset: fc.oneof(fc.constantFrom(0, 8, PAGE - 8, PAGE - 7, PAGE - 4, PAGE - 3, PAGE - 1), fc.nat(PAGE - 1)),
  value: fc.integer({ min: 0, max: 0x7fff_ffff }),
});

/** Ends of actions that a run must have met, to be worth anything. */
const WANTED = [
  "fork",
  "fork without memory",
  "fork in parts",
  "exit in parts",
  "wait",
  "exit",
  "share",
  "anywhere",
  "munmap",
  "mprotect",
  "mprotect without memory",
  "advise some",
  "map",
  "unmap",
  "shrink",
  "stack grows",
  "load32 across",
  "store64 across",
  "store64 denied",
  "store64 without memory",
];

test("whatever processes do with their memory, they see what a plain model says, and nothing is left of it", (t) => {
  t.timeout(2 ** 31 - 1);
  const seed = Number(process.env["HIB_SEED"] ?? randomInt(2 ** 31));
  const numRuns = Number(process.env["HIB_MEMORY_RUNS"] ?? 60);
  t.log(`HIB_SEED=${seed}`);
  const met = new Map<string, number>();
  const property = fc.property(fc.array(action, { minLength: 1, maxLength: 300, size: "max" }), (actions) => {
    const model = new MemoryModel();
    model.run(actions);
    for (const [what, count] of model.met) met.set(what, (met.get(what) ?? 0) + count);
  });
  const result = fc.check(property, { seed, numRuns, interruptAfterTimeLimit: 300_000, markInterruptAsFailure: true });
  const error = result.errorInstance as Error | undefined;
  t.false(result.failed, `seed ${seed}: ${error?.message}\n${JSON.stringify(result.counterexample)}`);
  t.log(Object.fromEntries([...met].sort()));
  if (numRuns >= 60) for (const what of WANTED) t.true((met.get(what) ?? 0) > 0, what);
});
