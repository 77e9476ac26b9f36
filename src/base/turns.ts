/** Long work in one thread: others have their turn in the midst of it, and whoever cancels it is heard. */
import { setImmediate } from "node:timers/promises";
import { HibernaculumError } from "./errors.js";

/** Steps between two turns of others: a few milliseconds of what is done here. */
export const STEPS_A_TURN = 8192;

/**
 * Lets a signal of the host, a timer or a client in.
 *
 * @throws HIB_CANCELLED
 */
export async function giveTurn(signal: AbortSignal | undefined, doing: string): Promise<void> {
  await setImmediate();
  if (signal?.aborted === true) throw new HibernaculumError("HIB_CANCELLED", `cancelled while ${doing}`);
}
