/** `hib inspect`: what is in an image. Only what is asked of a process reads its chunks. */
import type { Command } from "commander";
import type { NamedPath } from "../base/allowed-paths.js";
import { HibernaculumError, naming } from "../base/errors.js";
import { FRAME_BYTES } from "../base/layout.js";
import { type Image, openImage } from "../image/directory.js";
import { type Extent, SAME_FILLED } from "../image/extents.js";
import { CODEC_LZ4, FORMAT_VERSION, MACHINE_VERSION } from "../image/format.js";
import { describeSlots } from "../image/key-slots.js";
import { namedPaths } from "../named-paths.js";
import { isUsed } from "../image/markers.js";
import { formatBytes, formatCount, formatFrames } from "../stats/format.js";
import { field, section, table, type View } from "../stats/layout.js";
import { printableAll } from "../stats/printable.js";
import { ALLOW, createCommand, withFittingHint, wholeNumber } from "./command.js";
import {
  describeHoldings,
  describeMemory,
  findProcess,
  parseRange,
  type Range,
  renderHoldings,
  renderMemory,
} from "./inspect-process.js";
import { KEY_FILE, type KeyOptions, keysFrom, PASSPHRASE_FILE } from "./keys.js";
import { print, printJson, stdoutView } from "./output.js";

interface Description {
  schema: 1;
  path: string;
  used: boolean;
  header: {
    format_version: number;
    machine_version: number;
    id: string;
    /** Consistency point, ISO 8601. */
    time: string;
    ram_frames: number;
    frames: number;
    vcpus: number | null;
    blob_bytes: number;
    catalogue_bytes: number;
    /** What opens it, key slot by key slot; null if it is not encrypted. */
    keys: string[] | null;
  };
  chunks: { count: number; lz4: number; raw: number; stored_bytes: number; decoded_bytes: number };
  extents: { count: number; same_filled: number; same_filled_frames: number; referenced_frames: number };
  processes: {
    pid: number;
    name: string;
    text: string;
    state: string;
    steps: number;
    failure: string;
    mappings: number;
    pages: number;
  }[];
  blocks: { kind: string; blocks: number; frames: number }[];
  /** Files of the host that it had open. */
  files: { path: string; mode: "r" | "rw"; size: number }[];
  /** What a resume would open of the host; null if its memory cannot be read: it is of another version, or damaged. */
  paths: NamedPath[] | null;
}

interface InspectOptions extends KeyOptions {
  extents?: boolean;
  pid?: number;
  read?: Range;
  allow?: string[];
  json?: boolean;
}

export function addInspect(program: Command): void {
  createCommand(program, "inspect", "show what is in an image: frames, processes, the memory of one")
    .argument("<image>", "where the machine was saved")
    .option("--extents", "list where each run of frames is")
    .option("--pid <pid>", "one process: its areas, mappings, registers", wholeNumber(1, 2 ** 31 - 1))
    .option("--read <address:length>", "memory of that process, such as 0x10000:64", parseRange)
    .option(...ALLOW)
    .option(...KEY_FILE)
    .option(...PASSPHRASE_FILE)
    .option("--json", "for programs")
    .action(inspect);
}

async function inspect(path: string, { extents, pid, read, allow = [], json, ...keyOptions }: InspectOptions): Promise<void> {
  if (read !== undefined && pid === undefined)
    throw new HibernaculumError("HIB_USAGE", "--read needs to know whose memory: give --pid");
  if (extents === true && pid !== undefined) throw new HibernaculumError("HIB_USAGE", "give --extents or --pid");
  // The catalogue can be read for any machine; what is in memory only by a kernel that knows its layout.
  const options = { allow, keys: await keysFrom(keyOptions) };
  const image = await openImage(path, pid === undefined ? options : { ...options, machineVersion: MACHINE_VERSION });
  try {
    const show = <T extends { schema: number }>(what: T, render: (what: T) => string): void =>
      json === true ? printJson(what) : print(render(printableAll(what)).trimEnd());
    if (pid !== undefined && read !== undefined) show(describeMemory(image, findProcess(image, pid), read), renderMemory);
    else if (pid !== undefined)
      show(describeHoldings(image, findProcess(image, pid)), (what) => renderHoldings(what, stdoutView()));
    else if (extents === true)
      show(
        { schema: 1, path: image.path, extents: Array.from(image.extents, (extent) => describeExtent(extent, image)) },
        renderExtents,
      );
    else show(await describeImage(image), (what) => renderDescription({ ...what, path }, stdoutView()));
  } catch (error) {
    throw withFittingHint(naming(error, path));
  } finally {
    image.close();
  }
}

export interface ExtentDescription {
  pfn: number;
  frames: number;
  /** Where the frames are, or else what fills them. */
  chunk?: number;
  first?: number;
  fill?: string;
  /** Or which page of which file of the host the first one is. */
  file?: string;
  page?: number;
  /** The image that its frames are in, if that is an ancestor of this one: 1, its parent, 2, that one's parent, ... */
  ancestor?: number;
}

function describeExtent(extent: Extent, { references, chunks }: Image): ExtentDescription {
  const { pfn, frames } = extent;
  if (extent.chunk === "file") {
    const { path, page } = references.at(extent.reference);
    return { pfn, frames, file: path, page };
  }
  if (typeof extent.chunk === "number") {
    const { id, generation = 0 } = chunks[extent.chunk]!;
    return { pfn, frames, chunk: id, first: extent.first, ...(generation === 0 ? {} : { ancestor: generation }) };
  }
  if (extent.chunk !== null) throw new HibernaculumError("HIB_INTERNAL", `frame ${pfn} was not looked for in the parent`);
  return { pfn, frames, fill: extent.fill.toString(16).padStart(16, "0") };
}

/** Lines, not a table: there may be a million. */
function renderExtents({ extents }: { extents: ExtentDescription[] }): string {
  const line = (cells: (string | number)[]): string => cells.map((cell) => String(cell).padStart(10)).join("");
  return [
    line(["frame", "frames", "chunk", "place"]),
    ...extents.map(({ pfn, frames, chunk, first, fill, file, page, ancestor }) => {
      if (chunk !== undefined)
        return line([pfn, frames, chunk, first!]) + (ancestor === undefined ? "" : `  of ancestor ${ancestor}`);
      return `${line([pfn, frames])}  ${file === undefined ? `filled with ${fill}` : `page ${page} of ${file}`}`;
    }),
  ].join("\n");
}

async function describeImage(image: Image): Promise<Description> {
  const { path, header, catalogue, chunks, extents } = image;
  const mapped = new Map<number, { mappings: number; pages: number }>();
  for (const { pid, pages } of catalogue.mappings()) {
    const entry = mapped.get(pid) ?? { mappings: 0, pages: 0 };
    mapped.set(pid, { mappings: entry.mappings + 1, pages: entry.pages + pages });
  }
  const blocks = new Map<string, { kind: string; blocks: number; frames: number }>();
  for (const { kind, blocks: count, frames } of catalogue.blocks()) {
    const entry = blocks.get(kind) ?? { kind, blocks: 0, frames: 0 };
    blocks.set(kind, { kind, blocks: entry.blocks + count, frames: entry.frames + frames });
  }
  const filled = [...extents].filter(({ chunk }) => chunk === null);
  const { vcpus } = catalogue.meta;
  return {
    schema: 1,
    path,
    used: await isUsed(path),
    header: {
      format_version: FORMAT_VERSION, // an image of another is not opened
      machine_version: header.machineVersion,
      id: header.id,
      time: new Date(header.time).toISOString(),
      ram_frames: header.ramFrames,
      frames: header.frames,
      vcpus: typeof vcpus === "number" ? vcpus : null,
      blob_bytes: header.blobBytes,
      catalogue_bytes: header.catalogueBytes,
      keys: header.encryption === undefined ? null : describeSlots(header.encryption.slots),
    },
    chunks: {
      count: chunks.length,
      lz4: chunks.filter(({ codec }) => codec === CODEC_LZ4).length,
      raw: chunks.filter(({ codec }) => codec !== CODEC_LZ4).length,
      stored_bytes: chunks.reduce((sum, { stored }) => sum + stored, 0),
      decoded_bytes: chunks.reduce((sum, { frames }) => sum + frames, 0) * FRAME_BYTES,
    },
    extents: {
      count: extents.length,
      same_filled: extents.chunk.reduce((sum, chunk) => sum + (chunk === SAME_FILLED ? 1 : 0), 0),
      same_filled_frames: filled.reduce((sum, { frames }) => sum + frames, 0),
      referenced_frames: image.references.frames.reduce((sum, frames) => sum + frames, 0),
    },
    processes: catalogue.processes().map(({ pid, name, state, steps, detail }) => {
      const { text = name, failure = "" } = (detail ?? {}) as { text?: string; failure?: string };
      return { pid, name, text, state, steps, failure, ...(mapped.get(pid) ?? { mappings: 0, pages: 0 }) };
    }),
    blocks: [...blocks.values()].sort((a, b) => b.frames - a.frames),
    files: catalogue.files().map(({ path, mode, size }) => ({ path, mode, size: Number(size) })),
    paths: pathsOf(image),
  };
}

function pathsOf(image: Image): NamedPath[] | null {
  if (image.header.machineVersion !== MACHINE_VERSION) return null;
  try {
    return [...new Map(namedPaths(image).map((one) => [`${one.what} ${one.path}`, one])).values()];
  } catch (error) {
    if (error instanceof HibernaculumError) return null; // it is not resumed
    throw error;
  }
}

function renderDescription(description: Description, view: View): string {
  const { path, used, header, chunks, extents, processes, blocks, files, paths } = description;
  const saved = header.frames - extents.referenced_frames;
  return [
    section(view, "Image", [
      field(view, "path", path),
      field(view, "id", header.id),
      field(view, "consistency point", header.time),
      field(view, "used", used ? view.colors.yellow("yes: it was resumed") : "no"),
      ...(header.keys === null ? [] : [field(view, "encrypted", `opened by: ${header.keys.join(" or ")}`)]),
      field(view, "versions", `format ${header.format_version}, machine ${header.machine_version}`),
      field(view, "machine", `${formatBytes(header.ram_frames * FRAME_BYTES)} of RAM, vCPUs: ${header.vcpus ?? "?"}`),
      field(view, "saved", `${formatFrames(saved)} (${formatBytes(saved * FRAME_BYTES)})`),
      ...(extents.referenced_frames === 0
        ? []
        : [field(view, "by reference", `${formatFrames(extents.referenced_frames)} of files of the host`)]),
      field(view, "blob", formatBytes(header.blob_bytes)),
      field(view, "catalogue", formatBytes(header.catalogue_bytes)),
      field(
        view,
        "chunks",
        `${formatCount(chunks.count)}: ${formatCount(chunks.lz4)} LZ4, ${formatCount(chunks.raw)} raw; ${formatBytes(chunks.decoded_bytes)} in ${formatBytes(chunks.stored_bytes)}`,
      ),
      field(
        view,
        "extents",
        `${formatCount(extents.count)}, ${formatCount(extents.same_filled)} of them same-filled (${formatCount(extents.same_filled_frames)} frames)`,
      ),
    ]),
    section(view, "Processes", [
      table(
        view,
        ["pid", "process", "state", "steps", "pages", "mappings"],
        processes.map((p) => [
          String(p.pid),
          p.name === "" ? "-" : p.name,
          p.state,
          formatCount(p.steps),
          formatCount(p.pages),
          formatCount(p.mappings),
        ]),
      ),
      ...processes.filter(({ failure }) => failure !== "").map(({ pid, failure }) => `  process ${pid} failed: ${failure}`),
    ]),
    section(view, "Blocks of the buddy allocator", [
      table(
        view,
        ["kind", "blocks", "frames"],
        blocks.map((b) => [b.kind, formatCount(b.blocks), formatCount(b.frames)]),
      ),
    ]),
    ...(files.length === 0
      ? []
      : [
          section(view, "Files of the host", [
            table(
              view,
              ["file", "open for", "size"],
              files.map((f) => [f.path, f.mode === "r" ? "reading" : "writing", formatBytes(f.size)]),
            ),
          ]),
        ]),
    ...(paths === null || paths.length === 0
      ? []
      : [
          section(
            view,
            "A resume opens",
            paths.map((named) => field(view, named.what, named.path)),
          ),
        ]),
  ].join("\n");
}
