/**
 * The images of a directory and the state that each is in. Nothing is changed, and no chunk is read: damage inside the
 * blob is for `hib verify` to find.
 */
import { readdir } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import { attemptTo, type SerializedError, serializeError } from "../base/errors.js";
import { FRAME_BYTES } from "../base/layout.js";
import { checkArguments, path as pathRule } from "../base/options.js";
import { holdsImage, openImage, partialOf } from "./directory.js";
import { statIfThere } from "./files.js";
import { BLOB_NAME, CATALOGUE_NAME, MACHINE_VERSION } from "./format.js";
import { type Attempt, type History, holderOf, readHistory, type SetAside, type Use } from "./markers.js";

/**
 * The first of these that holds.
 *
 * - `writing`: a live process writes it
 * - `partial`: its process died before it was complete; the next save there sweeps it
 * - `foreign`: a process of another host writes it, or died at it, which cannot be seen from here; nothing sweeps it
 * - `set aside`: a boot could not resume it
 * - `used`: it was resumed
 * - `resuming`: a live process is at it
 * - `damaged`: it cannot be opened
 * - `complete`: it can be resumed
 */
export type ImageState = "writing" | "partial" | "foreign" | "set aside" | "used" | "resuming" | "damaged" | "complete";

export interface ImageEntry {
  name: string;
  path: string;
  state: ImageState;
  /** Process that writes or resumes it. */
  by_pid: number | null;
  /** On the disk. */
  bytes: number;
  ram_bytes: number | null;
  /** The consistency point, ISO 8601. */
  time: string | null;
  processes: number | null;
  used: Use | null;
  attempts: Attempt[];
  set_aside: SetAside | null;
  /** What is wrong with it, whatever its state. */
  error: SerializedError | null;
}

const NO_HISTORY: History = { used: null, attempts: [], setAside: null };

/**
 * The images of a directory, by name; or the one that the path itself is.
 *
 * @throws HIB_IO
 */
export async function listImages(directory: string): Promise<ImageEntry[]> {
  checkArguments("listImages", { "the directory": [directory, pathRule] });
  if (await holdsImage(directory)) return [await describe(resolve(directory))];
  const names = await attemptTo(`listing ${directory}`, () => readdir(resolve(directory)));
  const entries: ImageEntry[] = [];
  for (const name of names.sort()) {
    const path = join(resolve(directory), name);
    if (partialOf(name) !== undefined || (await holdsImage(path).catch(() => false))) entries.push(await describe(path));
  }
  return entries;
}

async function describe(path: string): Promise<ImageEntry> {
  const name = basename(path);
  const entry = { name, path, bytes: await sizeOf(path), ram_bytes: null, time: null, processes: null, error: null };
  const writer = partialOf(name);
  if (writer !== undefined) {
    const state = ({ alive: "writing", gone: "partial", "of another host": "foreign" } as const)[writer.writer];
    return { ...entry, state, by_pid: state === "partial" ? null : writer.pid, ...fieldsOf(NO_HISTORY) };
  }
  const history = await readHistory(path).catch(() => NO_HISTORY);
  const holder = holderOf(history);
  const opened = await look(path);
  const state = (): ImageState => {
    if (isSetAside(name)) return "set aside";
    if (history.used !== null) return "used";
    if (holder !== undefined) return "resuming";
    return opened.error === null ? "complete" : "damaged";
  };
  return { ...entry, ...opened, state: state(), by_pid: holder?.pid ?? null, ...fieldsOf(history) };
}

function fieldsOf({ used, attempts, setAside }: History): Pick<ImageEntry, "used" | "attempts" | "set_aside"> {
  return { used, attempts, set_aside: setAside };
}

/** Whether a name is one that setting aside gives. */
function isSetAside(name: string): boolean {
  return /\.set-aside-[a-z0-9-]+$/.test(name);
}

async function look(path: string): Promise<Pick<ImageEntry, "ram_bytes" | "time" | "processes" | "error">> {
  try {
    const image = await openImage(path, { machineVersion: MACHINE_VERSION });
    try {
      const { ramFrames, time } = image.header;
      const processes = image.catalogue.processes().length;
      return { ram_bytes: ramFrames * FRAME_BYTES, time: new Date(time).toISOString(), processes, error: null };
    } finally {
      image.close();
    }
  } catch (error) {
    return { ram_bytes: null, time: null, processes: null, error: serializeError(error) };
  }
}

async function sizeOf(path: string): Promise<number> {
  const found = await Promise.all(
    [BLOB_NAME, CATALOGUE_NAME].map((name) => statIfThere(join(path, name)).catch(() => undefined)),
  );
  return found.reduce((sum, file) => sum + (file?.size ?? 0), 0);
}
