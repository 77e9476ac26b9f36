/** A resume in memory of its own (S3.5): it borrows nothing from the booting machine, and says beforehand if that is too little. */
import { join } from "node:path";
import ava from "ava";
import { FRAME_BYTES, MACHINE_QUEUE_END, QUEUE_PLACES } from "../src/base/layout.js";
import { save } from "../src/hibernate.js";
import { resume } from "../src/resume.js";
import { KIND_RESERVE } from "../src/vm/memory/kernel-layout.js";
import { placeOfFrame } from "../src/vm/memory/physical.js";
import { blocksOfKind } from "../src/vm/views/walker.js";
import { bootMachine, findWrong, scratch, until, whileStopped } from "./support.js";

const test = ava.serial;

for (const lazy of [false, true]) {
  test(`what a resume needs for itself is refused below the figure, and enough at it; lazy: ${lazy}`, async (t) => {
    const saved = await bootMachine(t);
    saved.spawn("zipf:pages=800");
    await until(() => saved.processes()[0]!.steps > 0, "it has run");
    const path = join(scratch(t), "image");
    await save(saved, path);

    const machine = await bootMachine(t, { pageThreads: 2 });
    machine.spawn("boot-housekeeping:400");
    const refused = await t.throwsAsync(resume(machine, path, { lazy, reservedBytes: 1 }), { code: "HIB_NO_MEMORY" });
    const figure = Number(/needs ([\d.]+) MiB for itself/.exec(refused!.message)![1]);
    const enough = Math.round(figure * 10) * (2 ** 20 / 10);
    const less = Math.floor(enough - 2 ** 20 / 10);
    await t.throwsAsync(resume(machine, path, { lazy, reservedBytes: less }), { code: "HIB_NO_MEMORY" });
    t.is(machine.processes().length, 1, "the booted machine runs on");

    let places = 0;
    const free = machine.kernel.buddy.freeFrames;
    const report = await resume(machine, path, {
      lazy,
      reservedBytes: enough,
      onLoaded: () => {
        const first = placeOfFrame(0);
        places = machine.control.load(MACHINE_QUEUE_END);
        const ofGuest = machine.control.words.subarray(QUEUE_PLACES >>> 2, (QUEUE_PLACES >>> 2) + places);
        t.true(
          ofGuest.every((place) => place < first),
          "no place is the booting machine's",
        );
        t.deepEqual(blocksOfKind(machine.kernel.memory, KIND_RESERVE), []);
      },
    });
    t.true(free > 0 && places > 0);
    t.is(report.frames.overflow, 0, "all of it is restored at once");
    t.true(report.own_bytes.places >= places * FRAME_BYTES);
    t.true(report.own_bytes.places + report.own_bytes.buffers + report.own_bytes.tables <= enough);
    t.deepEqual(
      whileStopped(machine, () => findWrong(machine.kernel.memory)),
      [],
    );
    await machine.resident();
  });
}
