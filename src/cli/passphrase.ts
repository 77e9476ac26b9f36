/** Asks for a passphrase on the terminal, and shows nothing of it. */
import { openSync } from "node:fs";
import process from "node:process";
import { ReadStream } from "node:tty";
import { HibernaculumError } from "../base/errors.js";

const INTERRUPT = "\u0003";
const END = "\u0004";
const CLEAR = "\u0015";
const ERASE = ["\u007f", "\b"];

/**
 * What somebody types, a line for each prompt; undefined if nobody can: there is no terminal.
 *
 * @throws HIB_CANCELLED for Ctrl-C, which interrupts the process as well
 */
export async function askHidden(prompts: readonly string[]): Promise<string[] | undefined> {
  const terminal = openTerminal();
  if (terminal === undefined) return undefined;
  terminal.setRawMode(true).setEncoding("utf8");
  const lines: string[] = [];
  try {
    for (const prompt of prompts) {
      process.stderr.write(prompt);
      lines.push(await readLine(terminal));
      process.stderr.write("\n");
    }
    return lines;
  } finally {
    terminal.setRawMode(false).destroy();
  }
}

/** The process's own, whatever its standard input is; none if nobody would see the prompt. */
function openTerminal(): ReadStream | undefined {
  if (!process.stderr.isTTY) return undefined;
  try {
    return new ReadStream(openSync("/dev/tty", "r"));
  } catch {
    return undefined;
  }
}

function readLine(terminal: ReadStream): Promise<string> {
  return new Promise((resolve, reject) => {
    let line: string[] = [];
    const settle = (finish: () => void, rest: string): void => {
      for (const [event, listener] of listeners) terminal.off(event, listener);
      terminal.pause();
      if (rest !== "") terminal.unshift(rest); // what was pasted goes on in the next line
      finish();
    };
    const cancel = (): void => {
      process.stderr.write("\n");
      settle(() => reject(new HibernaculumError("HIB_CANCELLED", "no passphrase was typed; nothing was changed")), "");
    };
    const onData = (text: string): void => {
      const keys = [...text];
      for (const [i, key] of keys.entries()) {
        if (key === "\r" || key === "\n") return settle(() => resolve(line.join("")), keys.slice(i + 1).join(""));
        if (key === INTERRUPT) {
          process.kill(process.pid, "SIGINT");
          return cancel();
        }
        if (key === END && line.length === 0) return cancel();
        if (key === CLEAR) line = [];
        else if (ERASE.includes(key)) line.pop();
        else if (key >= " ") line.push(key);
      }
    };
    const listeners = [
      ["data", onData],
      ["end", cancel],
      ["error", cancel],
    ] as const;
    for (const [event, listener] of listeners) terminal.on(event, listener);
    terminal.resume();
  });
}
