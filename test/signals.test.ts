/**
 * Signals, alarms, process groups, and how processes begin and end, on a vCPU that the test runs in its own thread: the order of
 * events is given, and what each process sees is noted as it goes.
 */
import test from "ava";
import { PTE_R, PTE_W } from "../src/base/layout.js";
import { E2BIG, ECHILD, EINVAL, ENOENT, EPERM, ESRCH } from "../src/vm/memory/errno.js";
import * as K from "../src/vm/memory/kernel-layout.js";
import {
  A0,
  DATA_BASE,
  type Exited,
  HANDLER,
  SelfCheckError,
  SIGNAL_FRAME,
  SP,
  STACK_TOP,
} from "../src/vm/personality/step/program.js";
import { PHASE, STATE, type Step } from "../src/vm/personality/step/programs/states.js";
import { drainConsole } from "../src/vm/memory/console-ring.js";
import * as S from "../src/vm/tasks/signals.js";
import { STATUS_CONTINUED, stopStatus, WCONTINUED, WNOHANG, WUNTRACED } from "../src/vm/tasks/status.js";
import { type Act, go, runScripts, Script, ScriptedMachine } from "./scripted.js";
import { processAddress } from "../src/vm/memory/kernel-layout.js";

const FREE = 40; // words 40 to 59 of the registers (x20 to x29) are nobody's
const set =
  (word: number, value: number): Act =>
  (step) => {
    step.registers[word] = value;
    return "done";
  };
const fork: Act = ({ system }) => system.fork();
const exit =
  (code: number): Act =>
  ({ system }) =>
    system.exit(code);
const pause: Act = ({ system }) => system.pause();
const sleep =
  (ms: number): Act =>
  ({ system }) =>
    system.sleep(ms);
/** Goes to another step if the fork before has made this process the child; the parent keeps the child's pid in FREE. */
const child =
  (to: number): Act =>
  ({ registers }) => {
    if (registers[A0] === 0) registers[STATE] = to;
    else registers[FREE] = registers[A0]!;
    return "done";
  };
/** Sends a signal to the child whose pid is in FREE. */
const kill =
  (signal: number): Act =>
  ({ system, registers }) =>
    void system.kill(registers[FREE]!, signal);
const raise =
  (signal: number): Act =>
  ({ system }) =>
    void system.kill(system.getpid(), signal);
const on =
  (signal: number, action: number | "ignore" | "default"): Act =>
  ({ system }) => {
    system.sigaction(signal, action);
    return "done";
  };
/** Waits for a child and hands over what wait says. */
const wait =
  (say: (exited: Exited | number) => void, pid = -1): Act =>
  ({ system }) => {
    const exited = system.wait(pid);
    if (exited === undefined) return "waits";
    say(exited);
    return "asked";
  };
/** Waits until something holds, a millisecond at a time. */
const until =
  (condition: (step: Step) => boolean): Act =>
  (step) => {
    if (!condition(step)) {
      step.registers[STATE]!--;
      step.system.sleep(1);
      return "asked";
    }
    return "done";
  };

// ---- handlers ----

test("a handler finds its number and the signal in registers; sigreturn restores all 64 words as they were", (t) => {
  let before: Int32Array | undefined;
  let inside: Int32Array | undefined;
  let after: Int32Array | undefined;
  let restored = 0;
  const machine = runScripts(({ off }) => ({
    main: new Script(
      [
        on(S.SIGUSR1, 2),
        ({ registers }) => {
          for (let word = 2; word < 64; word++)
            if (word !== STATE && word !== SP && word !== SP + 1 && word < HANDLER) registers[word] = word * 0x1234567;
          return "done";
        },
        (step) => {
          before = step.registers.slice();
          return raise(S.SIGUSR1)(step);
        },
        ({ registers }) => {
          after = registers.slice();
          off();
        },
      ],
      [
        () => t.fail("another handler"),
        ({ registers, memory, system }) => {
          inside = registers.slice();
          restored = memory.load32((registers[SP]! + SIGNAL_FRAME.signal) >>> 0);
          registers.fill(-1, 5);
          registers[0] = 0;
          registers[SP] = inside[SP]!;
          system.sigreturn();
        },
      ],
    ),
  }));
  before![STATE] = after![STATE] = 0;
  t.deepEqual(after, before);
  t.is(inside![HANDLER], 2);
  t.is(inside![A0], S.SIGUSR1);
  t.deepEqual([inside![A0 + 2], inside![PHASE]], [0, 0]);
  t.is(inside![SP]! >>> 0, STACK_TOP - SIGNAL_FRAME.bytes);
  t.is(restored, S.SIGUSR1);
  t.deepEqual(machine.problems(), []);
});

test("a handler's signal is masked until it returns, others nest; a signal that came twice is delivered once", (t) => {
  const log: string[] = [];
  runScripts(({ off }) => ({
    main: new Script(
      [
        on(S.SIGUSR1, 1),
        on(S.SIGUSR2, 2),
        raise(S.SIGUSR1),
        ({ system }) => {
          log.push(`main ${system.sigprocmask("block", 0)} ${system.sigpending()}`);
          off();
        },
      ],
      [
        (step) => {
          const { registers, system } = step;
          if (registers[PHASE]!++ === 0) {
            log.push("1 begins");
            if (log.length > 1) return; // the second time
            raise(S.SIGUSR1)(step);
            raise(S.SIGUSR1)(step);
            raise(S.SIGUSR2)(step);
            return "asked";
          }
          log.push(`1 goes on, ${system.sigpending() === S.signalSet(S.SIGUSR1) ? "USR1 is pending" : "?"}`);
        },
        ({ system }) => {
          const mask = system.sigprocmask("block", 0);
          log.push(`2, both are masked: ${mask === S.signalSet(S.SIGUSR1, S.SIGUSR2)}`);
        },
      ],
    ),
  }));
  t.deepEqual(log, ["1 begins", "2, both are masked: true", "1 goes on, USR1 is pending", "1 begins", "main 0 0"]);
});

test("a signal that is masked waits, and comes when it no longer is", (t) => {
  const log: string[] = [];
  runScripts(({ off }) => ({
    main: new Script(
      [
        on(S.SIGTERM, 1),
        ({ system }) => void system.sigprocmask("set", ~0),
        raise(S.SIGTERM),
        ({ system }) => {
          log.push(`pending ${system.sigpending() === S.signalSet(S.SIGTERM)}`);
          const masked = system.sigprocmask("unblock", S.signalSet(S.SIGTERM));
          log.push(`KILL and STOP cannot be: ${(masked & S.signalSet(S.SIGKILL, S.SIGSTOP)) === 0}`);
        },
        () => {
          log.push("after");
          off();
        },
      ],
      [() => void log.push("handled")],
    ),
  }));
  t.deepEqual(log, ["pending true", "KILL and STOP cannot be: true", "handled", "after"]);
});

test("a frame is pushed onto a stack that was never touched, or across pages, or fails without room: SIGSEGV", (t) => {
  const pointers: number[] = [];
  let status: Exited | number | undefined;
  const machine = runScripts(({ off }) => ({
    main: new Script(
      [
        on(S.SIGUSR1, 1),
        raise(S.SIGUSR1),
        set(SP, (STACK_TOP - 4096 + 100) | 0),
        raise(S.SIGUSR1),
        set(SP, 0),
        fork,
        child(9),
        wait((exited) => (status = exited)),
        off,
        ({ system }) => system.exec("no stack"),
      ],
      [({ registers }) => void pointers.push(registers[SP]! >>> 0)],
    ),
    "no stack": new Script([on(S.SIGUSR1, 1), raise(S.SIGUSR1)], [], 0),
  }));
  t.deepEqual(
    pointers,
    [STACK_TOP - 288, (STACK_TOP - 4096 + 100 - 288) & ~15].map((at) => at >>> 0),
  );
  t.like(status, { status: S.SIGSEGV });
  t.regex(drainConsole(machine.kernel.memory), /failed: no room on its stack .* signal 10/);
  t.deepEqual(machine.problems(), []);
});

// ---- what signals do without a handler ----

test("by default most signals end a process, and wait says which; some are ignored; KILL and STOP cannot be caught", (t) => {
  const log: string[] = [];
  let signal = 0;
  const loop = 3;
  runScripts(({ off }) => ({
    main: new Script([
      ({ system }) => {
        for (const sovereign of [S.SIGKILL, S.SIGSTOP]) t.is(system.sigaction(sovereign, 1), -EINVAL);
        t.is(system.sigaction(0, 1), -EINVAL);
        t.is(system.sigaction(32, 1), -EINVAL);
        t.is(system.sigaction(S.SIGUSR1, 0x10000), -EINVAL);
        t.is(system.sigaction(S.SIGUSR1, "ignore"), 0);
        t.is(system.sigaction(S.SIGUSR1, "default"), S.DISPOSITION_IGNORE);
        return "done";
      },
      () => "done",
      () => "done",
      ({ system, registers }) => {
        signal++;
        if ([S.SIGSTOP, S.SIGTSTP, S.SIGTTIN, S.SIGTTOU].includes(signal)) registers[STATE] = loop;
        else if (signal > S.SIGNAL_MAX) registers[STATE] = 9;
        else return system.fork();
        return "done";
      },
      child(8),
      (step) => kill(signal)(step),
      (step) => kill(S.SIGALRM)(step), // ends those that are still there; it was sent later, and has a lower number than some
      ({ system, registers }) => {
        const exited = system.wait(-1);
        if (exited === undefined) return "waits";
        log.push(`${signal} ${(exited as Exited).status}`);
        registers[STATE] = loop;
        return "done";
      },
      pause,
      off,
    ]),
  }));
  const ignored = [S.SIGCHLD, S.SIGCONT, S.SIGURG, S.SIGWINCH];
  const stops = [S.SIGSTOP, S.SIGTSTP, S.SIGTTIN, S.SIGTTOU];
  const signals = Array.from({ length: 31 }, (_, i) => i + 1).filter((number) => !stops.includes(number));
  // Two at once: KILL goes first, then the lower number.
  const ends = (number: number) =>
    ignored.includes(number) ? S.SIGALRM : number === S.SIGKILL ? number : Math.min(number, S.SIGALRM);
  t.deepEqual(
    log.map((line) => Number(line.split(" ")[0])),
    signals,
  );
  for (const line of log) {
    const [sent, status] = line.split(" ").map(Number);
    // It may have been delivered before the second was sent.
    t.true(status === sent || status === ends(sent!), line);
    if (ignored.includes(sent!)) t.is(status, S.SIGALRM);
  }
});

test("a stopped process does nothing and keeps its signals until SIGCONT; SIGKILL ends it", (t) => {
  const log: string[] = [];
  const states: string[] = [];
  const machine = runScripts((scripted) => {
    const state = ({ registers }: Step) => scripted.find(registers[FREE]!)?.state;
    return {
      main: new Script(
        [
          fork,
          child(14),
          until(() => log.length > 0),
          kill(S.SIGTSTP),
          until((step) => state(step) === "stopped"),
          kill(S.SIGUSR1),
          sleep(20),
          (step) => {
            states.push(`${state(step)} ${log.join()}`);
            return kill(S.SIGCONT)(step);
          },
          until(() => log.includes("USR1")),
          kill(S.SIGSTOP),
          until((step) => state(step) === "stopped"),
          kill(S.SIGKILL),
          wait((exited) => states.push(`ended by ${(exited as Exited).status}`)),
          scripted.off,
          on(S.SIGUSR1, 1),
          () => {
            log.push("child");
            return "done";
          },
          pause,
          pause,
        ],
        [() => void log.push("USR1")],
      ),
    };
  });
  t.deepEqual(states, ["stopped child", `ended by ${S.SIGKILL}`]);
  t.deepEqual(machine.problems(), []);
});

test("SIGCONT takes back a stop that was not carried out yet, and a stop takes back SIGCONT", (t) => {
  const machine = runScripts(({ off }) => ({
    main: new Script([
      ({ system }) => {
        system.kill(system.getpid(), S.SIGSTOP);
        system.kill(system.getpid(), S.SIGCONT);
      },
      ({ system }) => {
        system.sigaction(S.SIGCONT, 1);
        system.sigprocmask("block", S.signalSet(S.SIGCONT, S.SIGTSTP));
        system.kill(system.getpid(), S.SIGCONT);
        system.kill(system.getpid(), S.SIGTSTP);
        t.is(system.sigpending(), S.signalSet(S.SIGTSTP));
        off();
      },
    ]),
  }));
  t.is(machine.processes().length, 1);
});

// ---- rest that is interrupted ----

test("a sleeper runs its handler at once, and then sleeps what was left; stopping does not prolong it", (t) => {
  const log: string[] = [];
  let began = 0;
  let ended = 0;
  runScripts((scripted) => ({
    main: new Script(
      [
        fork,
        child(8),
        until(({ registers }) => scripted.find(registers[FREE]!)?.state === "sleeping"),
        kill(S.SIGUSR1),
        until(({ registers }) => log.length === 1 && scripted.find(registers[FREE]!)?.state === "sleeping"),
        kill(S.SIGTSTP),
        kill(S.SIGCONT),
        wait(() => scripted.off()),
        on(S.SIGUSR1, 1),
        ({ system }) => {
          began = system.monotonicTime();
          system.sleep(300);
        },
        ({ system }) => {
          ended = system.monotonicTime();
          system.exit(0);
        },
      ],
      [() => void log.push("handled")],
    ),
  }));
  t.true(ended - began >= 300, `${ended - began}`);
  t.deepEqual(log, ["handled"]);
});

test("who waits for a child handles signals meanwhile, and goes on waiting", (t) => {
  const log: string[] = [];
  runScripts((scripted) => ({
    main: new Script(
      [
        on(S.SIGUSR1, 1),
        on(S.SIGCHLD, 1),
        fork,
        child(6),
        wait((exited) => log.push(`exited ${(exited as Exited).status >> 8}`)),
        scripted.off,
        until(({ system }) => scripted.find(system.getppid())?.state === "blocked"),
        ({ system }) => void system.kill(system.getppid(), S.SIGUSR1),
        until(({ system }) => log.length === 1 && scripted.find(system.getppid())?.state === "blocked"),
        exit(7),
      ],
      [({ registers }) => void log.push(`signal ${registers[A0]}`)],
    ),
  }));
  t.deepEqual(log, [`signal ${S.SIGUSR1}`, `signal ${S.SIGCHLD}`, "exited 7"]);
});

test("pause lasts until a handler has run; sigsuspend lets in what was masked, even if it came before, and masks it again", (t) => {
  const log: string[] = [];
  runScripts((scripted) => ({
    main: new Script(
      [
        on(S.SIGUSR1, 1),
        on(S.SIGUSR2, "ignore"),
        fork,
        child(10),
        pause,
        ({ system }) => {
          log.push("paused");
          system.sigprocmask("block", S.signalSet(S.SIGUSR1));
        },
        raise(S.SIGUSR1),
        ({ system }) => system.sigsuspend(0),
        ({ system }) => {
          log.push(`suspended, masked again: ${system.sigprocmask("block", 0) === S.signalSet(S.SIGUSR1)}`);
          scripted.off();
        },
        () => "done",
        until(({ system }) => scripted.find(system.getppid())?.state === "sleeping"),
        ({ system }) => void system.kill(system.getppid(), S.SIGUSR2), // ignored: it does not end a pause
        ({ system }) => void system.kill(system.getppid(), S.SIGTSTP), // nor does stopping
        until(({ system }) => scripted.find(system.getppid())?.state === "stopped"),
        ({ system }) => void system.kill(system.getppid(), S.SIGCONT),
        until(({ system }) => scripted.find(system.getppid())?.state === "sleeping"),
        ({ system }) => {
          log.push("child");
          system.kill(system.getppid(), S.SIGUSR1);
        },
        exit(0),
      ],
      [() => void log.push("handled")],
    ),
  }));
  t.deepEqual(log, ["child", "handled", "paused", "handled", "suspended, masked again: true"]);
});

test("a handler may wait, be interrupted meanwhile, and fork: parent and child both return from it", (t) => {
  const log: string[] = [];
  const machine = runScripts((scripted) => ({
    main: new Script(
      [
        on(S.SIGUSR1, 1),
        on(S.SIGUSR2, 2),
        set(FREE, 77),
        raise(S.SIGUSR1),
        ({ registers, system }) => {
          const isChild = system.getppid() !== 0;
          log.push(`${isChild ? "child" : "parent"} returned with ${registers[FREE]}`);
          if (isChild) system.exit(5);
          else scripted.off();
        },
      ],
      [
        ({ registers, system }) => {
          switch (registers[PHASE]) {
            case 0:
              registers[PHASE] = 1;
              registers[FREE] = 1;
              return system.fork() ?? "asked";
            case 1:
              registers[PHASE] = registers[A0] === 0 ? 2 : 3;
              return "done";
            case 2:
              if (scripted.find(system.getppid())!.state !== "blocked") return "waits"; // looks again in a millisecond
              registers[PHASE] = 4;
              system.kill(system.getppid(), S.SIGUSR2);
              return "asked";
            case 3: {
              const exited = system.wait(-1);
              if (exited === undefined) return "waits";
              log.push(`waited: ${(exited as Exited).status >> 8}`);
              return undefined;
            }
            default:
              return undefined;
          }
        },
        () => void log.push("interrupted"),
      ],
    ),
  }));
  t.deepEqual(log.toSorted(), ["child returned with 77", "interrupted", "parent returned with 77", "waited: 5"]);
  t.is(log.at(-1), "parent returned with 77");
  t.deepEqual(machine.problems(), []);
});

// ---- SIGSEGV ----

test("a program that handles SIGSEGV learns the address, mends it, and the step is taken again", (t) => {
  const at = 0x5000_0000;
  const addresses: number[] = [];
  let value = 0;
  const machine = runScripts(({ off }) => ({
    main: new Script(
      [
        on(S.SIGSEGV, 1),
        ({ memory }) => {
          memory.store32(at + 8, 42);
          return "done";
        },
        ({ memory }) => {
          value = memory.load32(at + 8);
          off();
        },
      ],
      [
        ({ registers, system, memory }) => {
          addresses.push(registers[A0 + 2]! >>> 0);
          system.mmap({ address: at, pages: 1, flags: PTE_R | PTE_W });
          // This script notes the next state before it takes a step.
          const state = (registers[SP]! >>> 0) + SIGNAL_FRAME.registers + STATE * 4;
          memory.store32(state, memory.load32(state) - 1);
        },
      ],
    ),
  }));
  t.deepEqual(addresses, [at + 8]);
  t.is(value, 42);
  t.deepEqual(machine.problems(), []);
});

test("without a handler it fails; its parent reaps it like any other, and the console says why it failed", (t) => {
  const log: (Exited | number)[] = [];
  const machine = runScripts(({ off }) => ({
    main: new Script([
      fork,
      child(5),
      wait((exited) => log.push(exited)),
      wait((exited) => log.push(exited)),
      off,
      ({ memory }) => {
        memory.store32(DATA_BASE + 0x100_0000, 1);
        return "done";
      },
    ]),
  }));
  t.like(log[0], { status: S.SIGSEGV });
  t.is(log[1], -ECHILD);
  t.is(machine.find((log[0] as Exited).pid), undefined);
  t.regex(drainConsole(machine.kernel.memory), /process \d+ \(main\) failed: write to 0x11000000/);
  t.deepEqual(machine.problems(), []);
});

test("who has lost his parent and fails is reaped, and so is who fails first; who never had a parent stays", (t) => {
  const fail: Act = () => {
    throw new SelfCheckError("wrong memory");
  };
  const pids: number[] = [];
  const known: Act = ({ system }) => void pids.push(system.getpid());
  const failures = () => machine.processes().filter(({ state }) => state === "failed");
  let whileParentLives: number[] = [];
  let later: number[] = [];
  const machine: ScriptedMachine = new ScriptedMachine();
  machine.add({
    main: new Script([
      fork,
      child(6),
      wait(() => undefined),
      until(() => pids.length === 2 && machine.find(pids[1]!)?.state !== "sleeping"),
      ({ system }) => {
        later = failures().map(({ pid }) => pid);
        system.sleep(0);
      },
      fail,
      fork, // the parent of the two: one fails while it lives, one after its end
      child(12),
      until(() => failures().length === 1),
      fork,
      child(14),
      ({ system }) => {
        whileParentLives = failures().map(({ pid }) => pid);
        system.exit(0);
      },
      known,
      fail,
      known,
      until((step) => machine.find(step.system.getpid())!.parent === 0),
      fail,
    ]),
    witness: new Script([until(() => machine.find(main.pid)?.state === "failed"), machine.off]),
  });
  const main = machine.start("main");
  machine.start("witness");
  machine.start("watchdog");
  machine.go();
  t.deepEqual(whileParentLives, [pids[0]]);
  t.deepEqual(later, []);
  t.deepEqual(
    failures().map(({ pid }) => pid),
    [main.pid],
  );
  const says = drainConsole(machine.kernel.memory);
  for (const pid of pids) t.is(says.split(`process ${pid} (main) failed: wrong memory\n`).length, 2);
  t.false(says.includes(`process ${main.pid} `));
  t.deepEqual(machine.problems(), []);
  machine.kernel.lifecycle.end(main.slot);
  t.is(machine.find(main.pid), undefined);
});

test("who ignores SIGCHLD need not wait for a child that failed", (t) => {
  const machine = runScripts(({ off }) => ({
    main: new Script([
      on(S.SIGCHLD, "ignore"),
      fork,
      child(5),
      wait((none) => t.is(none, -ECHILD)),
      off,
      () => {
        throw new SelfCheckError("wrong memory");
      },
    ]),
  }));
  t.is(machine.processes().length, 1);
  t.regex(drainConsole(machine.kernel.memory), /\(main\) failed: wrong memory/);
  t.deepEqual(machine.problems(), []);
});

test("wait tells once that a child has stopped, once that it goes on, only if it is asked, and then how it ended", (t) => {
  const log: unknown[] = [];
  const ask =
    (options: number): Act =>
    ({ system }) => {
      const told = system.wait(-1, options);
      if (told === undefined) return "waits";
      log.push(typeof told === "number" ? told : told.status);
      return "asked";
    };
  const all = WNOHANG | WUNTRACED | WCONTINUED;
  const machine = runScripts(({ off }) => ({
    main: new Script([
      fork,
      child(14),
      ask(16), // no such option
      ask(all),
      kill(S.SIGTSTP),
      ask(WUNTRACED),
      ask(all),
      kill(S.SIGCONT),
      ask(WNOHANG),
      ask(WCONTINUED),
      ask(all),
      kill(S.SIGTERM),
      ask(WUNTRACED | WCONTINUED),
      off,
      pause,
    ]),
  }));
  t.deepEqual(log, [-EINVAL, 0, stopStatus(S.SIGTSTP), 0, 0, STATUS_CONTINUED, 0, S.SIGTERM]);
  t.deepEqual(machine.problems(), []);
});

test("a handler masks what sigaction says, and the child of a fork has it, too", (t) => {
  const log: string[] = [];
  runScripts(({ off }) => ({
    main: new Script(
      [
        ({ system }) => {
          system.sigaction(S.SIGUSR1, 1, S.signalSet(S.SIGUSR2, S.SIGKILL));
          system.sigaction(S.SIGUSR2, 2);
          return "done";
        },
        raise(S.SIGUSR1),
        fork,
        child(6),
        wait(() => undefined),
        off,
        raise(S.SIGUSR1),
        exit(0),
      ],
      [
        (step) => {
          if (step.registers[PHASE]!++ === 0) {
            log.push("1 begins");
            return raise(S.SIGUSR2)(step) ?? "asked";
          }
          log.push(`1 ends, masked ${step.system.sigprocmask("block", 0) === S.signalSet(S.SIGUSR1, S.SIGUSR2)}`);
        },
        () => void log.push("2"),
      ],
    ),
  }));
  const once = ["1 begins", "1 ends, masked true", "2"];
  t.deepEqual(log, [...once, ...once]);
});

// ---- fork, exec, exit, wait ----

test("a child has its parent's handlers and mask, and none of its pending signals or alarms", (t) => {
  const log: string[] = [];
  const machine = runScripts(({ off }) => ({
    main: new Script(
      [
        on(S.SIGUSR1, 1),
        ({ system }) => void system.sigprocmask("block", S.signalSet(S.SIGUSR2)),
        raise(S.SIGUSR2),
        ({ system }) => {
          system.alarm(1e6);
          return "done";
        },
        fork,
        child(8),
        wait(() => undefined),
        off,
        raise(S.SIGUSR1),
        ({ system }) => {
          log.push(`${system.sigpending()} ${system.sigprocmask("block", 0) === S.signalSet(S.SIGUSR2)} ${system.alarm(0)}`);
          system.exit(0);
        },
      ],
      [() => void log.push("handled")],
    ),
  }));
  t.deepEqual(log, ["handled", "0 true 0"]);
  t.is(machine.processes().length, 1);
});

test("exec: handlers are gone, what was ignored, masked and pending is so still; a text that is no program's changes nothing", (t) => {
  const log: unknown[] = [];
  const machine = runScripts(({ off }) => ({
    main: new Script([
      on(S.SIGUSR1, 1),
      on(S.SIGUSR2, "ignore"),
      ({ system }) => void system.sigprocmask("block", S.signalSet(S.SIGTERM)),
      raise(S.SIGTERM),
      ({ system }) => system.exec("no such program"),
      ({ registers, system }) => {
        log.push(registers[A0]);
        system.exec("x".repeat(5000));
      },
      ({ registers, system }) => {
        log.push(registers[A0]);
        system.exec("other");
      },
    ]),
    other: new Script([
      ({ system, registers }) => {
        log.push(system.sigaction(S.SIGUSR1, "default"), system.sigaction(S.SIGUSR2, "default"));
        log.push(
          system.sigpending(),
          system.sigprocmask("block", 0),
          registers.every((word, i) => word === 0 || i === STATE),
        );
        off();
      },
    ]),
  }));
  const term = S.signalSet(S.SIGTERM);
  t.deepEqual(log, [-ENOENT, -E2BIG, 0, S.DISPOSITION_IGNORE, term, term, true]);
  t.deepEqual(machine.problems(), []);
});

test("after exec the new program runs on a vCPU, too, that has run the old one", (t) => {
  const log: string[] = [];
  const machine = runScripts(({ off }) => ({
    main: new Script([
      () => {
        log.push("old, first step");
        off();
        return "asked";
      },
      ({ system }) => {
        system.exec("other");
        off();
      },
    ]),
    other: new Script([
      () => {
        log.push("new");
        off();
      },
    ]),
  }));
  machine.go(1);
  machine.go(0);
  t.deepEqual(log, ["old, first step", "new"]);
});

test("SIGCHLD comes with a child's end; a parent that ignores it has no zombies and nobody to wait for", (t) => {
  const log: unknown[] = [];
  const machine = runScripts((scripted) => ({
    main: new Script(
      [
        on(S.SIGCHLD, 1),
        fork,
        child(10),
        until(() => log.length > 0),
        ({ registers }) => void log.push(scripted.find(registers[FREE]!)!.state),
        wait((exited) => log.push((exited as Exited).status)),
        on(S.SIGCHLD, "ignore"),
        fork,
        child(10),
        go(11),
        exit(3),
        wait((exited) => log.push(exited)),
        scripted.off,
      ],
      [({ registers }) => void log.push(`signal ${registers[A0]}`)],
    ),
  }));
  t.deepEqual(log, [`signal ${S.SIGCHLD}`, "zombie", 3 << 8, -ECHILD]);
  t.is(machine.processes().length, 1);
});

for (const [how, end, left] of [
  ["ends", exit(0), ["sleeping 0"]],
  ["fails", ({ memory }) => void memory.store8(0, 1), ["failed 0", "sleeping 0"]],
] satisfies [string, Act, string[]][]) {
  test(`children of a process that ${how} have no parent; those that are over are gone`, (t) => {
    const parents: number[] = [];
    const machine = runScripts((scripted) => ({
      main: new Script([
        fork,
        child(7),
        fork,
        child(8),
        until(() => parents.length > 0), // one has looked
        until(({ system }) => scripted.processes().some(({ state, parent }) => state === "zombie" && parent === system.getpid())),
        end,
        exit(1),
        until(({ system }) => {
          parents.push(system.getppid());
          return parents.at(-1) === 0;
        }),
        scripted.off,
      ]),
    }));
    t.true(parents[0]! > 0);
    t.deepEqual(
      machine.processes().map(({ state, parent }) => `${state} ${parent}`),
      left,
    );
    t.deepEqual(machine.problems(), []);
  });
}

// ---- groups ----

test("groups: kill and wait for a group, and who may be put where", (t) => {
  const log: unknown[] = [];
  const machine = runScripts((scripted) => ({
    main: new Script([
      fork,
      child(11),
      ({ registers, system }) => {
        log.push(system.setpgid(registers[FREE]!, 0) === 0 && system.getpgid(registers[FREE]!) === registers[FREE]);
        registers[FREE + 1] = registers[FREE]!;
        system.fork();
      },
      child(11),
      fork,
      ({ registers, system }) => {
        if (registers[A0] === 0) return void system.pause();
        log.push(system.setpgid(registers[FREE]!, registers[FREE + 1]!));
        log.push(
          system.setpgid(registers[FREE]!, 9999),
          system.setpgid(9999, 0),
          system.setpgid(system.getpid(), -1),
          system.getpgid(9999),
        );
        log.push(
          system.kill(-registers[FREE + 1]!, 0),
          system.kill(-9999, 0),
          system.kill(system.getpid(), 32),
          system.wait(-9999),
        );
        system.kill(-registers[FREE + 1]!, S.SIGTERM);
        return "asked";
      },
      ({ system, registers }) => {
        const exited = system.wait(-registers[FREE + 1]!);
        if (exited === undefined) return "waits";
        if (exited !== -ECHILD) registers[STATE]!--;
        log.push(exited === -ECHILD ? exited : (exited as Exited).status);
        return "done";
      },
      ({ system }) => {
        log.push(system.wait(0) === undefined ? "one is left" : "?");
        system.sigaction(S.SIGTERM, "ignore");
        system.kill(0, S.SIGTERM);
      },
      wait((exited) => log.push((exited as Exited).status), 0),
      scripted.off,
      () => "done",
      pause,
    ]),
  }));
  t.deepEqual(log, [true, 0, -EPERM, -ESRCH, -EINVAL, -ESRCH, 0, -ESRCH, -EINVAL, -ECHILD, 15, 15, -ECHILD, "one is left", 15]);
  t.is(machine.processes().length, 1);
  t.deepEqual(machine.problems(), []);
});

// ---- alarms ----

test("an alarm comes not before its time, an interval again and again; one that is taken back says what was left", (t) => {
  const times: number[] = [];
  const log: number[] = [];
  let began = 0;
  runScripts(({ off }) => ({
    main: new Script(
      [
        on(S.SIGALRM, 1),
        ({ system }) => {
          began = system.monotonicTime();
          log.push(system.alarm(20, 5));
          return "done";
        },
        until(() => times.length >= 4),
        ({ system }) => {
          log.push(system.alarm(1e6));
          log.push(system.alarm(0), system.alarm(0));
          log.push(system.alarm(-1), system.alarm(Number.NaN));
          times.length = Math.min(times.length, 4);
          system.sleep(20);
        },
        off,
      ],
      [({ system }) => void times.push(system.monotonicTime() - began)],
    ),
  }));
  t.is(times.length, 4);
  for (const [i, time] of times.entries()) t.true(time >= 20 + i * 5, `${times}`);
  const [first, interval, long, none, ...wrong] = log;
  t.is(first, 0);
  t.true(interval! >= 1 && interval! <= 5);
  t.true(long! > 9e5 && long! <= 1e6);
  t.is(none, 0);
  t.deepEqual(wrong, [-EINVAL, -EINVAL]);
});

test("an alarm ends whoever does not handle it, and reaches one that never rests", (t) => {
  let status: Exited | number | undefined;
  runScripts(({ off }) => ({
    main: new Script([
      fork,
      child(4),
      wait((exited) => (status = exited)),
      off,
      ({ system }) => {
        system.alarm(5);
        return "done";
      },
      ({ registers }) => {
        registers[STATE]!--;
        return "done";
      },
    ]),
  }));
  t.like(status, { status: S.SIGALRM });
});

test("who has come to his end has no alarm: an idle vCPU does not wait for it", (t) => {
  const machine = runScripts(({ off, find }) => ({
    main: new Script([
      fork,
      child(4),
      until(({ registers }) => find(registers[FREE]!)?.state === "zombie"),
      off,
      ({ system }) => {
        system.alarm(10_000);
        system.exit(0);
      },
    ]),
  }));
  for (let slot = 0; slot < 3; slot++)
    t.is(machine.kernel.memory.loadFloat64(processAddress(machine.kernel.memory, slot) + K.PROCESS_ALARM), 0);
});
