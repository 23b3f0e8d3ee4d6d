/** Lets the user choose among several fills, each previewed as a difference in the document. */
import {
  commands,
  EventEmitter,
  type QuickPickItem,
  type TextDocument,
  type TextDocumentContentProvider,
  Uri,
  ViewColumn,
  window,
  workspace,
} from "vscode";
import { applyEdits, labelOf } from "./candidates.ts";
import type { FillCandidate } from "./protocol.ts";

const SCHEME = "mezzotint-preview";

interface CandidateItem extends QuickPickItem {
  readonly candidate: FillCandidate;
}

/** The chosen candidate; undefined: none. `candidates` are of the document as it is. */
export async function chooseCandidate(
  document: TextDocument,
  candidates: readonly FillCandidate[],
): Promise<FillCandidate | undefined> {
  const original = document.getText();
  const preview = new Preview(document);
  const pick = window.createQuickPick<CandidateItem>();
  pick.title = "Mezzotint: choose a fill";
  pick.items = candidates.map((candidate, index) => ({ ...labelOf(candidate, index), candidate }));
  pick.ignoreFocusOut = true; // opening the preview takes the focus for a moment
  try {
    return await new Promise((resolve) => {
      pick.onDidChangeActive(([item]) => {
        if (item !== undefined) {
          preview.show(applyEdits(original, item.candidate.edits));
        }
      });
      pick.onDidAccept(() => resolve(pick.activeItems[0]?.candidate));
      pick.onDidHide(() => resolve(undefined));
      pick.show();
    });
  } finally {
    pick.dispose();
    await preview.close();
  }
}

/** A difference editor beside the document, which shows it as it would become. */
class Preview implements TextDocumentContentProvider {
  private readonly changed = new EventEmitter<Uri>();
  readonly onDidChange = this.changed.event;
  private readonly document: TextDocument;
  private readonly uri: Uri;
  private readonly registration = workspace.registerTextDocumentContentProvider(SCHEME, this);
  private text = "";
  private opened: Thenable<unknown> | undefined;

  constructor(document: TextDocument) {
    this.document = document;
    // The path ends as the document's does, so that it is highlighted alike.
    this.uri = document.uri.with({ scheme: SCHEME, query: crypto.randomUUID() });
  }

  provideTextDocumentContent(): string {
    return this.text;
  }

  show(text: string): void {
    this.text = text;
    this.opened ??= commands.executeCommand(
      "vscode.diff",
      this.document.uri,
      this.uri,
      "Mezzotint: preview of the fill",
      { preview: true, preserveFocus: true, viewColumn: ViewColumn.Beside },
    );
    // While it is being opened, VS Code does not listen for changes yet.
    void this.opened.then(() => this.changed.fire(this.uri));
  }

  async close(): Promise<void> {
    await this.opened;
    const tabs = window.tabGroups.all.flatMap((group) => group.tabs);
    await window.tabGroups.close(
      tabs.filter((tab) => tab.label === "Mezzotint: preview of the fill"),
    );
    this.registration.dispose();
    this.changed.dispose();
  }
}
