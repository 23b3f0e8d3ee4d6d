/** Entry point: settings, commands and the life of the language server's connection. */
import {
  commands,
  ConfigurationTarget,
  type ExtensionContext,
  type QuickPickItem,
  Uri,
  window,
  workspace,
} from "vscode";
import { ServerConnection } from "./client.ts";
import { findServer, type ServerCommand, ServerNotFoundError } from "./server.ts";
import { StatusItem } from "./status.ts";

let connection: ServerConnection | undefined;

export function activate(context: ExtensionContext): void {
  const log = window.createOutputChannel("Mezzotint", { log: true });
  const status = new StatusItem("mezzotint.showMenu");
  const server = new ServerConnection(findConfiguredServer, status, log);
  connection = server;

  const restart = async (): Promise<void> => {
    try {
      await server.restart();
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      log.error(message);
      status.update({ kind: "error", busy: false, message });
      if (error instanceof ServerNotFoundError) {
        await offerHelp(message, context.extensionUri);
      }
    }
  };

  context.subscriptions.push(
    log,
    status,
    commands.registerCommand("mezzotint.restart", restart),
    commands.registerCommand("mezzotint.showLog", () => log.show()),
    commands.registerCommand("mezzotint.toggle", toggleEnabled),
    commands.registerCommand("mezzotint.showMenu", showMenu),
    workspace.onDidGrantWorkspaceTrust(restart),
    workspace.onDidChangeConfiguration((change) => {
      if (change.affectsConfiguration("mezzotint.server")) {
        void restart();
      }
    }),
  );
  void restart();
}

export async function deactivate(): Promise<void> {
  await connection?.stop();
}

function findConfiguredServer(): ServerCommand {
  const folders = workspace.isTrusted ? (workspace.workspaceFolders ?? []) : [];
  return findServer({
    configured: workspace.getConfiguration("mezzotint").get<string[]>("server.command", []),
    workspaceFolders: folders.map((folder) => folder.uri.fsPath),
    path: process.env["PATH"] ?? "",
  });
}

async function offerHelp(message: string, extensionUri: Uri): Promise<void> {
  const install = "How to Install";
  const configure = "Set Server Command";
  const choice = await window.showErrorMessage(message, install, configure);
  if (choice === install) {
    const readme = Uri.joinPath(extensionUri, "readme.md"); // as vsce spells it in the package
    await commands.executeCommand("markdown.showPreview", readme);
  } else if (choice === configure) {
    await openSettings("mezzotint.server.command");
  }
}

/** Switch completions on or off where the setting was made: in the workspace, else for the user. */
async function toggleEnabled(): Promise<void> {
  const settings = workspace.getConfiguration("mezzotint");
  const inWorkspace = settings.inspect("enabled")?.workspaceValue !== undefined;
  const target = inWorkspace ? ConfigurationTarget.Workspace : ConfigurationTarget.Global;
  await settings.update("enabled", !isEnabled(), target);
}

function isEnabled(): boolean {
  return workspace.getConfiguration("mezzotint").get("enabled", true);
}

async function showMenu(): Promise<void> {
  const entries: (QuickPickItem & { run: () => Thenable<unknown> })[] = [
    {
      label: isEnabled() ? "$(circle-slash) Disable completions" : "$(check) Enable completions",
      run: toggleEnabled,
    },
    { label: "$(output) Show log", run: () => commands.executeCommand("mezzotint.showLog") },
    { label: "$(refresh) Restart server", run: () => commands.executeCommand("mezzotint.restart") },
    { label: "$(settings-gear) Settings", run: () => openSettings("mezzotint") },
  ];
  const chosen = await window.showQuickPick(entries, { title: "Mezzotint" });
  await chosen?.run();
}

function openSettings(query: string): Thenable<unknown> {
  return commands.executeCommand("workbench.action.openSettings", query);
}
