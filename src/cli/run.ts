/** `hib run`: boots a machine straight into its workloads. */
import type { Command } from "commander";
import { HibernaculumError } from "../base/errors.js";
import { hostMachine, introduce } from "./host.js";
import { checkWorkloads, createMachineCommand, hostOptions, type MachineCommandOptions, spawnAll } from "./machine-options.js";
import { print } from "./output.js";

export function addRun(program: Command): void {
  createMachineCommand(program, "run", "boot a machine with workloads and keep it running").action(run);
}

async function run(workloads: string[], options: MachineCommandOptions): Promise<void> {
  if (workloads.length === 0) {
    throw new HibernaculumError(
      "HIB_USAGE",
      "give the machine something to run, such as zipf:pages=10000; hib programs lists what there is",
    );
  }
  checkWorkloads(workloads);
  process.exitCode = await hostMachine(hostOptions(options), async (host) => {
    await spawnAll(host, workloads);
    print(introduce(host));
  });
}
