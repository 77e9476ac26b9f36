/**
 * A resume, as the seed tells it (S1, "When loading the image"), into a machine that has booted and goes on running its
 * boot processes meanwhile. One call per step, in order:
 *
 *     find      every check of S2.1, in its order; the host's files are as they were     S2.1, S2.9, S3.6
 *     attempt   it is on the disk that this was tried, before it is tried                S2.5
 *     classify  free here and used there: allocated, to be loaded directly               S1.6
 *     protect   everything that is there is write-protected                              S1.7
 *     load      all of the image is read and verified; each frame goes directly to its
 *               place, or is equal, or is queued                                         S1.6, S1.7
 *               (lazy: all but what processes have, which comes once the machine runs:
 *               residency.ts)
 *     stop      devices quiesce; examine the machine that is about to be put in place    S2.2
 *     consume   it is on the disk that the image is used                                 S2.9
 *     patch     atomic restore; what came back is counted, devices begin                 S1.8, S2.2
 *     go        the saved machine goes on
 *
 * What must hold: nothing that the booting machine holds is changed before all of the image has been read, has agreed with
 * its checksums and makes a machine that is consistent. Until then a failure costs nothing: the boot goes on, and the
 * attempt's outcome is noted. What a boot does about it is in boot.ts.
 */
import { fromSystemError, isSystemError, naming } from "./base/errors.js";
import { failpoint } from "./base/failpoints.js";
import { StepTimes } from "./base/step-times.js";
import { Cancellation } from "./cow/cancellation.js";
import { findImage } from "./find-image.js";
import type { Machine } from "./machine.js";
import { RESUME_TIMES, type ResumeReport, ResumeSteps } from "./reports/resume-report.js";
import { CANCEL_MESSAGES, checkResume, type ResumeOptions } from "./resume-options.js";
import { Resume } from "./resume-parts.js";

/**
 * Resumes an image in a machine that has booted. When it returns, the saved machine runs in it.
 *
 * @param path - the image. One that cannot be resumed stays where it is: setting it aside is for a boot (boot.ts), which
 * would find it again
 * @throws HIB_BUSY (also if another process is at the image), HIB_NOT_AN_IMAGE, HIB_FORMAT_VERSION, HIB_MACHINE_VERSION,
 * HIB_TRUNCATED, HIB_CORRUPT, HIB_RAM_MISMATCH, HIB_IMAGE_USED, HIB_FILES_CHANGED, HIB_NOT_ALLOWED, HIB_INCONSISTENT, HIB_IO,
 * HIB_NO_MACHINE, HIB_DISK_IN_USE, HIB_WORKER_DIED, HIB_NO_MEMORY, HIB_CANCELLED, HIB_USAGE: the booted machine runs on
 */
export async function resume(machine: Machine, path: string, options: ResumeOptions = {}): Promise<ResumeReport> {
  checkResume(machine, path, options);
  using _busy = machine.begin("resume");
  await machine.resident(options.signal);
  using cancellation = new Cancellation(machine, options.signal, CANCEL_MESSAGES);
  const steps = new ResumeSteps(cancellation.guard("onStep", options.onStep));
  const times = new StepTimes(RESUME_TIMES);
  try {
    const found = await findImage(machine, path, options, steps);
    times.ended("opened");
    return await resumeFrom(machine, new Resume(machine, found, options, { steps, times, cancellation }), path);
  } catch (error) {
    const failure = named(error, path);
    cancellation.close();
    steps.failed(failure);
    throw failure;
  } finally {
    machine.devices.block.forgetRestore();
    machine.mounts.forgetRestore();
  }
}

async function resumeFrom(machine: Machine, resume: Resume, path: string): Promise<ResumeReport> {
  using work = resume;
  try {
    await work.attempt();
    work.classify();
    work.protect();
    await work.load();
    work.stop();
    await work.consume();
    work.patch();
    work.go();
    failpoint("resume.running");
    return work.report();
  } catch (error) {
    const failure = named(machine.reasonFor(error), path);
    await work.abandon(failure);
    throw failure;
  }
}

function named(error: unknown, path: string): unknown {
  return isSystemError(error) ? fromSystemError(error, `resuming ${path}`) : naming(error, path);
}
