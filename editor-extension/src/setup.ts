/** The first start: sets up the extension's own Python environment behind a progress bar. */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { type ExtensionContext, type LogOutputChannel, ProgressLocation, window } from "vscode";
import { readyServer, setUp } from "./environment.ts";
import type { ServerCommand } from "./server.ts";

export class OwnEnvironment {
  private readonly directory: string;
  private readonly wheel: string | undefined;
  private readonly log: LogOutputChannel;

  constructor(context: ExtensionContext, log: LogOutputChannel) {
    this.directory = join(context.globalStorageUri.fsPath, "environment");
    this.wheel = findWheel(join(context.extensionPath, "wheel"));
    this.log = log;
  }

  /**
   * The server of the environment, which is made if need be; undefined: this build of the
   * extension carries no wheel to make it from.
   *
   * @throws SetupError
   */
  async server(): Promise<ServerCommand | undefined> {
    if (this.wheel === undefined) {
      return undefined;
    }
    return (await readyServer(this.directory, this.wheel)) ?? (await this.make(this.wheel));
  }

  private make(wheel: string): Thenable<ServerCommand> {
    const options = {
      location: ProgressLocation.Notification,
      title: "Mezzotint: setting up its server (once, about 1 GB)",
      cancellable: true,
    };
    return window.withProgress(options, (progress, token) => {
      const abort = new AbortController();
      token.onCancellationRequested(() => abort.abort());
      return setUp({
        directory: this.directory,
        wheel,
        environment: process.env,
        signal: abort.signal,
        onStep: (message) => progress.report({ message }),
        onOutput: (line) => this.log.info(line),
      });
    });
  }
}

function findWheel(directory: string): string | undefined {
  try {
    const name = readdirSync(directory).find((file) => file.endsWith(".whl"));
    return name === undefined ? undefined : join(directory, name);
  } catch {
    return undefined;
  }
}
