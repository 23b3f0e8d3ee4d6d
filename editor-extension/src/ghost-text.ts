/** Ghost text: when to ask for it, and telling the server what became of it. */
import {
  commands,
  InlineCompletionTriggerKind,
  Range,
  type TextDocument,
  type TextDocumentChangeEvent,
  window,
} from "vscode";
import type { LanguageClient, Middleware } from "vscode-languageclient/node";
import { fateOf } from "./fate.ts";
import { DidPartiallyAccept, DidReject, DidShow, type ShownItem } from "./protocol.ts";
import type { Snooze } from "./snooze.ts";

export class GhostText {
  /** What the server was last asked for and answered: the suggestion that may be on screen. */
  private last: { document: TextDocument; start: Range["start"]; item: ShownItem } | undefined;
  private readonly snooze: Snooze;
  private readonly client: () => LanguageClient | undefined;

  constructor(snooze: Snooze, client: () => LanguageClient | undefined) {
    this.snooze = snooze;
    this.client = client;
  }

  readonly middleware: Middleware = {
    provideInlineCompletionItems: async (document, position, context, token, next) => {
      const isAutomatic = context.triggerKind === InlineCompletionTriggerKind.Automatic;
      if (isAutomatic && (this.snooze.until !== undefined || hasSelection(document))) {
        return undefined;
      }
      const answer = await next(document, position, context, token);
      if (!token.isCancellationRequested) {
        this.last = undefined; // until then, what was shown before may stay on screen
      }
      const items = Array.isArray(answer) ? answer : (answer?.items ?? []);
      const [first] = items;
      const client = this.client();
      if (first !== undefined && client !== undefined && !token.isCancellationRequested) {
        const range = first.range ?? new Range(position, position);
        const item: ShownItem = {
          insertText:
            typeof first.insertText === "string" ? first.insertText : first.insertText.value,
          range: client.code2ProtocolConverter.asRange(range),
          ...(first.command && { command: client.code2ProtocolConverter.asCommand(first.command) }),
        };
        this.last = { document, start: range.start, item };
        void client.sendNotification(DidShow, { item });
      }
      return answer;
    },
  };

  /** Tell the server when something else was written in the place of a suggestion. */
  noteChange({ document, contentChanges }: TextDocumentChangeEvent): void {
    const shown = this.last;
    const [change] = contentChanges;
    if (shown === undefined || document !== shown.document || change === undefined) {
      return;
    }
    if (contentChanges.length > 1 || change.range.start.isBefore(shown.start)) {
      this.last = undefined; // happened elsewhere, and may have moved it: nothing can be told
      return;
    }
    const end = document.positionAt(change.rangeOffset + change.text.length);
    const written = document.getText(new Range(shown.start, end));
    const fate = fateOf(shown.item.insertText, written);
    if (fate === "rejected") {
      void this.client()?.sendNotification(DidReject, { item: shown.item });
    }
    if (fate !== "stays") {
      this.last = undefined;
    }
  }

  /** Accept the next word or line of the ghost text, by VS Code's own command for it. */
  async acceptPart(part: "Word" | "Line"): Promise<void> {
    const shown = this.last;
    await commands.executeCommand(`editor.action.inlineSuggest.acceptNext${part}`);
    const editor = window.activeTextEditor;
    if (shown === undefined || editor?.document !== shown.document) {
      return;
    }
    const accepted = shown.document
      .getText(new Range(shown.start, editor.selection.active))
      .replaceAll("\r\n", "\n");
    if (accepted !== "" && shown.item.insertText.startsWith(accepted)) {
      const params = { item: shown.item, acceptedLength: accepted.length };
      await this.client()?.sendNotification(DidPartiallyAccept, params);
    }
  }
}

/** What is typed would replace the selection: nothing that is shown then can be right. */
function hasSelection(document: TextDocument): boolean {
  const editor = window.activeTextEditor;
  return editor?.document === document && editor.selections.some((s) => !s.isEmpty);
}
