/** "Show denoising": watch a fill being drafted and verified, or denoised, in a panel of its own. */
import { type Disposable, ViewColumn, type WebviewPanel, window } from "vscode";
import type { LanguageClient } from "vscode-languageclient/node";
import { applyEdits, sureness } from "./candidates.ts";
import { canvasHtml, captionOf, draftHtml, escapeHtml } from "./canvas.ts";
import { applyCandidate, fillArguments, requestFill } from "./fill.ts";
import { type Fill, type Frame, FrameNotification } from "./protocol.ts";

/** A step on a graphics card takes a few milliseconds, which nobody can watch. */
const FRAME_MS = 140;
const CONTEXT_LINES = 8;

/** Fill at the cursor, or the selection, and show every step of the first candidate. */
export async function showDenoising(client: LanguageClient): Promise<void> {
  const editor = window.activeTextEditor;
  if (editor === undefined) {
    void window.showInformationMessage("Mezzotint: open a file to watch a fill in it.");
    return;
  }
  const { document, selection } = editor;
  const command = selection.isEmpty ? "mezzotint.fill.here" : "mezzotint.fill.selection";
  const text = document.getText();
  const before = text.slice(0, document.offsetAt(selection.start));
  const after = text.slice(document.offsetAt(selection.end));
  const film = new Film(lastLines(before), firstLines(after));
  const token = crypto.randomUUID();
  const listener = client.onNotification(FrameNotification, (frame) => {
    if (frame.token === token) {
      film.add(frame);
    }
  });
  try {
    const args = { ...fillArguments(client, editor, command), frames: token };
    const result = await requestFill(client, command, args);
    film.end(result, filled(text, before, after, result), (candidate) =>
      applyCandidate(client, document, result?.version ?? null, candidate),
    );
  } finally {
    listener.dispose();
  }
}

/** What the best candidate puts between `before` and `after`. */
function filled(text: string, before: string, after: string, result: Fill | undefined): string {
  const [best] = result?.candidates ?? [];
  if (best === undefined) {
    return "";
  }
  const whole = applyEdits(text, best.edits);
  return whole.slice(before.length, whole.length - after.length);
}

/** The panel: frames come in as they are made and are shown at a pace that can be followed. */
class Film {
  private readonly panel: WebviewPanel;
  private readonly waiting: string[] = [];
  private readonly timer: NodeJS.Timeout;
  private readonly listeners: Disposable[] = [];
  private previous: Pick<Frame, "slots" | "text"> = { slots: [], text: "" };

  constructor(before: string, after: string) {
    this.panel = window.createWebviewPanel(
      "mezzotint.denoising",
      "Denoising",
      { viewColumn: ViewColumn.Beside, preserveFocus: true },
      { enableScripts: true, localResourceRoots: [] },
    );
    this.panel.webview.html = page(before, after);
    this.timer = setInterval(() => this.showNext(), FRAME_MS);
    this.panel.onDidDispose(() => {
      clearInterval(this.timer);
      for (const listener of this.listeners) {
        listener.dispose();
      }
    });
  }

  add(frame: Frame): void {
    const canvas =
      frame.accepted === null
        ? canvasHtml(frame.slots, this.previous.slots)
        : draftHtml(frame, this.previous.text);
    this.previous = frame;
    this.push({ canvas, caption: captionOf(frame) });
  }

  /** Show what came out of it; `insert` is called when the user asks for it. */
  end(
    result: Fill | undefined,
    text: string,
    insert: (candidate: Fill["candidates"][number]) => Promise<void>,
  ): void {
    const [best] = result?.candidates ?? [];
    if (best === undefined) {
      const caption = result?.reason ?? "cancelled";
      this.push({ caption });
      return;
    }
    const canvas = `<span class="set">${escapeHtml(text)}</span>`;
    this.push({ canvas, caption: `done, ${sureness(best.confidence)}`, insertable: true });
    this.listeners.push(
      this.panel.webview.onDidReceiveMessage(async (message: unknown) => {
        if (message === "insert") {
          this.panel.dispose();
          await insert(best);
        }
      }),
    );
  }

  private push(frame: { canvas?: string; caption: string; insertable?: boolean }): void {
    this.waiting.push(JSON.stringify(frame));
  }

  private showNext(): void {
    const frame = this.waiting.shift();
    if (frame !== undefined) {
      void this.panel.webview.postMessage(frame);
    }
  }
}

function page(before: string, after: string): string {
  const nonce = crypto.randomUUID();
  const policy = `default-src 'none'; style-src 'nonce-${nonce}'; script-src 'nonce-${nonce}'`;
  return `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<style nonce="${nonce}">
  pre { font: var(--vscode-editor-font-size) var(--vscode-editor-font-family); tab-size: 4; }
  .context { color: var(--vscode-descriptionForeground); }
  .mask { color: var(--vscode-editorGhostText-foreground, gray); opacity: 0.6; }
  .set { color: var(--vscode-editor-foreground); }
  .new { color: var(--vscode-charts-green); font-weight: bold; }
  .refused { color: var(--vscode-descriptionForeground); text-decoration: line-through; opacity: 0.6; }
  #canvas { background: var(--vscode-editor-selectionHighlightBackground); }
</style>
</head>
<body>
<p id="caption">waiting for the first step</p>
<pre><span class="context">${escapeHtml(before)}</span><span id="canvas"><span class="mask">░░░</span></span><span class="context">${escapeHtml(after)}</span></pre>
<button id="insert" hidden>Insert</button>
<script nonce="${nonce}">
  const editor = acquireVsCodeApi();
  const part = (id) => document.getElementById(id);
  part("insert").addEventListener("click", () => editor.postMessage("insert"));
  window.addEventListener("message", ({ data }) => {
    const { canvas, caption, insertable } = JSON.parse(data);
    part("caption").textContent = caption;
    part("insert").hidden = !insertable;
    if (canvas !== undefined) {
      part("canvas").innerHTML = canvas;
    }
  });
</script>
</body>
</html>`;
}

function lastLines(text: string): string {
  return text.split(/\r?\n/).slice(-CONTEXT_LINES).join("\n");
}

function firstLines(text: string): string {
  return text.split(/\r?\n/).slice(0, CONTEXT_LINES).join("\n");
}
