/** The host's files under a save (S0.3, S3.6): clean pages that an image refers to, and what the files were at the stop. */
import type { Reference } from "./base/host-file.js";
import { PLANNED_BITMAP, STOP_BITMAP } from "./base/layout.js";
import { type FileRow, FilesOfSave } from "./image/host-files.js";
import type { Machine } from "./machine.js";
import { CleanPages } from "./vm/files/clean-pages.js";
import { type OpenFile, openFiles } from "./vm/files/open-files.js";

export class SaveFiles implements Disposable {
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
  }

  /** Adds the clean pages that are to be stored to the plan. */
  plan(): void {
    this.#machine.control.locked(() => this.#cleanPages.addStored(PLANNED_BITMAP, this.#stored));
  }

  /** Once tracking is armed: learns what clean pages hold. Again: what is new. */
  learn(): void {
    this.#cleanPages.learn();
  }

  /** Before tracking is armed anew. */
  forget(): void {
    this.#cleanPages.forget();
  }

  /**
   * As of the stop: adds the clean pages that are stored to what belongs to the image. The kernel lock has been held since the stop, or
   * everything is stopped still.
   *
   * @returns files that somebody else has changed
   */
  freeze(): string[] {
    const { changed, stored } = this.#cleanPages.addStored(STOP_BITMAP, this.#stored);
    this.#cleanPages.freeze(stored);
    this.#contents.freeze(openFiles(this.#machine.kernel.memory).map(describeFile));
    return changed;
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
