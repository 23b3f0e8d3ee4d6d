/** A canvas or a draft on its way to text, as HTML. Plain text in, HTML out. */
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

/**
 * What is decided after a draft was verified. What was drafted of it is marked as new, against
 * `previous`, what was decided before; the rest of the draft, which was refused, stands behind it.
 */
export function draftHtml(frame: Omit<Frame, "token" | "step">, previous: string): string {
  const kept = frame.accepted ?? 0;
  const drafted = frame.slots.slice(0, kept).join("");
  const refused = frame.slots.slice(kept).join("");
  const start = frame.text.startsWith(previous) ? previous.length : 0;
  const [before, verified, after] = parted(frame.text.slice(start), drafted);
  return [
    span("set", frame.text.slice(0, start) + before),
    span("new", verified),
    span("set", after),
    span("refused", refused),
  ].join("");
}

/** `text` around what was drafted of it. A draft may begin before the cursor, where the word does. */
function parted(text: string, drafted: string): [string, string, string] {
  const at = text.indexOf(drafted);
  if (at >= 0) {
    return [text.slice(0, at), drafted, text.slice(at + drafted.length)];
  }
  let shared = Math.min(drafted.length, text.length);
  while (!drafted.endsWith(text.slice(0, shared))) {
    shared--;
  }
  return ["", text.slice(0, shared), text.slice(shared)];
}

function span(kind: string, text: string): string {
  return text === "" ? "" : `<span class="${kind}">${escapeHtml(text)}</span>`;
}

/** What a step did, in words. */
export function captionOf({ step, slots, accepted }: Omit<Frame, "token" | "text">): string {
  if (accepted === null) {
    const open = slots.filter((slot) => slot === null).length;
    return `step ${step}: ${open} of ${slots.length} slots open`;
  }
  return slots.length === 0
    ? `step ${step}: nothing drafted, 1 token written`
    : `step ${step}: ${accepted} of ${slots.length} drafted tokens verified, 1 written`;
}

export function escapeHtml(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
