/** Sealing: the header last of all. Before it is on the disk, the blob is no image. */
import { failpoint } from "../base/failpoints.js";
import { BlobWriter } from "./blob.js";
import { encodeHeader, type ImageHeader } from "./format.js";

/**
 * Waits until all chunks are on the disk, then writes the header and waits for that.
 *
 * @throws HIB_IO, HIB_NO_SPACE
 */
export async function sealBlob(path: string, header: ImageHeader): Promise<void> {
  const blob = await BlobWriter.open(path, { direct: false });
  try {
    await blob.sync();
    failpoint("save.seal");
    await blob.write(encodeHeader(header), 0);
    await blob.sync();
  } finally {
    await blob.close();
  }
}
