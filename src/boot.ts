/**
 * A boot that looks for an image: it resumes the machine in there, or goes on normally, whatever is wrong (S2.1, S2.5).
 *
 *     no image            boot on
 *     two deaths at it    set aside, untried; boot on
 *     resume              the saved machine runs
 *       fails             set aside; boot on
 *       not the image's fault, or another machine's image by now: left alone; boot on
 *
 * What must hold: an image is never deleted, and one that failed is never tried again by itself: a boot that went on has
 * changed the world that the saved machine knows, so to get it back, ask for it (`resume`). And no image is
 * renamed under another process that is at it, or that has used it.
 */
import { type ErrorCode, fromSystemError, HibernaculumError, serializeError } from "./base/errors.js";
import { failpoint } from "./base/failpoints.js";
import { holdsImage } from "./image/directory.js";
import { deaths, holderOf, readHistory, setAside } from "./image/markers.js";
import type { Machine } from "./machine.js";
import { resume } from "./resume.js";
import { type BootOptions, checkBoot } from "./resume-options.js";
import type { ResumeReport } from "./reports/resume-report.js";

export type { BootOptions } from "./resume-options.js";

/** What became of the image. */
export type BootResult =
  | { how: "resumed"; report: ResumeReport }
  /** The machine is as it was booted: start in it what is to run. */
  | { how: "booted"; found: "no image" }
  | {
      how: "booted";
      found: "image";
      /** Why it was not resumed. */
      error: HibernaculumError;
      /** Its path now; null if it was left where it is. */
      setAside: string | null;
      /** Why it could not be set aside: the next boot finds it again. */
      stuck: HibernaculumError | null;
    };

/** Boots that may die at an image before it is set aside. */
export const DEATHS_MAX = 2;

/** These say nothing about the image: the same boot a little later, or elsewhere, might resume it. */
const NOT_THE_IMAGE: readonly ErrorCode[] = [
  "HIB_BUSY",
  "HIB_CANCELLED",
  "HIB_DEPENDENCY",
  "HIB_DISK_IN_USE",
  "HIB_IMAGE_USED",
  "HIB_KEY_NEEDED",
  "HIB_KEY_WRONG",
  "HIB_USAGE",
];

/** Another machine is at the image, or has used it: no boot renames that. */
const OF_ANOTHER: readonly ErrorCode[] = ["HIB_BUSY", "HIB_IMAGE_USED"];

/**
 * Resumes the image at `path` in a machine that has booted, or leaves that machine to go on booting.
 *
 * @param machine - may run its boot processes: they go on if the image is not resumed
 * @param path - where an image may be. An image of other RAM is set aside like any that fails: left where it is, a later
 * boot with the right RAM would bring back a machine that the world has moved on without
 * @throws HIB_USAGE, and what ended the machine itself, if that was lost; no error of an image is thrown
 *
 * @example
 * const machine = await Machine.boot({ ramBytes: 256 * 2 ** 20, vcpus: 2 });
 * const { how } = await bootOrResume(machine, "machine.hib");
 * if (how === "booted") machine.spawn("zipf:pages=10000");
 */
export async function bootOrResume(machine: Machine, path: string, options: BootOptions = {}): Promise<BootResult> {
  checkBoot(machine, path, options);
  try {
    if (!(await holdsImage(path))) return { how: "booted", found: "no image" };
    await refuseDeadly(path);
    return { how: "resumed", report: await resume(machine, path, options) };
  } catch (thrown) {
    if (machine.isOff) throw thrown;
    machine.check(); // a machine that is broken would not boot on
    const { code, message } = serializeError(thrown);
    const error = thrown instanceof HibernaculumError ? thrown : new HibernaculumError(code, message, { cause: thrown });
    return { how: "booted", found: "image", error, ...(await putOutOfTheWay(path, error)) };
  }
}

/** @throws HIB_RESUMES_DIED if boots have died at this image, and it is nobody's now */
async function refuseDeadly(path: string): Promise<void> {
  const history = await readHistory(path);
  if (deaths(history) < DEATHS_MAX || history.used !== null || holderOf(history) !== undefined) return;
  throw new HibernaculumError(
    "HIB_RESUMES_DIED",
    `${path}: ${deaths(history)} resumes of it died with their process, so a boot does not try it again; hib resume does`,
  );
}

async function putOutOfTheWay(
  path: string,
  { code, message }: HibernaculumError,
): Promise<{ setAside: string | null; stuck: HibernaculumError | null }> {
  const left = { setAside: null, stuck: null };
  if (NOT_THE_IMAGE.includes(code)) return left;
  try {
    if (!(await holdsImage(path))) return left; // another boot was quicker
    failpoint("boot.set-aside");
    return { setAside: await setAside(path, code, message), stuck: null };
  } catch (thrown) {
    if (OF_ANOTHER.includes(serializeError(thrown).code)) return left;
    return { setAside: null, stuck: fromSystemError(thrown, `setting aside ${path}`) };
  }
}
