/** What the server's statistics say, in a sentence. Plain text out. */
import type { Statistics } from "./protocol.ts";

export function summary(statistics: Statistics): string {
  const { shown, accepted, partiallyAccepted, rejected } = statistics;
  const { acceptanceRate, charactersAccepted } = statistics;
  if (shown === 0) {
    return "No suggestions have been shown yet.";
  }
  const since = statistics.since === null ? "" : ` since ${statistics.since.slice(0, 10)}`;
  const rate = acceptanceRate === null ? "" : ` (${Math.round(100 * acceptanceRate)} %)`;
  return (
    `Of ${shown} suggestions shown${since}, ${accepted} were accepted whole and ` +
    `${partiallyAccepted} in part${rate}: ${charactersAccepted} characters that you did not type. ` +
    `In place of ${rejected} you wrote something else.`
  );
}
