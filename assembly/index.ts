/** The hot core, compiled to WebAssembly: everything that runs once a store, a fault or a frame. */
export {
  allocateFree, bindBlocks, freeBlock, headOf, insertFree, releaseBlock, removeFree, setKind, setOwner, shareBlock, splitBlock, useBlock,
} from "./blocks";
export { checksum, hashFrame } from "./checksum";
export { copyPages, invalidatePages, leafFlags, mapRun, protectLeaves, shareLeaves, taken, takeOutLeaves } from "./leaves";
export { bringIn, claimMissing, forgetMissing, isMissing, settle } from "./missing";
export { acknowledge, activate, attach, deactivate, dropContext, invalidate, load32, load8, prepareLoad, prepareStore, store32, store64, store8 } from "./mmu";
export { claimQueueEntry, faultsTaken, setTimelineBin, takeBackHeldPlace, takeBackPlace } from "./tracking";
export {
  beforeBulkStore, clearBitmap, clearBits, copyBitmap, countBits, countResidual, gather, isSameFilled, kernelCopy, kernelStore32,
  kernelStore8, kernelStoreFloat64, kernelZero, listMarked, listPlanned, listResidual, mergeBits, scatter, setBits, setFrameBit as setBit, stage, stagePreimage, stageWanted, subtractBits, takeMarks, touch,
} from "./frames";
