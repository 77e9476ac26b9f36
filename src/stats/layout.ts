/** How reports are set: titled sections of labelled lines, and tables. Knows nothing of what is in them. */
import Table from "cli-table3";
import pc from "picocolors";

export type Colors = ReturnType<typeof pc.createColors>;

export interface View {
  /** Columns to fit. */
  columns: number;
  colors: Colors;
}

/** Widest text that is made, whatever the terminal has. */
export const COLUMNS_MAX = 80;
/** Below this, lines are left to the terminal to wrap. */
const COLUMNS_MIN = 40;
const LABEL = 18;

/** No escape codes, 80 columns. */
export const plainView: View = { columns: COLUMNS_MAX, colors: pc.createColors(false) };

/** What fits a stream. */
export function viewOf(stream: { isTTY?: boolean; columns?: number; hasColors?: () => boolean }): View {
  const columns = stream.isTTY === true ? (stream.columns ?? COLUMNS_MAX) : COLUMNS_MAX;
  return {
    columns: Math.min(COLUMNS_MAX, Math.max(COLUMNS_MIN, columns)),
    // Node looks at NO_COLOR, FORCE_COLOR and TERM.
    colors: pc.createColors(stream.isTTY === true && stream.hasColors?.() === true),
  };
}

/** Columns that are left for a chart beside a label. */
export function chartColumns(view: View): number {
  return view.columns - LABEL - 2;
}

/** A titled block of lines. */
export function section(view: View, title: string, lines: readonly string[]): string {
  return [view.colors.bold(title), ...lines, ""].join("\n");
}

/** "  label             value", the value wrapped under itself. */
export function field(view: View, label: string, value: string): string {
  return wrap(value, view.columns - LABEL - 2)
    .map((line, i) => `  ${view.colors.dim((i === 0 ? label : "").padEnd(LABEL))}${line}`)
    .join("\n");
}

/** Text in lines of at most so many columns; a word that is longer has a line of its own. */
export function wrap(text: string, columns: number): string[] {
  const lines = [""];
  for (const word of text.split(" ")) {
    const last = lines.at(-1)!;
    if (last !== "" && last.length + 1 + word.length > columns) lines.push(word);
    else lines[lines.length - 1] = last === "" ? word : `${last} ${word}`;
  }
  return lines;
}

/** A table without a frame. Numbers go to the right. */
export function table(view: View, head: readonly string[], rows: readonly (readonly (string | number)[])[]): string {
  const none = {
    top: "",
    "top-mid": "",
    "top-left": "",
    "top-right": "",
    bottom: "",
    "bottom-mid": "",
    "bottom-left": "",
    "bottom-right": "",
  };
  const made = new Table({
    chars: { ...none, left: "", "left-mid": "", mid: "", "mid-mid": "", right: "", "right-mid": "", middle: "  " },
    style: { head: [], border: [], "padding-left": 0, "padding-right": 0 },
    colAligns: head.map((_, column) => (rows.some((row) => isNumber(row[column])) ? "right" : "left")),
  });
  made.push(
    head.map((text) => view.colors.dim(text)),
    ...rows.map((row) => row.map(String)),
  );
  return made
    .toString()
    .split("\n")
    .map((line) => `  ${line}`.trimEnd())
    .join("\n");
}

function isNumber(cell: string | number | undefined): boolean {
  return typeof cell === "number" || /^[\d,.]+( [kMGT]?(i?B|B\/s)?)?%?$/.test(cell ?? "");
}
