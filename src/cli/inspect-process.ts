/** `hib inspect --pid`: what one process of an image holds, and with `--read` what is in its memory. */
import { InvalidArgumentError } from "commander";
import { HibernaculumError } from "../base/errors.js";
import { ADDRESS_DIGITS, hex, hexDigits } from "../base/hex.js";
import { PTE_R, PTE_U, PTE_W, PTE_X } from "../base/layout.js";
import type { MappingRow } from "../image/catalogue-rows.js";
import type { Image } from "../image/directory.js";
import { formatBytes, formatCount } from "../stats/format.js";
import { field, section, table, type View } from "../stats/layout.js";
import type { FdDescription } from "../vm/files/open-files.js";
import { describeProcess } from "../vm/views/describe.js";
import { listProcesses, type Process } from "../vm/tasks/process.js";
import { type MemoryPart, readProcessMemory } from "../vm/views/process-memory.js";

/** Addresses of a process end here. */
const ADDRESSES_END = 2 ** 32;
/** More would be a dump, which is not for people. */
const READ_BYTES_MAX = 2 ** 20;
const LINE_BYTES = 16;
/** Lines of a table for people. */
const MAPPINGS_SHOWN = 16;

/** Addresses of a process. */
export interface Range {
  address: number;
  length: number;
}

/**
 * "0x10000:64" is 64 bytes from 0x10000; either may be decimal or hexadecimal.
 *
 * @throws InvalidArgumentError, which commander makes a usage error
 */
export function parseRange(text: string): Range {
  const number = "(\\d+|0x[0-9a-f]+)";
  const [, first, second] = new RegExp(`^${number}:${number}$`, "i").exec(text) ?? [];
  const [address, length] = [Number(first), Number(second)];
  if (!(length >= 1 && length <= READ_BYTES_MAX && address + length <= ADDRESSES_END)) {
    throw new InvalidArgumentError("Give ADDRESS:LENGTH, such as 0x10000:64; at most 1 MiB, and up to 0xffffffff.");
  }
  return { address, length };
}

/** @throws HIB_USAGE if there is none of that pid */
export function findProcess(image: Image, pid: number): Process {
  const processes = listProcesses(image.memory());
  const found = processes.find((process) => process.pid === pid);
  if (found !== undefined) return found;
  throw new HibernaculumError(
    "HIB_USAGE",
    `no process ${pid} in ${image.path}; there are ${processes.map((one) => one.pid).join(", ") || "none"}`,
  );
}

/** What a process holds. */
export interface Holdings {
  schema: 1;
  path: string;
  process: Omit<ReturnType<typeof describeProcess>, "areas" | "fds" | "handlers" | "registers"> & { name: string };
  areas: { kind: string; start: number; end: number; flags: string; demand_zero: boolean; mapped_pages: number }[];
  mappings: { address: number; pages: number; pfn: number; flags: string }[];
  fds: FdDescription[];
  handlers: Record<number, number>;
  registers: Record<string, string>;
}

export function describeHoldings(image: Image, process: Process): Holdings {
  const { areas, fds, handlers, registers, ...about } = describeProcess(image.memory(), process);
  const mappings: MappingRow[] = [];
  for (const row of image.catalogue.mappings()) if (row.pid === process.pid) mappings.push(row); // those of all may be millions
  mappings.sort((a, b) => a.vaddr - b.vaddr);
  const pagesIn = (start: number, end: number): number =>
    mappings.reduce((sum, { vaddr, pages }) => sum + (vaddr >= start && vaddr < end ? pages : 0), 0);
  return {
    schema: 1,
    path: image.path,
    process: { name: about.text.split(":")[0]!, ...about },
    areas: areas.map(({ kind, start, end, flags, demandZero }) => ({
      kind,
      start,
      end,
      flags: permissions(flags),
      demand_zero: demandZero,
      mapped_pages: pagesIn(start, end),
    })),
    mappings: mappings.map(({ vaddr, pages, pfn, flags }) => ({ address: vaddr, pages, pfn, flags: permissions(flags) })),
    fds,
    handlers,
    registers: Object.fromEntries(registers.map((value, x) => [`x${x}`, value])),
  };
}

export function renderHoldings({ process, areas, mappings, fds, handlers, registers }: Holdings, view: View): string {
  const set = Object.entries(registers).filter(([, value]) => /[^0]/.test(value));
  return [
    section(view, `Process ${process.pid}`, [
      field(view, "program", process.text),
      field(view, "state", process.state + (process.failure === "" ? "" : `: ${process.failure}`)),
      field(view, "steps", formatCount(process.steps)),
      field(view, "root page table", `frame ${process.root}`),
    ]),
    section(view, "Areas", [
      table(
        view,
        ["kind", "from", "up to", "may", "pages mapped", "others"],
        areas.map((a) => [
          a.kind,
          hex(a.start, ADDRESS_DIGITS),
          hex(a.end, ADDRESS_DIGITS),
          a.flags,
          formatCount(a.mapped_pages),
          a.demand_zero ? "demand-zero" : "unmapped",
        ]),
      ),
    ]),
    section(view, "Mappings", [
      table(
        view,
        ["address", "pages", "frame", "may"],
        mappings
          .slice(0, MAPPINGS_SHOWN)
          .map((m) => [hex(m.address, ADDRESS_DIGITS), formatCount(m.pages), String(m.pfn), m.flags]),
      ),
      ...(mappings.length > MAPPINGS_SHOWN
        ? [field(view, "", `${formatCount(mappings.length - MAPPINGS_SHOWN)} more; --json has all`)]
        : []),
    ]),
    section(view, "Open files", [
      fds.length === 0
        ? field(view, "none", "")
        : table(
            view,
            ["fd", "what", "position", "flags", "of fds", "closed by exec"],
            fds.map((f) => [
              String(f.fd),
              f.kind === "inode" ? (f.path ?? "a file without a name") : f.kind === "console" ? "console" : `pipe, ${f.kind}`,
              f.filled === null ? formatCount(f.position) : `${formatCount(f.filled)} bytes in it`,
              `0${f.flags.toString(8)}`,
              String(f.shared_by),
              f.cloexec ? "yes" : "no",
            ]),
          ),
    ]),
    section(view, "Signals", [
      field(
        view,
        "handlers",
        Object.entries(handlers)
          .map(([signal, handler]) => `${signal}: ${handler}`)
          .join(", ") || "none",
      ),
      field(view, "pending, masked", `${hex(process.pending, ADDRESS_DIGITS)}, ${hex(process.mask, ADDRESS_DIGITS)}`),
    ]),
    section(view, "Registers", [
      ...(set.length < Object.keys(registers).length ? [field(view, set.length === 0 ? "all" : "all others", "0")] : []),
      ...set.map(([name, value]) => field(view, name, `0x${value}`)),
    ]),
  ].join("\n");
}

export interface MemoryDump {
  schema: 1;
  path: string;
  pid: number;
  address: number;
  length: number;
  /** `pfn` and `hex` only where a frame is mapped. */
  parts: { address: number; length: number; state: MemoryPart["state"]; pfn?: number; hex?: string }[];
}

export function describeMemory(image: Image, process: Process, { address, length }: Range): MemoryDump {
  const parts = readProcessMemory(image.memory(), process, address, length).map((part) => {
    if (part.state !== "mapped") return part;
    const { bytes, ...rest } = part;
    return { ...rest, hex: Buffer.from(bytes).toString("hex") };
  });
  return { schema: 1, path: image.path, pid: process.pid, address, length, parts };
}

/** A hex dump as hexdump -C makes it; `*` stands for lines that are like the one above. */
export function renderMemory({ parts }: MemoryDump): string {
  return parts
    .flatMap((part) => (part.hex === undefined ? [absent(part)] : dump(part.address, Buffer.from(part.hex, "hex"))))
    .join("\n");
}

function absent({ address, length, state }: MemoryDump["parts"][number]): string {
  const what = state === "unmapped" ? "unmapped" : "demand-zero: no frame yet, reads as zeros";
  return `${hexDigits(address, ADDRESS_DIGITS)}  ${formatBytes(length)} ${what}`;
}

function dump(address: number, bytes: Buffer): string[] {
  const lines: string[] = [];
  let before: Buffer | undefined;
  for (let at = 0; at < bytes.length; at += LINE_BYTES) {
    const line = bytes.subarray(at, at + LINE_BYTES);
    if (before?.equals(line) === true && at + LINE_BYTES < bytes.length) {
      if (lines.at(-1) !== "*") lines.push("*");
      continue;
    }
    before = line;
    const text = line.toString("latin1").replaceAll(/[^ -~]/g, ".");
    const columns = line.toString("hex").replaceAll(/(..)(?!$)/g, "$1 ");
    lines.push(`${hexDigits(address + at, ADDRESS_DIGITS)}  ${columns.padEnd(LINE_BYTES * 3 - 1)}  |${text}|`);
  }
  return lines;
}

/** "rwxu" and dashes. */
function permissions(flags: number): string {
  const letters: [string, number][] = [
    ["r", PTE_R],
    ["w", PTE_W],
    ["x", PTE_X],
    ["u", PTE_U],
  ];
  return letters.map(([letter, bit]) => ((flags & bit) === 0 ? "-" : letter)).join("");
}
