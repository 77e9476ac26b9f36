/** What a resume takes of the host's memory besides the frames that it loads: little, whatever the image says, and whoever made it. */
import { execFile } from "node:child_process";
import { truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import test from "ava";
import { FRAME_BYTES } from "../src/base/layout.js";
import { checksum, loadChecksum } from "../src/image/checksum.js";
import { FORMAT_VERSION, MACHINE_VERSION } from "../src/image/format.js";
import { Forgery } from "./forger.js";
import { MIB, scratch } from "./support.js";

const KEPT = fileURLToPath(
  new URL(`../../test/fixtures/images/format-${FORMAT_VERSION}-machine-${MACHINE_VERSION}`, import.meta.url),
);
/** Where the frames begin that a forged image has more. */
const FIRST = 60_000;
const numbers = (count: number): string => `WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n LIMIT ${count})`;

interface Case {
  /** SQL; `file` is a file of zeros, `hash` the checksum of a page of them. */
  sql: (file: string, hash: string) => string;
  frames: number;
  /** At most, beyond the frames. */
  mib: number;
}

const CASES: Record<string, Case> = {
  "one reference to 256 MiB": {
    sql: (file, hash) => `INSERT INTO extent (pfn, frames, kind) VALUES (${FIRST}, 65536, 2);
      INSERT INTO reference VALUES (${FIRST}, 65536, '${file}', 0, unhex(replace(hex(zeroblob(65536)), '00', '${hash}')))`,
    frames: 65_536,
    mib: 160,
  },
  "100,000 references": {
    sql: (file, hash) => `${numbers(100_000)} INSERT INTO extent (pfn, frames, kind) SELECT ${FIRST} + i, 1, 2 FROM n;
      ${numbers(100_000)} INSERT INTO reference SELECT ${FIRST} + i, 1, '${file}', i % 100, x'${hash}' FROM n`,
    frames: 100_000,
    mib: 160,
  },
  "100,000 extents of a word each": {
    sql: () => `${numbers(100_000)} INSERT INTO extent (pfn, frames, kind, fill) SELECT ${FIRST} + i, 1, 1, i FROM n`,
    frames: 100_000,
    mib: 160,
  },
};

async function measure(path: string, directory: string, frames: number): Promise<{ code: string; mib: number }> {
  const script = fileURLToPath(new URL("fixtures/resumed.js", import.meta.url));
  const { stdout } = await promisify(execFile)(process.execPath, [script, path, directory, String(frames * FRAME_BYTES)]);
  return JSON.parse(stdout) as { code: string; mib: number };
}

for (const [what, { sql, frames, mib }] of Object.entries(CASES)) {
  test.serial(`${what}: a resume takes less than ${mib} MiB besides`, async (t) => {
    await loadChecksum();
    const directory = scratch(t);
    const file = join(directory, "zeros");
    writeFileSync(file, "");
    truncateSync(file, 256 * MIB);
    const hash = Buffer.from(BigUint64Array.of(checksum(new Uint8Array(FRAME_BYTES))).buffer).toString("hex");
    const forgery = await Forgery.of(KEPT);
    const ramFrames = FIRST + frames;
    const path = join(directory, "forged");
    await forgery.write(path, {
      catalogue: `UPDATE region SET frames = ${ramFrames}; DELETE FROM meta WHERE key = 'sameFilledFrames'; ${sql(file, hash)}`,
      header: { ramFrames, frames: forgery.savedFrames + frames },
    });
    const found = await measure(path, directory, ramFrames);
    t.log(found);
    t.is(found.code, "HIB_INCONSISTENT", "all of it was loaded, and then its machine is none");
    t.true(found.mib < mib, `${found.mib} MiB`);
  });
}

test.serial("a good image: a resume takes less than 100 MiB besides", async (t) => {
  const forgery = await Forgery.of(KEPT);
  const found = await measure(KEPT, scratch(t), forgery.frames);
  t.log(found);
  t.is(found.code, "ok");
  t.true(found.mib < 100, `${found.mib} MiB`);
});
