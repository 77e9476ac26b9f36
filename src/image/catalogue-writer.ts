/**
 * Writes a catalogue: one file when it is finished, no journal beside it, everything in one transaction. What makes it safe is
 * not SQLite's journal but the image's header, which carries its checksum and is written after it. One that is to be encrypted is made in
 * memory: nothing that can be read gets to the disk, not even of a save that dies.
 */
import type { KeyObject } from "node:crypto";
import { closeSync, openSync } from "node:fs";
import { open } from "node:fs/promises";
import Database from "better-sqlite3";
import { fromSystemError } from "../base/errors.js";
import type { CatalogueContents, MountRow } from "./catalogue-rows.js";
import { APPLICATION_ID, SCHEMA } from "./catalogue-schema.js";
import { hashFile } from "./checksum.js";
import { KIND_CHUNK, KIND_FILL, KIND_PARENT, KIND_REFERENCE } from "./extents.js";
import { FORMAT_VERSION, type SealedCatalogue } from "./format.js";
import { sealedHeadBytes, writeSealed } from "./sealed-file.js";
import { fromSqlite, openDatabase } from "./sqlite-errors.js";

export class CatalogueWriter {
  readonly path: string;
  readonly #database: Database.Database;
  readonly #key: KeyObject | undefined;
  #headBytes = 0;

  private constructor(path: string, key: KeyObject | undefined) {
    this.path = path;
    this.#key = key;
    this.#database = openDatabase(key === undefined ? path : ":memory:", {});
  }

  /**
   * Creates an empty catalogue at `path`.
   *
   * @param key - encrypts it
   * @throws HIB_DEPENDENCY if better-sqlite3 was not built, HIB_NO_SPACE, HIB_IO
   */
  static create(path: string, key?: KeyObject): CatalogueWriter {
    try {
      closeSync(openSync(path, "wx", 0o600)); // names, fills and registers are in it; SQLite would let others read them
    } catch (error) {
      throw fromSystemError(error, `creating ${path}`);
    }
    const writer = new CatalogueWriter(path, key);
    writer.#attempt(() => {
      // Nobody else reads it yet and a crash throws it away, so neither a journal nor SQLite's own syncs are needed.
      for (const pragma of ["journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE", "cache_size = -2000"])
        writer.#database.pragma(pragma);
      writer.#database.pragma(`application_id = ${APPLICATION_ID}`);
      writer.#database.pragma(`user_version = ${FORMAT_VERSION}`);
      writer.#database.exec(SCHEMA);
    });
    return writer;
  }

  /**
   * Writes everything, in one transaction; blocks this thread at 1 to 2 million rows a second. Closes the file if it
   * fails. What the iterables throw comes out as it is.
   *
   * @throws HIB_NO_SPACE, HIB_IO, HIB_INTERNAL if two rows contradict each other
   */
  write(contents: CatalogueContents): void {
    const { meta, regions, chunks, extents, references, processes, mappings, objects, blocks, files, mounts } = contents;
    const database = this.#database;
    const insert = (values: string): Database.Statement<unknown[]> => database.prepare(`INSERT INTO ${values}`);
    this.#attempt(() => {
      database.exec("BEGIN");
      const metaRow = insert("meta VALUES (?, ?)");
      for (const [key, value] of Object.entries(meta)) metaRow.run(key, JSON.stringify(value));

      const regionRow = insert("region VALUES (?, ?)");
      for (const r of regions) regionRow.run(r.pfn, r.frames);

      const chunkRow = insert("chunk VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)");
      for (const c of chunks) {
        const hash = BigInt.asIntN(64, c.hash);
        chunkRow.run(c.id, c.offset, c.stored, c.payload, c.frames, c.codec, hash, c.pieces, c.digest);
      }

      const placed = insert(`extent (pfn, frames, kind, chunk, first) VALUES (?, ?, ${KIND_CHUNK}, ?, ?)`);
      const zero = insert(`extent (pfn, frames, kind, fill) VALUES (?, ?, ${KIND_FILL}, 0)`);
      const filled = insert(`extent (pfn, frames, kind, fill) VALUES (?, ?, ${KIND_FILL}, ?)`);
      const kept = insert(`extent (pfn, frames, kind) VALUES (?, ?, ${KIND_PARENT})`);
      for (const e of extents) {
        if (e.chunk === "file") continue;
        else if (e.chunk === "parent") kept.run(e.pfn, e.frames);
        else if (e.chunk !== null) placed.run(e.pfn, e.frames, e.chunk, e.first);
        else if (e.fill === 0n)
          zero.run(e.pfn, e.frames); // nearly all of them
        else filled.run(e.pfn, e.frames, BigInt.asIntN(64, e.fill));
      }

      const referred = insert(`extent (pfn, frames, kind) VALUES (?, ?, ${KIND_REFERENCE})`);
      const referenceRow = insert("reference VALUES (?, ?, ?, ?, ?)");
      for (const r of references) {
        referred.run(r.pfn, r.frames);
        referenceRow.run(r.pfn, r.frames, r.path, r.page, Buffer.from(r.hashes.slice().buffer));
      }

      const processRow = insert("process VALUES (?, ?, ?, ?, ?, ?)");
      for (const p of processes) processRow.run(p.pid, p.slot, p.name, p.state, p.steps, JSON.stringify(p.detail ?? null));

      const blockRow = insert("blocks VALUES (?, ?, ?, ?, ?)");
      for (const b of blocks) blockRow.run(b.kind, b.owner, b.order, b.blocks, b.frames);

      const mountRow = insert("mount VALUES (?, ?, ?)");
      for (const m of mounts) mountRow.run(m.path, m.host, m.readOnly ? 1 : 0);

      const fileRow = insert("file VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)");
      for (const f of files) {
        const words = [f.device, f.inode, f.size, f.mtime].map((word) => BigInt.asIntN(64, word));
        const hash = f.hash === null ? null : BigInt.asIntN(64, f.hash);
        const mount = mountOf(f.path, mounts);
        const name = mount === undefined ? null : f.path.slice(mount.host.length).replace(/^\/+/, "");
        fileRow.run(f.path, f.mode, ...words, f.position, hash, JSON.stringify(f.except), mount?.path ?? null, name);
      }

      // All but these is the head; SQLite only adds pages at the end, and goes on changing the roots of these two.
      this.#headBytes =
        Number(database.pragma("page_count", { simple: true })) * Number(database.pragma("page_size", { simple: true }));
      const objectRow = insert("object VALUES (?, ?, ?, ?)");
      for (const o of objects) objectRow.run(o.object, o.page, o.pfn, o.pages);

      const mappingRow = insert("mapping VALUES (?, ?, ?, ?, ?, ?, ?)");
      for (const m of mappings) mappingRow.run(m.pid, m.vaddr, m.order, m.pfn, m.pages, m.flags, m.blobOffset);
      database.exec("COMMIT");
    });
  }

  /**
   * Closes the file and waits until it is on the disk.
   *
   * @returns what the image's header says about it
   * @throws HIB_NO_SPACE, HIB_IO
   */
  async close({ digest = "none" }: { digest?: "none" | "sha256" } = {}): Promise<SealedCatalogue> {
    if (this.#key === undefined) this.#attempt(() => this.#database.close());
    else await this.#encrypt(this.#key);
    try {
      const file = await open(this.path, "r+");
      try {
        await file.sync();
      } finally {
        await file.close();
      }
    } catch (error) {
      throw fromSystemError(error, `syncing ${this.path}`);
    }
    const found = await hashFile(this.path, { head: this.#headBytes, digest });
    return {
      catalogueBytes: found.bytes,
      catalogueHash: found.hash,
      catalogueHeadBytes: this.#headBytes,
      catalogueHeadHash: found.headHash,
      catalogueDigest: found.digest,
    };
  }

  /** Writes what is in memory; then memory has nothing of it any more that can be read. */
  async #encrypt(key: KeyObject): Promise<void> {
    let bytes: Buffer = Buffer.alloc(0);
    this.#attempt(() => (bytes = this.#database.serialize()));
    this.#database.close();
    this.#headBytes = sealedHeadBytes(this.#headBytes, bytes.length);
    await writeSealed(this.path, bytes, key);
  }

  #attempt(operation: () => void): void {
    try {
      operation();
    } catch (error) {
      this.#database.close();
      if (!(error instanceof Database.SqliteError)) throw error;
      throw fromSqlite(error, `writing ${this.path}`, "HIB_INTERNAL");
    }
  }
}

/** A file's mount: the longest of those that its path is below. */
function mountOf(path: string, mounts: readonly MountRow[]): MountRow | undefined {
  let found: MountRow | undefined;
  for (const mount of mounts) {
    const below = path.startsWith(mount.host.endsWith("/") ? mount.host : `${mount.host}/`);
    if (below && mount.host.length >= (found?.host.length ?? 0)) found = mount;
  }
  return found;
}
