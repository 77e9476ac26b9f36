/** What an image names of the host: a resume would open it. */
import type { NamedPath } from "./base/allowed-paths.js";
import { Contradiction, type HibernaculumError } from "./base/errors.js";
import type { Image } from "./image/directory.js";
import { hostPaths } from "./vm/views/host-paths.js";

/**
 * Disk, mounts and files, from the machine's memory and from the catalogue; some of them twice. Opens nothing but the image.
 *
 * @throws HIB_INCONSISTENT, HIB_CORRUPT, HIB_TRUNCATED, HIB_IO if it cannot be told
 */
export function namedPaths(image: Image): NamedPath[] {
  const named = inMemory(image);
  const disk = diskOf(named);
  for (const { path } of image.catalogue.files()) named.push({ what: path === disk ? "disk" : "file", path });
  for (const path of image.references.paths) named.push({ what: "file", path });
  return named;
}

/** Path of the disk that the machine had, if it had one. */
export function diskOf(named: readonly NamedPath[]): string | undefined {
  return named.find(({ what }) => what === "disk")?.path;
}

function inMemory(image: Image): NamedPath[] {
  const memory = image.memory({ cachedChunks: 8, allowed: [] });
  try {
    return hostPaths(memory);
  } catch (error) {
    if ((error as HibernaculumError).code !== "HIB_NOT_ALLOWED") throw error;
    throw new Contradiction("what its kernel has is said to be in a file of the host");
  } finally {
    memory.close();
  }
}
