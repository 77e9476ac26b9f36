/**
 * Calls of the kernel that have much to do: how long each takes in one piece, which is how long a stop would wait for it. In time of
 * this process, so that others who use the host do not count.
 *
 *     node --single-threaded dist/bench/kernel-calls.js [PAGES]      of the process that forks, maps and unmaps; default 50,000
 */
import process from "node:process";
import { fileURLToPath } from "node:url";
import { ACCESS_WRITE, FRAME_BYTES, PTE_R, PTE_W } from "../src/base/layout.js";
import { createDeviceCalls } from "../src/vm/devices/calls.js";
import { O_CREAT, O_RDWR, SEEK_SET } from "../src/vm/files/flags.js";
import { Kernel } from "../src/vm/kernel.js";
import { instantiateCore } from "../src/vm/memory/core.js";
import { createMemory } from "../src/vm/memory/physical.js";
import { A0, DATA_BASE, type KernelCalls } from "../src/vm/personality/step/program.js";
import { createSystemCalls } from "../src/vm/personality/step/system-calls.js";
import { type Process, readProcess, readRegisters } from "../src/vm/tasks/process.js";
import { type Figure, median } from "./measure.js";

const ROUNDS = 7;
const RW = PTE_R | PTE_W;
const HUGE_PAGES = 512;
const FILE_BYTES = 1 << 20;
/** Far from the areas that a process begins with, and aligned to 2 MiB. */
const MAPPED = 0x4000_0000;

/** A vCPU in this thread. */
class Bench {
  readonly kernel: Kernel;
  #slot = 0;

  constructor(ramBytes: number) {
    const memory = createMemory(ramBytes);
    const core = instantiateCore(memory, {
      pageFault: (address, access) => this.fault(address, access),
      now: () => performance.now(),
    });
    core.attach(0);
    this.kernel = new Kernel(memory, core, 0);
    this.kernel.boot();
  }

  fault(address: number, access: number): void {
    this.kernel.control.locked(() => this.kernel.space(this.#slot).fault(address >>> 0, access));
  }

  spawn(pages: number): Process {
    const template = {
      dataPages: pages,
      stackPages: 1,
      rate: 0,
      initialPage: (_: number, out: Uint8Array) => out.fill(1) === out,
    };
    return this.kernel.lifecycle.spawn("bench", template);
  }

  run({ slot, root }: Process): KernelCalls {
    this.#slot = slot;
    this.kernel.core.activate(slot, root);
    const devices = createDeviceCalls(this.kernel, { slot, pid: 0 } as never, () => undefined);
    return createSystemCalls(
      this.kernel,
      slot,
      () => undefined,
      devices,
      () => undefined,
    );
  }

  fork({ slot }: Process): Process {
    this.kernel.lifecycle.fork(slot);
    while (this.kernel.lifecycle.goOn(slot));
    const pid = readRegisters(this.kernel.memory, slot)[A0]!;
    for (let other = 0; ; other++) {
      const found = readProcess(this.kernel.memory, other);
      if (found?.pid === pid) return found;
    }
  }

  /** Stores a byte to each page. */
  touch(address: number, pages: number): void {
    for (let page = 0; page < pages; page++) this.kernel.core.store8((address + page * FRAME_BYTES) | 0, 1);
  }
}

function kernelCallFigures(pages: number): Figure[] {
  const bench = new Bench(pages * FRAME_BYTES * 3 + 256 * 2 ** 20);
  const measured = new Map<string, number[]>();
  const time = <T>(name: string, count: number, work: () => T): T => {
    const began = process.cpuUsage();
    const result = work();
    const { user, system } = process.cpuUsage(began);
    const values = measured.get(name) ?? [];
    values.push((user + system) / count);
    measured.set(name, values);
    return result;
  };
  const parent = bench.spawn(pages);
  for (let round = 0; round < ROUNDS; round++) {
    bench.run(parent);
    const child = time(`fork, ${pages} pages`, 1, () => bench.fork(parent));
    bench.run(child);
    time("fault: copy on write", 2000, () => bench.touch(DATA_BASE, 2000));
    time(`end of a process, ${pages} shared pages`, 1, () => bench.kernel.lifecycle.end(child.slot));
    const own = bench.spawn(pages);
    time(`end of a process, ${pages} pages of its own`, 1, () => bench.kernel.lifecycle.end(own.slot));
    const calls = bench.run(parent);
    calls.mmap({ address: MAPPED, pages, flags: RW });
    time("fault: demand-zero", pages, () => bench.touch(MAPPED, pages));
    time(`mprotect, ${pages} pages, none`, 1, () => calls.mprotect(MAPPED, pages, 0));
    time(`mprotect, ${pages} pages, all`, 1, () => calls.mprotect(MAPPED, pages, RW));
    time("madvise, each 2 MiB", 8, () => calls.madviseHuge(MAPPED, 8 * HUGE_PAGES));
    time("mprotect that splits 2 MiB", 1, () => calls.mprotect(MAPPED, 1, PTE_R));
    time(`munmap, ${pages} pages`, 1, () => calls.munmap(MAPPED, pages));
    calls.mmap({ address: MAPPED, pages: 2 * HUGE_PAGES, flags: RW });
    bench.touch(MAPPED, 2 * HUGE_PAGES);
    calls.madviseHuge(MAPPED, 2 * HUGE_PAGES);
    const other = bench.fork(parent);
    bench.run(parent);
    time("fault: copy on write, 2 MiB", 2, () => {
      bench.fault(MAPPED, ACCESS_WRITE);
      bench.fault(MAPPED + HUGE_PAGES * FRAME_BYTES, ACCESS_WRITE);
    });
    bench.kernel.lifecycle.end(other.slot);
    calls.munmap(MAPPED, 2 * HUGE_PAGES);
    files(calls, time);
  }
  return [...measured].map(([name, values]) => ({ name, value: median(values), unit: "us" }));
}

function files(calls: KernelCalls, time: <T>(name: string, count: number, work: () => T) => T): void {
  const fd = calls.open("/f", O_RDWR | O_CREAT)!;
  time("write, 1 MiB to a new file", 1, () => calls.write(fd, DATA_BASE, FILE_BYTES));
  calls.lseek(fd, 0, SEEK_SET);
  time("write, 1 MiB", 1, () => calls.write(fd, DATA_BASE, FILE_BYTES));
  calls.lseek(fd, 0, SEEK_SET);
  time("read, 1 MiB", 1, () => calls.read(fd, DATA_BASE, FILE_BYTES));
  for (let i = 0; i < 15; i++) calls.write(fd, DATA_BASE, FILE_BYTES);
  time("ftruncate, 16 MiB", 1, () => calls.ftruncate(fd, 0));
  calls.close(fd);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  for (const { name, value, unit } of kernelCallFigures(Number(process.argv[2] ?? 50_000)))
    process.stdout.write(`${value.toFixed(value < 100 ? 2 : 0).padStart(9)} ${unit}  ${name}\n`);
}
