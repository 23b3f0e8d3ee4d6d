/** What a fill's candidates look like. Plain text in, plain text out. */
import type { TextEdit } from "vscode-languageclient/node";
import type { FillCandidate } from "./protocol.ts";

/** `text` with all of `edits` made at once; they do not overlap. Positions in UTF-16 units. */
export function applyEdits(text: string, edits: readonly TextEdit[]): string {
  const starts = lineStarts(text);
  const offset = ({ line, character }: TextEdit["range"]["start"]): number =>
    Math.min((starts[line] ?? text.length) + character, text.length);
  const ordered = [...edits].sort((a, b) => offset(a.range.start) - offset(b.range.start));
  const parts: string[] = [];
  let done = 0;
  for (const { range, newText } of ordered) {
    parts.push(text.slice(done, offset(range.start)), newText);
    done = offset(range.end);
  }
  return parts.join("") + text.slice(done);
}

function lineStarts(text: string): number[] {
  return [0, ...[...text.matchAll(/\r\n|\n|\r/g)].map((end) => end.index + end[0].length)];
}

/** A confidence in words. */
export function sureness(confidence: number | null): string {
  return confidence === null ? "confidence not known" : `${Math.round(100 * confidence)} % sure`;
}

/** How a candidate reads in a list: its first lines, how sure the model is, whether it parses. */
export function labelOf(
  { confidence, newSyntaxErrors, edits }: FillCandidate,
  index: number,
): { label: string; description: string; detail?: string } {
  const lines = edits
    .map((edit) => edit.newText.trim())
    .join(" … ")
    .split(/\r?\n/);
  const rest = lines.slice(1).map((line) => line.trim()).join(" ⏎ ");
  const errors = newSyntaxErrors ? `, ${newSyntaxErrors} new syntax errors` : "";
  return {
    label: `${index + 1}. ${lines[0] || "(nothing)"}`,
    description: `${sureness(confidence)}${errors}`,
    ...(rest !== "" && { detail: rest }),
  };
}
