/**
 * Garbage of this thread, collected when nobody waits for it rather than when the runtime finds it is time: a scavenge takes a
 * millisecond or two, some ten times a second in a thread that allocates.
 */
import { runInNewContext } from "node:vm";

type Collect = (options: { type: "minor" }) => void;

let collect: Collect | undefined;

/** Collects what was allocated lately. Does nothing where the runtime does not offer it: the machine's page threads set the flag. */
export function collectGarbage(): void {
  collect ??= runInNewContext("typeof gc === 'function' ? gc : undefined") as Collect | undefined;
  collect?.({ type: "minor" });
}
