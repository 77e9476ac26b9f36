/**
 * The library: machines that hibernate live.
 *
 * @example
 * import { Machine, resume, save } from "hibernaculum";
 *
 * const machine = await Machine.boot({ ramBytes: 256 * 2 ** 20, vcpus: 2 });
 * machine.spawn("zipf:pages=10000,rate=100000");
 * const report = await save(machine, "machine.hib");
 * console.log(report.pause.total_ms);
 *
 * const other = await Machine.boot({ ramBytes: 256 * 2 ** 20, vcpus: 2 });
 * await resume(other, "machine.hib"); // or bootOrResume, which boots on if that fails
 * await other.powerOff();
 */
export { bootOrResume, type BootOptions, type BootResult } from "./boot.js";
export { type ErrorCode, HibernaculumError, type SerializedError } from "./base/errors.js";
export type { Key, Keys } from "./base/key.js";
export type { ReadableMemory } from "./base/memory.js";
export type { FaultCounts, FaultOwner, FaultStatistics } from "./cow/fault-statistics.js";
export { save } from "./hibernate.js";
export type { Catalogue } from "./image/catalogue.js";
export type { BlockRow, MappingRow, Meta, ProcessRow } from "./image/catalogue-rows.js";
export { type Image, openImage, type OpenOptions, removeStalePartials } from "./image/directory.js";
export { type ImageEntry, type ImageState, listImages } from "./image/list.js";
export {
  type Attempt,
  type History,
  isUsed,
  type Outcome,
  readHistory,
  setAside,
  type SetAside,
  type Use,
} from "./image/markers.js";
export type { Extent, ExtentTable } from "./image/extents.js";
export type { Chunk, ImageHeader } from "./image/format.js";
export type { FileRow } from "./image/host-files.js";
export type { ImageMemory } from "./image/image-memory.js";
export { type Merged, mergeImage } from "./image/merge.js";
export { removeImage } from "./image/remove.js";
export { type ExportOptions, exportImage, type Imported, type ImportOptions, importImage } from "./image/stream.js";
export { type Verified, verifyChunks } from "./image/verify.js";
export { type ChangedRange, diffImages, type DiffOptions, type ImageDiff, type ProcessDiff } from "./reports/image-diff.js";
export { Machine, type MachineOptions } from "./machine.js";
export { resume } from "./resume.js";
export type { ResumeOptions, ResumeProgress } from "./resume-options.js";
export { APPROACH_NAMES, type ApproachName, type ConsistencyPoint } from "./reports/approaches.js";
export type { ResidentReport, ResumeReport, ResumeStep, ResumeStepName } from "./reports/resume-report.js";
export type { SavePhase, SaveProgress } from "./reports/save-progress.js";
export { REPORT_SCHEMA, type SaveReport } from "./reports/save-report.js";
export type { SaveOptions } from "./save-options.js";
export { type Consistency, checkConsistency } from "./vm/views/consistency.js";
export { listProcesses, type Process } from "./vm/tasks/process.js";
export { checkProcess, type ProcessCheck } from "./vm/personality/step/programs/check.js";
export type { DiskRequest } from "./vm/devices/block-requests.js";
export { type OptionHelp, programHelp, programNames, type ProgramHelp } from "./vm/personality/step/programs/index.js";
