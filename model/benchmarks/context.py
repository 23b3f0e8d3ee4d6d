"""A denoising step against the length of the cached context.

The model is random, of the checkpoint's shape with its longest stream raised: the checkpoint itself
was trained on shorter ones, and a step's time does not depend on what the weights are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from model.api import Completer, InfillRequest
from model.benchmarks.setting import Setting
from model.benchmarks.steps import in_steps, step_times_ms
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
    requests = requests_of(setting, contexts)
    try:
        fitting = await _those_that_fit(completer, requests)
        times = await step_times_ms(
            {name: (completer, requests[name]) for name in fitting},
            rounds=setting.size(full=7, gpu=15, quick=1),
            seed=setting.seed,
            desc=TITLE,
        )
    finally:
        await completer.close()
    too_long = [name for name in requests if name not in fitting]
    return {"step_ms": times, "beyond_the_cache": too_long, "random_weights": True}


def requests_of(setting: Setting, contexts: Sequence[int]) -> dict[str, InfillRequest]:
    """A request for each number of context tokens, half of them before the hole and half behind.

    The streams of a shorter context begin those of the longer ones, so that a cache holds them all
    in the room of the longest.
    """
    ids = setting.tokens_of(max(contexts) // 2)
    decode, language = setting.tokenizer.decode, setting.sources[0].language
    requests: dict[str, InfillRequest] = {}
    for context in contexts:
        half = context // 2 - 2  # each stream begins with two tokens of its own
        requests[str(context)] = InfillRequest(
            prefix=decode(ids[:half]), suffix=decode(ids[-half:]), language=language
        )
    return requests


async def _those_that_fit(completer: Completer, requests: Mapping[str, InfillRequest]) -> list[str]:
    """The contexts, ascending, that the engine read whole: one that its cache has no room for it
    would cut, and the step would look fast."""
    held, fitting = 0, list[str]()
    for name, request in requests.items():
        held += (await completer.complete(in_steps(request, 1))).encoded_tokens
        if held >= 0.9 * int(name):
            fitting.append(name)
    return fitting


def rows(figures: Figures, setting: Setting) -> list[Row]:
    """The lines of the table."""
    times: dict[str, float] = figures["step_ms"]
    shortest = next(iter(times))
    table: list[Row] = []
    for context, ms in times.items():
        ratio = ms / times[shortest]
        note = f"{ratio:.2f} x the step at {shortest}"
        table.append(Row(f"step at {int(context):,} tokens", ms, "ms", note=note))
    for context in figures["beyond_the_cache"]:
        note = "the cache has no room for it"
        table.append(Row(f"step at {int(context):,} tokens", None, note=note))
    if {"512", "8192"} <= set(times):
        ratio = round(times["8192"] / times["512"], 3)
        table.append(Row("8,192 against 512", ratio, "x", Goal("at most", 1.3)))
    return table
