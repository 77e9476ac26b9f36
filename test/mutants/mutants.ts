/**
 * Faults put into the code on purpose, one at a time, and the tests that should notice. Whoever changes a line that is named here
 * changes it here, too: text that is not found is an error.
 */
export interface Mutant {
  file: string;
  /** Exactly once in the file. */
  find: string;
  replace: string;
  /** Test files by name, and which of their tests. */
  tests: readonly { file: string; match?: string }[];
  breaks: string;
}

const clean = [{ file: "clean-pages" }];
const quiesce = [{ file: "quiesce" }];
const largest = [{ file: "largest-ram" }];
const equal = [{ file: "resume", match: "equal*" }];
const order = [{ file: "sync-order" }];
const marks = [{ file: "marks" }];
const crash = (match: string) => [{ file: "crash", match }];
const arming = [{ file: "arming" }];
const orders = [{ file: "interleavings" }];
const loader = [{ file: "loader" }];
const lists = [{ file: "lists" }];
const truncation = [{ file: "truncation", match: "!live*" }];
const hostIo = [{ file: "host-io" }];
const hostNames = [{ file: "host-names" }];
const hostRaces = [{ file: "host-races" }];

export const MUTANTS: readonly Mutant[] = [
  {
    file: "assembly/frames.ts",
    find: "for (let left: u32 = FRAME_BYTES; left != 0; left -= 128) {",
    replace: "for (const end = at + FRAME_BYTES; at < end; ) {",
    tests: largest,
    breaks: "the memory's last frame counts as same-filled",
  },
  {
    file: "assembly/checksum.ts",
    find: "for (let left = bytes; left != 0; left -= 32, at += 32) {",
    replace: "for (const end = at + bytes; at < end; at += 32) {",
    tests: largest,
    breaks: "the memory's last frame has one hash, whatever it holds",
  },
  {
    file: "src/vm/files/clean-pages.ts",
    find: "const known = this.#known.get(file.serial)",
    replace: "const known = [...this.#known.values()].find(({ path }) => path === file.path)",
    tests: clean,
    breaks: "a file that was closed and opened again is taken for the same",
  },
  {
    file: "src/vm/files/clean-pages.ts",
    find: "if (objectSerial(memory, object) !== serial) return OBJECT_PAGES_MAX;",
    replace: "if (objectSerial(memory, object) < serial * 0) return OBJECT_PAGES_MAX;",
    tests: clean,
    breaks: "the tables of a file that is gone are walked",
  },
  {
    file: "src/vm/memory/memory-object.ts",
    find: "frame + 1);\n    this.note(object);\n    return true;",
    replace: "frame + 1);\n    return true;",
    tests: clean,
    breaks: "a page that is read after the learning is not looked at at the stop",
  },
  {
    file: "src/vm/memory/memory-object.ts",
    find: "    this.#memory.storeFloat64(KERNEL_OBJECTS, serial);\n",
    replace: "",
    tests: clean,
    breaks: "objects have one number",
  },
  {
    file: "src/vm/files/clean-pages.ts",
    find: "if (bit(control.words, DIRTY_BITMAP, frame) === 1) known.hashes[i]",
    replace: "if (bit(control.words, DIRTY_BITMAP, frame) === 2) known.hashes[i]",
    tests: clean,
    breaks: "E3: a page that changed since it was learnt keeps its old hash",
  },
  {
    file: "src/vm/engines/vcpu.ts",
    find: "const leaves = control.load(MACHINE_STOP) === 0;",
    replace: "const leaves = control.load(MACHINE_STOP) < 2;",
    tests: quiesce,
    breaks: "a vCPU that comes late to a stop runs on in the next one",
  },
  {
    file: "src/vm/engines/vcpu.ts",
    find: "control.storeVcpu(this.#number, VCPU_STATE, VCPU_STATE_RUNNING);\n    this.#core.acknowledge();\n",
    replace: "this.#core.acknowledge();\n    control.storeVcpu(this.#number, VCPU_STATE, VCPU_STATE_RUNNING);\n",
    tests: quiesce,
    breaks: "a vCPU that comes late to a stop keeps its write tags",
  },
  {
    file: "src/resume.ts",
    find: "if (claims.queue.refused !== refused) this.#late = this.#readLate();",
    replace: "if (claims.queue.refused < 0 * refused) this.#late = this.#readLate();",
    tests: equal,
    breaks: "C4: frames refused during the consuming are not read again",
  },
  {
    file: "src/restore/late-frames.ts",
    find: "bit(words, KEEP_BITMAP, frame) === 1 && bit(words, CLAIMED_BITMAP, frame) === 0",
    replace: "bit(words, KEEP_BITMAP, frame) === 1 && bit(words, DIRTY_BITMAP, frame) < 2",
    tests: equal,
    breaks: "a frame that was equal, then stored to without room, is not read again",
  },
  {
    file: "assembly/frames.ts",
    find: "  const last = (address + bytes - 1) >>> FRAME_SHIFT;",
    replace: "  const last = (address + bytes - 2) >>> FRAME_SHIFT;",
    tests: marks,
    breaks: "a bulk store whose last byte alone lies in the next frame does not mark that",
  },
  {
    file: "assembly/frames.ts",
    find: "  const last = (address + bytes - 1) >>> FRAME_SHIFT;",
    replace: "  const last = min<u32>((address + bytes - 1) >>> FRAME_SHIFT, (address >>> FRAME_SHIFT) + 255);",
    tests: marks,
    breaks: "A2: bulk stores mark only their first 256 frames",
  },
  {
    file: "assembly/frames.ts",
    find: "for (let i: u32 = 0; i < count; i++) beforeStore(frame + i, FAULT_KERNEL);",
    replace: "for (let i: u32 = 0; i < min<u32>(count, 256); i++) beforeStore(frame + i, FAULT_KERNEL);",
    tests: marks,
    breaks: "zeroing marks only its first 256 frames",
  },
  {
    file: "assembly/tracking.ts",
    find: "        atomic.store<u32>(MACHINE_CANCEL, CANCEL_NO_ROOM);\n        setBit(OPEN_BITMAP, frame);\n",
    replace: "        setBit(OPEN_BITMAP, frame);\n",
    tests: marks,
    breaks: "A10: the coordinator's store without room does not give up the save",
  },
  {
    file: "src/cow/tracking.ts",
    find: "this.#control.store(MACHINE_KEEP_PREIMAGES, KEEP_NONE);\n    this.#shootDown();",
    replace: "this.#control.store(MACHINE_KEEP_PREIMAGES, KEEP_NONE);\n    this.#control.add(MACHINE_GENERATION, 1);",
    tests: marks,
    breaks: "B1: disarm does not wait for acknowledgements",
  },
  {
    file: "src/cow/tracking.ts",
    find: "[DIRTY_BITMAP, KEEP_BITMAP, CLAIMED_BITMAP, OPEN_BITMAP, SAVED_BITMAP]",
    replace: "[DIRTY_BITMAP, CLAIMED_BITMAP, OPEN_BITMAP, SAVED_BITMAP]",
    tests: marks,
    breaks: "arm for a resume keeps what was wanted before",
  },
  {
    file: "src/image/markers.ts",
    find: "await syncDirectory(dirname(marker));",
    replace: "await Promise.resolve(syncDirectory);",
    tests: order,
    breaks: "D1: the directory of a marker is not synced",
  },
  {
    file: "src/image/markers.ts",
    find: "    await file.sync();\n",
    replace: "",
    tests: order,
    breaks: "D2: a marker's file is not synced",
  },
  {
    file: "src/image/directory.ts",
    find: "await syncDirectory(dirname(final));",
    replace: "await Promise.resolve();",
    tests: order,
    breaks: "D3: the parent is not synced after the rename",
  },
  {
    file: "src/image/directory.ts",
    find: "        await syncDirectory(partial);\n",
    replace: "",
    tests: order,
    breaks: "the names of an image's files are not synced before its rename",
  },
  {
    file: "src/image/seal.ts",
    find: '    await blob.sync();\n    failpoint("save.seal");',
    replace: '    failpoint("save.seal");',
    tests: order,
    breaks: "D4: chunks are not synced before the header",
  },
  {
    file: "src/image/seal.ts",
    find: "encodeHeader(header), 0);\n    await blob.sync();",
    replace: "encodeHeader(header), 0);",
    tests: order,
    breaks: "the header is not synced before the image has its name",
  },
  {
    file: "src/image/codec.ts",
    find: "  checkStored(chunk, stored);\n  if (chunk.codec",
    replace: "  if (chunk.codec !== CODEC_RAW) checkStored(chunk, stored);\n  if (chunk.codec",
    tests: [{ file: "image", match: "codec*" }],
    breaks: "D7: the checksum of raw chunks is not compared",
  },
  // ---- what surrounds memory: devices, clock, entropy, files of the host ----
  {
    file: "src/vm/devices/timer.ts",
    find: 'if (after === "restore") control.',
    replace: "if (after.length > 0) control.",
    tests: [{ file: "clock" }],
    breaks: "E1: the clock is set back at every resume of devices, not only after a restore",
  },
  {
    file: "src/vm/devices/timer.ts",
    find: "saveState(): void {}\n\n  /** The clock at the consistency point: the last store before it. */\n  quiesce(): void {",
    replace: "quiesce(): void {}\n\n  saveState(): void {",
    tests: [{ file: "clock" }],
    breaks: "an image has the clock of its save's begin, not of its stop",
  },
  {
    file: "src/vm/devices/timer.ts",
    find: "control.setGuestClock(memory.loadFloat64(KERNEL_CLOCK))",
    replace: "control.setGuestClock(memory.loadFloat64(KERNEL_CLOCK) * 0)",
    tests: [{ file: "clock" }],
    breaks: "a machine that is resumed has a clock that begins at 0",
  },
  {
    file: "src/image/host-files.ts",
    find: "if (this.#frozen === undefined || this.#frozen.has(block)) return;",
    replace: "if (this.#frozen === undefined) return;",
    tests: [{ file: "host-files", match: "a block that is written more than once*" }],
    breaks: "E5: blocks that are written twice after the freeze overwrite their first hash",
  },
  {
    file: "src/image/host-files.ts",
    find: "except: file.pendingBlocks() };",
    replace: "except: [] };",
    tests: [
      { file: "host-files", match: "a write that is submitted at the freeze*" },
      { file: "disk-requests", match: "two writes of one sector at the stop*" },
    ],
    breaks: "E6: pending blocks are not excepted",
  },
  {
    file: "src/image/host-files.ts",
    find: "new Set([...row.except, ...unknown])",
    replace: "new Set([...this.#files[i]!.file.pendingBlocks(), ...unknown])",
    tests: [{ file: "host-files", match: "a write that comes between*" }],
    breaks: "blocks are excepted that are pending when the catalogue is written",
  },
  {
    file: "src/image/host-files.ts",
    find: "if (this.#known[block] === 0 && !frozen.has(block)) unknown.push(block);",
    replace: "if (this.#known[block] === 0) unknown.push(block);",
    tests: [{ file: "disk-requests", match: "a sector that is written between*" }],
    breaks: "blocks are excepted that are being written when the catalogue is written",
  },
  {
    file: "src/vm/devices/block.ts",
    find: "other.sector === sector",
    replace: "other.sector < sector * 0",
    tests: [{ file: "disk-requests", match: "two requests on one sector*" }],
    breaks: "E7: two requests on one sector are not ordered",
  },
  {
    file: "src/approaches/parts.ts",
    find: "if (!this.settings.keepRunning) await this.machine.devices.settle();",
    replace: "if (!this.settings.keepRunning) await Promise.resolve();",
    tests: [{ file: "disk-requests", match: "a hibernation waits*" }],
    breaks: "E9: devices are not settled before a hibernation is published",
  },
  {
    file: "src/vm/devices/entropy.ts",
    find: "this.#write(new Uint8Array(FRAME_BYTES));",
    replace: "this.#write(new Uint8Array(FRAME_BYTES - 4));",
    tests: [{ file: "devices", match: "entropy: of a pool*" }],
    breaks: "E12: the last word of the old pool is not erased",
  },
  {
    file: "src/vm/files/clean-pages.ts",
    find: "if (bit(control.words, DIRTY_BITMAP, frame) === 1) known.hashes[i]",
    replace: "if (bit(control.words, DIRTY_BITMAP, frame) === 2) known.hashes[i]",
    tests: [{ file: "disk-requests", match: "*a file that is written through*" }],
    breaks: "E3: a page that is written through while a save streams has the hash that it had before",
  },
  {
    file: "src/image/codec.ts",
    find: "  checkStored(chunk, stored);\n  if (chunk.codec",
    replace: "  if (chunk.codec !== CODEC_RAW) checkStored(chunk, stored);\n  if (chunk.codec",
    tests: [{ file: "raw-image" }],
    breaks: "D7: a flipped bit of an image without compression is not found",
  },
  {
    file: "src/image/markers.ts",
    find: "await syncDirectory(dirname(marker));",
    replace: "await Promise.resolve(syncDirectory);",
    tests: crash("a resume: the image stays whole*"),
    breaks: "D1: after a crash, a marker that was made is not there",
  },
  {
    file: "src/image/markers.ts",
    find: "    await file.sync();\n",
    replace: "",
    tests: crash("a resume: the image stays whole*"),
    breaks: "D2: after a crash, a marker is there and says nothing",
  },
  {
    file: "src/image/directory.ts",
    find: "          await syncDirectory(dirname(final));\n          failpoint",
    replace: "          failpoint",
    tests: crash("a hibernation*"),
    breaks: "D3: after a crash, the image of a machine that was powered off has no name",
  },
  {
    file: "src/image/seal.ts",
    find: '    await blob.sync();\n    failpoint("save.seal");',
    replace: '    failpoint("save.seal");',
    tests: crash("a hibernation*"),
    breaks: "D4: after a crash, a header is there and chunks are not",
  },
  {
    file: "src/image/seal.ts",
    find: "encodeHeader(header), 0);\n    await blob.sync();",
    replace: "encodeHeader(header), 0);",
    tests: crash("a hibernation*"),
    breaks: "after a crash, an image has its name and no header",
  },
  {
    file: "src/image/directory.ts",
    find: "        await syncDirectory(partial);\n",
    replace: "",
    tests: crash("a hibernation*"),
    breaks: "after a crash, an image has its name and its files have none",
  },
  {
    file: "src/image/directory.ts",
    find: "            .then(() => syncDirectory(dirname(final)))\n",
    replace: "",
    tests: crash("a save that fails*"),
    breaks: "after a crash, the image of a save that failed is back",
  },
  {
    file: "src/image/catalogue-writer.ts",
    find: "        await file.sync();\n",
    replace: "",
    tests: crash("a hibernation*"),
    breaks: "after a crash, an image has part of its catalogue",
  },
  {
    file: "src/image/host-files.ts",
    find: "promisify(fdatasync)(file.descriptor));",
    replace: "Promise.resolve(promisify(fdatasync)));",
    tests: crash("a hibernation*"),
    breaks: "after a crash, the disk of a machine that was powered off lacks what it wrote",
  },
  {
    file: "src/image/markers.ts",
    find: "await syncDirectory(dirname(from));",
    replace: "await Promise.resolve();",
    tests: crash("a boot that sets an image aside*"),
    breaks: "after a crash, an image that was set aside is found again",
  },
  // ---- end of what surrounds memory ----

  // ---- callbacks, threads that die, two at one image ----
  {
    file: "src/cow/cancellation.ts",
    find: "if (this.#closed) return warnOf(name, thrown);",
    replace: "",
    tests: [{ file: "callbacks", match: "resume: an onStep that throws*" }],
    breaks: "what a callback throws after the point of no return is lost",
  },
  {
    file: "src/base/control.ts",
    find: "      this.checkLost(); // what the lock guards may be half changed\n",
    replace: "",
    tests: [{ file: "lost", match: "a vCPU that dies with an error*" }],
    breaks: "the kernel of a machine that is lost is looked at",
  },
  {
    file: "src/base/control.ts",
    find: "if (this.load(offset) === seen) this.#lookForDead();",
    replace: "",
    tests: [{ file: "lost", match: "a vCPU that dies while the coordinator*" }],
    breaks: "a vCPU that died without a word is waited for",
  },
  {
    file: "src/image/directory.ts",
    find: 'if (partial?.writer !== "gone") continue;',
    replace: 'if (partial === undefined || partial.writer === "alive") continue;',
    tests: [{ file: "image", match: "removeStalePartials*" }],
    breaks: "a save of another host is swept",
  },
  {
    file: "src/image/markers.ts",
    find: "if (attempt !== undefined) await refuseOthers(path, attempt);",
    replace: "",
    tests: [{ file: "image", match: "setAside*" }],
    breaks: "an image is renamed under a resume that has just begun",
  },
  {
    file: "src/resume.ts",
    find: "this.#marks.attempt(() => this.#image.blob.isInPlace())",
    replace: "this.#marks.attempt(() => true)",
    tests: [{ file: "two-resumes" }],
    breaks: "a resume marks the image that took the place of its own",
  },

  // ---- replays ----
  {
    file: "src/vm/personality/step/programs/replay.ts",
    find: "createRunner(text).dataPages > limits.frames",
    replace: "createRunner(text).dataPages > Infinity",
    tests: [{ file: "programs", match: "checkProcess: a process of somebody*" }],
    breaks: "a replay has more pages than the machine has frames",
  },
  {
    file: "src/vm/personality/step/programs/replay.ts",
    find: "if (performance.now() > until) return false;",
    replace: "if (performance.now() > until + 30_000) return false;",
    tests: [{ file: "programs", match: "checkProcess: a process of somebody*" }],
    breaks: "a replay does not give up in time",
  },

  // ---- tracking, tail, loader and lists ----
  {
    file: "assembly/frames.ts",
    find: "      if (!testBitAfterReads(CLAIMED_BITMAP, frame)) {\n        setBit(SAVED_BITMAP, frame);",
    replace:
      "      if ((atomic.load<u32>(CLAIMED_BITMAP + ((frame >>> 5) << 2)) & (1 << (frame & 31))) == 0) {\n        setBit(SAVED_BITMAP, frame);",
    tests: orders,
    breaks: "on ARM the tail may look at the claim before it has read the frame",
  },
  {
    file: "assembly/tracking.ts",
    find: "        if (waits > 0) atomic.store<u32>(wanted, 0);\n        setBit(OPEN_BITMAP, frame);",
    replace:
      "        if (waits > 0) atomic.store<u32>(wanted, 0);\n        const open: usize = OPEN_BITMAP + ((frame >>> 5) << 2);\n        store<u32>(open, load<u32>(open) | (1 << (frame & 31)));",
    tests: orders,
    breaks: "on ARMv8.0 a store may be seen before its claim: nothing orders the two",
  },
  {
    file: "assembly/frames.ts",
    find: "      if (!testBitAfterReads(CLAIMED_BITMAP, frame)) {\n        setBit(SAVED_BITMAP, frame);\n        return verdict;\n      }",
    replace: "      setBit(SAVED_BITMAP, frame);\n      if (!testBitAfterReads(CLAIMED_BITMAP, frame)) return verdict;",
    tests: orders,
    breaks: "A6: the tail says that a frame is saved before it looks at the claim again",
  },
  {
    file: "assembly/tracking.ts",
    find: "      while (entry >= atomic.load<u32>(MACHINE_TOUCHING)) {",
    replace: "      while (entry > atomic.load<u32>(MACHINE_TOUCHING)) {",
    tests: orders,
    breaks: "the first place of a block that is being touched is given out",
  },
  {
    file: "assembly/tracking.ts",
    find: "while (atomic.load<u32>(QUEUE_FRAMES + (entry << 2)) == FRAME_NONE) {",
    replace: "while (atomic.load<u32>(LIST_FRAMES + (entry << 2)) == FRAME_NONE - 1) {",
    tests: orders,
    breaks: "a place into which a pre-image is being copied is given out",
  },
  {
    file: "src/restore/page-loader.ts",
    find: "      if (claimed() === 0) {\n        this.#result.equal++;",
    replace: "      if (claimed() < 2) {\n        this.#result.equal++;",
    tests: loader,
    breaks: "C1: what was equal, and written to before that was said, is not queued",
  },
  {
    file: "src/cow/claims.ts",
    find: "    this.#place(lentTo, pool.first, pool.count);",
    replace: "    this.#place(lentTo + 1, pool.first, pool.count);",
    tests: lists,
    breaks: "the pool does not follow what is lent",
  },
  {
    file: "src/cow/claims.ts",
    find: "return MAX_FRAMES - pool - this.#control.load(MACHINE_QUEUE_END);",
    replace: "return MAX_FRAMES - this.#control.load(MACHINE_QUEUE_END);",
    tests: lists,
    breaks: "so much is lent that the pool lies beyond the queue",
  },
  {
    file: "src/writer/locations.ts",
    find: "if (this.#fill[frame] !== fill) this.#fill[frame] = fill;",
    replace: "if (fill !== 0n) this.#fill[frame] = fill;",
    tests: lists,
    breaks: "a stale fill that is not zero wins over a later one of zero",
  },
  {
    file: "src/writer/locations.ts",
    find: "if (this.#fill[frame] !== fill) this.#fill[frame] = fill;",
    replace: "if (this.#fill[frame] === 0n) this.#fill[frame] = fill;",
    tests: lists,
    breaks: "the first fill wins over later ones",
  },

  // ---- resume and its marks ----
  {
    file: "src/vm/tasks/turns.ts",
    find: "      core.dropContext(slot);\n",
    replace: "",
    tests: [{ file: "resume", match: "a process that was in the same slot*" }],
    breaks: "C6: contexts are not dropped after a restore",
  },
  {
    file: "src/resume.ts",
    find: "    await work.consume();\n    work.patch();\n    work.go();\n",
    replace: "    work.patch();\n    work.go();\n    await work.consume();\n",
    tests: [{ file: "resume", match: "the image is used, on the disk*" }],
    breaks: "C5: the image is marked as used once the saved machine runs",
  },
  {
    file: "src/resume.ts",
    find: "    await work.consume();\n    work.patch();\n",
    replace: "    work.patch();\n    await work.consume();\n",
    tests: [{ file: "resume", match: "the image is used, on the disk*" }],
    breaks: "C5: the image is marked as used once there is no way back",
  },
  {
    file: "src/image/markers.ts",
    find: "number > (setAside?.attempts ?? 0)",
    replace: "number >= (setAside?.attempts ?? 0)",
    tests: [{ file: "boot", match: "readHistory*" }],
    breaks: "D6: a death that was answered counts again",
  },
  {
    file: "src/image/markers.ts",
    find: "number > (setAside?.attempts ?? 0)",
    replace: "number > 0",
    tests: [{ file: "boot", match: "readHistory*" }],
    breaks: "D6: a setting aside does not answer the deaths before it",
  },
  {
    file: "src/image/markers.ts",
    find: "attempts: attempts.at(-1)?.number ?? 0",
    replace: "attempts: attempts.at(0)?.number ?? 0",
    tests: [{ file: "image", match: "setAside: * attempts*" }],
    breaks: "D6: a setting aside answers the first death only",
  },
  {
    file: "src/image/markers.ts",
    find: "attempts: attempts.at(-1)?.number ?? 0",
    replace: "attempts: attempts.length",
    tests: [{ file: "image", match: "setAside: * attempts*" }],
    breaks: "D6: attempts are counted where their numbers are meant",
  },
  {
    file: "src/image/markers.ts",
    find: ", {})) return n;",
    replace: ", {})) return Math.min(n, 5);",
    tests: [{ file: "image", match: "recordAttempt*" }],
    breaks: "D6: attempts are not counted beyond five",
  },

  // ---- a whole save, page by page ----
  {
    file: "src/approaches/parts.ts",
    find: '    await this.#writeList("queue", queue.start, queue.end);\n',
    replace: "",
    tests: [{ file: "exact", match: "snapshot, all in the tail, lz4*" }],
    breaks: "pre-images of a tail are not written",
  },
  {
    file: "src/approaches/parts.ts",
    find: '"queue", queue.start, queue.end',
    replace: '"queue", queue.start + copied, queue.end',
    tests: [{ file: "exact", match: "snapshot, all copied, lz4*" }],
    breaks: "copies are not written",
  },
  {
    file: "src/approaches/parts.ts",
    find: '    await this.#writeList("tail", copied, residual);\n',
    replace: "",
    tests: [{ file: "exact", match: "hibernation without places, lz4*" }],
    breaks: "what found no place is not written",
  },
  {
    file: "src/cow/claims.ts",
    find: "this.#control.words[(SAVED_BITMAP >>> 2) + (frame >>> 5)]! |= 1 << (frame & 31);",
    replace: "void frame;",
    tests: lists,
    breaks: "a pre-image is kept of a frame that was copied",
  },
  {
    file: "assembly/tracking.ts",
    find: "if (atomic.load<u32>(MACHINE_STOP_SET) == set) return inSet;",
    replace: "if (set != 0) return inSet;",
    tests: [{ file: "interleavings", match: "tail: what belongs to the image*" }],
    breaks: "a bit of SAVEABLE counts that is of a time after the stop's copy",
  },
  {
    file: "src/cow/tracking.ts",
    find: "    this.#core.copyBitmap(STOP_BITMAP, SAVEABLE_BITMAP);\n    this.#control.store(MACHINE_STOP_SET, STOP_BITMAP);",
    replace: "    this.#control.store(MACHINE_STOP_SET, STOP_BITMAP);\n    this.#core.copyBitmap(STOP_BITMAP, SAVEABLE_BITMAP);",
    tests: [{ file: "pause" }],
    breaks: "the stop's set counts before it is there",
  },
  {
    file: "src/approaches/parts.ts",
    find: "      quiesce.release();\n      if (!this.#noted) this.#note();\n    });",
    replace: "      quiesce.release();\n    });\n    if (!this.#noted) this.#note();",
    tests: [{ file: "pause" }],
    breaks: "the kernel is open before what belongs to the image is noted",
  },
  {
    file: "src/cow/tracking.ts",
    find: "[DIRTY_BITMAP, KEEP_BITMAP, CLAIMED_BITMAP, OPEN_BITMAP, SAVED_BITMAP]",
    replace: "[DIRTY_BITMAP, KEEP_BITMAP, CLAIMED_BITMAP, OPEN_BITMAP]",
    tests: [{ file: "exact", match: "whatever is in the bitmaps*" }],
    breaks: "what an earlier tail saved counts as saved in the next",
  },
  {
    file: "src/cow/tracking.ts",
    find: "[DIRTY_BITMAP, KEEP_BITMAP, CLAIMED_BITMAP, OPEN_BITMAP, SAVED_BITMAP]",
    replace: "[DIRTY_BITMAP, KEEP_BITMAP, CLAIMED_BITMAP, SAVED_BITMAP]",
    tests: [{ file: "exact", match: "whatever is in the bitmaps*" }],
    breaks: "B2: what an earlier tail or resume opened is open in the next tail",
  },
  {
    file: "src/cow/tracking.ts",
    find: "[DIRTY_BITMAP, KEEP_BITMAP, CLAIMED_BITMAP, OPEN_BITMAP, SAVED_BITMAP]",
    replace: "[DIRTY_BITMAP, KEEP_BITMAP, CLAIMED_BITMAP, SAVED_BITMAP]",
    tests: marks,
    breaks: "what an earlier tail opened is open in a resume",
  },
  {
    file: "assembly/tracking.ts",
    find: "load<u32>(self == MAX_VCPUS ? MACHINE_QUEUE_END : MACHINE_QUEUE_ROOM);\n  let entry",
    replace: "load<u32>(MACHINE_QUEUE_ROOM);\n  let entry",
    tests: [{ file: "exact", match: "a tail with just the spare places*" }],
    breaks: "the coordinator does not find its spare places",
  },

  // ---- arming, in every order ----
  {
    file: "assembly/mmu.ts",
    find: "    writeContext = freshContext();\n    const context",
    replace: "    const context",
    tests: arming,
    breaks: "a vCPU acknowledges and keeps its write tags",
  },
  {
    file: "assembly/tracking.ts",
    find: "  return (atomic.or<u32>(word, bit) & bit) == 0;",
    replace: "  store<u32>(word, load<u32>(word) | bit);\n  return true;",
    tests: arming,
    breaks: "of two marks in one word that are made at once, one is lost",
  },
  {
    file: "assembly/frames.ts",
    find: "  beforeStore(address >>> FRAME_SHIFT, FAULT_KERNEL);\n  store<u32>(physical(address), value);",
    replace:
      "  if (load<u32>(physical(address)) != value) store<u32>(physical(address), value);\n  else beforeStore(address >>> FRAME_SHIFT, FAULT_KERNEL);",
    tests: arming,
    breaks: "the kernel marks only what it does not change",
  },

  {
    file: "assembly/tracking.ts",
    find: "    if (place < RAM_PLACE) return -1; // the pool, which comes last",
    replace: "    if (place < RAM_PLACE) { atomic.store<u32>(MACHINE_QUEUE_START, entry + 1); continue; }",
    tests: marks,
    breaks: "pre-images in the pool are given up for who finds no memory",
  },

  {
    file: "src/vm/files/clean-pages.ts",
    find: "buddy.setKind(frame, KIND_FILE_KEPT);",
    replace: "buddy.setKind(frame, KIND_FILE_KEPT - 2);",
    tests: [{ file: "pause", match: "clean pages of a file*before the save*" }],
    breaks: "what a resume kept of a file is written over what somebody else wrote",
  },

  // ---- files of the host ----
  {
    file: "src/vm/tasks/trims.ts",
    find: "control.storeVcpu(vcpu, VCPU_TRIM, 1);",
    replace: "control.storeVcpu(vcpu, VCPU_TRIM, 0);",
    tests: truncation,
    breaks: "a process on another vCPU keeps the pages of a file that was cut",
  },
  {
    file: "src/vm/tasks/trims.ts",
    find: "vcpu < 0 || this.#runs(vcpu);",
    replace: "vcpu < MAX_VCPUS || this.#runs(vcpu);",
    tests: truncation,
    breaks: "a file is cut while a vCPU that runs who maps it is stopped",
  },
  {
    file: "src/vm/tasks/trims.ts",
    find: "        if (vcpu < 0) core.dropContext(slot);\n",
    replace: "        if (vcpu < -1) core.dropContext(slot);\n",
    tests: truncation,
    breaks: "a process that rests has tags of pages that were cut off",
  },
  {
    file: "src/vm/tasks/trims.ts",
    find: "(own >= 0 && told(own)), LOOK_MS",
    replace: "own < -1, LOOK_MS",
    tests: truncation,
    breaks: "two that cut wait for each other",
  },
  {
    file: "src/vm/tasks/turns.ts",
    find: "      this.#trims.take(slot);\n      memory.store32(at + K.PROCESS_VCPU, -1);",
    replace: "      memory.store32(at + K.PROCESS_VCPU, -1);",
    tests: truncation,
    breaks: "a process leaves its vCPU with leaves that it was told to lose",
  },
  {
    file: "src/vm/engines/vcpu.ts",
    find: "this.#kernel.turns.settle(this.#slot, () => this.#control.storeVcpu(this.#number, VCPU_STATE, VCPU_STATE_STOPPED));",
    replace: "this.#control.storeVcpu(this.#number, VCPU_STATE, VCPU_STATE_STOPPED);",
    tests: truncation,
    breaks: "a vCPU stops before it has done what it was told",
  },
  {
    file: "src/vm/memory/address-space.ts",
    find: "area.start, this.#endOfPages(area), (address",
    replace: "area.start, area.end, (address",
    tests: truncation,
    breaks: "a child has leaves of pages that a file has no more",
  },
  {
    file: "src/vm/files/contents.ts",
    find: "      this.trims.await(slot);\n      const inode",
    replace: "      const inode",
    tests: truncation,
    breaks: "a file gets longer while others still have what was cut off",
  },
  {
    file: "src/vm/files/contents.ts",
    find: "    else this.#clearTail(inode);\n",
    replace: "",
    tests: truncation,
    breaks: "what was stored beyond the end is there when the file gets longer",
  },
  {
    file: "src/vm/files/host-pages.ts",
    find: "this.#parts.control.unlocked(() => tryHost(() => call(asked)))",
    replace: "tryHost(() => call(asked))",
    tests: hostIo,
    breaks: "the kernel is locked while the host reads or writes",
  },
  {
    file: "src/vm/files/host-pages.ts",
    find: "now.host!.path === asked.host!.path) return",
    replace: 'now.host!.path !== "") return',
    tests: hostIo,
    breaks: "a file that is renamed while it is opened is not found",
  },
  {
    file: "src/vm/files/host-pages.ts",
    find: "if (this.#parts.buddy.kindOf(frame) !== KIND_FILE) continue;",
    replace: "if (this.#parts.buddy.kindOf(frame) >= 0) continue;",
    tests: hostIo,
    breaks: "a write is undone by what is written back meanwhile",
  },
  {
    file: "src/vm/files/host-pages.ts",
    find: "this.#look(inode) ?? done.now",
    replace: "done.now",
    tests: hostIo,
    breaks: "the machine takes its own write for somebody else's",
  },
  {
    file: "src/vm/files/host-pages.ts",
    find: "    this.#inodes.share(inode.at); // whoever",
    replace: "    // whoever",
    tests: hostIo,
    breaks: "an inode goes while its file is read",
  },
  {
    file: "src/vm/files/host-pages.ts",
    find: "      this.#parts.objects.makeDirty(inode.object, frame);\n    this.#inodes.makeOwn",
    replace: "      void frame;\n    this.#inodes.makeOwn",
    tests: hostNames,
    breaks: "pages of a file without a name are said to be in the file",
  },
  {
    file: "src/vm/files/file-locks.ts",
    find: "    this.#control.store(wordOf(inode), 1);",
    replace: "    this.#control.store(wordOf(inode), 0);",
    tests: hostIo,
    breaks: "two calls are at work on one file",
  },
  {
    file: "src/vm/files/files.ts",
    find: "      const { position } = readDescription(this.#parts.memory, open.at); // who shares it may have moved it",
    replace: "      const { position } = open;",
    tests: hostIo,
    breaks: "a position that was moved while a call waited is used",
  },
  {
    file: "src/vm/files/names.ts",
    find: "there!.nlink > 1n ? -EBUSY",
    replace: "there!.nlink > 9n ? -EBUSY",
    tests: hostNames,
    breaks: "a file that others see by another name becomes the machine's own",
  },
  {
    file: "src/vm/files/names.ts",
    find: "path.startsWith(from + sep) ?",
    replace: "path === from ?",
    tests: hostNames,
    breaks: "open files below a directory that is renamed keep their old paths",
  },
  {
    file: "src/vm/files/clean-pages.ts",
    find: "return { ...known, path: file.path };",
    replace: "return known;",
    tests: clean,
    breaks: "pages of a file that was renamed are said to be at its old path",
  },
  {
    file: "src/vm/files/host-paths.ts",
    find: "path: join(placeWithin(mount, descriptor), name) }",
    replace: "path: join(mount.root, name) }",
    tests: hostRaces,
    breaks: "names are made outside of a mount",
  },
  {
    file: "src/vm/files/host-paths.ts",
    find: "work({ at: ",
    replace: "work({ at: true ? join(placeWithin(mount, descriptor), name) : ",
    tests: hostRaces,
    breaks: "a directory is looked at, and then another one is used",
  },
  {
    file: "src/vm/files/mount-roots.ts",
    find: "root < 0 ? MISSING : root + 1",
    replace: "BY_PATH",
    tests: hostRaces,
    breaks: "a mount is whatever is at its path now",
  },

  // ---- the catalogue's reader ----
  {
    file: "src/image/sqlite-file.ts",
    find: "if (seen[page] === 1)",
    replace: "if (seen[page] === 2)",
    tests: [{ file: "sqlite-file" }],
    breaks: "a forged tree is walked as often as it leads to the same pages",
  },
  {
    file: "src/image/sqlite-file.ts",
    find: "if (type === LEAF_TABLE && row.id <= last)",
    replace: "if (type === LEAF_TABLE && row.id < last)",
    tests: [{ file: "sqlite-file" }],
    breaks: "a row is read twice",
  },
  {
    file: "src/image/sqlite-file.ts",
    find: "if (bytes > this.bytes)",
    replace: "if (bytes < 0)",
    tests: [{ file: "sqlite-file" }],
    breaks: "cells that overlap are more rows than a file has room for",
  },
  {
    file: "src/image/sqlite-file.ts",
    find: "next = page.readUInt32BE(0);",
    replace: "next = next + 1;",
    tests: [{ file: "sqlite-file" }],
    breaks: "overflow pages are read in the order of the file, and not of their chain",
  },
  {
    file: "src/image/sqlite-row.ts",
    find: "return Number.isSafeInteger(value) ? value : Number.NaN;",
    replace: "return value;",
    tests: [{ file: "sqlite-file" }],
    breaks: "a number of 64 bits is rounded, and passes for one in range",
  },
  {
    file: "src/image/catalogue-checks.ts",
    find: "row.blobBytes(column) === bytes(row);",
    replace: "row.blobBytes(column) >= 0 || bytes(row) < 0;",
    tests: [{ file: "forged-catalogue", match: "whatever is no*" }],
    breaks: "a reference has fewer hashes than frames",
  },
  {
    file: "src/base/turns.ts",
    find: "if (signal?.aborted === true)",
    replace: "if (signal?.aborted === undefined)",
    tests: [{ file: "catalogue-turns" }],
    breaks: "an import of a large catalogue cannot be cancelled",
  },
  {
    file: "src/image/json.ts",
    find: "depth > JSON_DEPTH_MAX",
    replace: "depth > json.length",
    tests: [{ file: "catalogue-turns", match: "a value*" }],
    breaks: "JSON is followed as deep as it goes",
  },
  {
    file: "src/image/catalogue.ts",
    find: "if (files.size > FILES_MAX)",
    replace: "if (files.size > MAX_FRAMES)",
    tests: [{ file: "catalogue-turns", match: "frames in more*" }],
    breaks: "a million paths are looked up on the host",
  },
  {
    file: "src/image/verify.ts",
    find: "for (const { except } of catalogue.files()) void except;",
    replace: "void catalogue.files();",
    tests: [{ file: "forged-catalogue", match: "whatever is no*" }],
    breaks: "what hib verify takes, a resume refuses",
  },
  {
    file: "src/image/host-files.ts",
    find: "if (!known.has(part) && known.size < PARTS_MAX)",
    replace: "if (known.size < PARTS_MAX)",
    tests: [{ file: "host-files", match: "*thousand*" }],
    breaks: "a file that is named a thousand times is read a thousand times",
  },
  {
    file: "src/vm/views/consistency.ts",
    find: "&& memory.has?.(at) === false);",
    replace: "&& memory.has?.(at) === undefined);",
    tests: [{ file: "forged-catalogue", match: "frames that its*" }],
    breaks: "what an image does not have, its machine takes from the one that was booting",
  },
  {
    file: "src/restore/page-loader.ts",
    find: "this.#placeRun(references.pfn[reference]! + frame, frames, data, 0);",
    replace: "this.#placeRun(references.pfn[reference]!, frames, data, 0);",
    tests: [{ file: "files" }],
    breaks: "the second 256 frames of a reference are put over the first",
  },
];

/** Changes that no test can notice, since nothing that anybody sees depends on them: not to be tried again. */
export const EQUIVALENT: readonly { file: string; change: string; reason: string }[] = [
  {
    file: "src/cow/tracking.ts",
    change: "B3: arming for a save clears KEEP, or leaves there what an earlier resume did",
    reason:
      "KEEP is looked at only in a resume (MACHINE_KEEP_PREIMAGES is KEEP_FOR_RESTORE), and by what reads late frames. A resume begins with armForRestore, which clears it first; no handler of an earlier save is at work by then, since disarm has waited for all of them.",
  },
  {
    file: "src/vm/memory/leaves.ts",
    change: "collapse frees its tables before the leaf is in (clear instead of #takeOut, or the table before `map`)",
    reason:
      "The kernel lock is held throughout. If the leaf needs a table anew, the frame that was just freed is there for it, so map cannot fail for want of memory, and the tables are the same in the end. Keeping them saves work.",
  },
  {
    file: "src/image/markers.ts",
    change: "releaseUse does not sync the directory after it has removed the claim",
    reason:
      "A resume that gives its claim back notes its outcome in the same directory right afterwards, and that marker's sync covers the removal. If the outcome cannot be noted, the image stays used, which is safe.",
  },
];
