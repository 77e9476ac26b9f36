/** Writes to pages drawn uniformly: the worst case of write tracking, for no page is hot and every frame gets dirty. */
import { content, dataPages, defineProgram, type Program, rate, seed } from "./options.js";
import { ScatteredWriter } from "./zipf.js";

export const randomWrites: Program = defineProgram({
  name: "random",
  summary: "writes to pages drawn uniformly; checks each pair before it replaces it",
  options: { pages: dataPages(4096), seed, rate, content },
  create: (options) => new ScatteredWriter("random", { ...options, alpha: 0 }),
});
