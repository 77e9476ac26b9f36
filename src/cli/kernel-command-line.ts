/** The kernel command line: words, of which the kernel knows `hibernate=PATH` and `noresume` (S2.1). */
export interface KernelCommandLine {
  /** As it was given, with one space between words. */
  text: string;
  /** Image to look for at boot. */
  hibernate: string | undefined;
  noresume: boolean;
  /** Words that are not known: a kernel goes on without them. */
  unknown: string[];
  /** What is wrong with a word that is known, a line each: a kernel says so, and goes on. */
  malformed: string[];
}

/** Of a word that is given more than once the last counts. A value with spaces is put in double quotes. */
export function parseKernelCommandLine(text: string): KernelCommandLine {
  const words = text.match(/(?:[^\s"]|"[^"]*"?)+/g) ?? [];
  const line: KernelCommandLine = { text: words.join(" "), hibernate: undefined, noresume: false, unknown: [], malformed: [] };
  for (const word of words) {
    const [, name, equals, value] = /^([^=]*)(=?)(.*)$/s.exec(word.replaceAll('"', ""))!;
    if (name === "hibernate") {
      line.hibernate = value === "" ? undefined : value;
      if (value === "") line.malformed.push(`"${word}" names no image; give hibernate=PATH`);
    } else if (name === "noresume" && equals === "") line.noresume = true;
    else line.unknown.push(word);
  }
  return line;
}
