/** `hib images`: the images of a directory, and what has become of each. */
import { hostname } from "node:os";
import process from "node:process";
import type { Command } from "commander";
import { type ImageEntry, type ImageState, listImages } from "../image/list.js";
import type { Attempt, Marker } from "../image/markers.js";
import { formatBytes } from "../stats/format.js";
import { type Colors, type View, wrap } from "../stats/layout.js";
import { printable, printableAll } from "../stats/printable.js";
import { createCommand } from "./command.js";
import { print, printJson, stdoutView } from "./output.js";

const INDENT = "    ";

export function addImages(program: Command): void {
  createCommand(program, "images", "list images and which needs which: complete, being resumed, used, set aside and why, damaged")
    .argument("[directory]", "where they are, or one of them", ".")
    .option("--json", "for programs")
    .action(async (directory: string, { json }: { json?: boolean }) => {
      const images = await listImages(directory);
      if (json === true) printJson({ schema: 1, directory, images } as { schema: number });
      else if (images.length === 0) print(`no images in ${printable(directory)}`);
      else {
        // In a pipe each fact has one line, for grep.
        const view = process.stdout.isTTY ? stdoutView() : { ...stdoutView(), columns: Infinity };
        print(
          asTree(images)
            .map(({ image, depth }) => renderBelow(printableAll(image), depth, view))
            .join("\n"),
        );
      }
    });
}

/** Each image after the one that it needs, if that is here, and how many of those it is below. */
export function asTree(images: readonly ImageEntry[]): { image: ImageEntry; depth: number }[] {
  const here = new Set(images.map(({ id }) => id));
  const placed = new Set<ImageEntry>();
  const below = (its: (image: ImageEntry) => boolean, depth: number): { image: ImageEntry; depth: number }[] =>
    images.filter(its).flatMap((image) => {
      if (placed.has(image)) return []; // of copies of an image, one has the children
      placed.add(image);
      return [{ image, depth }, ...(image.id === null ? [] : below(({ parent_id }) => parent_id === image.id, depth + 1))];
    });
  const roots = below(({ parent_id }) => parent_id === null || !here.has(parent_id), 0);
  return [...roots, ...below((image) => !placed.has(image), 0)]; // those of a circle
}

const BRANCH = "└─ ";

function renderBelow(image: ImageEntry, depth: number, view: View): string {
  if (depth === 0) return renderImage(image, view);
  const indent = " ".repeat(BRANCH.length * (depth - 1));
  const lines = renderImage(image, { ...view, columns: Math.max(20, view.columns - BRANCH.length * depth) }).split("\n");
  return lines.map((line, i) => indent + (i === 0 ? BRANCH : " ".repeat(BRANCH.length)) + line).join("\n");
}

/** A line on the image, and below it what there is to know besides. */
export function renderImage(image: ImageEntry, view: View): string {
  const { name, state, bytes, ram_bytes, keys, time, processes, by_pid } = image;
  const what = by_pid === null ? state : `${state} (process ${by_pid})`;
  const facts = [
    formatBytes(bytes),
    ...(ram_bytes === null ? [] : [`RAM ${formatBytes(ram_bytes)}`]),
    ...(keys === null ? [] : [`encrypted, opened by: ${keys.join(" or ")}`]),
    ...(processes === null ? [] : [`processes: ${processes}`]),
    ...(time === null ? [] : [`saved ${time}`]),
  ];
  const below = (text: string): string[] => wrap(text, view.columns - INDENT.length).map((line) => INDENT + line);
  const head = `${view.colors.bold(name)}  ${colorOf(state, view.colors)(what)}`;
  const [first = "", ...rest] = wrap(`${"x".repeat(name.length + 2 + what.length)}, ${facts.join(", ")}`, view.columns);
  const lines = [head + first.replace(/^x+/, ""), ...(rest.length === 0 ? [] : below(rest.join(" ")))];
  for (const note of notesOn(image)) lines.push(...below(note));
  return lines.join("\n");
}

/** Of a marker that cannot be read, only its name tells anything. */
function* notesOn({ name, state, used, attempts, set_aside: setAside, error }: ImageEntry): Generator<string> {
  if (state === "foreign") {
    yield `of another host or container, whose processes cannot be seen from here: a save that is under way there, or one that died; nothing removes it by itself: if you know that it died, rm -r ${name}`;
  }
  if (used !== null)
    yield isReadable(used) ? `used ${used.time} by process ${used.pid} on ${used.host}` : "used; who used it cannot be read";
  if ((state === "set aside" || state === "used") && setAside !== null) {
    yield isReadable(setAside)
      ? `was ${setAside.from}; set aside ${setAside.time} for ${setAside.code}: ${setAside.message}`
      : "set aside; why cannot be read";
  }
  const outcomes = attempts.filter(({ state, outcome }) => state === "died" || outcome !== null);
  for (const attempt of outcomes) yield describeAttempt(attempt);
  // Why it was set aside says it already, as a rule.
  if (error !== null && error.code !== setAside?.code) yield `${error.code}: ${error.message}`;
}

function describeAttempt(attempt: Attempt): string {
  const { number, time, pid, host, state, outcome } = attempt;
  if (!isReadable(attempt)) return `attempt ${number}: its marker cannot be read`;
  const elsewhere = host !== hostname();
  const died = elsewhere
    ? "no outcome, and its process cannot be seen from here: it counts as one that died"
    : "its process died";
  const how = state === "died" ? died : (outcome?.code ?? "how it ended cannot be read");
  return `attempt ${number}, ${time} by process ${pid}${elsewhere ? ` on ${host}` : ""}: ${how}`;
}

function isReadable({ time, pid, host }: Partial<Marker>): boolean {
  return typeof time === "string" && time !== "" && typeof pid === "number" && pid > 0 && typeof host === "string" && host !== "";
}

function colorOf(state: ImageState, colors: Colors): (text: string) => string {
  if (state === "complete") return colors.green;
  if (["damaged", "incomplete", "unreadable", "partial"].includes(state)) return colors.red;
  return ["set aside", "resuming", "foreign", "other version"].includes(state) ? colors.yellow : colors.dim;
}
