/** Small charts of text: a sparkline over time, bars of a histogram. */
const LEVELS = "▁▂▃▄▅▆▇█";
const EIGHTHS = " ▏▎▍▌▋▊▉";

/**
 * One character a column, scaled to the largest. Neighbours are averaged when there are more values than columns. A
 * column that is not zero is never drawn as low as one that is.
 *
 * @param options.max what a full column is; default: the largest value
 */
export function sparkline(values: readonly number[], options: { columns: number; max?: number }): string {
  const columns = averaged(values, options.columns);
  const max = options.max ?? Math.max(...columns, 0);
  return columns
    .map((value) => {
      if (value <= 0 || max <= 0) return LEVELS[0];
      return LEVELS[Math.min(LEVELS.length - 1, 1 + Math.floor((value / max) * (LEVELS.length - 1.001)))];
    })
    .join("");
}

/** What a sparkline of so many columns has as its highest column. */
export function sparklineMax(values: readonly number[], columns: number): number {
  return Math.max(...averaged(values, columns), 0);
}

/** A horizontal bar of `part` of `columns` characters, an eighth of a character exact. */
export function bar(part: number, columns: number): string {
  const eighths = Math.round(Math.min(1, Math.max(0, part)) * columns * 8);
  const full = "█".repeat(Math.floor(eighths / 8));
  if (eighths === 0) return part > 0 ? EIGHTHS[1]! : "";
  return eighths % 8 === 0 ? full : full + EIGHTHS[eighths % 8];
}

function averaged(values: readonly number[], columns: number): number[] {
  if (values.length <= columns) return [...values];
  return Array.from({ length: columns }, (_, column) => {
    const from = Math.floor((column * values.length) / columns);
    const to = Math.max(from + 1, Math.floor(((column + 1) * values.length) / columns));
    const part = values.slice(from, to);
    return part.reduce((sum, value) => sum + value, 0) / part.length;
  });
}
