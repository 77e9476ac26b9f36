/**
 * What has become of an image: small files beside its blob, each made once and never changed.
 *
 *     used               it was resumed                                                      S2.9
 *     attempt-N          the N-th resume of it was begun, and by which process               S2.5
 *     outcome-N          how that ended, if its process lived to tell and it was not `used`
 *     set-aside          why a boot renamed it, and what it was called
 *
 * What must hold: a marker is there with all that it says, and is on the disk, before the call that makes it returns; of
 * all who make the same one at once, one does. So an attempt without an outcome is under way if its process lives, and
 * else is a death.
 */
import { randomBytes } from "node:crypto";
import { link, open, readdir, rm } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import process from "node:process";
import { attemptTo, HibernaculumError, naming } from "../base/errors.js";
import { type HostProcess, isAlive, thisProcess } from "../base/host-process.js";
import { checkArguments, path as pathRule, text } from "../base/options.js";
import { isEncrypted } from "./encryption-header.js";
import { readSmall, renameToFree, statIfThere, syncDirectory } from "./files.js";

const MARKER_BYTES_MAX = 65_536;

/** A marker as it is stored: who made it, and when (ISO 8601). */
export interface Marker extends HostProcess {
  time: string;
}

export interface Use extends Marker {
  who: string;
  /** Number of the attempt that succeeded, if there was one. */
  attempt?: number;
}

export interface Outcome {
  time: string;
  /** An error's code, or "resumed" (once more, of an image that was used before). */
  code: string;
  message: string;
}

export interface SetAside extends Marker {
  /** Name that the image had. */
  from: string;
  code: string;
  message: string;
  /** Attempts that there were by then: they have had their consequence. */
  attempts: number;
}

export interface Attempt extends Marker {
  number: number;
  /** `died`: its process is gone and has left no word. */
  state: "under way" | "over" | "died";
  outcome: Outcome | null;
}

/** All that the markers of an image say. */
export interface History {
  used: Use | null;
  attempts: Attempt[];
  setAside: SetAside | null;
}

/** True if the image was resumed before. */
export async function isUsed(path: string): Promise<boolean> {
  checkArguments("isUsed", { "the path of the image": [path, pathRule] });
  return (await statIfThere(join(resolve(path), "used"))) !== undefined;
}

/**
 * Claims an image for the one use that it is good for.
 *
 * @param who is named to those who come later
 * @param attempt its number, if one was recorded
 * @throws HIB_IMAGE_USED if it was claimed before, HIB_IO, HIB_NO_SPACE
 */
export async function claimUse(path: string, who: string, attempt?: number): Promise<void> {
  if (await createMarker(path, "used", { who, ...(attempt === undefined ? {} : { attempt }) })) return;
  throw usedBefore(path, await readMarker<Use>(path, "used"));
}

/** Gives a claim back: nothing of the machine has run. Never throws; what stays claimed is safe, and can be asked for again. */
export async function releaseUse(path: string): Promise<void> {
  await rm(join(resolve(path), "used"), { force: true })
    .then(() => syncDirectory(resolve(path)))
    .catch(() => undefined);
}

/** The error for an image that was used. */
export function usedBefore(path: string, { time, who, pid, host }: Partial<Use> = {}): HibernaculumError {
  const by = time === undefined ? "" : ` (${time} by ${who}, process ${pid} on ${host})`; // perhaps not written to its end
  return new HibernaculumError(
    "HIB_IMAGE_USED",
    `${path} was resumed before${by}: a second machine with the same history can damage files that both use; --again resumes it anyway`,
  );
}

/**
 * Notes that a resume begins, so that one that dies is not tried again and again.
 *
 * @returns its number: how many there were, with this one
 * @throws HIB_IO, HIB_NO_SPACE
 */
export async function recordAttempt(path: string): Promise<number> {
  for (let n = 1; ; n++) if (await createMarker(path, `attempt-${n}`, {})) return n;
}

/** Whether an image lies where nothing can be noted: a read-only file system, or a directory of somebody else's. */
export function cannotBeMarked(error: unknown): boolean {
  const { code, cause } = error as { code?: string; cause?: unknown };
  return ["EROFS", "EACCES", "EPERM"].includes(code ?? "") || (cause !== undefined && cannotBeMarked(cause));
}

/** Notes how an attempt ended. Never throws: what cannot be noted counts as a death once this process is gone. */
export async function recordOutcome(path: string, attempt: number, code: string, message: string): Promise<void> {
  await createMarker(path, `outcome-${attempt}`, { code, message: await fitting(path, message) }).catch(() => undefined);
}

/** @throws HIB_IO */
export async function readHistory(path: string): Promise<History> {
  checkArguments("readHistory", { "the path of the image": [path, pathRule] });
  const names = await attemptTo(`looking at ${path}`, () => readdir(resolve(path)));
  const used = names.includes("used") ? ((await readMarker<Use>(path, "used")) as Use) : null;
  const setAside = names.includes("set-aside") ? ((await readMarker<SetAside>(path, "set-aside")) as SetAside) : null;
  const attempts: Attempt[] = [];
  for (const name of names) {
    const number = Number(/^attempt-(\d+)$/.exec(name)?.[1]);
    if (!(number >= 1)) continue;
    const { time = "", pid = 0, host = "", started = null } = await readMarker<Marker>(path, name);
    const told = names.includes(`outcome-${number}`);
    const outcome = told ? ((await readMarker<Outcome>(path, `outcome-${number}`)) as Outcome) : null;
    const over = told || used?.attempt === number;
    const state = over ? "over" : pid > 0 && isAlive({ pid, host, started }) ? "under way" : "died";
    attempts.push({ number, time, pid, host, started, state, outcome });
  }
  attempts.sort((a, b) => a.number - b.number);
  return { used, attempts, setAside };
}

/**
 * Refuses an image that another resume is at: of two at once, the first goes on.
 *
 * @param attempt number of the caller's own
 * @throws HIB_BUSY, HIB_IO
 */
export async function refuseHeld(path: string, attempt: number): Promise<void> {
  const holder = holderOf(await readHistory(path), attempt);
  if (holder === undefined) return;
  throw new HibernaculumError(
    "HIB_BUSY",
    `${path} is being resumed by process ${holder.pid} since ${holder.time}; let it finish, or end that process and try again`,
  );
}

/** The first attempt that is under way, of those before a number. */
export function holderOf({ attempts, used }: History, before: number = Infinity): Attempt | undefined {
  return used === null ? attempts.find(({ number, state }) => state === "under way" && number < before) : undefined;
}

/** Attempts of an image that ended with their process and that no setting aside has answered yet. */
export function deaths({ attempts, setAside }: History): number {
  return attempts.filter(({ number, state }) => state === "died" && number > (setAside?.attempts ?? 0)).length;
}

/**
 * Renames an image so that no boot finds it again, and notes why. It is held meanwhile, as by an attempt to resume it: of two at once,
 * the first goes on.
 *
 * @param reason becomes part of the name: an error's code, or one or two words
 * @param message what happened, one line
 * @returns its new path
 * @throws HIB_BUSY if a resume is at it, HIB_IMAGE_USED, HIB_IO
 */
export async function setAside(path: string, reason: string, message = ""): Promise<string> {
  checkArguments("setAside", {
    "the path of the image": [path, pathRule],
    "the reason": [reason, text],
    "the message": [message, text],
  });
  const from = resolve(path);
  const why = await fitting(path, message);
  const attempt = await recordAttempt(path).catch(() => undefined); // where nothing can be noted, nobody else can
  return attemptTo(`setting aside ${path}`, async () => {
    let to = from;
    try {
      if (attempt !== undefined) await refuseOthers(path, attempt);
      to = await renameAside(from, reason);
      // Out of the way comes first; the note is for people, and an earlier one is of another time.
      await rm(join(to, "set-aside"), { force: true })
        .then(() => readHistory(to))
        .then(({ attempts }) =>
          createMarker(to, "set-aside", {
            from: basename(from),
            code: reason,
            message: why,
            attempts: attempts.at(-1)?.number ?? 0,
          }),
        )
        .catch(() => undefined);
      return to;
    } finally {
      // It was none: nothing was resumed.
      if (attempt !== undefined) await rm(join(to, `attempt-${attempt}`), { force: true }).catch(() => undefined);
    }
  });
}

/** What an error says may be noted beside an image: it may name paths, which are encrypted in one that is. */
async function fitting(path: string, message: string): Promise<string> {
  return (await isEncrypted(resolve(path))) ? "not noted beside an encrypted image, since it may name paths" : message;
}

async function refuseOthers(path: string, attempt: number): Promise<void> {
  const { used } = await readHistory(path);
  if (used !== null) throw usedBefore(path, used);
  await refuseHeld(path, attempt);
}

async function renameAside(from: string, reason: string): Promise<string> {
  const slug = reason
    .replace(/^HIB_/, "")
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, "-");
  for (let n = 1; ; n++) {
    const to = `${from}.set-aside-${slug}${n === 1 ? "" : `-${n}`}`;
    try {
      await renameToFree(from, to);
    } catch (error) {
      if (error instanceof HibernaculumError && error.code === "HIB_IMAGE_EXISTS") continue;
      throw error;
    }
    await syncDirectory(dirname(from));
    return to;
  }
}

/** A marker's contents; nothing of one that is not there or not readable. */
async function readMarker<T extends object>(path: string, name: string): Promise<Partial<T>> {
  try {
    const value: unknown = JSON.parse(await readSmall(join(resolve(path), name), MARKER_BYTES_MAX));
    return typeof value === "object" && value !== null ? (value as Partial<T>) : {};
  } catch {
    return {};
  }
}

/** A marker that only one of all can create, whole. False if it is there. */
async function createMarker(path: string, name: string, what: object): Promise<boolean> {
  const marker = join(resolve(path), name);
  const draft = join(resolve(path), `.marker-${process.pid}-${randomBytes(4).toString("hex")}`);
  const note = `${JSON.stringify({ time: new Date().toISOString(), ...thisProcess(), ...what })}\n`;
  return attemptTo(`marking ${marker}`, async () => {
    if ((await statIfThere(marker)) !== undefined) return false;
    try {
      await writeSynced(draft, note);
      try {
        await link(draft, marker);
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        if (code === "EEXIST") return false;
        if (!["EPERM", "ENOSYS", "ENOTSUP", "EOPNOTSUPP"].includes(code ?? "")) throw error;
        // A file system without links: here a marker is made first and filled then.
        if (!(await writeSynced(marker, note).then(() => true, isTaken))) return false;
      }
      try {
        await syncDirectory(dirname(marker));
      } catch (error) {
        await rm(marker, { force: true }).catch(() => undefined); // what it says does not come to pass
        throw error;
      }
      return true;
    } finally {
      await rm(draft, { force: true }).catch(() => undefined);
    }
  }).catch((error: unknown) => {
    throw naming(error, path);
  });
}

async function writeSynced(path: string, text: string): Promise<void> {
  const file = await open(path, "wx");
  try {
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
}

function isTaken(error: NodeJS.ErrnoException): false {
  if (error.code !== "EEXIST") throw error;
  return false;
}
