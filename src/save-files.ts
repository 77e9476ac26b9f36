/** The host's files under a save (S0.3, S3.6): clean pages that an image refers to, and what the files were at the stop. */
import type { Reference } from "./base/host-file.js";
import { type FileRow, FilesOfSave } from "./image/host-files.js";
import type { Machine } from "./machine.js";
import { CleanPages } from "./vm/files/clean-pages.js";
import { type OpenFile, openFiles } from "./vm/files/open-files.js";

export class SaveFiles implements Disposable {
  /** Files that somebody else had changed by the time of the stop. */
  changed: string[] = [];
  readonly #machine: Machine;
  /** Which clean pages are stored although a file has them: all, or those of changed files. */
  readonly #stored: "all" | "changed";
  readonly #contents = new FilesOfSave();
  readonly #cleanPages: CleanPages;

  constructor(machine: Machine, stored: "all" | "changed") {
    this.#machine = machine;
    this.#stored = stored;
    this.#cleanPages = new CleanPages(machine.kernel);
  }

  /** Before anything is armed: learns what files hold that the machine writes to. */
  async prepare(signal: AbortSignal | undefined): Promise<void> {
    await this.#contents.prepare(this.#machine.devices.hostFiles, signal);
    this.#machine.control.locked(() => this.#cleanPages.makeSaved(this.#stored));
  }

  /** Once tracking is armed: learns what clean pages hold. */
  learn(): void {
    this.#cleanPages.learn();
  }

  /** Everything is stopped: as of this instant. */
  freeze(): void {
    this.changed = this.#cleanPages.makeSaved(this.#stored);
    this.#cleanPages.freeze();
    this.#contents.freeze(openFiles(this.#machine.kernel.memory).map(describeFile));
  }

  references(): Reference[] {
    return this.#cleanPages.references();
  }

  /** Rows for the catalogue; what they say is on the disk. */
  async rows(): Promise<FileRow[]> {
    await this.#contents.sync();
    return this.#contents.rows();
  }

  [Symbol.dispose](): void {
    this.#contents.finish();
  }
}

function describeFile({ path, mode, device, number, size, modified }: OpenFile): Omit<FileRow, "position" | "hash" | "except"> {
  return { path, mode, device, inode: number, size: BigInt(size), mtime: modified };
}
