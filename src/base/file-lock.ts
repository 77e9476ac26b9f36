/**
 * A lock on a file of the host that ends with its holder, however that ends. It is the lock that SQLite takes on a database, here
 * one without contents, hidden beside the file (design/decisions/007-locks-that-end-with-their-holder.md).
 */
import { chmodSync, closeSync, lstatSync, openSync, realpathSync, statSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import Database from "better-sqlite3";

export class FileLock {
  /** The file, by the name that all links lead to. */
  readonly path: string;
  readonly #database: Database.Database;

  private constructor(path: string, database: Database.Database) {
    this.path = path;
    this.#database = database;
  }

  /**
   * Takes the lock of a file that is there.
   *
   * @returns undefined if another holds it, of this process or of another
   * @throws what the host says if there can be no lock beside it
   */
  static take(path: string): FileLock | undefined {
    const file = realpathSync(path);
    const lock = join(dirname(file), `.${basename(file)}.lock`);
    createLike(lock, file);
    // A link would have another file opened and locked, which nobody named.
    if (!lstatSync(lock).isFile()) throw Object.assign(new Error(`${lock} is not a regular file; remove it`), { code: "EINVAL" });
    const database = new Database(lock, { timeout: 0, fileMustExist: true });
    try {
      database.exec("BEGIN EXCLUSIVE");
      return new FileLock(file, database);
    } catch (error) {
      database.close();
      if ((error as { code?: string }).code?.startsWith("SQLITE_BUSY") === true) return undefined;
      throw error;
    }
  }

  /** The file of the lock stays: removing it would separate processes that have it open from those that open it next. */
  release(): void {
    this.#database.close();
  }
}

/** Every user who may write to the file may lock it. */
function createLike(lock: string, file: string): void {
  try {
    closeSync(openSync(lock, "wx"));
  } catch (error) {
    // One that is there is not opened here: closing it would end the locks that this process has on it.
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return;
    throw error;
  }
  chmodSync(lock, statSync(file).mode & 0o666);
}
