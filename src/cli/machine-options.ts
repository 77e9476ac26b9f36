/** What `hib run` and `hib boot` have in common: a machine, and the workloads that it starts. */
import { setImmediate } from "node:timers/promises";
import { type Command, InvalidArgumentError } from "commander";
import { MAX_VCPUS } from "../base/layout.js";
import { createRunner } from "../vm/personality/step/programs/index.js";
import { PAGE_THREADS_MAX } from "../base/limits.js";
import { closing, createCommand, ramOption, wholeNumber } from "./command.js";
import { defaultName, type Host, type HostOptions } from "./host.js";
import { stdoutView } from "./output.js";
import { renderSummaries } from "./programs.js";
import type { Mount } from "../vm/files/path.js";

/** What runs while an image is loaded: they go on if it fails. */
export const BOOT_PROCESSES: readonly string[] = ["boot-progress", "boot-housekeeping:256"];

export interface MachineCommandOptions {
  name?: string;
  ram: number;
  cpus: number;
  pageThreads?: number;
  disk?: string;
  mount?: Mount[];
}

/** A command that makes a machine and gives it workloads. */
export function createMachineCommand(program: Command, name: string, description: string): Command {
  return createCommand(program, name, description)
    .argument("[workload...]", "programs to run, such as zipf:pages=50000,rate=200000")
    .option("--name <name>", "name of the machine (default: machine-PID)")
    .addOption(ramOption("memory", "512M"))
    .option("--cpus <n>", `vCPUs, 1 to ${MAX_VCPUS}`, wholeNumber(1, MAX_VCPUS), 2)
    .option("--page-threads <n>", `threads that write and load pages, 1 to ${PAGE_THREADS_MAX}`, wholeNumber(1, PAGE_THREADS_MAX))
    .option("--disk <file>", "a file that is the machine's disk, of whole sectors of 4 KiB; nothing else may write to it")
    .option("--mount <host:path[:ro]>", "a directory of the host that processes see at a path; may be given again", mountOption)
    .addHelpText("after", () => `\nWorkloads; hib programs lists the options of each:\n${renderSummaries(stdoutView())}`)
    .addHelpText(
      "after",
      closing(
        "Ctrl-C powers the machine off, and exits with 0, or 3 if a process has failed; while a save is under way it cancels that instead.",
      ),
    );
}

export function hostOptions(options: MachineCommandOptions): HostOptions {
  const { name = defaultName(), ram, cpus, pageThreads, disk, mount } = options;
  return {
    name,
    ramBytes: ram,
    vcpus: cpus,
    ...(pageThreads === undefined ? {} : { pageThreads }),
    ...(disk === undefined ? {} : { disk }),
    ...(mount === undefined ? {} : { mounts: mount }),
  };
}

/** `HOST:PATH` or `HOST:PATH:ro`. */
function mountOption(text: string, earlier: Mount[] = []): Mount[] {
  const match = /^(.+?):(\/[^:]*)(:ro)?$/.exec(text);
  if (match === null) throw new InvalidArgumentError("Give HOST:PATH or HOST:PATH:ro, such as ./data:/data:ro.");
  if (earlier.some(({ path }) => path === match[2])) throw new InvalidArgumentError(`Something else is mounted at ${match[2]}.`);
  return [...earlier, { host: match[1]!, path: match[2]!, readOnly: match[3] !== undefined }];
}

/** @throws HIB_USAGE for the first that is not one: better now than in the middle of a boot */
export function checkWorkloads(workloads: readonly string[]): void {
  for (const workload of workloads) createRunner(workload);
}

export async function spawnAll({ machine, signal }: Host, workloads: readonly string[]): Promise<void> {
  for (const workload of workloads) {
    if (signal.aborted) return;
    machine.spawn(workload);
    await setImmediate(); // filling a process's memory takes time, and signals are waiting
  }
}
