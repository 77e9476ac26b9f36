/** `hib images`: the images of a directory, and what has become of each. */
import { hostname } from "node:os";
import type { Command } from "commander";
import { type ImageEntry, type ImageState, listImages } from "../image/list.js";
import type { Attempt } from "../image/markers.js";
import { formatBytes } from "../stats/format.js";
import { type Colors, type View, wrap } from "../stats/layout.js";
import { printable, printableAll } from "../stats/printable.js";
import { createCommand } from "./command.js";
import { print, printJson, stdoutView } from "./output.js";

export function addImages(program: Command): void {
  createCommand(program, "images", "list images: complete, being resumed, used, set aside and why, damaged")
    .argument("[directory]", "where they are, or one of them", ".")
    .option("--json", "for programs")
    .action(async (directory: string, { json }: { json?: boolean }) => {
      const images = await listImages(directory);
      if (json === true) printJson({ schema: 1, directory, images } as { schema: number });
      else if (images.length === 0) print(`no images in ${printable(directory)}`);
      else print(images.map((image) => renderImage(printableAll(image), stdoutView())).join("\n"));
    });
}

/** A line on the image, and below it what there is to know besides. */
function renderImage(image: ImageEntry, view: View): string {
  const { name, state, bytes, ram_bytes, time, processes, by_pid } = image;
  const facts = [
    colorOf(state, view.colors)(by_pid === null ? state : `${state} (process ${by_pid})`),
    formatBytes(bytes),
    ...(ram_bytes === null ? [] : [`RAM ${formatBytes(ram_bytes)}`]),
    ...(processes === null ? [] : [`processes: ${processes}`]),
    ...(time === null ? [] : [`saved ${time}`]),
  ];
  const lines = [`${view.colors.bold(name)}  ${facts.join(", ")}`];
  for (const note of notesOn(image)) lines.push(...wrap(note, view.columns - 4).map((line) => `    ${line}`));
  return lines.join("\n");
}

function* notesOn({ name, state, used, attempts, set_aside: setAside, error }: ImageEntry): Generator<string> {
  if (state === "foreign") {
    yield `of another host or container, whose processes cannot be seen from here: a save that is under way there, or one that died; nothing removes it by itself: if you know that it died, rm -r ${name}`;
  }
  if (used !== null) yield `used ${used.time ?? "before"} by process ${used.pid ?? "?"} on ${used.host ?? "?"}`;
  if (state === "set aside" && setAside !== null) {
    yield `was ${setAside.from}; set aside ${setAside.time} for ${setAside.code}: ${setAside.message}`;
  }
  const outcomes = attempts.filter(({ state, outcome }) => state === "died" || outcome !== null);
  for (const attempt of outcomes) yield describeAttempt(attempt);
  // Why it was set aside says it already, as a rule.
  if (error !== null && error.code !== setAside?.code) yield `${error.code}: ${error.message}`;
}

function describeAttempt({ number, time, pid, host, state, outcome }: Attempt): string {
  const elsewhere = host !== hostname();
  const died = elsewhere
    ? "no outcome, and its process cannot be seen from here: it counts as one that died"
    : "its process died";
  const by = `process ${pid}${elsewhere ? ` on ${host}` : ""}`;
  return `attempt ${number}, ${time} by ${by}: ${state === "died" ? died : outcome!.code}`;
}

function colorOf(state: ImageState, colors: Colors): (text: string) => string {
  if (state === "complete") return colors.green;
  if (state === "damaged" || state === "partial") return colors.red;
  return ["set aside", "resuming", "foreign"].includes(state) ? colors.yellow : colors.dim;
}
