/** `hib resume`: boots a machine for an image, resumes it there, and goes on as `hib run` does. */
import { type Command, Option } from "commander";
import type { Keys } from "../base/key.js";
import { damaged, HibernaculumError } from "../base/errors.js";
import { FRAME_BYTES, MAX_VCPUS } from "../base/layout.js";
import { openImage } from "../image/directory.js";
import { MACHINE_VERSION } from "../image/format.js";
import { savedVcpus } from "../image/meta.js";
import { resume } from "../resume.js";
import { isName, probe, socketPath } from "../server/runtime-directory.js";
import { formatApart } from "../stats/format.js";
import { renderResumeSummary, residentLines } from "../stats/resume-report.js";
import { PAGE_THREADS_MAX } from "../base/limits.js";
import { printable, printableAll } from "../stats/printable.js";
import { ACCEPT_CHANGED_FILES, ALLOW, closing, createCommand, ramOption, wholeNumber } from "./command.js";
import { defaultName, hostMachine, introduce } from "./host.js";
import { BOOT_PROCESSES } from "./machine-options.js";
import { KEY_FILE, type KeyOptions, keysFrom, PASSPHRASE_FILE } from "./keys.js";
import { parseSize, SIZE_HELP } from "./size.js";
import { note, print, printJson, stdoutView } from "./output.js";

interface ResumeCommandOptions extends KeyOptions {
  name?: string;
  ram?: number;
  cpus?: number;
  pageThreads?: number;
  again?: boolean;
  acceptChangedFiles?: boolean;
  disk?: string;
  allow?: string[];
  lazy?: boolean;
  reserved?: number;
  json?: boolean;
}

export function addResume(program: Command): void {
  createCommand(program, "resume", "resume a saved machine and keep it running")
    .argument("<image>", "where it was saved")
    .option("--name <name>", "name of the machine (default: the one that it had, or machine-PID)")
    .addOption(ramOption("memory, which must be what the machine had (the default)"))
    .option("--cpus <n>", `vCPUs, 1 to ${MAX_VCPUS} (default: as many as it had)`, wholeNumber(1, MAX_VCPUS))
    .option("--page-threads <n>", `threads that load and write pages, 1 to ${PAGE_THREADS_MAX}`, wholeNumber(1, PAGE_THREADS_MAX))
    .option(
      "--again",
      "resume an image that was resumed before: two machines with one history can damage files that both use; also one on a read-only store, which cannot be marked",
    )
    .option("--disk <file>", "where the machine's disk is now, if it was moved; its contents must be what they were")
    .option(...ALLOW)
    .option(...KEY_FILE)
    .option(...PASSPHRASE_FILE)
    .option(...ACCEPT_CHANGED_FILES)
    .option(
      "--lazy",
      "run as soon as the kernel's own memory is there; the rest comes when it is used, or in the background. Damage that is found then ends the machine; the image can be resumed again",
    )
    .addOption(
      new Option(
        "--reserved <size>",
        `the resume uses so much memory for itself and none of the machine's, and is refused if it needs more; ${SIZE_HELP}`,
      ).argParser(parseSize),
    )
    .option("--json", "print the report for programs; the console goes to stderr")
    .addHelpText(
      "after",
      closing(
        "An image that cannot be resumed stays where it is; hib boot sets it aside, and goes on without it.",
        "Ctrl-C powers the machine off, and exits with 0, or 3 if a process has failed. While it is being resumed: 130, and the image can still be resumed.",
      ),
    )
    .action(resumeImage);
}

async function resumeImage(path: string, options: ResumeCommandOptions): Promise<void> {
  const keys = await keysFrom(options);
  const saved = await savedMachine(path, keys);
  const {
    name = await freeName(saved.name),
    ram = saved.ramBytes,
    cpus = saved.vcpus,
    pageThreads,
    again = false,
    lazy = false,
    json = false,
  } = options;
  if (ram !== saved.ramBytes) {
    const [had, wanted] = formatApart(saved.ramBytes, ram);
    throw new HibernaculumError(
      "HIB_RAM_MISMATCH",
      `${path} is of a machine with ${had} of RAM, and --ram says ${wanted}; leave --ram out`,
    );
  }
  const { acceptChangedFiles = false, allow = [], disk, reserved } = options;
  process.exitCode = await hostMachine(
    { name, ramBytes: ram, vcpus: cpus, quiet: json, ...(pageThreads === undefined ? {} : { pageThreads }) },
    async (host) => {
      for (const text of BOOT_PROCESSES) host.machine.spawn(text);
      const report = await resume(host.machine, path, {
        again,
        acceptChangedFiles,
        allow,
        keys,
        signal: host.signal,
        lazy,
        onStep: (step) => {
          // Which files those are, and how they have changed.
          if (acceptChangedFiles && step.name === "files of the host" && "found" in step)
            note(`hib: ${step.name}: ${printable(step.found)}`);
        },
        ...(disk === undefined ? {} : { disk }),
        ...(reserved === undefined ? {} : { reservedBytes: reserved }),
      });
      host.service.resumed = report;
      const tell = (): void =>
        printJson({ ...report, machine: { name, pid: process.pid, socket: host.socket } } as { schema: number });
      const later = report.frames.later > 0; // for programs, there is one report, with both times
      if (!json) print(renderResumeSummary(printableAll(report), stdoutView()));
      else if (!later) tell();
      (json ? note : print)(introduce(host));
      if (!later) return;
      // If it cannot be brought in, the machine's watch says so.
      host.machine.resident().then(
        () => (json ? tell() : print(residentLines(report, stdoutView()).join("\n"))),
        () => undefined,
      );
    },
  );
}

/** The name that the machine had, unless another one is running by it. */
async function freeName(saved: string | undefined): Promise<string> {
  if (saved === undefined || (await probe(socketPath(saved))) === "alive") return defaultName();
  return saved;
}

/** What the machine had. */
async function savedMachine(path: string, keys: Keys): Promise<{ ramBytes: number; vcpus: number; name: string | undefined }> {
  const image = await openImage(path, { machineVersion: MACHINE_VERSION, keys });
  try {
    const { name, vcpus } = image.catalogue.meta;
    const had = savedVcpus(image.catalogue.meta);
    if (had === undefined) throw damaged("HIB_CORRUPT", `${path}: it says that its machine had ${JSON.stringify(vcpus)} vCPUs`);
    return {
      ramBytes: image.header.ramFrames * FRAME_BYTES,
      vcpus: had,
      name: typeof name === "string" && isName(name) ? name : undefined,
    };
  } finally {
    image.close();
  }
}
