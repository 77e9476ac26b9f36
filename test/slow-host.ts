/**
 * A host that is slow to write: a disk's writes wait until the test lets them go. It takes the place of the host's calls before
 * the product takes hold of them, so it is to be imported before anything of the product.
 */
import fs from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { promisify } from "node:util";

/** What the host was asked for and has done, in order. */
export const hostCalls: ("write begun" | "written" | "synced")[] = [];
const waiting: (() => void)[] = [];
let holds = false;

/** From now on writes wait. */
export function holdWrites(): void {
  hostCalls.length = 0;
  holds = true;
}

/** Those that wait go on, and none waits any more. */
export function letWritesGo(): void {
  holds = false;
  for (const go of waiting.splice(0)) go();
}

export const waitingWrites = (): number => waiting.length;

const write = promisify(fs.write);
const fdatasync = promisify(fs.fdatasync);

Object.assign(fs.write, {
  [promisify.custom]: async (...args: Parameters<typeof write>) => {
    hostCalls.push("write begun");
    if (holds) await new Promise<void>((resolve) => waiting.push(resolve));
    const result = await write(...args);
    hostCalls.push("written");
    return result;
  },
});
Object.assign(fs.fdatasync, {
  [promisify.custom]: async (descriptor: number) => {
    await fdatasync(descriptor);
    hostCalls.push("synced");
  },
});
syncBuiltinESMExports();
