/** The few types of WebAssembly that the machine uses; Node's type declarations leave them to the browser's. */

/** A shared `WebAssembly.Memory`: every thread that is handed it sees the same bytes. */
export interface SharedMemory {
  readonly buffer: SharedArrayBuffer;
}

interface Api {
  Memory: new (descriptor: { initial: number; maximum: number; shared: true }) => SharedMemory;
  Module: new (bytes: Uint8Array) => object;
  Instance: new (module: object, imports: Record<string, Record<string, unknown>>) => { readonly exports: unknown };
}

export const wasm: Api = (globalThis as unknown as { WebAssembly: Api }).WebAssembly;
