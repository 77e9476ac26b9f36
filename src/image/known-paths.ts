/**
 * What a user's machines had of the host's files, by image: noted when it is saved, so that whoever saved a machine need not name
 * its disk again to resume it.
 *
 *     $XDG_STATE_HOME/hibernaculum/images/ID     else ~/.local/state: a line of JSON, the digest of the image and real paths
 *
 * What must hold: a note is of that very image, or it is none. Whoever forges one can take its id, but a SHA-256 of header and
 * catalogue stands in the note, and only paths that stand there, too, are allowed by it.
 */
import { createHash, randomBytes } from "node:crypto";
import type { Stats } from "node:fs";
import { mkdir, open, readdir, rename, rm, stat } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { hashFile } from "./checksum.js";
import { readSmall } from "./files.js";
import { CATALOGUE_NAME, encodeHeader, type ImageHeader } from "./format.js";

interface Note {
  digest: string;
  paths: string[];
}

/** Images that are remembered; the oldest are forgotten. */
const NOTES_MAX = 1000;
const NOTE_BYTES_MAX = 2 ** 22;

function notesDirectory(): string {
  const { XDG_STATE_HOME } = process.env;
  return join(XDG_STATE_HOME || join(homedir(), ".local", "state"), "hibernaculum", "images");
}

/**
 * Notes the paths of an image that this user has saved. Never throws: what cannot be noted must be named when it is resumed.
 *
 * @param directory - where header and catalogue are by now
 * @param paths - real ones
 */
export async function notePaths(directory: string, header: ImageHeader, paths: readonly string[]): Promise<void> {
  if (paths.length === 0) return;
  try {
    const notes = notesDirectory();
    await mkdir(notes, { recursive: true, mode: 0o700 });
    const draft = join(notes, `.${randomBytes(8).toString("hex")}`);
    const file = await open(draft, "wx", 0o600);
    try {
      const note: Note = { digest: await digestOf(directory, header), paths: [...paths] };
      await file.writeFile(`${JSON.stringify(note)}\n`);
    } finally {
      await file.close();
    }
    await rename(draft, join(notes, header.id));
    await forgetOldest(notes);
  } catch {
    // A home that cannot be written to is no reason to have no image.
  }
}

/** Paths that the machine of an image had when this user saved it; none if it is another image, or nobody knows it. */
export async function notedPaths(directory: string, header: ImageHeader): Promise<string[]> {
  try {
    const { digest, paths } = await readNote(join(notesDirectory(), header.id));
    return digest === (await digestOf(directory, header)) ? paths : [];
  } catch {
    return [];
  }
}

async function readNote(path: string): Promise<Note> {
  const mine = ({ uid, mode }: Stats): boolean => uid === (process.geteuid?.() ?? uid) && (mode & 0o022) === 0;
  return JSON.parse(await readSmall(path, NOTE_BYTES_MAX, mine)) as Note;
}

/** Of all that says what is in an image. An object's header is the same but for two words, and an import makes them anew. */
async function digestOf(directory: string, header: ImageHeader): Promise<string> {
  const { digest } = await hashFile(join(directory, CATALOGUE_NAME), { digest: "sha256" });
  const page = encodeHeader({ ...header, used: false, catalogueOffset: 0 });
  return createHash("sha256").update(page).update(digest!).digest("hex");
}

async function forgetOldest(notes: string): Promise<void> {
  const names = await readdir(notes);
  if (names.length <= NOTES_MAX) return;
  const aged = await Promise.all(names.map(async (name) => ({ name, at: (await stat(join(notes, name))).mtimeMs })));
  aged.sort((a, b) => a.at - b.at);
  for (const { name } of aged.slice(0, names.length - NOTES_MAX)) await rm(join(notes, name), { force: true });
}
