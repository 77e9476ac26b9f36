/** The approaches by name, but for the default one: that is the story of hibernate.ts. */
import type { ApproachName } from "../reports/approaches.js";
import { adaptive } from "./adaptive.js";
import { captureKernel } from "./capture-kernel.js";
import { copyOnWrite } from "./copy-on-write.js";
import type { Approach } from "./parts.js";
import { swsusp } from "./swsusp.js";

export const OTHER_APPROACHES: Readonly<Record<Exclude<ApproachName, "write-fault">, Approach>> = {
  "copy-on-write": copyOnWrite,
  swsusp,
  adaptive,
  "capture-kernel": captureKernel,
};
