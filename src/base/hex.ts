/** Addresses and words as people read them. */

/** Digits of an address of a process, where several stand one below the other. */
export const ADDRESS_DIGITS = 8;

/** A number in hexadecimal; one below 0 is a word of 32 bits that was read as signed. */
export function hex(word: number, digits = 1): string {
  return `0x${hexDigits(word, digits)}`;
}

/** The same without 0x. */
export function hexDigits(word: number, digits = 1): string {
  return (word < 0 ? word + 2 ** 32 : word).toString(16).padStart(digits, "0");
}
