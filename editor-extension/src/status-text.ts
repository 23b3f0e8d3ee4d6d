/** What the status bar says. Plain text in, plain text out. */
import type { ServerStatus } from "./protocol.ts";

const ICONS = {
  normal: "$(sparkle)",
  warning: "$(warning)",
  error: "$(error)",
  inactive: "$(circle-slash)",
};

/** The label: an icon for the state, and what the last answer took. */
export function statusText(status: ServerStatus, pausedUntil: Date | undefined): string {
  if (pausedUntil !== undefined && status.kind !== "error") {
    return "$(debug-pause) Mezzotint";
  }
  const icon = status.busy ? "$(loading~spin)" : ICONS[status.kind];
  const showsLatency = status.kind === "normal" && typeof status.ms === "number";
  const latency = showsLatency ? ` ${Math.round(status.ms ?? 0)} ms` : "";
  return `${icon} Mezzotint${latency}`;
}

/** One line each: the state, why nothing was suggested, what the last answer took. */
export function statusTooltip(status: ServerStatus, pausedUntil: Date | undefined): string {
  const lines = [`Mezzotint: ${status.message || "ready"}`];
  if (pausedUntil !== undefined) {
    lines.push(`Paused until ${pausedUntil.toLocaleTimeString()}.`);
  }
  if (status.reason && status.reason !== status.message) {
    lines.push(`No suggestion: ${status.reason}`);
  }
  if (typeof status.ms === "number") {
    const passes = typeof status.forwards === "number" ? `, ${status.forwards} forward passes` : "";
    lines.push(`Last answer: ${Math.round(status.ms)} ms in the engine${passes}.`);
  }
  return lines.join("\n");
}
