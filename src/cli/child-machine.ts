/** A machine in a process of its own, started by this one: `hib run` or `hib resume` as anybody would start them. */
import { type ChildProcess, fork } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { HibernaculumError } from "../base/errors.js";
import { Client } from "../server/client.js";
import type { MachineStatus } from "../server/protocol.js";

const HIB = fileURLToPath(new URL("./hib.js", import.meta.url));
const POLL_MS = 50;
const GRACE_MS = 10_000;

export class ChildMachine {
  readonly name: string;
  readonly pid: number;
  /** The exit code, or the name of the signal that ended it. */
  readonly ended: Promise<number | string>;
  readonly #child: ChildProcess;
  #client: Client | undefined;
  #alive = true;
  #errors = "";

  /**
   * Starts `hib COMMAND --name NAME ...`. It powers itself off should this process die.
   *
   * @param onOutput takes what it prints
   */
  constructor(name: string, command: string, args: readonly string[], onOutput: (text: string) => void) {
    this.name = name;
    // Of a process group of its own, so that a Ctrl-C is ours to handle; the channel is how it learns of our end.
    this.#child = fork(HIB, [command, "--name", name, ...args], { stdio: ["ignore", "pipe", "pipe", "ipc"], detached: true });
    this.pid = this.#child.pid ?? 0;
    this.#child.stdout!.setEncoding("utf8").on("data", onOutput);
    this.#child.stderr!.setEncoding("utf8").on("data", (text: string) => (this.#errors += text));
    this.ended = new Promise((resolve) => {
      this.#child.once("error", (error) => resolve(error.message));
      this.#child.once("close", (code, signal) => resolve(code ?? signal ?? "unknown"));
    });
    void this.ended.then(() => (this.#alive = false));
  }

  /**
   * Waits until the machine runs.
   *
   * @throws HIB_NO_MACHINE with what it said if it ended instead, HIB_CANCELLED
   */
  async running(signal: AbortSignal): Promise<MachineStatus> {
    while (this.#alive) {
      if (signal.aborted) throw new HibernaculumError("HIB_CANCELLED", "interrupted");
      try {
        this.#client ??= await Client.connect(this.name);
        const status = await this.#client.request("status", {});
        if (status.state === "running") return status;
      } catch (error) {
        if (!(error instanceof HibernaculumError && error.code === "HIB_NO_MACHINE")) throw error;
        this.#client = undefined;
      }
      await sleep(POLL_MS);
    }
    const said = this.#errors.trim() || "it said nothing";
    throw new HibernaculumError("HIB_NO_MACHINE", `the process of ${this.name} ended with ${await this.ended}: ${said}`);
  }

  /** The connection to it, once it is running. */
  get client(): Client {
    if (this.#client === undefined) throw new HibernaculumError("HIB_NO_MACHINE", `${this.name} is not running yet`);
    return this.#client;
  }

  /** Powers it off, if it is there, and waits until the process is gone. Never throws. */
  async stop(): Promise<number | string> {
    this.#client?.close();
    if (this.#alive) this.#child.kill("SIGTERM");
    const hard = setTimeout(() => this.#child.kill("SIGKILL"), GRACE_MS);
    const result = await this.ended;
    clearTimeout(hard);
    return result;
  }
}

/** True if no process has this number (or it is somebody else's by now). */
export function isGone(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return false;
  } catch {
    return true;
  }
}
