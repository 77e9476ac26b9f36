/**
 * What a stop waits for, program by program: the time that a vCPU of this thread takes from one look for a stop to the next, in time
 * of this process, so that others who use the host do not count. A stop is seen at the end of a step, or of a batch of programs
 * that are loops of their own.
 *
 *     node --single-threaded dist/bench/safepoints.js [SECONDS] [PROGRAM...]
 */
import process from "node:process";
import { Control } from "../src/base/control.js";
import { MACHINE_POWER_OFF, MACHINE_STOP } from "../src/base/layout.js";
import { createStepVcpu } from "../src/vm/engines/step-engine.js";
import { Kernel } from "../src/vm/kernel.js";
import { instantiateCore } from "../src/vm/memory/core.js";
import { createMemory } from "../src/vm/memory/physical.js";
import { createRunner } from "../src/vm/personality/step/programs/index.js";
import { percentile } from "./measure.js";

const PROGRAMS = [
  "zipf:pages=20000",
  "incrementer:pages=20000",
  "heap",
  "stack",
  "fork:pages=500",
  "fork:pages=15000,children=2,depth=1",
  "shared",
  "mapper",
  "mapper:maxpages=1024",
  "files",
  "pipes:kilobytes=700",
  "cutter",
  "chaos",
  "signals",
  "jobs",
  "timers",
];

/** Times between two looks, us. */
function run(text: string, seconds: number): number[] {
  const memory = createMemory(512 * 2 ** 20);
  const kernel = new Kernel(memory, instantiateCore(memory));
  kernel.boot();
  kernel.lifecycle.spawn(text, createRunner(text));
  const times: number[] = [];
  const { load, wait } = Control.prototype;
  const end = performance.now() + seconds * 1000;
  let last = process.cpuUsage();
  const note = (): void => {
    const { user, system } = process.cpuUsage(last);
    times.push(user + system);
    last = process.cpuUsage();
  };
  Control.prototype.load = function (offset) {
    if (offset === MACHINE_STOP) {
      note();
      if (performance.now() > end) this.store(MACHINE_POWER_OFF, 1);
    }
    return load.call(this, offset);
  };
  Control.prototype.wait = function (offset, seen, ms) {
    wait.call(this, offset, seen, ms);
    last = process.cpuUsage();
  };
  try {
    createStepVcpu({ memory, number: 0, createRunner, loaded: () => undefined, notifyDevices: () => undefined }).run();
  } finally {
    Object.assign(Control.prototype, { load, wait });
  }
  return times.slice(times.length >>> 1); // the first half warms up
}

const [seconds = "3", ...programs] = process.argv.slice(2);
for (const text of programs.length > 0 ? programs : PROGRAMS) {
  const times = run(text, Number(seconds));
  const figures = [0.5, 0.99, 0.999, 1].map((p) => `${percentile(times, p)}`.padStart(7)).join("");
  process.stdout.write(`${figures} us (p50, p99, p99.9, longest of ${times.length})  ${text}\n`);
}
