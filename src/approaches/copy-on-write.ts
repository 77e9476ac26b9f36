/**
 * The variant of the handler in which it copies the original contents, to a page prepared beforehand (S3.3). The image is memory as of
 * the start.
 *
 * Nothing is read before the stop, so all of memory is in the residual set: it is protected and saved while the machine goes on, and a
 * store that comes first keeps the pre-image. Whoever is faster than the page writers uses the pool up, and waits for its own frame.
 * The pool is a ring, never grows, and takes nothing from the guest.
 */
import type { Save } from "./parts.js";

export async function copyOnWrite(save: Save): Promise<void> {
  await save.prepare((reserve) => reserve.usePool());
  save.arm();
  save.planNothing();
  save.learnFiles();
  save.stop();
  save.protect();
  save.go();
  await save.writeResidual();
}
