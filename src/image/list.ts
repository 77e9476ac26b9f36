/**
 * The images of a directory and the state that each is in. Nothing is changed, and no chunk is read: damage inside the
 * blob is for `hib verify` to find.
 */
import { readdir } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import { attemptTo, type ErrorCode, type SerializedError, serializeError } from "../base/errors.js";
import { FRAME_BYTES } from "../base/layout.js";
import { checkArguments, path as pathRule } from "../base/options.js";
import { headerOf } from "./chain.js";
import { loadChecksum } from "./checksum.js";
import { holdsImage, openImage, partialOf, readHeader } from "./directory.js";
import { isEncrypted } from "./encryption-header.js";
import { type ImageHeader, MACHINE_VERSION } from "./format.js";
import { describeSlots } from "./key-slots.js";
import { type Attempt, type History, holderOf, readHistory, type SetAside, type Use } from "./markers.js";
import { bytesOf } from "./remove.js";

/**
 * The first of these that holds.
 *
 * - `writing`: a live process writes it
 * - `partial`: its process died before it was complete; the next save there sweeps it
 * - `foreign`: a process of another host writes it, or died at it, which cannot be seen from here; nothing sweeps it
 * - `used`: it was resumed
 * - `set aside`: a boot could not resume it
 * - `resuming`: a live process is at it
 * - `incomplete`: it needs an image that is not there
 * - `other version`: of a format or a machine that this program does not know
 * - `unreadable`: the host does not let this user read it
 * - `damaged`: it is not what was written
 * - `complete`: it can be resumed
 */
export type ImageState =
  | "writing"
  | "partial"
  | "foreign"
  | "used"
  | "set aside"
  | "resuming"
  | "incomplete"
  | "other version"
  | "unreadable"
  | "damaged"
  | "complete";

export interface ImageEntry {
  name: string;
  path: string;
  state: ImageState;
  /** Process that writes or resumes it. */
  by_pid: number | null;
  /** On the disk. */
  bytes: number;
  ram_bytes: number | null;
  /** What opens it, key slot by key slot; null if it is not encrypted. */
  keys: string[] | null;
  /** The consistency point, ISO 8601. */
  time: string | null;
  /** Null, too, if the image is encrypted. */
  processes: number | null;
  /** Null where it cannot be read. */
  id: string | null;
  /** The image that it needs. */
  parent_id: string | null;
  used: Use | null;
  attempts: Attempt[];
  set_aside: SetAside | null;
  /** What is wrong with it, whatever its state. */
  error: SerializedError | null;
}

const NOTHING_KNOWN: Pick<ImageEntry, "ram_bytes" | "keys" | "time" | "processes" | "id" | "parent_id" | "error"> = {
  ram_bytes: null,
  keys: null,
  time: null,
  processes: null,
  id: null,
  parent_id: null,
  error: null,
};
const NO_HISTORY: History = { used: null, attempts: [], setAside: null };

/**
 * The images of a directory, by name; or the one that the path itself is.
 *
 * @throws HIB_IO
 */
export async function listImages(directory: string): Promise<ImageEntry[]> {
  checkArguments("listImages", { "the directory": [directory, pathRule] });
  await loadChecksum();
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
  const entry = { name, path, bytes: await bytesOf(path), ...NOTHING_KNOWN };
  const writer = partialOf(name);
  if (writer !== undefined) {
    const state = ({ alive: "writing", gone: "partial", "of another host": "foreign" } as const)[writer.writer];
    return { ...entry, state, by_pid: state === "partial" ? null : writer.pid, ...fieldsOf(NO_HISTORY) };
  }
  const history = await readHistory(path).catch(() => NO_HISTORY);
  const holder = holderOf(history);
  const opened = await look(path);
  const state = (): ImageState => {
    if (history.used !== null) return "used";
    if (isSetAside(name)) return "set aside";
    if (holder !== undefined) return "resuming";
    return opened.error === null ? "complete" : stateFor(opened.error.code);
  };
  return { ...entry, ...opened, state: state(), by_pid: holder?.pid ?? null, ...fieldsOf(history) };
}

function fieldsOf({ used, attempts, setAside }: History): Pick<ImageEntry, "used" | "attempts" | "set_aside"> {
  return { used, attempts, set_aside: setAside };
}

/** Of an image that cannot be opened. */
function stateFor(code: ErrorCode): ImageState {
  if (code === "HIB_FORMAT_VERSION" || code === "HIB_MACHINE_VERSION") return "other version";
  if (code === "HIB_PARENT") return "incomplete";
  return code === "HIB_IO" || code === "HIB_DEPENDENCY" ? "unreadable" : "damaged";
}

/** Whether a name is one that setting aside gives. */
function isSetAside(name: string): boolean {
  return /\.set-aside-[a-z0-9-]+$/.test(name);
}

async function look(path: string): Promise<Pick<ImageEntry, keyof typeof NOTHING_KNOWN>> {
  try {
    if (await isEncrypted(path)) {
      const header = await readHeader(path, { machineVersion: MACHINE_VERSION });
      return { ...NOTHING_KNOWN, ...factsOf(header) };
    }
    const image = await openImage(path, { machineVersion: MACHINE_VERSION });
    try {
      return { ...NOTHING_KNOWN, ...factsOf(image.header), processes: image.catalogue.processes().length };
    } finally {
      image.close();
    }
  } catch (error) {
    return { ...NOTHING_KNOWN, ...(await lineage(path)), error: serializeError(error) };
  }
}

/** What the header says, though the rest be damaged. */
async function lineage(path: string): Promise<Pick<ImageEntry, "id" | "parent_id">> {
  const header = await headerOf(path);
  return { id: header?.id ?? null, parent_id: header?.parent?.id ?? null };
}

function factsOf(header: ImageHeader): Pick<ImageEntry, "ram_bytes" | "time" | "keys" | "id" | "parent_id"> {
  const { ramFrames, time, encryption, id, parent } = header;
  const keys = encryption === undefined ? null : describeSlots(encryption.slots);
  return { ram_bytes: ramFrames * FRAME_BYTES, time: new Date(time).toISOString(), keys, id, parent_id: parent?.id ?? null };
}
