/** A copy of an array in shared memory: handing it to another thread then copies nothing. */
export function shared<T extends Int32Array | Uint32Array | Uint16Array | BigUint64Array>(array: T): T {
  const copy = new (array.constructor as new (buffer: SharedArrayBuffer) => T)(new SharedArrayBuffer(array.byteLength));
  copy.set(array as never);
  return copy;
}
