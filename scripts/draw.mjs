/**
 * Draws the pictures of design/ as SVG: `npm run draw`. With --check it only says whether the committed files are what it draws.
 *
 * Pictures set their own background, so that they can be read on light and dark pages. A text that is too long for its box is an
 * error: widths are reckoned for a wide font, so it fits in others, too.
 */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const FOLDER = fileURLToPath(new URL("../design/pictures", import.meta.url));

const INK = "#1f2933";
const SOFT = "#52606d";
const LINE = "#9aa5b1";
const PAPER = "#fbfaf7";
const PANEL = "#f0ede6";
const WHITE = "#ffffff";
const BLUE = "#cfe3f7";
const GREEN = "#d3ecd5";
const AMBER = "#fbe3b5";
const RED = "#f6cfc8";
const GREY = "#dcdfe3";

/** Width of a character in a wide sans-serif font, as a part of the font's size. */
const CHARACTER = { normal: 0.61, bold: 0.69 };

const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const widthOf = (text, size, weight) => text.length * size * CHARACTER[weight];

function label(x, y, text, { size = 13, weight = "normal", anchor = "middle", colour = INK, room = Infinity } = {}) {
  if (widthOf(text, size, weight) > room) throw new Error(`"${text}" needs more than ${room}`);
  return `<text x="${x}" y="${y}" font-size="${size}" font-weight="${weight}" text-anchor="${anchor}" fill="${colour}">${escaped(text)}</text>`;
}

function rectangle(x, y, width, height, fill, stroke = LINE) {
  return `<rect x="${x}" y="${y}" width="${width}" height="${height}" rx="6" fill="${fill}" stroke="${stroke}"/>`;
}

/** A box with a title and lines below it, in its middle. */
function box({ x, y, width, height, fill = WHITE, title, lines = [], size = 12 }) {
  const pitch = size + 4;
  const rows = (title === undefined ? 0 : 1) + lines.length;
  let at = y + height / 2 - (rows * pitch) / 2 + size;
  const parts = [rectangle(x, y, width, height, fill)];
  const row = (text, options) => {
    parts.push(label(x + width / 2, at, text, { ...options, room: width - 8 }));
    at += pitch;
  };
  if (title !== undefined) row(title, { size: size + 1, weight: "bold" });
  for (const line of lines) row(line, { size });
  return parts.join("\n");
}

const arrow = (x1, y1, x2, y2) =>
  `<line x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}" stroke="${SOFT}" stroke-width="1.5" marker-end="url(#head)"/>`;

const line = (x1, y1, x2, y2, { colour = LINE, width = 1, dashed = false } = {}) =>
  `<line x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}" stroke="${colour}" stroke-width="${width}"${dashed ? ' stroke-dasharray="4 3"' : ""}/>`;

function picture(width, height, title, parts) {
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="Helvetica, Arial, 'DejaVu Sans', sans-serif" role="img">`,
    "<!-- drawn by scripts/draw.mjs: change that, and run `npm run draw` -->",
    `<title>${escaped(title)}</title>`,
    `<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto"><path d="M0,0 L10,5 L0,10 z" fill="${SOFT}"/></marker></defs>`,
    rectangle(0.5, 0.5, width - 1, height - 1, PAPER),
    label(20, 30, title, { size: 17, weight: "bold", anchor: "start" }),
    ...parts,
    "</svg>",
    "",
  ].join("\n");
}

// ---- the threads and what they share ----

function threads() {
  const lanes = [230, 480, 730];
  const width = 230;
  const parts = [];
  const heads = [
    ["coordinator", "the main thread", "saves, resumes, device stores"],
    ["vCPUs", "a thread each", "run processes, take faults"],
    ["page threads", "a pool", "page writers, page loaders"],
  ];
  for (const [i, [title, ...lines]] of heads.entries())
    parts.push(box({ x: lanes[i], y: 50, width, height: 70, fill: AMBER, title, lines }));
  /** What a thread does with a thing: ["w", ...] stores to it, ["r", ...] only reads it, undefined: it does not touch it. */
  const groups = [
    [
      "shared memory: control area (never saved, never write-protected)",
      [
        ["commands to vCPUs", "ARMED, GENERATION, STOP", ["w", "sets them"], ["r", "read at each safepoint"]],
        ["words of a vCPU", "state, answers, wanted", ["r", "waits for the answers"], ["w", "answer at a safepoint"], ["w", "take a frame it waits for"]],
        ["dirty bitmap", "one bit a frame", ["w", "clears; marks its stores"], ["w", "mark before a store"], ["w", "writers read, loaders mark"]],
        ["lists and queue", "src/cow/claims.ts", ["w", "opens entries to claims"], ["w", "claim: gather, pre-image"], ["w", "claim: stage, queue"]],
        ["TLBs", "2 MiB each", undefined, ["w", "each its own"]],
        ["staging and pool", "32 MiB", ["w", "touches it beforehand"], ["w", "copies, pre-images"], ["w", "staged frames"]],
      ],
    ],
    [
      "shared memory: RAM of the guest",
      [
        ["data of the kernel", "page tables, processes", ["w", "kernel calls from outside"], ["w", "kernel calls, A/D bits"], ["r", "writers copy it"]],
        ["frames of processes", "files and DMA, too", ["w", "device stores (DMA)"], ["w", "loads and stores"], ["r", "writers copy them"]],
        ["reserve", "free memory that is lent", ["w", "takes it, touches it"], ["w", "copies, pre-images"], ["w", "writers read, loaders fill"]],
        ["direct-load frames", "allocated for a resume", undefined, undefined, ["w", "loaders fill them"]],
      ],
    ],
    ["disk", [["image", "blob, catalogue", ["w", "header, sync, rename"], undefined, ["w", "chunks, catalogue"]]]],
  ];
  let y = 136;
  for (const [title, rows] of groups) {
    const height = 34 + rows.length * 46;
    parts.push(rectangle(14, y, 952, height, PANEL, "none"));
    parts.push(label(26, y + 21, title, { size: 13, weight: "bold", anchor: "start", colour: SOFT, room: 930 }));
    y += 32;
    for (const [name, detail, ...cells] of rows) {
      parts.push(label(26, y + 16, name, { weight: "bold", anchor: "start", room: 202 }));
      parts.push(label(26, y + 32, detail, { size: 12, anchor: "start", colour: SOFT, room: 202 }));
      for (const [i, cell] of cells.entries()) {
        if (cell === undefined) continue;
        const [how, text] = cell;
        parts.push(box({ x: lanes[i], y, width, height: 38, fill: how === "w" ? BLUE : WHITE, lines: [text], size: 13 }));
      }
      y += 46;
    }
    y += 12;
  }
  parts.push(rectangle(230, y + 2, 26, 16, BLUE), label(264, y + 15, "stores to it", { anchor: "start" }));
  parts.push(rectangle(400, y + 2, 26, 16, WHITE), label(434, y + 15, "only reads it", { anchor: "start" }));
  return picture(980, y + 32, "Threads, and what they share", parts);
}

// ---- one frame's life through a save ----

function frame() {
  const column = (i) => 126 + i * 170;
  const width = 160;
  const middle = (i) => column(i) + width / 2;
  const span = (n) => n * 170 - 10;
  const parts = [];
  const zones = [
    [48, 296, "the", "machine", "runs"],
    [352, 236, "the stop:", "all vCPUs", "stand still"],
    [596, 106, "a snapshot", "runs again"],
    [710, 94, "in the", "image"],
  ];
  for (const [y, height, ...title] of zones) {
    parts.push(rectangle(14, y, 970, height, PANEL, "none"));
    for (const [i, text] of title.entries())
      parts.push(label(24, y + 24 + i * 17, text, { weight: "bold", anchor: "start", colour: SOFT, room: 100 }));
  }
  const put = (i, n, y, height, fill, title, ...lines) =>
    parts.push(box({ x: column(i), y, width: span(n), height, fill, title, lines }));
  const down = (i, from, to) => parts.push(arrow(middle(i), from, middle(i), to));

  put(0, 4, 64, 62, WHITE, "planned", "the walker found it in use; its bit in PLANNED is set");
  put(4, 1, 64, 62, WHITE, "not planned", "allocated since");
  put(0, 2, 166, 62, GREEN, "streamed", "claimed without a mark: staged,", "compressed, hashed, written");
  put(2, 2, 166, 62, AMBER, "skipped", "claimed with a mark: its bytes", "change anyway");
  put(0, 1, 264, 66, WHITE, "no store", "its mark stays", "clear");
  put(1, 1, 264, 66, AMBER, "marked", "first store: fault,", "mark, store");
  put(0, 1, 382, 62, GREEN, "unmarked", "what was streamed", "is what it holds");
  put(1, 4, 382, 62, AMBER, "residual set", "STOP and (DIRTY or not PLANNED): in use now, and its streamed bytes may be old");
  put(1, 1, 482, 92, BLUE, "atomic copy", "hibernation: a place", "in the reserve, and", "time in the pause");
  put(2, 2, 482, 92, BLUE, "tail", "snapshot: write-protected", "again; its old contents", "are to be kept");
  put(4, 1, 482, 92, BLUE, "its own frame", "hibernation: what", "is left is written", "from where it is");
  put(1, 1, 620, 62, BLUE, "copy", "a page writer", "saves it");
  put(2, 1, 620, 62, BLUE, "no store yet", "a page writer", "saves the frame");
  put(3, 1, 620, 62, BLUE, "pre-image", "first store: handler", "keeps it, then opens");
  put(0, 5, 736, 56, WHITE, "extent", "a run of consecutive frames: where their bytes are in the blob, or the word that fills them");
  for (const i of [0, 2]) down(i, 126, 163);
  for (const i of [0, 1]) down(i, 228, 261);
  parts.push(arrow(middle(4), 126, middle(4), 379));
  parts.push(arrow(middle(2), 228, middle(2), 379));
  for (const i of [0, 1]) down(i, 330, 379);
  for (const i of [1, 2, 4]) down(i, 444, 479);
  for (const i of [1, 2, 3]) down(i, 574, 617);
  for (const i of [1, 2, 3]) down(i, 682, 733);
  parts.push(arrow(middle(0), 444, middle(0), 733), arrow(middle(4), 574, middle(4), 733));
  parts.push(
    label(24, 828, "A frame that is freed before the stop is not in STOP: it is in no extent, whatever was streamed of it.", {
      anchor: "start",
      colour: SOFT,
      room: 950,
    }),
  );
  return picture(998, 846, "One frame's life through a save", parts);
}

// ---- the pause on a time axis ----

function timeline({ top, title, steps, after, ends }) {
  const parts = [];
  const left = 150;
  const stop = { from: 470, each: 84 };
  const stopEnd = stop.from + steps.length * stop.each;
  const point = stop.from + 2 * stop.each;
  const end = 1160;
  const lanes = { coordinator: top + 44, vCPUs: top + 104, "page writers": top + 164 };
  parts.push(rectangle(14, top, end + 6, 266, PANEL, "none"));
  parts.push(label(26, top + 21, title, { weight: "bold", anchor: "start", colour: SOFT }));
  for (const [name, y] of Object.entries(lanes)) parts.push(label(26, y + 25, name, { weight: "bold", anchor: "start", room: 120 }));
  const bar = (lane, from, to, fill, text) =>
    parts.push(box({ x: from, y: lanes[lane], width: to - from, height: 40, fill, lines: text === "" ? [] : [text] }));
  bar("coordinator", left, 226, WHITE, "prepare");
  bar("coordinator", 226, 282, WHITE, "arm");
  bar("coordinator", 282, stop.from, WHITE, "the reserve grows");
  for (const [i, step] of steps.entries()) bar("coordinator", stop.from + i * stop.each, stop.from + (i + 1) * stop.each, RED, step);
  bar("coordinator", 1040, end, WHITE, "publish");

  bar("vCPUs", left, 282, GREEN, "run");
  bar("vCPUs", 282, stop.from + 44, GREEN, "run; first stores fault");
  const runs = ends === "go on" ? stopEnd - 30 : end;
  bar("page writers", 282, stop.from - 10, BLUE, "stream all of memory");
  if (ends === "go on") {
    bar("vCPUs", stop.from + 44, runs, GREY, "stand still");
    bar("vCPUs", runs, end, GREEN, "run; first stores keep pre-images");
    bar("coordinator", stopEnd, stopEnd + 110, WHITE, "note files");
    bar("coordinator", stopEnd + 110, stopEnd + 190, WHITE, "list");
    bar("coordinator", stopEnd + 190, 1040, WHITE, after);
    bar("page writers", stopEnd + 190, 1040, BLUE, "tail, pre-images");
  } else {
    const copy = stop.from + steps.indexOf("copy") * stop.each;
    bar("vCPUs", stop.from + 44, point, GREY, "stand still");
    bar("vCPUs", point, copy, GREY, "");
    bar("vCPUs", copy, copy + stop.each, BLUE, "copy, too");
    bar("vCPUs", copy + stop.each, runs, GREY, "stand still, then power off");
    bar("coordinator", stopEnd, 1040, WHITE, after);
    bar("page writers", stopEnd, 1040, BLUE, "the rest, then the copies");
  }

  const measure = (from, to, y, text, colour) => {
    parts.push(line(from, y - 5, from, y + 5, { colour, width: 2 }), line(to, y - 5, to, y + 5, { colour, width: 2 }));
    parts.push(line(from, y, to, y, { colour, width: 2 }));
    parts.push(label((from + to) / 2, y + 18, text, { size: 13, weight: "bold", colour }));
  };
  measure(stop.from, stopEnd, top + 222, "the pause, as the report gives it", "#a3341f");
  if (ends === "go on") measure(stop.from - 34, runs + 40, top + 94, "", SOFT);
  parts.push(line(point, top + 36, point, top + 212, { colour: "#a3341f", width: 2, dashed: true }));
  parts.push(label(point, top + 30, "consistency point", { weight: "bold", colour: "#a3341f" }));
  return parts;
}

function pause() {
  const snapshot = timeline({
    top: 48,
    title: "snapshot (hib save --keep-running)",
    steps: ["safepoint", "devices", "resume"],
    after: "residual",
    ends: "go on",
  });
  const hibernation = timeline({
    top: 328,
    title: "hibernation (hib save)",
    steps: ["safepoint", "devices", "list", "copy"],
    after: "residual",
    ends: "power off",
  });
  return picture(1190, 660, "The pause on a time axis (not to scale: streaming takes seconds, the pause milliseconds)", [
    ...snapshot,
    ...hibernation,
    label(26, 622, "The thin bracket above the vCPUs is the longest gap: from the end of a process's last batch of steps before the stop to its first after it.", {
      anchor: "start",
      colour: SOFT,
      size: 12,
      room: 1150,
    }),
    label(26, 644, "While files are noted, a process that enters the kernel waits. What a hibernation does not copy is written from where it is.", {
      anchor: "start",
      colour: SOFT,
      size: 12,
      room: 1150,
    }),
  ]);
}

const pictures = { "threads.svg": threads(), "frame.svg": frame(), "pause.svg": pause() };
mkdirSync(FOLDER, { recursive: true });
for (const [name, text] of Object.entries(pictures)) {
  const path = join(FOLDER, name);
  if (!process.argv.includes("--check")) writeFileSync(path, text);
  else if (read(path) !== text) {
    console.error(`design/pictures/${name} is not what scripts/draw.mjs draws; run "npm run draw"`);
    process.exitCode = 1;
  }
}

function read(path) {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
}
