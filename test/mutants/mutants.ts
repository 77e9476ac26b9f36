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
    find: "this.#known.get(file.serial)",
    replace: "[...this.#known.values()].find(({ path }) => path === file.path)",
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
    find: "bit(words, KEEP_BITMAP, frame) === 1 && bit(words, DIRTY_BITMAP, frame) === 0",
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
    find: "[DIRTY_BITMAP, KEEP_BITMAP, OPEN_BITMAP], KEEP_FOR_RESTORE",
    replace: "[DIRTY_BITMAP, OPEN_BITMAP], KEEP_FOR_RESTORE",
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
    file: "src/hibernate.ts",
    find: "if (!this.#options.keepRunning) await this.#machine.devices.settle();",
    replace: "if (!this.#options.keepRunning) await Promise.resolve();",
    tests: [{ file: "disk-requests", match: "a hibernation waits*" }],
    breaks: "E9: devices are not settled before a hibernation is published",
  },
  {
    file: "src/vm/devices/entropy.ts",
    find: "new Uint8Array(FRAME_BYTES), ",
    replace: "new Uint8Array(FRAME_BYTES - 4), ",
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
    file: "src/image/catalogue.ts",
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
];
