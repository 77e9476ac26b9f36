/**
 * A page loader meets a store to a frame that it is about to call equal: at each of its steps, the store is made there and then. Either
 * the handler keeps the frame as it was, or the loader queues the image's version, or both.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import ava from "ava";
import {
  FRAME_BYTES,
  FRAME_SHIFT,
  KEEP_BITMAP,
  MACHINE_LOAD_CURSOR,
  MACHINE_QUEUE_CURSOR,
  OPEN_BITMAP,
  QUEUE_SPARE,
  RAM_BASE,
} from "../src/base/layout.js";
import { bit } from "../src/base/control.js";
import { Claims } from "../src/cow/claims.js";
import { packChunks } from "../src/image/chunk-table.js";
import { ExtentTable, SAME_FILLED } from "../src/image/extents.js";
import { ReferenceTable } from "../src/image/reference-table.js";
import { loadPages } from "../src/restore/page-loader.js";
import type { Core } from "../src/vm/memory/core.js";
import { PhysicalMemory, POOL_PLACE } from "../src/vm/memory/physical.js";
import { HandMachine, scratch } from "./support.js";

/** One at a time: a step of the loader's is watched in a prototype. */
const test = ava.serial;

const FRAME = 2048;
const FILL = 0x1234_5678;
const STORED = 0x7777;

/** The loader's steps, before or after which the store is made. */
const STEPS = [
  "before the comparison",
  "after the comparison",
  "after it says equal",
  "after its claim",
  "after it marks",
  "at the end",
];

for (const [at, where] of STEPS.entries()) {
  for (const equal of [true, false]) {
    test(`loader: a store to a frame that is ${equal ? "equal" : "different"}, ${where}: the image's version is kept`, async (t) => {
      const machine = new HandMachine();
      const { control, kernel } = machine;
      const value = equal ? FILL : FILL + 1;
      kernel.memory.write(FRAME * FRAME_BYTES, new Uint8Array(new Uint32Array(FRAME_BYTES / 4).fill(value).buffer));
      const claims = new Claims(control);
      claims.openQueue({ first: POOL_PLACE, count: 4 + QUEUE_SPARE }, Infinity);
      machine.tracking.armForRestore();
      control.store(MACHINE_LOAD_CURSOR, 0);

      let passed = 0;
      const store = (): void => {
        passed++;
        machine.vcpus[0]!.core.kernelStore32(FRAME * FRAME_BYTES + 8, STORED);
      };
      const reach = (step: number): void => {
        if (step === at && passed === 0) store();
      };
      const core: Core = {
        ...kernel.core,
        setBit: (bitmap, frame) => {
          const set = kernel.core.setBit(bitmap, frame);
          if (bitmap === KEEP_BITMAP) reach(2);
          return set;
        },
        claimQueueEntry: () => {
          const entry = kernel.core.claimQueueEntry();
          reach(3);
          return entry;
        },
      };
      const { equals } = PhysicalMemory.prototype;
      PhysicalMemory.prototype.equals = function (frame, bytes) {
        reach(0);
        const same = equals.call(this, frame, bytes);
        reach(1);
        return same;
      };
      const table = new ExtentTable(1);
      [table.pfn[0], table.frames[0], table.chunk[0]] = [FRAME, 1, SAME_FILLED];
      table.fill[0] = (BigInt(FILL) << 32n) | BigInt(FILL);
      const blob = join(scratch(t), "blob");
      writeFileSync(blob, "");
      try {
        const task = {
          blobs: [{ path: blob, key: undefined }],
          chunks: packChunks([]),
          wanted: new Uint32Array(0),
          extents: table.columns,
          ...table.byChunk(0),
          filled: table.sameFilled(),
          references: new ReferenceTable(0, 0).columns,
          runs: new Uint32Array(0),
          allowed: [],
          acceptedFiles: new Set<string>(),
        };
        await loadPages(machine.memory, core, task, () => undefined);
      } finally {
        PhysicalMemory.prototype.equals = equals;
      }
      if (passed === 0) store(); // at its end, or it does not come there
      t.is(passed, 1);
      t.is(kernel.memory.load32(FRAME * FRAME_BYTES + 8), STORED);
      t.is(bit(control.words, OPEN_BITMAP, FRAME), 1);
      const kept: number[] = [];
      claims.visitQueued((frame, place) => {
        if (frame === FRAME) kept.push((place << FRAME_SHIFT) - RAM_BASE);
      });
      t.true(kept.length > 0, `nothing is queued, and ${control.load(MACHINE_QUEUE_CURSOR)} are claimed`);
      for (const place of kept)
        t.true(kernel.memory.read(place, FRAME_BYTES).every((byte, i) => byte === (FILL >>> ((i & 3) * 8)) % 256));
    });
  }
}
