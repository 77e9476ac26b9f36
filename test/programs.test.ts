/**
 * Step programs: each is deterministic however its steps are batched, notices damage to its own memory, and says what
 * is wrong with its options. Everything here runs on a FlatMemory, without a machine.
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { compressSync } from "lz4-napi";
import { HibernaculumError } from "../src/base/errors.js";
import {
  DATA_BASE,
  HEAP_BASE,
  type ProgramContext,
  SelfCheckError,
  STACK_TOP,
  type SystemCalls,
} from "../src/vm/personality/step/program.js";
import { checkProcess } from "../src/vm/personality/step/programs/check.js";
import { createContents } from "../src/vm/personality/step/programs/contents.js";
import { INCREMENTER_OFFSET, incrementerEdge } from "../src/vm/personality/step/programs/incrementer.js";
import { createRunner, programHelp, programNames } from "../src/vm/personality/step/programs/index.js";
import { hash, keyOf } from "../src/vm/personality/step/programs/random.js";
import { FlatMemory, FlatSystem, Replay } from "../src/vm/personality/step/programs/replay.js";
import { HandMachine } from "./support.js";

const PAGE = 4096;

/** Draws below `limit` from a seed that is named in every failure. */
class Draws {
  readonly seed: number;
  #next = 0;
  constructor(seed: number) {
    this.seed = seed;
  }
  below(limit: number): number {
    return Math.floor(((hash(keyOf(this.seed), this.#next++) >>> 0) / 2 ** 32) * limit);
  }
}

/** What differs between two replays: the first page and byte, or undefined. */
function difference(a: Replay, b: Replay): string | undefined {
  if (a.registers.some((word, i) => word !== b.registers[i])) return "registers";
  const left = [...a.pages()];
  const right = [...b.pages()];
  if (left.length !== right.length) return `${left.length} and ${right.length} pages`;
  for (const [i, [vpn, bytes]] of left.entries()) {
    if (right[i]![0] !== vpn) return `page ${vpn} is absent`;
    if (Buffer.compare(bytes, right[i]![1]) !== 0) return `page ${vpn}`;
  }
  return undefined;
}

/** Each program small enough that a few thousand steps go round it several times. */
const SMALL: readonly { text: string; steps: number }[] = [
  { text: "zipf:pages=200,seed=3", steps: 20_000 },
  { text: "zipf:pages=1", steps: 100 },
  { text: "random:pages=65,seed=4", steps: 20_000 },
  { text: "sequential:pages=3,content=random", steps: 5_000 },
  { text: "incrementer:pages=37", steps: 37 * 300 },
  { text: "stack:pages=40,seed=5", steps: 5_000 },
  { text: "heap:slots=32,maxorder=3,seed=6", steps: 3_000 },
  { text: "idle:pages=4,ms=1", steps: 50 },
  { text: "disk:sectors=20,depth=5,seed=7", steps: 41 * 3 * 8 },
];

for (const { text, steps } of SMALL) {
  test(`${text}: memory after N steps does not depend on how they are batched`, (t) => {
    const whole = new Replay(text);
    whole.advanceTo(steps);
    t.not(difference(whole, new Replay(text)), undefined, "the program must change something");
    for (let seed = 1; seed <= 5; seed++) {
      const draws = new Draws(seed);
      const split = new Replay(text);
      while (split.steps < steps) split.advanceTo(Math.min(steps, split.steps + draws.below(seed * seed * 40)));
      t.is(difference(whole, split), undefined, `seed ${seed}`);
    }
  });

  test(`${text}: notices one changed byte of what it wrote`, (t) => {
    for (let seed = 1; seed <= 10; seed++) {
      const draws = new Draws(seed);
      const replay = new Replay(text);
      replay.advanceTo(Math.ceil(steps * 0.5) + draws.below(steps / 4));
      let written = writtenBytes(text, replay);
      for (; written.length === 0; written = writtenBytes(text, replay)) replay.advanceTo(replay.steps + 10); // disk: it reads
      const address = written[draws.below(written.length)]!;
      replay.memory.store8(address, replay.memory.load8(address) ^ (1 + draws.below(255)));
      const goOn = (): boolean => replay.advanceTo(replay.steps + 100_000);
      t.throws(goOn, { instanceOf: SelfCheckError }, `seed ${seed}, byte at ${address}`);
    }
  });
}

/** Addresses of the bytes that differ from the start, without what lies dead below the stack pointer. */
function writtenBytes(text: string, replay: Replay): number[] {
  const start = new Replay(text);
  const sp = replay.registers[4]! >>> 0;
  const addresses: number[] = [];
  for (const [vpn, bytes] of replay.pages()) {
    const before = start.page(vpn);
    for (let i = 0; i < PAGE; i++) {
      const address = vpn * PAGE + i;
      if (bytes[i] !== (before?.[i] ?? 0) && address >= sp) addresses.push(address);
    }
  }
  return addresses;
}

/** A context to run a runner in, step count and all. */
function contextOf(memory: FlatMemory, steps: number): ProgramContext {
  return { memory, system: new FlatSystem(memory), registers: new Int32Array(64), steps };
}

/** Remembers where 8-byte stores went. */
class RecordingMemory extends FlatMemory {
  readonly stores: number[] = [];
  override store64(address: number, low: number, high: number): void {
    this.stores.push(address >>> 0);
    super.store64(address, low, high);
  }
}

function storesByPage(text: string, steps: number): number[] {
  const runner = createRunner(text);
  const memory = new RecordingMemory();
  runner.run(contextOf(memory, 0), steps);
  const counts = Array.from({ length: runner.dataPages }, () => 0);
  for (const address of memory.stores) counts[(address - DATA_BASE) >>> 12]!++;
  return counts;
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, next) => total + next, 0);
}

test("zipf: the top 1% of pages get over 40% of the writes, more with a larger alpha", (t) => {
  const share = (alpha: number): number => {
    const counts = storesByPage(`zipf:pages=10000,alpha=${alpha}`, 200_000).sort((a, b) => b - a);
    return sum(counts.slice(0, 100)) / 200_000;
  };
  const shares = [0, 0.5, 0.99, 1, 1.5, 2].map(share);
  t.true(shares[2]! > 0.4 && shares[2]! < 0.65, `alpha=0.99: ${shares[2]}`);
  t.true(shares[0]! < 0.03, `alpha=0: ${shares[0]}`);
  t.deepEqual(
    shares,
    shares.toSorted((a, b) => a - b),
  );
});

test("zipf: the hottest page's share is that of Zipf's distribution", (t) => {
  const counts = storesByPage("zipf:pages=1000", 200_000);
  let total = 0;
  for (let rank = 1; rank <= 1000; rank++) total += rank ** -0.99;
  const found = Math.max(...counts) / 200_000;
  t.true(Math.abs(found * total - 1) < 0.15, `${found}, expected about ${1 / total}`);
});

test("random: all pages get about as many writes", (t) => {
  const counts = storesByPage("random:pages=1000", 400_000);
  t.true(Math.min(...counts) > 300 && Math.max(...counts) < 500, `${Math.min(...counts)} to ${Math.max(...counts)}`);
});

test("random: one slot a page, none overlapping, some crossing into the next page", (t) => {
  const memory = new RecordingMemory();
  createRunner("random:pages=512").run(contextOf(memory, 0), 100_000);
  const slots = [...new Set(memory.stores)].sort((a, b) => a - b);
  t.is(slots.length, 512);
  t.deepEqual(
    slots.map((slot) => (slot - DATA_BASE) >>> 12),
    Array.from(slots.keys()),
  );
  for (const [i, slot] of slots.entries()) if (i > 0) t.true(slot >= slots[i - 1]! + 8);
  t.is(slots.filter((slot) => slot % PAGE === PAGE - 4).length, 7);
  t.true(slots.at(-1)! + 8 <= DATA_BASE + 512 * PAGE);
});

test("zipf: goes on over 2^32 steps", (t) => {
  const steps = 2 ** 32 - 5;
  const runner = createRunner("zipf:pages=50");
  const whole = new FlatMemory();
  runner.run(contextOf(whole, steps), 10);
  const split = new FlatMemory();
  for (let i = 0; i < 10; i++) runner.run(contextOf(split, steps + i), 1);
  t.deepEqual([...whole.pages()], [...split.pages()]);
});

test("idle: counts over 2^32 steps and asks to sleep", (t) => {
  const memory = new FlatMemory();
  memory.store64(DATA_BASE, -1, 0);
  const slept: number[] = [];
  const context = contextOf(memory, 2 ** 32 - 1);
  context.system.sleep = (ms) => slept.push(ms);
  t.is(createRunner("idle:ms=25").run(context, 1000), 1);
  t.deepEqual([memory.load32(DATA_BASE), memory.load32(DATA_BASE + 4), slept], [0, 1, [25]]);
});

test("disk: a step that must wait changes nothing and is taken up later; several requests are in flight", (t) => {
  const text = "disk:sectors=6,depth=4";
  const draws = new Draws(1);
  const memory = new FlatMemory();
  const system = new FlatSystem(memory);
  const submit = system.submitRequest.bind(system);
  const wait = system.awaitRequest.bind(system);
  let inFlight = 0;
  let deepest = 0;
  let waited = 0;
  const isBusy = () => draws.below(3) === 0 && ++waited > 0;
  system.submitRequest = (...request) => {
    if (isBusy()) return false;
    deepest = Math.max(deepest, ++inFlight);
    return submit(...request);
  };
  (system as SystemCalls).awaitRequest = (...request) => {
    if (isBusy()) return undefined;
    inFlight--;
    return wait(...request);
  };
  const expected = new Replay(text);
  const runner = createRunner(text);
  for (let steps = 0; steps < 1000; ) {
    steps += runner.run({ memory, system, registers: new Int32Array(64), steps }, draws.below(20));
    expected.advanceTo(steps);
    t.deepEqual([...memory.pages()], [...expected.pages()], `at ${steps}`);
  }
  t.is(deepest, 4);
  t.true(waited > 100);
});

test("disk: ends with what is wrong if a request fails or what it reads is not what was written", (t) => {
  const run = (change: (system: FlatSystem, memory: FlatMemory) => void) => {
    const memory = new FlatMemory();
    const system = new FlatSystem(memory);
    change(system, memory);
    return () => createRunner("disk:sectors=4,depth=2").run({ memory, system, registers: new Int32Array(64), steps: 0 }, 200);
  };
  t.notThrows(run(() => undefined));
  t.throws(
    run((system) => ((system as SystemCalls).awaitRequest = () => "no space")),
    { instanceOf: SelfCheckError, message: "disk: write of sector 0: no space" },
  );
  const lost = run((system) => {
    const submit = system.submitRequest.bind(system);
    system.submitRequest = (tag, operation, sector, address) =>
      submit(tag, operation === "write" && sector === 3 ? "flush" : operation, sector, address);
  });
  t.throws(lost, { instanceOf: SelfCheckError, message: /after the read of sector 3 word 0 is 0x0/ });
});

test("entropy: notices bits that come twice, a clock or generation that goes back, and damage", (t) => {
  const run = (change: (system: SystemCalls, memory: FlatMemory) => void) => {
    const memory = new FlatMemory();
    const system: SystemCalls = new FlatSystem(memory);
    const runner = createRunner("entropy");
    const go = (steps: number) => runner.run({ memory, system, registers: new Int32Array(64), steps }, 100);
    t.is(go(0), 100);
    change(system, memory);
    return () => go(100);
  };
  t.notThrows(run((system) => (system.generation = () => 7 * 2 ** 32 + 5)));
  t.is(run((system) => (system.random = () => undefined))(), 0, "an empty pool: it waits");
  t.throws(
    run((system) => (system.random = () => 4)),
    { instanceOf: SelfCheckError, message: /came twice/ },
  );
  t.throws(
    run((system) => (system.generation = () => -1)),
    { instanceOf: SelfCheckError, message: /generation went back/ },
  );
  t.throws(
    run((system) => (system.monotonicTime = () => -1)),
    { instanceOf: SelfCheckError, message: /clock went back/ },
  );
  t.throws(
    run((_, memory) => memory.store8(DATA_BASE + 50, memory.load8(DATA_BASE + 50) ^ 1)),
    { message: /check word/ },
  );
});

test("incrementerEdge: holds after any number of steps, and not with one page old or misplaced", (t) => {
  const bytesOf = (replay: Replay): Uint8Array =>
    Uint8Array.from({ length: 50 }, (_, page) => replay.page((DATA_BASE >>> 12) + page)?.[INCREMENTER_OFFSET] ?? 0);
  const replay = new Replay("incrementer:pages=50");
  const draws = new Draws(1);
  while (replay.steps < 50 * 600) {
    const bytes = bytesOf(replay);
    t.true(incrementerEdge(bytes), `at ${replay.steps}`);
    const edge = replay.steps % 50;
    const stale = (edge + 2 + draws.below(46)) % 50;
    bytes[stale] = (bytes[stale]! - 1) & 255;
    t.false(incrementerEdge(bytes), `at ${replay.steps}, page ${stale} stale`);
    replay.advanceTo(replay.steps + draws.below(200));
  }
});

test("stack: grows to the pages it was given, crosses them, and gives them back", (t) => {
  const top = STACK_TOP >>> 12;
  const memory = new RecordingMemory();
  const context = contextOf(memory, 0);
  const runner = createRunner("stack:pages=20");
  let shrunk = 0;
  const shrinkStack = context.system.shrinkStack.bind(context.system);
  context.system.shrinkStack = (address) => {
    t.truthy(memory.page(top - 5), "a quarter of the pages at least");
    shrinkStack(address);
    t.deepEqual(
      [...memory.pages()].map(([vpn]) => vpn),
      [top - 1],
    );
    shrunk++;
  };
  runner.run(context, 20_000);
  t.true(shrunk > 20, `${shrunk}`);
  const lowest = memory.stores.reduce((a, b) => Math.min(a, b)) >>> 12;
  t.true(lowest >= top - 20 && lowest <= top - 18, `${top - lowest}`);
  const crossed = new Set(memory.stores.filter((address) => address % PAGE === PAGE - 4));
  t.true(crossed.size >= 17, `${crossed.size}`);
});

test("heap: a step that finds no memory changes nothing and is taken up later", (t) => {
  const text = "heap:slots=8,maxorder=2";
  const runner = createRunner(text);
  const draws = new Draws(1);
  const memory = new FlatMemory();
  const system = new FlatSystem(memory);
  const registers = new Int32Array(64);
  const expected = new Replay(text);
  let steps = 0;
  let refused = 0;
  while (steps < 2_000) {
    system.outOfMemory = draws.below(3) === 0;
    const fuel = draws.below(20);
    const done = runner.run({ memory, system, registers, steps }, fuel);
    steps += done;
    if (done < fuel) refused++;
    expected.advanceTo(steps);
    t.deepEqual([...memory.pages()], [...expected.pages()], `at ${steps}`);
  }
  t.true(refused > 50, `${refused}`);
});

test("heap: every order is used, and blocks are aligned to their size", (t) => {
  const memory = new FlatMemory();
  const system = new FlatSystem(memory);
  const orders = new Set<number>();
  const map = system.map.bind(system);
  system.map = (address, order) => {
    orders.add(order);
    t.is(address % (PAGE << order), 0);
    t.true(address >= HEAP_BASE);
    return map(address, order);
  };
  createRunner("heap:slots=256,maxorder=8").run({ memory, system, registers: new Int32Array(64), steps: 0 }, 300);
  t.deepEqual(
    [...orders].sort((a, b) => a - b),
    [0, 1, 2, 3, 4, 5, 6, 7, 8],
  );
});

/** The first `count` pages of contents, one after the other; absent ones are undefined. */
function pagesOf(kind: string, count: number, seed = 1): (Uint8Array | undefined)[] {
  const contents = createContents(kind, seed);
  return Array.from({ length: count }, (_, page) => {
    const out = new Uint8Array(PAGE).fill(0xaa);
    return contents(page, out) ? out : undefined;
  });
}

function lz4Ratio(bytes: Uint8Array): number {
  return compressSync(Buffer.from(bytes)).length / bytes.length;
}

function isZero(bytes: Uint8Array): boolean {
  return bytes.every((byte) => byte === 0);
}

/** Share that LZ4 leaves, for single pages and for chunks of 64 pages. */
function ratios(kind: string): { pages: number; chunks: number } {
  const pages = pagesOf(kind, 512) as Uint8Array[];
  const chunks = Array.from({ length: 8 }, (_, i) => Buffer.concat(pages.slice(i * 64, i * 64 + 64)));
  return { pages: sum(pages.map(lz4Ratio)) / 512, chunks: sum(chunks.map(lz4Ratio)) / 8 };
}

test("contents: text and integers compress, random does not, alone or in chunks", (t) => {
  const text = ratios("text");
  t.true(text.pages < 0.55 && text.pages > 0.3, `text: ${JSON.stringify(text)}`);
  t.true(text.chunks < 0.6 && text.chunks > 0.3, `text: ${JSON.stringify(text)}`);
  const integers = ratios("integers");
  t.true(integers.pages < 0.7 && integers.pages > 0.2, `integers: ${JSON.stringify(integers)}`);
  t.true(integers.chunks < 0.7 && integers.chunks > 0.2, `integers: ${JSON.stringify(integers)}`);
  const random = ratios("random");
  t.true(random.pages > 0.99 && random.chunks > 0.99, `random: ${JSON.stringify(random)}`);
});

test("contents: mixed is a quarter zero pages, half of them absent, and a fifth incompressible", (t) => {
  const pages = pagesOf("mixed", 4096);
  const present = pages.filter((page) => page !== undefined);
  const near = (name: string, found: number, expected: number): void => {
    t.true(Math.abs(found / 4096 - expected) < 0.025, `${name}: ${found / 4096}`);
  };
  near("absent", 4096 - present.length, 0.125);
  near("zero", present.filter(isZero).length, 0.125);
  near("incompressible", present.filter((page) => lz4Ratio(page) > 0.99).length, 0.2);
});

test("contents: zero is present zero pages", (t) => {
  t.true(pagesOf("zero", 10).every((page) => page !== undefined && isZero(page)));
});

test("contents: follow from kind, seed and page; no two pages but zero ones are equal", (t) => {
  for (const kind of ["text", "integers", "random", "mixed"]) {
    const pages = pagesOf(kind, 2000);
    t.deepEqual(pagesOf(kind, 2000), pages);
    const seen = new Set<string>();
    for (const page of [...pages, ...pagesOf(kind, 2000, 2)]) {
      if (page === undefined || isZero(page)) continue;
      const bytes = Buffer.from(page).toString("latin1");
      t.false(seen.has(bytes), kind);
      seen.add(bytes);
    }
  }
});

test("contents: file repeats the file's bytes over all pages", (t) => {
  const directory = mkdtempSync(join(tmpdir(), "hibernaculum-contents-"));
  t.teardown(() => rmSync(directory, { recursive: true }));
  for (const length of [1, 1000, PAGE, 3 * PAGE + 17]) {
    const path = join(directory, `${length}`);
    const bytes = Uint8Array.from({ length }, (_, i) => (i * 7 + (i >> 8)) & 255);
    writeFileSync(path, bytes);
    for (const [page, found] of pagesOf(`file:${path}`, 9).entries()) {
      t.deepEqual(
        found,
        Uint8Array.from({ length: PAGE }, (_, i) => bytes[(page * PAGE + i) % length]!),
      );
    }
  }
});

test("contents: a file that is missing or empty is HIB_USAGE when the first page is asked for", (t) => {
  const directory = mkdtempSync(join(tmpdir(), "hibernaculum-contents-"));
  t.teardown(() => rmSync(directory, { recursive: true }));
  writeFileSync(join(directory, "empty"), "");
  for (const name of ["missing", "empty"]) {
    const runner = createRunner(`zipf:content=file:${join(directory, name)}`);
    isUsage(t, () => runner.initialPage!(0, new Uint8Array(PAGE)), new RegExp(`file:PATH.*${name}`));
  }
});

test("checkProcess: a process whose first contents came from a file that is gone cannot be recomputed", (t) => {
  const directory = mkdtempSync(join(tmpdir(), "hibernaculum-contents-"));
  t.teardown(() => rmSync(directory, { recursive: true }));
  const path = join(directory, "contents");
  writeFileSync(path, "old ");
  const text = `zipf:pages=4,content=file:${path}`;
  const { kernel } = new HandMachine();
  const process = kernel.lifecycle.spawn(text, createRunner(text));
  const check = () => checkProcess(kernel.memory, process);
  t.like(check(), { differences: [], not_recomputed: null, pages: 4 });
  writeFileSync(path, "new ");
  t.regex(check().differences.at(-1)!, /file.*has changed/);
  rmSync(path);
  t.like(check(), { differences: [], pages: 0 });
  t.regex(check().not_recomputed!, /content=file:PATH needs a readable file/);
});

test("a replay whose steps take long looks at the time all the same", (t) => {
  const { now } = performance;
  let clock_ms = 0;
  performance.now = () => (clock_ms += 10); // so that a few steps take 10 ms
  try {
    const replay = new Replay("disk:sectors=1000,depth=16");
    t.false(replay.advanceTo(2 ** 40, 100));
    t.true(replay.steps > 0 && replay.steps < 1000, `${replay.steps} steps`);
  } finally {
    performance.now = now;
  }
});

test("checkProcess: a process of somebody else's is recomputed within bounds of pages and of time", (t) => {
  const text = "sequential:pages=4";
  const { kernel } = new HandMachine();
  const process = { ...kernel.lifecycle.spawn(text, createRunner(text)), steps: 2 ** 50 };
  const within = (frames: number, until: number) =>
    checkProcess(kernel.memory, process, undefined, { allowed: [], frames, until }).not_recomputed;
  t.is(within(3, performance.now()), "it has more pages than the machine has frames");
  t.regex(within(4, performance.now())!, /^there was time for 0 of its 1125899906842624 steps; /);
});

function isUsage(t: ExecutionContext, act: () => void, message: RegExp): void {
  const error = t.throws(act, { instanceOf: HibernaculumError, message });
  t.is(error?.code, "HIB_USAGE");
  t.notRegex(error?.message ?? "", /\n/);
}

test("createRunner: refuses what is not allowed, naming the option, its range and what was given", (t) => {
  for (const [text, message] of [
    ["", /no program ""; there are zipf, random/],
    ["toString", /no program "toString"/],
    ["zipf:colour=red", /zipf: no option "colour"; there are pages, alpha/],
    ["zipf:toString=1", /zipf: no option "toString"/],
    ["zipf:pages=", /zipf: pages must be a whole number from 1 to 851968, given ""/],
    ["zipf:pages", /zipf: pages must be a whole number .*, given ""/],
    ["zipf:pages=many", /given "many"/],
    ["zipf:pages=1e3", /given "1e3"/],
    ["zipf:pages=0", /from 1 to 851968, given "0"/],
    ["zipf:pages=851969", /given "851969"/],
    ["zipf:pages=-1", /given "-1"/],
    ["zipf:pages=1.5", /a whole number .*, given "1.5"/],
    ["zipf:pages=1,pages=2", /pages is given twice/],
    ["zipf:pages=1,", /no option ""/],
    ["zipf:alpha=2.5", /alpha must be a number from 0 to 2, given "2.5"/],
    ["zipf:seed=4294967296", /seed must be/],
    ["zipf:content=noise", /content must be zero, text, .* or file:PATH, given "noise"/],
    ["zipf:content=toString", /content must be/],
    ["zipf:content=file:", /content must be/],
    ["zipf:seed=1\n2", /given "1\\n2"/],
    ["random:alpha=1", /random: no option "alpha"/],
    ["stack:pages=16385", /from 1 to 16384, given "16385"/],
    ["stack:content=zero", /stack: no option "content"/],
    ["heap:maxorder=9", /maxorder must be a whole number from 0 to 8, given "9"/],
    ["heap:slots=257", /slots must be a whole number from 1 to 256, given "257"/],
    ["idle:ms=0", /ms must be/],
  ] as const) {
    isUsage(t, () => createRunner(text), message);
  }
});

test("createRunner: takes options in any order, with defaults for the rest", (t) => {
  const runner = createRunner("zipf:rate=200,pages=33");
  t.deepEqual([runner.dataPages, runner.stackPages, runner.rate], [33, 0, 200]);
  t.deepEqual([createRunner("stack").dataPages, createRunner("stack").stackPages], [0, 256]);
  t.is(createRunner("zipf:").dataPages, 4096);
  t.is(createRunner("heap").dataPages, 1);
});

test("programHelp: lists every program, and its defaults are what it takes", (t) => {
  t.deepEqual(
    programHelp().map((program) => program.name),
    [...programNames],
  );
  for (const { name, options } of programHelp()) {
    const has = (option: string, value: string) => options.some((one) => one.name === option && one.default === value);
    t.true((has("seed", "1") && has("rate", "0")) || createRunner(name).unpredictable !== undefined, name);
    const text = `${name}:${options.map((option) => `${option.name}=${option.default}`).join(",")}`;
    t.notThrows(() => createRunner(text), text);
  }
});

test("FlatMemory: accesses of any size and place agree with single bytes", (t) => {
  const memory = new FlatMemory();
  const bytes = new Map<number, number>();
  const draws = new Draws(1);
  // Around a page's end within a slab, around a slab's end, and at the end of the stack.
  const places = [DATA_BASE + PAGE, DATA_BASE + 4 * 1024 * 1024, STACK_TOP - 16];
  for (let i = 0; i < 5_000; i++) {
    const address = (places[draws.below(3)]! - 8 + draws.below(16)) | 0;
    const words = [draws.below(2 ** 32) | 0, draws.below(2 ** 32) | 0];
    const size = [1, 4, 8][draws.below(3)]!;
    if (size === 1) memory.store8(address, words[0]!);
    else if (size === 4) memory.store32(address, words[0]!);
    else memory.store64(address, words[0]!, words[1]!);
    for (let at = 0; at < size; at++) bytes.set((address + at) >>> 0, (words[at >> 2]! >>> (8 * (at & 3))) & 255);

    const probe = (places[draws.below(3)]! - 8 + draws.below(16)) >>> 0;
    const byte = (at: number): number => bytes.get(at) ?? 0;
    t.is(memory.load8(probe), byte(probe));
    const word = byte(probe) | (byte(probe + 1) << 8) | (byte(probe + 2) << 16) | (byte(probe + 3) << 24);
    t.is(memory.load32(probe | 0), word);
  }
  for (const [address, byte] of bytes) t.is(memory.page(address >>> 12)?.[address & 4095], byte);
});

test("Replay: only goes forward", (t) => {
  const replay = new Replay("incrementer:pages=4");
  replay.advanceTo(10);
  t.throws(() => replay.advanceTo(9), { message: /only goes forward/ });
  t.is(replay.steps, 10);
});
