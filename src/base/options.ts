/**
 * What the library's functions are called with, checked before anything is done. A type says the same to those who compile; who
 * does not, and mistypes a name, must not hibernate a machine that was to go on.
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

/**
 * Checks the path and the options of a call. An option that is undefined is one that is not given.
 *
 * @throws HIB_USAGE
 */
export function checkCall(call: string, where: unknown, options: unknown, rules: Readonly<Record<string, Rule>>): void {
  const refuse = (why: string): never => {
    throw new HibernaculumError("HIB_USAGE", `${call}: ${why}`);
  };
  if (!path.holds(where)) refuse(`the path of the image must be ${path.must}`);
  if (typeof options !== "object" || options === null) return refuse("the options must be an object");
  for (const [name, value] of Object.entries(options)) {
    const rule = Object.hasOwn(rules, name) ? rules[name] : undefined;
    if (rule === undefined)
      return refuse(`there is no option ${JSON.stringify(name)}; there are ${Object.keys(rules).join(", ")}`);
    if (value !== undefined && !rule.holds(value)) refuse(`${name} must be ${rule.must}`);
  }
}
