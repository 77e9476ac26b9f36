/** References: which frames of an image are pages of files of the host. Typed arrays in shared memory, in order of frame number. */
import type { Reference } from "../base/host-file.js";

export type ReferenceColumns = Pick<ReferenceTable, "length" | "pfn" | "frames" | "file" | "page" | "first" | "paths" | "hashes">;

/**
 * References, packed: there can be as many as frames, and every loader needs them.
 *
 *     index   pfn   frames  file  page  first
 *       0      16      3      0     7     0      frames 16, 17, 18 are pages 7, 8, 9 of paths[0]; their hashes are hashes[0] to [2]
 *       1      90      1      1     0     3      frame 90 is page 0 of paths[1]; its hash is hashes[3]
 */
export class ReferenceTable implements Iterable<Reference> {
  readonly length: number;
  readonly pfn: Uint32Array;
  readonly frames: Uint32Array;
  /** Place of its path in `paths`, where each path is once. */
  readonly file: Uint32Array;
  /** Page of the file that the first frame is. */
  readonly page: Float64Array;
  /** Place in `hashes` of that of the first frame. */
  readonly first: Uint32Array;
  readonly paths: string[];
  readonly hashes: BigUint64Array;

  /** A table with room for so many references and frames, for a reader to fill in order of pfn. */
  constructor(length: number, frames: number) {
    this.length = length;
    this.pfn = new Uint32Array(new SharedArrayBuffer(4 * length));
    this.frames = new Uint32Array(new SharedArrayBuffer(4 * length));
    this.file = new Uint32Array(new SharedArrayBuffer(4 * length));
    this.page = new Float64Array(new SharedArrayBuffer(8 * length));
    this.first = new Uint32Array(new SharedArrayBuffer(4 * length));
    this.paths = [];
    this.hashes = new BigUint64Array(new SharedArrayBuffer(8 * frames));
  }

  /** The same, with room for more. */
  grown(length: number, frames: number): ReferenceTable {
    const table = new ReferenceTable(length, frames);
    for (const column of ["pfn", "frames", "file", "page", "first"] as const) table[column].set(this[column]);
    table.hashes.set(this.hashes);
    return Object.assign(table, { paths: this.paths });
  }

  /** Its first so many references, in the same memory. */
  begin(length: number): ReferenceTable {
    const { pfn, frames, file, page, first, paths, hashes } = this;
    const columns: ReferenceColumns = {
      length,
      pfn: pfn.subarray(0, length),
      frames: frames.subarray(0, length),
      file: file.subarray(0, length),
      page: page.subarray(0, length),
      first: first.subarray(0, length),
      paths,
      hashes,
    };
    return Object.assign(new ReferenceTable(0, 0), columns);
  }

  /** The columns, to be handed to another thread. */
  get columns(): ReferenceColumns {
    const { length, pfn, frames, file, page, first, paths, hashes } = this;
    return { length, pfn, frames, file, page, first, paths, hashes };
  }

  at(i: number): Reference {
    const frames = this.frames[i]!;
    const first = this.first[i]!;
    const path = this.paths[this.file[i]!]!;
    return { pfn: this.pfn[i]!, frames, path, page: this.page[i]!, hashes: this.hashes.subarray(first, first + frames) };
  }

  *[Symbol.iterator](): Generator<Reference> {
    for (let i = 0; i < this.length; i++) yield this.at(i);
  }
}
