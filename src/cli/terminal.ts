/** What a machine shows while it runs: its console, line by line, and on a terminal a status line below it. */
import process from "node:process";
import { clearLine, cursorTo } from "node:readline";
import { printable, printableLines } from "../stats/printable.js";

export class Terminal {
  readonly #prefix: string;
  readonly #out: NodeJS.WriteStream;
  #partial = "";
  #status: readonly string[] = [];

  /** @param out takes the console: stdout, or stderr if stdout is for something else */
  constructor(prefix: string, out: NodeJS.WriteStream) {
    this.#prefix = prefix;
    this.#out = out;
  }

  /** What the machine has printed; whole lines are shown, each after the prefix. */
  console(text: string): void {
    const lines = (this.#partial + text).split("\n");
    this.#partial = lines.pop()!;
    for (const line of lines) this.line(this.#prefix + line);
  }

  /** A line above the status line. */
  line(text: string, out: NodeJS.WriteStream = this.#out): void {
    this.#clear();
    out.write(`${printableLines(text)}\n`); // a guest does not get to control the terminal
    this.#draw();
  }

  /** Replaces the status line; does nothing off a terminal. On a narrow one the last parts are left out. */
  status(parts: readonly string[]): void {
    if (!process.stderr.isTTY) return;
    this.#clear();
    this.#status = parts.map(printable);
    this.#draw();
  }

  /** Takes the status line away. */
  end(): void {
    if (this.#partial !== "") this.console("\n");
    this.#clear();
    this.#status = [];
  }

  #draw(): void {
    if (this.#status.length === 0) return;
    const room = (process.stderr.columns ?? 80) - 1; // one that wraps could not be cleared
    process.stderr.write(fitting(this.#status, room));
  }

  #clear(): void {
    if (this.#status.length === 0) return;
    cursorTo(process.stderr, 0);
    clearLine(process.stderr, 0);
  }
}

/** As many parts as there is room for; of the first, as much of it. */
export function fitting(parts: readonly string[], room: number): string {
  for (let count = parts.length; count > 0; count--) {
    const text = parts.slice(0, count).join(", ");
    if (text.length <= room || count === 1) return text.slice(0, room);
  }
  return "";
}
