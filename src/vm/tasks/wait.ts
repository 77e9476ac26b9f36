/**
 * The one path of a wait, from the object that is waited for to the vCPU that runs another process meanwhile:
 *
 *     a call finds that it cannot be done now  ->  Wait(channel)     pipes, children
 *     Turns.attempt notes the channel, under the same hold of the kernel lock
 *     the step ends undone; the vCPU puts the process back: Leave "wait"
 *     the object changes: Scheduler.wake(channel), and the step is taken again
 *
 * What must hold: an object is changed under the lock. So a change finds the channel noted, or came before the wait.
 */
import type { PhysicalAddress } from "../../base/memory.js";

/** The result of a call that cannot be done now, and has changed nothing: the process waits for the object at `channel`. */
export class Wait {
  readonly channel: PhysicalAddress;

  constructor(channel: PhysicalAddress) {
    this.channel = channel;
  }
}

/** For nothing that comes: the step is taken again as soon as it is the process's turn. A call that would take too long in one piece. */
export const AGAIN: Wait = new Wait(0);

/** How a process leaves its vCPU. */
export type Leave =
  | { do: "ready" }
  /** Until this time of the guest clock, ms; Infinity: until a handler has run. */
  | { do: "sleep"; until: number }
  /** For what was noted (Turns.attempt). */
  | { do: "wait" }
  /** Stops, if its stop signal still stands. */
  | { do: "stop" }
  /** Has failed; what its parent is told. */
  | { do: "fail"; reason: string; status: number }
  | { do: "exit"; status: number };
