/** The status bar item: what the server says about itself, and the way to everything else. */
import { type Disposable, StatusBarAlignment, ThemeColor, window } from "vscode";
import { NotificationType } from "vscode-languageclient/node";

export interface ServerStatus {
  /** `inactive`: does not complete, and that is intended (switched off, excluded file). */
  readonly kind: "normal" | "warning" | "error" | "inactive";
  /** A completion, or the model's loading, is under way. */
  readonly busy: boolean;
  /** One sentence for the user; empty when there is nothing to say. */
  readonly message: string;
}

/** Sent by the server whenever its status changes. */
export const StatusNotification = new NotificationType<ServerStatus>("mezzotint/status");

const ICONS = {
  normal: "$(sparkle)",
  warning: "$(warning)",
  error: "$(error)",
  inactive: "$(circle-slash)",
};

const BACKGROUNDS = {
  normal: undefined,
  warning: new ThemeColor("statusBarItem.warningBackground"),
  error: new ThemeColor("statusBarItem.errorBackground"),
  inactive: undefined,
};

export class StatusItem implements Disposable {
  private readonly item = window.createStatusBarItem("mezzotint", StatusBarAlignment.Right, 100);

  constructor(menuCommand: string) {
    this.item.name = "Mezzotint";
    this.item.command = menuCommand;
    this.item.show();
  }

  update({ kind, busy, message }: ServerStatus): void {
    this.item.text = `${busy ? "$(loading~spin)" : ICONS[kind]} Mezzotint`;
    this.item.backgroundColor = BACKGROUNDS[kind];
    this.item.tooltip = `Mezzotint: ${message || "ready"}`;
  }

  dispose(): void {
    this.item.dispose();
  }
}
