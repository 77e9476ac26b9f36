/** The package's version, from its package.json. */
import { readFileSync } from "node:fs";

const url = new URL("../../../package.json", import.meta.url);
export const PACKAGE_VERSION: string = (JSON.parse(readFileSync(url, "utf8")) as { version: string }).version;
