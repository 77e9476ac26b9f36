/**
 * A row of a SQLite file: where each of its values lies, and what it is. Nothing is made of a value before it is asked for; a row that
 * is walked over costs no object.
 */

/** Bytes that a value of each small type takes: NULL, integers, a float, 0 and 1. */
const SMALL: readonly number[] = [0, 1, 2, 3, 4, 6, 8, 8, 0, 0];
const NULL = 0;
const INTEGER_64 = 6;
const FLOAT = 7;
const ZERO = 8;
const ONE = 9;
/** From here on: bytes if it is even, else text. */
const BYTES = 12;

export class SqliteRow {
  /** Of a table that has them, else 0; NaN for a negative one, which no table of ours has. */
  id = 0;
  /** Bytes of the row. */
  bytes = 0;
  /** Where the last `varint` ended. */
  end = 0;
  #view: Buffer = Buffer.alloc(0);
  readonly #types: number[];
  readonly #at: number[];

  constructor(columns: number) {
    this.#types = Array.from({ length: columns }, () => 0);
    this.#at = Array.from({ length: columns }, () => 0);
  }

  /** A number of 1 to 9 bytes before `limit`; NaN if it is larger than a double tells exactly, or goes on beyond the limit. */
  varint(view: Buffer, at: number, limit: number): number {
    let value = 0;
    for (let i = at; i < limit && i < at + 8; i++) {
      const byte = view[i]!;
      value = value * 128 + (byte & 127);
      if (byte < 128) {
        this.end = i + 1;
        return value;
      }
    }
    this.end = at + 9; // the ninth byte counts whole, and makes it a number of 57 bits or more
    return Number.NaN;
  }

  /** Takes the values of a record; false if it has others than the table's columns. */
  parse(view: Buffer, from: number, to: number): boolean {
    const header = from + this.varint(view, from, to);
    if (!(header <= to)) return false;
    let at = this.end;
    let value = header;
    for (let column = 0; column < this.#types.length; column++) {
      const type = this.varint(view, at, header);
      const length = type < BYTES ? (SMALL[type] ?? Number.NaN) : Math.floor((type - BYTES) / 2);
      at = this.end;
      this.#types[column] = type;
      this.#at[column] = value;
      value += length;
    }
    this.#view = view;
    this.bytes = to - from;
    return at === header && value === to; // NaN is neither
  }

  /** Whether a value is an integer of up to 64 bits. */
  isInteger(column: number): boolean {
    const type = this.#types[column]!;
    return type >= 1 && type <= ONE && type !== FLOAT;
  }

  isNull(column: number): boolean {
    return this.#types[column] === NULL;
  }

  /** A whole number; NaN if it is none, or not one that a double has exactly. */
  integer(column: number): number {
    const at = this.#at[column]!;
    switch (this.#types[column]!) {
      case 1:
        return this.#view.readInt8(at);
      case 2:
        return this.#view.readInt16BE(at);
      case 3:
        return this.#view.readIntBE(at, 3);
      case 4:
        return this.#view.readInt32BE(at);
      case 5:
        return this.#view.readIntBE(at, 6);
      case INTEGER_64: {
        const value = this.#view.readInt32BE(at) * 2 ** 32 + this.#view.readUInt32BE(at + 4);
        return Number.isSafeInteger(value) ? value : Number.NaN;
      }
      case ZERO:
        return 0;
      case ONE:
        return 1;
      default:
        return Number.NaN;
    }
  }

  /** A number; NaN if it is none. SQLite stores a float that is whole as an integer. */
  float(column: number): number {
    return this.#types[column] === FLOAT ? this.#view.readDoubleBE(this.#at[column]!) : this.integer(column);
  }

  /** An integer as a word of 64 bits, unsigned. */
  word(column: number): bigint {
    if (this.#types[column] === INTEGER_64) return this.#view.readBigUInt64BE(this.#at[column]!);
    return BigInt.asUintN(64, BigInt(this.integer(column)));
  }

  /** Bytes of a text; -1 if it is none. */
  textBytes(column: number): number {
    const type = this.#types[column]!;
    return type > BYTES && type % 2 === 1 ? (type - BYTES - 1) / 2 : -1;
  }

  /** A text; empty if it is none. */
  text(column: number): string {
    const at = this.#at[column]!;
    return this.#view.toString("utf8", at, at + Math.max(0, this.textBytes(column)));
  }

  /** Bytes of a BLOB; -1 if it is none. */
  blobBytes(column: number): number {
    const type = this.#types[column]!;
    return type >= BYTES && type % 2 === 0 ? (type - BYTES) / 2 : -1;
  }

  /** A BLOB, for reading; empty if it is none. */
  blob(column: number): Uint8Array {
    const at = this.#at[column]!;
    return this.#view.subarray(at, at + Math.max(0, this.blobBytes(column)));
  }
}
