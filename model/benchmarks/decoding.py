"""Diffusion against autoregressive decoding: the same weights, the same prompts, the same engine.

Three ways to fill the same holes, interleaved, with both contexts in the cache:

* `diffusion`: a forward commits every slot that is sure enough;
* `left-to-right`: the same canvas, which sees the suffix, but one token a forward: what decoding
  in parallel costs in quality shows against this one;
* `autoregressive`: the causal stream alone, one token a forward, the suffix unseen: what these
  weights would be as an ordinary language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from statistics import median

from tqdm import tqdm

from model.api import Completer, InfillRequest
from model.benchmarks.setting import Prompt, Setting, shuffled_rounds
from model.benchmarks.table import Goal, Row
from model.evaluation.report import Figures, share
from model.tokenizer import CodeTokenizer

TITLE = "Diffusion against autoregressive decoding"

THRESHOLDS = (0.9, 0.7, 0.5)
"""Of the diffusion decodings; the first is the default."""
BASELINES = ("left-to-right", "autoregressive")
REPEATS = 3
"""Fills of each prompt by each decoding; their median time counts."""
MARGIN = 0.01
"""Share of holes, and of tokens, by which an equally good decoding may be worse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one decoding made of one prompt."""

    ms: float
    forwards: int
    tokens: int
    exact: bool
    agreeing: int
    """Tokens of the truth that stand where they should."""
    true_tokens: int


def decodings() -> dict[str, dict[str, object]]:
    """The fields of a request that each decoding sets, by its name."""
    ways: dict[str, dict[str, object]] = {
        f"diffusion {threshold:g}": {"policy": "threshold", "threshold": threshold}
        for threshold in THRESHOLDS
    }
    return ways | {name: {"policy": name} for name in BASELINES}


async def measure(setting: Setting) -> Figures:
    """The figures of this part. Raises `CompletionError`, `OSError` and `ValueError`."""
    prompts = setting.prompts(setting.size(full=40, gpu=120, quick=2))
    completer = setting.open_completer()
    samples: dict[str, list[Sample]] = {name: [] for name in decodings()}
    try:
        for index, prompt in enumerate(tqdm(prompts, desc=TITLE, unit="hole")):
            done = await sample(completer, prompt, setting.tokenizer, setting.seed + index)
            for name, one in done.items():
                samples[name].append(one)
    finally:
        await completer.close()
    return summary(samples)


async def sample(
    completer: Completer, prompt: Prompt, tokenizer: CodeTokenizer, seed: int
) -> dict[str, Sample]:
    """One prompt filled by every decoding in turn, after a fill that only warms the cache."""
    requests: dict[str, InfillRequest] = {
        name: replace(prompt.request, **fields)  # type: ignore[arg-type]
        for name, fields in decodings().items()
    }
    await completer.complete(replace(prompt.request, steps=1))
    times: dict[str, list[float]] = {name: [] for name in requests}
    done: dict[str, Sample] = {}
    truth = tokenizer.encode(prompt.middle)
    for name in shuffled_rounds(list(requests), REPEATS, seed):
        result = await completer.complete(requests[name])
        times[name].append(result.ms)
        text = result.candidates[0].text
        pairs = zip_longest(truth, tokenizer.encode(text)[: len(truth)])
        done[name] = Sample(
            ms=median(times[name]),
            forwards=result.forwards,
            tokens=result.tokens,
            exact=text == prompt.middle,
            agreeing=sum(true == found for true, found in pairs),
            true_tokens=len(truth),
        )
    return done


def summary(samples: dict[str, list[Sample]]) -> Figures:
    """Speed and quality of each decoding, and the speed-ups of the fastest equally good one."""
    ways = {name: _way(of_one) for name, of_one in samples.items()}
    reference = ways["left-to-right"]
    diffusions = [name for name in ways if name.startswith("diffusion")]
    good = [name for name in diffusions if is_as_good(ways[name], reference)]
    best = max(good, key=lambda name: ways[name]["tokens_per_s"], default=None)
    return {
        "holes": len(next(iter(samples.values()))),
        "decodings": ways,
        "equally_good": best,
        "speed_up": {
            name: None
            if best is None or name not in ways
            else share(ways[best]["tokens_per_s"], ways[name]["tokens_per_s"])
            for name in BASELINES
        },
    }


def is_as_good(way: Figures, reference: Figures) -> bool:
    """Whether exact match and token agreement are the reference's, but for `MARGIN`."""
    return all(way[key] >= reference[key] - MARGIN for key in ("exact_match", "token_agreement"))


def _way(samples: Sequence[Sample]) -> Figures:
    tokens, ms = sum(s.tokens for s in samples), sum(s.ms for s in samples)
    return {
        "tokens_per_s": share(1000 * tokens, ms) or 0.0,
        "ms_p50": round(median(s.ms for s in samples), 3),
        "forwards_mean": share(sum(s.forwards for s in samples), len(samples)),
        "tokens_per_forward": share(tokens, sum(s.forwards for s in samples)),
        "tokens_mean": share(tokens, len(samples)),
        "exact_match": share(sum(s.exact for s in samples), len(samples)),
        "token_agreement": share(
            sum(s.agreeing for s in samples), sum(s.true_tokens for s in samples)
        ),
    }


def rows(figures: Figures, setting: Setting) -> list[Row]:
    """The lines of the table."""
    table = [
        Row(
            name,
            way["tokens_per_s"],
            "tokens/s",
            Goal("at least", 5000)
            if setting.on_cuda and name == f"diffusion {THRESHOLDS[0]:g}"
            else None,
            f"{way['forwards_mean']:.1f} forwards and {way['tokens_mean']:.1f} tokens a fill, "
            f"{way['ms_p50']:.1f} ms; exact {way['exact_match']:.1%}, "
            f"tokens {way['token_agreement']:.1%}",
        )
        for name, way in figures["decodings"].items()
    ]
    best = figures["equally_good"]
    for name, speed_up in figures["speed_up"].items():
        note = best or f"no diffusion decoding is within {MARGIN:.0%} of left-to-right's quality"
        if name not in figures["decodings"]:
            note = "this engine does not decode so"
        goal = Goal("at least", 10 if setting.on_cuda else 4)
        table.append(Row(f"speed-up over {name}", speed_up, "x", goal, note))
    return table
