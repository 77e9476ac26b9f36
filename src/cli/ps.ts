/** `hib ps`: all machines of this user, and what runs in them. */
import process from "node:process";
import type { Command } from "commander";
import { HibernaculumError } from "../base/errors.js";
import { Client } from "../server/client.js";
import type { MachineStatus } from "../server/protocol.js";
import { listNames } from "../server/runtime-directory.js";
import { formatBytes, formatMs } from "../stats/format.js";
import type { View } from "../stats/layout.js";
import { comingOf, renderProcesses } from "../stats/live-report.js";
import { printable, printableAll } from "../stats/printable.js";
import { createCommand, describeError, EXIT_FAILED } from "./command.js";
import { note, print, printJson, stdoutView } from "./output.js";

/** A machine that does not answer for this long is listed as such. */
const ANSWER_MS = 5000;

/** A machine that is there, and cannot be asked. */
interface Silent {
  name: string;
  error: string;
}

export function addPs(program: Command): void {
  createCommand(program, "ps", "list running machines and their processes")
    .option("--json", "for programs")
    .addHelpText("after", "\nExits with 1 if a machine is there and does not answer.")
    .action(listMachines);
}

async function listMachines({ json }: { json?: boolean }): Promise<void> {
  const machines: MachineStatus[] = [];
  const silent: Silent[] = [];
  const names = await listNames();
  const answers = await Promise.allSettled(names.map(askStatus));
  for (const [i, answer] of answers.entries()) {
    if (answer.status === "fulfilled") machines.push(answer.value);
    else if (answer.reason instanceof HibernaculumError && answer.reason.code === "HIB_NO_MACHINE")
      note(`hib: ${describeError(answer.reason)}`); // it died, or has just ended
    else silent.push({ name: names[i]!, error: describeError(answer.reason) });
  }
  if (silent.length > 0) process.exitCode = EXIT_FAILED;
  if (json === true) printJson({ schema: 1, machines, silent } as { schema: number });
  else if (machines.length + silent.length === 0) print("no machines run");
  else {
    const view = stdoutView();
    const lines = silent.map(
      ({ name, error }) => `${view.colors.bold(name)}  ${view.colors.red("does not answer")}: ${printable(error)}`,
    );
    print([...machines.map((machine) => renderMachine(printableAll(machine), view)), ...lines].join("\n\n"));
  }
}

async function askStatus(name: string): Promise<MachineStatus> {
  const client = await Client.connect(name);
  let timer: NodeJS.Timeout | undefined;
  try {
    const late = new Promise<never>((_, reject) => {
      const error = new HibernaculumError(
        "HIB_NO_ANSWER",
        `it has said nothing for ${ANSWER_MS / 1000} s; it may be stopped, or the host too busy`,
      );
      timer = setTimeout(() => reject(error), ANSWER_MS);
    });
    return await Promise.race([client.request("status", {}), late]);
  } finally {
    clearTimeout(timer);
    client.close();
  }
}

function renderMachine(machine: MachineStatus, view: View): string {
  const { name, pid, state, uptime_ms, ram_bytes, free_bytes, vcpus, processes } = machine;
  return [
    `${view.colors.bold(name)}  pid ${pid}, ${state}, up ${formatMs(uptime_ms)}, ${formatBytes(ram_bytes)} of RAM (${formatBytes(free_bytes)} free${comingOf(machine)}), vCPUs: ${vcpus}`,
    renderProcesses(processes, view),
  ].join("\n");
}
