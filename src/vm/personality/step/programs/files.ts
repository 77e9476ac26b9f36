/**
 * Works on one file after another: makes it, writes, reads back, shares a position by dup, cuts, renames, removes.
 *
 * What must hold: byte p of the file of round n follows from p, n and the seed. The file is named after the process, so many may
 * work in one directory.
 */
import { DATA_BASE, SelfCheckError } from "../program.js";
import { ENOENT } from "../../../memory/errno.js";
import { O_APPEND, O_CREAT, O_EXCL, O_RDWR, SEEK_CUR, SEEK_SET } from "../../../files/flags.js";
import { PTE_R } from "../../../../base/layout.js";
import { defineProgram, integer, type Program, rate, seed, text } from "./options.js";
import { hash, keyOf } from "./random.js";
import { type Outcome, STATE, StateProgram, type Step } from "./states.js";
import { describeResult } from "./results.js";

// Words of the registers.
const ROUND = 12;
const FD = 14;
const SIZE = 16;
const OPERATIONS = 18;
const MAPPED = 24;

const BUFFER = DATA_BASE;
const BUFFER_PAGES = 4;
const BYTES_MAX = BUFFER_PAGES * 4096;

class FilesProgram extends StateProgram {
  override readonly dataPages = BUFFER_PAGES;
  override readonly stackPages = 0;
  override readonly unpredictable = "its memory follows from files; it checks them itself";
  readonly needs: { directory: string };
  readonly #directory: string;
  readonly #size: number;
  readonly #key: number;

  constructor(options: { dir: string; kilobytes: number; seed: number; rate: number }) {
    super(options);
    this.needs = { directory: options.dir };
    this.#directory = options.dir.replace(/\/$/, "");
    this.#size = options.kilobytes * 1024;
    this.#key = keyOf(options.seed);
  }

  protected override step(state: number, step: Step): Outcome {
    const { memory, registers: r, system } = step;
    const path = `${this.#directory}/files-${system.getpid()}`;
    switch (state) {
      case 0:
        r[ROUND]!++;
        r[FD] = expect("open", system.open(path, O_RDWR | O_CREAT | O_EXCL) ?? -1, (fd) => fd >= 0);
        r[SIZE] = 0;
        r[OPERATIONS] = 0;
        r[STATE] = 1;
        return "done";
      case 1:
        this.#operate(step);
        if (++r[OPERATIONS]! >= 64) r[STATE] = 2;
        return "done";
      case 2: {
        // A second fd by dup has the same position; one by open has its own, and O_APPEND writes at the end.
        const fd = r[FD]!;
        const twin = expect("dup", system.dup(fd), (other) => other >= 0 && other !== fd);
        expect("lseek", system.lseek(twin, 1, SEEK_SET), (at) => at === 1);
        expect("shared position", system.lseek(fd, 0, SEEK_CUR), (at) => at === 1);
        expect("close", system.close(twin), (result) => result === 0);
        const other = expect("open again", system.open(path, O_RDWR | O_APPEND) ?? -1, (result) => result >= 0);
        this.#fill(step, r[SIZE]!, 5);
        expect("append", system.write(other, BUFFER, 5) ?? -1, (count) => count === 5);
        r[SIZE] = r[SIZE]! + 5;
        expect("own position", system.lseek(fd, 0, SEEK_CUR), (at) => at === 1);
        expect("close", system.close(other), (result) => result === 0);
        r[STATE] = 3;
        return "done";
      }
      case 3:
        r[MAPPED] = expect(
          "mmap",
          system.mmapFile(r[FD]!, 0, { pages: Math.max(1, Math.ceil(r[SIZE]! / 4096)), flags: PTE_R }),
          (at) => at > 0 || at < -4096,
        );
        r[STATE] = 4;
        return "done";
      case 4: {
        for (let at = 0; at < r[SIZE]!; at += 509) this.#check(memory.load8((r[MAPPED]! + at) | 0), r, at, "mapped");
        expect("munmap", system.munmap(r[MAPPED]!, Math.max(1, Math.ceil(r[SIZE]! / 4096))), (result) => result === 0);
        r[STATE] = 5;
        return "done";
      }
      case 5: {
        const renamed = system.rename(path, `${path}.old`);
        if (renamed === undefined) return "waits";
        expect("rename", renamed, (result) => result === 0);
        expect("renamed", system.stat(path) === -ENOENT ? 1 : 0, (gone) => gone === 1);
        r[STATE] = 6;
        return "done";
      }
      case 6: {
        const removed = system.unlink(`${path}.old`);
        if (removed === undefined) return "waits";
        expect("unlink", removed, (result) => result === 0);
        r[STATE] = 7;
        return "done";
      }
      default: {
        // Open still, it is there still.
        expect("lseek", system.lseek(r[FD]!, 0, SEEK_SET), (at) => at === 0);
        this.#readBack(step, 0, Math.min(r[SIZE]!, 4096));
        expect("close", system.close(r[FD]!), (result) => result === 0);
        r[STATE] = 0;
        return "done";
      }
    }
  }

  #operate(step: Step): void {
    const { registers: r, system } = step;
    const draw = hash(this.#key, r[ROUND]! * 64 + r[OPERATIONS]!) >>> 0;
    const size = r[SIZE]!;
    const at = draw % (size + 1);
    const count = Math.min(1 + ((draw >>> 8) % BYTES_MAX), this.#size);
    expect("lseek", system.lseek(r[FD]!, at, SEEK_SET), (result) => result === at);
    if (draw % 16 === 0 && size > 0) {
      expect("ftruncate", system.ftruncate(r[FD]!, at) ?? -1, (result) => result === 0);
      r[SIZE] = at;
    } else if (draw % 16 < 9 && at + count <= this.#size) {
      this.#fill(step, at, count);
      expect("write", system.write(r[FD]!, BUFFER, count) ?? -1, (result) => result === count);
      r[SIZE] = Math.max(size, at + count);
      expect("position", system.lseek(r[FD]!, 0, SEEK_CUR), (result) => result === at + count);
    } else this.#readBack(step, at, Math.min(count, size - at));
    const stat = system.fstat(r[FD]!);
    if (typeof stat === "number" || stat.size !== r[SIZE])
      throw new SelfCheckError(
        `files: ${typeof stat === "number" ? `fstat gave ${describeResult(stat)}` : `size ${stat.size}`}, expected ${r[SIZE]}`,
      );
  }

  #readBack({ memory, registers: r, system }: Step, at: number, count: number): void {
    const read = system.read(r[FD]!, BUFFER, count);
    expect("read", read ?? -1, (result) => result === count);
    for (let i = 0; i < count; i++) this.#check(memory.load8(BUFFER + i), r, at + i, "read");
  }

  #fill({ memory, registers: r }: Step, at: number, count: number): void {
    for (let i = 0; i < count; i++) memory.store8(BUFFER + i, this.#byte(r, at + i));
  }

  #check(found: number, r: Int32Array, at: number, how: string): void {
    if (found !== this.#byte(r, at)) throw new SelfCheckError(`files: byte ${at} of round ${r[ROUND]}, ${how}, is ${found}`);
  }

  #byte(r: Int32Array, at: number): number {
    return (hash(this.#key + r[ROUND]!, at >>> 2) >>> (8 * (at & 3))) & 0xff;
  }
}

function expect(what: string, found: number, right: (found: number) => boolean): number {
  if (!right(found)) throw new SelfCheckError(`files: ${what} gave ${describeResult(found)}`);
  return found;
}

export const files: Program = defineProgram({
  name: "files",
  summary: "makes, writes, reads, maps, cuts, renames and removes a file; checks every byte, size and position",
  options: {
    dir: text({ default: "/", help: "directory of its file; one that is mounted from the host, or in memory" }),
    kilobytes: integer({ min: 16, max: 65536, default: 64, help: "largest size of the file" }),
    seed,
    rate,
  },
  create: (options) => new FilesProgram(options),
});
