/**
 * What the machine's memory says that the catalogue tells too, for readers that know no kernel: a save writes it, and
 * `hib verify` compares it, since somebody else may have written anything there.
 */
import { isDeepStrictEqual } from "node:util";
import type { ReadableMemory } from "../base/memory.js";
import { giveTurn, STEPS_A_TURN } from "../base/turns.js";
import type { Catalogue } from "../image/catalogue.js";
import type { MappingRow, MountRow, ObjectRow, ProcessRow } from "../image/catalogue-rows.js";
import { type Frames, ownOffset } from "../image/chain.js";
import { walkMounts } from "../vm/files/path.js";
import { listProcesses, type Process } from "../vm/tasks/process.js";
import { type BlockCount, countBlocks, describeMappings, describeObjects, describeProcess } from "../vm/views/describe.js";

export interface MachineRows {
  processes: ProcessRow[];
  mappings: Iterable<MappingRow>;
  objects: Iterable<ObjectRow>;
  blocks: BlockCount[];
  mounts: MountRow[];
}

/** The rows that a machine's memory makes, in the order in which a catalogue has them. The machine must be consistent. */
export function machineRows(memory: ReadableMemory, places: Frames): MachineRows {
  const orders = new Uint8Array(memory.frames);
  const blocks = countBlocks(memory, orders);
  const processes = listProcesses(memory);
  return {
    processes: processes
      .map((process) => ({
        pid: process.pid,
        slot: process.slot,
        name: process.text.split(":")[0]!,
        state: process.state,
        steps: process.steps,
        detail: describeProcess(memory, process),
      }))
      .sort((a, b) => a.pid - b.pid),
    mappings: mappingRows(memory, processes, orders, places),
    objects: describeObjects(memory, processes),
    blocks,
    mounts: Array.from(walkMounts(memory), ({ path, host, readOnly }) => ({ path, host, readOnly })),
  };
}

function* mappingRows(
  memory: ReadableMemory,
  processes: readonly Process[],
  orders: Uint8Array,
  places: Frames,
): Generator<MappingRow> {
  // Field by field: rest and spread leave a hidden class a row behind, tens of megabytes of them.
  for (const { pid, address, order, pfn, pages, flags } of describeMappings(memory, processes, orders)) {
    yield { pid, vaddr: address, order, pfn, pages, flags, blobOffset: ownOffset(places, pfn) };
  }
}

/**
 * What a catalogue says of a machine, and its memory does not; a line a table at most.
 *
 * @param memory - of a machine that is consistent
 * @throws HIB_CORRUPT, HIB_CANCELLED
 */
export async function compareRows(
  catalogue: Catalogue,
  memory: ReadableMemory,
  places: Frames,
  signal?: AbortSignal,
): Promise<string[]> {
  const expected = machineRows(memory, places);
  const byPath = (a: MountRow, b: MountRow): number => (a.path < b.path ? -1 : 1);
  const tables: [name: string, rows: Iterable<object>, expected: Iterable<object>][] = [
    ["process", catalogue.processes(), expected.processes],
    ["mapping", catalogue.mappings(), expected.mappings],
    ["object", catalogue.objects(), expected.objects],
    ["blocks", catalogue.blocks(), expected.blocks],
    ["mount", catalogue.mounts().sort(byPath), expected.mounts.sort(byPath)],
  ];
  const differences: string[] = [];
  for (const [name, rows, others] of tables) {
    const difference = await firstDifference(rows, others, signal);
    if (difference !== undefined)
      differences.push(`the catalogue's table ${name} is not what the machine's memory says: ${difference}`);
  }
  return differences;
}

async function firstDifference(
  rows: Iterable<object>,
  expected: Iterable<object>,
  signal: AbortSignal | undefined,
): Promise<string | undefined> {
  const others = expected[Symbol.iterator]();
  let number = 0;
  for (const row of rows) {
    if (++number % STEPS_A_TURN === 0) await giveTurn(signal, "comparing the catalogue with memory");
    const other = others.next();
    if (other.done === true) return `it has a row ${number}, and should have ${number - 1}`;
    for (const [field, value] of Object.entries(other.value)) {
      const found = (row as Record<string, unknown>)[field];
      if (found === value) continue;
      if (typeof value !== "object") return `${field} of row ${number} is ${String(found)}, and should be ${String(value)}`;
      if (!isDeepStrictEqual(found, JSON.parse(JSON.stringify(value)))) return `${field} of row ${number} differs`;
    }
  }
  return others.next().done === true ? undefined : `it ends after ${number} rows`;
}
