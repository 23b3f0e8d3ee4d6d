/** The connection to the language server: one for each window, started, stopped and restarted. */
import { homedir } from "node:os";
import { createInterface } from "node:readline";
import { commands, type LogOutputChannel } from "vscode";
import {
  LanguageClient,
  type LanguageClientOptions,
  type Middleware,
  RevealOutputChannelOn,
  State,
} from "vscode-languageclient/node";
import type { ApiKey } from "./api-key.ts";
import { Coalescer } from "./coalescer.ts";
import { StatusNotification } from "./protocol.ts";
import type { ServerCommand } from "./server.ts";
import { serverSettings } from "./settings.ts";
import type { StatusItem } from "./status.ts";

export class ServerConnection {
  private client: LanguageClient | undefined;
  private command: ServerCommand | undefined;
  private readonly changes = new Coalescer();
  private readonly findServer: () => Promise<ServerCommand>;
  private readonly findKey: () => Promise<ApiKey | undefined>;
  private readonly status: StatusItem;
  private readonly log: LogOutputChannel;
  private readonly middleware: Middleware;

  /** `findServer` and `findKey` are asked at each start; what they throw is passed on by `restart`. */
  constructor(
    findServer: () => Promise<ServerCommand>,
    findKey: () => Promise<ApiKey | undefined>,
    status: StatusItem,
    log: LogOutputChannel,
    middleware: Middleware,
  ) {
    this.findServer = findServer;
    this.findKey = findKey;
    this.status = status;
    this.log = log;
    this.middleware = middleware;
  }

  /** The client, while its server runs. */
  get running(): LanguageClient | undefined {
    return this.client?.state === State.Running ? this.client : undefined;
  }

  /** The command that the server was last started with. */
  get runningCommand(): ServerCommand | undefined {
    return this.running && this.command;
  }

  /**
   * Start the server, after stopping the one that runs. Who asks while a restart has yet to begin
   * shares it. Rejects if there is no server to start.
   */
  restart(): Promise<void> {
    return this.changes.request("restart", async () => {
      await this.stopNow();
      await this.startNow();
    });
  }

  stop(): Promise<void> {
    return this.changes.request("stop", () => this.stopNow());
  }

  private async startNow(): Promise<void> {
    this.command = await this.findServer();
    this.log.info(`Starting ${[this.command.command, ...this.command.args].join(" ")}`);
    const key = await this.findKey();
    this.client = createClient(this.command, key, this.log, this.middleware);
    this.client.onNotification(StatusNotification, (status) => this.status.update(status));
    this.client.onDidChangeState(({ newState }) => this.showState(newState));
    await this.client.start();
  }

  private async stopNow(): Promise<void> {
    const client = this.client;
    this.client = undefined;
    // A client that failed to start cannot be stopped, only let go.
    await client?.dispose().catch((error: unknown) => this.log.warn(String(error)));
  }

  private showState(state: State): void {
    void commands.executeCommand("setContext", "mezzotint.running", state === State.Running);
    if (state === State.Starting) {
      this.status.update({ kind: "normal", busy: true, message: "The server is starting." });
    } else if (state === State.Running) {
      this.status.update({ kind: "normal", busy: false, message: "ready" });
    } else if (state === State.Stopped) {
      const message = "The server is not running. Restart it, or see the log for the reason.";
      this.status.update({ kind: "error", busy: false, message });
    }
  }
}

function createClient(
  server: ServerCommand,
  apiKey: ApiKey | undefined,
  log: LogOutputChannel,
  middleware: Middleware,
): LanguageClient {
  const options: LanguageClientOptions = {
    documentSelector: [{ scheme: "file" }, { scheme: "untitled" }],
    outputChannel: log,
    ...(apiKey !== undefined && { initializationOptions: { apiKey } }),
    // A failed completion shows in the status bar and the log, never as a pop-up.
    revealOutputChannelOn: RevealOutputChannelOn.Never,
    middleware: { ...middleware, workspace: { configuration: serverSettings } },
    stdioOptions: {
      // The server's lines carry their own level; "error" for all of them would be a false alarm.
      stderr: (stream, channel) => {
        createInterface({ input: stream }).on("line", (line) => channel.info(line));
      },
      stdout: () => undefined, // is the protocol
    },
  };
  const run = {
    command: server.command,
    args: [...server.args],
    // Not the workspace: `python -m` would import modules of the same name from there.
    options: { cwd: homedir() },
  };
  return new LanguageClient("mezzotint", "Mezzotint", run, options);
}
