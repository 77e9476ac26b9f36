/**
 * Processes of the host, told apart also after their number was given to another. A note on the disk says which process
 * wrote it, and a later reader, perhaps after a reboot, must not take another process for the writer.
 */
import { createHash } from "node:crypto";
import { existsSync, readFileSync, readlinkSync } from "node:fs";
import { hostname } from "node:os";
import process from "node:process";

export interface HostProcess {
  pid: number;
  host: string;
  /** This start of the host and when in it the process began; null where the host does not tell. */
  started: string | null;
}

export function thisProcess(): HostProcess {
  return { pid: process.pid, host: hostname(), started: startOf(process.pid) };
}

/**
 * Whether a process lives. One of another host or container cannot be seen from here and counts as gone; of one whose
 * beginning was not noted the number must do.
 */
export function isAlive({ pid, host = hostname(), started = null }: Pick<HostProcess, "pid"> & Partial<HostProcess>): boolean {
  if (host !== hostname()) return false;
  try {
    process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== "ESRCH"; // EPERM: it is there, and another user's
  }
  const found = startOf(pid);
  if (found === ENDED) return false;
  return started === null || found === null || started === found;
}

/**
 * A process in so few characters that a file's name has room: PID-HOST-START, its number, and digests of its host and of when it
 * began.
 */
export function processTag({ pid, host, started }: HostProcess = thisProcess()): string {
  return `${pid}-${digest(`${host} ${machineId()}`)}-${started === null ? NOT_KNOWN : digest(started)}`;
}

/** What has become of the process of a tag. One of another host or container cannot be seen from here. */
export function fateOf(tag: string): "alive" | "gone" | "of another host" {
  const pid = Number.parseInt(tag, 10);
  const [, host, began] = tag.split("-");
  const [, here] = processTag().split("-");
  if (host !== here) return "of another host";
  if (!isAlive({ pid })) return "gone";
  // In a container every life may have the same number, so that alone says nothing.
  const started = startOf(pid);
  return started === null || began === NOT_KNOWN || digest(started) === began ? "alive" : "gone";
}

function digest(text: string): string {
  return createHash("sha256").update(text).digest("hex").slice(0, TAG_DIGITS);
}

/** Tells hosts of one name apart, where the host has such a number; it stays the same over a reboot. */
function machineId(): string {
  try {
    return readFileSync("/etc/machine-id", "utf8").trim();
  } catch {
    return "";
  }
}

/** The host's number of the thread that calls; 0 where the host does not tell. */
export function thisThread(): number {
  try {
    return Number(readlinkSync("/proc/thread-self").split("/").at(-1));
  } catch {
    return 0;
  }
}

/** Whether a thread of this process lives. One whose number is not known counts as alive. */
export function isThreadAlive(thread: number): boolean {
  return thread === 0 || existsSync(`/proc/self/task/${thread}`);
}

const TAG_DIGITS = 8;
const NOT_KNOWN: string = "0".repeat(TAG_DIGITS);

/** Of a process that has ended and whose parent has not asked yet. */
const ENDED = "ended";

function startOf(pid: number): string | null {
  try {
    const boot = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
    // After the name, which may hold anything, in parentheses: the state is field 3, the start field 22.
    const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(")").at(-1)!.trim().split(" ");
    return fields[0] === "Z" || fields[0] === "X" ? ENDED : `${boot} ${fields[19]}`;
  } catch {
    return null; // no /proc here
  }
}
