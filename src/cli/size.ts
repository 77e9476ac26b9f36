/** Sizes of memory as they are written on the command line. */
import { InvalidArgumentError } from "commander";

const UNITS: Readonly<Record<string, number>> = {
  "": 1,
  b: 1,
  k: 2 ** 10,
  m: 2 ** 20,
  g: 2 ** 30,
  kib: 2 ** 10,
  mib: 2 ** 20,
  gib: 2 ** 30,
  kb: 1e3,
  mb: 1e6,
  gb: 1e9,
};

/** What help texts say about a size. */
export const SIZE_HELP = "K, M, G (or KiB, MiB, GiB): powers of 1024; KB, MB, GB: of 1000; else bytes";

/**
 * Bytes of a size: "512M" and "512MiB" are 2^29, "512MB" is 512,000,000, "4096" is 4096.
 *
 * @throws InvalidArgumentError, which commander makes a usage error
 */
export function parseSize(text: string): number {
  const [, digits, unit] = /^(\d+(?:\.\d+)?) ?([a-z]*)$/i.exec(text) ?? [];
  const factor = UNITS[unit?.toLowerCase() ?? "none"];
  if (factor === undefined) throw new InvalidArgumentError("Give a size such as 512M, 1.5G or 4000MB.");
  const bytes = Number(digits) * factor;
  if (bytes > Number.MAX_SAFE_INTEGER) throw new InvalidArgumentError("It is too large.");
  if (!Number.isInteger(bytes)) throw new InvalidArgumentError("It is no whole number of bytes; give it in a smaller unit.");
  return bytes;
}
