"""The comparison of decodings: who is faster, and who is as good."""

from __future__ import annotations

from typing import Any

import pytest

from model.api import InfillRequest
from model.benchmarks.decoding import Sample, decodings, rows, sample, summary
from model.benchmarks.setting import Prompt, Setting
from model.tokenizer import CodeTokenizer

PROMPT = Prompt(request=InfillRequest(prefix="def "), middle="total numbers result")


async def test_fewer_forwards_are_reported_as_faster_and_wrong_tokens_as_worse(
    timed_completer: Any, tokenizer: CodeTokenizer
) -> None:
    def answer(request: InfillRequest) -> tuple[str, int, float]:
        if request.policy == "threshold":
            return (PROMPT.middle, 2, 10.0)
        return ("total numbers numbers", 4, 20.0)

    done = await sample(timed_completer(answer), PROMPT, tokenizer, seed=0)
    figures = summary({name: [one] for name, one in done.items()})
    fast, slow = figures["decodings"]["diffusion 0.9"], figures["decodings"]["left-to-right"]
    assert (fast["tokens_per_s"], slow["tokens_per_s"]) == (300.0, 150.0)
    assert figures["speed_up"]["left-to-right"] == 2.0
    assert (fast["exact_match"], slow["exact_match"]) == (1.0, 0.0)
    assert fast["token_agreement"] == 1.0 > slow["token_agreement"]


async def test_decodings_take_turns_after_one_fill_that_does_not_count(
    timed_completer: Any, tokenizer: CodeTokenizer
) -> None:
    completer = timed_completer(lambda request: ("x", 1, 1.0))
    await sample(completer, PROMPT, tokenizer, seed=0)
    assert completer.requests[0].steps == 1
    ways = [(r.policy, r.threshold) for r in completer.requests[1:]]
    count = len(decodings())
    assert len(set(ways[:count])) == len(set(ways[-count:])) == count


def sampled(ms: float, agreeing: int) -> list[Sample]:
    one = Sample(
        ms=ms, forwards=1, tokens=10, exact=agreeing == 10, agreeing=agreeing, true_tokens=10
    )
    return [one]


def test_a_faster_decoding_that_is_worse_is_not_the_one_that_counts() -> None:
    samples = {name: sampled(ms=50, agreeing=10) for name in decodings()}
    samples["diffusion 0.9"] = sampled(ms=10, agreeing=10)
    samples["diffusion 0.5"] = sampled(ms=1, agreeing=5)
    figures = summary(samples)
    assert figures["equally_good"] == "diffusion 0.9"
    assert figures["speed_up"]["left-to-right"] == pytest.approx(5.0)


def test_without_an_equally_good_decoding_the_goal_is_unmeasured(setting: Setting) -> None:
    samples = {name: sampled(ms=50, agreeing=10) for name in decodings()}
    for name in ("diffusion 0.9", "diffusion 0.7", "diffusion 0.5"):
        samples[name] = sampled(ms=1, agreeing=5)
    (row,) = [r for r in rows(summary(samples), setting) if r.name.endswith("left-to-right")][1:]
    assert (row.value, row.verdict) == (None, "unmeasured")
    assert "quality" in row.note


def test_a_baseline_that_the_engine_lacks_is_named_as_unmeasured(setting: Setting) -> None:
    samples = {name: sampled(ms=50, agreeing=10) for name in decodings()}
    samples.pop("autoregressive", None)
    row = rows(summary(samples), setting)[-1]
    assert (row.name, row.verdict) == ("speed-up over autoregressive", "unmeasured")
    assert row.note == "this engine does not decode so"
