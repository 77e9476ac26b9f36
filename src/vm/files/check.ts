/** Are the files of a machine consistent: is everything what it is taken for, and held as often as it says? See consistency.ts. */
import { hex } from "../../base/hex.js";
import type { PhysicalAddress, ReadableMemory } from "../../base/memory.js";
import type { Inventory } from "../memory/inventory.js";
import { KERNEL_ROOT, KIND_KERNEL_HEAP, PROCESS_FDS, processAddress } from "../memory/kernel-layout.js";
import { OBJECT_BYTES, objectReferences } from "../memory/memory-object.js";
import type { Process } from "../tasks/process.js";
import { type Description, DESCRIPTION_BYTES, type DescriptionKind, walkFds } from "./descriptions.js";
import { type Inode, inodeParts, readInode, walkHostInodes } from "./inode.js";
import { walkMounts } from "./path.js";
import { walkDirectory } from "./tree.js";
import { PIPE_BYTES, PIPE_CAPACITY, readPipe } from "./pipe.js";

/**
 * Checks inodes, mounts, descriptions and pipes.
 *
 * @param mapped - how many areas map each memory object
 * @returns every memory object that there is
 * @throws HIB_INCONSISTENT if it cannot be told what there is
 */
export function checkFiles(
  memory: ReadableMemory,
  inventory: Inventory,
  processes: readonly Process[],
  mapped: ReadonlyMap<PhysicalAddress, number>,
  problem: (text: string) => void,
): Set<PhysicalAddress> {
  const inodes = new Inodes(memory, inventory, problem);
  const root = memory.load32(KERNEL_ROOT) >>> 0;
  inodes.hold(root);
  inodes.visit(root);
  if (inodes.found.get(root)?.type !== "directory") problem("the root of the file system is not a directory");
  checkMounts(memory, inventory, problem);
  checkDescriptions(memory, inventory, processes, inodes, problem);

  const listed = new Set(Array.from(walkHostInodes(memory), ({ at }) => at));
  for (const at of listed) inodes.visit(at);
  // A file that is only mapped is known by its object.
  for (const object of mapped.keys()) {
    const { inode } = objectReferences(memory, object);
    if (inode !== 0) inodes.visit(inode);
  }
  const objects = checkObjects(memory, inventory, mapped, inodes, problem);
  for (const { at, type, references } of inodes.found.values()) {
    const held = inodes.held.get(at) ?? 0;
    if (references !== held) problem(`inode ${hex(at)} says ${references} and is held by ${held}`);
    // Whoever lets go of it looks for it in the list.
    if ((type === "host") !== listed.has(at))
      problem(`inode ${hex(at)} is of a file of the host and not in their list, or the reverse`);
  }
  return objects;
}

/** The inodes, as they are found. */
class Inodes {
  readonly found = new Map<PhysicalAddress, Inode>();
  readonly held = new Map<PhysicalAddress, number>();
  readonly #memory: ReadableMemory;
  readonly #inventory: Inventory;
  readonly #problem: (text: string) => void;

  constructor(memory: ReadableMemory, inventory: Inventory, problem: (text: string) => void) {
    this.#memory = memory;
    this.#inventory = inventory;
    this.#problem = problem;
  }

  hold(at: PhysicalAddress, times = 1): void {
    this.held.set(at, (this.held.get(at) ?? 0) + times);
  }

  /** Inventory an inode and whatever is below it, once. */
  visit(first: PhysicalAddress): void {
    const waiting = [first];
    for (let at = waiting.pop(); at !== undefined; at = waiting.pop()) {
      if (this.found.has(at)) continue;
      const parts = inodeParts(this.#memory, at);
      if (!parts.every((part) => this.#inventory.object(part.at, part.bytes, "an inode"))) continue;
      const inode = readInode(this.#memory, at);
      this.found.set(at, inode);
      this.#check(inode);
      if (inode.type !== "directory") continue;
      for (const entry of walkDirectory(this.#memory, at)) {
        if (!this.#inventory.object(entry.at, entry.bytes, "a name in a directory")) break;
        this.hold(entry.inode);
        // A directory has one name, so that it is in no directory that is in it.
        if (this.found.get(entry.inode)?.type === "directory") this.#problem(`the directory ${hex(entry.inode)} has two names`);
        waiting.push(entry.inode);
      }
    }
  }

  #check({ at, type, object, size, modified, host }: Inode): void {
    const where = `inode ${hex(at)}`;
    if (type === undefined) this.#problem(`${where} is of no type that there is`);
    if ((object !== 0) !== (type !== "directory")) this.#problem(`${where} is a ${type} and has pages, or lacks them`);
    if (!isCount(size)) this.#problem(`${where} says that it has ${size} bytes`);
    if (!Number.isFinite(modified)) this.#problem(`${where} was changed at ${modified}`);
    if (host !== undefined && !isHostPath(host.path)) this.#problem(`${where} has no absolute path`);
  }
}

function checkMounts(memory: ReadableMemory, inventory: Inventory, problem: (text: string) => void): void {
  for (const { path, host, objects } of walkMounts(memory)) {
    if (!objects.every(({ at, bytes }) => inventory.object(at, bytes, "a mount"))) return;
    if (!path.startsWith("/") || !isHostPath(host)) problem("a mount has no absolute path");
  }
}

function isCount(bytes: number): boolean {
  return Number.isSafeInteger(bytes) && bytes >= 0;
}

function isHostPath(path: string): boolean {
  return path.startsWith("/") && !path.includes("\0");
}

function checkDescriptions(
  memory: ReadableMemory,
  inventory: Inventory,
  processes: readonly Process[],
  inodes: Inodes,
  problem: (text: string) => void,
): void {
  const found = new Map<PhysicalAddress, { description: Description; fds: number }>();
  for (const { pid, slot } of processes) {
    const table = memory.load32(processAddress(memory, slot) + PROCESS_FDS);
    if (table === 0 || !inventory.block(table - 1, 0, KIND_KERNEL_HEAP, `the fds of process ${pid}`)) continue;
    for (const { description } of walkFds(memory, slot)) {
      const known = found.get(description.at);
      if (known !== undefined) known.fds++;
      else if (inventory.object(description.at, DESCRIPTION_BYTES, "a file description"))
        found.set(description.at, { description, fds: 1 });
    }
  }
  const ends = new Map<PhysicalAddress, Record<"reader" | "writer", number>>();
  for (const { description, fds } of found.values()) {
    const { at, kind, behind, references, position } = description;
    if (references !== fds) problem(`file description ${hex(at)} says ${references} and is open as ${fds} fds`);
    if (!isCount(position)) problem(`file description ${hex(at)} is at position ${position}`);
    if (kind === "inode") {
      inodes.hold(behind);
      inodes.visit(behind);
      if (inodes.found.get(behind)?.type === "directory") problem(`file description ${hex(at)} is of a directory`);
    } else if (isEnd(kind)) {
      const pipe = ends.get(behind) ?? { reader: 0, writer: 0 };
      pipe[kind]++;
      ends.set(behind, pipe);
    } else if (kind !== "console") problem(`file description ${hex(at)} is of nothing that there is`);
  }
  for (const [pipe, counted] of ends)
    if (inventory.object(pipe, PIPE_BYTES, "a pipe")) checkPipe(memory, inventory, pipe, counted, problem);
}

function isEnd(kind: DescriptionKind): kind is "reader" | "writer" {
  return kind === "reader" || kind === "writer";
}

function checkPipe(
  memory: ReadableMemory,
  inventory: Inventory,
  pipe: PhysicalAddress,
  { reader, writer }: Record<"reader" | "writer", number>,
  problem: (text: string) => void,
): void {
  const { readers, writers, filled, frame, start } = readPipe(memory, pipe);
  if (readers !== reader || writers !== writer)
    problem(`pipe ${hex(pipe)} counts ${readers} readers and ${writers} writers and has ${reader} and ${writer}`);
  inventory.block(frame, 0, KIND_KERNEL_HEAP, `the ring of pipe ${hex(pipe)}`);
  if (filled < 0 || filled > PIPE_CAPACITY || start < 0 || start >= PIPE_CAPACITY)
    problem(`pipe ${hex(pipe)} has ${filled} bytes from ${start}, and its ring ${PIPE_CAPACITY}`);
}

/** Inventory memory objects; each is held as often as it says, and its inode knows it. */
function checkObjects(
  memory: ReadableMemory,
  inventory: Inventory,
  mapped: ReadonlyMap<PhysicalAddress, number>,
  inodes: Inodes,
  problem: (text: string) => void,
): Set<PhysicalAddress> {
  const owners = new Map<PhysicalAddress, PhysicalAddress>();
  for (const { at, object } of inodes.found.values()) {
    if (object === 0) continue;
    if (owners.has(object)) problem(`memory object ${hex(object)} is of two inodes`);
    owners.set(object, at);
  }
  const objects = new Set<PhysicalAddress>();
  for (const object of new Set([...mapped.keys(), ...owners.keys()])) {
    if (!inventory.object(object, OBJECT_BYTES, "a memory object")) continue;
    objects.add(object);
    const { references, inode } = objectReferences(memory, object);
    const areas = mapped.get(object) ?? 0;
    const wanted = areas + (inode === 0 ? 0 : 1);
    if (references !== wanted) problem(`memory object ${hex(object)} says ${references} and is held by ${wanted}`);
    if (inode !== (owners.get(object) ?? 0)) problem(`memory object ${hex(object)} is not of the inode that it says`);
    if (inode !== 0) inodes.hold(inode, areas);
  }
  return objects;
}
