/** SQLite's errors, by what they mean to the user. */
import Database from "better-sqlite3";
import { fromSystemError, HibernaculumError } from "../base/errors.js";

export function openDatabase(path: string, options: Database.Options): Database.Database {
  try {
    return new Database(path, options);
  } catch (error) {
    throw fromSqlite(error, `opening ${path}`, "HIB_IO");
  }
}

/** SQLite's errors, and that of loading it, by what they mean to the user. */
export function fromSqlite(
  error: unknown,
  doing: string,
  otherwise: "HIB_CORRUPT" | "HIB_INTERNAL" | "HIB_IO",
): HibernaculumError {
  if (error instanceof HibernaculumError) return error;
  const { code = "", message } = error as { code?: string; message: string };
  if (code.startsWith("ERR_DLOPEN") || message.startsWith("Could not locate the bindings file")) {
    return new HibernaculumError(
      "HIB_DEPENDENCY",
      "better-sqlite3 has no native binding here: run `npm rebuild better-sqlite3` (needs a C++ toolchain, make and Python)",
      { cause: error },
    );
  }
  if (code === "SQLITE_FULL")
    return fromSystemError(Object.assign(new Error(message, { cause: error }), { code: "ENOSPC" }), doing);
  if (/^SQLITE_(IOERR|CANTOPEN|READONLY|PERM|BUSY)/.test(code)) return fromSystemError(error, doing);
  return new HibernaculumError(otherwise, `${doing}: ${message}`, { cause: error });
}
