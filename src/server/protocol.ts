/**
 * What a running machine and its clients say to each other over the control socket: JSON, a line a message.
 *
 *     client                                machine
 *       | {"id":1,"command":"save",...}  -->  |
 *       | <--  {"id":1,"progress":{...}}      |  any number of times
 *       | {"id":2,"command":"cancel",         |
 *       |  "options":{"request":1}}      -->  |  at any time
 *       | <--  {"id":2,"ok":true,...}         |
 *       | <--  {"id":1,"ok":false,...}        |
 *
 * What must hold: every request with an id is answered exactly once, in whatever order, and a client that goes away
 * cancels what it asked for. Whatever a client sends, the machine goes on. One that is idle for long, or one too many, is told so
 * by an error without an id, and its connection ends.
 */
import type { Key } from "../base/key.js";
import { HibernaculumError, type SerializedError } from "../base/errors.js";
import { APPROACH_NAMES, type ApproachName } from "../reports/approaches.js";
import type { SaveProgress } from "../reports/save-progress.js";
import type { ResumeReport } from "../reports/resume-report.js";
import type { SaveReport } from "../reports/save-report.js";
import type { ProcessCheck } from "../vm/personality/step/programs/check.js";

/** Longest request, bytes. Answers may be longer: reports are. */
export const REQUEST_BYTES_MAX = 65536;

export interface ProcessStatus {
  pid: number;
  /** The program's; empty for a zombie, of which only its status is left. */
  name: string;
  /** The program's text. */
  text: string;
  state: string;
  /** Belongs to the boot. */
  boot: boolean;
  steps: number;
  /** Over the last second or so; null when it has not run that long. */
  steps_per_s: number | null;
  /** User pages, the code page included. */
  pages: number;
  failure: string;
  /** pid of its parent, 0 for none. */
  parent: number;
  /** Process group. */
  group: number;
  nice: number;
  /** How a zombie or a failed process ended: code << 8, or the signal. Else null. */
  ended: number | null;
}

export interface MachineStatus {
  name: string;
  /** Of the host process. */
  pid: number;
  state: "booting" | "running" | "saving" | "resuming" | "checking";
  uptime_ms: number;
  ram_bytes: number;
  free_bytes: number;
  /** Of a lazy resume, not there yet. */
  missing_bytes: number;
  vcpus: number;
  page_threads: number;
  /** How often the machine has been resumed in its life. */
  resumes: number;
  processes: ProcessStatus[];
}

export interface SaveRequest {
  /** Absolute. */
  path: string;
  keepRunning: boolean;
  /** Default write-fault. */
  approach?: ApproachName;
  /** Absolute; the image that is to have all that has not changed since. */
  base?: string;
  compression: "lz4" | "none";
  /** How long a snapshot's atomic copy may take. */
  pauseTarget_ms?: number;
  /** Of `adaptive`: how long the machine may be stopped. */
  maxPause_ms?: number;
  /** Of `adaptive`: processes that write may be made slower. */
  throttle?: boolean;
  /** Also store pages of files that are as the host has them. */
  saveClean?: boolean;
  /** Also of each chunk and of the catalogue. */
  digest?: "none" | "sha256";
  /** Encrypt it for these. */
  keys?: SentKey[];
}

/** A key as JSON has it: the bytes of a key file in base64. */
export type SentKey = { passphrase: string } | { keyFile: string };

export function sendKey(key: { passphrase: string } | { keyFile: Uint8Array }): SentKey {
  return "passphrase" in key ? key : { keyFile: Buffer.from(key.keyFile).toString("base64") };
}

/** What a client sent; what is wrong with it, the save says. */
export function receiveKey(sent: SentKey): Key {
  return "passphrase" in sent ? sent : { keyFile: Buffer.from(sent.keyFile, "base64") };
}

function isSentKey(value: unknown): value is SentKey {
  if (typeof value !== "object" || value === null) return false;
  const [name, ...others] = Object.keys(value);
  return (name === "passphrase" || name === "keyFile") && others.length === 0 && typeof Object.values(value)[0] === "string";
}

export interface CheckProgress {
  /** Processes checked, and all of them. */
  done: number;
  total: number;
}

export interface CheckResult {
  processes: ProcessCheck[];
  /** What is wrong with the buddy allocator, page tables or process table. */
  problems: string[];
}

export interface LiveReport {
  status: MachineStatus;
  activity: {
    bin_ms: number;
    /** Steps of all processes per bin, in the last second. */
    steps: number[];
    /** Since the last save began, or the machine. */
    longest_gap_ms: number;
  };
  /** The last save since this host process booted the machine. */
  save: SaveReport | null;
  /** How the machine came to be here, if by a resume. */
  resume: ResumeReport | null;
}

/** What a machine can be asked: by command, what goes in and what comes out. */
export interface Commands {
  status: { options: Record<string, never>; progress: never; value: MachineStatus };
  save: { options: SaveRequest; progress: SaveProgress; value: SaveReport };
  /** Recomputes every process and compares; the machine stops for moments only. */
  check: { options: Record<string, never>; progress: CheckProgress; value: CheckResult };
  report: { options: Record<string, never>; progress: never; value: LiveReport };
  /** Cancels another request of the same connection. False when that is answered already. */
  cancel: { options: { request: number }; progress: never; value: boolean };
}
export type CommandName = keyof Commands;
export const COMMAND_NAMES: readonly CommandName[] = ["status", "save", "check", "report", "cancel"];

export interface Request<Name extends CommandName = CommandName> {
  id: number;
  command: Name;
  options: Commands[Name]["options"];
}

export type Response =
  | { id: number; progress: unknown }
  | { id: number; ok: true; value: unknown }
  /** `id` is null when the request could not be told. */
  | { id: number | null; ok: false; error: SerializedError };

/** Splits a stream into lines, of which none may be longer than `bytesMax`. */
export class LineReader {
  readonly #bytesMax: number;
  readonly #onLine: (line: string) => void;
  #rest: Buffer = Buffer.alloc(0);

  constructor(onLine: (line: string) => void, bytesMax: number = Infinity) {
    this.#onLine = onLine;
    this.#bytesMax = bytesMax;
  }

  /** @throws HIB_USAGE once a line is too long; then the stream is of no more use */
  push(bytes: Buffer): void {
    let data = this.#rest.length === 0 ? bytes : Buffer.concat([this.#rest, bytes]);
    for (let end = data.indexOf(10); end >= 0; end = data.indexOf(10)) {
      this.#checkLength(end);
      this.#onLine(data.toString("utf8", 0, end));
      data = data.subarray(end + 1);
    }
    this.#checkLength(data.length);
    this.#rest = data;
  }

  #checkLength(bytes: number): void {
    if (bytes > this.#bytesMax) throw new HibernaculumError("HIB_USAGE", `a request is at most ${this.#bytesMax} bytes`);
  }
}

/**
 * Reads a request.
 *
 * @throws HIB_USAGE; what could be told of the request's id is in `RequestError.id`
 */
export function parseRequest(line: string): Request {
  let request: Partial<Request>;
  try {
    request = JSON.parse(line) as Partial<Request>;
  } catch {
    throw new RequestError(null, "a request is one line of JSON");
  }
  if (typeof request !== "object" || request === null || !Number.isSafeInteger(request.id)) {
    throw new RequestError(null, "a request is an object with a whole number as its id");
  }
  const { id, command, options = {} } = request as Request;
  if (!COMMAND_NAMES.includes(command)) {
    throw new RequestError(id, `no command ${JSON.stringify(command)}; there are ${COMMAND_NAMES.join(", ")}`);
  }
  if (typeof options !== "object" || options === null) throw new RequestError(id, "options must be an object");
  checkOptions(id, command, options as unknown as Record<string, unknown>);
  return { id, command, options };
}

export class RequestError extends HibernaculumError {
  readonly id: number | null;
  constructor(id: number | null, message: string) {
    super("HIB_USAGE", message);
    this.id = id;
  }
}

/** All that may be asked for. What the library can do besides is not for clients. */
const OPTION_NAMES: { [Name in CommandName]: readonly (keyof Commands[Name]["options"])[] } = {
  status: [],
  save: [
    "path",
    "keepRunning",
    "approach",
    "base",
    "compression",
    "pauseTarget_ms",
    "maxPause_ms",
    "throttle",
    "saveClean",
    "digest",
    "keys",
  ],
  check: [],
  report: [],
  cancel: ["request"],
};

function checkOptions(id: number, command: CommandName, options: Record<string, unknown>): void {
  const need = (condition: boolean, what: string): void => {
    if (!condition) throw new RequestError(id, `${command}: ${what}`);
  };
  const names: readonly string[] = OPTION_NAMES[command];
  const there = names.length === 0 ? "there are none" : `there are ${names.join(", ")}`;
  for (const name of Object.keys(options)) need(names.includes(name), `no option ${JSON.stringify(name)}; ${there}`);
  if (command === "cancel") need(Number.isSafeInteger(options["request"]), "request must be the id of another request");
  if (command === "save") {
    const { path, keepRunning, approach, base, compression, pauseTarget_ms, maxPause_ms, throttle, saveClean, digest, keys } =
      options;
    need(isAbsolutePath(path), "path must be an absolute path");
    need(base === undefined || isAbsolutePath(base), "base must be an absolute path");
    need(typeof keepRunning === "boolean", "keepRunning must be true or false");
    need(
      approach === undefined || APPROACH_NAMES.includes(approach as ApproachName),
      `approach must be ${APPROACH_NAMES.join(" or ")}`,
    );
    need(compression === "lz4" || compression === "none", "compression must be lz4 or none");
    need(
      pauseTarget_ms === undefined || (typeof pauseTarget_ms === "number" && pauseTarget_ms >= 0),
      "pauseTarget_ms must be 0 or more",
    );
    need(maxPause_ms === undefined || (typeof maxPause_ms === "number" && maxPause_ms > 0), "maxPause_ms must be above 0");
    need(throttle === undefined || typeof throttle === "boolean", "throttle must be true or false");
    need(saveClean === undefined || typeof saveClean === "boolean", "saveClean must be true or false");
    need(digest === undefined || digest === "none" || digest === "sha256", "digest must be none or sha256");
    need(
      keys === undefined || (Array.isArray(keys) && keys.every(isSentKey)),
      "keys must be a list of passphrases and key files",
    );
  }
}

function isAbsolutePath(path: unknown): boolean {
  return typeof path === "string" && path.startsWith("/") && !path.includes("\0");
}
