"""What a replay would have come to at any `minConfidence`, out of one survey.

Accepting a suggestion changes what is asked next, so the places asked in one replay are not those
of another. A survey therefore asks at *every* keystroke of a region, with nothing hidden. It goes
backwards, erasing the region, because the server keeps a suggestion on while the person types into
it: going forwards, most answers would be what is left of an earlier one. Typing is then simulated
over the recorded answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lsp_server.ask.session import HISTORY
from model.evaluation.replay_typist import (
    Answer,
    Ask,
    Region,
    RegionLog,
    keystroke_starts,
    summarise,
    type_region,
)

THRESHOLDS = tuple(percent / 100 for percent in (*range(0, 100, 5), 98, 99))


@dataclass(frozen=True, slots=True)
class SurveyedRegion:
    """A region and the answer at each of its keystrokes, by offset."""

    region: Region
    answers: Mapping[int, Answer]


async def survey_region(
    region: Region, ask: Ask, on_keystroke: Callable[[], object]
) -> SurveyedRegion:
    """Ask before every keystroke of the region, from its last to its first."""
    answers: dict[int, Answer] = {}
    for offset in reversed(keystroke_starts(region.truth, 0, region.length)):
        answers[offset] = await ask(offset)
        on_keystroke()
    return SurveyedRegion(region, answers)


def simulated(surveyed: SurveyedRegion, min_confidence: float) -> Ask:
    """Answers as the server would give them with this `minConfidence`."""
    on: deque[tuple[int, Answer]] = deque(maxlen=HISTORY)
    truth = surveyed.region.truth

    async def ask(offset: int) -> Answer:
        for shown_at, shown in on:
            typed, text = truth[shown_at:offset], shown.text or ""
            if text.startswith(typed) and text[len(typed) :].strip():
                return Answer(text=text[len(typed) :], confidence=shown.confidence)
        answer = surveyed.answers.get(offset, Answer(reason="not surveyed"))
        if answer.text is None or answer.confidence is None:
            return answer
        if answer.confidence < min_confidence:
            reason = f"no candidate reached the confidence of {min_confidence:g}"
            return Answer(reason=reason, ms=answer.ms, engine_ms=answer.engine_ms)
        on.appendleft((offset, answer))
        return answer

    return ask


async def replay_survey(
    surveyed: Sequence[SurveyedRegion], min_confidence: float, *, by_words: bool = False
) -> list[RegionLog]:
    """Type the surveyed regions with this `minConfidence`."""
    logs = [RegionLog(one.region) for one in surveyed]
    for one, log in zip(surveyed, logs, strict=True):
        await type_region(log, simulated(one, min_confidence), by_words=by_words)
    return logs


async def confidence_curve(
    surveyed: Sequence[SurveyedRegion], *, by_words: bool = False
) -> list[dict[str, object]]:
    """The figures at each of `THRESHOLDS`."""
    curve: list[dict[str, object]] = []
    for threshold in THRESHOLDS:
        figures = summarise(await replay_survey(surveyed, threshold, by_words=by_words))
        kept = ("keystrokes_saved", "shown", "precision", "first_line_precision", "suggestions")
        curve.append({"min_confidence": threshold} | {key: figures[key] for key in kept})
    return curve
