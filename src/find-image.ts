/** The first step of a resume: every check of an image that costs nothing, in the order of S2.1. */
import { HibernaculumError } from "./base/errors.js";
import { FRAME_BYTES } from "./base/layout.js";
import { type Image, openImage } from "./image/directory.js";
import { MACHINE_VERSION } from "./image/format.js";
import { type FileRow, findChangedFiles } from "./image/host-files.js";
import { readHistory, usedBefore } from "./image/markers.js";
import type { Machine } from "./machine.js";
import type { ResumeSteps } from "./reports/resume-report.js";
import type { ResumeOptions } from "./resume-options.js";

/** S2.1, S2.9: an image that is whole, of this kernel and this much RAM, and not used. */
export async function findImage(machine: Machine, path: string, options: ResumeOptions, steps: ResumeSteps): Promise<Image> {
  const { again = false, keepImage = false, acceptChangedFiles = false } = options;
  const image = await openImage(path, {
    machineVersion: MACHINE_VERSION,
    onCheck: (check, found) => steps.passed(check, found),
  });
  try {
    const { frames } = machine.kernel.memory;
    const { ramFrames } = image.header;
    if (ramFrames !== frames) {
      throw new HibernaculumError(
        "HIB_RAM_MISMATCH",
        `${path} is of a machine with ${ramFrames * FRAME_BYTES} bytes of RAM, and this one has ${frames * FRAME_BYTES}; boot with --ram ${(ramFrames * FRAME_BYTES) / 2 ** 20}M`,
      );
    }
    steps.passed("RAM size", `${frames * FRAME_BYTES} bytes`);
    const { used } = await readHistory(path);
    if (used !== null && !again && !keepImage) throw usedBefore(path, used);
    steps.passed("not used before", used === null ? "by nobody" : "it was, and that is to be ignored");
    const files = image.catalogue.files();
    if (acceptChangedFiles) steps.passed("files of the host", `${files.length}, not looked at`);
    else {
      await refuseChangedFiles(path, files);
      steps.passed("files of the host", `${files.length}, as they were`);
    }
    return image;
  } catch (error) {
    image.close();
    throw error;
  }
}

/** S3.6: whoever goes on with other files than it had damages them. */
async function refuseChangedFiles(path: string, files: readonly FileRow[]): Promise<void> {
  const changed = await findChangedFiles(files);
  if (changed.length === 0) return;
  throw new HibernaculumError(
    "HIB_FILES_CHANGED",
    `${path}: files that the machine has open are not as they were when it was saved: ${changed
      .map((file) => `${file.path} ${file.how}`)
      .join("; ")}; put them back, or go on with what they are by --accept-changed-files`,
  );
}
