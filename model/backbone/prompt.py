"""The one prompt layout of the backbone.

    far | <fim_prefix> <fim_suffix> suffix <fim_middle> | near → the middle

Far text comes first, as plain text, then what follows the hole, then the text just before the
cursor, which the middle continues. So the model has the suffix in sight wherever the cursor is,
a typed key appends one token, and a jump within a file leaves what was read of the far text valid
(measured against the other orders in docs/experiments.md). Where nothing follows the hole, the
prompt is the text alone.

Both edges of what is read, and the border between far and near, lie at line starts and move in
large steps: a window that slid by a token a key would have to be read anew at every key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

NEAR_TOKENS = 256
"""The least that stands behind the suffix, where there is so much."""
NEAR_STEP = 128
"""Tokens by which the near text grows before it is handed over to the far text."""
FAR_STEPS = 4
"""The far edge moves by one part in so many of the prefix's budget."""
HEALED_TOKENS = 4
"""The most tokens before the cursor that are written again."""
CHARS_PER_TOKEN = 8
"""Of the suffix no more characters a token are looked at."""


class PromptTokenizer(Protocol):
    """What a prompt needs of the backbone's tokenizer."""

    fim_prefix: int
    fim_suffix: int
    fim_middle: int

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of a text."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """What a token stands for; nothing for a special one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the backbone reads before it writes the middle."""

    far: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    near: tuple[int, ...] = ()
    heal: bytes = b""
    """What was taken back from before the cursor: the middle begins with it."""
    ids: tuple[int, ...]
    """All of it, in the order of the layout."""
    dropped: int = 0
    """Tokens that were too many at the far edges."""

    @classmethod
    def of(
        cls,
        tokenizer: PromptTokenizer,
        prefix: str,
        suffix: str,
        *,
        prefix_tokens: int,
        suffix_tokens: int,
    ) -> Prompt:
        """The prompt of a hole between two texts, within budgets in tokens."""
        before = tokenizer.encode(prefix)
        heal = _healed(tokenizer, before)
        kept = before[: len(before) - heal]
        line_starts = _line_starts(tokenizer, kept)
        # By where the cursor's line begins: what is typed in it moves nothing.
        start = _start_of_far(line_starts[-1], prefix_tokens, line_starts)
        border = _start_of_near(line_starts[-1], start, line_starts)
        start = max(start, len(kept) - most_tokens(prefix_tokens))  # a very long line
        border = max(start, border)
        after, num_left = _whole_lines(tokenizer, suffix, suffix_tokens)
        far, near = kept[start:border], kept[border:]
        if after:
            marks = (tokenizer.fim_prefix, tokenizer.fim_suffix)
            ids = (*far, *marks, *after, tokenizer.fim_middle, *near)
        else:
            ids = (*far, *near)
        return cls(
            far=tuple(far),
            suffix=tuple(after),
            near=tuple(near),
            heal=b"".join(map(tokenizer.token_bytes, before[len(kept) :])),
            ids=ids,
            dropped=start + num_left,
        )

    def without_far(self) -> Prompt:
        """The prompt with only what is close to the cursor: read sooner, after a jump."""
        return Prompt(
            suffix=self.suffix,
            near=self.near,
            heal=self.heal,
            ids=self.ids[len(self.far) :],
            dropped=self.dropped + len(self.far),
        )


def most_tokens(budget: int) -> int:
    """How many tokens of the prefix are read at most: the cursor's line comes on top of the budget,
    up to a part of it."""
    return budget + budget // FAR_STEPS


def _healed(tokenizer: PromptTokenizer, ids: Sequence[int]) -> int:
    """How many of the last tokens are written again, so that the cursor may stand inside one.

    A text up to the cursor is cut into tokens as if it ended there; the model has hardly seen such
    pieces. Back they go to where a word or a run of blanks begins, which is where a token would
    have begun whatever follows.
    """
    count, text = 0, b""
    while count < min(HEALED_TOKENS, len(ids)):
        piece = tokenizer.token_bytes(ids[-1 - count])
        if not piece or piece.endswith(b"\n"):  # a line's end is a border
            break
        if count and not _joins(piece, text):
            break
        text = piece + text
        count += 1
        if not _is_word(piece[:1]) and not piece[:1].isspace():
            break
        if piece[:1].isspace() and piece.strip():  # a blank and a word: it begins here
            break
    return count


def _joins(piece: bytes, text: bytes) -> bool:
    """Whether a token may have run on into what follows it."""
    return _is_word(piece[-1:]) and _is_word(text[:1])


def _is_word(byte: bytes) -> bool:
    return byte.isalnum() or byte == b"_" or byte >= b"\x80"


def _line_starts(tokenizer: PromptTokenizer, ids: Sequence[int]) -> list[int]:
    """Where a line begins, as numbers of tokens before it; the text's own start is one."""
    return [0, *(i + 1 for i, t in enumerate(ids) if tokenizer.token_bytes(t).endswith(b"\n"))]


def _start_of_far(count: int, budget: int, line_starts: Sequence[int]) -> int:
    """Tokens to drop at the far edge: a multiple of a large step, up to the next line. `count` is
    where the cursor's line begins."""
    if count <= budget:
        return 0
    step = max(budget // FAR_STEPS, 1)
    least = min(-(-(count - budget) // step) * step, count)
    return next(start for start in line_starts if start >= least)


def _start_of_near(count: int, start: int, line_starts: Sequence[int]) -> int:
    """The border between far and near text; `start` where all of it is near."""
    most = (count - NEAR_TOKENS) // NEAR_STEP * NEAR_STEP
    return max((at for at in line_starts if start < at <= most), default=start)


def _whole_lines(tokenizer: PromptTokenizer, text: str, budget: int) -> tuple[list[int], int]:
    """The first lines of a text that fit the budget, and how many tokens are left out."""
    if not text.strip() or not budget:
        return [], 0
    ids = tokenizer.encode(text[: budget * CHARS_PER_TOKEN])
    if len(ids) <= budget:
        return ids, 0
    ends = [i for i in _line_starts(tokenizer, ids[:budget]) if i]
    # A rest of a line says more than nothing at all.
    kept = ends[-1] if ends and ends[-1] >= budget // 2 else budget
    return ids[:kept], len(ids) - kept
