/** The capture process: is told the plan, then how many frames there are, and tells what it wrote. Composes, and holds no logic. */
import process from "node:process";
import { serializeError } from "../src/base/errors.js";
import { Capture, type CapturePlan } from "../src/capture/capture.js";
import { loadChecksum } from "../src/image/checksum.js";

const collect = (): void => (globalThis.gc as unknown as (options: { type: "minor" }) => void)({ type: "minor" });
const tell = (message: object): void => void process.send!(message);
const refuse = (error: unknown): void => tell({ error: serializeError(error) });

// These are its parent's, who ends it, or finishes the save first.
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => undefined);
process.once("disconnect", () => process.exit(1));
process.once("message", (plan: CapturePlan) => {
  try {
    const capture = new Capture(plan);
    process.once("message", ({ count }: { count: number }) => void capture.write(count, tell, collect).catch(refuse));
    void loadChecksum().then(() => tell({ ready: true }), refuse);
  } catch (error) {
    refuse(error);
  }
});
