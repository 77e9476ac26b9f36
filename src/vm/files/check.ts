/** Are the files of a machine consistent: is everything held as often as it says? See consistency.ts. */
import type { PhysicalAddress, ReadableMemory } from "../../base/memory.js";
import { KERNEL_ROOT } from "../memory/kernel-layout.js";
import { objectReferences } from "../memory/memory-object.js";
import { listProcesses } from "../tasks/process.js";
import { type Description, walkFds } from "./descriptions.js";
import { type Inode, readInode, walkDirectory, walkHostInodes } from "./inode.js";
import { readPipe } from "./pipe.js";

/**
 * Checks inodes, descriptions and pipes.
 *
 * @param mapped - how many areas map each memory object
 * @returns every memory object that there is
 */
export function checkFiles(
  memory: ReadableMemory,
  mapped: ReadonlyMap<PhysicalAddress, number>,
  problem: (text: string) => void,
): Set<PhysicalAddress> {
  const held = new Map<PhysicalAddress, number>();
  const inodes = new Map<PhysicalAddress, Inode>();
  const hold = (at: PhysicalAddress): void => void held.set(at, (held.get(at) ?? 0) + 1);
  const visit = (at: PhysicalAddress): void => {
    if (inodes.has(at)) return;
    const inode = readInode(memory, at);
    inodes.set(at, inode);
    if (inode.type !== "directory") return;
    for (const entry of walkDirectory(memory, at)) {
      hold(entry.inode);
      visit(entry.inode);
    }
  };
  const root = memory.load32(KERNEL_ROOT) >>> 0;
  hold(root);
  visit(root);

  const descriptions = new Map<PhysicalAddress, { description: Description; fds: number }>();
  for (const { slot } of listProcesses(memory)) {
    for (const { description } of walkFds(memory, slot)) {
      const known = descriptions.get(description.at);
      if (known === undefined) descriptions.set(description.at, { description, fds: 1 });
      else known.fds++;
    }
  }
  const ends = new Map<PhysicalAddress, { reader: number; writer: number }>();
  for (const { description, fds } of descriptions.values()) {
    const { at, kind, behind, references } = description;
    if (references !== fds) problem(`file description 0x${at.toString(16)} says ${references} and is open as ${fds} fds`);
    if (kind === "inode") {
      hold(behind);
      visit(behind);
    } else if (kind !== "console") {
      const pipe = ends.get(behind) ?? { reader: 0, writer: 0 };
      pipe[kind]++;
      ends.set(behind, pipe);
    }
  }
  for (const [pipe, { reader, writer }] of ends) {
    const { readers, writers } = readPipe(memory, pipe);
    if (readers !== reader || writers !== writer)
      problem(`pipe 0x${pipe.toString(16)} counts ${readers} readers and ${writers} writers and has ${reader} and ${writer}`);
  }

  for (const inode of walkHostInodes(memory)) visit(inode.at);
  const objects = new Set(mapped.keys());
  for (const { object } of inodes.values()) if (object !== 0) objects.add(object);
  // A file that is only mapped is known by its object.
  for (const object of mapped.keys()) {
    const inode = objectReferences(memory, object).inode;
    if (inode !== 0) visit(inode);
  }
  for (const object of objects) {
    const { references, inode } = objectReferences(memory, object);
    const areas = mapped.get(object) ?? 0;
    const wanted = areas + (inode === 0 ? 0 : 1);
    if (references !== wanted) problem(`memory object 0x${object.toString(16)} says ${references} and is held by ${wanted}`);
    if (inode !== 0) for (let i = 0; i < areas; i++) hold(inode);
  }
  for (const { at, references } of inodes.values()) {
    if (references !== held.get(at)) problem(`inode 0x${at.toString(16)} says ${references} and is held by ${held.get(at) ?? 0}`);
  }
  return objects;
}
