/** What the catalogue says of a process: its types, and what is behind its file descriptors, as the kernel's own records have it. */
import { execFile } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import { FRAME_BYTES } from "../src/base/layout.js";
import { save } from "../src/hibernate.js";
import { openImage } from "../src/image/directory.js";
import { O_CREAT, O_RDONLY, O_RDWR } from "../src/vm/files/flags.js";
import { describeFds, type FdDescription } from "../src/vm/files/open-files.js";
import { walkObject } from "../src/vm/memory/memory-object.js";
import { listProcesses } from "../src/vm/tasks/process.js";
import { bootMachine, scratch, until } from "./support.js";

const SCRIPT = fileURLToPath(new URL("../../examples/read_image.py", import.meta.url));

function read(...args: string[]): Promise<{ stdout: Buffer; stderr: string }> {
  return new Promise((resolve) =>
    execFile("python3", [SCRIPT, ...args], { encoding: "buffer", maxBuffer: 2 ** 28 }, (_, stdout, stderr) =>
      resolve({ stdout, stderr: stderr.toString() }),
    ),
  );
}

const DOCUMENT = readFileSync(new URL("../../design/image-format.md", import.meta.url), "utf8");

/** Saves a machine that has files of the host and in memory, and pipes. */
async function makeImage(t: ExecutionContext): Promise<{ directory: string; path: string }> {
  const directory = scratch(t);
  mkdirSync(join(directory, "host"));
  const machine = await bootMachine(t, { mounts: [{ path: "/host", host: join(directory, "host"), readOnly: false }] });
  for (const text of ["files:dir=/,kilobytes=32,seed=3", "files:dir=/host,kilobytes=32,seed=2", "pipes:kilobytes=700,seed=4"])
    machine.spawn(text);
  await until(() => machine.processes().every(({ steps }) => steps > 300), "they have come some way");
  // Whatever the programs are at with theirs, these are open.
  writeFileSync(join(directory, "host", "held"), "of the host");
  const { slot } = machine.spawn("idle:ms=1000");
  const { control, files } = machine.kernel;
  control.locked(() => files.read(slot, files.open(slot, "/host/held", O_RDONLY) as number, 100));
  control.locked(() => files.write(slot, files.open(slot, "/held", O_RDWR | O_CREAT) as number, Buffer.from("in memory")));
  const path = join(directory, "image");
  await save(machine, path);
  return { directory, path };
}

test("read_image.py: files in memory, files of the host and pipes have the bytes that the kernel has for them", async (t) => {
  const { directory, path } = await makeImage(t);
  const image = await openImage(path, { allow: [directory] });
  t.teardown(() => image.close());
  const memory = image.memory();
  const expected = ({ pipe, frame, start, filled, object, size, host, path: name }: FdDescription): Buffer => {
    if (pipe !== null)
      return Buffer.from(Array.from({ length: filled! }, (_, i) => memory.readFrame(frame!)[(start! + i) % FRAME_BYTES]!));
    const bytes = Buffer.alloc(size!);
    if (host === true) readFileSync(name!).copy(bytes);
    for (const { page, frame: pfn } of walkObject(memory, object!))
      bytes.set(memory.readFrame(pfn).subarray(0, Math.max(0, size! - page * FRAME_BYTES)), page * FRAME_BYTES);
    return bytes;
  };
  const kinds = new Set<string>();
  for (const { pid, slot } of listProcesses(memory))
    for (const fd of describeFds(memory, slot)) {
      const { stdout, stderr } = await read(path, "--pid", String(pid), "--fd", String(fd.fd));
      if (fd.kind === "console") t.regex(stderr, /no bytes behind/);
      else t.true(stdout.equals(expected(fd)), `fd ${fd.fd} of process ${pid}: ${stderr}`);
      if (stdout.length > 0) kinds.add(fd.pipe !== null ? "pipe" : fd.host === true ? "host" : "memory");
    }
  t.deepEqual([...kinds].sort(), ["host", "memory", "pipe"]);
});

/** Keys of `detail` by what they are of, and their types, as the document has them. */
function documented(): Record<"process" | "area" | "fd", Map<string, string>> {
  const table = /^\| type \| keys \|\n\|---\|---\|\n((?:\|.*\|\n)+)/m.exec(DOCUMENT)![1]!;
  const keys = { process: new Map<string, string>(), area: new Map<string, string>(), fd: new Map<string, string>() };
  for (const row of table.trim().split("\n")) {
    const [, type, text] = /^\| (.*?) \| (.*) \|$/.exec(row)!;
    for (const part of text!.split("; ")) {
      const of = /^of an (area|fd)/.exec(part)?.[1] as "area" | "fd" | undefined;
      for (const [, key] of part.replaceAll(/\(.*?\)/g, "").matchAll(/`(\w+)`/g)) keys[of ?? "process"].set(key!, type!);
    }
  }
  return keys;
}

function isOf(type: string, value: unknown): boolean {
  return type.split(" or ").some((one) => {
    if (one === "null") return value === null;
    if (one === "array") return Array.isArray(value);
    if (one === "object") return typeof value === "object" && value !== null && !Array.isArray(value);
    return typeof value === (one === "text" ? "string" : one) && (one !== "number" || Number.isInteger(value));
  });
}

test("detail: its keys are those that the document has, each of the type that stands there", async (t) => {
  const image = await openImage((await makeImage(t)).path);
  t.teardown(() => image.close());
  const keys = documented();
  const check = (what: keyof typeof keys, value: Record<string, unknown>): void => {
    t.deepEqual(Object.keys(value).sort(), [...keys[what].keys()].sort(), what);
    for (const [key, type] of keys[what])
      t.true(isOf(type, value[key]), `${what}.${key} is ${JSON.stringify(value[key])}, not ${type}`);
  };
  for (const { detail } of image.catalogue.processes()) {
    const process = detail as { areas: Record<string, unknown>[]; fds: Record<string, unknown>[] } & Record<string, unknown>;
    check("process", process);
    for (const area of process.areas) check("area", area);
    for (const fd of process.fds) check("fd", fd);
  }
});
