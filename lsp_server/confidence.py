"""How sure the model is of a part of its text, and where the text stops being worth showing."""

from __future__ import annotations

import math
import re

from model.api import Candidate

_WORD = re.compile(r"\w")
_UNFINISHED = re.compile(r"[^\w)\]}\"'`;:]+$")
"""What cannot end a line, such as a dot or an opening bracket."""


def confidence_of(candidate: Candidate, length: int) -> float:
    """The model's probability of the first `length` characters of the text, 0..1.

    The whole text's includes its end. Where the candidate does not tell its tokens apart, it is
    the whole text's for a part as well. NaN where it is not known.
    """
    if length >= len(candidate.text) or not candidate.token_ends:
        return candidate.confidence
    count = sum(end <= length for end in candidate.token_ends)
    if (
        count < len(candidate.token_ends)
        and (candidate.token_ends[count - 1] if count else 0) < length
    ):
        count += 1  # a token that the cut goes through
    return math.prod(candidate.probabilities[:count])


def told(confidence: float) -> float | None:
    """A confidence as JSON has it: null where the engine does not tell."""
    return None if math.isnan(confidence) else confidence


def confident_length(candidate: Candidate, length: int, least: float) -> int:
    """How many of the first `length` characters have a probability of at least `least`.

    Ends with a line where several are left, else with a word. 0 when nothing useful is.
    """
    sure, probability = 0, 1.0
    for end, p in zip(candidate.token_ends, candidate.probabilities, strict=False):
        probability *= p
        if end > length or probability < least:
            break
        sure = end
    text = candidate.text[:length]
    if "\n" in text[:sure].strip("\n"):
        return text.rindex("\n", 0, sure)
    while 0 < sure < length and _WORD.match(text[sure - 1]) and _WORD.match(text[sure]):
        sure -= 1
    return len(_UNFINISHED.sub("", text[:sure])) if _WORD.search(text[:sure]) else 0
