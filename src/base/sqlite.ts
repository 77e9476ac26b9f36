/** SQLite, before it is needed. */
import Database from "better-sqlite3";

/**
 * Loads SQLite itself, which better-sqlite3 leaves to the first use. A thread that lives long does so when it starts: Node
 * remembers what it did not find, so one moment without descriptors at the first use would spoil all later ones.
 */
export function loadDatabase(): void {
  try {
    new Database(":memory:").close();
  } catch {
    // Whoever needs it is told.
  }
}
