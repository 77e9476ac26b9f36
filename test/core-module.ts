/** The compiled core as its functions' instructions: what an interpreter of it needs of the module (core-steps.ts). */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

export type Value = number | bigint;

export interface Instruction {
  op: number;
  /** An immediate: a constant, an index, a depth, an offset; of a block where it ends; of `if` where its else begins, or its end. */
  a: number;
  b: number;
  constant: Value;
}

interface WasmFunction {
  parameters: number;
  locals: Value[];
  results: number;
  code: Instruction[];
}

// Opcodes with a prefix are 256 * prefix + number.
export const WAIT = 0xfe01;
export const NOTIFY = 0xfe00;
export const COPY = 0xfc0a;
export const FILL = 0xfc0b;

/** Reads the parts of a module that its functions need. */
class Decoder {
  #at = 0;
  readonly #bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  byte(): number {
    return this.#bytes[this.#at++]!;
  }

  /** LEB128, as 64 bits with a sign. */
  big(): bigint {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = this.byte();
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return BigInt.asIntN(Number(shift + 7n), value);
    }
  }

  unsigned(): number {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = this.byte();
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  }

  text(): string {
    return Buffer.from(this.take(this.unsigned())).toString();
  }

  take(length: number): Uint8Array {
    return this.#bytes.subarray(this.#at, (this.#at += length));
  }

  float(): number {
    return Buffer.from(this.take(8)).readDoubleLE();
  }

  list<T>(read: () => T): T[] {
    return Array.from({ length: this.unsigned() }, read);
  }

  get more(): boolean {
    return this.#at < this.#bytes.length;
  }

  instruction(): Instruction {
    let op = this.byte();
    if (op >= 0xfc) op = op * 256 + this.unsigned();
    const instruction: Instruction = { op, a: 0, b: 0, constant: 0 };
    if (op === 0x41) instruction.constant = Number(this.big()) | 0;
    else if (op === 0x42) instruction.constant = BigInt.asUintN(64, this.big());
    else if (op === 0x44) instruction.constant = this.float();
    else if (op === 0x02 || op === 0x03 || op === 0x04) instruction.b = this.byte() === 0x40 ? 0 : 1;
    else if (op === 0x0c || op === 0x0d || op === 0x10 || (op >= 0x20 && op <= 0x24)) instruction.a = this.unsigned();
    else if ((op >= 0x28 && op <= 0x3e) || op >> 8 === 0xfe) {
      this.unsigned(); // alignment
      instruction.a = this.unsigned();
    } else if (op === COPY) this.take(2);
    else if (op === FILL) this.take(1);
    else if (op >> 8 === 0xfd) throw new Error(`vectors are not interpreted: 0x${op.toString(16)}`);
    return instruction;
  }
}

class Module {
  readonly exports: Map<string, number> = new Map();
  /** What globals are at first. */
  readonly globals: Value[] = [];
  /** Names of imported functions: they come before the module's own. */
  readonly imports: string[] = [];
  readonly #types: { parameters: number; results: number }[] = [];
  readonly #functions: number[] = [];
  readonly #bodies: Uint8Array[] = [];
  readonly #decoded: WasmFunction[] = [];

  constructor(bytes: Uint8Array) {
    const all = new Decoder(bytes);
    all.take(8);
    while (all.more) {
      const id = all.byte();
      const section = new Decoder(all.take(all.unsigned()));
      if (id === 1)
        this.#types = section.list(() => {
          section.byte();
          return { parameters: section.list(() => section.byte()).length, results: section.list(() => section.byte()).length };
        });
      else if (id === 2)
        section.list(() => {
          section.text();
          const name = section.text();
          if (section.byte() === 0) {
            this.imports.push(name);
            this.#functions.push(section.unsigned());
          } else for (let limits = section.byte() & 1; limits >= 0; limits--) section.unsigned();
        });
      else if (id === 3) this.#functions.push(...section.list(() => section.unsigned()));
      else if (id === 6)
        section.list(() => {
          section.take(2);
          this.globals.push(section.instruction().constant);
          section.byte();
        });
      else if (id === 7)
        section.list(() => {
          const name = section.text();
          const kind = section.byte();
          const index = section.unsigned();
          if (kind === 0) this.exports.set(name, index);
        });
      else if (id === 10) this.#bodies.push(...section.list(() => section.take(section.unsigned())));
    }
  }

  typeOf(index: number): { parameters: number; results: number } {
    return this.#types[this.#functions[index]!]!;
  }

  /** A function's code; of an import there is none. */
  function(index: number): WasmFunction {
    return (this.#decoded[index] ??= this.#decode(index));
  }

  #decode(index: number): WasmFunction {
    const body = new Decoder(this.#bodies[index - this.imports.length]!);
    const locals = body
      .list(() => ({ count: body.unsigned(), type: body.byte() }))
      .flatMap(({ count, type }) => Array<Value>(count).fill(type === 0x7e ? 0n : 0));
    const code: Instruction[] = [];
    const open: number[] = [];
    while (body.more) {
      const instruction = body.instruction();
      const at = code.push(instruction) - 1;
      if (instruction.op >= 0x02 && instruction.op <= 0x04) open.push(at);
      if (instruction.op === 0x05) code[open.at(-1)!]!.constant = at; // the else of an if
      if (instruction.op !== 0x0b) continue;
      const begin = open.pop();
      if (begin === undefined) continue;
      const block = code[begin]!;
      if (block.op === 0x04 && block.constant !== 0) code[Number(block.constant)]!.a = at;
      block.a = at;
    }
    return { ...this.typeOf(index), locals, code };
  }
}

export const core: Module = new Module(readFileSync(fileURLToPath(new URL("../core.wasm", import.meta.url))));
