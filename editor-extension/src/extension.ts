/** Entry point: puts the parts together and gives each command its place. */
import {
  commands,
  type ExtensionContext,
  type LogOutputChannel,
  Uri,
  window,
  workspace,
} from "vscode";
import type { LanguageClient } from "vscode-languageclient/node";
import { askApiKey, storedKey } from "./api-key.ts";
import { ServerConnection } from "./client.ts";
import { showDenoising } from "./denoising.ts";
import { runDoctor } from "./doctor.ts";
import { fill } from "./fill.ts";
import { GhostText } from "./ghost-text.ts";
import { askMinutes, chooseModel, openSettings, showMenu, toggleEnabled } from "./menu.ts";
import { executeCommand, type Statistics } from "./protocol.ts";
import { findServer, type ServerCommand, ServerNotFoundError } from "./server.ts";
import { setting } from "./settings.ts";
import { OwnEnvironment } from "./setup.ts";
import { SetupError } from "./setup-error.ts";
import { Snooze } from "./snooze.ts";
import { summary } from "./statistics.ts";
import { StatusItem } from "./status.ts";

let connection: ServerConnection | undefined;

export function activate(context: ExtensionContext): void {
  const log = window.createOutputChannel("Mezzotint", { log: true });
  const status = new StatusItem("mezzotint.showMenu");
  const snooze = new Snooze((until) => status.pause(until));
  const own = new OwnEnvironment(context, log);
  const ghostText: GhostText = new GhostText(snooze, () => server.running);
  const server = new ServerConnection(
    () => findOrSetUp(own),
    () => storedKey(context.secrets),
    status,
    log,
    ghostText.middleware,
  );
  connection = server;
  const restart = () => restartAndReport(server, status, log, context.extensionUri);

  const offer = withClient(server, offerModel);
  const parts: Record<string, () => unknown> = {
    restart,
    showLog: () => log.show(),
    showMenu: () => showMenu(snooze.until !== undefined),
    toggle: toggleEnabled,
    chooseModel: () => chooseModel(offer),
    downloadModel: offer,
    setApiKey: async () => {
      if (await askApiKey(context.secrets)) {
        await restart();
      }
    },
    snooze: async () => {
      const minutes = await askMinutes();
      if (minutes !== undefined) {
        snooze.start(minutes);
      }
    },
    resume: () => snooze.stop(),
    acceptWord: () => ghostText.acceptPart("Word"),
    acceptLine: () => ghostText.acceptPart("Line"),
    fillHere: withClient(server, (client) => fill(client, "mezzotint.fill.here")),
    fillSelection: withClient(server, (client) => fill(client, "mezzotint.fill.selection")),
    fillHoles: withClient(server, (client) => fill(client, "mezzotint.fill.holes")),
    showDenoising: withClient(server, showDenoising),
    showStatistics: withClient(server, showStatistics),
    doctor: async () => runDoctor(server.runningCommand ?? (await findOrSetUp(own)), log),
  };
  context.subscriptions.push(
    log,
    status,
    snooze,
    ...Object.entries(parts).map(([name, run]) =>
      commands.registerCommand(`mezzotint.${name}`, run),
    ),
    workspace.onDidChangeTextDocument((change) => ghostText.noteChange(change)),
    workspace.onDidGrantWorkspaceTrust(restart),
    // Another folder may bring another server.
    workspace.onDidChangeWorkspaceFolders(restart),
    workspace.onDidChangeConfiguration((change) => {
      // Another address has another key, which the server gets when it starts.
      if (
        change.affectsConfiguration("mezzotint.server") ||
        change.affectsConfiguration("mezzotint.engine.url")
      ) {
        void restart();
      }
    }),
  );
  void restart();
}

export async function deactivate(): Promise<void> {
  await connection?.stop();
}

/** An installed server, else the extension's own. */
async function findOrSetUp(own: OwnEnvironment): Promise<ServerCommand> {
  const folders = workspace.isTrusted ? (workspace.workspaceFolders ?? []) : [];
  const configured = setting<string[]>("server.command", []);
  try {
    return findServer({
      configured,
      workspaceFolders: folders.map((folder) => folder.uri.fsPath),
      path: process.env["PATH"] ?? "",
    });
  } catch (error) {
    const made = configured.length > 0 ? undefined : await own.server();
    if (made === undefined) {
      throw error;
    }
    return made;
  }
}

async function restartAndReport(
  server: ServerConnection,
  status: StatusItem,
  log: LogOutputChannel,
  extension: Uri,
): Promise<void> {
  try {
    await server.restart();
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    log.error(message);
    status.update({ kind: "error", busy: false, message });
    if (error instanceof ServerNotFoundError || error instanceof SetupError) {
      await offerHelp(message, extension);
    }
  }
}

async function offerHelp(message: string, extension: Uri): Promise<void> {
  const retry = "Try Again";
  const configure = "Set Server Command";
  const help = "Help";
  const choice = await window.showErrorMessage(message, retry, configure, help);
  if (choice === retry) {
    await commands.executeCommand("mezzotint.restart");
  } else if (choice === configure) {
    await openSettings("mezzotint.server.command");
  } else if (choice === help) {
    const readme = Uri.joinPath(extension, "readme.md"); // as vsce spells it in the package
    await commands.executeCommand("markdown.showPreview", readme);
  }
}

/** Runs `work` with the running server, and shows what went wrong in it: somebody asked for it. */
function withClient(
  server: ServerConnection,
  work: (client: LanguageClient) => Promise<void>,
): () => Promise<void> {
  return async () => {
    const client = server.running;
    try {
      if (client === undefined) {
        throw new Error("the server is not running; see its status at the bottom of the window");
      }
      await work(client);
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      void window.showErrorMessage(`Mezzotint: ${message}`);
    }
  };
}

/** Have the server ask once more whether to download the model that is not here. */
async function offerModel(client: LanguageClient): Promise<void> {
  await client.sendRequest(executeCommand<null>(), { command: "mezzotint.model.offer" });
}

async function showStatistics(client: LanguageClient): Promise<void> {
  const params = { command: "mezzotint.statistics" };
  const statistics = await client.sendRequest(executeCommand<Statistics>(), params);
  void window.showInformationMessage(`Mezzotint: ${summary(statistics)}`);
}
