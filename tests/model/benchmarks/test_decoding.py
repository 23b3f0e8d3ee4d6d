"""Drafting against the backbone alone: who is faster, and whether both write the same."""

from __future__ import annotations

from model.api import Candidate, FrameListener, InfillRequest, InfillResult
from model.benchmarks.decoding import Sample, prompt_tokens_per_s, sample, summary
from model.benchmarks.setting import Prompt, Setting

PROMPT = Prompt(request=InfillRequest(prefix="def "), middle="total")


class Scripted:
    """Says that a drafted fill takes 10 ms and 2 forwards, one token a forward 40 ms and 8."""

    def __init__(self) -> None:
        self.requests: list[InfillRequest] = []

    async def complete(
        self, request: InfillRequest, *, on_frame: FrameListener | None = None
    ) -> InfillResult:
        self.requests.append(request)
        ms, forwards = (10.0, 2) if request.policy == "verified" else (40.0, 8)
        return InfillResult(
            candidates=(Candidate(texts=(f"{request.policy}",), confidence=1.0),),
            forwards=forwards, tokens=8, encoded_tokens=len(request.prefix), ms=ms,
        )  # fmt: skip

    async def close(self) -> None: ...


async def test_fewer_forwards_in_less_time_are_reported_as_a_speed_up() -> None:
    completer = Scripted()
    done = await sample(completer, PROMPT, seed=0)
    assert completer.requests[0].max_new_tokens == 1  # it warms the cache, and counts nowhere
    figures = summary({name: [one] for name, one in done.items()})
    assert figures["speed_up"] == 4.0
    assert figures["ways"]["drafted"]["tokens_per_s"] == 800.0
    assert figures["ways"]["drafted"]["tokens_per_forward"] == 4.0
    assert figures["same_text"] == 0.0


def test_how_often_both_wrote_the_same_is_a_share_of_the_holes() -> None:
    def samples(*texts: str) -> list[Sample]:
        return [Sample(ms=1.0, forwards=1, tokens=1, text=text) for text in texts]

    figures = summary(
        {"drafted": samples("a", "b", "c", "d"), "alone": samples("a", "b", "c", "-")}
    )
    assert figures["same_text"] == 0.75


async def test_a_prompt_s_speed_is_what_was_encoded_by_the_time_it_took(setting: Setting) -> None:
    completer = Scripted()
    speed = await prompt_tokens_per_s(setting, completer)
    (request,) = completer.requests
    assert request.max_new_tokens == 1
    assert speed == len(request.prefix) / 0.04


async def test_a_real_backbone_writes_the_same_in_both_ways(setting: Setting) -> None:
    completer = setting.open_completer()
    try:
        for index, prompt in enumerate(setting.prompts(3)):
            done = await sample(completer, prompt, seed=index)
            assert done["drafted"].text == done["alone"].text
            assert done["drafted"].forwards <= done["alone"].forwards
    finally:
        await completer.close()
