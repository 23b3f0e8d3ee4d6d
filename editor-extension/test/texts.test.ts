import assert from "node:assert/strict";
import { test } from "node:test";
import { applyEdits, labelOf } from "../src/candidates.ts";
import { canvasHtml, captionOf, draftHtml } from "../src/canvas.ts";
import { fateOf } from "../src/fate.ts";
import { Snooze } from "../src/snooze.ts";
import { statusText, statusTooltip } from "../src/status-text.ts";
import { summary } from "../src/statistics.ts";

const at = (line: number, character: number) => ({ line, character });
const replace = (from: [number, number], to: [number, number], newText: string) => ({
  range: { start: at(...from), end: at(...to) },
  newText,
});

test("edits are made at once, wherever they stand in the list", () => {
  const text = "a = ...\r\nb = ...\r\n";
  const edits = [replace([1, 4], [1, 7], "a + 1"), replace([0, 4], [0, 7], "🙂")];
  assert.equal(applyEdits(text, edits), "a = 🙂\r\nb = a + 1\r\n");
});

test("columns count UTF-16 units", () => {
  assert.equal(applyEdits("'🙂' x", [replace([0, 5], [0, 6], "y")]), "'🙂' y");
});

test("a candidate's label names its first line, its confidence and its faults", () => {
  const edits = [replace([0, 0], [0, 0], "  if x:\n    return y")];
  assert.deepEqual(labelOf({ confidence: 0.456, newSyntaxErrors: 2, edits }, 0), {
    label: "1. if x:",
    description: "46 % sure, 2 new syntax errors",
    detail: "return y",
  });
  const untold = labelOf({ confidence: null, newSyntaxErrors: null, edits }, 0);
  assert.equal(untold.description, "confidence not known");
  assert.equal(labelOf({ confidence: 1, newSyntaxErrors: null, edits: [] }, 1).label, "2. (nothing)");
});

test("a frame's new slots stand out, masked ones are blocks, ended ones are gone", () => {
  const html = canvasHtml(["a", null, "<b>", ""], ["a", null, null, null]);
  assert.equal(
    html,
    '<span class="set">a</span><span class="mask">░░░</span><span class="new">&lt;b&gt;</span>',
  );
});

test("a long masked tail is not shown in full", () => {
  const slots = Array<string | null>(64).fill(null);
  assert.equal(canvasHtml(slots, []).match(/mask/g)?.length, 12);
});

test("of a draft it is shown what was verified, written and refused", () => {
  const frame = { slots: [" total", "(", "<"], accepted: 2, text: "return total(x" };
  assert.equal(
    draftHtml(frame, "return"),
    '<span class="set">return</span><span class="new"> total(</span><span class="set">x</span>' +
      '<span class="refused">&lt;</span>',
  );
  assert.equal(captionOf({ ...frame, step: 2 }), "step 2: 2 of 3 drafted tokens verified, 1 written");
});

test("a draft that begins before the cursor is shown from there", () => {
  const frame = { slots: [" total", "("], accepted: 2, text: "al(x" };
  assert.equal(draftHtml(frame, ""), '<span class="new">al(</span><span class="set">x</span>');
});

test("a caption tells of canvases and of steps without a draft", () => {
  assert.equal(
    captionOf({ step: 1, slots: ["a", null], accepted: null }),
    "step 1: 1 of 2 slots open",
  );
  assert.equal(
    captionOf({ step: 3, slots: [], accepted: 0 }),
    "step 3: nothing drafted, 1 token written",
  );
});

const ready = { kind: "normal", busy: false, message: "ready", ms: 41.6, forwards: 3 } as const;

test("the status bar shows the state and what the last answer took", () => {
  assert.equal(statusText(ready, undefined), "$(sparkle) Mezzotint 42 ms");
  assert.equal(statusText({ ...ready, busy: true }, undefined), "$(loading~spin) Mezzotint 42 ms");
  assert.equal(statusText({ ...ready, kind: "warning" }, undefined), "$(warning) Mezzotint");
  assert.equal(statusText(ready, new Date()), "$(debug-pause) Mezzotint");
});

test("the tooltip says why there was no suggestion", () => {
  const status = { ...ready, reason: "the model was not sure enough" };
  assert.match(statusTooltip(status, undefined), /No suggestion: the model was not sure enough/);
  assert.match(statusTooltip(status, undefined), /42 ms in the engine, 3 forward passes/);
  assert.match(statusTooltip(status, new Date()), /Paused until/);
});

test("a pause ends by itself, and can be ended", (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "Date"] });
  const told: boolean[] = [];
  const snooze = new Snooze((until) => told.push(until !== undefined));
  snooze.start(5);
  context.mock.timers.tick(4 * 60_000);
  assert.notEqual(snooze.until, undefined);
  context.mock.timers.tick(60_000);
  assert.equal(snooze.until, undefined);
  snooze.start(5);
  snooze.stop();
  assert.deepEqual(told, [true, false, true, false]);
});

test("statistics read as a sentence", () => {
  const none = { shown: 0, accepted: 0, partiallyAccepted: 0, rejected: 0, acceptanceRate: null };
  assert.match(summary({ ...none, charactersAccepted: 0, since: null }), /No suggestions/);
  const some = { shown: 8, accepted: 2, partiallyAccepted: 1, rejected: 3, acceptanceRate: 0.375 };
  assert.equal(
    summary({ ...some, charactersAccepted: 120, since: "2026-11-25T10:00:00" }),
    "Of 8 suggestions shown since 2026-11-25, 2 were accepted whole and 1 in part (38 %): " +
      "120 characters that you did not type. In place of 3 you wrote something else.",
  );
});

test("a suggestion stays while its beginning is typed, and is rejected by anything else", () => {
  assert.equal(fateOf("max(a)", ""), "stays");
  assert.equal(fateOf("max(a)", "max("), "stays");
  assert.equal(fateOf("max(a)", "min"), "rejected");
  assert.equal(fateOf("max(a)", "max(a)"), "accepted");
  assert.equal(fateOf("max(a)", "max(a)\n"), "accepted");
});

test("line ends of either kind are the same line end", () => {
  assert.equal(fateOf("a(\r\n  b)", "a(\n  "), "stays");
  assert.equal(fateOf("a(\n  b)", "a(\r\n  b)"), "accepted");
});
