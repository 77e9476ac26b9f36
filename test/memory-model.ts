/**
 * A plain model of what processes see of their memory: a map of pages each, whose bytes are immutable values. It knows nothing
 * of frames, leaves, areas or tags. Runs the same actions on a machine and on itself and says where they differ.
 */
import { FRAME_BYTES, PTE_R, PTE_W, PTE_X } from "../src/base/layout.js";
import { GuestFault } from "../src/vm/memory/address-space.js";
import { AREA_BYTES } from "../src/vm/memory/area.js";
import { checkConsistency } from "../src/vm/views/consistency.js";
import { EAGAIN, ECHILD, EINVAL, ENOMEM } from "../src/vm/memory/errno.js";
import { allocateObject, freeObject } from "../src/vm/memory/kernel-heap.js";
import { KERNEL_HEAP_HEADS, KIND_KERNEL_HEAP, KIND_RESERVE } from "../src/vm/memory/kernel-layout.js";
import { walkLeaves, walkTables } from "../src/vm/memory/page-table.js";
import { listProcesses, type Process, readProcess, readRegisters } from "../src/vm/tasks/process.js";
import {
  A0,
  CODE_BASE,
  DATA_BASE,
  HEAP_BASE,
  HEAP_END,
  STACK_TOP,
  type KernelCalls,
} from "../src/vm/personality/step/program.js";
import { MMAP_BASE } from "../src/vm/memory/user-layout.js";
import { blocksOfKind } from "../src/vm/views/walker.js";
import { callsOf, HandMachine, MIB } from "./support.js";

const PAGE = FRAME_BYTES;
const ZERO = new Uint8Array(PAGE);
const RW = PTE_R | PTE_W;
const STACK_PAGES = 24;
const STACK_GUARD = 16;
const DATA_PAGES = 530;
const END = STACK_TOP / PAGE;
/** An aligned 2 MiB begins 8 pages after this. */
const WINDOW = (0x4000_0000 - 8 * PAGE) / PAGE;
/** So many pages are remembered, for others to go there too. */
const HOT = 6;
const VCPUS = 3;
const PROCESSES_MAX = 8;
/** What fork and exit take on in one piece. */
const LEAVES_A_PART = 150;
/** With fewer free frames than this a call may fail for want of memory: a 2 MiB page is copied into so many. */
const TIGHT = 530;

/** Where actions take place: first page, and how many. Most begin near the first, so that they meet. */
const REGIONS: readonly { first: number; pages: number }[] = [
  { first: WINDOW, pages: 1100 },
  { first: WINDOW, pages: 1100 },
  { first: DATA_BASE / PAGE, pages: DATA_PAGES + 4 },
  { first: 0, pages: 18 },
  { first: END - 44, pages: 45 },
  { first: END - 28, pages: 28 },
  { first: HEAP_BASE / PAGE - 20, pages: 60 },
  { first: HEAP_END / PAGE - 6, pages: 12 },
];

export interface Action {
  what: keyof typeof ACTIONS;
  process: number;
  vcpu: number;
  region: number;
  page: number;
  far: boolean;
  pages: number;
  large: boolean;
  flags: number;
  offset: number;
  value: number;
}

/** How often each is drawn. */
export const ACTIONS = {
  load8: 4,
  load32: 10,
  store8: 4,
  store32: 12,
  store64: 16,
  mmap: 3,
  share: 2,
  anywhere: 1,
  munmap: 3,
  mprotect: 4,
  advise: 2,
  fork: 4,
  exit: 1,
  wait: 2,
  map: 2,
  unmap: 5,
  shrink: 1,
  squeeze: 1,
  relax: 1,
  arm: 1,
};

/** What a page is; its bytes are never changed, only replaced. */
interface Page {
  kind: "code" | "data" | "heap" | "stack" | "mapping";
  flags: number;
  /** Of the heap: whether a block is there. */
  mapped: boolean;
  bytes: Uint8Array;
  shared?: { object: Map<number, Uint8Array>; index: number };
}

const HEAP_PAGE: Page = { kind: "heap", flags: RW, mapped: false, bytes: ZERO };

interface Modelled {
  process: Process;
  vcpu: number;
  parent: Modelled | undefined;
  /** Undefined of a zombie. */
  status: number | undefined;
  pages: Map<number, Page | undefined>;
  /** Blocks of the heap that no munmap or mmap has touched. */
  blocks: { first: number; order: number }[];
}

export class MemoryModel {
  readonly machine: HandMachine = new HandMachine({ ramBytes: 24 * MIB, vcpus: VCPUS });
  /** How often an action came to which end. */
  readonly met: Map<string, number> = new Map();
  readonly #free: number;
  readonly #heapFrames: number;
  readonly #all: Modelled[] = [];
  readonly #running: (number | undefined)[] = [];
  /** Pages that actions were about lately. */
  readonly #hot: number[] = [];
  #squeezed: number[] = [];
  #drained: number[] = [];
  #hashes: number[] | undefined;

  constructor() {
    const { kernel } = this.machine;
    this.#free = kernel.buddy.freeFrames;
    this.#heapFrames = blocksOfKind(kernel.memory, KIND_KERNEL_HEAP).length;
    for (const vcpu of this.machine.vcpus) vcpu.kernel.lifecycle.leavesAPart = LEAVES_A_PART;
    for (let i = 0; i < 2; i++) this.#spawn(0x11 * (i + 1));
  }

  /** Runs actions; throws where the machine and the model differ. */
  run(actions: readonly Action[]): void {
    for (const [i, action] of actions.entries()) {
      try {
        this.#act(action);
        if (i % 8 === 7) this.check();
      } catch (error) {
        throw new Error(`action ${i}, ${JSON.stringify(action)}: ${(error as Error).message}`, { cause: error });
      }
    }
    this.check();
    this.#checkMarks();
    this.#relax();
    for (const { process } of this.#alive()) this.machine.kernel.lifecycle.end(process.slot);
    for (const { slot } of listProcesses(this.machine.kernel.memory)) this.machine.kernel.lifecycle.end(slot);
    this.#checkEmpty();
  }

  // ---- actions ----

  #act(action: Action): void {
    const alive = this.#alive();
    const modelled = alive[action.process % alive.length];
    if (modelled === undefined) {
      this.#relax();
      return this.#spawn(0x33);
    }
    // Mostly where it ran before: its tags are there.
    const vcpu = (modelled.vcpu = action.vcpu < VCPUS ? action.vcpu : modelled.vcpu);
    const region = REGIONS[action.region % REGIONS.length]!;
    const hot = this.#hot[action.value % Math.ceil(1.5 * this.#hot.length)];
    const first = within(
      0,
      END,
      hot === undefined
        ? region.first + (action.page % (action.far ? region.pages : 4))
        : hot + (action.page % 8 === 0 ? (action.page % 3) - 1 : 0),
    );
    const pages = action.large ? 1 + (action.pages % 1100) : 1 + (action.pages % 6);
    this.#hot.push(first, first + pages - 1);
    this.#hot.splice(0, this.#hot.length - HOT);
    const system = () => this.#systemOf(modelled, vcpu);
    switch (action.what) {
      case "load8":
      case "load32":
      case "store8":
      case "store32":
      case "store64": {
        // Most go where they are allowed: to few pages, so that tags of before are met.
        const denied = (pageOf(modelled, first)?.flags ?? 0) !== RW && action.value % 8 > 0;
        const page = denied ? (action.pages % 2 === 0 ? DATA_BASE / PAGE : WINDOW) + (action.page % 3) : first;
        return this.#access(modelled, vcpu, action.what, page * PAGE + action.offset, action.value);
      }
      case "mmap":
      case "share": {
        const shared = action.what === "share";
        const result = system().mmap({ address: (first * PAGE) | 0, pages, flags: action.flags, shared });
        if (!this.#expect(action.what, result, isRange(first, pages) ? first * PAGE : -EINVAL, shared || isRange(first, pages)))
          return;
        return this.#place(modelled, first, pages, action.flags, shared);
      }
      case "anywhere": {
        const result = system().mmap({ pages, flags: action.flags });
        if (!this.#expect("anywhere", result, Math.max(result, 0), true)) return;
        for (let vpn = result / PAGE; vpn < result / PAGE + pages; vpn++)
          if (pageOf(modelled, vpn) !== undefined) throw new Error(`mmap gave 0x${result.toString(16)}, where something is`);
        if (result % PAGE !== 0 || result < MMAP_BASE || result + pages * PAGE > HEAP_BASE)
          throw new Error(`mmap gave ${result}`);
        return this.#place(modelled, result / PAGE, pages, action.flags, false);
      }
      case "munmap": {
        const result = system().munmap((first * PAGE) | 0, pages);
        if (!this.#expect("munmap", result, isRange(first, pages) ? 0 : -EINVAL, isRange(first, pages))) return;
        for (let vpn = first; vpn < first + pages; vpn++) modelled.pages.set(vpn, undefined);
        return dropBlocks(modelled, first, pages);
      }
      case "mprotect": {
        const result = system().mprotect((first * PAGE) | 0, pages, action.flags);
        const range = isRange(first, pages);
        const whole = range && each(first, pages, (vpn) => pageOf(modelled, vpn) !== undefined);
        if (!this.#expect("mprotect", result, whole ? 0 : range ? -ENOMEM : -EINVAL, whole)) return;
        for (let vpn = first; vpn < first + pages; vpn++)
          modelled.pages.set(vpn, { ...pageOf(modelled, vpn)!, flags: allowed(action.flags) });
        return;
      }
      case "advise": {
        const result = system().madviseHuge((region.first * PAGE) | 0, region.pages);
        if (!isRange(region.first, region.pages)) return void this.#expect("advise", result, -EINVAL, false);
        const most = hugeRuns(modelled, region.first, region.pages);
        if (result < 0 || result > most) throw new Error(`${result} huge pages, at most ${most}`);
        return this.#count(`advise ${result > 0 ? "some" : "none"}`);
      }
      case "fork":
        return this.#fork(modelled, vcpu);
      case "exit":
        return this.#exit(modelled, vcpu, (action.value & 255) << 8);
      case "wait":
        return this.#wait(modelled, vcpu);
      case "map": {
        const order = action.pages % 4;
        const page = pageOf(modelled, first);
        const good =
          first >= HEAP_BASE / PAGE &&
          first + 2 ** order <= HEAP_END / PAGE &&
          each(first, 2 ** order, (vpn) => {
            const other = pageOf(modelled, vpn);
            return other?.kind === "heap" && !other.mapped && other.flags === page?.flags;
          });
        const result = attempt(() => system().map((first * PAGE) | 0, order));
        if (!good) return void this.#expectFault("map", result);
        if (result === false) return this.#wasTight("map");
        if (result !== true) throw new Error(`map: ${String(result)}`);
        for (let vpn = first; vpn < first + 2 ** order; vpn++) modelled.pages.set(vpn, { ...page!, mapped: true, bytes: ZERO });
        modelled.blocks.push({ first, order });
        return this.#count("map");
      }
      case "unmap": {
        const block = modelled.blocks.splice(action.value % modelled.blocks.length, 1)[0];
        if (block === undefined) return;
        system().unmap((block.first * PAGE) | 0, block.order);
        for (let vpn = block.first; vpn < block.first + 2 ** block.order; vpn++)
          modelled.pages.set(vpn, { ...pageOf(modelled, vpn)!, mapped: false, bytes: ZERO });
        return this.#count("unmap");
      }
      case "shrink": {
        const address = (END - (action.page % 30)) * PAGE + (action.offset % 2);
        system().shrinkStack(address | 0);
        for (const [vpn, page] of modelled.pages)
          if (page?.kind === "stack" && (vpn + 1) * PAGE <= address) modelled.pages.set(vpn, { ...page, bytes: ZERO });
        return this.#count("shrink");
      }
      case "squeeze":
        return this.#squeeze(action.value % 7 === 0 ? TIGHT + 10 : action.value % 9);
      case "relax":
        return this.#relax();
      case "arm":
        this.#checkMarks();
        this.machine.tracking.arm();
        this.#hashes = this.machine.hashes();
        return;
    }
  }

  #access(
    modelled: Modelled,
    vcpu: number,
    what: "load8" | "load32" | "store8" | "store32" | "store64",
    at: number,
    value: number,
  ): void {
    const core = this.#on(modelled, vcpu);
    const bytes = what.endsWith("64") ? 8 : what.endsWith("32") ? 4 : 1;
    const write = what.startsWith("store");
    const words = [value, ~value];
    const result = attempt(() => {
      if (what === "load8" || what === "load32") return core[what](at | 0) >>> 0;
      return what === "store64" ? core.store64(at | 0, words[0]!, words[1]!) : core[what](at | 0, value);
    });
    const seen: Page[] = [];
    for (let vpn = Math.floor(at / PAGE); vpn * PAGE < at + bytes; vpn++) {
      const page = this.#reach(modelled, vpn, write);
      if (page === undefined) return this.#expectFault(`${what} denied`, result);
      seen.push(page);
    }
    if (result instanceof GuestFault && result.kind === "no memory") {
      // Without memory a stack has not grown; an access across two pages may have got to the second.
      const areas = [...this.machine.kernel.space(modelled.process.slot).areas()];
      for (const [vpn, page] of modelled.pages)
        if (page?.kind === "stack" && !areas.some(({ start, end }) => vpn * PAGE >= start && vpn * PAGE < end))
          modelled.pages.set(vpn, undefined);
      return this.#wasTight(what);
    }
    if (result instanceof GuestFault) throw result;
    let loaded = 0;
    for (let i = 0; i < bytes; i++) {
      const vpn = Math.floor((at + i) / PAGE);
      const offset = (at + i) % PAGE;
      const page = pageOf(modelled, vpn)!;
      if (write) setByte(page, offset, words[i >> 2]! >>> (8 * (i & 3)));
      else loaded += bytesOf(page)[offset]! * 256 ** i;
    }
    if (!write && result !== loaded)
      throw new Error(`${what} of 0x${at.toString(16)} gave ${String(result)}, expected ${loaded}`);
    this.#count(`${what}${seen.length > 1 ? " across" : ""}`);
  }

  /** The page of an access that is allowed; a stack grows to it. */
  #reach(modelled: Modelled, vpn: number, write: boolean): Page | undefined {
    const grown = pageOf(modelled, vpn) === undefined ? growth(modelled, vpn) : undefined;
    const page = grown?.page ?? pageOf(modelled, vpn);
    if (page === undefined || (page.flags & (write ? PTE_W : PTE_R)) === 0 || (page.kind === "heap" && !page.mapped))
      return undefined;
    if (grown !== undefined) {
      for (let at = vpn; at < grown.to; at++) modelled.pages.set(at, { ...page, bytes: ZERO });
      this.#count("stack grows");
    } else if (!modelled.pages.has(vpn)) modelled.pages.set(vpn, { ...page });
    return pageOf(modelled, vpn);
  }

  #place(modelled: Modelled, first: number, pages: number, flags: number, shared: boolean): void {
    const object = new Map<number, Uint8Array>();
    for (let i = 0; i < pages; i++) {
      const page: Page = { kind: "mapping", flags: allowed(flags), mapped: true, bytes: ZERO };
      modelled.pages.set(first + i, shared ? { ...page, shared: { object, index: i } } : page);
    }
    dropBlocks(modelled, first, pages);
  }

  #fork(modelled: Modelled, vcpu: number): void {
    const { kernel } = this.machine.vcpus[vcpu]!;
    if (listProcesses(kernel.memory).length >= PROCESSES_MAX) return;
    this.#on(modelled, vcpu);
    kernel.lifecycle.fork(modelled.process.slot);
    this.#stopRunning(modelled); // as a vCPU does: it puts the process back
    this.#inParts("fork", () => kernel.lifecycle.goOn(modelled.process.slot));
    this.#end(vcpu); // a child for which there was no memory
    const pid = readRegisters(kernel.memory, modelled.process.slot)[A0]!;
    if (pid === -ENOMEM) return this.#wasTight("fork");
    const process = listProcesses(kernel.memory).find((found) => found.pid === pid);
    if (pid === -EAGAIN || process === undefined) throw new Error(`fork gave ${pid}`);
    if (readRegisters(kernel.memory, process.slot)[A0] !== 0) throw new Error("A0 of the child");
    const pages = new Map([...modelled.pages].map(([vpn, page]) => [vpn, page && { ...page }]));
    this.#all.push({
      process,
      vcpu: (vcpu + 1) % VCPUS,
      parent: modelled,
      status: undefined,
      pages,
      blocks: [...modelled.blocks],
    });
    this.#count("fork");
  }

  #exit(modelled: Modelled, vcpu: number, status: number): void {
    const { kernel } = this.machine.vcpus[vcpu]!;
    const { slot } = modelled.process;
    this.#stopRunning(modelled);
    kernel.turns.putBack(slot, 0, { do: "exit", status });
    this.#end(vcpu);
    this.#count("exit");
    this.#ended(modelled, status);
  }

  /** Processes that are ending go on with it. */
  #end(vcpu: number): void {
    const { kernel } = this.machine.vcpus[vcpu]!;
    this.#inParts("exit", () => {
      const ending = listProcesses(kernel.memory).find(({ state }) => state === "ending");
      if (ending !== undefined) kernel.turns.putBack(ending.slot, 0, { do: "ready" });
      return ending !== undefined;
    });
  }

  /** A call that is under way: between its parts the machine is one that an image may have. */
  #inParts(what: string, goOn: () => boolean): void {
    for (let parts = 1; goOn(); parts++) {
      this.#count(`${what} in parts`);
      if (parts % 4 !== 1) continue;
      const { problems } = checkConsistency(this.machine.kernel.memory);
      if (problems.length > 0) throw new Error(`after part ${parts} of ${what}: ${problems.join("; ")}`);
    }
  }

  #wait(modelled: Modelled, vcpu: number): void {
    const children = this.#all.filter(({ parent }) => parent === modelled);
    const result = this.#systemOf(modelled, vcpu).wait(-1);
    if (children.length === 0) return void this.#expect("wait", result as number, -ECHILD, false);
    if (children.every(({ status }) => status === undefined)) {
      if (result !== undefined) throw new Error("wait found a child that lives");
      return this.#count("wait blocks");
    }
    const zombie = children.find(
      ({ process, status }) => typeof result === "object" && process.pid === result.pid && status === result.status,
    );
    if (zombie === undefined) throw new Error(`wait gave ${JSON.stringify(result)}`);
    this.#all.splice(this.#all.indexOf(zombie), 1);
    this.#count("wait");
  }

  #ended(modelled: Modelled, status: number): void {
    modelled.status = status;
    modelled.pages.clear();
    for (const child of Array.from(this.#all)) {
      if (child.parent !== modelled) continue;
      child.parent = undefined;
      if (child.status !== undefined) this.#all.splice(this.#all.indexOf(child), 1);
    }
    if (modelled.parent === undefined) this.#all.splice(this.#all.indexOf(modelled), 1);
  }

  // ---- the machine's side ----

  #spawn(fill: number): void {
    const process = this.machine.kernel.lifecycle.spawn("model", {
      dataPages: DATA_PAGES,
      stackPages: STACK_PAGES,
      rate: 0,
      initialPage: (page, out) => page !== 3 && out.fill(fill) === out,
    });
    const pages = new Map<number, Page | undefined>();
    const code = new Uint8Array(PAGE);
    code.set(new TextEncoder().encode("model"));
    pages.set(CODE_BASE / PAGE, { kind: "code", flags: PTE_R | PTE_X, mapped: true, bytes: code });
    const full = new Uint8Array(PAGE).fill(fill);
    for (let page = 0; page < DATA_PAGES; page++)
      pages.set(DATA_BASE / PAGE + page, { kind: "data", flags: RW, mapped: true, bytes: page === 3 ? ZERO : full });
    pages.set(END - 1, { kind: "stack", flags: RW, mapped: true, bytes: ZERO });
    const modelled: Modelled = { process, vcpu: 0, parent: undefined, status: undefined, pages, blocks: [] };
    this.#all.push(modelled);
    this.#systemOf(modelled, 0).mmap({ address: WINDOW * PAGE, pages: 1100, flags: RW });
    this.#place(modelled, WINDOW, 1100, RW, false);
  }

  #alive(): Modelled[] {
    return this.#all.filter(({ status }) => status === undefined);
  }

  /** The process's core: it runs on one vCPU at a time, with its tags of before if it ran there last. */
  #on({ process }: Modelled, vcpu: number): ReturnType<HandMachine["run"]> {
    for (let other = 0; other < VCPUS; other++)
      if (other !== vcpu && this.#running[other] === process.slot) this.#running[other] = undefined;
    if (this.#running[vcpu] !== process.slot) this.machine.run(process, vcpu);
    this.#running[vcpu] = process.slot;
    return this.machine.vcpus[vcpu]!.core;
  }

  #stopRunning({ process }: Modelled): void {
    for (let vcpu = 0; vcpu < VCPUS; vcpu++) {
      if (this.#running[vcpu] !== process.slot) continue;
      this.machine.vcpus[vcpu]!.core.deactivate();
      this.#running[vcpu] = undefined;
    }
  }

  #systemOf(modelled: Modelled, vcpu: number): KernelCalls {
    this.#on(modelled, vcpu);
    return callsOf(this.machine, modelled.process, vcpu);
  }

  /** Leaves so many free frames, all apart, and no free object of the size of areas. */
  #squeeze(leave: number): void {
    this.#relax();
    const { buddy, memory } = this.machine.kernel;
    for (let order = 10; order >= 0; order--)
      for (
        let frame = buddy.allocate(order, 0, KIND_RESERVE);
        frame !== undefined;
        frame = buddy.allocate(order, 0, KIND_RESERVE)
      ) {
        buddy.split(frame);
        for (let i = 0; i < 2 ** order; i++) this.#squeezed.push(frame + i);
      }
    for (let at = allocateObject(memory, buddy, AREA_BYTES); at !== undefined; at = allocateObject(memory, buddy, AREA_BYTES))
      this.#drained.push(at);
    const apart = this.#squeezed.filter((frame) => frame % 2 === 0).slice(0, leave);
    for (const frame of apart) buddy.free(frame);
    const gone = new Set(apart);
    this.#squeezed = this.#squeezed.filter((frame) => !gone.has(frame));
  }

  #relax(): void {
    const { buddy, memory } = this.machine.kernel;
    for (const frame of this.#squeezed.splice(0)) buddy.free(frame);
    for (const at of this.#drained.splice(0)) freeObject(memory, at, AREA_BYTES);
  }

  // ---- comparing ----

  /** The machine is consistent, and every page holds what the model says. */
  check(): void {
    const { memory } = this.machine.kernel;
    const { problems } = checkConsistency(memory);
    if (problems.length > 0) throw new Error(`inconsistent: ${problems.join("; ")}`);
    for (const modelled of this.#alive()) {
      const { pid, root } = readProcess(memory, modelled.process.slot)!;
      const present = new Set<number>();
      /** Of the tables above the leaves: where they begin, and of what span. */
      const tables = new Set<string>();
      for (const { address, frame, level } of walkLeaves(memory, root)) {
        for (let above = level + 1; above <= 3; above++) tables.add(`${Math.floor(address / PAGE / 512 ** above)} ${above}`);
        for (let i = 0; i < 512 ** level; i++) {
          const vpn = address / PAGE + i;
          present.add(vpn);
          const page = pageOf(modelled, vpn);
          const where = `page 0x${(vpn * PAGE).toString(16)} of ${pid}`;
          if (page === undefined) throw new Error(`${where} is there`);
          if (Buffer.compare(memory.read((frame + i) * PAGE, PAGE), bytesOf(page)) !== 0) throw new Error(`${where} differs`);
        }
      }
      const there = [...walkTables(memory, root)].length;
      if (there !== tables.size) throw new Error(`${pid} has ${there} page tables, and its leaves want ${tables.size}`);
      for (const [vpn, page] of modelled.pages) {
        if (page === undefined || page.shared !== undefined || present.has(vpn)) continue;
        if (page.bytes !== ZERO) throw new Error(`page 0x${(vpn * PAGE).toString(16)} of ${pid} is missing`);
      }
    }
  }

  #checkMarks(): void {
    if (this.#hashes === undefined) return;
    const lost = this.machine.lostSince(this.#hashes);
    if (lost.length > 0) throw new Error(`frames ${lost.join()} changed without a mark`);
  }

  /** All processes have ended: every frame is free again, but for the kernel heap's, whose objects are all free. */
  #checkEmpty(): void {
    const { memory, buddy } = this.machine.kernel;
    const { problems, processes } = checkConsistency(memory);
    if (problems.length > 0) throw new Error(`inconsistent at the end: ${problems.join("; ")}`);
    const heap = blocksOfKind(memory, KIND_KERNEL_HEAP).length - this.#heapFrames;
    let objects = 0;
    for (let at = memory.load32(KERNEL_HEAP_HEADS + 4); at !== 0; at = memory.load32(at >>> 0)) objects++;
    if (processes !== 0) throw new Error(`${processes} processes at the end`);
    if (buddy.freeFrames + heap !== this.#free) throw new Error(`${this.#free - heap - buddy.freeFrames} frames are lost`);
    if (objects !== heap * (PAGE / AREA_BYTES)) throw new Error(`${heap * (PAGE / AREA_BYTES) - objects} objects are lost`);
  }

  /** Whether a call did what it should. It may fail for want of memory if there is little; it has then changed nothing. */
  #expect(what: string, result: number, expected: number, wantsMemory: boolean): boolean {
    if (result === -ENOMEM && expected !== -ENOMEM && wantsMemory) {
      this.#wasTight(what);
      return false;
    }
    if (result !== expected) throw new Error(`${what} gave ${result}, expected ${expected}`);
    this.#count(`${what}${expected < 0 ? " refused" : ""}`);
    return expected >= 0;
  }

  #expectFault(what: string, result: unknown): void {
    if (!(result instanceof GuestFault)) throw new Error(`${what}: gave ${String(result)}, expected a fault`);
    this.#count(what);
  }

  #wasTight(what: string): void {
    const { freeFrames } = this.machine.kernel.buddy;
    const apart = what === "map" && this.#squeezed.length > 0; // no block is free, however many frames are
    if (freeFrames > TIGHT && !apart) throw new Error(`${what} failed with ${freeFrames} free frames`);
    this.#count(`${what} without memory`);
  }

  #count(what: string): void {
    this.met.set(what, (this.met.get(what) ?? 0) + 1);
  }
}

function pageOf({ pages }: Modelled, vpn: number): Page | undefined {
  if (pages.has(vpn)) return pages.get(vpn);
  return vpn >= HEAP_BASE / PAGE && vpn < HEAP_END / PAGE ? HEAP_PAGE : undefined;
}

function bytesOf({ shared, bytes }: Page): Uint8Array {
  return shared === undefined ? bytes : (shared.object.get(shared.index) ?? ZERO);
}

function setByte(page: Page, offset: number, value: number): void {
  const bytes = Uint8Array.from(bytesOf(page));
  bytes[offset] = value;
  if (page.shared === undefined) page.bytes = bytes;
  else page.shared.object.set(page.shared.index, bytes);
}

/** What a stack that may grow down to a page would add: its page, and where what is there now begins. */
function growth(modelled: Modelled, vpn: number): { page: Page; to: number } | undefined {
  if (vpn < END - STACK_PAGES || vpn >= END) return undefined;
  let to = vpn;
  while (to < END && pageOf(modelled, to) === undefined) to++;
  const page = pageOf(modelled, to);
  if (page?.kind !== "stack") return undefined;
  for (let below = vpn - STACK_GUARD; below < vpn; below++) if (pageOf(modelled, below) !== undefined) return undefined;
  return { page, to };
}

/** How many aligned 2 MiB of a range could be one leaf. */
function hugeRuns(modelled: Modelled, first: number, pages: number): number {
  let runs = 0;
  for (let at = Math.ceil(first / 512) * 512; at + 512 <= first + pages; at += 512) {
    const kind = pageOf(modelled, at)?.kind;
    const fits = (page: Page | undefined) =>
      page !== undefined && page.kind === kind && page.shared === undefined && (page.flags & PTE_W) !== 0;
    if ((kind === "data" || kind === "mapping") && each(at, 512, (vpn) => fits(pageOf(modelled, vpn)))) runs++;
  }
  return runs;
}

function dropBlocks(modelled: Modelled, first: number, pages: number): void {
  modelled.blocks = modelled.blocks.filter((block) => block.first >= first + pages || block.first + 2 ** block.order <= first);
}

function within(least: number, most: number, value: number): number {
  return Math.max(least, Math.min(most, value));
}

function isRange(first: number, pages: number): boolean {
  return first >= 1 && first + pages <= END;
}

function allowed(flags: number): number {
  return (flags & PTE_W) === 0 ? flags : flags | PTE_R;
}

function each(first: number, pages: number, holds: (vpn: number) => boolean): boolean {
  for (let vpn = first; vpn < first + pages; vpn++) if (!holds(vpn)) return false;
  return true;
}

function attempt(call: () => unknown): unknown {
  try {
    return call();
  } catch (error) {
    if (error instanceof GuestFault) return error;
    throw error;
  }
}
