/**
 * Texts of others, as they may reach a terminal. What is in an image, a guest's names, paths and failures, and what a machine
 * answers may hold anything: sequences that clear the screen, set the title, or turn a line around.
 *
 * What must hold: whatever is printed went through here. A text is escaped before it is set; what is set is looked at once more
 * where it leaves, and there only this program's own colors are let through.
 */

/** Control characters (C0, DEL, C1), line separators, and what turns the direction of text around. */
const UNPRINTABLE = /[\p{Cc}\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/gu;
const COLOR = new RegExp(`(${String.fromCharCode(0x1b)}\\[\\d{1,2}m)`);

/** A text in one line, with what a terminal would act on written out: `\x1b[2J`. */
export function printable(text: string): string {
  return text.replace(UNPRINTABLE, (found) => {
    const code = found.charCodeAt(0);
    const digits = code.toString(16);
    return code < 0x100 ? `\\x${digits.padStart(2, "0")}` : `\\u${digits.padStart(4, "0")}`;
  });
}

/** Any JSON value with every text in it printable, names too. */
export function printableAll<T>(value: T): T {
  if (typeof value === "string") return printable(value) as T;
  if (Array.isArray(value)) return value.map(printableAll) as T;
  if (typeof value !== "object" || value === null || Object.getPrototypeOf(value) !== Object.prototype) return value;
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [printable(name), printableAll(item)])) as T;
}

/** What is about to be written: its lines and tabs stay, and its colors if there are to be any. */
export function printableLines(text: string, colors: "colors" | "no colors" = "no colors"): string {
  const escapeLines = (part: string): string =>
    part
      .split(/([\n\t])/)
      .map((piece, i) => (i % 2 === 1 ? piece : printable(piece)))
      .join("");
  if (colors === "no colors") return escapeLines(text);
  return text
    .split(COLOR)
    .map((part, i) => (i % 2 === 1 ? part : escapeLines(part)))
    .join("");
}

/** JSON that is no more than that: its own escapes leave C1 and directions out. */
export function printableJson(value: unknown, indent?: number): string {
  return JSON.stringify(value, undefined, indent).replace(UNPRINTABLE, (found) =>
    found === "\n" ? found : `\\u${found.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}
