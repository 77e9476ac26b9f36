/**
 * Frames that are not in the blob because a file of the host has them: clean pages of files that the machine has open or
 * mapped (S0.3). The catalogue says which page of which file a frame is, and its checksum; a reader reads the file.
 *
 * What must hold: no byte of a file is used before it has agreed with the checksum, unless the user has said that this very
 * file may be another.
 */
import { closeSync } from "node:fs";
import { openAllowed } from "../base/allowed-paths.js";
import { HibernaculumError } from "../base/errors.js";
import { readUpTo } from "../base/host-file.js";
import { FRAME_BYTES } from "../base/layout.js";
import { checksum } from "./checksum.js";
import type { ReferenceColumns } from "./reference-table.js";

/** Files that are kept open: an image may name more than a process may open. */
const OPEN_MAX = 32;

export class ReferenceReader {
  readonly #references: ReferenceColumns;
  readonly #allowed: readonly string[];
  readonly #accepted: ReadonlySet<string>;
  /** Descriptors by file, the one that was opened first first. */
  readonly #descriptors = new Map<number, number>();

  /**
   * @param allowed - places that files may be opened in
   * @param accepted - paths of files of which is taken what they hold now, whatever it is
   */
  constructor(references: ReferenceColumns, allowed: readonly string[], accepted: ReadonlySet<string> = new Set()) {
    this.#references = references;
    this.#allowed = allowed;
    this.#accepted = accepted;
  }

  /**
   * Fills the bytes with frames of a reference that follow each other.
   *
   * @param index - of the reference
   * @param frame - the first, counted from the reference's first
   * @throws HIB_FILES_CHANGED, HIB_NOT_ALLOWED
   */
  read(index: number, frame: number, bytes: Uint8Array): void {
    const { file, first, hashes, page, paths } = this.#references;
    const path = paths[file[index]!]!;
    const from = page[index]! + frame;
    try {
      bytes.fill(0, readUpTo(this.#open(file[index]!), bytes, from * FRAME_BYTES));
    } catch (cause) {
      if (cause instanceof HibernaculumError) throw cause;
      const why = cause instanceof Error ? cause.message : String(cause);
      throw new HibernaculumError("HIB_FILES_CHANGED", `pages of the machine are in ${path}, which cannot be read: ${why}`, {
        cause,
      });
    }
    if (this.#accepted.has(path)) return;
    for (let i = 0; i < bytes.length / FRAME_BYTES; i++)
      if (checksum(bytes.subarray(i * FRAME_BYTES, (i + 1) * FRAME_BYTES)) !== hashes[first[index]! + frame + i])
        throw changed(`${path}: page ${from + i} is not what it was when the machine was saved`);
  }

  #open(file: number): number {
    const open = this.#descriptors.get(file);
    if (open !== undefined) return open;
    const descriptor = openAllowed(this.#references.paths[file]!, this.#allowed);
    for (const [oldest, its] of this.#descriptors) {
      if (this.#descriptors.size < OPEN_MAX) break;
      closeSync(its);
      this.#descriptors.delete(oldest);
    }
    this.#descriptors.set(file, descriptor);
    return descriptor;
  }

  /** May be called again. */
  close(): void {
    for (const descriptor of this.#descriptors.values()) closeSync(descriptor);
    this.#descriptors.clear();
  }
}

function changed(what: string): HibernaculumError {
  const advice = "put the file back, or accept what it holds now with --accept-changed-files";
  return new HibernaculumError("HIB_FILES_CHANGED", `${what}; ${advice}`, { what });
}
