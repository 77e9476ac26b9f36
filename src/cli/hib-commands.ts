/** `hib`: the commands on machines and images. One file a command. */
import { addBoot } from "./boot.js";
import { createProgram, main } from "./command.js";
import { addCompare } from "./compare.js";
import { addDemo } from "./demo.js";
import { addDiff } from "./diff.js";
import { addExport } from "./export.js";
import { addImport } from "./import.js";
import { addImages } from "./images.js";
import { addInspect } from "./inspect.js";
import { addMerge } from "./merge.js";
import { addPrograms } from "./programs.js";
import { addPs } from "./ps.js";
import { addRemove } from "./remove.js";
import { addResume } from "./resume.js";
import { addRun } from "./run.js";
import { addSave } from "./save.js";
import { addVerify } from "./verify.js";

const program = createProgram("hib", "Live hibernation of emulated machines: save one while it runs, resume it elsewhere.");
for (const add of [
  addRun,
  addBoot,
  addPs,
  addSave,
  addResume,
  addImages,
  addInspect,
  addVerify,
  addDiff,
  addExport,
  addImport,
  addMerge,
  addRemove,
  addPrograms,
  addDemo,
  addCompare,
])
  add(program);
await main(program);
