/** Commands on a terminal, for tests of what only shows there. Python makes the terminal. */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import process from "node:process";
import { fileURLToPath } from "node:url";
import type { ExecutionContext } from "ava";

export const HIB: string = fileURLToPath(new URL("../src/cli/hib.js", import.meta.url));

/** Runs a command on a terminal of its own, and passes on what it prints. The end of stdin closes the terminal. */
const ON_TERMINAL = `
import os, pty, select, sys, termios, fcntl, struct
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[2], sys.argv[2:])
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, int(sys.argv[1]), 0, 0))
while True:
    ready, _, _ = select.select([terminal, 0], [], [])
    if terminal in ready:
        try:
            data = os.read(terminal, 65536)
        except OSError:
            break
        if not data:
            break
        os.write(1, data)
    if 0 in ready:
        data = os.read(0, 65536)
        if not data:
            break
        os.write(terminal, data)
os.close(terminal)
_, status = os.waitpid(pid, 0)
os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
`;
/** Node cannot make terminals. */
export const hasTerminals: boolean = spawnSync("python3", ["-c", "import pty"]).status === 0;

/** A command under way, and what it has printed. */
export class Running {
  readonly child: ChildProcess;
  readonly ended: Promise<number>;
  stdout = "";
  stderr = "";

  constructor(t: ExecutionContext, child: ChildProcess) {
    this.child = child;
    child.stdout?.setEncoding("utf8").on("data", (text: string) => (this.stdout += text));
    child.stderr?.setEncoding("utf8").on("data", (text: string) => (this.stderr += text));
    this.ended = new Promise((resolve) => child.once("close", (code) => resolve(code ?? -1)));
    t.teardown(() => child.kill("SIGKILL"));
  }
}

/** `hib` on a terminal, whose keys are the child's stdin. */
export function onTerminal(
  t: ExecutionContext,
  cwd: string,
  args: string[],
  { columns = 80 }: { columns?: number } = {},
): Running {
  const command = ["-c", ON_TERMINAL, String(columns), process.execPath, HIB, ...args];
  return new Running(t, spawn("python3", command, { cwd, stdio: ["pipe", "pipe", "pipe"] }));
}
