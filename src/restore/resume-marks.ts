/** What a resume leaves on the disk beside its image: that it was tried (S2.5), that the image is used (S2.9), how it ended. */
import { HibernaculumError, serializeError } from "../base/errors.js";
import { failpoint } from "../base/failpoints.js";
import { cannotBeMarked, claimUse, recordAttempt, recordOutcome, refuseHeld, releaseUse } from "../image/markers.js";

export interface MarkOptions {
  /** Resume an image that was used before, or one that cannot be marked. */
  again?: boolean;
  /** Leave no mark. */
  keepImage?: boolean;
}

export class ResumeMarks {
  readonly #path: string;
  readonly #again: boolean;
  readonly #keepImage: boolean;
  /** The attempt's number, once it is on the disk. */
  #attempt: number | undefined;
  #claimed = false;

  constructor(path: string, { again = false, keepImage = false }: MarkOptions) {
    this.#path = path;
    this.#again = again;
    this.#keepImage = keepImage;
  }

  /**
   * Notes that a resume begins: one that dies leaves a trace, and of two at once the first goes on.
   *
   * @param isInPlace - whether the image that was opened is the one that is there; from the attempt on nobody sets it aside
   * @returns what became of it, for the report
   * @throws HIB_BUSY, HIB_IO, HIB_NO_SPACE
   */
  async attempt(isInPlace: () => boolean): Promise<string> {
    if (!this.#keepImage) this.#attempt = await this.#recordAttempt();
    failpoint("resume.attempt");
    if (this.#attempt !== undefined) await refuseHeld(this.#path, this.#attempt);
    if (!isInPlace())
      throw new HibernaculumError(
        "HIB_BUSY",
        `${this.#path} was renamed or replaced while its files were compared; see what is there now`,
      );
    if (this.#attempt !== undefined) return `${this.#attempt}, recorded`;
    return this.#keepImage ? "not recorded" : "not recorded: the image is read-only here";
  }

  /**
   * Notes that the image is used, before the first instruction runs.
   *
   * @returns what became of it, for the report
   * @throws HIB_IMAGE_USED, HIB_IO, HIB_NO_SPACE
   */
  async claim(): Promise<string> {
    if (this.#attempt === undefined) return this.#keepImage ? "not asked for" : "not marked: the image is read-only here";
    try {
      await claimUse(this.#path, "a resume", this.#attempt);
      this.#claimed = true;
    } catch (error) {
      const used = error instanceof HibernaculumError && error.code === "HIB_IMAGE_USED";
      if (!used || !this.#again) throw error;
      await recordOutcome(this.#path, this.#attempt, "resumed", "once more");
    }
    return "marked as used";
  }

  /** Nothing of the image has run: gives the claim back and notes why. Never throws. */
  async failed(error: unknown): Promise<void> {
    if (this.#claimed) await releaseUse(this.#path);
    if (this.#attempt === undefined) return;
    const { code, message } = serializeError(error);
    await recordOutcome(this.#path, this.#attempt, code, message);
  }

  async #recordAttempt(): Promise<number | undefined> {
    try {
      return await recordAttempt(this.#path);
    } catch (cause) {
      if (!cannotBeMarked(cause)) throw cause;
      if (this.#again) return undefined;
      throw new HibernaculumError(
        "HIB_IO",
        `${this.#path} is read-only here, so it cannot be marked as used: --again resumes it without a mark, and then it looks as if it was never resumed; or copy it to where you may write`,
        { cause },
      );
    }
  }
}
