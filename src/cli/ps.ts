/** `hib ps`: all machines of this user, and what runs in them. */
import type { Command } from "commander";
import { HibernaculumError } from "../base/errors.js";
import { Client } from "../server/client.js";
import type { MachineStatus } from "../server/protocol.js";
import { listNames } from "../server/runtime-directory.js";
import { formatBytes, formatMs } from "../stats/format.js";
import type { View } from "../stats/layout.js";
import { renderProcesses } from "../stats/live-report.js";
import { printableAll } from "../stats/printable.js";
import { createCommand, describeError } from "./command.js";
import { note, print, printJson, stdoutView } from "./output.js";

/** A machine that does not answer for this long is listed as such. */
const ANSWER_MS = 5000;

export function addPs(program: Command): void {
  createCommand(program, "ps", "list running machines and their processes").option("--json", "for programs").action(listMachines);
}

async function listMachines({ json }: { json?: boolean }): Promise<void> {
  const machines: MachineStatus[] = [];
  const silent: { name: string; error: string }[] = [];
  const names = await listNames();
  const answers = await Promise.allSettled(names.map(askStatus));
  for (const [i, answer] of answers.entries()) {
    if (answer.status === "fulfilled") machines.push(answer.value);
    else {
      const error = describeError(answer.reason);
      silent.push({ name: names[i]!, error });
      note(`hib: ${error}`);
    }
  }
  if (json === true) printJson({ schema: 1, machines, silent } as { schema: number });
  else if (machines.length === 0) print("no machines run");
  else print(machines.map((machine) => renderMachine(printableAll(machine), stdoutView())).join("\n\n"));
}

async function askStatus(name: string): Promise<MachineStatus> {
  const client = await Client.connect(name);
  let timer: NodeJS.Timeout | undefined;
  try {
    const late = new Promise<never>((_, reject) => {
      const error = new HibernaculumError("HIB_NO_MACHINE", `machine ${name} does not answer`);
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
    `${view.colors.bold(name)}  pid ${pid}, ${state}, up ${formatMs(uptime_ms)}, ${formatBytes(ram_bytes)} of RAM (${formatBytes(free_bytes)} free), vCPUs: ${vcpus}`,
    renderProcesses(processes, view),
  ].join("\n");
}
