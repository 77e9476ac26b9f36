/**
 * The checksum of every frame of an image: 8 bytes stand for 4096, so that two images can be compared without either of
 * them in memory. Each chunk is read once, and checked.
 */
import { FRAME_BYTES } from "../base/layout.js";
import { checksum } from "./checksum.js";
import { REFERENCED, SAME_FILLED } from "./extents.js";
import { ImageMemory } from "./image-memory.js";
import type { ImageContents } from "./verify.js";

export interface FrameChecksums {
  /** 1 for a frame that is in the image. */
  present: Uint8Array;
  /** XXH64 by frame number; 0 for those that are not in the image. */
  hash: BigUint64Array;
}

/**
 * @param onProgress is told the bytes of the blob that have been read
 * @throws HIB_CORRUPT, HIB_TRUNCATED, HIB_IO
 */
export async function frameChecksums(image: ImageContents, onProgress?: (bytes: number) => void): Promise<FrameChecksums> {
  const { header, chunks, extents, references, blob, key } = image;
  const { ramFrames } = header;
  const present = new Uint8Array(ramFrames);
  const hash = new BigUint64Array(ramFrames);
  const memory = new ImageMemory({ frames: ramFrames, chunks, extents, references, blob, key });
  for (let i = 0; i < extents.length; i++) {
    const pfn = extents.pfn[i]!;
    const end = pfn + extents.frames[i]!;
    present.fill(1, pfn, end);
    if (extents.chunk[i] === SAME_FILLED) hash.fill(checksum(memory.readFrame(pfn)), pfn, end);
    if (extents.chunk[i] === REFERENCED) hash.set(references.at(Number(extents.fill[i]!)).hashes, pfn);
  }
  const { order, start } = extents.byChunk(chunks.length);
  let done = 0;
  for await (const { chunk, data } of memory.chunksInOrder()) {
    for (const i of order.subarray(start[chunk.id]!, start[chunk.id + 1]!)) {
      for (let frame = 0; frame < extents.frames[i]!; frame++) {
        const at = (extents.first[i]! + frame) * FRAME_BYTES;
        hash[extents.pfn[i]! + frame] = checksum(data.subarray(at, at + FRAME_BYTES));
      }
    }
    done += chunk.stored;
    onProgress?.(done);
  }
  return { present, hash };
}
