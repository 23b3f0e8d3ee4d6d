/** The connection to the language server: one for each window, started, stopped and restarted. */
import { homedir } from "node:os";
import { createInterface } from "node:readline";
import type { LogOutputChannel } from "vscode";
import {
  type ConfigurationRequest,
  LanguageClient,
  type LanguageClientOptions,
  type LSPAny,
  RevealOutputChannelOn,
  State,
} from "vscode-languageclient/node";
import type { ServerCommand } from "./server.ts";
import { type StatusItem, StatusNotification } from "./status.ts";

export class ServerConnection {
  private client: LanguageClient | undefined;
  /** The last start or stop: each begins when the one before has ended, so they never overlap. */
  private last: Promise<void> = Promise.resolve();
  private readonly findServer: () => ServerCommand;
  private readonly status: StatusItem;
  private readonly log: LogOutputChannel;

  /** `findServer` is asked at each start; what it throws is passed on by `restart`. */
  constructor(findServer: () => ServerCommand, status: StatusItem, log: LogOutputChannel) {
    this.findServer = findServer;
    this.status = status;
    this.log = log;
  }

  /** Start the server, after stopping the one that runs. Rejects if there is none to start. */
  restart(): Promise<void> {
    return this.enqueue(async () => {
      await this.stopNow();
      await this.startNow();
    });
  }

  stop(): Promise<void> {
    return this.enqueue(() => this.stopNow());
  }

  private enqueue(work: () => Promise<void>): Promise<void> {
    const done = this.last.then(work);
    this.last = done.catch(() => undefined);
    return done;
  }

  private async startNow(): Promise<void> {
    const server = this.findServer();
    this.log.info(`Starting ${[server.command, ...server.args].join(" ")}`);
    this.client = createClient(server, this.log);
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
    if (state === State.Starting) {
      this.status.update({ kind: "normal", busy: true, message: "The server is starting." });
    } else if (state === State.Running) {
      this.status.update({ kind: "normal", busy: false, message: "" });
    } else if (state === State.Stopped) {
      const message = "The server is not running. Restart it, or see the log for the reason.";
      this.status.update({ kind: "error", busy: false, message });
    }
  }
}

function createClient(server: ServerCommand, log: LogOutputChannel): LanguageClient {
  const options: LanguageClientOptions = {
    documentSelector: [{ scheme: "file" }, { scheme: "untitled" }],
    outputChannel: log,
    // A failed completion shows in the status bar and the log, never as a pop-up.
    revealOutputChannelOn: RevealOutputChannelOn.Never,
    middleware: { workspace: { configuration: serverSettings } },
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

/** Answers the server's question for its settings: all but those that the extension reads itself. */
const serverSettings: ConfigurationRequest.MiddlewareSignature = async (params, token, next) => {
  const sections = await next(params, token);
  return Array.isArray(sections) ? sections.map(withoutExtensionSettings) : sections;
};

function withoutExtensionSettings(section: LSPAny): LSPAny {
  if (section === null || typeof section !== "object" || Array.isArray(section)) {
    return section;
  }
  const { server: _, ...rest } = section;
  return rest;
}
