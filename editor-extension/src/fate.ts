/** What became of a suggestion on screen, told by the document alone. Plain text in, a word out. */

export type Fate = "stays" | "accepted" | "rejected";

/**
 * The fate of a suggestion of `insertText`, when `written` stands where it would begin, up to where
 * the last change ended. Line ends of either kind.
 *
 * VS Code's stable API does not say when a suggestion is dismissed, but who writes something else
 * in its place has decided.
 */
export function fateOf(insertText: string, written: string): Fate {
  const wanted = insertText.replaceAll("\r\n", "\n");
  const there = written.replaceAll("\r\n", "\n");
  if (there.startsWith(wanted)) {
    return "accepted";
  }
  return wanted.startsWith(there) ? "stays" : "rejected";
}
