/** What a machine shows while it runs: its console, line by line, and on a terminal a status line below it. */
import process from "node:process";
import { clearLine, cursorTo } from "node:readline";
import { printable, printableLines } from "../stats/printable.js";

export class Terminal {
  readonly #prefix: string;
  readonly #out: NodeJS.WriteStream;
  #partial = "";
  #status = "";

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

  /** Replaces the status line; does nothing off a terminal. */
  status(text: string): void {
    if (!process.stderr.isTTY) return;
    this.#clear();
    this.#status = printable(text);
    this.#draw();
  }

  /** Takes the status line away. */
  end(): void {
    if (this.#partial !== "") this.console("\n");
    this.#clear();
    this.#status = "";
  }

  #draw(): void {
    // One that wraps could not be cleared.
    if (this.#status !== "") process.stderr.write(this.#status.slice(0, (process.stderr.columns ?? 80) - 1));
  }

  #clear(): void {
    if (this.#status === "") return;
    cursorTo(process.stderr, 0);
    clearLine(process.stderr, 0);
  }
}
