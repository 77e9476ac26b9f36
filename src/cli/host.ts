/**
 * The process that a machine lives in, for `hib run`, `hib boot` and `hib resume`:
 *
 *     boot -> listen -> start (workloads, or an image) -> run -> ending
 *                                                         |
 *        Ctrl-C, SIGTERM, SIGHUP, or gone parent: power off
 *        SIGTERM, SIGHUP or gone parent while a save is under way: power off once it is over; again: at once
 *        Ctrl-C while a save is under way: that is cancelled, the machine runs on
 *        a save that hibernates: the machine is off, and its image is there
 *        an error that nobody expected: power off, then report it
 *
 * What must hold: output that cannot be written is no reason to end. Whichever way it ends, requests are answered, the socket is gone and the threads have ended before
 * the process does. A program that finds its memory wrong is reported when it happens, and in the exit code.
 */
import process from "node:process";
import { type ErrorCode, HibernaculumError } from "../base/errors.js";
import { Machine, type MachineOptions } from "../machine.js";
import type { SaveReport } from "../reports/save-report.js";
import { ControlServer, refuseLive } from "../server/server.js";
import { MachineService } from "../server/service.js";
import { formatBytes, formatMs, formatShort } from "../stats/format.js";
import { isWantOfMemory } from "../vm/memory/address-space.js";
import { printable } from "../stats/printable.js";
import { endInOrder, EXIT_DONE, EXIT_FAILED, EXIT_MISMATCH } from "./command.js";
import { note, outliveOutput } from "./output.js";
import { Terminal } from "./terminal.js";

export interface HostOptions extends Omit<MachineOptions, "onConsole"> {
  name: string;
  /** stdout is for something else: the console goes to stderr, and nobody is told about the machine. */
  quiet?: boolean;
}

export interface Host {
  machine: Machine;
  service: MachineService;
  socket: string;
  /** Fires when the machine is to be powered off. */
  signal: AbortSignal;
  /** Prints as the machine's kernel would. */
  print(line: string): void;
}

type Ending = { how: "power off" } | { how: "hibernated"; report: SaveReport } | { how: "failed"; error: unknown };

const SAMPLE_MS = 500;

/** Default name of a machine. */
export function defaultName(): string {
  return `machine-${process.pid}`;
}

/**
 * Boots a machine, starts it with `start`, and returns the exit code once it has ended.
 *
 * @throws what `start` throws, HIB_NAME_TAKEN, HIB_USAGE, HIB_RAM_TOO_LARGE; the machine is off then
 */
export async function hostMachine(
  { name, quiet = false, ...options }: HostOptions,
  start: (host: Host) => Promise<void>,
): Promise<number> {
  if (await refuseLive(name)) note(`hib: an earlier machine ${name} died; the socket that it left has been removed`);
  outliveOutput((error) => note(`hib: ${describeLoss(error)}`));
  const terminal = new Terminal(`${name}| `, quiet ? process.stderr : process.stdout);
  const powerOff = new AbortController();
  let end: (ending: Ending) => void = () => undefined;
  const ended = new Promise<Ending>((resolve) => (end = resolve));
  const machine = await Machine.boot({ ...options, onConsole: (text) => terminal.console(text) });
  const service = new MachineService(name, machine, { onHibernated: (report) => end({ how: "hibernated", report }) });
  const stopListening = listenForSignals(service, terminal, () => {
    powerOff.abort();
    end({ how: "power off" });
  });
  const watch = new Watch(service, terminal, (error) => end({ how: "failed", error }));
  let server: ControlServer | undefined;
  let unexpected: unknown;
  endInOrder((error) => {
    unexpected = error;
    powerOff.abort();
    end({ how: "failed", error });
  });
  try {
    server = await ControlServer.listen(name, service.handlers, {
      onNotice: (line) => terminal.line(`hib: ${line}`, process.stderr),
    });
    const print = (line: string): void => terminal.console(`${line}\n`);
    await start({ machine, service, socket: server.path, signal: powerOff.signal, print });
    service.ready = true;
    watch.begin();
    const ending = await ended;
    watch.end();
    if (ending.how === "failed") throw ending.error;
    if (!quiet)
      terminal.line(
        ending.how === "hibernated" ? `${name}: hibernated in ${printable(ending.report.image.path)}` : `${name}: powered off`,
      );
    return watch.exitCode;
  } catch (error) {
    throw unexpected ?? machine.reasonFor(error); // what `start` throws then is that it was cancelled
  } finally {
    watch.end();
    stopListening();
    // Requests first: a save that is under way must be over before the machine is. It is not told that the machine goes on.
    void service.prepareToEnd();
    await server?.close();
    await machine.powerOff();
  }
}

/** That nobody sees what a machine prints, which is no reason to end it. */
function describeLoss({ code, message }: NodeJS.ErrnoException): string {
  return code === "EPIPE"
    ? "nobody reads standard output any more; the machine runs on"
    : `standard output cannot be written (${message}); the machine runs on, and prints again once it can be`;
}

/** What a user sees of a machine that has started. */
export function introduce({ service, socket }: Host): string {
  const { name, pid, ram_bytes, vcpus, processes } = service.status();
  return [
    `${name}: pid ${pid}, ${formatBytes(ram_bytes)} of RAM, vCPUs: ${vcpus}`,
    `${name}: socket ${socket}`,
    ...processes.map((entry) => `${name}: process ${entry.pid}: ${printable(entry.text || entry.state)}`),
  ].join("\n");
}

function listenForSignals(service: MachineService, terminal: Terminal, powerOff: () => void): () => void {
  let cancelling = false;
  let ending = false;
  const end = (): void => {
    void service.prepareToEnd();
    powerOff();
  };
  const onInterrupt = (): void => {
    if (!cancelling && !ending && service.cancelSave()) {
      cancelling = true;
      terminal.line("cancelling the save; Ctrl-C again powers the machine off", process.stderr);
      setTimeout(() => (cancelling = false), 5000).unref();
    } else end();
  };
  // Whoever asked for the save wants its image: a machine that is told to end finishes it first.
  const onTerminate = (): void => {
    if (ending || !service.saving) return end();
    ending = true;
    terminal.line("finishing the save, then the machine is powered off; a second signal ends it at once", process.stderr);
    void service.prepareToEnd().then(powerOff);
  };
  process.on("SIGINT", onInterrupt);
  // "disconnect" is of a parent that started this process with a channel: without it nobody would know of the machine.
  for (const event of ["SIGTERM", "SIGHUP", "disconnect"]) process.on(event, onTerminate);
  return () => {
    process.off("SIGINT", onInterrupt);
    for (const event of ["SIGTERM", "SIGHUP", "disconnect"]) process.off(event, onTerminate);
  };
}

/** Looks after a running machine: failed processes, dead vCPUs, the status line. */
class Watch {
  /** Of a machine whose processes ended as they did so far. */
  exitCode: number = EXIT_DONE;
  readonly #service: MachineService;
  readonly #terminal: Terminal;
  readonly #onError: (error: unknown) => void;
  readonly #reported = new Set<number>();
  #timer: NodeJS.Timeout | undefined;

  constructor(service: MachineService, terminal: Terminal, onError: (error: unknown) => void) {
    this.#service = service;
    this.#terminal = terminal;
    this.#onError = onError;
  }

  begin(): void {
    this.#look();
    this.#timer = setInterval(() => this.#look(), SAMPLE_MS);
  }

  end(): void {
    if (this.#timer !== undefined) this.#look();
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.#terminal.end();
  }

  #look(): void {
    try {
      this.#service.machine.check();
      for (const { pid, text, state, failure } of this.#service.sample()) {
        if (state !== "failed" || this.#reported.has(pid)) continue;
        this.#reported.add(pid);
        // Want of memory is no sign that any was wrong.
        const code: ErrorCode = isWantOfMemory(failure) ? "HIB_NO_MEMORY" : "HIB_SELF_CHECK";
        this.exitCode = code === "HIB_SELF_CHECK" ? EXIT_MISMATCH : Math.max(EXIT_FAILED, this.exitCode);
        this.#terminal.line(`hib: ${code}: process ${pid} (${text}) failed: ${printable(failure)}`, process.stderr);
      }
      if (process.stderr.isTTY) this.#terminal.status(this.#describe());
    } catch (thrown) {
      const error = this.#service.machine.reasonFor(thrown); // a vCPU may have died since it was checked
      this.#onError(
        error instanceof HibernaculumError
          ? error
          : new HibernaculumError("HIB_INTERNAL", `a vCPU died: ${String(error)}`, { cause: error }),
      );
    }
  }

  /** What a status line says, the most important first. */
  #describe(): string[] {
    const { name, state, uptime_ms, free_bytes, missing_bytes, processes } = this.#service.status();
    const rate = processes.reduce((sum, { steps_per_s }) => sum + (steps_per_s ?? 0), 0);
    return [
      `${name}: ${state} ${formatMs(uptime_ms)}`,
      `${formatShort(rate)} steps/s`,
      `${formatBytes(free_bytes)} free`,
      ...(missing_bytes === 0 ? [] : [`${formatBytes(missing_bytes)} to come`]),
      "Ctrl-C: power off",
    ];
  }
}
