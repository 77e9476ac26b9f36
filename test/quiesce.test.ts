/**
 * A vCPU that comes to a safepoint when the stop has been given up: for a moment it seems to be stopped. Whoever stops the machine
 * again, or arms, at just that moment does not wait for it, so it must not run on. The vCPU runs in the test's own thread; the
 * coordinator's part is done between two accesses of the vCPU's to the control area.
 */
import test from "ava";
import { bit, Control } from "../src/base/control.js";
import {
  COMMAND_RUN,
  DIRTY_BITMAP,
  MACHINE_COMMAND,
  MACHINE_COMMAND_BELL,
  MACHINE_STOP,
  VCPU_STATE,
  VCPU_STATE_RUNNING,
} from "../src/base/layout.js";
import { Quiesce } from "../src/cow/quiesce.js";
import { WriteTracking } from "../src/cow/tracking.js";
import { DATA_BASE } from "../src/vm/personality/step/program.js";
import { STATE } from "../src/vm/personality/step/programs/states.js";
import { type Act, Script, ScriptedMachine } from "./scripted.js";

/** Accesses of the vCPU's before which something is done, once. */
type Place = "beforeBell" | "beforeRunning" | "onWait";

/** Does things at given places; the control area is the same for all threads, and here one thread plays both parts. */
class Interleaving {
  readonly at: Partial<Record<Place, () => void>> = {};
  readonly end: () => void;

  constructor() {
    const { at } = this;
    const prototype = Control.prototype;
    const { load, storeVcpu, wait } = prototype;
    const pass = (place: Place): void => {
      const act = at[place];
      delete at[place];
      act?.();
    };
    prototype.load = function (offset) {
      if (offset === MACHINE_COMMAND_BELL) pass("beforeBell");
      return load.call(this, offset);
    };
    prototype.storeVcpu = function (vcpu, offset, value) {
      if (offset === VCPU_STATE && value === VCPU_STATE_RUNNING) pass("beforeRunning");
      storeVcpu.call(this, vcpu, offset, value);
    };
    prototype.wait = function (offset, seen, ms) {
      if (offset === MACHINE_COMMAND_BELL && at.onWait === undefined)
        release(this); // a test that fails must not hang
      else if (offset === MACHINE_COMMAND_BELL) pass("onWait");
      wait.call(this, offset, seen, ms);
    };
    this.end = () => Object.assign(prototype, { load, storeVcpu, wait });
  }
}

/** What `stop` does when it gives up, and `go` before it waits. */
function release(control: Control): void {
  control.store(MACHINE_STOP, 0);
  control.store(MACHINE_COMMAND, COMMAND_RUN);
  control.ring(MACHINE_COMMAND_BELL);
}

/** Enough that some are not at the end of the process's slice. */
const ROUNDS = 20;

/** Runs a vCPU that comes late to a stop; `then` is done while it seems to be stopped still. `bell`: when that stop was given up. */
function comeLate(bell: "before" | "after", then: (machine: ScriptedMachine) => void) {
  const machine = new ScriptedMachine();
  const { control } = machine.kernel;
  const seen = { steps: 0, rounds: 0, whileStopped: 0, waited: 0, marked: 0 };
  const { at, end } = new Interleaving();
  let frame = 0;
  let looked = 0;
  const giveUp = (): void => release(control);
  const second = (): void => {
    seen.rounds++;
    then(machine);
    at.onWait = () => {
      seen.waited++;
      giveUp();
    };
  };
  const main: Act = (step) => {
    const stopped = control.load(MACHINE_STOP) === 1;
    if (stopped) seen.whileStopped++;
    step.memory.store32(DATA_BASE, ++seen.steps);
    if (looked < seen.rounds) {
      looked++;
      delete at.onWait;
      seen.marked += bit(control.words, DIRTY_BITMAP, frame);
    }
    frame = machine.frameOf(machine.find(step.system.getpid())!, DATA_BASE);
    step.registers[STATE] = 0;
    step.system.kill(0, 0);
    if (seen.rounds === ROUNDS && !stopped) machine.off();
    else if (seen.steps % 5 === 0 && !stopped) {
      control.store(MACHINE_STOP, 1); // the stop that will be given up
      at.beforeRunning = second;
      if (bell === "after") at.beforeBell = giveUp;
      else at.onWait = giveUp;
    }
    return "asked";
  };
  machine.add({ main: new Script([main]) });
  machine.start("main");
  machine.start("watchdog");
  try {
    machine.go();
  } finally {
    end();
  }
  return seen;
}

for (const bell of ["before", "after"] as const) {
  test.serial(`a second stop does not take a vCPU for stopped that runs on; the first was given up ${bell} it was there`, (t) => {
    const seen = comeLate(bell, ({ memory }) => new Quiesce(new Control(memory), 1).stop());
    t.is(seen.whileStopped, 0, "not a step while the machine stands still");
    t.is(seen.waited, ROUNDS);
  });

  test.serial(`a vCPU that comes late to a stop has no write tag from before an arm; given up ${bell} it was there`, (t) => {
    const seen = comeLate(bell, ({ memory, kernel }) => new WriteTracking(new Control(memory), kernel.core, 1).arm());
    t.is(seen.marked, ROUNDS, "the first store after the arm is tracked");
  });
}
