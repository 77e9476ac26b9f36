/**
 * Paths of the host that an image names: nothing is opened that the user has not agreed to, and whoever saved a machine has agreed
 * to what it had.
 */
import { execFile, execFileSync } from "node:child_process";
import { closeSync, linkSync, mkdirSync, readdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import { isWithin, openAllowed, outside, realPath } from "../src/base/allowed-paths.js";
import { save } from "../src/hibernate.js";
import { openImage } from "../src/image/directory.js";
import { exportImage, importImage } from "../src/image/stream.js";
import { verifyChunks } from "../src/image/verify.js";
import { namedPaths } from "../src/named-paths.js";
import { resume } from "../src/resume.js";
import { O_RDONLY } from "../src/vm/files/flags.js";
import { Forgery } from "./forger.js";
import { bootMachine, MIB, scratch } from "./support.js";

const RAM = 16 * MIB;

/** Notes of what images name go where `notes` says, for as long as a test runs: the environment is the process's. */
function useState(t: ExecutionContext, path: string): void {
  const before = process.env["XDG_STATE_HOME"];
  process.env["XDG_STATE_HOME"] = path;
  t.teardown(() => {
    if (before === undefined) delete process.env["XDG_STATE_HOME"];
    else process.env["XDG_STATE_HOME"] = before;
  });
}

/** An image of a machine that has a disk, a mount and clean pages of a file in there, by reference. */
async function makeImage(t: ExecutionContext): Promise<{ directory: string; image: string; disk: string; mount: string }> {
  const directory = realPath(scratch(t));
  useState(t, join(directory, "state"));
  const [image, disk, mount] = ["image", "disk", "mount"].map((name) => join(directory, name)) as [string, string, string];
  mkdirSync(mount);
  writeFileSync(disk, new Uint8Array(MIB));
  const machine = await bootMachine(t, { ramBytes: RAM, disk, mounts: [{ path: "/host", host: mount, readOnly: false }] });
  writeFileSync(join(mount, "held"), new Uint8Array(4096).fill(7));
  const { slot } = machine.spawn("idle:ms=1000");
  const { control, files } = machine.kernel;
  control.locked(() => files.read(slot, files.open(slot, "/host/held", O_RDONLY) as number, 4096));
  await save(machine, image);
  return { directory, image, disk, mount };
}

const notAllowed = (t: ExecutionContext, image: string, options = {}): Promise<unknown> =>
  bootMachine(t, { ramBytes: RAM }).then((machine) =>
    t.throwsAsync(resume(machine, image, { keepImage: true, ...options }), { code: "HIB_NOT_ALLOWED" }),
  );

test.serial("whoever saved a machine need not name what it had; another must, and is told what it is", async (t) => {
  const { directory, image, disk, mount } = await makeImage(t);
  const again = { keepImage: true, acceptChangedFiles: true }; // each machine goes on writing to them
  const first = await bootMachine(t, { ramBytes: RAM });
  await resume(first, image, again);
  await first.powerOff();
  useState(t, join(directory, "another"));
  const machine = await bootMachine(t, { ramBytes: RAM });
  const refused = await t.throwsAsync(resume(machine, image, { keepImage: true }), { code: "HIB_NOT_ALLOWED" });
  for (const what of [`disk ${disk}`, `mount ${mount}`, "--allow"]) t.true(refused.message.includes(what), what);
  t.false(refused.message.includes("\n"));
  await notAllowed(t, image, { allow: [mount] });
  await notAllowed(t, image, { allow: [disk] });
  await notAllowed(t, image, { allow: [mount.slice(0, -1), disk], disk: join(directory, "image", "blob") });
  await resume(machine, image, { ...again, allow: [mount], disk });
  await machine.powerOff();
  await resume(await bootMachine(t, { ramBytes: RAM }), image, { ...again, allow: [directory] });
});

test.serial("a machine's own disk and mounts are agreed to by booting it", async (t) => {
  const { directory, image, disk, mount } = await makeImage(t);
  useState(t, join(directory, "another"));
  const mounts = [{ path: "/elsewhere", host: mount, readOnly: true }];
  await resume(await bootMachine(t, { ramBytes: RAM, disk, mounts }), image, { keepImage: true });
  t.pass();
});

test.serial("an image that was exported and imported is the same; one that borrows its id is not", async (t) => {
  const { directory, image } = await makeImage(t);
  const copy = join(directory, "copy");
  await importImage(exportImage(image), copy);
  t.true((await withImage(image, (one) => one.allowed)).length > 0);
  t.deepEqual(await withImage(copy, (one) => one.allowed), await withImage(image, (one) => one.allowed));
  const forgery = await Forgery.of(copy);
  const forged = join(directory, "forged");
  await forgery.write(forged);
  t.is((await withImage(forged, ({ header }) => header)).id, (await withImage(image, ({ header }) => header)).id);
  t.deepEqual(await withImage(forged, (one) => one.allowed), []);
  await notAllowed(t, forged);
});

test.serial("what an image was noted with is what may be opened: a link that leads elsewhere by now is not", async (t) => {
  const { directory, image, mount } = await makeImage(t);
  const other = join(directory, "other");
  renameSync(mount, other);
  symlinkSync(other, mount);
  await notAllowed(t, image);
});

test.serial("pages of files elsewhere: verify, and whatever reads memory, refuses them by name", async (t) => {
  const { directory, image, mount } = await makeImage(t);
  const secret = join(directory, "secret");
  writeFileSync(secret, "not for images");
  const forged = join(directory, "forged");
  const forgery = await Forgery.of(image);
  const pfn = forgery.frames - 1; // no extent has it
  const row = `DELETE FROM extent WHERE pfn = ${pfn} OR pfn + frames > ${pfn}; INSERT INTO extent (pfn, frames, kind) VALUES (${pfn}, 1, 2);
    INSERT INTO reference VALUES (${pfn}, 1, '${secret}', 0, zeroblob(8));
    UPDATE meta SET value = 'null' WHERE key = 'sameFilledFrames'`;
  const frames = (await withImage(image, ({ extents }) => [...extents])).reduce(
    (sum, extent) => sum + (extent.pfn + extent.frames > pfn ? 0 : extent.frames),
    1,
  );
  await forgery.write(forged, { catalogue: row, header: { frames } });
  const opened = await openImage(forged);
  t.teardown(() => opened.close());
  t.true(namedPaths(opened).some(({ path }) => path === secret));
  await t.throwsAsync(verifyChunks(opened), { code: "HIB_NOT_ALLOWED", message: new RegExp(secret) });
  t.throws(() => opened.memory().readFrame(pfn), { code: "HIB_NOT_ALLOWED" });
  const agreed = await openImage(forged, { allow: [secret, mount] });
  t.teardown(() => agreed.close());
  await t.throwsAsync(verifyChunks(agreed), { code: "HIB_FILES_CHANGED" }, "it is read, and is another");
});

test.serial("a file that is opened is the one that was looked at, and nothing that blocks", async (t) => {
  const directory = realPath(scratch(t));
  const [inside, beside] = [join(directory, "in"), join(directory, "in-and-more")];
  for (const path of [inside, beside]) mkdirSync(path);
  writeFileSync(join(beside, "secret"), "");
  writeFileSync(join(inside, "file"), "");
  symlinkSync(join(beside, "secret"), join(inside, "link"));
  symlinkSync(beside, join(inside, "links"));
  execFileSync("mkfifo", [join(inside, "fifo")]);
  linkSync(join(inside, "file"), join(inside, "same"));
  for (const good of ["file", "same"]) closeSync(openAllowed(join(inside, good), [inside]));
  for (const bad of ["link", "links/secret", "../in-and-more/secret"])
    t.throws(() => openAllowed(join(inside, bad), [inside]), { code: "HIB_NOT_ALLOWED" }, bad);
  t.throws(() => openAllowed(join(inside, "fifo"), [inside]), { message: /not a regular file/ });
  t.true(isWithin("/", ["/"]) && isWithin("/a", ["/"]) && !isWithin("/ab", ["/a"]) && !isWithin("/a", []));
  const gone = join(inside, "links", "gone", "file");
  t.is(realPath(gone), join(beside, "gone", "file"), "as far as there is something");
  t.deepEqual(
    (
      await outside(
        [gone, gone, join(inside, "gone")].map((path) => ({ what: "file", path })),
        [inside],
      )
    ).map(({ path }) => path),
    [gone],
  );
});

test.serial("the commands say it: inspect lists the paths, resume and boot refuse, and --allow lets them", async (t) => {
  const { directory, image, disk, mount } = await makeImage(t);
  const env = { ...process.env, XDG_STATE_HOME: join(directory, "another"), HIB_RUNTIME_DIR: join(directory, "run") };
  const inspected = await hib(env, "inspect", image, "--json");
  const { paths } = JSON.parse(inspected.stdout) as { paths: { what: string; path: string }[] };
  for (const named of [
    { what: "disk", path: disk },
    { what: "mount", path: mount },
  ])
    t.true(
      paths.some(({ what, path }) => what === named.what && path === named.path),
      named.what,
    );
  t.true((await hib(env, "inspect", image)).stdout.includes(mount));
  const refused = await hib(env, "resume", image);
  t.is(refused.code, 1);
  t.regex(refused.stderr, /^hib: HIB_NOT_ALLOWED: [^\n]*disk [^\n]*mount [^\n]*--allow PATH\n$/);
  t.deepEqual(readdirSync(image).sort(), ["blob", "catalogue.sqlite"], "it was not tried");
  rmSync(disk);
  const gone = await hib(env, "resume", image, "--allow", disk, "--allow", mount);
  t.regex(gone.stderr, /^hib: HIB_FILES_CHANGED: [^\n]*is gone/m);
  t.true(gone.stderr.startsWith(`hib: --allow ${disk}: there is no such file`));
});

async function withImage<T>(path: string, look: (image: Awaited<ReturnType<typeof openImage>>) => T): Promise<T> {
  const image = await openImage(path);
  try {
    return look(image);
  } finally {
    image.close();
  }
}

function hib(env: NodeJS.ProcessEnv, ...args: string[]): Promise<{ stdout: string; stderr: string; code: number }> {
  const script = fileURLToPath(new URL("../src/cli/hib.js", import.meta.url));
  return new Promise((resolve) =>
    execFile(process.execPath, [script, ...args], { env }, (error, stdout, stderr) =>
      resolve({ stdout, stderr, code: Number(error?.code ?? 0) }),
    ),
  );
}
