/**
 * The machine's end of the control socket.
 *
 * What must hold: only the owner can open it (mode 0600 in a directory of mode 0700, from the first instant on). A
 * request's signal fires when it is cancelled and when its client is gone. `close` lets every answer out.
 */
import { link, rm } from "node:fs/promises";
import { createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import process from "node:process";
import { fromSystemError, HibernaculumError, serializeError } from "../base/errors.js";
import {
  type CommandName,
  type Commands,
  LineReader,
  parseRequest,
  REQUEST_BYTES_MAX,
  RequestError,
  type Response,
} from "./protocol.js";
import { prepareRuntimeDirectory, probe, removeDead, socketPath } from "./runtime-directory.js";

/** What a handler gets besides its options. */
export interface RequestContext<Name extends CommandName> {
  /** Fires when the client cancels or is gone. */
  signal: AbortSignal;
  progress(progress: Commands[Name]["progress"]): void;
}

/** What a machine does for its clients; `cancel` is the server's own. */
export type Handlers = {
  [Name in Exclude<CommandName, "cancel">]: (
    options: Commands[Name]["options"],
    context: RequestContext<Name>,
  ) => Promise<Commands[Name]["value"]>;
};

/** Servers that this process has begun. */
let servers = 0;

type AnyHandler = (options: unknown, context: RequestContext<CommandName>) => Promise<unknown>;

export class ControlServer {
  readonly path: string;
  readonly #server: Server;
  readonly #handlers: Handlers;
  readonly #connections = new Set<Connection>();

  private constructor(path: string, handlers: Handlers) {
    this.path = path;
    this.#handlers = handlers;
    this.#server = createServer((socket) => this.#accept(socket));
  }

  /**
   * Listens under a machine's name.
   *
   * @throws HIB_NAME_TAKEN, HIB_USAGE, HIB_IO
   */
  static async listen(name: string, handlers: Handlers): Promise<ControlServer> {
    const directory = await prepareRuntimeDirectory();
    const server = new ControlServer(socketPath(name), handlers);
    // Bound under a hidden name: a socket that is bound and not yet listened on looks like a dead machine's.
    const hidden = join(directory, `.${process.pid}.${servers++}`);
    await rm(hidden, { force: true });
    await server.#bind(hidden);
    try {
      await server.#takeName(hidden, name);
    } catch (error) {
      server.#server.close();
      throw error;
    } finally {
      await rm(hidden, { force: true });
    }
    return server;
  }

  /** Takes no more requests, cancels those under way, lets their answers out, and is gone. */
  async close(): Promise<void> {
    await rm(this.path, { force: true });
    const closed = new Promise((resolve) => this.#server.close(resolve));
    await Promise.all([...this.#connections].map((connection) => connection.close()));
    await closed;
  }

  #bind(path: string): Promise<void> {
    return new Promise((resolve, reject) => {
      const before = process.umask(0o177);
      this.#server.once("error", (error) => reject(fromSystemError(error, `listening on ${path}`)));
      this.#server.listen(path, resolve);
      process.umask(before); // binding is done when `listen` returns
    });
  }

  /** A link fails if the name is taken, which a rename does not. */
  async #takeName(hidden: string, name: string): Promise<void> {
    for (let attempt = 0; attempt < 3; attempt++) {
      try {
        await link(hidden, this.path);
        return;
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw fromSystemError(error, `making ${this.path}`);
      }
      await refuseLive(name);
    }
    throw nameTaken(name);
  }

  #accept(socket: Socket): void {
    const connection = new Connection(socket, this.#handlers);
    this.#connections.add(connection);
    socket.once("close", () => this.#connections.delete(connection));
  }
}

/**
 * Makes sure that a name is free, removing what a dead machine left.
 *
 * @returns whether there was something to remove
 * @throws HIB_NAME_TAKEN, HIB_USAGE, HIB_IO
 */
export async function refuseLive(name: string): Promise<boolean> {
  await prepareRuntimeDirectory();
  const path = socketPath(name);
  const state = await probe(path);
  if (state === "alive" || (state === "dead" && !(await removeDead(path)))) throw nameTaken(name);
  return state === "dead";
}

function nameTaken(name: string): HibernaculumError {
  return new HibernaculumError("HIB_NAME_TAKEN", `a machine named ${name} runs already: give this one another --name`);
}

/** A client. */
class Connection {
  readonly #socket: Socket;
  readonly #handlers: Handlers;
  readonly #running = new Map<number, { abort: AbortController; done: Promise<void> }>();

  constructor(socket: Socket, handlers: Handlers) {
    this.#socket = socket;
    this.#handlers = handlers;
    const lines = new LineReader((line) => this.#receive(line), REQUEST_BYTES_MAX);
    socket.on("data", (bytes) => {
      try {
        lines.push(bytes);
      } catch (error) {
        this.#send({ id: null, ok: false, error: serializeError(error) });
        socket.removeAllListeners("data").resume().end();
      }
    });
    socket.on("error", () => undefined); // "close" follows
    socket.once("close", () => this.#abortAll());
  }

  async close(): Promise<void> {
    this.#abortAll();
    await Promise.all([...this.#running.values()].map(({ done }) => done));
    if (this.#socket.destroyed) return;
    await new Promise<void>((resolve) => {
      this.#socket.once("close", () => resolve());
      // A client that does not read keeps nobody from leaving.
      this.#socket.end(() => this.#socket.destroy());
      setTimeout(() => this.#socket.destroy(), 1000).unref();
    });
  }

  #receive(line: string): void {
    try {
      const { id, command, options } = parseRequest(line);
      if (this.#running.has(id)) throw new RequestError(null, `a request with the id ${id} is under way`);
      if (command === "cancel") {
        const target = this.#running.get((options as Commands["cancel"]["options"]).request);
        target?.abort.abort();
        this.#send({ id, ok: true, value: target !== undefined });
        return;
      }
      const abort = new AbortController();
      const done = this.#run(id, this.#handlers[command] as AnyHandler, options, abort.signal);
      this.#running.set(id, { abort, done });
    } catch (error) {
      this.#send({ id: error instanceof RequestError ? error.id : null, ok: false, error: serializeError(error) });
    }
  }

  async #run(id: number, handler: AnyHandler, options: unknown, signal: AbortSignal): Promise<void> {
    await undefined; // so that it is in #running before it can end
    try {
      const value = await handler(options, { signal, progress: (progress) => this.#send({ id, progress }) });
      this.#send({ id, ok: true, value });
    } catch (error) {
      this.#send({ id, ok: false, error: serializeError(error) });
    } finally {
      this.#running.delete(id);
    }
  }

  #send(response: Response): void {
    if (this.#socket.writable) this.#socket.write(`${JSON.stringify(response)}\n`);
  }

  #abortAll(): void {
    for (const { abort } of this.#running.values()) abort.abort();
  }
}
