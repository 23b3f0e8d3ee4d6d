"""Drafting against the backbone alone: the same prompts, the same engine, the same text.

Each hole is filled in two ways, with its context in the cache: `drafted`, where a forward may
commit several tokens, and `alone`, one token a forward. Both should write the same: it is compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from tqdm import tqdm

from model.api import Completer, InfillRequest, Policy
from model.benchmarks.setting import Prompt, Setting, shuffled_rounds
from model.benchmarks.table import Goal, Row
from model.evaluation.report import Figures, share

TITLE = "Drafting against the backbone alone"

WAYS: dict[str, Policy] = {"drafted": "verified", "alone": "autoregressive"}
REPEATS = 2
"""Fills of each hole in each way; their median time counts."""
PROMPT_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one way made of one hole."""

    ms: float
    forwards: int
    tokens: int
    text: str


async def measure(setting: Setting) -> Figures:
    """The figures of this part. Raises `CompletionError`, `OSError` and `ValueError`."""
    setting.require_backbone()
    prompts = setting.prompts(setting.size(full=20, gpu=100, quick=2))
    completer = setting.open_completer()
    samples: dict[str, list[Sample]] = {name: [] for name in WAYS}
    try:
        speed = await prompt_tokens_per_s(setting, completer)
        for index, prompt in enumerate(tqdm(prompts, desc=TITLE, unit="hole")):
            for name, one in (await sample(completer, prompt, setting.seed + index)).items():
                samples[name].append(one)
    finally:
        await completer.close()
    return {"runtime": completer.runtime, "prompt_tokens_per_s": speed, **summary(samples)}


async def prompt_tokens_per_s(setting: Setting, completer: Completer) -> float | None:
    """How fast a context is read that no cache holds: its tokens by the time of an answer of one
    token."""
    texts = setting.fresh_texts(setting.size(full=4, gpu=12, quick=1), PROMPT_TOKENS)
    results = [
        await completer.complete(InfillRequest(prefix=text, max_new_tokens=1)) for text in texts
    ]
    encoded, ms = sum(each.encoded_tokens for each in results), sum(each.ms for each in results)
    return share(1000 * encoded, ms)


async def sample(completer: Completer, prompt: Prompt, seed: int) -> dict[str, Sample]:
    """One hole filled in every way, in turns, after a fill that only warms the cache."""
    await completer.complete(replace(prompt.request, max_new_tokens=1))
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    done: dict[str, Sample] = {}
    for name in shuffled_rounds(list(WAYS), REPEATS, seed):
        result = await completer.complete(replace(prompt.request, policy=WAYS[name]))
        times[name].append(result.ms)
        done[name] = Sample(
            ms=median(times[name]),
            forwards=result.forwards,
            tokens=result.tokens,
            text=result.candidates[0].text,
        )
    return done


def summary(samples: Mapping[str, Sequence[Sample]]) -> Figures:
    """Speed of both ways, and how often they wrote the same."""
    ways = {name: _way(of_one) for name, of_one in samples.items()}
    pairs = list(zip(samples["drafted"], samples["alone"], strict=True))
    return {
        "holes": len(pairs),
        "ways": ways,
        "speed_up": share(ways["drafted"]["tokens_per_s"], ways["alone"]["tokens_per_s"]),
        "same_text": share(sum(drafted.text == alone.text for drafted, alone in pairs), len(pairs)),
    }


def _way(samples: Sequence[Sample]) -> Figures:
    tokens, ms = sum(s.tokens for s in samples), sum(s.ms for s in samples)
    return {
        "tokens_per_s": share(1000 * tokens, ms) or 0.0,
        "tokens_per_forward": share(tokens, sum(s.forwards for s in samples)),
        "tokens_mean": share(tokens, len(samples)),
        "ms_p50": round(median(s.ms for s in samples), 3),
    }


def rows(figures: Figures, setting: Setting) -> list[Row]:
    """The lines of the table."""
    table = [
        Row("prompt", figures["prompt_tokens_per_s"], "tokens/s", note=figures["runtime"]),
        *(
            Row(
                name,
                way["tokens_per_s"],
                "tokens/s",
                note=f"{way['tokens_per_forward'] or 0:.2f} tokens a forward, "
                f"{way['tokens_mean']:.1f} a fill, {way['ms_p50']:.1f} ms",
            )
            for name, way in figures["ways"].items()
        ),
        Row("speed-up", figures["speed_up"], "x", Goal("at least", 1)),
        # In float32 all; rounding tells apart what is equally likely.
        Row("the same text", figures["same_text"]),
    ]
    return table
