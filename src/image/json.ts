/** JSON from somebody else, which may be sixty times as large once it is parsed, or so deep that nobody can follow it. */

/** JSON of ours is a few levels deep. Code that goes through it goes as deep into the stack. */
const JSON_DEPTH_MAX = 100;
/** Each may take a hundred bytes once it is parsed, of three that stand there. */
const JSON_VALUES_MAX = 2 ** 20;

/** @throws SyntaxError, RangeError for more than there is in JSON of ours */
export function parseJson(text: string): unknown {
  if (isTooMuch(text)) throw new RangeError("it has more in it than a machine can have");
  return JSON.parse(text);
}

/** Whether JSON has more arrays and objects within each other, or more values, than any of ours. Brackets in its texts do not count. */
function isTooMuch(json: string): boolean {
  let depth = 0;
  let values = 0;
  let within = false;
  for (let i = 0; i < json.length; i++) {
    const found = json[i];
    if (within && found === "\\") i++;
    else if (found === '"') within = !within;
    else if (within) continue;
    else if (found === "[" || found === "{") depth++;
    else if (found === "]" || found === "}") depth--;
    else if (found === ",") values++;
    if (depth > JSON_DEPTH_MAX || values > JSON_VALUES_MAX) return true;
  }
  return false;
}
