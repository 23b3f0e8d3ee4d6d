/** A canvas on its way from noise to text, as HTML. Plain text in, HTML out. */
import type { Frame } from "./protocol.ts";

/** How many characters a slot looks like while nobody knows what will stand there. */
const MASK = "░░░";

/**
 * The frame's slots. What was not there in `previous` is marked as new. A run of masked slots at
 * the end is cut short: the span ends somewhere in it.
 */
export function canvasHtml(slots: Frame["slots"], previous: Frame["slots"]): string {
  const end = slots.findLastIndex((slot) => slot !== null) + 1;
  const shown = slots.slice(0, Math.max(end, Math.min(slots.length, 12)));
  return shown.map((slot, index) => slotHtml(slot, previous[index] ?? null)).join("");
}

function slotHtml(slot: string | null, before: string | null): string {
  if (slot === null) {
    return `<span class="mask">${MASK}</span>`;
  }
  if (slot === "") {
    return ""; // the span has ended
  }
  return `<span class="${before === null ? "new" : "set"}">${escapeHtml(slot)}</span>`;
}

export function escapeHtml(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
