/** The approaches to saving a running machine (src/approaches), and of which instant each one's image is: its consistency point. */
export type ApproachName =
  /** Streamed under write protection; what was written meanwhile is saved as of the stop (S1). */
  | "write-fault"
  /** All of memory is protected, and a store copies the page first (S3.3). */
  | "copy-on-write"
  /** All of memory is copied while the machine stands still, and the copies are written (S4.1). */
  | "swsusp"
  /** As write-fault, but what was written is streamed again until the pause is predicted to be short. */
  | "adaptive"
  /** A process that can only read the machine writes all of it while it stands still (S3.4, S4.3). */
  | "capture-kernel";

/** Of the save: it stops the machine before anything is read, or when nearly all is written. */
export type ConsistencyPoint = "start" | "end";

export const CONSISTENCY_POINTS: Readonly<Record<ApproachName, ConsistencyPoint>> = {
  "write-fault": "end",
  "copy-on-write": "start",
  swsusp: "start",
  adaptive: "end",
  "capture-kernel": "start",
};
export const APPROACH_NAMES: readonly ApproachName[] = Object.keys(CONSISTENCY_POINTS) as ApproachName[];
export const DEFAULT_APPROACH: ApproachName = "write-fault";
