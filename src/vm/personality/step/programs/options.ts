/**
 * Options of step programs: `key=value,key=value`, checked against a table that is also the help text.
 *
 * What must hold: a text that is accepted says everything about the process. Whatever else is in it (an unknown key, a
 * number out of range, a key given twice) is refused with one line: the option, what it may be, what was given.
 */
import { HibernaculumError } from "../../../../base/errors.js";
import { DATA_PAGES_MAX, type Runner } from "../program.js";
import { CONTENT_RANGE, isContentKind } from "./contents.js";

export interface Option<Value> {
  readonly default: Value;
  /** What it may be, to follow "must be". */
  readonly range: string;
  readonly help: string;
  /** The value of a text, or undefined if it is out of range. */
  parse(text: string): Value | undefined;
}

type OptionTable = Readonly<Record<string, Option<unknown>>>;
type Values<Table extends OptionTable> = {
  readonly [Name in keyof Table]: Table[Name] extends Option<infer Value> ? Value : never;
};

/** A kind of step program. */
export interface Program {
  readonly name: string;
  /** One line for the help text. */
  readonly summary: string;
  readonly options: OptionTable;
  /**
   * Makes a runner from the text after the colon.
   * @throws HibernaculumError HIB_USAGE
   */
  create(text: string): Runner;
}

/** Joins a program's option table and its constructor, which gets the values by name. */
export function defineProgram<Table extends OptionTable>(definition: {
  name: string;
  summary: string;
  options: Table;
  create(values: Values<Table>): Runner;
}): Program {
  const { name, options } = definition;
  return { ...definition, create: (text) => definition.create(parseOptions(name, options, text)) };
}

/** A whole number from `min` to `max`. */
export function integer(limits: { min: number; max: number; default: number; help: string }): Option<number> {
  return number(limits, /^\d+$/, "a whole number");
}

/** A number from `min` to `max`, with or without decimals. */
export function decimal(limits: { min: number; max: number; default: number; help: string }): Option<number> {
  return number(limits, /^\d+(\.\d+)?$/, "a number");
}

function number(limits: { min: number; max: number; default: number; help: string }, form: RegExp, noun: string): Option<number> {
  const { min, max, default: initial, help } = limits;
  return {
    default: initial,
    range: `${noun} from ${min} to ${max}`,
    help,
    parse(text) {
      const value = form.test(text) ? Number(text) : Number.NaN;
      return value >= min && value <= max ? value : undefined;
    },
  };
}

/** A text of at least one character, without commas. */
export function text({ default: initial, help }: { default: string; help: string }): Option<string> {
  return { default: initial, range: "a text", help, parse: (given) => (given === "" ? undefined : given) };
}

export const seed: Option<number> = integer({
  min: 0,
  max: 0xffff_ffff,
  default: 1,
  help: "all that is random follows from it",
});

export const rate: Option<number> = integer({
  min: 0,
  max: 1_000_000_000,
  default: 0,
  help: "most steps a second; 0 for as many as it can",
});

/** The size of the data area. */
export function dataPages(initial: number): Option<number> {
  return integer({ min: 1, max: DATA_PAGES_MAX, default: initial, help: "size of the data area, in pages of 4 KiB" });
}

export const content: Option<string> = {
  default: "mixed",
  range: CONTENT_RANGE,
  help: "what is in the data area at the start",
  parse: (text) => (isContentKind(text) ? text : undefined),
};

function parseOptions<Table extends OptionTable>(program: string, table: Table, text: string): Values<Table> {
  const values: Record<string, unknown> = {};
  for (const item of text === "" ? [] : text.split(",")) {
    const equals = item.indexOf("=");
    const name = equals < 0 ? item : item.slice(0, equals);
    const value = equals < 0 ? "" : item.slice(equals + 1);
    const option = Object.hasOwn(table, name) ? table[name] : undefined;
    if (option === undefined) {
      throw usage(`${program}: no option ${JSON.stringify(name)}; there are ${Object.keys(table).join(", ")}`);
    }
    if (Object.hasOwn(values, name)) throw usage(`${program}: ${name} is given twice`);
    values[name] = option.parse(value);
    if (values[name] === undefined) {
      throw usage(`${program}: ${name} must be ${option.range}, given ${JSON.stringify(value)}`);
    }
  }
  for (const [name, option] of Object.entries(table)) values[name] ??= option.default;
  return values as Values<Table>;
}

function usage(message: string): HibernaculumError {
  return new HibernaculumError("HIB_USAGE", message);
}
