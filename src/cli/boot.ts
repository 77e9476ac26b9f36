/**
 * `hib boot`: boots a machine as its kernel command line says: `hibernate=PATH` resumes the image there, and whatever
 * fails ends in a normal boot (S2.1, S2.5). The console tells every step.
 */
import type { Command } from "commander";
import { serializeError } from "../base/errors.js";
import { bootOrResume, type BootResult } from "../boot.js";
import type { ResumeStep } from "../reports/resume-report.js";
import { renderResumeSummary } from "../stats/resume-report.js";
import { printable, printableAll } from "../stats/printable.js";
import { ACCEPT_CHANGED_FILES, ALLOW, closing, describeError } from "./command.js";
import { type Host, hostMachine, introduce } from "./host.js";
import { type KernelCommandLine, parseKernelCommandLine } from "./kernel-command-line.js";
import { KEY_FILE, type KeyOptions, keysFrom, PASSPHRASE_FILE } from "./keys.js";
import {
  BOOT_PROCESSES,
  checkWorkloads,
  createMachineCommand,
  hostOptions,
  type MachineCommandOptions,
  spawnAll,
} from "./machine-options.js";
import { print, stdoutView } from "./output.js";

interface BootOptions extends MachineCommandOptions, KeyOptions {
  cmdline: string;
  allow?: string[];
  acceptChangedFiles?: boolean;
}

const HELP = `
Words of the command line (others are ignored, as a kernel does):
  hibernate=PATH   resume the image at PATH, if there is one; the machine needs
                   the RAM that it had
  noresume         do not; the image is left alone`;

export function addBoot(program: Command): void {
  createMachineCommand(program, "boot", "boot a machine: resume its image if there is one, else start the workloads")
    .option("--cmdline <words>", 'kernel command line, such as "hibernate=m1.hib console=ttyS0"', "")
    .option(...ALLOW)
    .option(...KEY_FILE)
    .option(...PASSPHRASE_FILE)
    .option(...ACCEPT_CHANGED_FILES)
    .addHelpText("after", HELP)
    .addHelpText(
      "after",
      closing(
        "An image that cannot be resumed, for whatever reason, is set aside as PATH.set-aside-REASON, and the boot goes on with the workloads: hib images lists it, hib resume tries it again. One that another machine is resuming or has resumed stays as it is.",
      ),
    )
    .action(boot);
}

async function boot(workloads: string[], options: BootOptions): Promise<void> {
  checkWorkloads(workloads);
  const commandLine = parseKernelCommandLine(options.cmdline);
  process.exitCode = await hostMachine(hostOptions(options), async (host) => {
    sayCommandLine(host, commandLine);
    for (const text of BOOT_PROCESSES) host.machine.spawn(text);
    const resumed =
      commandLine.hibernate !== undefined && (await lookForImage(host, commandLine.hibernate, commandLine.noresume, options));
    if (host.signal.aborted) return; // Ctrl-C
    if (!resumed) {
      host.print("kernel: booting normally");
      await spawnAll(host, workloads);
    }
    print(introduce(host));
  });
}

function sayCommandLine({ print: say }: Host, { text, unknown, malformed }: KernelCommandLine): void {
  say(`kernel: command line: ${text}`);
  for (const line of malformed) say(`kernel: command line: ${line}`);
  if (unknown.length > 0) say(`kernel: command line: ignored, not known here: ${unknown.join(" ")}`);
}

/** True if the saved machine runs. */
async function lookForImage(host: Host, path: string, noresume: boolean, options: BootOptions): Promise<boolean> {
  if (noresume) {
    host.print(`kernel: resume: noresume: ${printable(path)} is left alone`);
    return false;
  }
  const result = await bootOrResume(host.machine, path, {
    signal: host.signal,
    allow: options.allow ?? [],
    keys: await keysFrom(options),
    acceptChangedFiles: options.acceptChangedFiles === true,
    onStep: (step) => host.print(`kernel: resume: ${printable(describeStep(step))}`),
  });
  for (const line of describeResult(path, result)) host.print(`kernel: resume: ${printable(line)}`);
  if (result.how === "booted") return false;
  host.service.resumed = result.report;
  print(renderResumeSummary(printableAll(result.report), stdoutView()));
  return true;
}

function describeStep(step: ResumeStep): string {
  if (!("error" in step)) return `${step.name}: ${step.found}`;
  return `${step.name}: ${serializeError(step.error).code === "HIB_CANCELLED" ? "cancelled" : "FAILED"}`;
}

/** Why it was not resumed, and where the image is now. */
function describeResult(path: string, result: BootResult): string[] {
  if (result.how === "resumed") return [];
  if (result.found === "no image") return [`no image at ${path}`];
  const { error, setAside, stuck } = result;
  const whereabouts = (): string => {
    if (setAside !== null) return `the image is set aside as ${setAside}; hib resume tries it again`;
    if (stuck !== null) return `the image could not be set aside, the next boot finds it again: ${describeError(stuck)}`;
    return "the image is left as it is";
  };
  return [describeError(error), whereabouts()];
}
