"""How sure the model is of a part of its text, and where the text stops being worth showing."""

from __future__ import annotations

import math
import re
from bisect import bisect_right

from model.api import Candidate

_LINE = re.compile(r"^[^\n]*\S[^\n]*", re.MULTILINE)
_WORD = re.compile(r"\w")
_INDENTATION = re.compile(r"\n[ \t]+")
_BEGUN = re.compile(r"\w*")
_UNFINISHED = re.compile(r"[^\w)\]}\"'`;:]*")
"""What cannot end a line, such as a dot or an opening bracket. Like the word that is begun, it is
looked for backwards: a pattern that ends in `$` is tried at every character."""


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


def line_confidences(candidate: Candidate, length: int) -> list[tuple[int, float]]:
    """Of each line within the first `length` characters that is not blank: where it ends, and the
    model's probability of it, given the lines before, 0..1.

    The last line of the whole text includes the text's end. One line, where the candidate does not
    tell its tokens apart.
    """
    text = candidate.text[:length]
    ends = [match.end() for match in _LINE.finditer(text)]
    if not ends or not candidate.token_ends:
        return [(len(text), candidate.confidence)]
    confidences, start = [1.0] * len(ends), 0
    for end, probability in zip(candidate.token_ends, candidate.probabilities, strict=False):
        if start >= length:
            break
        piece = candidate.text[start:end]
        begins = start + len(piece) - len(piece.lstrip("\n"))
        confidences[min(bisect_right(ends, begins), len(ends) - 1)] *= probability
        start = end
    if length >= len(candidate.text):
        confidences[-1] *= math.prod(candidate.probabilities[len(candidate.token_ends) :])
    return list(zip(ends, confidences, strict=True))


def least_of_further_lines(least: float) -> float:
    """How sure the model has to be of a line below the first one, where it has to be `least` of
    that one.

    The probability of several lines is a product that falls however good each of them is, so it is
    not held against them. But a first line that is right is worth showing by itself: one below it
    has to be right more often than not.
    """
    return max(least, 0.5) if least else 0.0


def is_sure(candidate: Candidate, length: int, least: float) -> bool:
    """Whether the model is sure enough of each line within the first `length` characters. What is
    not known (NaN) is no reason to hide a text."""
    (_, first), *others = line_confidences(candidate, length)
    further = least_of_further_lines(least)
    return not first < least and not any(confidence < further for _, confidence in others)


def worthwhile_lengths(
    candidate: Candidate, length: int, least: float, *, may_be_whole: bool = True
) -> list[int]:
    """How many of the first `length` characters to show, the best choice first: of the first line
    as much as saves the most typing on average, of the parts that have a probability of at least
    `least`; if that is all of it, the lines below it that the model is sure of, too.

    A longer part saves more keys and is less often right. Ends with a word, if it is no whole line.
    None when nothing useful is sure enough.
    """
    (first_end, _), *others = line_confidences(candidate, length)
    if not others:
        first_end = length
    text, probability = candidate.text[:first_end], 1.0
    saved: dict[int, float] = {}
    for end, p in zip(candidate.token_ends, candidate.probabilities, strict=False):
        probability *= p
        if probability < least:
            break
        is_line = end >= first_end and (may_be_whole or bool(others))
        part = first_end if is_line else _whole_words(text, min(end, first_end))
        if part:  # taking it is a key, too
            keys = probability * (_keys(text[:part]) - 1)
            saved[part] = max(saved.get(part, keys), keys)
        if end >= first_end:
            break
    lengths = sorted(saved, key=lambda part: (-saved[part], -part))
    if not others or lengths[:1] != [first_end]:
        return lengths
    for end, confidence in others if may_be_whole else others[:-1]:
        if confidence < least_of_further_lines(least):
            break
        lengths[0] = length if end == others[-1][0] else end
    return lengths


def _whole_words(text: str, end: int) -> int:
    """Where to cut `text` so that at most `end` characters are left, and none of them half of
    something; 0 where nothing useful is left."""
    if 0 < end < len(text) and _WORD.match(text[end]):
        end = len(_BEGUN.sub("", text[:end][::-1], count=1))
    if not _WORD.search(text[:end]):
        return 0
    return len(_UNFINISHED.sub("", text[:end][::-1], count=1))


def _keys(text: str) -> int:
    """Keys that typing `text` takes; an editor brings the indentation of a line."""
    return len(_INDENTATION.sub("\n", text))
