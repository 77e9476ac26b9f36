/** What a stored machine has of the host's files, read from its memory: whoever puts it in place opens them. */
import type { NamedPath } from "../../base/allowed-paths.js";
import type { ReadableMemory } from "../../base/memory.js";
import { savedDisk } from "../devices/block.js";
import { walkHostInodes } from "../files/inode.js";
import { walkMounts } from "../files/path.js";

/** @throws HIB_INCONSISTENT if it cannot be told */
export function hostPaths(memory: ReadableMemory): NamedPath[] {
  const disk = savedDisk(memory);
  return [
    ...(disk === undefined ? [] : [{ what: "disk" as const, path: disk }]),
    ...Array.from(walkMounts(memory), ({ host }) => ({ what: "mount" as const, path: host })),
    ...[...walkHostInodes(memory)].flatMap(({ host }) =>
      host === undefined ? [] : [{ what: "file" as const, path: host.path }],
    ),
  ];
}
