/** What a system call gave, for people. */
import * as errno from "../../../memory/errno.js";

/** The name of the error, or the number. */
export function describeResult(result: number): string {
  const [name] = Object.entries(errno).find(([, number]) => number === -result) ?? [];
  return name ?? String(result);
}
