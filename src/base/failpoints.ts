/**
 * Named failure points, for tests: `HIB_FAILPOINTS="save.write=ENOSPC@3,save.published=kill"` makes the third pass of
 * `save.write` fail with ENOSPC and the first of `save.published` kill the host process with SIGKILL. In worker
 * threads the count is the thread's own. Without the variable a point costs one comparison.
 *
 * Actions: an errno name (ENOSPC, EIO, ...) throws it; `short` makes a write come out short; `kill` is kill -9 of the
 * host; `stop` stops it until it is sent SIGCONT; `exit` ends the thread.
 */
import process from "node:process";
import { isMainThread } from "node:worker_threads";
import { HibernaculumError } from "./errors.js";

/** Every point there is; a name that is not here is refused, so that a test cannot pass by a typo. */
export const FAILPOINTS = [
  "save.prepare",
  "save.armed",
  "save.stream",
  "save.write",
  "save.stopped",
  "save.copied",
  "save.residual",
  "save.catalogue",
  "save.sync",
  "save.seal",
  "save.before-rename",
  "save.after-rename",
  "save.published",
  "resume.attempt",
  "resume.verify",
  "resume.allocate",
  "resume.load",
  "resume.stopped",
  "resume.consume",
  "resume.patched",
  "resume.running",
  "lazy.fill",
  "boot.set-aside",
  "vcpu.locked",
] as const;
export type Failpoint = (typeof FAILPOINTS)[number];

interface Trap {
  action: string;
  at: number;
  passes: number;
}

let traps: Map<string, Trap> | undefined;
/** What is wrong with the variable: every point throws it. */
let refusal: HibernaculumError | undefined;
try {
  traps = parse(process.env["HIB_FAILPOINTS"]);
} catch (error) {
  traps = new Map();
  refusal = error as HibernaculumError;
}

function parse(text: string | undefined): Map<string, Trap> | undefined {
  if (!text) return undefined;
  const found = new Map<string, Trap>();
  for (const item of text.split(",")) {
    const match = /^([a-z.-]+)=([A-Za-z]+)(?:@(\d+))?$/.exec(item.trim());
    if (!match || !(FAILPOINTS as readonly string[]).includes(match[1]!)) {
      throw new HibernaculumError(
        "HIB_USAGE",
        `HIB_FAILPOINTS: there is no "${item}"; give POINT=ACTION[@PASS], POINT being one of ${FAILPOINTS.join(", ")}`,
      );
    }
    found.set(match[1]!, { action: match[2]!, at: Number(match[3] ?? 1), passes: 0 });
  }
  return found;
}

/** Replaces the traps of this thread (tests only). */
export function setFailpoints(text: string | undefined): void {
  traps = parse(text);
  refusal = undefined;
}

/** @throws HIB_USAGE if the variable is none, which every point would throw: in a thread, of which nobody would read it */
export function checkFailpoints(): void {
  if (refusal !== undefined) throw refusal;
}

/** Passes a failure point. Returns true if the caller is to write short; throws, kills or exits as told. */
export function failpoint(name: Failpoint): boolean {
  if (traps === undefined) return false;
  if (refusal !== undefined) throw refusal;
  const trap = traps.get(name);
  if (trap === undefined || ++trap.passes !== trap.at) return false;
  if (trap.action === "short") return true;
  if (trap.action === "kill") process.kill(process.pid, "SIGKILL");
  if (trap.action === "stop") {
    process.kill(process.pid, "SIGSTOP");
    return false;
  }
  if (trap.action === "exit" && !isMainThread) process.exit(1);
  const error: NodeJS.ErrnoException = new Error(`${trap.action} (injected at ${name})`);
  error.code = trap.action;
  throw error;
}
