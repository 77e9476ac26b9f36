/**
 * What an image says of the host, when it is not so: directories, pipes, sockets and devices where it names files, disks and mounts.
 * Nothing is waited for, nothing of a device is read, and each is told by a code. Texts of all of them reach a terminal as text.
 */
import { execFile, execFileSync } from "node:child_process";
import { mkdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import { HibernaculumError } from "../src/base/errors.js";
import { save } from "../src/hibernate.js";
import { FORMAT_VERSION, MACHINE_VERSION } from "../src/image/format.js";
import { Machine } from "../src/machine.js";
import { resume } from "../src/resume.js";
import { verify } from "./fixtures/forged.js";
import { Forgery } from "./forger.js";
import { O_RDONLY } from "../src/vm/files/flags.js";
import { bootMachine, scratch, until } from "./support.js";

const KEPT = fileURLToPath(
  new URL(`../../test/fixtures/images/format-${FORMAT_VERSION}-machine-${MACHINE_VERSION}`, import.meta.url),
);

/** What is no regular file, made at a path. */
const OTHERS: Record<string, (t: ExecutionContext, path: string) => void | Promise<void>> = {
  "a directory": (_, path) => void mkdirSync(path),
  "a pipe": (_, path) => void execFileSync("mkfifo", [path]),
  "a socket": (t, path) =>
    new Promise((resolve) => {
      const server = createServer().listen(path, resolve);
      t.teardown(() => server.close());
    }),
  "a device": (_, path) => symlinkSync("/dev/zero", path),
  "a link to itself": (_, path) => symlinkSync(path, path),
  nothing: () => undefined,
};

async function outcome(attempt: Promise<unknown>): Promise<{ code: string; message: string }> {
  try {
    await attempt;
    return { code: "ok", message: "" };
  } catch (error) {
    if (!(error instanceof HibernaculumError)) throw error;
    return error;
  }
}

/** The kept image with a frame more, which is a page of a file. */
async function withReference(path: string, file: string): Promise<void> {
  const forgery = await Forgery.of(KEPT);
  const text = `'${file.replaceAll("'", "''")}'`;
  await forgery.write(path, {
    header: { frames: forgery.savedFrames + 1 },
    catalogue: `INSERT INTO extent (pfn, frames, kind) VALUES (1000, 1, 2);
      INSERT INTO reference VALUES (1000, 1, ${text}, 0, zeroblob(8))`,
  });
}

for (const [what, make] of Object.entries(OTHERS)) {
  test.serial(`a page of ${what} is refused by a verify and by a resume, and the booted machine goes on`, async (t) => {
    const directory = scratch(t);
    const [image, file] = [join(directory, "image"), join(directory, "file")];
    await make(t, file);
    await withReference(image, file);
    const allow = [directory, "/dev"];
    const machine = await Machine.boot({ ramBytes: 4 * 2 ** 20, vcpus: 1 });
    t.teardown(() => machine.powerOff());
    for (const acceptChangedFiles of [false, true]) {
      const { code, message } = await outcome(resume(machine, image, { allow, acceptChangedFiles, keepImage: true }));
      t.is(code, "HIB_FILES_CHANGED", message);
    }
    machine.check();
    const { code, message } = await verify(image, directory);
    // Of a link to a device, the place that it leads to is not one that the user has named here.
    t.is(code, what === "a device" ? "HIB_NOT_ALLOWED" : "HIB_FILES_CHANGED", message);
  });
}

/** An image of a machine with a disk and a mount, in which it has a file open. */
async function saveMachine(t: ExecutionContext): Promise<{ directory: string; image: string }> {
  const directory = scratch(t);
  mkdirSync(join(directory, "mount"));
  writeFileSync(join(directory, "disk"), new Uint8Array(2 ** 18));
  const machine = await bootMachine(t, {
    disk: join(directory, "disk"),
    mounts: [{ path: "/mount", host: join(directory, "mount"), readOnly: false }],
  });
  // A page of this one is in the image by reference, whatever the program is at with its own.
  writeFileSync(join(directory, "mount", "held"), new Uint8Array(4096).fill(7));
  const { slot } = machine.spawn("idle:ms=1000");
  const { control, files } = machine.kernel;
  control.locked(() => files.read(slot, files.open(slot, "/mount/held", O_RDONLY) as number, 4096));
  machine.spawn("files:dir=/mount,kilobytes=16");
  machine.spawn("disk:sectors=4,depth=2");
  await until(() => machine.processes().every(({ steps, text }) => steps > 100 || text.startsWith("idle")), "they run");
  const image = join(directory, "image");
  await save(machine, image);
  return { directory, image };
}

for (const [place, accepted] of [
  ["disk", "ok"], // one that cannot be opened fails what the machine asks of it
  ["mount", "HIB_FILES_CHANGED"], // pages of a file in it are in the image by reference
] as const) {
  test.serial(`${place}: whatever else is in its place has changed, and nobody waits for it`, async (t) => {
    const { directory, image } = await saveMachine(t);
    const at = join(directory, place);
    for (const [what, make] of Object.entries(OTHERS)) {
      if (place === "mount" && what === "a directory") continue; // that is what it was
      rmSync(at, { recursive: true, force: true });
      await make(t, at);
      for (const acceptChangedFiles of [false, true]) {
        const machine = await bootMachine(t);
        const options = { allow: [directory, "/dev"], acceptChangedFiles, keepImage: true };
        const { code, message } = await outcome(resume(machine, image, options));
        t.is(code, acceptChangedFiles ? accepted : "HIB_FILES_CHANGED", `${what}: ${message}`);
        machine.check();
        await machine.powerOff();
      }
    }
  });
}

const EVIL = "evil\u001b[2J\u001b]0;title\u0007\u009b2J\r\nhib: fake\u202egnp";

/** What this program itself sends. */
const COLOR = new RegExp(`${String.fromCharCode(0x1b)}\\[\\d{1,2}m`, "g");

function run(directory: string, program: "hib" | "hib-stats", ...args: string[]): Promise<string> {
  const script = fileURLToPath(new URL(`../src/cli/${program}.js`, import.meta.url));
  const env = { ...process.env, HIB_RUNTIME_DIR: join(directory, "run"), FORCE_COLOR: "1" };
  return new Promise((resolve) =>
    execFile(process.execPath, [script, ...args], { cwd: directory, env }, (_, stdout, stderr) => resolve(stdout + stderr)),
  );
}

test("texts of pages of files, of the report, the name, mounts and the header's writer reach no terminal as they are", async (t) => {
  const directory = scratch(t);
  const path = join(directory, "image");
  const forgery = await Forgery.of(KEPT);
  const text = `'${EVIL}'`;
  const json = `json_quote(${text})`;
  await forgery.write(path, {
    header: { frames: forgery.savedFrames + 1, writer: EVIL },
    catalogue: `INSERT INTO extent (pfn, frames, kind) VALUES (1000, 1, 2);
      INSERT INTO reference VALUES (1000, 1, '/' || ${text}, 0, zeroblob(8));
      INSERT INTO mount VALUES (${text}, '/' || ${text}, 0);
      INSERT INTO meta VALUES ('name', ${json}), (${text}, ${json});
      UPDATE meta SET value = json_set(value, '$.image.id', ${text}, '$.image.ending', ${text}, '$.image.time', ${text})
        WHERE key = 'report'`,
  });
  const outputs: Record<string, string> = {};
  for (const args of [["images"], ["inspect"], ["inspect", "--json"], ["inspect", "--extents", "--json"], ["verify"], ["resume"]])
    outputs[args.join(" ")] = await run(directory, "hib", args[0]!, path, ...args.slice(1));
  outputs["diff"] = await run(directory, "hib", "diff", path, KEPT);
  outputs["hib-stats"] = await run(directory, "hib-stats", path);
  outputs["hib-stats --json"] = await run(directory, "hib-stats", path, "--json");
  for (const [command, output] of Object.entries(outputs)) {
    const odd = output.replaceAll(COLOR, "").match(/[^\P{Cc}\n\t]|[\u2028-\u202e\u2066-\u2069]/gu);
    t.deepEqual(odd, null, `${command}: ${JSON.stringify(output)}`);
    t.false(/^hib: fake/m.test(output), command);
  }
  for (const command of ["inspect", "inspect --extents --json", "verify", "hib-stats"])
    t.true(outputs[command]!.includes("evil"), command);
});
