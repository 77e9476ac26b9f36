/**
 * Forks and ends that are made in parts: between two parts the machine is one that an image may have, and what goes on from there comes
 * to the same end. The vCPU runs in the test's own thread, and is watched at its safepoints.
 */
import test, { type ExecutionContext } from "ava";
import { Control } from "../src/base/control.js";
import { FRAME_BYTES, MACHINE_STOP, PTE_R, PTE_W, RAM_BASE } from "../src/base/layout.js";
import { KIND_PAGE_TABLE, KIND_USER, PROCESS_FORK, PROCESS_LAST_STATUS, processAddress } from "../src/vm/memory/kernel-layout.js";
import { A0, DATA_BASE } from "../src/vm/personality/step/program.js";
import { checkProcess } from "../src/vm/personality/step/programs/check.js";
import { SIGKILL } from "../src/vm/tasks/signals.js";
import { blocksOfKind } from "../src/vm/views/walker.js";
import { Script, ScriptedMachine } from "./scripted.js";

const RW = PTE_R | PTE_W;
/** Three parts and a bit, in 16 MiB. */
const PAGES = 2500;
const CODE = 7;

/** Calls `look` at each safepoint of the vCPU. */
function atSafepoints(t: ExecutionContext, look: () => void): void {
  const prototype = Control.prototype;
  const { load } = prototype;
  let looking = false;
  prototype.load = function (offset) {
    if (offset === MACHINE_STOP && !looking) {
      looking = true;
      look();
      looking = false;
    }
    return load.call(this, offset);
  };
  t.teardown(() => Object.assign(prototype, { load }));
}

interface Seen {
  child: string;
  status: number | undefined;
}

/** A machine whose process fills its pages, forks, and waits for a child that finds them, changes them and exits. */
function family(seen: Seen): ScriptedMachine {
  const machine = new ScriptedMachine();
  const at = (page: number) => (DATA_BASE + page * FRAME_BYTES) | 0;
  const main = new Script([
    ({ system, memory }) => {
      system.mmap({ address: DATA_BASE + FRAME_BYTES, pages: PAGES, flags: RW });
      for (let page = 1; page <= PAGES; page++) memory.store32(at(page), page);
    },
    ({ system }) => system.fork(),
    ({ memory, registers, system }) => {
      if (registers[A0] !== 0) return system.kill(0, 0);
      // A store to each hundredth page: there is no memory for copies of all.
      let wrong = 0;
      for (let page = 1; page <= PAGES; page++) if (memory.load32(at(page)) !== page) wrong++;
      for (let page = 1; page <= PAGES; page += 100) memory.store32(at(page), -page);
      seen.child = wrong === 0 ? "found all" : `${wrong} wrong`;
      system.exit(CODE);
      return "asked";
    },
    ({ memory, system }) => {
      const ended = system.wait(-1);
      if (ended === undefined) return "waits";
      for (let page = 1; page <= PAGES; page++) if (memory.load32(at(page)) !== page) return "done";
      seen.status = typeof ended === "object" ? ended.status : ended;
      machine.off();
      return "asked";
    },
  ]);
  machine.add({ main });
  return machine;
}

const stateOf = (machine: ScriptedMachine) => machine.processes().map(({ state }) => state);

/** All of RAM. */
const ram = ({ memory }: ScriptedMachine): Uint8Array => new Uint8Array(memory.buffer).slice(RAM_BASE);

test.serial("whatever part of a fork or an end an image is taken after, what goes on from it comes to the same end", (t) => {
  const seen: Seen = { child: "", status: undefined };
  const machine = family(seen);
  const images: { what: string; bytes: Uint8Array }[] = [];
  machine.start("main");
  machine.start("watchdog");
  atSafepoints(t, () => {
    const what = stateOf(machine).find((state) => state === "embryo" || state === "ending");
    if (what === undefined) return;
    for (const process of machine.processes())
      if (process.state === what)
        t.regex(checkProcess(machine.kernel.memory, process).not_recomputed ?? "", /forking|given back/);
    const bytes = ram(machine);
    if (images.some((image) => Buffer.compare(image.bytes, bytes) === 0)) return;
    t.deepEqual(machine.problems(), []);
    images.push({ what, bytes });
  });
  machine.go();
  t.deepEqual(seen, { child: "found all", status: CODE << 8 });
  const often = (wanted: string) => images.filter(({ what }) => what === wanted).length;
  t.true(often("embryo") >= 2, `${often("embryo")} images within a fork`);
  t.true(often("ending") >= 2, `${often("ending")} images within an end`);
  for (const { what, bytes } of images) {
    const went: Seen = { child: what === "embryo" ? "" : "found all", status: undefined };
    const next = family(went);
    new Uint8Array(next.memory.buffer).set(bytes, RAM_BASE);
    next.kernel.buddy.rebuildSaveable();
    next.kernel.turns.releaseRunning();
    next.go();
    t.deepEqual(went, { child: "found all", status: CODE << 8 }, what);
    t.deepEqual(next.problems(), []);
  }
});

/** Runs a family until it is within a fork, and then does something, once. */
function within(
  t: ExecutionContext,
  act: (machine: ScriptedMachine, parent: number, child: number) => void,
): Seen & { machine: ScriptedMachine } {
  const seen: Seen = { child: "", status: undefined };
  const machine = family(seen);
  const { kernel } = machine;
  const { slot } = machine.start("main");
  machine.start("watchdog");
  let done = false;
  atSafepoints(t, () => {
    const child = machine.processes().find(({ state }) => state === "embryo");
    if (done || child === undefined) return;
    done = true;
    act(machine, slot, child.slot);
    t.deepEqual(machine.problems(), []);
    if (kernel.memory.load32(processAddress(kernel.memory, slot) + PROCESS_FORK) === 0) machine.off();
  });
  machine.go();
  t.true(done);
  return { ...seen, machine };
}

test.serial("a process that is ended within its fork leaves nothing of its child", (t) => {
  const { machine, child } = within(t, ({ kernel }, parent) => kernel.lifecycle.end(parent));
  t.is(child, "");
  t.deepEqual(stateOf(machine), []);
  // The watchdog's code page and stack.
  t.true(blocksOfKind(machine.kernel.memory, KIND_USER).length <= 3);
  t.true(blocksOfKind(machine.kernel.memory, KIND_PAGE_TABLE).length <= 6);
});

test.serial("a child that is ended before it is born ends when it is", (t) => {
  const { child, status } = within(t, ({ kernel }, _, child) => kernel.lifecycle.end(child));
  t.deepEqual({ child, status }, { child: "", status: SIGKILL });
});

test.serial("an image whose embryo nobody is forking, or whose fork has none, is not consistent", (t) => {
  within(t, (machine, parent) => {
    const { memory } = machine.kernel;
    const at = processAddress(memory, parent) + PROCESS_FORK;
    const [child, page] = [memory.load32(at), memory.load32(at + 4)];
    for (const [word, what] of [
      [0, /is an embryo, and nobody forks/],
      [parent + 1, /forks, and its child is none/],
      [500, /forks, and its child is none/],
    ] as const) {
      memory.store32(at, word);
      t.regex(machine.problems().join("\n"), what);
    }
    memory.store32(at, child);
    memory.store32(at + 4, 2 ** 20);
    t.regex(machine.problems().join("\n"), /it is at page 1048576/);
    memory.store32(at + 4, page);
  });
});

test.serial("memory of a process that is ending is there for whoever finds none", (t) => {
  const seen: Seen = { child: "", status: undefined };
  const machine = family(seen);
  const { buddy, control, lifecycle, memory } = machine.kernel;
  machine.start("main");
  machine.start("watchdog");
  let found = 0;
  atSafepoints(t, () => {
    const ending = machine.processes().find(({ state, vcpu }) => state === "ending" && vcpu < 0);
    if (found > 0 || ending === undefined) return;
    t.is(memory.load32(processAddress(memory, ending.slot) + PROCESS_LAST_STATUS), CODE << 8);
    control.locked(() => {
      const all = [];
      for (
        let frame = buddy.allocateFree(0, 0, KIND_PAGE_TABLE);
        frame !== undefined;
        frame = buddy.allocateFree(0, 0, KIND_PAGE_TABLE)
      )
        all.push(frame);
      const more = buddy.allocate(0, 0, KIND_PAGE_TABLE);
      if (more !== undefined) all.push(more);
      found = more === undefined ? -1 : 1;
      for (const frame of all) buddy.free(frame);
    });
    t.false(lifecycle.reclaim(), "it has given back what it had");
  });
  machine.go();
  t.is(found, 1);
  t.deepEqual(seen, { child: "found all", status: CODE << 8 });
});
