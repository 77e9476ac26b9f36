/**
 * The compiled core, interpreted: threads that take one access to shared memory at a time, so that every order of their accesses can
 * be tried (explore.ts). It is the code that is shipped (core.wasm) that runs here, not a model of it.
 *
 * What it does not show: accesses are taken in the order in which the code has them (sequential consistency). Of a copy of a whole
 * frame others see a half.
 */
import { COPY, core, FILL, type Instruction, NOTIFY, type Value, WAIT } from "./core-module.js";
import type { Overlay } from "./overlay.js";

/** Is made of vectors, which are not interpreted: it is one step. */
const SAME_FILLED: number = core.exports.get("isSameFilled")!;

/** What a thread does, one after another. */
export type Act =
  /** A call of the core. */
  | { call: string; args: readonly number[] | ((results: readonly number[]) => readonly number[]) }
  /** One step of somebody who is not in the core. */
  | { step: (memory: Overlay, results: readonly number[]) => void }
  /** Goes on only once this holds. */
  | { when: (memory: Overlay) => boolean };

interface Frame {
  of: number;
  pc: number;
  locals: Value[];
  /** Open blocks: the instruction, and the stack's height. */
  labels: { at: number; height: number }[];
}

/** A thread over an overlay: stands before its next access to what is shared. */
export class Thread {
  results: number[] = [];
  #frames: Frame[] = [];
  #stack: Value[] = [];
  #globals: Value[] = [...core.globals];
  #act = 0;
  /** Of a copy of a whole frame the first half is done. */
  #half = false;
  /** It waits on a futex: it goes on once others have changed something, or nobody else can: no wait in the core is without an end. */
  asleep = false;
  /** Its accesses in the order of the code, for who looks at what keeps a processor from taking them in another one. */
  readonly accesses: { at: number; atomic: boolean; writes: boolean }[] = [];
  readonly #acts: readonly Act[];
  readonly #isShared: (address: number) => boolean;

  constructor(acts: readonly Act[], isShared: (address: number) => boolean) {
    this.#acts = acts;
    this.#isShared = isShared;
  }

  clone(): Thread {
    const other = new Thread(this.#acts, this.#isShared);
    other.results = [...this.results];
    other.#frames = this.#frames.map((frame) => ({ ...frame, locals: [...frame.locals], labels: [...frame.labels] }));
    other.#stack = [...this.#stack];
    other.#globals = [...this.#globals];
    other.#act = this.#act;
    other.#half = this.#half;
    other.asleep = this.asleep;
    return other;
  }

  get key(): string {
    const frames = this.#frames.map(({ of, pc, locals, labels }) => `${of}:${pc}:${locals}:${labels.length}`);
    return `${this.#act},${this.results},${frames},${this.#stack},${this.#globals},${this.#half},${this.asleep}`;
  }

  get done(): boolean {
    return this.#act === this.#acts.length;
  }

  canStep(memory: Overlay): boolean {
    if (this.done) return false;
    const act = this.#acts[this.#act]!;
    return this.#frames.length > 0 || !("when" in act) || act.when(memory);
  }

  /** What it is about to do, for a report. */
  get at(): string {
    const act = this.#acts[this.#act];
    return act === undefined ? "end" : "call" in act ? `${act.call}@${this.#frames.map(({ pc }) => pc)}` : Object.keys(act)[0]!;
  }

  /** Takes the access before which it stands, and whatever follows that no other thread can see. */
  step(memory: Overlay): void {
    let taken = false;
    this.asleep = false;
    while (!this.done) {
      if (this.#frames.length === 0) {
        const act = this.#acts[this.#act]!;
        if ("call" in act)
          this.#call(core.exports.get(act.call)!, typeof act.args === "function" ? act.args(this.results) : act.args);
        else {
          if (taken) return;
          taken = true;
          if ("step" in act) act.step(memory, this.results);
          this.#act++;
        }
        continue;
      }
      const frame = this.#frames.at(-1)!;
      const instruction = core.function(frame.of).code[frame.pc]!;
      if (this.#isVisible(instruction)) {
        if (taken) return;
        taken = true;
      }
      this.#execute(frame, instruction, memory);
    }
  }

  #call(index: number, args: readonly Value[]): void {
    const name = core.imports[index];
    if (name === "now") return void this.#stack.push(0);
    if (name !== undefined) throw new Error(`the core calls ${name}`);
    const { locals } = core.function(index);
    this.#frames.push({ of: index, pc: 0, locals: [...args, ...locals], labels: [] });
  }

  #return(): void {
    const { results } = core.function(this.#frames.pop()!.of);
    if (this.#frames.length > 0) return;
    this.results.push(results === 0 ? 0 : Number(this.#stack.at(-1)));
    this.#stack.length = 0;
    this.#act++;
  }

  /** Whether what comes next reads or writes what other threads see. */
  #isVisible({ op, a }: Instruction): boolean {
    const operand = (depth: number): number => Number(this.#stack[this.#stack.length - depth]) >>> 0;
    if (op === COPY) return this.#isShared(operand(3)) || this.#isShared(operand(2));
    if (op === FILL) return this.#isShared(operand(3));
    if (op === 0x10) return a === SAME_FILLED && this.#isShared(operand(1));
    return isAccess(op) && this.#isShared(operand(operandsOf(op)) + a);
  }

  #branch(frame: Frame, depth: number): void {
    const label = frame.labels[frame.labels.length - 1 - depth];
    if (label === undefined) return this.#return();
    const block = core.function(frame.of).code[label.at]!;
    const loop = block.op === 0x03;
    const kept = loop || block.b === 0 ? [] : [this.#stack.at(-1)!];
    this.#stack.length = label.height;
    this.#stack.push(...kept);
    frame.labels.length -= depth + 1;
    frame.pc = loop ? label.at : block.a + 1;
  }

  #execute(frame: Frame, { op, a, constant }: Instruction, memory: Overlay): void {
    const stack = this.#stack;
    const pop = (): number => Number(stack.pop());
    frame.pc++;
    switch (op) {
      case 0x00:
        throw new Error("unreachable");
      case 0x02:
      case 0x03:
        frame.labels.push({ at: frame.pc - 1, height: stack.length });
        return;
      case 0x04: {
        const condition = pop();
        frame.labels.push({ at: frame.pc - 1, height: stack.length });
        if (condition === 0) frame.pc = constant === 0 ? a : Number(constant) + 1;
        return;
      }
      case 0x05:
        frame.pc = a;
        return;
      case 0x0b:
        if (frame.labels.pop() === undefined) this.#return();
        return;
      case 0x0c:
        return this.#branch(frame, a);
      case 0x0d:
        if (pop() !== 0) this.#branch(frame, a);
        return;
      case 0x0f:
        return this.#return();
      case 0x10: {
        const { parameters } = core.typeOf(a);
        const args = stack.splice(stack.length - parameters, parameters);
        if (a === SAME_FILLED) stack.push(memory.filledWith(Number(args[0]) >>> 0) === undefined ? 0 : 1);
        else this.#call(a, args);
        return;
      }
      case 0x1a:
        stack.pop();
        return;
      case 0x1b: {
        const condition = pop();
        const other = stack.pop()!;
        if (condition === 0) stack[stack.length - 1] = other;
        return;
      }
      case 0x20:
        stack.push(frame.locals[a]!);
        return;
      case 0x21:
        frame.locals[a] = stack.pop()!;
        return;
      case 0x22:
        frame.locals[a] = stack.at(-1)!;
        return;
      case 0x23:
        stack.push(this.#globals[a]!);
        return;
      case 0x24:
        this.#globals[a] = stack.pop()!;
        return;
      case 0x41:
      case 0x42:
      case 0x44:
        stack.push(constant);
        return;
      default:
        if (isAccess(op)) this.#access(frame, op, a, memory);
        else this.#compute(op);
    }
  }

  #access(frame: Frame, op: number, offset: number, memory: Overlay): void {
    const stack = this.#stack;
    if (op === COPY || op === FILL) {
      const [to, from, bytes] = stack.slice(-3).map((value) => Number(value) >>> 0) as [number, number, number];
      const half = bytes >>> 1;
      const [begin, length] = this.#half ? [half, bytes - half] : [0, half];
      if (op === COPY) this.#note(from, op);
      this.#note(to, 0x36);
      if (op === COPY) memory.copy(to + begin, from + begin, length);
      else memory.fill(to + begin, from & 255, length);
      this.#half = !this.#half;
      if (this.#half) frame.pc--;
      else stack.length -= 3;
      return;
    }
    const operands = stack.splice(stack.length - operandsOf(op));
    const at = (Number(operands[0]) >>> 0) + offset;
    const [, value = 0, more = 0] = operands;
    this.#note(at, op);
    switch (op) {
      case 0x28:
      case 0xfe10:
        stack.push(memory.load32(at));
        return;
      case 0x29:
      case 0xfe11:
        stack.push(memory.load64(at));
        return;
      case 0x2d:
        stack.push(memory.load8(at));
        return;
      case 0x31:
        stack.push(BigInt(memory.load8(at)));
        return;
      case 0x36:
      case 0xfe17:
        return memory.store32(at, Number(value));
      case 0x3e:
        return memory.store32(at, Number(BigInt.asIntN(32, BigInt(value))));
      case 0x37:
        return memory.store64(at, value as bigint);
      case 0x3a:
      case 0x3c:
        return memory.store8(at, Number(BigInt(value) & 255n));
      case WAIT:
        if (memory.load32(at) === value) this.asleep = true;
        stack.push(0);
        return;
      case NOTIFY:
        stack.push(0);
        return;
      case 0xfe48: {
        const seen = memory.load32(at);
        if (seen === value) memory.store32(at, Number(more));
        stack.push(seen);
        return;
      }
      case 0xfe1e:
      case 0xfe2c:
      case 0xfe33: {
        const seen = memory.load32(at);
        const other = Number(value);
        memory.store32(at, op === 0xfe1e ? seen + other : op === 0xfe2c ? seen & other : seen | other);
        stack.push(seen);
        return;
      }
      case 0xfe42: {
        stack.push(memory.load64(at));
        return memory.store64(at, value as bigint);
      }
      case 0xfe1f:
      case 0xfe34: {
        const seen = memory.load64(at);
        memory.store64(at, op === 0xfe1f ? BigInt.asUintN(64, seen + BigInt(value)) : seen | BigInt(value));
        stack.push(seen);
        return;
      }
      default:
        throw new Error(`access 0x${op.toString(16)}`);
    }
  }

  #note(at: number, op: number): void {
    this.accesses.push({ at, atomic: op >> 8 === 0xfe, writes: isStore(op) || op >= 0xfe1e });
  }

  #compute(op: number): void {
    const stack = this.#stack;
    const b = stack.pop()!;
    const unary = UNARY.get(op);
    if (unary !== undefined) return void stack.push(unary(b as never));
    const a = stack.pop()!;
    if (op <= 0x4f || (op >= 0x6a && op <= 0x78)) return void stack.push(BINARY32.get(op)!(Number(a), Number(b)));
    const float = FLOATS.get(op);
    stack.push(float === undefined ? BINARY64.get(op)!(a as bigint, b as bigint) : float(Number(a), Number(b)));
  }
}

const isAccess = (op: number): boolean => (op >= 0x28 && op <= 0x3e) || op >> 8 === 0xfe || op === COPY || op === FILL;
const isStore = (op: number): boolean => (op >= 0x36 && op <= 0x3e) || (op >= 0xfe17 && op <= 0xfe1d);
const operandsOf = (op: number): number =>
  op === WAIT || op >= 0xfe48 ? 3 : isStore(op) || op >= 0xfe1e || op === NOTIFY ? 2 : 1;
const truth = (value: boolean): number => (value ? 1 : 0);
const u64 = (value: bigint): bigint => BigInt.asUintN(64, value);

const UNARY = new Map<number, (a: never) => Value>([
  [0x45, (a: number) => truth(a === 0)],
  [0x50, (a: bigint) => truth(a === 0n)],
  [0x67, (a: number) => Math.clz32(a)],
  [0x7a, (a: bigint) => BigInt(a === 0n ? 64 : (a & -a).toString(2).length - 1)],
  [0xa7, (a: bigint) => Number(BigInt.asIntN(32, a))],
  [0xab, (a: number) => Math.trunc(a) | 0],
  [0xfc03, (a: number) => Math.trunc(a) | 0],
  [0xac, (a: number) => u64(BigInt(a))],
  [0xad, (a: number) => BigInt(a >>> 0)],
]);

const BINARY32 = new Map<number, (a: number, b: number) => number>([
  [0x46, (a, b) => truth(a === b)],
  [0x47, (a, b) => truth(a !== b)],
  [0x48, (a, b) => truth(a < b)],
  [0x49, (a, b) => truth(a >>> 0 < b >>> 0)],
  [0x4a, (a, b) => truth(a > b)],
  [0x4b, (a, b) => truth(a >>> 0 > b >>> 0)],
  [0x4c, (a, b) => truth(a <= b)],
  [0x4d, (a, b) => truth(a >>> 0 <= b >>> 0)],
  [0x4e, (a, b) => truth(a >= b)],
  [0x4f, (a, b) => truth(a >>> 0 >= b >>> 0)],
  [0x6a, (a, b) => (a + b) | 0],
  [0x6b, (a, b) => (a - b) | 0],
  [0x6c, (a, b) => Math.imul(a, b)],
  [0x71, (a, b) => a & b],
  [0x72, (a, b) => a | b],
  [0x73, (a, b) => a ^ b],
  [0x74, (a, b) => a << b],
  [0x75, (a, b) => a >> b],
  [0x76, (a, b) => (a >>> b) | 0],
  [0x77, (a, b) => (a << (b & 31)) | (a >>> (-b & 31))],
]);

const BINARY64 = new Map<number, (a: bigint, b: bigint) => Value>([
  [0x51, (a, b) => truth(a === b)],
  [0x52, (a, b) => truth(a !== b)],
  [0x7c, (a, b) => u64(a + b)],
  [0x7d, (a, b) => u64(a - b)],
  [0x83, (a, b) => a & b],
  [0x84, (a, b) => a | b],
  [0x85, (a, b) => a ^ b],
  [0x86, (a, b) => u64(a << (b & 63n))],
  [0x88, (a, b) => a >> (b & 63n)],
]);

const FLOATS = new Map<number, (a: number, b: number) => number>([
  [0xa1, (a, b) => a - b],
  [0xa2, (a, b) => a * b],
]);
