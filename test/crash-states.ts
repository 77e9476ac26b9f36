/**
 * What a disk may hold after a crash of the host, from a record of what was done to its files (fixtures/recorder.ts).
 *
 * What a crash leaves: a write is there for sure if a sync of its file began after the write had ended, and has ended. Until then
 * it may be there, or not, or half of it, or as zeros. A name that was made, changed or removed is so for sure if its directory
 * was synced likewise; until then it may be so or not, whatever became of other names and of what the file holds.
 *
 * At every line of the record, of what is not sure: all, none, every single one missing, every single one alone, every write torn.
 */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { basename, dirname, join, relative } from "node:path";
import type { RecordedLine } from "./fixtures/recorder.js";

/** How much of a write is there. */
type Part = "whole" | "head" | "tail" | "zeros";

interface Inode {
  id: number;
  isDirectory: boolean;
  /** What a file held before the record. */
  base: Buffer | undefined;
  /** When it was made. */
  made: number;
}

/** Something that was done, and the lines at which it began and had ended. */
interface Done {
  id: number;
  begin: number;
  end: number;
}

interface Write extends Done {
  inode: Inode;
  offset: number;
  bytes: Buffer;
}

/** A name made, changed or removed; of a rename both, at once. */
interface NameChange extends Done {
  changes: { directory: Inode; name: string; inode: Inode | undefined }[];
}

/** What is there of writes that are not sure; undefined: nothing. Others are there whole. */
type Parts = ReadonlyMap<Write, Part | undefined>;

/** A file of a state. Files with one key hold the same bytes. */
interface FileOfState {
  key: string;
  bytes(): Buffer;
}

/** What a crash may leave. */
export interface CrashState {
  /** Directories that there are, and files, by paths relative to the root. */
  directories: string[];
  files: Map<string, FileOfState>;
  /** Marks that the process had passed. */
  marks: ReadonlySet<string>;
  /** What is missing, for messages. */
  what: string;
}

/** Beyond so many names that are not sure, not every subset of them is tried. */
const SUBSETS_MAX = 4;
/** When that was done which was there before the record. */
const BEFORE = -2;

/** What a process did to the files below a root. */
interface Recorded {
  root: Inode;
  names: NameChange[];
  writes: Write[];
  syncs: { inode: Inode; begin: number; end: number }[];
  marks: { name: string; at: number }[];
  lines: number;
}

/**
 * Reads a record.
 *
 * @param root - a copy of the recorded directory as it was before: that is on the disk for sure
 * @param recordedRoot - the path that the record has for it
 * @param record - the recorder's directory
 */
export function readRecord(root: string, recordedRoot: string, record: string): Recorded {
  const lines = readFileSync(join(record, "log"), "utf8").trimEnd().split("\n");
  const reader = new RecordReader(root, recordedRoot, record);
  for (const [now, line] of lines.entries()) reader.read(JSON.parse(line) as RecordedLine, now);
  return { ...reader.recorded, lines: lines.length };
}

class RecordReader {
  readonly recorded: Recorded;
  readonly #recordedRoot: string;
  readonly #record: string;
  /** Names as the process itself sees them. */
  readonly #live = new Map<Inode, Map<string, Inode>>();
  /** Inodes of open files. */
  readonly #files = new Map<string, Inode>();
  /** What calls do that have begun. */
  readonly #calls = new Map<string, { end: number }[]>();
  #ids = 0;

  constructor(root: string, recordedRoot: string, record: string) {
    this.#recordedRoot = recordedRoot;
    this.#record = record;
    this.recorded = { root: this.#create(true, -1), names: [], writes: [], syncs: [], marks: [], lines: 0 };
    this.#adopt(this.recorded.root, root);
  }

  #create(isDirectory: boolean, made: number, base?: Buffer): Inode {
    const inode: Inode = { id: this.#ids++, isDirectory, base, made };
    if (isDirectory) this.#live.set(inode, new Map());
    return inode;
  }

  #adopt(directory: Inode, path: string): void {
    for (const name of readdirSync(path)) {
      const at = join(path, name);
      const isDirectory = statSync(at).isDirectory();
      const inode = this.#create(isDirectory, -1, isDirectory ? undefined : readFileSync(at));
      this.#change(BEFORE, BEFORE, [{ directory, name, inode }]);
      if (isDirectory) this.#adopt(inode, at);
    }
  }

  #change(begin: number, end: number, changes: NameChange["changes"]): NameChange {
    const change = { id: this.#ids++, begin, end, changes };
    this.recorded.names.push(change);
    for (const { directory, name, inode } of changes) {
      if (inode === undefined) this.#live.get(directory)!.delete(name);
      else this.#live.get(directory)!.set(name, inode);
    }
    return change;
  }

  #find(path: string): Inode | undefined {
    const names = relative(this.#recordedRoot, path)
      .split("/")
      .filter((name) => name !== "");
    return names.reduce<Inode | undefined>(
      (inode, name) => (inode === undefined ? undefined : this.#live.get(inode)?.get(name)),
      this.recorded.root,
    );
  }

  /** Where a name is. */
  #place(path: string): { directory: Inode; name: string } {
    return { directory: this.#find(dirname(path))!, name: basename(path) };
  }

  read(line: RecordedLine, now: number): void {
    const { marks } = this.recorded;
    if (line.do === "mark") marks.push({ name: line.call, at: now });
    else if (line.do === "open") this.#open(line, now);
    else if (line.do === "native") this.#writeNative(line, now);
    else if (line.at === "begin") this.#calls.set(line.call, this.#begin(line, now));
    else if (line.at === "failed" && line.do === "write")
      return; // any part of it may be there, for ever: it is made again
    else if (line.at === "failed") throw new Error(`a call failed that was to change names or sync: ${JSON.stringify(line)}`);
    else for (const done of this.#calls.get(line.call)!) done.end = now;
  }

  #open({ path, creates, file }: RecordedLine, now: number): void {
    let inode = this.#find(path!);
    if (inode === undefined && creates === true) {
      inode = this.#create(false, now);
      this.#change(now, now, [{ ...this.#place(path!), inode }]);
    }
    if (inode !== undefined) this.#files.set(file!, inode);
  }

  /** SQLite's file, of which any part may be there since it was made. */
  #writeNative({ path, data }: RecordedLine, now: number): void {
    const inode = this.#find(path!)!;
    const bytes = readFileSync(join(this.#record, data!));
    const earlier = this.recorded.writes.find((write) => write.inode === inode);
    if (earlier === undefined)
      this.recorded.writes.push({ id: this.#ids++, begin: inode.made, end: now, inode, offset: 0, bytes });
    else if (!earlier.bytes.equals(bytes)) throw new Error(`${path} has changed since it was synced`);
  }

  #begin({ do: what, path, to, file, offset, data, paths = [] }: RecordedLine, now: number): { end: number }[] {
    const inode = file === undefined ? undefined : this.#files.get(file);
    const change = (changes: NameChange["changes"]): NameChange => this.#change(now, Infinity, changes);
    if (what === "write") {
      const bytes = readFileSync(join(this.#record, data!));
      const write = { id: this.#ids++, begin: now, end: Infinity, inode: inode!, offset: offset!, bytes };
      this.recorded.writes.push(write);
      return [write];
    }
    if (what === "sync") {
      const sync = { inode: inode!, begin: now, end: Infinity };
      this.recorded.syncs.push(sync);
      return [sync];
    }
    if (what === "mkdir") return [change([{ ...this.#place(path!), inode: this.#create(true, now) }])];
    if (what === "remove") return paths.map((gone) => change([{ ...this.#place(gone), inode: undefined }]));
    const moved = { ...this.#place(to!), inode: this.#find(path!) };
    return [change(what === "link" ? [moved] : [{ ...this.#place(path!), inode: undefined }, moved])];
  }
}

/** Every state that a crash may leave, each once. */
export function* crashStates({
  root,
  names: allNames,
  writes: allWrites,
  syncs,
  marks: allMarks,
  lines,
}: Recorded): Generator<CrashState> {
  const isSure = ({ end }: Done, inodes: readonly Inode[], now: number): boolean =>
    end === BEFORE || inodes.every((inode) => syncs.some((sync) => sync.inode === inode && sync.begin > end && sync.end <= now));
  const seen = new Set<string>();
  for (let now = -1; now < lines; now++) {
    const names = allNames.filter(({ begin }) => begin <= now);
    const writes = allWrites.filter(({ begin }) => begin <= now);
    const marks = new Set(allMarks.filter(({ at }) => at <= now).map(({ name }) => name));
    const unsure = names.filter((name) => !isSure(name, [...new Set(name.changes.map(({ directory }) => directory))], now));
    const torn = writes.filter((write) => !isSure(write, [write.inode], now));
    for (const lost of subsets(unsure)) {
      const there = names.filter((name) => !lost.has(name));
      for (const parts of tears(torn)) {
        const state = build(root, there, writes, parts);
        const key = [...marks, ...state.directories, ...[...state.files].map(([path, { key }]) => `${path}=${key}`)].join("|");
        if (seen.has(key)) continue;
        seen.add(key);
        yield { ...state, marks, what: `line ${now}, without the names ${describe(lost)}; of writes ${describeTears(parts)}` };
      }
    }
  }
}

function build(
  root: Inode,
  names: readonly NameChange[],
  writes: readonly Write[],
  parts: Parts,
): Pick<CrashState, "directories" | "files"> {
  const tree = new Map<Inode, Map<string, Inode>>();
  for (const { changes } of names) {
    for (const { directory, name, inode } of changes) {
      const entries = tree.get(directory) ?? new Map<string, Inode>();
      tree.set(directory, entries);
      if (inode === undefined) entries.delete(name);
      else entries.set(name, inode);
    }
  }
  const directories: string[] = [];
  const files = new Map<string, FileOfState>();
  const visit = (inode: Inode, at: string): void => {
    for (const [name, child] of [...(tree.get(inode) ?? [])].sort(([a], [b]) => (a < b ? -1 : 1))) {
      const path = join(at, name);
      if (child.isDirectory) {
        directories.push(path);
        visit(child, path);
      } else files.set(path, fileOf(child, writes, parts));
    }
  };
  visit(root, "");
  return { directories, files };
}

function fileOf(inode: Inode, writes: readonly Write[], parts: Parts): FileOfState {
  const applied = writes
    .filter((write) => write.inode === inode)
    .map((write) => ({ write, part: parts.has(write) ? parts.get(write) : ("whole" as const) }))
    .filter(({ part }) => part !== undefined);
  return {
    key: `${inode.id}:${applied.map(({ write, part }) => `${write.id}${part}`).join()}`,
    bytes() {
      let bytes = inode.base ?? Buffer.alloc(0);
      for (const { write, part } of applied) {
        const half = write.bytes.length >> 1;
        const ends = write.offset + (part === "head" ? half : write.bytes.length);
        const grown = Buffer.alloc(Math.max(bytes.length, ends));
        bytes.copy(grown);
        bytes = grown;
        if (part === "whole") write.bytes.copy(bytes, write.offset);
        if (part === "head") write.bytes.copy(bytes, write.offset, 0, half);
        if (part === "tail") write.bytes.copy(bytes, write.offset + half, half);
      }
      return bytes;
    },
  };
}

/** Sets of names that are lost. */
function* subsets(unsure: readonly NameChange[]): Generator<ReadonlySet<NameChange>> {
  if (unsure.length <= SUBSETS_MAX) {
    for (let mask = 0; mask < 1 << unsure.length; mask++) yield new Set(unsure.filter((_, i) => ((mask >> i) & 1) === 1));
    return;
  }
  yield new Set();
  yield new Set(unsure);
  for (const one of unsure) {
    yield new Set([one]);
    yield new Set(unsure.filter((name) => name !== one));
  }
  for (let from = 1; from < unsure.length; from++) yield new Set(unsure.slice(from));
}

/** What is there of writes: all, none, or one that is missing or torn. */
function* tears(torn: readonly Write[]): Generator<Parts> {
  yield new Map();
  if (torn.length === 0) return;
  yield new Map(torn.map((write) => [write, undefined]));
  for (const one of torn) {
    for (const part of [undefined, "head", "tail", "zeros"] as const) yield new Map([[one, part]]);
    yield new Map(torn.filter((write) => write !== one).map((write) => [write, undefined]));
  }
}

const describe = (lost: ReadonlySet<NameChange>): string =>
  [...lost].flatMap(({ changes }) => changes.map(({ name, inode }) => `${inode === undefined ? "-" : "+"}${name}`)).join(" ");
const describeTears = (parts: Parts): string =>
  [...parts].map(([{ inode, offset }, part]) => `${part ?? "no"} ${inode.id}@${offset}`).join(" ");
