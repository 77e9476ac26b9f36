/** Numbers with units, as people read them. Units of memory are binary, rates of data decimal, as their names say. */

/** "512 MiB", "1.25 GiB", "17 B". */
export function formatBytes(bytes: number): string {
  return scaled(bytes, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]);
}

/** Two sizes that differ, so that it can be seen: in bytes where they would be rounded to the same. */
export function formatApart(a: number, b: number): [string, string] {
  const [one, other] = [formatBytes(a), formatBytes(b)];
  return one === other ? [`${formatCount(a)} bytes`, `${formatCount(b)} bytes`] : [one, other];
}

/** "1,234,567". */
export function formatCount(count: number): string {
  return Math.round(count).toLocaleString("en-US");
}

/** "1.23 M", "850 k", "12": three digits and a letter. */
export function formatShort(count: number): string {
  return scaled(count, 1000, ["", "k", "M", "G", "T"]).trimEnd();
}

/** A duration: "76 us", "1.52 ms", "3.4 s", "2 min 05 s". */
export function formatMs(ms: number): string {
  if (ms < 1) return ms <= 0 ? "0 ms" : `${threeDigits(ms * 1000)} us`;
  if (ms < 1000) return `${threeDigits(ms)} ms`;
  if (ms < 60_000) return `${threeDigits(ms / 1000)} s`;
  const seconds = Math.round(ms / 1000);
  const pad = (n: number): string => String(n).padStart(2, "0");
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${pad(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${pad(Math.floor(seconds / 60) % 60)} min`;
}

/** Nanoseconds: "850 ns", "1.5 us". */
export function formatNs(ns: number): string {
  return ns < 1000 ? `${Math.round(ns)} ns` : formatMs(ns / 1e6);
}

/** "12.3 %". */
export function formatPercent(part: number, whole: number): string {
  return whole === 0 ? "-" : `${threeDigits((100 * part) / whole)} %`;
}

/** "1.52 GB/s" of gigabytes a second. */
export function formatGbPerS(rate: number): string {
  return rate >= 1 ? `${threeDigits(rate)} GB/s` : `${threeDigits(rate * 1000)} MB/s`;
}

/** "3 frames", "1 frame". */
export function formatFrames(frames: number): string {
  return `${formatCount(frames)} ${frames === 1 ? "frame" : "frames"}`;
}

function scaled(value: number, base: number, units: readonly string[]): string {
  let unit = 0;
  // 999.5 would be rounded up to a fourth digit.
  while (value >= (base === 1000 ? 999.5 : base) && unit < units.length - 1) {
    value /= base;
    unit++;
  }
  return `${unit === 0 ? formatCount(value) : threeDigits(value)} ${units[unit]}`;
}

function threeDigits(value: number): string {
  if (value >= 100) return formatCount(value);
  return String(Number(value.toFixed(value >= 10 ? 1 : 2)));
}
