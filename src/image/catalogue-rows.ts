/** What is in a catalogue, table by table (`design/image-format.md`). */
import type { Pfn, VirtualAddress } from "../base/memory.js";
import type { Reference } from "../base/host-file.js";
import type { Extent } from "./extents.js";
import type { Chunk } from "./format.js";
import type { FileRow } from "./host-files.js";

/** A process, as it was at the consistency point. */
export interface ProcessRow {
  pid: number;
  slot: number;
  name: string;
  state: string;
  steps: number;
  /** What else there is to know; any JSON. */
  detail: unknown;
}

/** A run of pages of a process that is contiguous in virtual and in physical memory. */
export interface MappingRow {
  pid: number;
  vaddr: VirtualAddress;
  /** Order of the buddy blocks that the frames lie in. */
  order: number;
  pfn: Pfn;
  pages: number;
  /** The leaf's flag bits (V R W X U G A D). */
  flags: number;
  /** Offset in the blob of the chunk that holds the first frame; null when it is same-filled or not in the image. */
  blobOffset: number | null;
}

/** Buddy blocks of a kind, an owner and an order. */
export interface BlockRow {
  kind: string;
  /** PID, 0 for the kernel. */
  owner: number;
  order: number;
  blocks: number;
  frames: number;
}

/** Frames of RAM. */
export interface RegionRow {
  pfn: Pfn;
  frames: number;
}

/** A run of pages of a memory object that is contiguous in physical memory. */
export interface ObjectRow {
  object: number;
  page: number;
  pfn: Pfn;
  pages: number;
}

/** A directory of the host that the machine sees. */
export interface MountRow {
  path: string;
  host: string;
  readOnly: boolean;
}

/** Any JSON values by name. */
export type Meta = Record<string, unknown>;

export interface CatalogueContents {
  meta: Meta;
  regions: Iterable<RegionRow>;
  chunks: Iterable<Chunk>;
  /** Fastest in order of pfn. */
  extents: Iterable<Extent>;
  /** Those of kind "file" in `extents` are not looked at: they are these. */
  references: Iterable<Reference>;
  processes: Iterable<ProcessRow>;
  mappings: Iterable<MappingRow>;
  objects: Iterable<ObjectRow>;
  blocks: Iterable<BlockRow>;
  files: Iterable<FileRow>;
  mounts: readonly MountRow[];
}
