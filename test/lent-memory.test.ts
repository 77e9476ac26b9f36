/**
 * Memory that a save or a resume borrows is only lent: whoever asks for memory gets as much of it as if there were no save.
 * Each test takes all memory that the allocator gives, at one moment of a save, and counts.
 */
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { HibernaculumError } from "../src/base/errors.js";
import type { Pfn } from "../src/base/memory.js";
import { Reserve } from "../src/cow/reserve.js";
import { save } from "../src/hibernate.js";
import type { SaveOptions } from "../src/save-options.js";
import { openImage } from "../src/image/directory.js";
import type { Machine } from "../src/machine.js";
import { resume } from "../src/resume.js";
import { checkConsistency } from "../src/vm/views/consistency.js";
import { visitBlocks } from "../src/vm/views/walker.js";
import { KIND_KERNEL_HEAP, KIND_RESERVE, MAX_ORDER } from "../src/vm/memory/kernel-layout.js";
import { bootMachine, findWrong, MIB, scratch, sleep, until, whileStopped } from "./support.js";

/** Takes memory, in frames, until there is none, and gives it back before anybody else may miss it, unless it is kept. `of` is what there was, free or lent. */
function takeAll(machine: Machine, then: "give it back" | "keep it"): { frames: Pfn[]; of: number } {
  const { buddy, memory } = machine.kernel;
  return machine.control.locked(() => {
    let of = buddy.freeFrames;
    visitBlocks(memory, (_frame, order, use, _owner, kind) => {
      if (use === "used" && kind === KIND_RESERVE) of += 1 << order;
    });
    const frames = [];
    for (let frame: Pfn | undefined; (frame = buddy.allocate(0, 0, KIND_KERNEL_HEAP)) !== undefined; ) frames.push(frame);
    if (then === "give it back") for (const frame of frames) buddy.free(frame);
    return { frames, of };
  });
}

function giveBack(machine: Machine, frames: readonly Pfn[]): void {
  machine.control.locked(() => {
    for (const frame of frames) machine.kernel.buddy.free(frame);
  });
}

async function busyMachine(t: ExecutionContext): Promise<Machine> {
  const machine = await bootMachine(t, { ramBytes: 64 * MIB });
  machine.spawn("random:pages=6000");
  await until(() => machine.processes()[0]!.steps > 30_000, "nearly all of its pages are there");
  return machine;
}

/** Takes all memory when a save enters a phase for the `nth` time, and gives it back at once. Returns how much that was. */
function takeAt(
  machine: Machine,
  phase: "stream" | "residual",
  nth = 1,
): { options: SaveOptions; taken: () => { frames: number; of: number } } {
  let entered = 0;
  let taken = { frames: 0, of: -1 };
  const onProgress: SaveOptions["onProgress"] = (progress) => {
    if (progress.phase !== phase || progress.done > 0 || ++entered !== nth) return;
    const { frames, of } = takeAll(machine, "give it back");
    taken = { frames: frames.length, of };
  };
  return { options: { onProgress }, taken: () => taken };
}

async function isWhole(t: ExecutionContext, machine: Machine): Promise<void> {
  const { problems } = whileStopped(machine, () => checkConsistency(machine.kernel.memory));
  t.deepEqual(problems, []);
  t.deepEqual(
    whileStopped(machine, () => findWrong(machine.kernel.memory)),
    [],
  );
}

test.serial("reserve: nothing is taken back for a block that cannot be made of what is free and lent", async (t) => {
  const machine = await bootMachine(t, { ramBytes: 64 * MIB });
  const { buddy } = machine.kernel;
  const reserve = new Reserve(machine.kernel, machine.claims);
  reserve.grow(3000);
  const { unclaimed: lent } = machine.claims;
  machine.control.locked(() => {
    t.is(buddy.allocate(MAX_ORDER + 1, 0, KIND_KERNEL_HEAP), undefined, "larger than any block");
    t.is(machine.claims.unclaimed, lent);
    // All that is free is taken, then ever larger blocks of what is lent, until one cannot be made.
    const taken: Pfn[] = [];
    for (let frame: Pfn | undefined; (frame = buddy.allocateFree(0, 0, KIND_KERNEL_HEAP)) !== undefined; ) taken.push(frame);
    let order = 0;
    for (let frame: Pfn | undefined; (frame = buddy.allocate(order, 0, KIND_KERNEL_HEAP)) !== undefined; order++)
      taken.push(frame);
    t.true(order > 1, "blocks that can be made are");
    const left = machine.claims.unclaimed;
    t.true(left > 0 && left < lent);
    t.is(buddy.allocate(order, 0, KIND_KERNEL_HEAP), undefined);
    t.is(machine.claims.unclaimed, left, "one that cannot takes nothing");
    for (const frame of taken) buddy.free(frame);
  });
  reserve.release();
  await isWhole(t, machine);
});

test.serial("reserve: what is lent can be taken back, to the last frame, and what is left is given back", async (t) => {
  const machine = await bootMachine(t, { ramBytes: 64 * MIB });
  const { buddy } = machine.kernel;
  const free = buddy.freeFrames;
  const reserve = new Reserve(machine.kernel, machine.claims);
  reserve.grow(3000);
  const { unclaimed: lent } = machine.claims;
  t.true(lent >= 3000);
  const some = machine.control.locked(() => {
    const frames = [];
    while (buddy.freeFrames > 0) frames.push(buddy.allocate(0, 0, KIND_KERNEL_HEAP)!);
    frames.push(buddy.allocate(0, 0, KIND_KERNEL_HEAP)!); // from the reserve
    return frames;
  });
  t.true(machine.claims.unclaimed < lent && machine.claims.unclaimed > lent - 1000, "some at a time");
  reserve.grow(3000); // nothing is free: nothing is taken
  t.is(some.length + machine.claims.unclaimed + buddy.freeFrames, free);
  reserve.release();
  t.is(buddy.freeFrames, free - some.length);
  giveBack(machine, some);
  t.is(buddy.freeFrames, free);
  const whole = new Reserve(machine.kernel, machine.claims);
  whole.grow(3000);
  const { frames: all } = takeAll(machine, "keep it");
  t.is(all.length, free);
  t.is(machine.claims.unclaimed, 0);
  giveBack(machine, all);
  whole.release();
  t.is(buddy.freeFrames, free);
});

test.serial("save: all memory is there for who wants it while the image streams, and the image is whole", async (t) => {
  for (const keepRunning of [true, false]) {
    const machine = await busyMachine(t);
    const { options, taken } = takeAt(machine, "stream");
    const path = join(scratch(t), "a.hib");
    await save(machine, path, { ...options, keepRunning, oracle: true, reserveFrames: 9000 });
    t.is(taken().frames, taken().of);
    if (keepRunning) await isWhole(t, machine);
    const image = await openImage(path);
    t.deepEqual(findWrong(image.memory()), []);
    image.close();
  }
});

test.serial("snapshot: copies and pre-images are given up for who wants memory after the stop", async (t) => {
  for (const pauseTarget_ms of [Infinity, 0, 0.5]) {
    const machine = await busyMachine(t);
    const { options, taken } = takeAt(machine, "residual");
    const path = join(scratch(t), "a.hib");
    // Without a place in guest memory that is used, there is nothing to give up.
    let failure: unknown;
    try {
      await save(machine, path, { ...options, keepRunning: true, pauseTarget_ms });
    } catch (error) {
      failure = error;
    }
    if (pauseTarget_ms === Infinity)
      t.true(failure instanceof HibernaculumError && failure.code === "HIB_NO_MEMORY", String(failure));
    else
      t.true(
        failure === undefined || (failure instanceof HibernaculumError && failure.code === "HIB_NO_MEMORY"),
        String(failure),
      );
    t.is(taken().frames, taken().of, `pause target ${pauseTarget_ms}`);
    if (failure === undefined) {
      const image = await openImage(path);
      t.deepEqual(findWrong(image.memory()), []);
      image.close();
    }
    await isWhole(t, machine);
    await save(machine, join(scratch(t), "b.hib"), { keepRunning: true });
  }
});

test.serial("snapshot: who finds no memory at all gives up no pre-image that lies in the pool", async (t) => {
  const machine = await busyMachine(t);
  const { buddy } = machine.kernel;
  const path = join(scratch(t), "a.hib");
  let taken: Pfn[] = [];
  let refused = 0;
  const onProgress: SaveOptions["onProgress"] = ({ phase }) => {
    if (phase === "stream" && taken.length === 0) taken = takeAll(machine, "keep it").frames;
    if (phase === "residual" && machine.control.locked(() => buddy.allocate(0, 0, KIND_KERNEL_HEAP)) === undefined) refused++;
  };
  const { tail } = await save(machine, path, { keepRunning: true, onProgress });
  t.true(refused > 0 && tail.preimages > 0, `${refused} refused, ${JSON.stringify(tail)}`);
  const image = await openImage(path);
  const ofProcesses = findWrong(image.memory()).filter((line) => /^\d/.test(line)); // nobody owns what was taken
  t.deepEqual(ofProcesses, []);
  image.close();
  giveBack(machine, taken);
  await isWhole(t, machine);
});

test.serial(
  "resume: places in the queue that nothing uses are there for the boot; what is missing then is read again",
  async (t) => {
    const path = join(scratch(t), "a.hib");
    await save(await busyMachine(t), path);
    const machine = await bootMachine(t, { ramBytes: 64 * MIB });
    machine.spawn("random:pages=2000,seed=7");
    let taken: Pfn[] = [];
    let free = 0;
    let lent = 0;
    const report = await resume(machine, path, {
      keepImage: true,
      onProgress: ({ done }) => {
        if (done > 0 || taken.length > 0) return;
        free = machine.kernel.buddy.freeFrames;
        lent = machine.claims.unclaimed;
        taken = takeAll(machine, "keep it").frames;
      },
    });
    t.true(taken.length > free && lent > 0);
    t.true(report.frames.overflow > 0 || report.frames.different === 0, JSON.stringify(report.frames));
    await isWhole(t, machine);
  },
);

test.serial("two programs that live in 64 MiB live as well while snapshots are taken", async (t) => {
  const machine = await bootMachine(t, { ramBytes: 64 * MIB });
  machine.spawn("stack:pages=8000");
  machine.spawn("random:pages=5000");
  const failed = () =>
    machine
      .processes()
      .filter(({ state }) => state === "failed")
      .map(({ failure }) => failure);
  let saved = 0;
  for (let round = 0; round < 5; round++) {
    try {
      await save(machine, join(scratch(t), `${round}.hib`), { keepRunning: true, compression: "none" });
      saved++;
    } catch (error) {
      if (!(error instanceof HibernaculumError && error.code === "HIB_NO_MEMORY")) throw error;
    }
    t.deepEqual(failed(), []);
    await sleep(150);
  }
  t.true(saved > 0);
  await isWhole(t, machine);
});
