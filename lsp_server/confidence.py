"""How sure the model is of a part of its text, and where the text stops being worth showing."""

from __future__ import annotations

import math
import re

from model.api import Candidate

_WORD = re.compile(r"\w")
_INDENTATION = re.compile(r"\n[ \t]+")
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


def worthwhile_length(
    candidate: Candidate, length: int, least: float, *, may_be_whole: bool = True
) -> int:
    """How many of the first `length` characters to show: those that save the most typing on
    average, of the parts that have a probability of at least `least`.

    A longer part saves more keys and is less often right. Ends with a line where several are left,
    else with a word, if it is not the whole. 0 when nothing useful is sure enough.
    """
    text, probability = candidate.text[:length], 1.0
    best, most = 0, -1.0
    for end, p in zip(candidate.token_ends, candidate.probabilities, strict=False):
        probability *= p
        if probability < least:
            break
        part = length if end >= length and may_be_whole else _whole_words(text, min(end, length))
        saved = probability * (_keys(text[:part]) - 1)  # taking it is a key, too
        if part and saved >= most:
            best, most = part, saved
        if end >= length:
            break
    return best


def _whole_words(text: str, end: int) -> int:
    """Where to cut `text` so that at most `end` characters are left, and none of them half of
    something; 0 where nothing useful is left."""
    if "\n" in text[:end].strip("\n"):
        return text.rindex("\n", 0, end)
    while 0 < end < len(text) and _WORD.match(text[end - 1]) and _WORD.match(text[end]):
        end -= 1
    return len(_UNFINISHED.sub("", text[:end])) if _WORD.search(text[:end]) else 0


def _keys(text: str) -> int:
    """Keys that typing `text` takes; an editor brings the indentation of a line."""
    return len(_INDENTATION.sub("\n", text))
