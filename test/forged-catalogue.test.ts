/** Catalogues from somebody else, whose every checksum is right: what is no catalogue's is refused in one line, before it is read. */
import { execFile } from "node:child_process";
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import { save } from "../src/hibernate.js";
import { resume } from "../src/resume.js";
import { verifyImage } from "../src/cli/verify.js";
import { openImage } from "../src/image/directory.js";
import { CATALOGUE_NAME } from "../src/image/format.js";
import { type Alterations, Forgery } from "./forger.js";
import { verify } from "./fixtures/forged.js";
import { bootMachine, MIB, scratch, until } from "./support.js";

async function makeForgery(t: ExecutionContext): Promise<{ directory: string; forgery: Forgery }> {
  const directory = scratch(t);
  const machine = await bootMachine(t, { ramBytes: 16 * MIB });
  machine.spawn("idle:ms=5,pages=16");
  await until(() => machine.processes()[0]!.steps > 2, "it runs");
  await save(machine, join(directory, "image"));
  return { directory, forgery: await Forgery.of(join(directory, "image")) };
}

const instead = (name: string, what: string): string => `DROP TABLE ${name}; CREATE VIEW ${name} AS ${what}`;
const LARGE = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)";

/** What is forged, by the code and what is said. */
const CASES: Record<string, readonly [Alterations, string, RegExp]> = {
  "a view without an end": [
    { catalogue: instead("meta", `${LARGE} SELECT 'k' AS key, '1' AS value FROM n`) },
    "HIB_CORRUPT",
    /other tables/,
  ],
  "a view of large values": [
    {
      catalogue: instead(
        "process",
        `SELECT 1 AS pid, 0 AS slot, hex(zeroblob(50000000)) AS name, '' AS state, 0.0 AS steps, '{}' AS detail`,
      ),
    },
    "HIB_CORRUPT",
    /other tables/,
  ],
  "a trigger": [{ catalogue: "CREATE TRIGGER x AFTER INSERT ON meta BEGIN SELECT 1; END" }, "HIB_CORRUPT", /other tables/],
  "a virtual table": [{ catalogue: "CREATE VIRTUAL TABLE x USING fts5(a)" }, "HIB_CORRUPT", /other tables/],
  "another table": [{ catalogue: "CREATE TABLE x (a)" }, "HIB_CORRUPT", /other tables/],
  "an index": [{ catalogue: "CREATE INDEX x ON extent (kind)" }, "HIB_CORRUPT", /other tables/],
  "one with a log": [{ catalogue: "PRAGMA journal_mode = WAL" }, "HIB_CORRUPT", /a log \(WAL\)/],
  "another column": [{ catalogue: "ALTER TABLE extent ADD COLUMN x" }, "HIB_CORRUPT", /other tables/],
  "time NaN": [{ header: { time: Number.NaN } }, "HIB_CORRUPT", /header/],
  "time infinite": [{ header: { time: Infinity } }, "HIB_CORRUPT", /header/],
  "time too late": [{ header: { time: 8.65e15 } }, "HIB_CORRUPT", /header/],
  "2^32 - 1 frames": [{ header: { ramFrames: 2 ** 32 - 1 } }, "HIB_RAM_TOO_LARGE", /frames of RAM/],
  "other frames than its region": [{ header: { ramFrames: 2 ** 20 } }, "HIB_CORRUPT", /frames of RAM/],
  "hash NULL": [{ catalogue: "UPDATE chunk SET hash = NULL" }, "ok", /^$/], // the table itself refuses it: nothing is forged
  "hash a text": [{ catalogue: "UPDATE chunk SET hash = 'x'" }, "HIB_CORRUPT", /chunk are out of range/],
  "hashes of another length": [
    { catalogue: "INSERT INTO reference VALUES (1, 2, '/x', 0, zeroblob(8))" },
    "HIB_CORRUPT",
    /reference are out of range/,
  ],
  "a negative frame": [
    { catalogue: "INSERT INTO reference VALUES (-1, 1, '/x', 0, zeroblob(8))" },
    "HIB_CORRUPT",
    /reference are out/,
  ],
  "a huge page": [
    { catalogue: "INSERT INTO reference VALUES (1, 1, '/x', 1 << 62, zeroblob(8))" },
    "HIB_CORRUPT",
    /reference are out/,
  ],
  "a path that is a BLOB": [
    { catalogue: "INSERT INTO reference VALUES (1, 1, x'2f', 0, zeroblob(8))" },
    "HIB_CORRUPT",
    /reference are out/,
  ],
  "a list of a file's blocks that is none": [
    { catalogue: "INSERT INTO file VALUES ('/x', 'r', 1, 1, 1, 1, 0, NULL, 'null', NULL, NULL, NULL)" },
    "HIB_CORRUPT",
    /skipped blocks/,
  ],
  "a page of an object beyond RAM": [{ catalogue: "INSERT INTO object VALUES (64, 0, 4095, 2)" }, "HIB_CORRUPT", /beyond RAM/],
  "an extent of one word without a word": [{ catalogue: "UPDATE extent SET kind = 1" }, "HIB_CORRUPT", /of two kinds/],
  "an extent's frame 1.5": [{ catalogue: "UPDATE extent SET frames = 1.5" }, "HIB_CORRUPT", /extent are out of range/],
  "a value that is no JSON": [{ catalogue: "UPDATE meta SET value = '{'" }, "HIB_CORRUPT", /not JSON/],
  "a value of 100 MB": [
    { catalogue: "UPDATE meta SET value = hex(zeroblob(50000000)) WHERE key = 'report'" },
    "HIB_CORRUPT",
    /meta are out of range/,
  ],
};

test("whatever is no catalogue's is refused by a code and one line", async (t) => {
  const { directory, forgery } = await makeForgery(t);
  const path = join(directory, "forged");
  for (const [what, [alterations, code, says]] of Object.entries(CASES)) {
    await forgery.write(path, alterations);
    const outcome = await verify(path, directory);
    t.is(outcome.code, code, `${what}: ${outcome.message}`);
    t.regex(outcome.message, says, what);
  }
});

test("a log beside a catalogue is not read", async (t) => {
  const { directory } = await makeForgery(t);
  const path = join(directory, "image");
  for (const suffix of ["-wal", "-journal"]) {
    writeFileSync(join(path, CATALOGUE_NAME + suffix), "");
    const { code, message } = await verify(path, directory);
    t.is(code, "HIB_CORRUPT");
    t.regex(message, /is no part of an image; remove it/);
    rmSync(join(path, CATALOGUE_NAME + suffix));
  }
  t.is((await verify(path, directory)).code, "ok");
});

test("one of each kind, by every command that looks at an image", async (t) => {
  const { directory, forgery } = await makeForgery(t);
  const path = join(directory, "forged");
  for (const what of ["a view without an end", "time NaN", "hashes of another length", "a value of 100 MB"]) {
    const [alterations, code] = CASES[what]!;
    await forgery.write(path, alterations);
    for (const command of ["verify", "inspect", "export"]) {
      const { exit, stderr } = await hib(command, path, ...(command === "export" ? [join(directory, "object")] : []));
      t.not(exit, 0);
      t.regex(stderr, new RegExp(`^hib: ${code}: [^\\n]*\\n$`), `${command}: ${what}`);
    }
    t.true((await hib("images", path)).stdout.includes(code), `images: ${what}`);
  }
});

test("numbers and types that are for people only: odd ones are shown, or left out", async (t) => {
  const { directory, forgery } = await makeForgery(t);
  const path = join(directory, "forged");
  const escapes = "char(27) || '[31m' || char(10) || char(7)";
  for (const sql of [
    ...["1e9", "-1", "1.5", "null", "[]", '"2"'].map((value) => `UPDATE meta SET value = '${value}' WHERE key = 'vcpus'`),
    ...["null", "7", "[]", '{"text":7,"failure":{}}', '{"text":null}'].map((detail) => `UPDATE process SET detail = '${detail}'`),
    `UPDATE process SET name = ${escapes}, state = ${escapes}, detail = json_object('failure', ${escapes})`,
    `INSERT INTO file VALUES (${escapes}, 'r', 1, 1, 1, 1, 0, NULL, '[]', NULL, NULL, NULL)`,
    `UPDATE blocks SET kind = ${escapes}`,
  ]) {
    await forgery.write(path, { catalogue: sql });
    const { exit, stdout, stderr } = await hib("inspect", path);
    t.is(exit, 0, `${sql}: ${stderr}`);
    t.notRegex(stdout.replaceAll("\n", ""), /\p{Cc}/u, sql);
    t.notRegex(stderr, / {4}at /, sql);
  }
});

test("what a catalogue says of its machine is compared with the machine's memory", async (t) => {
  const { directory, forgery } = await makeForgery(t);
  const path = join(directory, "forged");
  const progress = { update: () => undefined, stop: () => undefined };
  const verified = async (alterations: Alterations) => {
    await forgery.write(path, alterations);
    const image = await openImage(path);
    const result = await verifyImage(image, { replay: false, progress });
    image.close();
    return result;
  };
  t.like(await verified({}), { ok: true, catalogue: [] });
  const table = (name: string, what: RegExp) => [new RegExp(`^the catalogue's table ${name} is not .*${what.source}$`)] as const;
  const cases: [sql: string, says: readonly RegExp[]][] = [
    ["UPDATE process SET pid = 77", table("process", /pid of row 1 is 77, and should be 1/)],
    ["UPDATE process SET name = 'init'", table("process", /name of row 1 is init, and should be idle/)],
    ["UPDATE process SET state = 'zombie'", table("process", /state of row 1 is zombie, and should be \w+/)],
    ["UPDATE process SET steps = steps + 1", table("process", /steps of row 1 is .*/)],
    ["UPDATE process SET slot = 3", table("process", /slot of row 1 is 3, and should be 0/)],
    ["UPDATE process SET detail = json_set(detail, '$.text', 'x')", table("process", /detail of row 1 differs/)],
    ["UPDATE process SET detail = 'null'", table("process", /detail of row 1 differs/)],
    ["DELETE FROM process", table("process", /it ends after 0 rows/)],
    ["INSERT INTO mount VALUES ('/x', '/y', 0)", table("mount", /it has a row 1, and should have 0/)],
    ["UPDATE mapping SET flags = flags + 1", table("mapping", /flags of row 1 is .*/)],
    ["INSERT INTO object VALUES (64, 0, 1, 1)", table("object", /it has a row 1, and should have 0/)],
    ["UPDATE blocks SET frames = frames + 1", table("blocks", /frames of row 1 is .*/)],
    ...["-1", "2.5", "17", '"2"', "null"].map(
      (value) =>
        [
          `UPDATE meta SET value = '${value}' WHERE key = 'vcpus'`,
          [/^the catalogue says that the machine had no number of vCPUs that there can be$/],
        ] as [string, readonly RegExp[]],
    ),
  ];
  for (const [sql, says] of cases) {
    const { ok, catalogue } = await verified({ catalogue: sql });
    t.false(ok, sql);
    t.is(catalogue.length, says.length, `${sql}: ${catalogue}`);
    for (const [i, pattern] of says.entries()) t.regex(catalogue[i]!, pattern, sql);
  }
  const { exit, stderr } = await hib("resume", path);
  t.is(exit, 1);
  t.regex(stderr, /^hib: HIB_CORRUPT: [^\n]*it says that its machine had null vCPUs: the image is damaged[^\n]*\n$/);
});

test("a machine of another version is said not to have been looked at", async (t) => {
  const { directory, forgery } = await makeForgery(t);
  const path = join(directory, "forged");
  await forgery.write(path, { header: { machineVersion: 99 } });
  const { exit, stdout } = await hib("verify", path);
  t.is(exit, 0);
  t.regex(stdout, /machine +not looked at: it is of another version/);
  t.notRegex(stdout, /allocator|page tables/);
});

test("frames that its machine uses and that are not in it: no machine goes on with what was there before", async (t) => {
  const { directory, forgery } = await makeForgery(t);
  const path = join(directory, "forged");
  const machine = await bootMachine(t, { ramBytes: 16 * MIB });
  const all = forgery.savedFrames;
  const without = "DELETE FROM meta WHERE key = 'sameFilledFrames'; UPDATE mapping SET blob_offset = NULL; DELETE FROM mapping";
  for (const [what, sql, frames] of [
    ["none at all", "DELETE FROM extent", 0],
    ["all but the kernel's page", "DELETE FROM extent WHERE pfn = 0", all - 1],
    ["all but the last", "DELETE FROM extent WHERE pfn = (SELECT max(pfn) FROM extent)", all - 1],
  ] as const) {
    await forgery.write(path, { catalogue: `${without}; ${sql}`, header: { frames } });
    const { code, message } = await verify(path, directory);
    t.is(code, "HIB_INCONSISTENT", `${what}: ${message}`);
    await t.throwsAsync(resume(machine, path, { keepImage: true }), { code: "HIB_INCONSISTENT" }, what);
  }
  machine.check();
});

const LARGEST = (4016 * MIB) / 4096;
/** So many numbers from 0 on. */
const numbers = (count: number): string => `WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n LIMIT ${count})`;
const withRam = (sql: string): string =>
  `UPDATE region SET frames = ${LARGEST}; DELETE FROM meta WHERE key = 'sameFilledFrames'; ${sql}`;
/** JSON that is much larger once it is parsed. */
const bomb = (bytes: number): string => `'[' || replace(hex(zeroblob(${Math.floor(bytes / 6)})), '00', '{},') || '0]'`;

/** What is large about an image, and what is said of it. Header: frames besides those that it had, by the extents that are added. */
const LARGE_ONES: Record<string, { sql: string; added?: number; code: string }> = {
  "4,016 MiB of RAM": { sql: withRam(""), code: "HIB_INCONSISTENT" },
  "3.8 GiB of one word": {
    sql: withRam("INSERT INTO extent (pfn, frames, kind, fill) VALUES (5000, 996000, 1, 7)"),
    added: 996_000,
    code: "HIB_INCONSISTENT",
  },
  "a million extents": {
    sql: withRam(`${numbers(1_000_000)} INSERT INTO extent (pfn, frames, kind, fill) SELECT 5000 + i, 1, 1, i FROM n`),
    added: 1_000_000,
    code: "HIB_INCONSISTENT",
  },
  "a million references": {
    sql: withRam(`${numbers(1_000_000)} INSERT INTO extent (pfn, frames, kind) SELECT 5000 + i, 1, 2 FROM n;
      ${numbers(1_000_000)} INSERT INTO reference SELECT 5000 + i, 1, '/nowhere/' || i, 0, zeroblob(8) FROM n`),
    added: 1_000_000,
    code: "HIB_CORRUPT", // in more files than a machine can have
  },
  "values that unfold": {
    sql: `${numbers(12)} INSERT INTO meta SELECT 'k' || i, ${bomb(16_000_000)} FROM n`,
    code: "HIB_CORRUPT",
  },
  "details that unfold": {
    sql: `${numbers(12)} INSERT INTO process SELECT 100 + i, 100 + i, 'a', 'ready', 0.0, ${bomb(16_000_000)} FROM n`,
    code: "HIB_CORRUPT",
  },
};

test("whatever is large about an image: it is verified in less than 1 GiB", async (t) => {
  t.timeout(600_000);
  const { directory, forgery } = await makeForgery(t);
  const path = join(directory, "forged");
  const script = fileURLToPath(new URL("fixtures/measured.js", import.meta.url));
  for (const [what, { sql, added = 0, code }] of Object.entries(LARGE_ONES)) {
    const frames = forgery.savedFrames + added;
    await forgery.write(path, {
      catalogue: sql,
      header: sql.startsWith("UPDATE region") ? { ramFrames: LARGEST, frames } : { frames },
    });
    const began = Date.now();
    const { stdout, stderr } = await new Promise<{ stdout: string; stderr: string }>((resolve) =>
      execFile(process.execPath, [script, path, directory], (_, stdout, stderr) => resolve({ stdout, stderr })),
    );
    const found = JSON.parse(stdout || "{}") as { code?: string; mib?: number };
    t.log(`${what}: ${found.code}, ${Math.round(found.mib ?? 0)} MiB, ${Date.now() - began} ms`);
    t.is(found.code, code, `${what}: ${stderr}`);
    t.true(found.mib! < 1024, `${what}: ${found.mib} MiB`);
  }
});

function hib(...args: string[]): Promise<{ stdout: string; stderr: string; exit: number }> {
  const script = fileURLToPath(new URL("../src/cli/hib.js", import.meta.url));
  return new Promise((resolve) =>
    execFile(process.execPath, [script, ...args], (error, stdout, stderr) =>
      resolve({ stdout, stderr, exit: Number(error?.code ?? 0) }),
    ),
  );
}
