/** What wait tells of a child, and what it may be asked for: the numbers are POSIX's (sys/wait.h), as Linux has them. */

/** Do not wait: 0 if there is nothing to tell yet. */
export const WNOHANG = 1;
/** Tell also that a child has stopped, once for each stop. */
export const WUNTRACED = 2;
/** Tell also that a child that had stopped goes on, once. */
export const WCONTINUED = 8;

const STOPPED = 0x7f;
/** The status of a child that goes on. */
export const STATUS_CONTINUED = 0xffff;

export function exitStatus(code: number): number {
  return code << 8;
}

/** The code that a process exited with; undefined if the status says something else. */
export function exitCode(status: number): number | undefined {
  return (status & ~0xff00) === 0 ? status >>> 8 : undefined;
}

export function stopStatus(signal: number): number {
  return (signal << 8) | STOPPED;
}

/** The signal that a child was stopped by; undefined if the status says something else. */
export function stopSignal(status: number): number | undefined {
  return (status & 0xff) === STOPPED ? status >>> 8 : undefined;
}
