/** A client's end of the control socket. */
import { createConnection, type Socket } from "node:net";
import { describeThrown, guarded, warnOf } from "../base/callback.js";
import { deserializeError, fromSystemError, HibernaculumError } from "../base/errors.js";
import { type CommandName, type Commands, LineReader, type Request, type Response } from "./protocol.js";
import { checkPrivate, removeDead, runtimeDirectory, socketPath } from "./runtime-directory.js";

export interface RequestOptions<Name extends CommandName> {
  /**
   * If it throws, or gives a promise that rejects, the request is cancelled, and fails with HIB_CANCELLED and that as its `cause`. If the
   * machine has done by then what was asked, the request succeeds, and a warning of the process says what was thrown.
   */
  onProgress?: (progress: Commands[Name]["progress"]) => void;
  /** Asks the machine to cancel; its answer is awaited all the same, since only the machine knows whether it came in time. */
  signal?: AbortSignal;
}

interface Pending {
  resolve(value: unknown): void;
  reject(error: Error): void;
  progress(progress: unknown): void;
}

export class Client {
  readonly name: string;
  readonly #socket: Socket;
  readonly #pending = new Map<number, Pending>();
  #nextId = 1;
  /** Why the machine ends this connection, if it does. */
  #refusal: HibernaculumError | undefined;

  private constructor(name: string, socket: Socket) {
    this.name = name;
    this.#socket = socket;
    const lines = new LineReader((line) => this.#receive(line));
    socket.on("data", (bytes) => {
      try {
        lines.push(bytes);
      } catch {
        socket.destroy(); // what listens there is no machine
      }
    });
    socket.on("error", () => undefined); // "close" follows
    socket.once("close", () => {
      const gone = this.#refusal ?? new HibernaculumError("HIB_NO_MACHINE", `machine ${name} went away before it answered`);
      for (const { reject } of this.#pending.values()) reject(gone);
      this.#pending.clear();
    });
  }

  /**
   * Connects to a running machine. What a dead one left is removed.
   *
   * @throws HIB_NO_MACHINE, HIB_USAGE, HIB_IO
   */
  static async connect(name: string): Promise<Client> {
    const path = socketPath(name);
    await checkPrivate(runtimeDirectory());
    try {
      return new Client(name, await open(path));
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === "ENOENT")
        throw new HibernaculumError("HIB_NO_MACHINE", `no machine named ${name} runs; hib ps lists those that do`);
      if (code !== "ECONNREFUSED") throw fromSystemError(error, `connecting to ${path}`);
      await removeDead(path);
      throw new HibernaculumError("HIB_NO_MACHINE", `machine ${name} died; the socket that it left has been removed`);
    }
  }

  /** @throws what the machine answered, or HIB_NO_MACHINE when it did not */
  request<Name extends CommandName>(
    command: Name,
    options: Commands[Name]["options"],
    { onProgress, signal }: RequestOptions<Name> = {},
  ): Promise<Commands[Name]["value"]> {
    const id = this.#nextId++;
    const cancel = (): void => this.#send({ id: this.#nextId++, command: "cancel", options: { request: id } });
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
      if (this.#socket.destroyed)
        this.#pending.get(id)!.reject(this.#refusal ?? new HibernaculumError("HIB_NO_MACHINE", `machine ${this.name} is gone`));
      this.#send({ id, command, options });
      if (signal?.aborted === true) cancel();
      else signal?.addEventListener("abort", cancel);
    }).finally(() => signal?.removeEventListener("abort", cancel));
  }

  close(): void {
    this.#socket.destroy();
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
