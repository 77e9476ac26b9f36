/** What a stored machine has of the host's files, read from its memory: whoever puts it in place opens them. */
import type { NamedPath } from "../../base/allowed-paths.js";
import { Contradiction } from "../../base/errors.js";
import type { ReadableMemory } from "../../base/memory.js";
import { savedDisk } from "../devices/block.js";
import { walkHostInodes } from "../files/inode.js";
import { walkMounts } from "../files/path.js";

/** @throws HIB_INCONSISTENT if it cannot be told */
export function hostPaths(memory: ReadableMemory): NamedPath[] {
  const named: NamedPath[] = [];
  const name = (what: NamedPath["what"], path: string): void => {
    if (!path.startsWith("/") || path.includes("\0")) throw new Contradiction(`a ${what} has no absolute path`);
    named.push({ what, path });
  };
  const disk = savedDisk(memory);
  if (disk !== undefined) name("disk", disk);
  for (const { host } of walkMounts(memory)) name("mount", host);
  for (const { host } of walkHostInodes(memory)) name("file", host?.path ?? "");
  return named;
}
