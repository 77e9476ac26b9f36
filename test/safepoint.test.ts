/**
 * How soon a vCPU comes to its safepoint when a stop is wanted, and what is done before that. The vCPU runs in the test's own thread, but
 * in the last test.
 */
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { Control } from "../src/base/control.js";
import {
  COMMAND_RUN,
  MACHINE_COLLECT,
  MACHINE_COMMAND,
  MACHINE_COMMAND_BELL,
  MACHINE_STOP,
  VCPU_COLLECTED,
  VCPU_STATE,
  VCPU_STATE_OFF,
  VCPU_STATE_RUNNING,
} from "../src/base/layout.js";
import { Quiesce } from "../src/cow/quiesce.js";
import { save } from "../src/hibernate.js";
import { STATE } from "../src/vm/personality/step/programs/states.js";
import { Script, ScriptedMachine } from "./scripted.js";
import { bootMachine, scratch } from "./support.js";

/** Calls `act` when the vCPU waits at a stop, and lets it go on. */
function whenStopped(t: ExecutionContext, act: () => void): void {
  const prototype = Control.prototype;
  const { wait } = prototype;
  prototype.wait = function (offset, seen, ms) {
    if (offset !== MACHINE_COMMAND_BELL) return wait.call(this, offset, seen, ms);
    act();
    this.store(MACHINE_STOP, 0);
    this.store(MACHINE_COMMAND, COMMAND_RUN);
    this.ring(MACHINE_COMMAND_BELL);
  };
  t.teardown(() => Object.assign(prototype, { wait }));
}

test.serial("a stop that is wanted during a step comes after that step, however many more the batch has", (t) => {
  const machine = new ScriptedMachine();
  let steps = 0;
  const stops: [steps: number, state: string][] = [];
  const main = new Script([
    ({ registers }) => {
      registers[STATE] = 0;
      steps++;
      if (steps === 3 || steps === 5) machine.control.store(MACHINE_STOP, 1);
      if (steps === 1000) machine.off();
      return "done";
    },
  ]);
  machine.add({ main });
  machine.start("main");
  machine.start("watchdog");
  whenStopped(t, () => stops.push([steps, machine.processes()[0]!.state]));
  machine.go();
  t.deepEqual(stops, [
    [3, "running"],
    [5, "running"],
  ]);
  t.true(steps >= 1000);
});

test.serial("a vCPU that is told so collects its garbage at its next safepoint, once", (t) => {
  const machine = new ScriptedMachine();
  const { control } = machine;
  const rings: number[] = [];
  const prototype = Control.prototype;
  const { storeVcpu } = prototype;
  prototype.storeVcpu = function (vcpu, offset, value) {
    if (offset === VCPU_COLLECTED) rings.push(value);
    storeVcpu.call(this, vcpu, offset, value);
  };
  t.teardown(() => Object.assign(prototype, { storeVcpu }));
  const tell: ConstructorParameters<typeof Script>[0][number] = ({ system }) => {
    control.add(MACHINE_COLLECT, 1);
    system.sleep(0);
  };
  machine.add({ main: new Script([tell, tell, ({ system }) => system.sleep(5), () => machine.off()]) });
  machine.start("main");
  machine.start("watchdog");
  machine.go();
  t.deepEqual(rings, [1, 2]);
});

test.serial("a stop is prepared, too, if a vCPU does not answer in time", (t) => {
  const { control } = new ScriptedMachine(); // whose vCPU does not run
  const quiesce = new Quiesce(control, 1);
  control.storeVcpu(0, VCPU_STATE, VCPU_STATE_OFF);
  quiesce.left(); // so that it need not be rehearsed
  control.storeVcpu(0, VCPU_STATE, VCPU_STATE_RUNNING);
  quiesce.prepare();
  t.is(control.load(MACHINE_COLLECT), 1);
  t.is(control.load(MACHINE_STOP), 0);
});

test.serial("a save has every vCPU collect its garbage before the stop", async (t) => {
  const machine = await bootMachine(t, { vcpus: 2 });
  for (const text of ["zipf:pages=100", "heap"]) machine.spawn(text);
  const { control, quiesce } = machine;
  const stop = quiesce.stop.bind(quiesce);
  let told = 0;
  quiesce.stop = () => {
    told = control.load(MACHINE_COLLECT);
    stop();
  };
  await save(machine, join(scratch(t), "image"), { keepRunning: true });
  t.is(told, 1);
  t.deepEqual(
    [0, 1].map((vcpu) => control.loadVcpu(vcpu, VCPU_COLLECTED)),
    [1, 1],
  );
});
