/** The kernel command line: words, of which the kernel knows `hibernate=PATH` and `noresume` (S2.1). */
export interface KernelCommandLine {
  /** As it was given; words that are not known stay, as kernels have it. */
  text: string;
  /** Image to look for at boot. */
  hibernate: string | undefined;
  noresume: boolean;
}

/** Of a word that is given more than once the last counts. */
export function parseKernelCommandLine(text: string): KernelCommandLine {
  const words = text.split(/\s+/).filter((word) => word !== "");
  const path = words.findLast((word) => word.startsWith("hibernate="))?.slice("hibernate=".length);
  return { text: words.join(" "), hibernate: path === "" ? undefined : path, noresume: words.includes("noresume") };
}
