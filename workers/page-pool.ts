/** Thread of the pool: page writers and the catalogue (save), page loaders (resume). Composes, and holds no logic. */
import { workerData } from "node:worker_threads";
import { serializeError } from "../src/base/errors.js";
import type { SharedMemory } from "../src/base/wasm.js";
import { type CatalogueResult, type CatalogueTask, writeCatalogue } from "../src/reports/image-catalogue.js";
import { type LoadResult, type LoadTask, loadPages } from "../src/restore/page-loader.js";
import { instantiateCore } from "../src/vm/memory/core.js";
import { type WriteResult, type WriteTask, writePages } from "../src/writer/page-writer.js";
import type { Answer } from "../src/writer/pool.js";

const { memory } = workerData as { memory: SharedMemory };
const core = instantiateCore(memory);

async function answer<T>(work: () => Promise<T>): Promise<Answer<T>> {
  try {
    return { ok: true, value: await work() };
  } catch (error) {
    return { ok: false, error: serializeError(error) };
  }
}

export function write(task: WriteTask): Promise<Answer<WriteResult>> {
  return answer(() => writePages(memory, core, task));
}

export function load(task: LoadTask): Promise<Answer<LoadResult>> {
  return answer(() => loadPages(memory, core, task));
}

export function catalogue(task: CatalogueTask): Promise<Answer<CatalogueResult>> {
  return answer(() => writeCatalogue(memory, task));
}
