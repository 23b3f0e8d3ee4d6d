/** The commands that fill holes: ask the server, let the user choose, apply in one undo. */
import {
  type CancellationToken,
  ProgressLocation,
  type TextDocument,
  type TextEditor,
  window,
  workspace,
  WorkspaceEdit,
} from "vscode";
import {
  LSPErrorCodes,
  type LanguageClient,
  ResponseError,
  type WorkDoneProgressBegin,
  type WorkDoneProgressReport,
  WorkDoneProgress,
} from "vscode-languageclient/node";
import { chooseCandidate } from "./picker.ts";
import {
  executeCommand,
  type Fill,
  type FillArguments,
  type FillCandidate,
  type FillCommand,
} from "./protocol.ts";

const TITLES: Record<FillCommand, string> = {
  "mezzotint.fill.here": "Filling here",
  "mezzotint.fill.selection": "Filling the selection",
  "mezzotint.fill.holes": "Filling every hole in this file",
};

/** Fill in the active editor; says so where there is nothing to insert. */
export async function fill(client: LanguageClient, command: FillCommand): Promise<void> {
  const editor = window.activeTextEditor;
  if (editor === undefined) {
    void window.showInformationMessage("Mezzotint: open a file to fill something in.");
    return;
  }
  const args = fillArguments(client, editor, command);
  const result = await requestFill(client, command, args);
  if (result === undefined) {
    return; // cancelled
  }
  const candidate = await choose(editor.document, result);
  if (candidate !== undefined) {
    await applyCandidate(client, editor.document, result.version, candidate);
  }
}

/** What the server must know to fill in `editor`. */
export function fillArguments(
  client: LanguageClient,
  editor: TextEditor,
  command: FillCommand,
): FillArguments {
  const { asUri, asPosition, asRange } = client.code2ProtocolConverter;
  const { document, selection } = editor;
  return {
    uri: asUri(document.uri),
    version: document.version,
    ...(command === "mezzotint.fill.here" && { position: asPosition(selection.active) }),
    ...(command === "mezzotint.fill.selection" && { range: asRange(selection) }),
    apply: false,
  };
}

/** Ask for a fill behind a progress bar; undefined: the user cancelled. */
export function requestFill(
  client: LanguageClient,
  command: FillCommand,
  args: FillArguments,
): Thenable<Fill | undefined> {
  const title = `Mezzotint: ${TITLES[command]}`;
  const options = { location: ProgressLocation.Notification, title, cancellable: true };
  return window.withProgress(options, async (progress, token) => {
    const workDoneToken = crypto.randomUUID();
    const listener = client.onProgress(WorkDoneProgress.type, workDoneToken, (value) => {
      progress.report(messageOf(value));
    });
    try {
      const params = { command, arguments: [args], workDoneToken };
      return await client.sendRequest(executeCommand<Fill>(), params, token);
    } catch (error) {
      return cancelledOrThrow(error, token);
    } finally {
      listener.dispose();
    }
  });
}

function messageOf(value: object): { message?: string } {
  const { message } = value as Partial<WorkDoneProgressBegin & WorkDoneProgressReport>;
  return message === undefined ? {} : { message };
}

function cancelledOrThrow(error: unknown, token: CancellationToken): undefined {
  const code = error instanceof ResponseError ? error.code : undefined;
  if (token.isCancellationRequested || code === LSPErrorCodes.RequestCancelled) {
    return undefined;
  }
  throw error;
}

async function choose(
  document: TextDocument,
  result: Fill,
): Promise<FillCandidate | undefined> {
  const [best, second] = result.candidates;
  if (best === undefined) {
    void window.showInformationMessage(`Mezzotint: ${result.reason ?? "nothing to fill in here"}`);
    return undefined;
  }
  return second === undefined ? best : chooseCandidate(document, result.candidates);
}

/** Insert a candidate with one edit, unless the document is no longer the one it was made for. */
export async function applyCandidate(
  client: LanguageClient,
  document: TextDocument,
  version: number | null,
  { edits }: FillCandidate,
): Promise<void> {
  const change = new WorkspaceEdit();
  change.set(document.uri, await client.protocol2CodeConverter.asTextEdits([...edits]));
  // VS Code compares once more, with the version that we see here.
  const isCurrent = version === null || document.version === version;
  if (!isCurrent || !(await workspace.applyEdit(change))) {
    void window.showWarningMessage("Mezzotint: the document has changed since; nothing was filled.");
  }
}
