/** Copies between the kernel and a process: pages that lie one after another in its memory, and not in the machine's. */
import test from "ava";
import { FRAME_BYTES, PTE_R, PTE_W } from "../src/base/layout.js";
import { O_CREAT, O_RDWR, SEEK_SET } from "../src/vm/files/flags.js";
import { DATA_BASE } from "../src/vm/personality/step/program.js";
import { callsOf, HandMachine } from "./support.js";

const AT = 0x4000_0000;
const PAGES = 3;

for (const [offset, length] of [
  [0, PAGES * FRAME_BYTES],
  [FRAME_BYTES - 1, 2],
  [FRAME_BYTES - 3, FRAME_BYTES + 6],
  [1, 0],
] as const) {
  test(`${length} bytes from ${offset} on go out to a file and come back, and nothing beside them`, (t) => {
    const machine = new HandMachine();
    const process = machine.spawn(1);
    const calls = callsOf(machine, process);
    const core = machine.run(process);
    t.is(calls.mmap({ address: AT, pages: PAGES, flags: PTE_R | PTE_W }), AT);
    for (let page = PAGES - 1; page >= 0; page--) core.store8(AT + page * FRAME_BYTES, 1);
    const frames = Array.from({ length: PAGES }, (_, page) => machine.frameOf(process, AT + page * FRAME_BYTES));
    t.true(
      frames.every((frame, page) => page === 0 || frame !== frames[page - 1]! + 1),
      `frames ${frames}`,
    );
    const byte = (i: number) => (i * 7 + 1) & 0xff;
    for (let i = 0; i < PAGES * FRAME_BYTES; i++) core.store8(AT + i, byte(i));
    const fd = calls.open("/f", O_RDWR | O_CREAT);
    t.is(calls.write(fd, AT + offset, length), length);
    calls.lseek(fd, 0, SEEK_SET);
    for (let i = 0; i < PAGES * FRAME_BYTES; i++) core.store8(AT + i, 0);
    t.is(calls.read(fd, AT + offset, length), length);
    for (let i = 0; i < PAGES * FRAME_BYTES; i++) {
      const expected = i >= offset && i < offset + length ? byte(i) : 0;
      if (core.load8(AT + i) !== expected) return t.fail(`byte ${i} is ${core.load8(AT + i)}`);
    }
    t.is(core.load8(DATA_BASE), 0);
  });
}
