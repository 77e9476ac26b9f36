/**
 * What the library's functions are called with, checked before anything is done. A type says the same to those who compile. A
 * caller who does not, and mistypes a name, must not hibernate a machine that was to go on.
 */
import { HibernaculumError } from "./errors.js";

/** What a value must be, in words, and whether it is. */
export interface Rule {
  must: string;
  holds(value: unknown): boolean;
}

export const flag: Rule = { must: "true or false", holds: (value) => typeof value === "boolean" };
export const text: Rule = { must: "a string", holds: (value) => typeof value === "string" };
export const callback: Rule = { must: "a function", holds: (value) => typeof value === "function" };
export const abortSignal: Rule = { must: "an AbortSignal", holds: (value) => value instanceof AbortSignal };
export const path: Rule = {
  must: "a path, which is a string that is not empty",
  holds: (value) => typeof value === "string" && value !== "" && !value.includes("\0"),
};
export const paths: Rule = {
  must: "a list of paths",
  holds: (value) => Array.isArray(value) && value.every((item) => path.holds(item)),
};
/** Infinity is one. */
export const zeroOrMore: Rule = { must: "a number, 0 or more", holds: (value) => typeof value === "number" && value >= 0 };

export const moreThanZero: Rule = {
  must: "a number above 0",
  holds: (value) => typeof value === "number" && value > 0 && value < Infinity,
};

export function oneOf(...choices: readonly string[]): Rule {
  return { must: choices.join(" or "), holds: (value) => choices.includes(value as string) };
}

export function wholeNumber(least: number, most: number = Number.MAX_SAFE_INTEGER): Rule {
  const range = most === Number.MAX_SAFE_INTEGER ? `, ${least} or more` : ` from ${least} to ${most}`;
  return {
    must: `a whole number${range}`,
    holds: (value) => Number.isSafeInteger(value) && (value as number) >= least && (value as number) <= most,
  };
}

export function listOf({ must, holds }: Rule): Rule {
  return { must: `a list of which each is ${must}`, holds: (value) => Array.isArray(value) && value.every(holds) };
}

export function optional({ must, holds }: Rule): Rule {
  return { must, holds: (value) => value === undefined || holds(value) };
}

/** What one of our calls has returned, told by names that it has. */
export function having(must: string, ...names: readonly string[]): Rule {
  return { must, holds: (value) => typeof value === "object" && value !== null && names.every((name) => name in value) };
}

/** Memory of a machine, live or stored. */
export const readable: Rule = having("a machine's memory, such as image.memory()", "frames", "load32", "read");

/**
 * Checks the arguments of a call, by their names.
 *
 * @throws HIB_USAGE
 */
export function checkArguments(call: string, given: Readonly<Record<string, readonly [value: unknown, rule: Rule]>>): void {
  for (const [name, [value, rule]] of Object.entries(given))
    if (!rule.holds(value)) throw refusal(call, `${name} must be ${rule.must}`);
}

/**
 * Checks the options of a call. One that is undefined is one that is not given.
 *
 * @throws HIB_USAGE
 */
export function checkOptions(call: string, options: unknown, rules: Readonly<Record<string, Rule>>): void {
  if (typeof options !== "object" || options === null) throw refusal(call, "the options must be an object");
  for (const [name, value] of Object.entries(options)) {
    const rule = Object.hasOwn(rules, name) ? rules[name] : undefined;
    if (rule === undefined)
      throw refusal(call, `there is no option ${JSON.stringify(name)}; there are ${Object.keys(rules).join(", ")}`);
    if (value !== undefined && !rule.holds(value)) throw refusal(call, `${name} must be ${rule.must}`);
  }
}

/** Checks the path of an image and the options of a call. @throws HIB_USAGE */
export function checkCall(call: string, where: unknown, options: unknown, rules: Readonly<Record<string, Rule>>): void {
  checkArguments(call, { "the path of the image": [where, path] });
  checkOptions(call, options, rules);
}

function refusal(call: string, why: string): HibernaculumError {
  return new HibernaculumError("HIB_USAGE", `${call}: ${why}`);
}
