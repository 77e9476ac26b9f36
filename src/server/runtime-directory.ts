/**
 * Where the control sockets are: one directory a user, one socket a machine.
 *
 *     $HIB_RUNTIME_DIR, else $XDG_RUNTIME_DIR/hibernaculum, else /tmp/hibernaculum-UID
 *         NAME.sock            a machine, or one that died and left this behind
 *         .PID.N               one that is about to be there
 *
 * What must hold: nobody but the user can look or write here, since whoever opens a socket has the machine. And a name
 * appears only when somebody listens on it, so a socket that refuses a connection is always a dead machine's.
 */
import { lstat, mkdir, readdir, rename, rm } from "node:fs/promises";
import { createConnection } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fromSystemError, HibernaculumError } from "../base/errors.js";

/** What the kernel has room for in a socket's address, less the zero at its end. */
const SOCKET_PATH_BYTES_MAX = 107;
const SUFFIX = ".sock";

/** The directory, which need not exist. */
export function runtimeDirectory(): string {
  const { HIB_RUNTIME_DIR, XDG_RUNTIME_DIR } = process.env;
  if (HIB_RUNTIME_DIR) return HIB_RUNTIME_DIR;
  if (XDG_RUNTIME_DIR) return join(XDG_RUNTIME_DIR, "hibernaculum");
  return join(tmpdir(), `hibernaculum-${process.getuid?.() ?? 0}`);
}

/**
 * Makes the directory if it is not there, and refuses one that others could have prepared.
 *
 * @throws HIB_IO
 */
export async function prepareRuntimeDirectory(): Promise<string> {
  const directory = runtimeDirectory();
  try {
    await mkdir(directory, { mode: 0o700 });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST")
      throw fromSystemError(error, `making ${directory} for the control sockets`);
  }
  await checkPrivate(directory);
  return directory;
}

/** @throws HIB_IO if the directory is not the user's alone. Absent is fine. */
export async function checkPrivate(directory: string): Promise<void> {
  const found = await lstat(directory).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return undefined;
    throw fromSystemError(error, `looking at ${directory}`);
  });
  if (found === undefined) return;
  const refuse = (why: string): never => {
    throw new HibernaculumError(
      "HIB_IO",
      `${directory} ${why}: control sockets need a directory of your own; set HIB_RUNTIME_DIR to one`,
    );
  };
  if (!found.isDirectory()) refuse("is not a directory");
  if (process.getuid !== undefined && found.uid !== process.getuid()) refuse(`belongs to user ${found.uid}`);
  if ((found.mode & 0o077) !== 0) refuse(`is open to others (mode ${(found.mode & 0o777).toString(8)})`);
}

export function isName(text: string): boolean {
  return /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(text);
}

/** @throws HIB_USAGE if it cannot be a machine's name */
export function checkName(name: string): void {
  if (!isName(name)) {
    throw new HibernaculumError(
      "HIB_USAGE",
      `${JSON.stringify(name)} is no name for a machine: 1 to 64 letters, digits, dots, dashes and underscores`,
    );
  }
}

/** @throws HIB_USAGE */
export function socketPath(name: string): string {
  checkName(name);
  const path = join(runtimeDirectory(), name + SUFFIX);
  // The hidden name that it is bound to at first may be longer by a process number.
  if (Buffer.byteLength(path) + 4 > SOCKET_PATH_BYTES_MAX) {
    throw new HibernaculumError("HIB_USAGE", `${path} is too long for a socket; take a shorter name or HIB_RUNTIME_DIR`);
  }
  return path;
}

/** Names of all sockets, dead ones too. */
export async function listNames(): Promise<string[]> {
  const directory = runtimeDirectory();
  await checkPrivate(directory);
  const names = await readdir(directory).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return [];
    throw fromSystemError(error, `listing ${directory}`);
  });
  return names
    .filter((name) => name.endsWith(SUFFIX) && !name.startsWith("."))
    .map((name) => name.slice(0, -SUFFIX.length))
    .sort();
}

/** Is somebody listening? `dead`: a socket is there, and nobody. */
export async function probe(path: string): Promise<"alive" | "dead" | "absent"> {
  return new Promise((resolve, reject) => {
    const socket = createConnection(path);
    socket.once("connect", () => {
      socket.destroy();
      resolve("alive");
    });
    socket.once("error", (error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT") resolve("absent");
      else if (error.code === "ECONNREFUSED") resolve("dead");
      else reject(fromSystemError(error, `connecting to ${path}`));
    });
  });
}

/**
 * Removes a dead machine's socket. Two may do this at once, and a new machine may take the name meanwhile: so it is
 * moved out of the way first, which only one of them can, and looked at again.
 *
 * @returns false if a machine had taken the name by then; its socket is back
 */
export async function removeDead(path: string): Promise<boolean> {
  const aside = join(runtimeDirectory(), `.d${process.pid}-${Date.now().toString(36)}`);
  try {
    await rename(path, aside);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return true;
    throw fromSystemError(error, `removing ${path}`);
  }
  if ((await probe(aside)) === "alive") {
    await rename(aside, path);
    return false;
  }
  await rm(aside, { force: true });
  return true;
}
