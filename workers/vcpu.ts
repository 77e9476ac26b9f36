/** Thread of a vCPU: wires the machine's parts together and runs until the machine is powered off. */
import { parentPort, workerData } from "node:worker_threads";
import type { SharedMemory } from "../src/base/wasm.js";
import { Control } from "../src/base/control.js";
import { MACHINE_LOAD_PERCENT } from "../src/base/layout.js";
import { createBootRunner } from "../src/vm/personality/step/boot-programs.js";
import { createRunner } from "../src/vm/personality/step/programs/index.js";
import { createStepVcpu } from "../src/vm/engines/step-engine.js";

const { memory, number } = workerData as { memory: SharedMemory; number: number };
const control = new Control(memory);

createStepVcpu({
  memory,
  number,
  createRunner: (text) => createBootRunner(text) ?? createRunner(text),
  loaded: () => {
    const percent = control.load(MACHINE_LOAD_PERCENT);
    return percent === 0 ? undefined : (percent - 1) / 100;
  },
  notifyDevices: () => parentPort!.postMessage(undefined, []),
}).run();
