/**
 * Stopping the machine: every vCPU at a safepoint, and commands to vCPUs that are stopped.
 *
 * What must hold: `stop` returns only once every vCPU has said that it stands at a safepoint; from then until `go` no
 * guest store happens but those that a command makes. The coordinating thread waits, it never spins: with as many
 * vCPUs as cores, spinning would take the core that a vCPU needs to reach its safepoint.
 */
import type { Control } from "../base/control.js";
import { HibernaculumError } from "../base/errors.js";
import {
  COMMAND_RESTART,
  COMMAND_RUN,
  MACHINE_COLLECT,
  MACHINE_COMMAND,
  MACHINE_COMMAND_BELL,
  MACHINE_STOP,
  VCPU_COLLECTED,
  VCPU_COMMAND_DONE,
  VCPU_LEFT,
  VCPU_STATE,
  VCPU_STATE_OFF,
  VCPU_STATE_RUNNING,
  VCPU_STATE_STOPPED,
} from "../base/layout.js";

/** A vCPU that does not answer for this long is taken for dead, ms. */
const ANSWER_MS = 10_000;
/** After a stop its code stays ready to run for about so long, ms. */
const WARM_MS = 30_000;
/** A vCPU that has not collected by then does so when it likes, ms. */
const COLLECT_MS = 20;

export class Quiesce {
  readonly #control: Control;
  readonly #vcpus: number;
  /** When the machine last went on. */
  #last_ms = -Infinity;

  constructor(control: Control, vcpus: number) {
    this.#control = control;
    this.#vcpus = vcpus;
  }

  /** Whether the machine is stopped: then only the code that stopped it may store to it. */
  get stopped(): boolean {
    return this.#control.load(MACHINE_STOP) === 1;
  }

  /** Brings every vCPU to a safepoint and keeps it there. */
  stop(): void {
    this.#stop();
  }

  #stop(): void {
    this.#control.store(MACHINE_STOP, 1);
    this.#control.ringDoorbell();
    try {
      this.#await((vcpu) => this.#control.loadVcpu(vcpu, VCPU_STATE) !== VCPU_STATE_RUNNING);
    } catch (error) {
      this.#release(COMMAND_RUN);
      throw error;
    }
  }

  /**
   * Before a stop that counts: does what would hold it up. Each vCPU's thread collects its garbage, which takes a
   * millisecond. This thread does not: it is the embedder's, and what survives two such collections, a machine's memory for one, would
   * stay until the runtime collects everything. If the last stop was long ago there is one for nothing, which costs the machine a pause like any other: code that runs for the first time,
   * or that the runtime has thrown away since, takes a millisecond, too.
   */
  prepare(): void {
    if (performance.now() - this.#last_ms > WARM_MS) {
      this.#stop();
      this.#release(COMMAND_RUN);
      this.#left();
    }
    const told = this.#control.add(MACHINE_COLLECT, 1) + 1;
    this.#control.ringDoorbell();
    const collected = this.#all(
      (vcpu) =>
        this.#control.loadVcpu(vcpu, VCPU_COLLECTED) === told || this.#control.loadVcpu(vcpu, VCPU_STATE) !== VCPU_STATE_RUNNING,
    );
    this.#control.waitForVcpus(collected, COLLECT_MS);
  }

  /** Has every stopped vCPU carry out a command, while `alongside` runs here; returns when all are done. */
  command(command: number, alongside: () => void): void {
    this.#control.store(MACHINE_COMMAND, command);
    this.#control.ring(MACHINE_COMMAND_BELL);
    const bell = this.#control.load(MACHINE_COMMAND_BELL);
    alongside();
    this.#await(
      (vcpu) =>
        this.#control.loadVcpu(vcpu, VCPU_COMMAND_DONE) === bell || this.#control.loadVcpu(vcpu, VCPU_STATE) === VCPU_STATE_OFF,
    );
  }

  /** Lets the machine go on, and waits until it does. */
  go(): void {
    this.release();
    this.left();
  }

  /** Lets the machine go on. */
  release(): void {
    this.#release(COMMAND_RUN);
  }

  /** Waits until every vCPU has gone on; returns when the last one did, host ms. */
  left(): number {
    return this.#left();
  }

  #left(): number {
    this.#last_ms = performance.now();
    this.#await((vcpu) => this.#control.loadVcpu(vcpu, VCPU_STATE) !== VCPU_STATE_STOPPED);
    return Math.max(...Array.from({ length: this.#vcpus }, (_, vcpu) => this.#control.loadVcpuFloat(vcpu, VCPU_LEFT)));
  }

  /** Lets the machine go on with what its memory says now: each vCPU forgets what it ran, and asks the scheduler. */
  restart(): void {
    this.#release(COMMAND_RESTART);
    this.left();
  }

  #release(command: number): void {
    this.#control.store(MACHINE_STOP, 0);
    this.#control.store(MACHINE_COMMAND, command);
    this.#control.ring(MACHINE_COMMAND_BELL);
  }

  #await(done: (vcpu: number) => boolean): void {
    if (!this.#control.waitForVcpus(this.#all(done), ANSWER_MS)) {
      throw new HibernaculumError("HIB_INTERNAL", `a vCPU did not reach a safepoint within ${ANSWER_MS / 1000} s`);
    }
  }

  #all(done: (vcpu: number) => boolean): () => boolean {
    return () => {
      for (let vcpu = 0; vcpu < this.#vcpus; vcpu++) if (!done(vcpu)) return false;
      return true;
    };
  }
}
