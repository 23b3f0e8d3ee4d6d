/** The status bar item: what the server says about itself, and the way to everything else. */
import { type Disposable, StatusBarAlignment, ThemeColor, window } from "vscode";
import type { ServerStatus } from "./protocol.ts";
import { statusText, statusTooltip } from "./status-text.ts";

const BACKGROUNDS = {
  normal: undefined,
  warning: new ThemeColor("statusBarItem.warningBackground"),
  error: new ThemeColor("statusBarItem.errorBackground"),
  inactive: undefined,
};

export class StatusItem implements Disposable {
  private readonly item = window.createStatusBarItem("mezzotint", StatusBarAlignment.Right, 100);
  private status: ServerStatus = { kind: "normal", busy: true, message: "starting" };
  private pausedUntil: Date | undefined;

  constructor(menuCommand: string) {
    this.item.name = "Mezzotint";
    this.item.command = menuCommand;
    this.item.show();
    this.render();
  }

  update(status: ServerStatus): void {
    this.status = status;
    this.render();
  }

  /** Say that nothing is suggested until then; undefined: no more. */
  pause(until: Date | undefined): void {
    this.pausedUntil = until;
    this.render();
  }

  dispose(): void {
    this.item.dispose();
  }

  private render(): void {
    this.item.text = statusText(this.status, this.pausedUntil);
    this.item.tooltip = statusTooltip(this.status, this.pausedUntil);
    this.item.backgroundColor = BACKGROUNDS[this.status.kind];
  }
}
