/**
 * Who runs next, and who is woken: the test picks and puts back by hand and says how long each ran, so that shares are exact.
 * And what an image sees of a process that leaves its vCPU.
 */
import { Worker } from "node:worker_threads";
import test from "ava";
import { type Leave, Wait } from "../src/vm/tasks/wait.js";
import { RAM_BASE } from "../src/base/layout.js";
import * as K from "../src/vm/memory/kernel-layout.js";
import { SIGCONT, SIGKILL, SIGSTOP } from "../src/vm/tasks/signals.js";
import { runScripts, Script } from "./scripted.js";
import { HandMachine } from "./support.js";
import { processAddress } from "../src/vm/memory/kernel-layout.js";

const SLICE_MS = 2;

const addressOf = (machine: HandMachine, slot: number) => processAddress(machine.kernel.memory, slot);

/** A machine with processes of these nice values; their slots are 0, 1, ... */
function machineOf(...nices: number[]): HandMachine {
  const machine = new HandMachine();
  for (const nice of nices) {
    const { slot } = machine.spawn(1);
    machine.kernel.memory.store32(addressOf(machine, slot) + K.PROCESS_NICE, nice);
  }
  return machine;
}

/** Lets vCPUs pick so many times, each for a slice; returns how often each slot was picked. */
function slices({ kernel }: HandMachine, rounds: number, vcpus = 1): number[] {
  const picked: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const slots = Array.from({ length: vcpus }, (_, vcpu) => kernel.turns.pick(vcpu)).filter((slot) => slot >= 0);
    for (const slot of slots) {
      picked[slot] = (picked[slot] ?? 0) + 1;
      kernel.turns.putBack(slot, SLICE_MS, { do: "ready" });
    }
  }
  return picked;
}

test("a nicer process gets less, by a quarter more for each step; the same nice value, the same share", (t) => {
  const [a, b, nicer, nicest] = slices(machineOf(0, 0, 5, 19), 30_000);
  t.true(Math.abs(a! - b!) <= 1);
  t.true(Math.abs(a! / nicer! / 1.25 ** 5 - 1) < 0.02, `${a} ${nicer}`);
  t.true(Math.abs(a! / nicest! / 1.25 ** 19 - 1) < 0.05, `${a} ${nicest}`);
});

test("on fewer vCPUs than before nobody waits for what it had more than others", (t) => {
  const machine = machineOf(0, 19);
  slices(machine, 5000, 2); // each had a vCPU of its own
  const [, nicest] = slices(machine, 200, 1);
  t.true(nicest! > 0);
});

test("who begins, one after another, does not keep out those who are there", (t) => {
  const machine = machineOf(0);
  let old = 0;
  for (let round = 0; round < 1000; round++) {
    const { slot } = machine.spawn(1);
    while (true) {
      const picked = machine.kernel.turns.pick(0);
      if (picked === slot) break;
      old++;
      machine.kernel.turns.putBack(picked, SLICE_MS, { do: "ready" });
    }
    machine.kernel.turns.putBack(slot, SLICE_MS, { do: "exit", status: 0 });
  }
  t.true(old > 400, `${old}`);
});

test("who sleeps much comes first when it wakes, and not for longer than the credit", (t) => {
  const machine = machineOf(0, 0);
  const { kernel } = machine;
  t.is(kernel.turns.pick(0), 0);
  kernel.turns.putBack(0, SLICE_MS, { do: "sleep", until: 1e6 });
  slices(machine, 1000);
  machine.control.setGuestClock(1e6 + 1);
  t.deepEqual(slices(machine, 1), [1]);
  const after = slices(machine, 100);
  t.true(Math.abs(after[0]! - after[1]!) <= 2, `${after}`);
});

test("a call that has to wait leaves what it waits for noted, and whoever changes that wakes it; one that need not leaves nothing", (t) => {
  const machine = machineOf(0);
  const { kernel } = machine;
  const at = addressOf(machine, 0);
  const state = () => kernel.memory.load32(at + K.PROCESS_STATE);
  const channel = 0x1234_0000;
  t.is(kernel.turns.pick(0), 0);
  t.is(
    kernel.turns.attempt(0, () => 7),
    7,
  );
  t.is(kernel.memory.load32(at + K.PROCESS_CHANNEL), 0);
  const wait = kernel.turns.attempt(0, () => new Wait(channel));
  t.true(wait instanceof Wait);
  kernel.turns.putBack(0, 0, { do: "wait" });
  t.is(state(), K.PROCESS_BLOCKED);
  kernel.scheduler.wake(channel);
  t.is(state(), K.PROCESS_READY);
});

test("many who slept long and wake one after another have no more credit than one", (t) => {
  const sleepers = 20;
  const machine = machineOf(...Array.from({ length: sleepers }, () => 0));
  const { kernel } = machine;
  const wakes = (sleeper: number) => (sleeper + 1) * 1e6;
  for (let sleeper = 0; sleeper < sleepers; sleeper++) {
    t.is(kernel.turns.pick(0), sleeper);
    kernel.turns.putBack(sleeper, 0, { do: "sleep", until: wakes(sleeper) });
  }
  const hog = machine.spawn(1).slot;
  slices(machine, 100);
  for (let sleeper = 0; sleeper < sleepers; sleeper++) {
    machine.control.setGuestClock(wakes(sleeper));
    t.is(kernel.turns.pick(0), sleeper);
    kernel.turns.putBack(sleeper, 0.001, sleeper === sleepers - 1 ? { do: "ready" } : { do: "sleep", until: Infinity });
  }
  t.true(slices(machine, 10)[hog]! >= 4);
});

test("what comes between the look and the lying down is not slept through: an event, a signal", (t) => {
  const machine = machineOf(0, 0);
  const { kernel } = machine;
  const at = addressOf(machine, 0);
  const state = () => kernel.memory.load32(at + K.PROCESS_STATE);
  const channel = 0x1234_0000;
  const begin = () => {
    t.is(kernel.turns.pick(0), 0);
    kernel.scheduler.waitFor(at, channel, 1e8);
  };
  begin();
  kernel.scheduler.wake(channel);
  kernel.turns.putBack(0, 0, { do: "wait" });
  t.is(state(), K.PROCESS_READY, "woken before");
  begin();
  kernel.turns.putBack(0, 0, { do: "wait" });
  t.is(state(), K.PROCESS_BLOCKED);
  kernel.scheduler.wake(channel + 32);
  t.is(state(), K.PROCESS_BLOCKED, "another's event");
  kernel.scheduler.wake(channel);
  t.is(state(), K.PROCESS_READY, "woken after");
  for (const rest of [{ do: "wait" }, { do: "sleep", until: 1e9 }] satisfies Leave[]) {
    begin();
    kernel.groups.kill(undefined, 1, 15);
    kernel.turns.putBack(0, 0, rest);
    t.is(state(), K.PROCESS_READY, "a signal came");
    t.is(
      kernel.memory.loadFloat64(at + K.PROCESS_WAKE),
      rest.do === "sleep" ? rest.until : 0,
      "who slept is still asleep but for the signal",
    );
    kernel.memory.store32(at + K.PROCESS_PENDING, 0);
    kernel.memory.storeFloat64(at + K.PROCESS_WAKE, 0);
  }
});

test("a process that takes a stop signal and is told to continue before it rests does not stop; else it does", (t) => {
  const machine = machineOf(0);
  const { kernel } = machine;
  const at = addressOf(machine, 0);
  for (const [signals, state] of [
    [[], K.PROCESS_STOPPED],
    [[SIGCONT], K.PROCESS_READY],
    [[SIGCONT, SIGSTOP], K.PROCESS_STOPPED],
    [[SIGKILL], K.PROCESS_READY],
  ] satisfies [number[], number][]) {
    t.is(kernel.turns.pick(0), 0);
    kernel.groups.kill(undefined, 1, SIGSTOP);
    t.deepEqual(kernel.signals.take(at), { do: "stop" });
    for (const signal of signals) kernel.groups.kill(undefined, 1, signal);
    kernel.turns.putBack(0, 0, { do: "stop" });
    t.is(kernel.memory.load32(at + K.PROCESS_STATE), state, `${signals}`);
    kernel.groups.kill(undefined, 1, SIGCONT);
  }
});

test("a wait that has an end ends; and one that was over before leaves no end behind", (t) => {
  const machine = machineOf(0);
  const { kernel } = machine;
  const at = addressOf(machine, 0);
  machine.control.setGuestClock(100);
  kernel.turns.pick(0);
  kernel.scheduler.waitFor(at, 0x40, 1000);
  kernel.turns.putBack(0, 0, { do: "wait" });
  t.is(kernel.turns.pick(0), -1);
  machine.control.setGuestClock(1001);
  t.is(kernel.turns.pick(0), 0);
  kernel.scheduler.waitFor(at, 0x40, 2000);
  kernel.scheduler.wake(0x40);
  kernel.turns.putBack(0, 0, { do: "wait" });
  t.is(kernel.memory.loadFloat64(at + K.PROCESS_WAKE), 0);
});

test("an idle vCPU sleeps until the next alarm at most", (t) => {
  const machine = machineOf(0);
  const { kernel } = machine;
  kernel.turns.pick(0);
  kernel.control.locked(() => kernel.signals.setAlarm(addressOf(machine, 0), 30, 0));
  kernel.turns.putBack(0, 0, { do: "sleep", until: Infinity });
  t.is(kernel.turns.pick(0), -1);
  t.true(kernel.scheduler.untilWake(1000) <= 30);
  machine.control.setGuestClock(machine.control.guestNow() + 31);
  t.is(kernel.turns.pick(0), 0, "SIGALRM");
});

test("an image never sees a process between the step that asks for something and its rest", (t) => {
  // The step itself waits until another thread has asked for a stop: so the very next safepoint is the one that is seen.
  const shared = new Int32Array(new SharedArrayBuffer(8));
  const slotOfMain = 0;
  const source = `
    import { workerData } from "node:worker_threads";
    import { Quiesce } from ${JSON.stringify(new URL("../src/cow/quiesce.js", import.meta.url).href)};
    import { Control } from ${JSON.stringify(new URL("../src/base/control.js", import.meta.url).href)};
    import { MACHINE_STOP } from ${JSON.stringify(new URL("../src/base/layout.js", import.meta.url).href)};
    const { memory, shared, word } = workerData;
    const quiesce = new Quiesce(new Control(memory), 1);
    Atomics.store(shared, 0, 1);
    Atomics.notify(shared, 0);
    Atomics.wait(shared, 0, 1);
    quiesce.stop();
    Atomics.store(shared, 1, new Int32Array(memory.buffer)[word]);
    quiesce.go();`;
  runScripts((machine) => {
    const word = (RAM_BASE + addressOf(machine, slotOfMain) + K.PROCESS_STATE) / 4;
    new Worker(new URL(`data:text/javascript,${encodeURIComponent(source)}`), {
      workerData: { memory: machine.memory, shared, word },
    }).unref();
    return {
      main: new Script([
        ({ system }) => {
          Atomics.wait(shared, 0, 0);
          Atomics.store(shared, 0, 2);
          Atomics.notify(shared, 0);
          while (!machine.stopping) Atomics.wait(shared, 0, 2, 1);
          system.sleep(50);
        },
        machine.off,
      ]),
    };
  });
  t.is(K.PROCESS_STATE_NAMES[shared[1]!], "sleeping");
});
