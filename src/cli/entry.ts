/**
 * Where a command begins: all else is loaded from here, so that even a host on which it cannot be loaded is told so in one
 * line. Imports nothing but what Node has already loaded.
 */
import process from "node:process";

/** Loads and runs a command. */
export async function enter(name: string, load: () => Promise<unknown>): Promise<void> {
  try {
    await load();
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code !== "EMFILE" && code !== "ENFILE") throw error;
    process.stderr.write(`${name}: HIB_IO: too few file descriptors to start; raise the limit, such as by ulimit -n 1024\n`);
    process.exit(1);
  }
}
