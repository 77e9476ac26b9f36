/**
 * Functions of the embedder that the library calls.
 *
 * What must hold: one that throws, or gives a promise that rejects, ends neither the embedder's process nor the machine. What it threw
 * cancels the operation that called it (Cancellation.guard). Where there is nothing to cancel, or no longer, it becomes a warning of
 * the process: Node prints it, and `process.on("warning")` has it.
 */
import process from "node:process";

/** A function that calls another and never throws. `onThrow` is told what that one threw. */
export function guarded<Args extends unknown[]>(
  callback: ((...args: Args) => unknown) | undefined,
  onThrow: (thrown: unknown) => void,
): (...args: Args) => void {
  return (...args) => {
    try {
      const result = callback?.(...args);
      if (result instanceof Promise) result.catch(onThrow);
    } catch (thrown) {
      onThrow(thrown);
    }
  };
}

/** What a callback threw, where it changes nothing any more. */
export function warnOf(name: string, thrown: unknown): void {
  process.emitWarning(`${name} ${describeThrown(thrown)}; the machine is not affected`, {
    type: "HibernaculumWarning",
    ...(thrown instanceof Error && thrown.stack !== undefined ? { detail: thrown.stack } : {}),
  });
}

/** One line. */
export function describeThrown(thrown: unknown): string {
  return `threw ${String(thrown).split("\n", 1)[0]!.slice(0, 200)}`;
}
