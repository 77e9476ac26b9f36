/**
 * Frames that are not in the blob because a file of the host has them: clean pages of files that the machine has open or
 * mapped (S0.3). The catalogue says which page of which file a frame is, and its checksum; a reader reads the file.
 *
 * What must hold: no byte of a file is used before it has agreed with the checksum, unless the user has said that this very
 * file may be another.
 */
import { closeSync } from "node:fs";
import { HibernaculumError } from "../base/errors.js";
import { openAllowed } from "../base/allowed-paths.js";
import { type Reference, readUpTo } from "../base/host-file.js";
import { FRAME_BYTES } from "../base/layout.js";
import { checksum } from "./checksum.js";

export class ReferenceReader {
  readonly #references: readonly Reference[];
  readonly #allowed: readonly string[];
  readonly #accepted: ReadonlySet<string>;
  readonly #descriptors = new Map<string, number>();

  /**
   * @param allowed - places that files may be opened in
   * @param accepted - paths of files of which is taken what they hold now, whatever it is
   */
  constructor(references: readonly Reference[], allowed: readonly string[], accepted: ReadonlySet<string> = new Set()) {
    this.#references = references;
    this.#allowed = allowed;
    this.#accepted = accepted;
  }

  /**
   * The frame's 4096 bytes; the caller's.
   *
   * @param index - of the reference
   * @param frame - counted from the reference's first
   * @throws HIB_FILES_CHANGED, HIB_NOT_ALLOWED
   */
  read(index: number, frame: number): Uint8Array {
    const { path, page, hashes } = this.#references[index]!;
    const bytes = new Uint8Array(FRAME_BYTES);
    try {
      readUpTo(this.#open(path), bytes, (page + frame) * FRAME_BYTES);
    } catch (cause) {
      if (cause instanceof HibernaculumError) throw cause;
      const why = cause instanceof Error ? cause.message : String(cause);
      throw new HibernaculumError("HIB_FILES_CHANGED", `pages of the machine are in ${path}, which cannot be read: ${why}`, {
        cause,
      });
    }
    if (!this.#accepted.has(path) && checksum(bytes) !== hashes[frame]) {
      throw new HibernaculumError(
        "HIB_FILES_CHANGED",
        `${path}: page ${page + frame} is not what it was when the machine was saved; put the file back, or accept what it holds now with --accept-changed-files`,
      );
    }
    return bytes;
  }

  #open(path: string): number {
    let descriptor = this.#descriptors.get(path);
    if (descriptor === undefined) this.#descriptors.set(path, (descriptor = openAllowed(path, this.#allowed)));
    return descriptor;
  }

  /** May be called again. */
  close(): void {
    for (const descriptor of this.#descriptors.values()) closeSync(descriptor);
    this.#descriptors.clear();
  }
}
