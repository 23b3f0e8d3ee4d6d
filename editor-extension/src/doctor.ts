/** `mezzotint doctor` of the server that is in use, its report in the log. */
import { spawn } from "node:child_process";
import { homedir } from "node:os";
import { createInterface } from "node:readline";
import { type LogOutputChannel, ProgressLocation, window } from "vscode";
import type { ServerCommand } from "./server.ts";

export async function runDoctor(server: ServerCommand, log: LogOutputChannel): Promise<void> {
  const args = doctorArguments(server.args);
  if (args === undefined) {
    void window.showWarningMessage(
      "Mezzotint: mezzotint.server.command does not end in `lsp`; run `mezzotint doctor` yourself.",
    );
    return;
  }
  log.show(true);
  const options = { location: ProgressLocation.Notification, title: "Mezzotint: doctor" };
  const status = await window.withProgress(options, () => run(server.command, args, log));
  if (status === 0) {
    void window.showInformationMessage("Mezzotint: the doctor found nothing wrong.");
  } else {
    void window.showWarningMessage("Mezzotint: the doctor found problems; the log names each.");
  }
}

/** The same program's `doctor` in place of its `lsp`. */
function doctorArguments(args: readonly string[]): readonly string[] | undefined {
  const place = args.lastIndexOf("lsp");
  return place < 0 ? undefined : [...args.slice(0, place), "doctor"];
}

function run(
  command: string,
  args: readonly string[],
  log: LogOutputChannel,
): Promise<number | null> {
  return new Promise((resolve) => {
    const child = spawn(command, args, { cwd: homedir(), stdio: ["ignore", "pipe", "pipe"] });
    for (const stream of [child.stdout, child.stderr]) {
      createInterface({ input: stream }).on("line", (line) => log.info(line));
    }
    child.once("error", (error) => {
      log.error(String(error));
      resolve(null);
    });
    child.once("close", resolve);
  });
}
