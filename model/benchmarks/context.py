"""A denoising step against the length of the cached context.

The model is random, of the checkpoint's shape with its longest stream raised: the checkpoint itself
was trained on shorter ones, and a step's time does not depend on what the weights are.
"""

from __future__ import annotations

from dataclasses import replace

from model.api import InfillRequest
from model.benchmarks.setting import Setting
from model.benchmarks.steps import step_times_ms
from model.benchmarks.table import Goal, Row
from model.evaluation.report import Figures

TITLE = "Step time against context (random weights of the checkpoint's shape)"

CONTEXTS = (512, 2048, 8192, 32_768)
"""Tokens of prefix and suffix together, half of them each."""
QUICK_CONTEXTS = (64, 512)
CANVAS_TOKENS = 128


async def measure(setting: Setting) -> Figures:
    """The figures of this part. Raises `CompletionError`, `OSError` and `ValueError`."""
    contexts = QUICK_CONTEXTS if setting.quick else CONTEXTS
    longest = contexts[-1] // 2
    shape = replace(setting.shape, max_context=longest, max_positions=longest + CANVAS_TOKENS)
    completer = setting.open_random(shape)
    try:
        times = await step_times_ms(
            {str(context): (completer, request_with(setting, context)) for context in contexts},
            rounds=setting.size(full=7, gpu=15, quick=1),
            seed=setting.seed,
            desc=TITLE,
        )
    finally:
        await completer.close()
    return {"step_ms": times, "random_weights": True}


def request_with(setting: Setting, context_tokens: int) -> InfillRequest:
    """A request whose streams have about `context_tokens` tokens together."""
    text = setting.text_of(context_tokens // 2 - 2)  # each stream begins with two of its own
    return InfillRequest(prefix=text, suffix=text, language=setting.sources[0].language)


def rows(figures: Figures, setting: Setting) -> list[Row]:
    """The lines of the table."""
    times: dict[str, float] = figures["step_ms"]
    shortest = next(iter(times))
    table: list[Row] = []
    for context, ms in times.items():
        ratio = ms / times[shortest]
        note = f"{ratio:.2f} x the step at {shortest}"
        table.append(Row(f"step at {int(context):,} tokens", ms, "ms", note=note))
    if "8192" in times:
        ratio = round(times["8192"] / times["512"], 3)
        table.append(Row("8,192 against 512", ratio, "x", Goal("at most", 1.3)))
    return table
