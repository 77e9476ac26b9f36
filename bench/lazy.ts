/** A lazy resume: when the first instruction runs, when all is there, and what those wait who meet a missing frame meanwhile. */
import { save } from "../src/hibernate.js";
import { Machine } from "../src/machine.js";
import type { ResumeReport } from "../src/reports/resume-report.js";
import { resume } from "../src/resume.js";
import { machineWith, median, withImage } from "./measure.js";

export interface LazyRow {
  ram_mib: number;
  /** An eager resume of the same image. */
  eager_ms: number;
  /** The first of this process, whose code has not run before; and the median of the others. */
  first_cold_ms: number;
  first_ms: number;
  open_ms: number;
  load_ms: number;
  stop_ms: number;
  resident_ms: number;
  faults: number;
  fault_p50_ms: number;
  fault_p99_ms: number;
}

/** 80 % of the machine's memory, of which a process reads and writes some pages often and most now and then. */
export async function lazyRow(ramBytes: number, rounds: number): Promise<LazyRow> {
  const pages = Math.floor((ramBytes * 0.8) / 4096);
  return withImage(async (path) => {
    await save(await machineWith(ramBytes, [`zipf:pages=${pages},rate=200000`]), path);
    const lazy: ResumeReport[] = [];
    for (let round = 0; round <= rounds; round++) lazy.push(await resumed(ramBytes, path, true));
    const eager = await resumed(ramBytes, path, false);
    const [cold, ...warm] = lazy;
    const all = (of: (report: ResumeReport) => number): number => median(warm.map(of));
    return {
      ram_mib: Math.round(ramBytes / 2 ** 20),
      eager_ms: eager.phases_ms.total,
      first_cold_ms: cold!.phases_ms.total,
      first_ms: all(({ phases_ms }) => phases_ms.total),
      open_ms: all(({ phases_ms }) => phases_ms.open),
      load_ms: all(({ phases_ms }) => phases_ms.classify + phases_ms.load),
      stop_ms: all(({ phases_ms }) => phases_ms.stop),
      resident_ms: all(({ resident }) => resident!.resident_ms),
      faults: all(({ resident }) => resident!.faults.count),
      fault_p50_ms: all(({ resident }) => resident!.faults.p50_ms),
      fault_p99_ms: all(({ resident }) => resident!.faults.p99_ms),
    };
  });
}

/** The machine itself has booted before the clock begins. */
async function resumed(ramBytes: number, path: string, lazy: boolean): Promise<ResumeReport> {
  const machine = await Machine.boot({ ramBytes, vcpus: 2 });
  machine.spawn("boot-housekeeping:256");
  const report = await resume(machine, path, { keepImage: true, lazy });
  await machine.resident();
  await machine.powerOff();
  return report;
}
