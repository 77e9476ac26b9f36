/**
 * Keys on the command line: by files, or typed. Never as arguments, or in the environment: other processes of the host can read those.
 */
import process from "node:process";
import { HibernaculumError } from "../base/errors.js";
import { type Keys, readSecret } from "../base/key.js";
import { askHidden } from "./passphrase.js";

export interface KeyOptions {
  keyFile?: string[];
  passphraseFile?: string[];
}

/** A key that was read: files are no more needed. */
type HeldKey = { passphrase: string } | { keyFile: Uint8Array };

export const KEY_FILE = [
  "--key-file <path>",
  "a file of random bytes that is a key of an encrypted image; may be given again",
  (path: string, earlier: string[] = []): string[] => [...earlier, path],
] as const;
export const PASSPHRASE_FILE = [
  "--passphrase-file <path>",
  "a file with the passphrase of an encrypted image; may be given again (default: $HIB_PASSPHRASE_FILE, or the terminal)",
  (path: string, earlier: string[] = []): string[] => [...earlier, path],
] as const;

/**
 * What opens an image. Keys that are named on the command line are for an encrypted one and refuse another; what the environment names,
 * or somebody types, is asked for once an image wants it.
 *
 * @throws HIB_IO, HIB_USAGE
 */
export async function keysFrom(options: KeyOptions): Promise<Keys> {
  const given = await keysGiven(options);
  if (given.length > 0) return given;
  let asked: Promise<readonly HeldKey[]> | undefined;
  return (image) => (asked ??= askKeys(image));
}

async function askKeys(image: string): Promise<readonly HeldKey[]> {
  const named = await keysOfEnvironment();
  if (named.length > 0) return named;
  const [passphrase = ""] = (await askHidden([`Passphrase of ${image}: `])) ?? [];
  return passphrase === "" ? [] : [{ passphrase }];
}

/**
 * What is to open an image that is saved now; undefined if it is not to be encrypted.
 *
 * @throws HIB_USAGE, HIB_IO, HIB_KEY_NEEDED, HIB_CANCELLED
 */
export async function keysToSave(options: KeyOptions & { encrypt?: boolean }): Promise<readonly HeldKey[] | undefined> {
  const given = await keysGiven(options);
  if (options.encrypt !== true) {
    if (given.length > 0) throw new HibernaculumError("HIB_USAGE", "a key is for an image that is encrypted; add --encrypt");
    return undefined;
  }
  if (given.length > 0) return given;
  const named = await keysOfEnvironment();
  if (named.length > 0) return named;
  const typed = await askHidden(["Passphrase for the image: ", "Once more: "]);
  if (typed === undefined)
    throw new HibernaculumError(
      "HIB_KEY_NEEDED",
      "--encrypt needs a key: give --key-file or --passphrase-file, or use a terminal",
    );
  const [passphrase = "", again] = typed;
  if (passphrase === "" || passphrase !== again)
    throw new HibernaculumError(
      "HIB_USAGE",
      passphrase === "" ? "the passphrase is empty" : "what you typed was not the same twice",
    );
  return [{ passphrase }];
}

async function keysGiven({ keyFile = [], passphraseFile = [] }: KeyOptions): Promise<HeldKey[]> {
  const keys: HeldKey[] = [];
  for (const path of keyFile) keys.push({ keyFile: await readSecret(path) }); // now: it may be a pipe, and is read once
  for (const path of passphraseFile) keys.push(await passphraseIn(path));
  return keys;
}

async function keysOfEnvironment(): Promise<HeldKey[]> {
  const path = process.env["HIB_PASSPHRASE_FILE"];
  return path ? [await passphraseIn(path)] : [];
}

/** The text of a file, without the end of its line. */
async function passphraseIn(path: string): Promise<HeldKey> {
  const bytes = await readSecret(path);
  const passphrase = bytes.toString("utf8").replace(/\r?\n$/, "");
  bytes.fill(0);
  if (passphrase === "") throw new HibernaculumError("HIB_USAGE", `${path} has no passphrase in it`);
  return { passphrase };
}
