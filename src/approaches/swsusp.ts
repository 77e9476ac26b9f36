/**
 * Mainline swsusp (S4.1): everything stops, all of memory is copied, and the copies are written while the machine goes on, or before it
 * is powered off. The image is memory as of the start.
 *
 * It needs no tracking. (What a snapshot arms at its stop is for the image after it.) But the copies need as much memory as they are of: no more than half of RAM can be in use. And while
 * everything is copied nothing runs.
 */
import { HibernaculumError } from "../base/errors.js";
import { FRAME_BYTES } from "../base/layout.js";
import type { Save } from "./parts.js";

export async function swsusp(save: Save): Promise<void> {
  await save.prepare((reserve) => {
    const used = reserve.growToAll();
    refuseWithoutRoom(used, reserve.frames); // before anything is stopped
    return used;
  });
  save.planNothing();
  save.stop();
  const frames = save.list();
  refuseWithoutRoom(frames, save.places);
  save.copy(frames);
  save.go();
  await save.writeResidual();
}

/** @throws HIB_NO_MEMORY */
function refuseWithoutRoom(frames: number, places: number): void {
  if (frames <= places) return;
  const mib = (count: number) => `${count} frames (${Math.ceil((count * FRAME_BYTES) / 2 ** 20)} MiB)`;
  throw new HibernaculumError(
    "HIB_NO_MEMORY",
    `swsusp copies all that is in use, ${mib(frames)}, and there is room for ${mib(places)}; free some of the guest's memory, or take another approach`,
  );
}
