/** Catalogues with many rows: others have their turn while they are read, whoever cancels is heard, and what cannot be is not read. */
import { copyFileSync, mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { Readable } from "node:stream";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import Database from "better-sqlite3";
import { Catalogue } from "../src/image/catalogue.js";
import { CatalogueWriter } from "../src/image/catalogue-writer.js";
import { openImage } from "../src/image/directory.js";
import { CATALOGUE_NAME, FORMAT_VERSION, MACHINE_VERSION } from "../src/image/format.js";
import { exportImage, importImage } from "../src/image/stream.js";
import { verifyChunks } from "../src/image/verify.js";
import { Forgery } from "./forger.js";
import { scratch } from "./support.js";

const KEPT = fileURLToPath(
  new URL(`../../test/fixtures/images/format-${FORMAT_VERSION}-machine-${MACHINE_VERSION}`, import.meta.url),
);
const ROWS = 100_000;
const FIRST = 60_000;
const NUMBERS = `WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n LIMIT ${ROWS})`;
/** Turns that others have at least while so many rows are read. */
const TURNS = 5;

/** The kept image with more rows, and as much more RAM. */
async function withRows(t: ExecutionContext, sql: string, added = 0): Promise<{ directory: string; path: string }> {
  const directory = scratch(t);
  const path = join(directory, "image");
  const forgery = await Forgery.of(KEPT);
  const ramFrames = added > 0 ? FIRST + ROWS : forgery.frames;
  const ram = `UPDATE region SET frames = ${ramFrames}; DELETE FROM meta WHERE key = 'sameFilledFrames';`;
  await forgery.write(path, { catalogue: `${ram} ${sql}`, header: { ramFrames, frames: forgery.savedFrames + added } });
  return { directory, path };
}

const EXTENTS = `${NUMBERS} INSERT INTO extent (pfn, frames, kind, fill) SELECT ${FIRST} + i, 1, 1, i FROM n`;
const MAPPINGS = `${NUMBERS} INSERT INTO mapping SELECT m.* FROM (SELECT * FROM mapping LIMIT 1) m, n`;

const NOTHING = { meta: {}, regions: [], processes: [], mappings: [], objects: [], blocks: [], files: [], mounts: [] };

/** How often others have their turn meanwhile. */
async function turnsDuring(work: () => Promise<unknown>): Promise<number> {
  let turns = 0;
  let over = false;
  const count = (): void => {
    turns++;
    if (!over) setImmediate(count);
  };
  setImmediate(count);
  await work();
  over = true;
  return turns;
}

/** Without what it comes to: a test that fails would print all of it. */
const only = async (work: Promise<unknown>): Promise<void> => void (await work);
const cancelled = (): AbortSignal => AbortSignal.abort();

for (const table of ["chunks", "extents", "references"] as const) {
  test(`reading many ${table}: others have their turn, and it is cancelled`, async (t) => {
    const directory = scratch(t);
    const writer = CatalogueWriter.create(join(directory, CATALOGUE_NAME));
    const all = Array.from({ length: ROWS }, (_, i) => i);
    const chunk = { stored: 4096, payload: 4096, frames: 1, codec: 0, hash: 1n, pieces: Buffer.alloc(8), digest: null };
    writer.write({
      ...NOTHING,
      chunks: table === "chunks" ? all.map((id) => ({ ...chunk, id, offset: (id + 1) * 4096 })) : [],
      extents: table === "extents" ? all.map((pfn) => ({ pfn, frames: 1, chunk: null, fill: BigInt(pfn) })) : [],
      references:
        table === "references"
          ? all.map((pfn) => ({ pfn, frames: 1, path: "/x", page: pfn, hashes: BigUint64Array.of(BigInt(pfn)) }))
          : [],
    });
    await writer.close();
    const catalogue = Catalogue.open(directory);
    t.teardown(() => catalogue.close());
    let length = 0;
    const turns = await turnsDuring(async () => ({ length } = await catalogue[table]()));
    t.is(length, ROWS);
    t.true(turns >= TURNS, `${turns} turns`);
    await t.throwsAsync(only(catalogue[table]({ signal: cancelled() })), { code: "HIB_CANCELLED" });
    await t.throwsAsync(only(catalogue[table]({ most: ROWS - 1 })), { code: "HIB_CORRUPT", message: /header's counts/ });
  });
}

test("an image with many extents: opening, exporting and importing it is cancelled, and an import leaves nothing behind", async (t) => {
  const { directory, path } = await withRows(t, EXTENTS, ROWS);
  await t.throwsAsync(only(openImage(path, { signal: cancelled() })), { code: "HIB_CANCELLED" });
  await t.throwsAsync(exportImage(path, { signal: cancelled() }).next(), { code: "HIB_CANCELLED" });
  const pieces: Uint8Array[] = [];
  for await (const piece of exportImage(path)) pieces.push(piece);
  const into = join(directory, "into");
  mkdirSync(into);
  const abort = new AbortController();
  // All has come in, and only the catalogue's tables are left to be read.
  const onProgress = (done: number, total: number): void => void (done === total && setImmediate(() => abort.abort()));
  await t.throwsAsync(importImage(Readable.from(pieces), join(into, "image"), { signal: abort.signal, onProgress }), {
    code: "HIB_CANCELLED",
  });
  t.deepEqual(readdirSync(into), []);
});

test("an image with many mappings: verifying it is cancelled, and gives others their turn", async (t) => {
  const { path } = await withRows(t, MAPPINGS);
  const image = await openImage(path);
  t.teardown(() => image.close());
  t.true((await turnsDuring(() => verifyChunks(image))) >= TURNS);
  await t.throwsAsync(verifyChunks(image, undefined, cancelled()), { code: "HIB_CANCELLED" });
});

test("frames in more files than a machine can have are refused before a file is looked at", async (t) => {
  const directory = scratch(t);
  const writer = CatalogueWriter.create(join(directory, CATALOGUE_NAME));
  const hashes = new BigUint64Array(1);
  writer.write({
    ...NOTHING,
    chunks: [],
    extents: [],
    references: (function* () {
      for (let pfn = 0; pfn <= 2 ** 18; pfn++) yield { pfn, frames: 1, path: `/${pfn}`, page: 0, hashes };
    })(),
  });
  await writer.close();
  const catalogue = Catalogue.open(directory);
  t.teardown(() => catalogue.close());
  await t.throwsAsync(only(catalogue.references()), { code: "HIB_CORRUPT", message: /more files than a machine/ });
});

test("a value that is nested deeply is refused, and not followed into the depth", (t) => {
  const directory = scratch(t);
  const nested = (levels: number, text = ""): string => `${'{"a":['.repeat(levels / 2)}"${text}"${"]}".repeat(levels / 2)}`;
  const withDetail = (name: string, json: string): Catalogue => {
    mkdirSync(join(directory, name));
    copyFileSync(join(KEPT, CATALOGUE_NAME), join(directory, name, CATALOGUE_NAME));
    const database = new Database(join(directory, name, CATALOGUE_NAME));
    database.prepare("UPDATE process SET detail = ?").run(json);
    database.close();
    const catalogue = Catalogue.open(join(directory, name));
    t.teardown(() => catalogue.close());
    return catalogue;
  };
  const deep = withDetail("deep", nested(100_000));
  t.throws(() => deep.processes()[0]!.detail, { code: "HIB_CORRUPT", message: /not JSON/ });
  const flat = withDetail("flat", nested(98, '[{\\"[{\\\\['.repeat(100)));
  t.notThrows(() => flat.processes()[0]!.detail, "brackets in a text are no levels");
  const broken = withDetail("broken", "{");
  t.throws(() => broken.processes()[0]!.detail, { code: "HIB_CORRUPT", message: /not JSON/ });
});
