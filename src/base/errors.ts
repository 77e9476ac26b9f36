/**
 * Errors that leave the program: one class, told apart by a literal code. The message is one line: what happened and
 * what to do. Codes are part of the interface; these are all.
 */
export type ErrorCode =
  | "HIB_USAGE" // options or arguments out of range
  | "HIB_RAM_TOO_LARGE" // more than the runtime can hold
  | "HIB_NO_MEMORY" // the guest has too little free memory for what was asked
  | "HIB_NOT_AN_IMAGE" // no directory of an image, or the magic is not HBRN
  | "HIB_FORMAT_VERSION" // written by another format version
  | "HIB_MACHINE_VERSION" // memory layout of another kernel version
  | "HIB_TRUNCATED" // blob or catalogue shorter (or longer) than the header says
  | "HIB_CORRUPT" // a checksum or a count does not agree
  | "HIB_INCONSISTENT" // checksums agree, but the machine inside is not consistent
  | "HIB_RAM_MISMATCH" // the image is of a machine with other RAM
  | "HIB_PARENT" // the image that an incremental one needs is missing, wrong, or not what the machine tracks
  | "HIB_IMAGE_USED" // resumed before
  | "HIB_RESUMES_DIED" // resumes of it died with their process, and a boot tries it no more
  | "HIB_DISK_IN_USE" // another machine has the disk
  | "HIB_KEY_NEEDED" // the image is encrypted, and no key was given
  | "HIB_KEY_WRONG" // the image is of another key, or of none
  | "HIB_FILES_CHANGED" // files of the host that the machine has open are not what they were
  | "HIB_NOT_ALLOWED" // an image names files of the host that the user has not named
  | "HIB_IMAGE_EXISTS" // the path to write to is taken
  | "HIB_IO" // the host's file system refused or failed
  | "HIB_NO_SPACE" // ENOSPC or EDQUOT
  | "HIB_BUSY" // a save or a resume is under way already: of this machine, or of this image by another process
  | "HIB_CANCELLED" // the user or a caller cancelled
  | "HIB_WORKER_DIED" // a page writer, a page loader or a vCPU died; without a vCPU the machine cannot go on
  | "HIB_ORACLE" // a frame changed without a mark: a bug in write tracking
  | "HIB_SELF_CHECK" // a program found its own memory wrong
  | "HIB_NO_MACHINE" // nobody listens on that name
  | "HIB_NO_ANSWER" // a machine is there, and does not answer
  | "HIB_NAME_TAKEN" // a machine of that name runs already
  | "HIB_DEPENDENCY" // a native dependency is missing
  | "HIB_INTERNAL"; // a bug

export class HibernaculumError extends Error {
  override readonly name = "HibernaculumError";
  readonly code: ErrorCode;
  /** What happened, of a message whose advice is not for every caller: a command that only reads gives another. */
  readonly what: string | undefined;
  constructor(code: ErrorCode, message: string, { what, ...options }: { cause?: unknown; what?: string | undefined } = {}) {
    super(message, options);
    this.code = code;
    this.what = what;
  }
}

/** What crosses a thread or a socket: an Error's own code would be dropped there. */
export interface SerializedError {
  code: ErrorCode;
  message: string;
}

/** What to do about what the host refused, by its code. */
const ADVICE: Readonly<Record<string, string>> = {
  EACCES: "check its permissions, or choose another path",
  EPERM: "check its permissions, or choose another path",
  EROFS: "choose a path that can be written to",
  ENOENT: "check the path",
  ENOTDIR: "check the path",
  EISDIR: "give a file",
  ELOOP: "check the links in the path",
  ENAMETOOLONG: "choose a shorter path",
  EMFILE: "close some files of this process, or raise its limit (ulimit -n)",
  ENFILE: "close some files of this process, or raise its limit (ulimit -n)",
  EAGAIN: "the host has no room for more threads: end some processes, or raise its limit (ulimit -u)",
  ERR_WORKER_INIT_FAILED: "the host has no room for more threads: end some processes, or raise its limit (ulimit -u)",
};

/** Errors of Node's file system and of its threads, by what they mean to the user. */
export function fromSystemError(error: unknown, doing: string): HibernaculumError {
  if (error instanceof HibernaculumError) return error;
  const code = (error as NodeJS.ErrnoException | undefined)?.code ?? "";
  const text = error instanceof Error ? error.message : String(error);
  if (code === "ENOSPC" || code === "EDQUOT") {
    return new HibernaculumError("HIB_NO_SPACE", `${doing}: no space left; free some or choose another path`, { cause: error });
  }
  const advice = text.endsWith("uv_cwd") ? "the current directory is gone: change to another" : ADVICE[code];
  return new HibernaculumError("HIB_IO", `${doing}: ${text}${advice === undefined ? "" : `; ${advice}`}`, { cause: error });
}

/** Does something with files; a refusal says what was being done. */
export async function attemptTo<T>(doing: string, operation: () => Promise<T>): Promise<T> {
  try {
    return await operation();
  } catch (error) {
    throw fromSystemError(error, doing);
  }
}

/** What is wrong with an image that is not what was written. */
export function damaged(code: "HIB_CORRUPT" | "HIB_TRUNCATED", what: string, options?: { cause?: unknown }): HibernaculumError {
  return new HibernaculumError(code, `${what}: the image is damaged, use another copy of it`, options);
}

/** What a machine's memory says cannot be: no kernel made it so. */
export class Contradiction extends HibernaculumError {
  override readonly what: string;

  constructor(what: string) {
    super("HIB_INCONSISTENT", `the machine in the image contradicts itself: ${what}; use another image`);
    this.what = what;
  }
}

/** An error of Node's file system or of a failure point that acts as one. */
export function isSystemError(error: unknown): boolean {
  return !(error instanceof HibernaculumError) && typeof (error as NodeJS.ErrnoException | undefined)?.code === "string";
}

/** The error with the path that it is about in its message. */
export function naming(error: unknown, path: string): unknown {
  if (!(error instanceof HibernaculumError) || error.message.includes(path)) return error;
  const what = error.what === undefined ? undefined : `${path}: ${error.what}`;
  return new HibernaculumError(error.code, `${path}: ${error.message}`, { cause: error.cause ?? error, what });
}

export function serializeError(thrown: unknown): SerializedError {
  const error = isSystemError(thrown) ? fromSystemError(thrown, "a page thread failed") : thrown;
  if (error instanceof HibernaculumError) return { code: error.code, message: error.message };
  return { code: "HIB_INTERNAL", message: error instanceof Error ? error.message : String(error) };
}

export function deserializeError(error: SerializedError): HibernaculumError {
  return new HibernaculumError(error.code, error.message);
}

/** A condition that only a bug can break. */
export function assert(condition: boolean, message: string): asserts condition {
  if (!condition) throw new HibernaculumError("HIB_INTERNAL", `assertion failed: ${message}`);
}
