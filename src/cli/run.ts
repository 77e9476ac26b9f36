/** `hib run`: boots a machine with workloads, or with what `hibernate=PATH` on its command line finds (S2.1, S2.5). */
import { setImmediate } from "node:timers/promises";
import type { Command } from "commander";
import { HibernaculumError } from "../base/errors.js";
import { MAX_VCPUS } from "../base/layout.js";
import { resume } from "../resume.js";
import { renderResumeSummary } from "../stats/resume-report.js";
import { createRunner } from "../vm/programs/index.js";
import { WRITERS_MAX } from "../writer/page-writer.js";
import { ACCEPT_CHANGED_FILES, createCommand, describeError, ramOption, wholeNumber } from "./command.js";
import { defaultName, type Host, hostMachine, introduce } from "./host.js";
import { type KernelCommandLine, parseKernelCommandLine } from "./kernel-command-line.js";
import { print, stdoutView } from "./output.js";
import { renderPrograms } from "./programs.js";

/** What runs while an image is loaded: they go on if it fails. */
export const BOOT_PROCESSES: readonly string[] = ["boot-progress", "boot-housekeeping:256"];

interface RunOptions {
  name?: string;
  ram: number;
  cpus: number;
  pageThreads?: number;
  cmdline: string;
  disk?: string;
  acceptChangedFiles?: boolean;
}

export function addRun(program: Command): void {
  createCommand(program, "run", "boot a machine with workloads and keep it running")
    .argument("[workload...]", "programs to run, such as zipf:pages=50000,rate=200000")
    .option("--name <name>", "name of the machine (default: machine-PID)")
    .addOption(ramOption("memory", "512M"))
    .option("--cpus <n>", `vCPUs, 1 to ${MAX_VCPUS}`, wholeNumber(1, MAX_VCPUS), 2)
    .option("--page-threads <n>", `threads that write and load pages, 1 to ${WRITERS_MAX}`, wholeNumber(1, WRITERS_MAX))
    .option("--disk <file>", "a file that is the machine's disk, of whole sectors of 4 KiB; nobody else may write to it")
    .option("--cmdline <words>", 'kernel command line; "hibernate=PATH" resumes that image, "noresume" does not', "")
    .option(...ACCEPT_CHANGED_FILES)
    .addHelpText("after", () => `\nWorkloads:\n${renderPrograms(stdoutView())}`)
    .addHelpText("after", "\nCtrl-C powers the machine off, and exits with 0; while a save is under way it cancels that instead.")
    .action(run);
}

async function run(workloads: string[], options: RunOptions): Promise<void> {
  const commandLine = parseKernelCommandLine(options.cmdline);
  const resumes = commandLine.hibernate !== undefined && !commandLine.noresume;
  if (workloads.length === 0 && !resumes) {
    throw new HibernaculumError(
      "HIB_USAGE",
      "give the machine something to run, such as zipf:pages=10000; hib programs lists what there is",
    );
  }
  for (const workload of workloads) createRunner(workload);
  const { name = defaultName(), ram, cpus, pageThreads, disk } = options;
  process.exitCode = await hostMachine(
    {
      name,
      ramBytes: ram,
      vcpus: cpus,
      ...(pageThreads === undefined ? {} : { pageThreads }),
      ...(disk === undefined ? {} : { disk }),
    },
    async (host) => {
      if (commandLine.text !== "") host.print(`kernel: command line: ${commandLine.text}`);
      const resumed = resumes && (await resumeAtBoot(host, commandLine, options));
      if (!resumed) await spawnAll(host, workloads);
      print(introduce(host));
    },
  );
}

async function spawnAll({ machine, signal }: Host, workloads: readonly string[]): Promise<void> {
  for (const workload of workloads) {
    if (signal.aborted) return;
    machine.spawn(workload);
    await setImmediate(); // filling a process's memory takes time, and signals are waiting
  }
}

/** Resumes the image of the command line. If that fails the boot goes on, and the console says why. */
async function resumeAtBoot(
  host: Host,
  { hibernate }: KernelCommandLine,
  { acceptChangedFiles = false }: RunOptions,
): Promise<boolean> {
  for (const text of BOOT_PROCESSES) host.machine.spawn(text);
  try {
    host.service.resumed = await resume(host.machine, hibernate!, { signal: host.signal, acceptChangedFiles });
    print(renderResumeSummary(host.service.resumed, stdoutView()));
    return true;
  } catch (error) {
    host.print(`kernel: resume from ${hibernate} failed: ${describeError(error)}`);
    host.print("kernel: booting normally");
    return false;
  }
}
