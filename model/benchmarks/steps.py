"""How long one denoising step takes, seen from outside the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import median

from tqdm import tqdm

from model.api import Completer, InfillRequest, InfillResult
from model.benchmarks.setting import shuffled_rounds

CANVAS_TEXT = "(\n" * 15 + "("
"""31 tokens of any byte-level tokenizer whose pieces end at a line end: with the `<eom>`, a canvas
of 32 slots."""
STEPS = 16
"""Steps of the longer fill: enough of them to divide its time by."""


async def step_times_ms(
    requests: Mapping[str, tuple[Completer, InfillRequest]], *, rounds: int, seed: int, desc: str
) -> dict[str, float]:
    """Median time of one more step of a 32-slot canvas, for each request, interleaved.

    A step's time is what a fill in `STEPS` steps takes longer than one in a single step, by the
    number of its further forwards: tokenising, the cache and the way to the engine cancel out.
    Raises `CompletionError`.
    """
    for completer, request in requests.values():
        await completer.complete(in_steps(request, STEPS))  # encodes the context, and compiles
    times: dict[str, list[float]] = {name: [] for name in requests}
    for name in tqdm(shuffled_rounds(list(requests), rounds, seed), desc=desc, unit="pair"):
        completer, request = requests[name]
        one = await completer.complete(in_steps(request, 1))
        many = await completer.complete(in_steps(request, STEPS))
        times[name].append(step_ms(one, many))
    return {name: round(median(of_one), 4) for name, of_one in times.items()}


def in_steps(request: InfillRequest, steps: int) -> InfillRequest:
    """The request, filling 31 slots in a fixed number of steps."""
    return replace(request, steps=steps, length_of=CANVAS_TEXT)


def step_ms(one: InfillResult, many: InfillResult) -> float:
    """Time of each forward that `many` took more than `one`."""
    return (many.ms - one.ms) / (many.forwards - one.forwards)
