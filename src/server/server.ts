/**
 * The machine's end of the control socket.
 *
 * What must hold: only the owner can open it (mode 0600 in a directory of mode 0700, from the first instant on). A
 * request's signal fires when it is cancelled and when its client is gone. `close` lets every answer out.
 */
import { link, lstat, rm } from "node:fs/promises";
import { createServer, type Server, type Socket } from "node:net";
import process from "node:process";
import { fromSystemError, serializeError } from "../base/errors.js";
import {
  type CommandName,
  type Commands,
  LineReader,
  parseRequest,
  REQUEST_BYTES_MAX,
  RequestError,
  type Response,
} from "./protocol.js";
import {
  hiddenPath,
  lockName,
  nameLock,
  nameTaken,
  prepareRuntimeDirectory,
  probe,
  removeDead,
  socketPath,
  sweepHidden,
} from "./runtime-directory.js";

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

export interface ServerOptions {
  /** Is told, a line each, of what a user should know: the socket was removed and is there again. */
  onNotice?: (line: string) => void;
  /** How often it is looked whether the socket is there. */
  tend_ms?: number;
  /** Most clients at a time. */
  clientsMax?: number;
  /** A client that has nothing under way and says nothing for so long is sent away. */
  idle_ms?: number;
}

const TEND_MS = 1000;
const CLIENTS_MAX = 32;
const IDLE_MS = 600_000;
/** A client that lets so many bytes of answers lie is not listened to until it has read them. */
const UNREAD_BYTES_MAX = 2 ** 22;

type AnyHandler = (options: unknown, context: RequestContext<CommandName>) => Promise<unknown>;

export class ControlServer {
  readonly path: string;
  readonly #name: string;
  readonly #handlers: Handlers;
  readonly #connections = new Set<Connection>();
  readonly #onNotice: (line: string) => void;
  readonly #clientsMax: number;
  readonly #idle_ms: number;
  #lock: Server | undefined;
  #server: Server;
  /** What the socket's file is; somebody else's may come to be there. */
  #file: { dev: number; ino: number } | undefined;
  #timer: NodeJS.Timeout | undefined;
  #tending: Promise<void> = Promise.resolve();
  /** What was wrong with the socket when it was last looked at. */
  #trouble = "";

  private constructor(name: string, handlers: Handlers, options: ServerOptions) {
    const { onNotice = () => undefined, clientsMax = CLIENTS_MAX, idle_ms = IDLE_MS } = options;
    this.path = socketPath(name);
    this.#name = name;
    this.#handlers = handlers;
    this.#onNotice = onNotice;
    this.#clientsMax = clientsMax;
    this.#idle_ms = idle_ms;
    this.#server = this.#createServer();
  }

  /**
   * Listens under a machine's name. A socket that is removed, for example by a cleaner of old files, is made again.
   *
   * @throws HIB_NAME_TAKEN, HIB_USAGE, HIB_IO
   */
  static async listen(name: string, handlers: Handlers, options: ServerOptions = {}): Promise<ControlServer> {
    const server = new ControlServer(name, handlers, options); // a name or a path that cannot be is refused first
    await sweepHidden(await prepareRuntimeDirectory());
    server.#lock = await lockName(name);
    try {
      await server.#open();
    } catch (error) {
      server.#lock?.close();
      throw error;
    }
    const tend = (): Promise<void> => (server.#tending = server.#tend());
    const wait = (): NodeJS.Timeout =>
      setTimeout(() => void tend().then(() => server.#timer && (server.#timer = wait())), options.tend_ms ?? TEND_MS).unref();
    server.#timer = wait();
    return server;
  }

  /** Takes no more requests, cancels those under way, lets their answers out, and is gone. */
  async close(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    await this.#tending;
    if ((await this.#look()) === "mine") await rm(this.path, { force: true });
    const closed = new Promise((resolve) => this.#server.close(resolve));
    await Promise.all([...this.#connections].map((connection) => connection.close()));
    await closed;
    this.#lock?.close();
  }

  #createServer(): Server {
    return createServer((socket) => this.#accept(socket));
  }

  async #open(): Promise<void> {
    // Bound under a hidden name: a socket that is bound and not yet listened on looks like a dead machine's.
    const hidden = hiddenPath(await prepareRuntimeDirectory());
    try {
      await this.#bind(hidden);
      await this.#takeName(hidden);
    } catch (error) {
      this.#server.close();
      throw error;
    } finally {
      await rm(hidden, { force: true });
    }
  }

  #bind(path: string): Promise<void> {
    return new Promise((resolve, reject) => {
      const before = process.umask(0o177);
      this.#server.on("error", (error) => reject(fromSystemError(error, `listening on ${path}`)));
      this.#server.listen(path, resolve);
      process.umask(before); // binding is done when `listen` returns
    });
  }

  /** A link fails if the name is taken, which a rename does not. */
  async #takeName(hidden: string): Promise<void> {
    for (let attempt = 0; attempt < 3; attempt++) {
      try {
        await link(hidden, this.path);
        this.#file = await lstat(hidden);
        return;
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw fromSystemError(error, `making ${this.path}`);
      }
      await refuseLiveSocket(this.#name);
    }
    throw nameTaken(this.#name);
  }

  async #look(): Promise<"mine" | "another's" | "absent"> {
    const found = await lstat(this.path).catch(() => undefined);
    if (found === undefined) return "absent";
    return found.dev === this.#file?.dev && found.ino === this.#file.ino ? "mine" : "another's";
  }

  /** Makes the socket again if it is gone, and tries again if that fails: without its socket a machine cannot be saved. */
  async #tend(): Promise<void> {
    this.#refuseIdle();
    if ((await this.#look()) === "mine") return;
    const old = this.#server;
    this.#server = this.#createServer();
    try {
      await this.#open();
      old.close(); // its connections go on
      this.#trouble = "";
      this.#onNotice(`the control socket ${this.path} was removed; it was made again`);
    } catch (error) {
      this.#server = old;
      const { code, message } = serializeError(error);
      if (this.#trouble === code) return;
      this.#trouble = code;
      this.#onNotice(`${code}: the control socket ${this.path} is gone, so this machine cannot be reached: ${message}`);
    }
  }

  #accept(socket: Socket): void {
    const connection = new Connection(socket, this.#handlers);
    // Clients with a request under way come before idle ones.
    const idlest = [...this.#connections].sort((a, b) => b.idle_ms - a.idle_ms)[0];
    if (this.#connections.size >= this.#clientsMax) {
      const [refused, why] =
        idlest !== undefined && idlest.idle_ms >= 0 ? [idlest, "was idle for longest"] : [connection, "came last"];
      refused.refuse(
        `machine ${this.#name} has ${this.#clientsMax} clients, as many as it takes, and this one ${why}; try again`,
      );
      this.#connections.delete(refused);
      if (refused === connection) return;
    }
    this.#connections.add(connection);
    socket.once("close", () => this.#connections.delete(connection));
  }

  #refuseIdle(): void {
    for (const connection of this.#connections) {
      if (connection.idle_ms < this.#idle_ms) continue;
      const seconds = Math.round(connection.idle_ms / 1000);
      connection.refuse(`machine ${this.#name} has heard nothing from this client for ${seconds} s; connect again`);
    }
  }
}

/**
 * Makes sure that a name is free, removing what a dead machine left.
 *
 * @returns whether there was something to remove
 * @throws HIB_NAME_TAKEN, HIB_USAGE, HIB_IO
 */
export async function refuseLive(name: string): Promise<boolean> {
  socketPath(name); // before anything is made
  await prepareRuntimeDirectory();
  const lock = nameLock(name);
  if (lock !== undefined && (await probe(lock)) === "alive") throw nameTaken(name);
  return refuseLiveSocket(name);
}

async function refuseLiveSocket(name: string): Promise<boolean> {
  const path = socketPath(name);
  const state = await probe(path);
  if (state === "alive" || (state === "dead" && !(await removeDead(path)))) throw nameTaken(name);
  return state === "dead";
}

/** A client. */
class Connection {
  readonly #socket: Socket;
  readonly #handlers: Handlers;
  readonly #running = new Map<number, { abort: AbortController; done: Promise<void> }>();
  #active = performance.now();

  constructor(socket: Socket, handlers: Handlers) {
    this.#socket = socket;
    this.#handlers = handlers;
    const lines = new LineReader((line) => this.#receive(line), REQUEST_BYTES_MAX);
    socket.on("drain", () => socket.resume());
    socket.on("data", (bytes) => {
      this.#active = performance.now();
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

  /** How long nothing has been asked or answered; -1 while something is under way. */
  get idle_ms(): number {
    return this.#running.size > 0 ? -1 : performance.now() - this.#active;
  }

  /** Says why, and ends the connection. */
  refuse(why: string): void {
    this.#send({ id: null, ok: false, error: { code: "HIB_BUSY", message: why } });
    this.#socket.removeAllListeners("data").resume().end();
    // A client that does not read the refusal must not keep its descriptor.
    setTimeout(() => this.#socket.destroy(), 1000).unref();
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
      this.#active = performance.now();
    }
  }

  #send(response: Response): void {
    if (!this.#socket.writable) return;
    this.#socket.write(`${JSON.stringify(response)}\n`);
    if (this.#socket.writableLength > UNREAD_BYTES_MAX) this.#socket.pause();
  }

  #abortAll(): void {
    for (const { abort } of this.#running.values()) abort.abort();
  }
}
