/** Memory as one order of accesses has made it: its words, as far as they differ from what they were at first. */
const PAGE = 4096;

export class Overlay {
  readonly #base: Int32Array;
  readonly #differs: Map<number, number>;
  /** A store has changed something since it was cloned. */
  changed = false;

  constructor(base: Int32Array, differs: ReadonlyMap<number, number> = new Map()) {
    this.#base = base;
    this.#differs = new Map(differs);
  }

  clone(): Overlay {
    return new Overlay(this.#base, this.#differs);
  }

  load32(address: number): number {
    const word = address >>> 2;
    return this.#differs.get(word) ?? this.#base[word]!;
  }

  store32(address: number, value: number): void {
    const word = address >>> 2;
    if (this.load32(address) === (value | 0)) return;
    this.changed = true;
    if (this.#base[word] === (value | 0)) this.#differs.delete(word);
    else this.#differs.set(word, value | 0);
  }

  load64(address: number): bigint {
    return BigInt.asUintN(64, (BigInt(this.load32(address + 4)) << 32n) | BigInt(this.load32(address) >>> 0));
  }

  store64(address: number, value: bigint): void {
    this.store32(address, Number(BigInt.asIntN(32, value)));
    this.store32(address + 4, Number(BigInt.asIntN(32, value >> 32n)));
  }

  load8(address: number): number {
    return (this.load32(address & ~3) >>> ((address & 3) * 8)) & 255;
  }

  store8(address: number, value: number): void {
    const shift = (address & 3) * 8;
    this.store32(address & ~3, (this.load32(address & ~3) & ~(255 << shift)) | ((value & 255) << shift));
  }

  copy(to: number, from: number, bytes: number): void {
    for (let at = 0; at < bytes; at += 4) this.store32(to + at, this.load32(from + at));
  }

  fill(at: number, value: number, bytes: number): void {
    for (let i = 0; i < bytes; i += 4) this.store32(at + i, value * 0x01010101);
  }

  /** All words of a frame are this one; or undefined. */
  filledWith(at: number): number | undefined {
    const first = this.load32(at);
    for (let i = 4; i < PAGE; i += 4) if (this.load32(at + i) !== first) return undefined;
    return first;
  }

  bit(bitmap: number, frame: number): number {
    return (this.load32(bitmap + ((frame >>> 5) << 2)) >>> (frame & 31)) & 1;
  }

  get key(): string {
    return [...this.#differs].sort(([a], [b]) => a - b).join(";");
  }
}
