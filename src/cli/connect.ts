/** A command's connection to a machine. */
import { Client } from "../server/client.js";
import { note } from "./output.js";

/**
 * Connects to a running machine. If that keeps the user waiting, a line says so.
 *
 * @param howToEnd what the user can do then
 * @param prepare makes room for the line
 * @throws HIB_NO_MACHINE, HIB_USAGE, HIB_IO
 */
export function connect(
  name: string,
  howToEnd = "Ctrl-C ends this command",
  prepare: () => void = () => undefined,
): Promise<Client> {
  return Client.connect(name, {
    onSilent: () => {
      prepare();
      note(`machine ${name} does not answer yet; ${howToEnd}`);
    },
  });
}
