/** Thread of the pool: page writers and the catalogue (save), page loaders (resume). Composes, and holds no logic. */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { workerData } from "node:worker_threads";
import { serializeError } from "../src/base/errors.js";
import type { SharedMemory } from "../src/base/wasm.js";
import { loadDatabase } from "../src/base/sqlite.js";
import { type CatalogueResult, type CatalogueTask, writeCatalogue } from "../src/reports/image-catalogue.js";
import { fillPages } from "../src/restore/fill.js";
import type { Filled, FillTask } from "../src/restore/frame-source.js";
import { type LoadResult, type LoadTask, loadPages } from "../src/restore/page-loader.js";
import { instantiateCore } from "../src/vm/memory/core.js";
import { type WriteResult, type WriteTask, writePages } from "../src/writer/page-writer.js";
import type { Answer } from "../src/writer/pool.js";

const { memory } = workerData as { memory: SharedMemory };
const core = instantiateCore(memory);
loadDatabase();

// A scavenge by this thread, which frees what it finds. The flags are the process's, so they are set here, once a machine has
// been booted, and not by whoever imports the library. V8's helper threads would only be woken for it, at twice the cost.
setFlagsFromString("--expose-gc");
setFlagsFromString("--no-parallel-scavenge");
setFlagsFromString("--no-concurrent-array-buffer-sweeping");
const gc = runInNewContext("gc") as (options: { type: "minor" }) => void;
const collect = (): void => gc({ type: "minor" });

async function answer<T>(work: () => Promise<T>): Promise<Answer<T>> {
  try {
    return { ok: true, value: await work() };
  } catch (error) {
    return { ok: false, error: serializeError(error) };
  }
}

export function write(task: WriteTask): Promise<Answer<WriteResult>> {
  return answer(() => writePages(memory, core, task, collect));
}

export function load(task: LoadTask): Promise<Answer<LoadResult>> {
  return answer(() => loadPages(memory, core, task, collect));
}

export function fill(task: FillTask): Promise<Answer<Filled>> {
  return answer(() => fillPages(memory, core, task, collect));
}

export function catalogue(task: CatalogueTask): Promise<Answer<CatalogueResult>> {
  return answer(() => writeCatalogue(memory, task));
}
