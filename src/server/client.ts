/**
 * A client's end of the control socket.
 *
 * What must hold: nobody waits for ever without being told. A machine that is silent is asked for a sign of life; without one the
 * caller is told, and a request that is cancelled is given up.
 */
import { createConnection, type Socket } from "node:net";
import { describeThrown, guarded, warnOf } from "../base/callback.js";
import { deserializeError, fromSystemError, HibernaculumError } from "../base/errors.js";
import { type CommandName, type Commands, LineReader, type Request, type Response } from "./protocol.js";
import { checkPrivate, probe, removeDead, runtimeDirectory, socketPath } from "./runtime-directory.js";

export interface RequestOptions<Name extends CommandName> {
  /**
   * If it throws, or gives a promise that rejects, the request is cancelled, and fails with HIB_CANCELLED and that as its `cause`. If the
   * machine has done by then what was asked, the request succeeds, and a warning of the process says what was thrown.
   */
  onProgress?: (progress: Commands[Name]["progress"]) => void;
  /**
   * Asks the machine to cancel. Its answer is awaited all the same, since only the machine knows whether that came in time; but not
   * that of a machine which gives no sign of life.
   */
  signal?: AbortSignal;
}

export interface ClientOptions {
  /** Is told, once, that the machine keeps a request waiting and gives no sign of life. */
  onSilent?: () => void;
  /** After how long. */
  silence_ms?: number;
}

/** Longer than anything keeps a machine's thread busy, as a rule. */
const SILENCE_MS = 5000;
/** Of those a silence has so many. They are counted: a client that stands still for a while has missed nothing. */
const SILENT_TICKS = 10;
/** After so many the machine is asked. */
const ASK_TICKS = 4;
/** A request that is never made: to be told that it cannot be cancelled is a sign of life, and costs the machine nothing. */
const NO_REQUEST = 0;

interface Pending {
  resolve(value: unknown): void;
  reject(error: Error): void;
  progress(progress: unknown): void;
}

export class Client {
  readonly name: string;
  readonly #socket: Socket;
  readonly #pending = new Map<number, Pending>();
  readonly #onSilent: () => void;
  readonly #silence_ms: number;
  #nextId = NO_REQUEST + 1;
  #ticks: NodeJS.Timeout | undefined;
  #silentTicks = 0;
  #toldSilent = false;
  /** What is under way has been cancelled. */
  #cancelling = false;
  /** Why the machine ends this connection, if it does. */
  #refusal: HibernaculumError | undefined;

  private constructor(name: string, socket: Socket, { onSilent = () => undefined, silence_ms = SILENCE_MS }: ClientOptions) {
    this.name = name;
    this.#socket = socket;
    this.#onSilent = onSilent;
    this.#silence_ms = silence_ms;
    const lines = new LineReader((line) => this.#receive(line));
    socket.on("data", (bytes) => {
      this.#silentTicks = 0;
      try {
        lines.push(bytes);
      } catch {
        this.#refusal ??= new HibernaculumError("HIB_NO_MACHINE", `whoever listens as ${name}, it is no machine`);
        socket.destroy();
      }
    });
    socket.on("error", () => undefined); // "close" follows
    socket.once("close", () => void this.#rejectAll());
  }

  /**
   * Connects to a running machine. What a dead one left is removed.
   *
   * @throws HIB_NO_MACHINE, HIB_USAGE, HIB_IO
   */
  static async connect(name: string, options: ClientOptions = {}): Promise<Client> {
    const path = socketPath(name);
    await checkPrivate(runtimeDirectory());
    try {
      return new Client(name, await open(path), options);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === "ENOENT")
        throw new HibernaculumError("HIB_NO_MACHINE", `no machine named ${name} runs; hib ps lists those that do`);
      if (code !== "ECONNREFUSED") throw fromSystemError(error, `connecting to ${path}`);
      await removeDead(path);
      throw new HibernaculumError("HIB_NO_MACHINE", `machine ${name} died; the socket that it left has been removed`);
    }
  }

  /** @throws what the machine answered; HIB_NO_MACHINE or HIB_NO_ANSWER when it did not */
  request<Name extends CommandName>(
    command: Name,
    options: Commands[Name]["options"],
    { onProgress, signal }: RequestOptions<Name> = {},
  ): Promise<Commands[Name]["value"]> {
    const id = this.#nextId++;
    const cancel = (): void => {
      this.#cancelling = true;
      this.#silentTicks = 0;
      this.#cancel(id);
    };
    let thrown: { what: unknown } | undefined;
    const progress = guarded(onProgress, (what) => {
      if (thrown !== undefined || !this.#pending.has(id)) return warnOf("onProgress", what);
      thrown = { what };
      cancel();
    });
    return new Promise<Commands[Name]["value"]>((resolve, reject) => {
      this.#pending.set(id, {
        resolve: (value) => {
          if (thrown !== undefined) warnOf("onProgress", thrown.what);
          resolve(value as Commands[Name]["value"]);
        },
        reject: (error) => reject(thrown === undefined ? error : becauseOf(thrown.what, error)),
        progress: (value) => progress(value as Commands[Name]["progress"]),
      });
      if (this.#socket.destroyed) void this.#rejectAll();
      this.#silentTicks = 0;
      this.#ticks ??= setInterval(() => this.#tick(), this.#silence_ms / SILENT_TICKS);
      this.#send({ id, command, options });
      if (signal?.aborted === true) cancel();
      else signal?.addEventListener("abort", cancel);
    }).finally(() => {
      signal?.removeEventListener("abort", cancel);
      if (this.#pending.size === 0) this.#stopTicks();
    });
  }

  close(): void {
    this.#stopTicks();
    this.#refusal ??= new HibernaculumError("HIB_NO_MACHINE", `the connection to machine ${this.name} was closed`);
    this.#socket.destroy();
  }

  #tick(): void {
    this.#silentTicks++;
    if (this.#silentTicks === ASK_TICKS) this.#cancel(NO_REQUEST);
    if (this.#silentTicks < SILENT_TICKS) return;
    if (this.#cancelling) {
      const seconds = Math.round(this.#silence_ms / 1000);
      const gaveUp = `machine ${this.name} has not answered for ${seconds} s; what it was asked may still be done once it goes on`;
      this.#settle(new HibernaculumError("HIB_NO_ANSWER", `${gaveUp}: hib ps shows whether it answers again`));
    } else if (!this.#toldSilent) {
      this.#toldSilent = true;
      this.#onSilent();
    }
  }

  #stopTicks(): void {
    clearInterval(this.#ticks);
    this.#ticks = undefined;
    this.#cancelling = false;
  }

  /** The connection is closed: whoever waits is told why. */
  async #rejectAll(): Promise<void> {
    if (this.#pending.size === 0) return;
    this.#settle(this.#refusal ?? (await this.#whyClosed()));
  }

  async #whyClosed(): Promise<HibernaculumError> {
    if ((await probe(socketPath(this.name)).catch(() => "absent")) !== "alive")
      return new HibernaculumError("HIB_NO_MACHINE", `machine ${this.name} went away before it answered`);
    return new HibernaculumError(
      "HIB_NO_ANSWER",
      `machine ${this.name} runs, but closed the connection before it answered: it may be short of file descriptors (ulimit -n); try again`,
    );
  }

  #settle(error: HibernaculumError): void {
    for (const { reject } of this.#pending.values()) reject(error);
    this.#pending.clear();
  }

  #cancel(request: number): void {
    this.#send({ id: this.#nextId++, command: "cancel", options: { request } });
  }

  #send(request: Request): void {
    this.#socket.write(`${JSON.stringify(request)}\n`);
  }

  #receive(line: string): void {
    const response = JSON.parse(line) as Response;
    if (response.id === null && "error" in response) this.#refusal = deserializeError(response.error); // "close" follows
    const pending = response.id === null ? undefined : this.#pending.get(response.id);
    if (pending === undefined) return; // the answer to a cancel
    if ("progress" in response) {
      pending.progress(response.progress);
      return;
    }
    this.#pending.delete(response.id!);
    if (response.ok) pending.resolve(response.value);
    else pending.reject(deserializeError(response.error));
  }
}

/** The answer to a request that was cancelled because its caller's callback threw. */
function becauseOf(thrown: unknown, answer: Error): Error {
  const cancelled = answer instanceof HibernaculumError && answer.code === "HIB_CANCELLED";
  if (!cancelled) return answer;
  return new HibernaculumError("HIB_CANCELLED", `onProgress ${describeThrown(thrown)}: ${answer.message}`, { cause: thrown });
}

function open(path: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = createConnection(path);
    socket.once("connect", () => {
      socket.removeListener("error", reject);
      resolve(socket);
    });
    socket.once("error", reject);
  });
}
