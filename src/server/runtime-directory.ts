/**
 * Where the control sockets are: one directory a user, one socket a machine.
 *
 *     $HIB_RUNTIME_DIR, else $XDG_RUNTIME_DIR/hibernaculum, else /tmp/hibernaculum-UID
 *         NAME.sock            a machine, or one that died and left this behind
 *         .XXXXXXXX            a socket on its way: about to be there, or to be removed
 *
 * What must hold: nobody but the user can look or write here, since opening a socket is having the machine. And a name
 * appears only when somebody listens on it, so a socket that refuses a connection is always a dead machine's.
 *
 * Files here can be cleaned away under a machine that lives. So a machine's name is also a lock that is no file and ends with
 * its holder: a socket in the kernel's abstract namespace, which Linux has. Elsewhere only the file tells.
 */
import { createHash, randomBytes } from "node:crypto";
import { constants } from "node:fs";
import { lstat, mkdir, readdir, realpath, rename, rm } from "node:fs/promises";
import { createConnection, createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import process from "node:process";
import { fromSystemError, HibernaculumError } from "../base/errors.js";

/** What the kernel has room for in a socket's address, less the zero at its end. */
const SOCKET_PATH_BYTES_MAX = 107;
const SUFFIX = ".sock";
/** A hidden name that is older is nobody's any more, if nobody listens. */
const HIDDEN_MS = 60_000;

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
  await checkParents(directory);
  try {
    await mkdir(directory, { mode: 0o700 });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST")
      throw fromSystemError(error, `making ${directory} for the control sockets`);
  }
  await checkPrivate(directory);
  return directory;
}

/**
 * Refuses a directory whose place is another's: whoever can rename a parent can put another in its place. Whoever owns the root
 * can do so anyway.
 */
async function checkParents(directory: string): Promise<void> {
  const parent = dirname(resolve(directory));
  const real = await realpath(parent).catch((error: unknown) => {
    throw fromSystemError(error, `looking at ${parent}`);
  });
  const trusted = new Set([0, process.getuid?.() ?? 0, (await lstat("/")).uid]);
  for (const path of new Set([...ancestors(parent), ...ancestors(real)])) {
    const { mode, uid } = await lstat(path).catch((error: unknown) => {
      throw fromSystemError(error, `looking at ${path}`);
    });
    const open = (mode & S_IFMT) === S_IFDIR && (mode & 0o002) !== 0 && (mode & S_ISVTX) === 0;
    if (trusted.has(uid) && !open) continue;
    const why = open ? "anybody may write to" : `belongs to user ${uid}`;
    throw new HibernaculumError(
      "HIB_IO",
      `${directory} is inside ${path}, which ${why}: control sockets need a place of your own; set HIB_RUNTIME_DIR to one`,
    );
  }
}

const { S_IFDIR, S_IFMT } = constants;
/** Only the owner of a file may remove it. */
const S_ISVTX = 0o1000;

function ancestors(path: string): string[] {
  return path === dirname(path) ? [path] : [path, ...ancestors(dirname(path))];
}

/** @throws HIB_IO if the directory is not the user's alone, or not in a place of theirs. Absent is fine. */
export async function checkPrivate(directory: string): Promise<void> {
  const found = await lstat(directory).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return undefined;
    throw fromSystemError(error, `looking at ${directory}`);
  });
  if (found === undefined) return;
  await checkParents(directory);
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
      `${JSON.stringify(name)} is not a name for a machine: use 1 to 64 letters, digits, dots, dashes and underscores`,
    );
  }
}

/** @throws HIB_USAGE */
export function socketPath(name: string): string {
  checkName(name);
  const path = join(runtimeDirectory(), name + SUFFIX);
  // It is bound to a hidden name first, which may be the longer one.
  if (Math.max(Buffer.byteLength(path), Buffer.byteLength(hiddenPath(runtimeDirectory()))) > SOCKET_PATH_BYTES_MAX) {
    throw new HibernaculumError("HIB_USAGE", `${path} is too long for a socket; use a shorter name or another HIB_RUNTIME_DIR`);
  }
  return path;
}

/** A name in the runtime directory that nobody else has. */
export function hiddenPath(directory: string): string {
  return join(directory, `.${randomBytes(4).toString("hex")}`);
}

/** Removes what processes left that ended while a socket was on its way. Never throws. */
export async function sweepHidden(directory: string, now: number = Date.now()): Promise<void> {
  for (const name of await readdir(directory).catch(() => [])) {
    if (!/^\.[0-9a-f]{8}$/.test(name)) continue;
    const path = join(directory, name);
    const found = await lstat(path).catch(() => undefined);
    if (found === undefined || !found.isSocket() || now - found.ctimeMs < HIDDEN_MS) continue;
    if ((await probe(path).catch(() => "alive")) === "dead") await rm(path, { force: true }).catch(() => undefined);
  }
}

/** Where a machine holds its name besides its file; undefined where there is no such thing. */
export function nameLock(name: string): string | undefined {
  if (process.platform !== "linux") return undefined;
  const of = `${process.getuid?.() ?? 0}:${resolve(runtimeDirectory())}:${name}`;
  return `\0hibernaculum-${createHash("sha256").update(of).digest("hex").slice(0, 32)}`;
}

/**
 * Takes a machine's name until `close`, or the end of this process.
 *
 * @returns undefined where the file must do
 * @throws HIB_NAME_TAKEN, HIB_IO
 */
export async function lockName(name: string): Promise<Server | undefined> {
  const path = nameLock(name);
  if (path === undefined) return undefined;
  const server = createServer((socket) => socket.destroy());
  await new Promise<void>((done, reject) => {
    server.once("error", (error: NodeJS.ErrnoException) =>
      reject(error.code === "EADDRINUSE" ? nameTaken(name) : fromSystemError(error, `taking the name ${name}`)),
    );
    server.listen(path, done);
  });
  return server.unref();
}

export function nameTaken(name: string): HibernaculumError {
  return new HibernaculumError("HIB_NAME_TAKEN", `a machine named ${name} runs already: give this one another --name`);
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
  const aside = hiddenPath(runtimeDirectory());
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
