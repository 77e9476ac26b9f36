/** Every order in which some threads may take their accesses to shared memory (core-steps.ts). */
import type { SharedMemory } from "../src/base/wasm.js";
import { type Act, Thread } from "./core-steps.js";
import { Overlay } from "./overlay.js";

export interface Scenario {
  /** Memory as all threads find it; it is not changed. */
  memory: SharedMemory;
  threads: Record<string, readonly Act[]>;
  /** Whether others may read or write there. */
  isShared: (address: number) => boolean;
  /** Says what is wrong once all threads are at their end. */
  judge: (memory: Overlay, results: Record<string, readonly number[]>) => string | undefined;
  /** Orders that come here are not followed any further. */
  leave?: (memory: Overlay) => boolean;
}

/**
 * Tries every order of the accesses of some threads.
 *
 * @returns how many states there are, how many of them are ends, and how many were left
 * @throws Error with an order of steps that ends wrongly, or after which the threads can never come to their ends
 */
export function explore({ memory, threads, isShared, judge, leave }: Scenario): { states: number; ends: number; left: number } {
  const names = Object.keys(threads);
  const seen = new Map<string, State>();
  const over: State[] = [];
  const count = { states: 0, ends: 0, left: 0 };

  /** Visits what can come of a state; returns the state. */
  const visit = (memory: Overlay, all: readonly Thread[], order: readonly string[]): State => {
    const key = `${memory.key}|${all.map((thread) => thread.key).join("|")}`;
    const known = seen.get(key);
    if (known !== undefined) return known;
    const state: State = { order, from: [], ends: false };
    seen.set(key, state);
    count.states++;
    const left = leave?.(memory) === true;
    if (left || all.every((thread) => thread.done)) {
      count[left ? "left" : "ends"]++;
      const wrong = left ? undefined : judge(memory, Object.fromEntries(names.map((name, i) => [name, all[i]!.results])));
      if (wrong !== undefined) throw new Error(`${wrong}; order: ${order.join(" ")}`);
      over.push(state);
      return state;
    }
    let ready = all.flatMap((thread, i) => (thread.canStep(memory) && !thread.asleep ? [i] : []));
    if (ready.length === 0) ready = all.flatMap((thread, i) => (thread.canStep(memory) ? [i] : [])); // a wait that is over by time
    for (const i of ready) {
      const next = memory.clone();
      const copies = all.map((thread) => thread.clone());
      const one = copies[i]!;
      one.step(next);
      if (next.changed) for (const other of copies) if (other !== one) other.asleep = false;
      visit(next, copies, [...order, `${names[i]}:${one.at}`]).from.push(state);
    }
    return state;
  };

  const first = new Overlay(new Int32Array(memory.buffer));
  const begin = names.map((name) => new Thread([{ step: () => undefined }, ...threads[name]!], isShared));
  for (const thread of begin) thread.step(first); // each comes to its first access
  visit(first, begin, []);
  for (let state = over.pop(); state !== undefined; state = over.pop()) {
    if (state.ends) continue;
    state.ends = true;
    over.push(...state.from);
  }
  for (const { ends, order } of seen.values()) if (!ends) throw new Error(`nobody comes to an end; order: ${order.join(" ")}`);
  return count;
}

interface State {
  order: readonly string[];
  /** From where it is reached. */
  from: State[];
  /** It leads to an end, or to where orders are left. */
  ends: boolean;
}
