/** Thread of a vCPU: wires the machine's parts together and runs until the machine is powered off. */
import { parentPort, receiveMessageOnPort, workerData } from "node:worker_threads";
import type { SharedMemory } from "../src/base/wasm.js";
import { Control } from "../src/base/control.js";
import { MACHINE_LOAD_PERCENT } from "../src/base/layout.js";
import { loadChecksum } from "../src/image/checksum.js";
import type { FillTask } from "../src/restore/frame-source.js";
import { FrameFaults } from "../src/restore/frame-faults.js";
import type { Core } from "../src/vm/memory/core.js";
import { createBootRunner } from "../src/vm/personality/step/boot-programs.js";
import { createRunner } from "../src/vm/personality/step/programs/index.js";
import { createStepVcpu } from "../src/vm/engines/step-engine.js";

const { memory, number } = workerData as { memory: SharedMemory; number: number };
const control = new Control(memory);
await loadChecksum(); // for frames that are missing: once it runs, this thread awaits nothing

let faults: FrameFaults | undefined;
/** What was told last is what the machine was resumed from. */
function bringIn(frame: number, core: Core): void {
  for (let told = receiveMessageOnPort(parentPort!); told !== undefined; told = receiveMessageOnPort(parentPort!))
    faults = new FrameFaults(memory, core, told.message as FillTask);
  faults!.bringIn(frame);
}

createStepVcpu({
  memory,
  number,
  createRunner: (text) => createBootRunner(text) ?? createRunner(text),
  loaded: () => {
    const percent = control.load(MACHINE_LOAD_PERCENT);
    return percent === 0 ? undefined : (percent - 1) / 100;
  },
  bringIn,
  notifyDevices: () => parentPort!.postMessage(undefined, []),
}).run();
